"""Writes the tables of README.md and results/README.md from the files in results/: no figure in them is typed by hand.

    python -m benchmarks.tables

A table is found by its first cell; what stands around it is left alone. tests/test_benchmarks.py checks that the pages
agree with the files.
"""

import json
import sys
from functools import partial

import files
from benchmarks import report
from evaluation.report import ANATOMY_OF, RECONSTRUCTION, summary_tables
from files import UserError

RUNS = {
    "ds002748": "ds002748, 224×224, factor 8",
    "ds002748_sharp": "ds002748, sharp decoder",
    "ixi": "IXI, 128×128, factor 4",
    "ixi_sharp": "IXI, sharp decoder",
    "demo": "demo, 128×128, factor 8",
}


def interval(name, digits, mean="[mean]", ends="[ci95]"):
    """The format of a mean and its interval."""
    low, high = f"{{{name}{ends}[0]:.{digits}f}}", f"{{{name}{ends}[1]:.{digits}f}}"
    return f"{{{name}{mean}:.{digits}f}} ({low}–{high})"


# By file of results/: the head of its table, and the format of a row; `more` says what is not in the file.
LISTINGS = {
    "sampling.json": (
        "codes | batch | textbook loop (s) | cached (s) | teacher-forced pass (s) | times faster than the loop | "
        "cached / pass | exact",
        "{grid}×{grid} | {batch} | {naive_s:,.0f} | {cached_s:.2f} | {teacher_forced_s:.3f} | {speedup:,.0f} | "
        "{cached_over_teacher_forced:.1f} | {equal}",
    ),
    "ixi/priors.json": (
        "prior | bits per code, validation people | against the default | parameters | seconds an epoch | "
        "epochs in {minutes:g} min",
        "{variant} | {validation_bits_per_code:.3f} | {worse} | {parameters:,} | {seconds_an_epoch:.0f} | {epochs:.1f}",
    ),
    "ixi/ablation.json": (
        "variant | SSIM, head | PSNR (dB) | SSIM | power kept above half of Nyquist | bits per pixel, entropy | "
        "images/s",
        "{variant} | {ssim_head:.3f} | {psnr_db:.2f} | {ssim:.3f} | {power:.2f} | {entropy_bits_per_pixel:.3f} | "
        "{examples_per_second:.0f}",
    ),
    "peers/priors.json": (
        "prior, test people | parameters | minutes | epochs | slices/s | bits per image | seconds a sample, alone | "
        "in a batch of 16",
        "{entry} | {parameters:,} | {minutes:g} | {epochs:.2f} | {examples_per_second:.1f} | "
        + interval("bits_per_image", 0)
        + " | {seconds_per_sample_batch_1:.3g} | {seconds_per_sample_batch_16:.3g}",
    ),
    "large.json": (
        "slices of 256×256 | cache (GB) | decoding (s) | decoded/s | peak MiB, decoding | "
        "peak MiB, training, with the file's pages | without them | "
        "images/s, training | of that time in steps | images/s, reading alone",
        "{slices:,} | {cache_gb:.1f} | {decoding_s:.0f} | {decoded_per_second:,.0f} | {decoding_peak_mib:,.0f} | "
        "{training_peak_mib:,.0f} | {training_own_mib:,.0f} | "
        "{images_per_second:.1f} | {share_in_steps:.1%} | {reading_images_per_second:,.0f}",
    ),
    "training.json": (
        "stage | pixels | codes | batch | images/s | GFLOP an image | of {giga:.0f} GFLOP/s",
        "{name} | {image_size} | {grid}×{grid} | {batch} | {images_per_second:.1f} | {giga:.2f} | "
        "{share_of_matrix_rate:.0%}",
    ),
    "rates/rates.json": (
        "factor | codes | SSIM | SSIM, head | PSNR (dB) | bits per code | bits per image | seconds a sample",
        f"{{downsampling}} | {{num_embeddings}} | {{ssim:.3f}} | {interval('ssim_head', 3, '', '_ci95')} | "
        "{psnr_db:.2f} | {bits_per_code:.3f} | {bits_per_image:,.0f} | {seconds_per_sample:.3f}",
    ),
}


def more(row, first):
    """What a table shows of a row beside what the file says."""
    found = {}
    if "exact" in row:
        found["equal"] = "yes" if row["exact"] else f"but for {row['different_codes']} codes"
    if "power_ratio" in row:
        found["power"] = report.power_above_half(row)
    if "stage" in row:
        found |= {"name": "VQ-VAE" if row["stage"] == "vqvae" else "prior", "giga": row["operations_per_image"] / 1e9}
    if "validation_bits_per_code" in row:
        bits, default = (one["validation_bits_per_code"] for one in (row, first))
        found["worse"] = "" if row is first else f"{bits / default - 1:+.1%}"
    return found


def load(name):
    """A JSON file of results/."""
    path = report.ROOT / "results" / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; make benchmarks and make results write it") from error


def table(head, rows):
    """Lines of a table in Markdown, from the cells of each line."""
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)]


def listing(name):
    """A table with a line for each row of a file, as `LISTINGS` says."""
    found, (head, cells) = load(name), LISTINGS[name]
    rows = [cells.format(**row, **more(row, found["rows"][0])).split(" | ") for row in found["rows"]]
    giga = found.get("matrix_operations_per_second", 0) / 1e9
    return table(head.format(**found, giga=giga).split(" | "), rows)


def results():
    """Reconstruction, codes and prior of each run."""
    found = [load(f"{name}/metrics.json") for name in RUNS]
    codes = "{codebook[num_embeddings]} / {codebook[codes_in_use]:.0%} / {codebook[perplexity]:.0f}"
    lines = {
        "people / slices for testing": "{reconstruction[ssim][people]} / {slices}",
        **{name: interval(f"reconstruction[{key}]", digits) for key, (name, digits) in RECONSTRUCTION.items()},
        "least and greatest share of power in eight bands": "{least:.2f} / {most:.2f}",
        "bits per pixel, raw": "{codebook[bits_per_pixel]:.3g}",
        "bits per pixel, by the codes' entropy": "{codebook[entropy_bits_per_pixel]:.3f}",
        "bits per pixel, under the prior": "{prior[bits_per_pixel]:.4f}",
        "priors, bits per code": interval("prior", 3, "[bits_per_code]", "[bits_per_code_ci95]"),
        "bits per slice / of these the layout's": "{prior[bits_per_image]:,.0f} / {prior[layout_bits_per_image]:,.0f}",
        "codes / in use / perplexity": codes,
    }
    for one in found:
        one["least"], *_, one["most"] = sorted(one["reconstruction_power_ratio"])
    rows = [[name, *(form.format(**one) for one in found)] for name, form in lines.items()]
    return table(["on test people", *RUNS.values()], rows)


def baselines(name):
    """The figures of one run and of what needs no model, as in its report."""
    first = summary_tables(load(f"{name}/metrics.json"))["reconstruction"]
    rows = first["rows"]
    if f"{name}_sharp" in RUNS:
        sharp = summary_tables(load(f"{name}_sharp/metrics.json"))["reconstruction"]["rows"][0]
        rows.insert(1, ["this model, sharp decoder", *sharp[1:]])
    rows = [[*(cell.replace(" to ", "–") for cell in row[:-1]), row[-1].strip("-")] for row in rows]
    return table([RUNS[name], *first["head"][1:]], rows)


def realism(title, runs):
    """Samples of some runs, by folder with what their columns are called, against the test people."""
    found, rows = [load(f"{name}/metrics.json") for name in runs], []
    for same in zip(*(summary_tables(one)["realism"]["rows"] for one in found), strict=True):
        name, *_, meaning = same[0]
        rows.append([name, *(row[i] for i in (1, 2, 3) for row in same), meaning])
    copies = [f"{one['realism']['copies']['share_of_samples']:.1%}" for one in found]
    blank = [""] * len(copies)
    one_percent = ["1%"] * len(copies)
    rows.append(["nearer to a training slice than 99 % of test slices", *copies, *blank, *one_percent, "more: copies"])
    kinds = ("samples", "training people, decoded", "training people")
    return table([title, *(f"{kind}{name}" for kind in kinds for name in runs.values()), "how to read it"], rows)


def anatomy(title, runs):
    """Anatomy of samples and of what they can be compared with, for some runs by folder with what they are called."""
    rows = []
    for name, what in runs.items():
        of_run = summary_tables(load(f"{name}/metrics.json"))["anatomy"]["rows"]
        rows += [[f"{what}: {row[0]}", *row[1:]] for row in of_run]
    return table([title, *ANATOMY_OF.values(), "how to read it"], rows)


def peers():
    """This project's VQ-VAE and its peers: what each costs, and its quality at each budget."""
    found = sorted(load("peers/peers.json")["rows"], key=lambda row: row["minutes"])
    budgets = {f"{row['minutes']:g} min": "" for row in found}
    rows = {row["entry"]: budgets for row in found}
    for row in found:
        told = "{ssim_head:.3f} / {psnr_db:.2f} / {ssim:.3f} / {power:.2f}".format(**row, **more(row, row))
        rows[row["entry"]] = rows[row["entry"]] | row | {f"{row['minutes']:g} min": told}
    cells = {
        "VQ-VAE": "{entry}",
        "parameters": "{parameters:,}",
        "bits per pixel, raw / entropy": "{bits_per_pixel:.3f} / {entropy_bits_per_pixel:.3f}",
        "codes in use": "{codes_in_use:.0%}",
        "images/s": "{examples_per_second:.1f}",
        "peak MiB": "{peak_mib:,.0f}",
        **{name: f"{{{name}}}" for name in budgets},
    }
    return table([*cells], [[cell.format(**row) for cell in cells.values()] for row in rows.values()])


def leak():
    """The same training, split by slice and by person."""
    places = {"test": "its own test slices", "new people": "new people"}
    cells = [interval(name, 3) for name in ("ssim_head", "copy_ssim_head", "bits_per_code")]
    head = ["split", "measured on", "SSIM inside the head", "the same of the nearest training slice", "bits per code"]
    rows = [
        [row["split"], place, *(cell.format(**row[key]) for cell in cells)]
        for row in load("leak/leak.json")["rows"]
        for key, place in places.items()
    ]
    return table(head, rows)


PAGES = {
    "README.md": [
        results,
        partial(baselines, "ds002748"),
        partial(
            realism, "sharp decoders, against the test people", {"ds002748_sharp": ", ds002748", "ixi_sharp": ", IXI"}
        ),
        partial(anatomy, "anatomy", {"ds002748_sharp": "ds002748", "ixi_sharp": "IXI"}),
        *(
            peers,
            leak,
            *(partial(listing, f"{name}.json") for name in ("peers/priors", "sampling", "training", "large")),
        ),
    ],
    "results/README.md": [
        *(partial(baselines, name) for name in ("ixi", "demo")),
        partial(realism, "demo, against the test people", {"demo": ""}),
        partial(anatomy, "anatomy of the demo", {"demo": "demo"}),
        *(partial(listing, f"{name}.json") for name in ("ixi/ablation", "ixi/priors", "rates/rates")),
    ],
}


def rewrite(name, page):
    """The text of one of `PAGES` with every table made anew; raises UserError if one is not on the page."""
    lines = page.split("\n")
    for make in PAGES[name]:
        new = make()
        first = new[0].split("|")[1]
        place = next((i for i, line in enumerate(lines) if line.startswith(f"|{first}|")), None)
        if place is None:
            raise UserError(f"{name}: no table begins with |{first}|")
        end = next((i for i in range(place, len(lines)) if not lines[i].startswith("|")), len(lines))
        lines[place:end] = new
    return "\n".join(lines)


def run(args):
    for name in PAGES:
        path = report.ROOT / name
        files.write_text(path, rewrite(name, path.read_text(encoding="utf-8")))


main = report.command(run, __doc__, "stopped")

if __name__ == "__main__":
    sys.exit(main())
