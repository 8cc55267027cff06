"""Writes the tables of README.md and results/README.md from the files in results/: no figure in them is typed by hand.

    python benchmarks/tables.py

A table is found by its first cell; what stands around it is left alone. tests/test_benchmarks.py checks that the pages
agree with the files.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import decoding
import run_folder
import webpage
from benchmarks import report

ROOT = Path(__file__).resolve().parent.parent
RUNS = {
    "ixi": "IXI, 128×128, factor 4",
    "ixi_sharp": "IXI, sharp decoder",
    "ixi8": "IXI, 128×128, factor 8",
    "demo": "demo, 128×128, factor 8",
    "demo256": "demo, 256×256, factor 8",
}


def load(name):
    """A JSON file of results/."""
    path = ROOT / "results" / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise run_folder.RunError(f"{path}: not found; make benchmarks and make results write it") from error


def table(head, rows):
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def with_interval(value, digits):
    low, high = value["ci95"]
    return f"{value['mean']:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def results():
    """Reconstruction, codes and prior of each run."""
    runs = [load(f"{name}/metrics.json") for name in RUNS]
    rows = [
        ["people / slices for testing", *(f"{m['reconstruction']['ssim']['people']} / {m['slices']}" for m in runs)]
    ]
    for key, (name, digits) in webpage.RECONSTRUCTION.items():
        rows.append([name, *(with_interval(m["reconstruction"][key], digits) for m in runs)])
    bands = [m["reconstruction_power_ratio"] for m in runs]
    rows += [
        ["least and greatest share of power in eight bands", *(f"{min(b):.2f} / {max(b):.2f}" for b in bands)],
        ["bits per pixel, raw", *(f"{m['codebook']['bits_per_pixel']:.3g}" for m in runs)],
        ["bits per pixel, by the codes' entropy", *(f"{m['codebook']['entropy_bits_per_pixel']:.3f}" for m in runs)],
        ["bits per pixel, under the prior", *(f"{m['prior']['bits_per_pixel']:.4f}" for m in runs)],
        [
            "prior, bits per code",
            *(
                with_interval({"mean": m["prior"]["bits_per_code"], "ci95": m["prior"]["bits_per_code_ci95"]}, 3)
                for m in runs
            ),
        ],
        [
            "codes / in use / perplexity",
            *("{num_embeddings} / {codes_in_use:.0%} / {perplexity:.0f}".format(**m["codebook"]) for m in runs),
        ],
    ]
    return table(["on test people", *RUNS.values()], rows)


def baselines(name):
    """The same figures of what needs no model, for one run."""
    found = load(f"{name}/metrics.json")
    methods = {"this model": {**found["reconstruction"], "bits_per_pixel": found["codebook"]["bits_per_pixel"]}}
    if f"{name}_sharp" in RUNS:
        sharp = load(f"{name}_sharp/metrics.json")["reconstruction"]
        methods["this model, sharp decoder"] = {**methods["this model"], **sharp}
    rows = []
    for method, figures in {**methods, **found["baselines"]}.items():
        bits = figures.get("bits_per_pixel")
        rows.append(
            [
                method,
                *(with_interval(figures[key], digits) for key, (_, digits) in webpage.RECONSTRUCTION.items()),
                "" if bits is None else f"{bits:.3f}",
            ]
        )
    return table([RUNS[name], *(title for title, _ in webpage.RECONSTRUCTION.values()), "bits per pixel"], rows)


def realism(title, runs):
    """Samples against the test people, with slices of training people after the VQ-VAE and as they are.

    Args:
        title: First cell.
        runs: Folder of each run in results/, and what its columns are called.
    """
    found = {name: load(f"{folder}/metrics.json")["realism"] for folder, name in runs.items()}
    columns = [(one, "samples", f"samples{name}") for name, one in found.items()]
    columns += [(one, "decoded_floor", f"training people, decoded{name}") for name, one in found.items()]
    columns += [(next(iter(found.values())), "floor", "training people")]
    rows = [
        [name, *(webpage.number(one[kind][key], digits) for one, kind, _ in columns), meaning]
        for key, (name, meaning, digits) in webpage.REALISM.items()
    ]
    copies = [f"{one['copies']['share_of_samples']:.1%}" for one in found.values()]
    blank = [""] * len(found)
    rows.append(["nearer to a training slice than 99 % of test slices", *copies, *blank, "1%", "more: copies"])
    return table([title, *(name for _, _, name in columns), "how to read it"], rows)


def sampling():
    """Times of the sampler."""
    rows = []
    for row in load("sampling.json")["rows"]:
        different = row.get("different_codes", 0)
        rows.append(
            [
                f"{row['grid']}×{row['grid']}",
                row["batch"],
                f"{row['naive_s']:,.0f}",
                f"{row['cached_s']:.2f}",
                f"{row['teacher_forced_s']:.3f}",
                f"{row['speedup']:,.0f}",
                f"{row['cached_s'] / row['teacher_forced_s']:.1f}",
                "yes" if row["exact"] else f"but for {different} codes",
            ]
        )
    head = ["codes", "batch", "textbook loop (s)", "cached (s)", "teacher-forced pass (s)"]
    return table([*head, "times faster than the loop", "cached / pass", "exact"], rows)


def priors():
    """Variants of the prior."""
    found = load("ixi/priors.json")
    first = found["rows"][0]["validation_bits_per_code"]
    rows = [
        [
            row["variant"],
            f"{row['validation_bits_per_code']:.3f}",
            "" if row is found["rows"][0] else f"{row['validation_bits_per_code'] / first - 1:+.1%}",
            f"{row['parameters']:,}",
            f"{row['seconds_an_epoch']:.0f}",
            f"{row['epochs']:.1f}",
        ]
        for row in found["rows"]
    ]
    head = ["prior", "bits per code, validation people", "against the default", "parameters", "seconds an epoch"]
    return table([*head, f"epochs in {found['minutes']:g} min"], rows)


def peers():
    """This project's VQ-VAE and its peers: what each costs, and its quality at each budget."""
    found = load("peers/peers.json")["rows"]
    budgets = sorted({row["minutes"] for row in found})
    rows = []
    for name in dict.fromkeys(row["entry"] for row in found):
        same = {row["minutes"]: row for row in found if row["entry"] == name}
        last = same[max(same)]
        rows.append(
            [
                name,
                f"{last['parameters']:,}",
                f"{last['bits_per_pixel']:.3f} / {last['entropy_bits_per_pixel']:.3f}",
                f"{last['codes_in_use']:.0%}",
                f"{last['examples_per_second']:.1f}",
                f"{last['peak_mib']:,.0f}",
                *(
                    "{ssim_head:.3f} / {psnr_db:.2f} / {ssim:.3f}".format(**same[one])
                    + f" / {report.power_above_half(same[one]):.2f}"
                    if one in same
                    else ""
                    for one in budgets
                ),
            ]
        )
    head = ["VQ-VAE", "parameters", "bits per pixel, raw / entropy", "codes in use", "images/s", "peak MiB"]
    return table([*head, *(f"{one:g} min" for one in budgets)], rows)


def peers_priors():
    """The default prior and MONAI's transformer on the same codes."""
    rows = [
        [
            row["entry"],
            f"{row['parameters']:,}",
            f"{row['minutes']:g}",
            f"{row['epochs']:.2f}",
            f"{row['examples_per_second']:.1f}",
            with_interval(row["bits_per_image"], 0),
            f"{row['seconds_per_sample_batch_1']:.3g}",
            f"{row['seconds_per_sample_batch_16']:.3g}",
        ]
        for row in load("peers/priors.json")["rows"]
    ]
    head = ["prior, test people", "parameters", "minutes", "epochs", "slices/s", "bits per image"]
    return table([*head, "seconds a sample, alone", "in a batch of 16"], rows)


def ablation():
    """Variants of the VQ-VAE."""
    rows = [
        [
            row["variant"],
            f"{row['ssim_head']:.3f}",
            f"{row['psnr_db']:.2f}",
            f"{row['ssim']:.3f}",
            f"{report.power_above_half(row):.2f}",
            f"{row['entropy_bits_per_pixel']:.3f}",
            f"{row['examples_per_second']:.0f}",
        ]
        for row in load("ixi/ablation.json")["rows"]
    ]
    head = ["variant", "SSIM, head", "PSNR (dB)", "SSIM", "power kept above half of Nyquist", "bits per pixel, entropy"]
    return table([*head, "images/s"], rows)


def large():
    """Large made data sets: decoding, memory and speed."""
    rows = [
        [
            f"{row['slices']:,}",
            f"{row['cache_gb']:.1f}",
            f"{row['decoding_s']:.0f}",
            f"{row['decoded_per_second']:,.0f}",
            f"{row['decoding_peak_mib']:,.0f}",
            f"{row['training_peak_mib']:,.0f}",
            f"{row['images_per_second']:.1f}",
            f"{row['share_in_steps']:.1%}",
            f"{row['reading_images_per_second']:,.0f}",
        ]
        for row in load("large.json")["rows"]
    ]
    head = ["slices of 256×256", "cache (GB)", "decoding (s)", "decoded/s", "peak MiB, decoding", "peak MiB, training"]
    return table([*head, "images/s, training", "of that time in steps", "images/s, reading alone"], rows)


def training():
    """Speed of both stages, and the share of the machine's matrix-product rate."""
    found = load("training.json")
    rows = [
        [
            {"vqvae": "VQ-VAE", "prior": "prior"}[row["stage"]],
            row["image_size"],
            f"{row['grid']}×{row['grid']}",
            row["batch"],
            f"{row['images_per_second']:.1f}",
            f"{row['operations_per_image'] / 1e9:.2f}",
            f"{row['share_of_matrix_rate']:.0%}",
        ]
        for row in found["rows"]
    ]
    head = ["stage", "pixels", "codes", "batch", "images/s", "GFLOP an image"]
    return table([*head, f"of {found['matrix_operations_per_second'] / 1e9:.0f} GFLOP/s"], rows)


def rates():
    """Settings of rate and distortion."""
    rows = [
        [
            row["downsampling"],
            row["num_embeddings"],
            f"{row['ssim']:.3f}",
            with_interval({"mean": row["ssim_head"], "ci95": row["ssim_head_ci95"]}, 3),
            f"{row['psnr_db']:.2f}",
            f"{row['bits_per_code']:.3f}",
            f"{row['bits_per_image']:,.0f}",
            f"{row['seconds_per_sample']:.3f}",
        ]
        for row in load("rates/rates.json")["rows"]
    ]
    head = ["factor", "codes", "SSIM", "SSIM, head", "PSNR (dB)", "bits per code", "bits per image"]
    return table([*head, "seconds a sample"], rows)


def leak():
    """The same training, split by slice and by person."""
    rows = []
    for row in load("leak/leak.json")["rows"]:
        for where in ("test", "new people"):
            rows.append(
                [
                    f"by {row['split'].removeprefix('by ')}",
                    "its own test slices" if where == "test" else where,
                    *(with_interval(row[where][key], 3) for key in ("ssim_head", "copy_ssim_head", "bits_per_code")),
                ]
            )
    head = ["split", "measured on", "SSIM inside the head", "the same of the nearest training slice", "bits per code"]
    return table(head, rows)


PAGES = {
    "README.md": [
        results,
        lambda: baselines("ixi"),
        lambda: realism("IXI, against the test people", {"ixi": ", plain", "ixi_sharp": ", sharp"}),
        peers,
        peers_priors,
        sampling,
        leak,
        training,
        large,
    ],
    "results/README.md": [
        lambda: baselines("ixi8"),
        lambda: baselines("demo"),
        lambda: baselines("demo256"),
        lambda: realism("demo, against the test people", {"demo": ""}),
        ablation,
        priors,
        rates,
    ],
}


def rewrite(name, page):
    """The text of one of `PAGES` with every table made anew.

    Raises:
        RunError: If a table is not on the page.
    """
    lines = page.split("\n")
    for make in PAGES[name]:
        new = make()
        first = new[0].split("|")[1]
        places = [i for i, line in enumerate(lines) if line.startswith("|") and line.split("|")[1] == first]
        if not places:
            raise run_folder.RunError(f"{name}: no table begins with |{first}|")
        end = next(i for i in range(places[0], len(lines) + 1) if i == len(lines) or not lines[i].startswith("|"))
        lines[places[0] : end] = new
    return "\n".join(lines)


def run(args):
    for name in PAGES:
        path = ROOT / name
        decoding.write_text(path, rewrite(name, path.read_text(encoding="utf-8")))


def main(argv=None):
    parser = argparse.ArgumentParser(description="Write the tables of README.md and results/README.md.")
    return run_folder.exit_status(run, parser.parse_args(argv), "stopped")


if __name__ == "__main__":
    sys.exit(main())
