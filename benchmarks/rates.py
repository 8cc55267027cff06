"""How rate, distortion and prior go together: grids and codebooks of several sizes, each trained and sampled.

    python -m benchmarks.rates --data-dir ../shared/data/ixi --vqvae-epochs 4 --prior-epochs 1

Each runs train.py for about the same time (a grid of factor 8 has a quarter of the codes, so its prior gets four times
the epochs; rates.json says the seconds), and is measured on the test people.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import evaluate
import runs
import trained
from benchmarks import report
from evaluation import figures, metrics

SHOWN, HEIGHTS = 8, np.linspace(0.15, 0.85, 8, dtype="float32")
AXES = {
    "bits_per_image": "bits per image, under the prior",
    "seconds_per_sample": f"seconds a sample, in batches of {trained.AT_ONCE}",
}


def measure(args, factor, num_embeddings):
    """Trains one setting; returns its row of the table, some samples, float in [0, 1], and the picture's footer."""
    run_dir = args.runs_dir / f"factor{factor}-codes{num_embeddings}"
    how = {"vqvae_epochs": args.vqvae_epochs, "prior_epochs": max(1, args.prior_epochs * factor**2 // 16)}
    how |= {"data_dir": args.data_dir, "downsampling": factor, "num_embeddings": num_embeddings}
    data, model = report.train(run_dir, **how)
    models, vqvae = model.models, model.vqvae
    heights = np.tile(HEIGHTS, trained.AT_ONCE // SHOWN)
    for _ in range(2):  # the first call compiles
        drawn = model.draw(np.zeros(len(heights), "int32"), heights, seed=0)
        seconds, images = report.timed(lambda drawn=drawn: next(drawn))
    test = data.of("test")
    codes, per_slice, _ = evaluate.reconstruct(vqvae, data)
    layout_bits, bits = evaluate.code_lengths(models, data, codes)
    bits = metrics.over_people((layout_bits + bits.sum(axis=(1, 2))) / codes[0].size, test.subject_id)["mean"]
    found = metrics.summarise(per_slice, test.subject_id)
    history = runs.read_histories(run_dir).items()
    row = {
        "downsampling": factor,
        "num_embeddings": num_embeddings,
        **{name: found[name]["mean"] for name in ("ssim", "ssim_head", "psnr_db")},
        **{f"{name}_ci95": found[name]["ci95"] for name in ("ssim", "ssim_head")},
        "codes_in_use": metrics.codebook_metrics(codes, num_embeddings, factor**2)["codes_in_use"],
        "bits_per_code": bits,
        "bits_per_image": bits * codes[0].size,
        "seconds_per_sample": seconds / len(images),
        "vqvae_parameters": vqvae.count_params(),
        "prior_parameters": models.prior.count_params(),
        **{f"{stage}_training_s": sum(epoch["seconds"] for epoch in epochs) for stage, epochs in history},
    }
    return row, images[:SHOWN], runs.footer(data.title, data.credit)


def plot(path, rows, footer):
    """SSIM inside the head against bits per image, and time a sample, for each setting."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, (key, title) in zip(axes, AXES.items(), strict=True):
        for colour, factor in enumerate(sorted({row["downsampling"] for row in rows})):
            same = [row for row in rows if row["downsampling"] == factor]
            x, y = ([row[name] for row in same] for name in (key, "ssim_head"))
            ends = np.array([row["ssim_head_ci95"] or [row["ssim_head"]] * 2 for row in same])
            error = np.abs(ends.T - y) if key == "bits_per_image" else None
            axis.errorbar(x, y, error, capsize=2, color=f"C{colour}", label=f"factor {factor}", marker="o")
            for row, *place in zip(same, x, y, strict=True):
                style = {"xytext": (0, 6), "ha": "center", "textcoords": "offset points", "fontsize": 7}
                axis.annotate(row["num_embeddings"], place, **style)
        axis.set(xlabel=title, ylabel="SSIM inside the head, test people")
        axis.margins(0.08, 0.12)
    axes[0].legend(frameon=False, title="number at a point: codes", title_fontsize=8)
    figures.finish(figure, path, footer)


def run(args):
    rows, samples = [], []
    for factor in args.downsampling:
        for num_embeddings in args.num_embeddings:
            row, images, footer = measure(args, factor, num_embeddings)
            rows.append(row)
            samples.append(images)
            report.write(args.output_dir / "rates.json", rows, batch=trained.AT_ONCE)
    plot(args.output_dir / "rates.png", rows, footer)
    titles = [f"at {p:.2f}" for p in np.tile(HEIGHTS, len(rows))]
    names = [f"1/{row['downsampling']}, {row['num_embeddings']} codes" for row in rows]
    footer = f"made by the models, not picked\n{footer}"
    figures.image_grid(args.output_dir / "samples.png", np.concatenate(samples), titles, footer, SHOWN, names)


main = report.command(
    run,
    __doc__,
    "stopped; the same command goes on",
    data_dir=(Path, None, "as for train.py; without it, the demo cohort"),
    runs_dir=(Path, Path("runs/rates"), "where the runs go"),
    output_dir=(Path, Path("results/rates"), "where rates.json, rates.png and samples.png go"),
    downsampling=(int, [4, 8], "pixels a code along each side"),
    num_embeddings=(int, [64, 256, 512], "codes"),
    vqvae_epochs=(report.number(1), 8, "of the VQ-VAE"),
    prior_epochs=(report.number(1), 2, "of the prior at factor 4; more at larger factors"),
)

if __name__ == "__main__":
    sys.exit(main())
