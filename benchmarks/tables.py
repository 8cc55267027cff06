"""Writes the tables of the pages from the files in results/: no figure in them is typed by hand.

    python -m benchmarks.tables

`PAGES` says which table is on which page. A table is found by its first cell; what stands around it is left alone.
tests/test_benchmarks.py checks that the pages agree with the files.
"""

import json
import re
import sys
from functools import partial

from benchmarks import harness
from evaluation.report import (
    ANATOMY_OF,
    HEADS_OF,
    NO_BREAK,
    PICTURES,
    RECONSTRUCTION,
    STAGES,
    heads_table,
    reconstruction_table,
    samples_tables,
)
from system import console, files
from system.console import UserError

RUNS = {
    "ds002748": "ds002748, 224×224, factor 8",
    "ds002748_sharp": "ds002748, sharp decoder",
    "ixi": "IXI, 128×128, factor 4",
    "ixi_sharp": "IXI, sharp decoder",
    "demo": "demo, 128×128, factor 8",
}
SHARP = {"ds002748_sharp": "ds002748", "ixi_sharp": "IXI"}
HEADS = "ds002748_heads"  # the run of train.py --neighbours, sharp decoder
USED = {HEADS: "ds002748", "ixi_sharp": "IXI"}  # on which scans were completed and mapped
OASIS_SLICES = 9664  # training slices of OASIS as PNG


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
        "prior | bits per code, validation people | against the default | trained parameters | seconds an epoch | "
        "epochs in {minutes:g} min",
        "{variant} | {validation_bits_per_code:.3f} | {worse} | {parameters:,} | {seconds_an_epoch:.0f} | {epochs:.1f}",
    ),
    "ixi/ablation.json": (
        "variant | SSIM, head | PSNR (dB) | SSIM | power kept above half of Nyquist | images/s",
        "{variant} | {ssim_head:.3f} | {psnr_db:.2f} | {ssim:.3f} | {power:.2f} | {examples_per_second:.0f}",
    ),
    "peers/priors.json": (
        "prior, test people | trained parameters | minutes | epochs | slices/s | bits per image | "
        "seconds a sample, alone | "
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
    "ds002748_heads/heads.json": (
        "{number} heads drawn in each way | MS-SSIM of neighbours | Fréchet distance, coronal | sagittal | "
        "MS-SSIM of neighbours, lowest eighth / middle / highest | bits of each code, lowest eighth / middle / highest",
        "{heads} | {neighbours:.3f} | {coronal:.0f} | {sagittal:.0f} | {neighbours_by_height[0]:.3f} / "
        "{neighbours_by_height[4]:.3f} / {neighbours_by_height[7]:.3f} | {bits[0]:.2f} / {bits[4]:.2f} / {bits[7]:.2f}",
    ),
    "training.json": (
        "stage | pixels | codes | all parameters | batch | images/s | GFLOP an image | of {giga:.0f} GFLOP/s | "
        f"minutes an epoch of {OASIS_SLICES:,} slices",
        "{name} | {image_size} | {grid}×{grid} | {parameters:,} | {batch} | {images_per_second:.1f} | {giga:.2f} | "
        "{share_of_matrix_rate:.0%} | {minutes:.1f}",
    ),
}


def more(row, first):
    """What a table shows of a row beside what the file says."""
    found = {}
    if "exact" in row:
        found["equal"] = "yes" if row["exact"] else f"but for {row['different_codes']} codes"
    if "power_ratio" in row:
        found["power"] = harness.power_above_half(row)
    if "stage" in row:
        found |= {"name": "VQ-VAE" if row["stage"] == "vqvae" else "prior", "giga": row["operations_per_image"] / 1e9}
        found["minutes"] = OASIS_SLICES / row["images_per_second"] / 60
    if "validation_bits_per_code" in row:
        bits, default = (one["validation_bits_per_code"] for one in (row, first))
        found["worse"] = "" if row is first else f"{bits / default - 1:+.1%}"
    return found


def load(name):
    """A JSON file of results/."""
    path = harness.ROOT / "results" / name
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


def told(row, name, digits, sign=""):
    """A mean and its interval from `name` and `name_ci95` of a row; empty where the row has none."""
    mean, ends = row.get(name), row.get(f"{name}_ci95")
    if mean is None:
        return ""
    shown = f"{mean:{sign}.{digits}f}"
    return shown if ends is None else f"{shown} ({' to '.join(f'{end:{sign}.{digits}f}' for end in ends)})"


def summary(names=(*SHARP, "demo"), head="on test people"):
    """The README's, and of one run alone a model card's: what matters most of reconstructions, codes and samples."""
    runs = {name: load(f"{name}/metrics.json") for name in names}
    lines = {
        "test people / slices": "{reconstruction[ssim][people]} / {slices}",
        **{
            RECONSTRUCTION[key][0]: interval(f"reconstruction[{key}]", RECONSTRUCTION[key][1])
            for key in ("ssim", "ssim_head", "psnr_db")
        },
        "codes / in use / perplexity": "{codebook[num_embeddings]} / {codebook[codes_in_use]:.1%} / "
        "{codebook[perplexity]:.0f}",
        "bits per code under the priors": interval("prior", 3, "[bits_per_code]", "[bits_per_code_ci95]"),
        "Fréchet distance: samples / other people, decoded": "{realism[samples][frechet_distance]:.0f} / "
        "{realism[decoded_floor][frechet_distance]:.0f}",
        "samples nearer to training slices than 99 % of test slices": "{realism[copies][share_of_samples]:.1%}",
    }
    rows = [[name, *(form.format(**one) for one in runs.values())] for name, form in lines.items()]
    return table([head, *(RUNS[name] for name in runs)], rows)


def results():
    """Reconstruction, codes and prior of each run."""
    found = [load(f"{name}/metrics.json") for name in RUNS]
    codes = "{codebook[num_embeddings]} / {codebook[codes_in_use]:.1%} / {codebook[perplexity]:.0f}"
    lines = {
        "people / slices for testing": "{reconstruction[ssim][people]} / {slices}",
        **{name: interval(f"reconstruction[{key}]", digits) for key, (name, digits) in RECONSTRUCTION.items()},
        "least and greatest share of power in eight bands": "{least:.2f} / {most:.2f}",
        "bits per pixel, raw": "{codebook[bits_per_pixel]:.3g}",
        "bits per pixel, by the codes' entropy": "{codebook[entropy_bits_per_pixel]:.3f}",
        "bits per pixel, under the prior": "{prior[bits_per_pixel]:.4f}",
        "priors, bits per code": interval("prior", 3, "[bits_per_code]", "[bits_per_code_ci95]"),
        "bits per slice / of these the coarse codes'": "{prior[bits_per_image]:,.0f} / "
        "{prior[coarse_bits_per_image]:,.0f}",
        "codes / in use / perplexity": codes,
    }
    for one in found:
        one["least"], *_, one["most"] = sorted(one["reconstruction_power_ratio"])
    rows = [[name, *(form.format(**one) for one in found)] for name, form in lines.items()]
    return table(["on test people", *RUNS.values()], rows)


def rows_of(found):
    """Rows of a table of the report; what the first cell means, where it says so, goes into the last."""
    rows = []
    for first, *cells in found["rows"]:
        name, meaning = first if isinstance(first, tuple) else (first, "")
        rows.append([name, *("" if cell == "-" else str(cell).replace(NO_BREAK, " ") for cell in cells), meaning])
    return rows


def baselines(name):
    """The figures of one run and of what needs no model, as in its report."""
    first = reconstruction_table(load(f"{name}/metrics.json"))
    rows = rows_of(first)
    if f"{name}_sharp" in RUNS:
        sharp = rows_of(reconstruction_table(load(f"{name}_sharp/metrics.json")))[0]
        rows.insert(1, ["this model, sharp decoder", *sharp[1:]])
    rows = [[cell.replace(" to ", "–") for cell in row[:-1]] for row in rows]
    return table([RUNS[name], *first["head"][1:]], rows)


def realism(title, runs):
    """Samples of some runs, by folder with what their columns are called, against the test people."""
    found, rows = [load(f"{name}/metrics.json")["realism"] for name in runs], []
    for same in zip(*(rows_of(samples_tables(one)["realism"]) for one in found), strict=True):
        name, *_, meaning = same[0]
        rows.append([name, *(row[i] for i in (1, 2, 3) for row in same), meaning])
    copies = [f"{one['copies']['share_of_samples']:.1%}" for one in found]
    blank = [""] * len(copies)
    one_percent = ["1%"] * len(copies)
    rows.append(["nearer to a training slice than 99 % of test slices", *copies, *blank, *one_percent, "more: copies"])
    kinds = ("samples", "training people, decoded", "training people")
    return table([title, *(f"{kind}{name}" for kind in kinds for name in runs.values()), "how to read it"], rows)


def anatomy(title, runs):
    """Anatomy of samples and of what they can be compared with, for some runs by folder with what they are called."""
    rows = []
    for name, what in runs.items():
        of_run = rows_of(samples_tables(load(f"{name}/metrics.json")["realism"])["anatomy"])
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
        "trained parameters": "{parameters:,}",
        "bits per pixel, raw / entropy": "{bits_per_pixel:.3f} / {entropy_bits_per_pixel:.3f}",
        "codes in use": "{codes_in_use:.1%}",
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


def heads(run):
    """Whole heads beside real ones, as in the report."""
    found = load(f"{run}/metrics.json").get("heads")
    if found is None:
        raise UserError(f"results/{run}/metrics.json: no whole heads; evaluate a run of train.py --neighbours")
    _, *names = HEADS_OF.values()
    return table(["whole heads", f"{found['number']} drawn", *names, "how to read it"], rows_of(heads_table(found)))


def both():
    """Slices drawn alone by the run that draws heads, beside those of the run that does not."""
    runs = [load(f"{name}/metrics.json") for name in ("ds002748_sharp", HEADS)]
    lines = {
        "bits per code under the priors": interval("prior", 3, "[bits_per_code]", "[bits_per_code_ci95]"),
        "samples over decoded slices: ratio of the Fréchet distances": "{realism[ratio]:.2f}",
        "the prior's own gap": "{realism[prior_gap][ratio]:.2f}",
        "coverage": "{realism[samples][coverage]:.3f}",
        "both lateral ventricles at 0.4 to 0.65": "{realism[anatomy][samples][both_ventricles]:.3f}",
    }
    rows = [[name, *(form.format(**one) for one in runs)] for name, form in lines.items()]
    return table(["slices drawn alone", "ds002748", HEADS], rows)


def anomaly(run):
    """Maps of what is uncommon, on all planted lesions."""
    rows = [row for row in load(f"{run}/anomaly.json")["rows"] if row["lesions"] == "all"]
    columns = {"auroc": "AUROC", "average_precision": "average precision", "dice": "best Dice"}
    cells = [[row["map"].replace("|", r"\|"), *(told(row, key, 3) for key in columns)] for row in rows]
    return table([f"map, {USED[run]}", *columns.values()], cells)


def completion(run):
    """Completions with and without a particle filter; `less` is the difference to the first row, on the same slices."""
    columns = {
        "hidden": ("error under the mask", 3, ""),
        "hidden_less": ("less", 3, "+"),
        "lower_edge": ("error at its lower edge", 3, ""),
        "lower_edge_less": ("less", 3, "+"),
        "bits_below": ("bits of the codes below", 2, ""),
        "bits_below_less": ("less", 2, "+"),
        "seconds_each": ("seconds a draw", 1, ""),
    }
    rows = [
        [
            row["completion"],
            *(told(row, key, digits, sign) for key, (_, digits, sign) in columns.items()),
        ]
        for row in load(f"{run}/completion.json")["rows"]
    ]
    if rows[-1][0] == "decoder alone":
        rows[-1][-1] = ""  # nothing is drawn
    return table([f"completion, {USED[run]}", *(name for name, *_ in columns.values())], rows)


def start():
    """Ten people of a cohort, from a trained run and from nothing."""
    columns = {
        **{key: RECONSTRUCTION[key] for key in ("ssim", "ssim_head", "psnr_db")},
        "bits_per_image": ("bits per slice", 0),
    }
    rows = [
        [row["run"], *(told(row, key, digits) for key, (_, digits) in columns.items()), f"{row['seconds'] / 60:.0f}"]
        for row in load("start.json")["rows"]
    ]
    head = ["run, ten people of IXI", *(name for name, _ in columns.values()), "minutes of training"]
    return table(head, rows)


def label():
    """What the demo's label does to the ventricles, in the cohort and in what the models make."""
    found = load("demo/ventricles.json")
    one, other = found["labels"]
    rows = []
    for kind in ("cohort", "reconstructions", "samples"):
        difference = found[f"{kind}: {one} less {other}"]
        low, high = difference["ci95"]
        shares = [f"{found[f'{kind} {name}']['mean']:.1%}" for name in (one, other)]
        rows.append([kind, *shares, f"{100 * difference['difference']:.1f} ({100 * low:.1f} to {100 * high:.1f})"])
    return table(["ventricles, share of the head", one, other, "difference in points (95 %)"], rows)


def times():
    """How long each stage of each run was trained."""
    found = {name: load(f"{name}/metrics.json")["training"] for name in (*SHARP, "demo")}
    form = "{epochs} / {seconds:,.0f} / {fastest_epoch_seconds:.1f}"
    rows = [
        [title, *(form.format(**one[stage]) if stage in one else "" for one in found.values())]
        for stage, title in STAGES.items()
    ]
    return table(["epochs / seconds / fastest epoch", *(RUNS[name] for name in found)], rows)


def layers(which):
    """The layers of "vqvae" or "prior", as docs/figures.py counts them."""
    try:
        from docs import figures
    except ImportError as error:
        raise UserError(f"docs/figures.py: not found ({console.in_a_line(error)}); it lists the layers") from error

    def cell(value):
        if isinstance(value, int):
            return f"{value:,}"
        return str(value) if isinstance(value, str) else " × ".join(map(str, value))

    found = figures.layers(which)
    total = ("all of them", "", sum(number for *_, number in found))
    name = {"vqvae": "VQ-VAE", "prior": "prior"}[which]
    return table([name, "output shape", "trained parameters"], [[*map(cell, row)] for row in (*found, total)])


def versions():
    """The packages of requirements.txt, in the versions of requirements-lock.txt."""
    allowed = dict(
        re.findall(r"^([\w-]+)([<>=~][^\s#]*)", (harness.ROOT / "requirements.txt").read_text(), re.MULTILINE)
    )
    path = harness.ROOT / "requirements-lock.txt"
    locked = dict(re.findall(r"^([\w-]+)==(\S+)$", path.read_text(), re.MULTILINE))
    if locked.keys() != allowed.keys():
        raise UserError(f"{path}: other packages than requirements.txt: {', '.join(locked.keys() ^ allowed.keys())}")
    return table(["package", "version", "allowed"], [[name, locked[name], allowed[name]] for name in allowed])


def pictures():
    """Every picture of the runs of results/; one that a sharp decoder does not change is shown under the plain one."""
    questions = {name: picture.question for name, picture in PICTURES.items()}
    for path in sorted((harness.ROOT / "results").glob("*/*.png")):
        if path.parent.name in RUNS:
            questions.setdefault(path.name, "")
    rows = []
    for name, question in questions.items():
        paths = [harness.ROOT / "results" / run / name for run in RUNS]
        seen, row = set(), [f"{name.removesuffix('.png')}: {question}".removesuffix(": ")]
        for path in paths:
            content = path.read_bytes() if path.exists() else None
            row.append("" if content is None or content in seen else f"[see]({path.parent.name}/{name})")
            seen.add(content)
        if any(row[1:]):
            rows.append(row)
    return table(["picture", *RUNS.values()], rows)


PAGES = {
    "README.md": [summary, partial(layers, "vqvae"), partial(layers, "prior"), versions],
    "docs/data.md": [leak],
    "docs/results.md": [
        results,
        partial(
            realism,
            "sharp decoders, against the test people",
            {name: f", {what}" for name, what in SHARP.items()},
        ),
        partial(anatomy, "anatomy", SHARP),
    ],
    "docs/heads.md": [partial(heads, HEADS), partial(listing, f"{HEADS}/heads.json"), both],
    "docs/comparison.md": [
        *(partial(baselines, name) for name in ("ds002748", "ixi")),
        peers,
        *(partial(listing, f"{name}.json") for name in ("peers/priors", "ixi/priors", "ixi/ablation")),
    ],
    "docs/using.md": [*(partial(make, run) for make in (completion, anomaly) for run in USED), start],
    **{
        f"pretrained/{run}/MODEL_CARD.md": [partial(summary, (f"{run}_sharp",), "figures, test people")]
        for run in ("ds002748", "ixi")
    },
    f"pretrained/{HEADS}/MODEL_CARD.md": [partial(heads, HEADS), both],
    "docs/sampling.md": [partial(listing, "sampling.json")],
    "docs/running.md": [times, *(partial(listing, f"{name}.json") for name in ("training", "large"))],
    "results/README.md": [
        pictures,
        partial(baselines, "demo"),
        partial(realism, "demo, against the test people", {"demo": ""}),
        partial(anatomy, "anatomy of the demo", {"demo": "demo"}),
        label,
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
        path = harness.ROOT / name
        files.write_text(path, rewrite(name, path.read_text(encoding="utf-8")))


main = harness.command(run, __doc__, "stopped")

if __name__ == "__main__":
    sys.exit(main())
