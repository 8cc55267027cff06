"""How rate, distortion and prior go together: grids and codebooks of several sizes, each trained and sampled.

    python benchmarks/rates.py --data-dir ../shared/data/ixi --output-dir results/rates

For each downsampling factor and number of codes it runs train.py, each with about the same time for training (a grid of
factor 8 has a quarter of the codes, so its prior gets four times the epochs; rates.json says the seconds), measures the
test people and draws samples as predict.py does, and writes rates.json, rates.png and samples.png. A stopped sweep goes
on where it was.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import figures
import metrics
import modules
import predict
import run_folder
import sampling
from benchmarks import report

ROOT = Path(__file__).resolve().parent.parent
BATCH_SIZE, SHOWN = 32, 8


def parse(argv):
    parser = argparse.ArgumentParser(description="Rate, distortion and sampling time of several grids and codebooks.")
    add = parser.add_argument
    add("--data-dir", type=Path, help="as for train.py (default: the demo cohort)")
    add("--runs-dir", type=Path, default=Path("runs/rates"), help="(default: %(default)s)")
    add("--output-dir", type=Path, default=Path("results/rates"), help="(default: %(default)s)")
    add("--downsampling", type=int, nargs="+", default=[4, 8], help="(default: 4 8)")
    add("--num-embeddings", type=int, nargs="+", default=[64, 256, 512], help="(default: 64 256 512)")
    add("--vqvae-epochs", type=int, default=8, help="(default: %(default)s)")
    add("--prior-epochs", type=int, default=2, help="at factor 4; more at larger factors (default: %(default)s)")
    return parser.parse_args(argv)


def measure(args, factor, num_embeddings):
    """Trains one setting and returns its row of the table and some of its samples, float in [0, 1]."""
    run_dir = args.runs_dir / f"factor{factor}-codes{num_embeddings}"
    data = ["--data-dir", args.data_dir] if args.data_dir else []
    prior_epochs = max(1, args.prior_epochs * factor**2 // 16)
    size = ["--downsampling", factor, "--num-embeddings", num_embeddings]
    epochs = ["--vqvae-epochs", args.vqvae_epochs, "--prior-epochs", prior_epochs]
    command = [ROOT / "train.py", *data, "--run-dir", run_dir, *size, *epochs]
    if subprocess.run([sys.executable, *map(str, command)], check=False).returncode:
        raise run_folder.RunError(f"{' '.join(map(str, command))}: failed")

    config, cohort, slices = run_folder.reopen(run_dir)
    vqvae = run_folder.load_model(run_dir / "vqvae.keras", modules.VQVAE)
    prior = run_folder.load_prior(run_dir, vqvae)
    sampler = sampling.PixelCNNSampler(prior)
    positions = np.tile(np.linspace(0.15, 0.85, SHOWN, dtype="float32"), BATCH_SIZE // SHOWN)
    for _ in range(2):  # the first call compiles
        start = time.perf_counter()
        images = np.concatenate(list(predict.draw(sampler, vqvae, np.zeros(BATCH_SIZE, "int32"), positions, seed=0)))
        seconds = time.perf_counter() - start
    test = [one for one in slices if one.split == "test"]
    people = [one.subject_id for one in test]
    codes, per_slice, _ = predict.reconstruct(vqvae, cohort, slices)
    bits = predict.prior_bits(prior, run_folder.prior_inputs(codes, test, config["data"]["labels"]))
    found = metrics.summarise(per_slice, people)
    per_code = metrics.over_people(bits.mean(axis=(1, 2)), people)
    trained = {
        f"{stage}_training_s": sum(row["seconds"] for row in run_folder.read_history(run_dir / f"{stage}_history.csv"))
        for stage in ("vqvae", "prior")
    }
    return {
        "downsampling": factor,
        "num_embeddings": num_embeddings,
        "ssim": found["ssim"]["mean"],
        "ssim_ci95": found["ssim"]["ci95"],
        "ssim_head": found["ssim_head"]["mean"],
        "ssim_head_ci95": found["ssim_head"]["ci95"],
        "psnr_db": found["psnr_db"]["mean"],
        "codes_in_use": metrics.codebook_metrics(codes, num_embeddings, factor**2)["codes_in_use"],
        "bits_per_code": per_code["mean"],
        "bits_per_image": per_code["mean"] * bits[0].size,
        "seconds_per_sample": seconds / BATCH_SIZE,
        "vqvae_parameters": vqvae.count_params(),
        "prior_parameters": prior.count_params(),
        **trained,
    }, images[:SHOWN]


def plot(path, rows, footer):
    """SSIM inside the head against bits per image, and time a sample, for each setting."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, factor in enumerate(sorted({row["downsampling"] for row in rows})):
        same = [row for row in rows if row["downsampling"] == factor]
        x, y = [row["bits_per_image"] for row in same], [row["ssim_head"] for row in same]
        error = np.abs(np.array([row["ssim_head_ci95"] or [row["ssim_head"]] * 2 for row in same]).T - y)
        style = {"color": f"C{colour}", "label": f"factor {factor}", "marker": "o"}
        left.errorbar(x, y, error, capsize=2, **style)
        right.plot([row["seconds_per_sample"] for row in same], y, **style)
        for axis, places in ((left, x), (right, [row["seconds_per_sample"] for row in same])):
            for row, place in zip(same, places, strict=True):
                axis.annotate(
                    row["num_embeddings"],
                    (place, row["ssim_head"]),
                    xytext=(0, 6),
                    ha="center",
                    textcoords="offset points",
                    fontsize=7,
                )
    left.set(xlabel="bits per image, under the prior", ylabel="SSIM inside the head, test people")
    right.set(xlabel=f"seconds a sample, in batches of {BATCH_SIZE}", ylabel="SSIM inside the head, test people")
    left.legend(frameon=False, title="number at a point: codes", title_fontsize=8)
    for axis in (left, right):
        axis.margins(0.08, 0.12)
    figures.finish(figure, path, footer)


def run(args):
    settings = [(factor, number) for factor in args.downsampling for number in args.num_embeddings]
    rows, samples = [], []
    for factor, number in settings:
        row, images = measure(args, factor, number)
        rows.append(row)
        samples.append(images)
        report.write(args.output_dir / "rates.json", rows, batch=BATCH_SIZE)
    config = json.loads((args.runs_dir / f"factor{factor}-codes{number}" / "config.json").read_text())
    footer = "\n".join(filter(None, (config["data"]["title"], config["data"]["credit"])))
    plot(args.output_dir / "rates.png", rows, footer)
    figures.image_grid(
        args.output_dir / "samples.png",
        np.concatenate(samples),
        [f"at {p:.2f}" for p in np.tile(np.linspace(0.15, 0.85, SHOWN), len(rows))],
        f"made by the models, not picked\n{footer}",
        columns=SHOWN,
        row_names=[f"1/{row['downsampling']}, {row['num_embeddings']} codes" for row in rows],
    )


def main(argv=None):
    return run_folder.exit_status(run, parse(argv), "stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
