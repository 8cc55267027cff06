"""Measures whether samples of a label have that label's ventricles: the share of the head that they fill.

    python benchmarks/ventricles.py --run-dir runs/demo --output-dir results/demo

Writes ventricles.json and ventricles.png: one slice of every person of the cohort, at a height where the lateral
ventricles are wide, its reconstruction, which shows what the decoder does to them, and samples of each label there.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from skimage.filters import threshold_multiotsu

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import decoding
import figures
import metrics
import modules
import predict
import run_folder
import sampling


def ventricle_mask(image):
    """Fluid in the middle of a head; bool, shape of `image`, float in [0, 1].

    Fluid is the darkest of three classes that Otsu's method finds inside the head; the middle is an ellipse of 0.4
    times the head's width and 0.5 times its length.
    """
    head = metrics.head_mask(image)
    rows, columns = np.nonzero(head)
    y, x = (
        (np.arange(size) - (lines.min() + lines.max()) / 2) / (np.ptp(lines) / 2)
        for size, lines in zip(image.shape, (rows, columns), strict=True)
    )
    middle = (y[:, None] / 0.5) ** 2 + (x / 0.4) ** 2 < 1
    return head & middle & (image < threshold_multiotsu(image[head], 3)[0])


def ventricle_share(image):
    """Area of the ventricles over that of the head; NaN for an image without a head of three greys."""
    head = metrics.head_mask(image)
    if len(np.unique(image[head])) < 3:
        return np.nan
    return float(ventricle_mask(image).sum() / head.sum())


def parse(argv):
    parser = argparse.ArgumentParser(description="Ventricles of samples and of the cohort, by label.")
    add = parser.add_argument
    add("--run-dir", type=Path, default=Path("runs/demo"), help="(default: %(default)s)")
    add("--output-dir", type=Path, default=Path("results/demo"), help="(default: %(default)s)")
    add("--slice-position", type=float, default=0.68, help="(default: %(default)s)")
    add("--num-samples", type=int, default=50, help="of each label (default: %(default)s)")
    return parser.parse_args(argv)


def draw_figure(path, shares, pictures, labels, footer):
    """Shares by source and label on the left; on the right one picture of each with its ventricles outlined.

    Args:
        shares: {(source, label): array of shares}.
        pictures: {(source, label): image}.
    """
    figure = Figure(figsize=(11, 6), layout="constrained")
    sources = list(dict.fromkeys(source for source, _ in shares))
    grid = figure.add_gridspec(len(sources), len(labels) + 1, width_ratios=[2.2, *[1] * len(labels)])
    axis = figure.add_subplot(grid[:, 0])
    jitter = np.random.default_rng(0)
    for place, ((source, label), values) in enumerate(shares.items()):
        colour = f"C{labels.index(label)}"
        axis.scatter(place + jitter.uniform(-0.15, 0.15, len(values)), 100 * values, s=8, color=colour, alpha=0.6)
        axis.hlines(100 * values.mean(), place - 0.3, place + 0.3, color="0.1")
        panel = figure.add_subplot(grid[sources.index(source), 1 + labels.index(label)])
        panel.imshow(pictures[source, label], **figures.GREY)
        panel.contour(ventricle_mask(pictures[source, label]), [0.5], colors=colour, linewidths=0.8)
        panel.set(title=f"{label}, {source}", xticks=[], yticks=[])
    axis.set_xticks(range(len(shares)), [f"{label}\n{source}" for source, label in shares], fontsize=7)
    axis.set_ylabel("ventricles, % of the head's area")
    axis.set_ylim(0)
    figures.finish(figure, path, footer)


def difference(shares, source, labels):
    """Mean share of the first label less that of the last, with a 95 % bootstrap interval."""

    def apart(a, b, axis=-1):
        return np.mean(a, axis=axis) - np.mean(b, axis=axis)

    groups = [shares[source, labels[0]], shares[source, labels[-1]]]
    interval = stats.bootstrap(groups, apart, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return {"difference": float(apart(*groups)), "ci95": [float(interval.low), float(interval.high)]}


def run(args):
    if args.num_samples < 2 or not 0 <= args.slice_position <= 1:
        raise run_folder.RunError(
            f"--num-samples {args.num_samples} must be 2 or more, --slice-position {args.slice_position} from 0 to 1"
        )
    config, data, slices = run_folder.reopen(args.run_dir)
    labels = config["data"]["labels"]
    if len(labels) < 2:
        raise run_folder.RunError(f"{args.run_dir}: its data have {len(labels)} labels; two or more can be compared")
    vqvae = run_folder.load_model(args.run_dir / "vqvae.keras", modules.VQVAE)
    sampler = sampling.PixelCNNSampler(run_folder.load_prior(args.run_dir, vqvae))

    nearest = predict.one_of_each(slices, args.slice_position, len(slices))
    number = args.num_samples
    conditions = np.repeat(np.arange(1, len(labels) + 1, dtype="int32"), number)
    heights = np.full(len(conditions), args.slice_position, "float32")
    drawn = np.concatenate(list(predict.draw(sampler, vqvae, conditions, heights, seed=0)))
    images = {}
    for name in labels:
        rows = [slices[i].row for i in nearest if slices[i].label == name]
        images["cohort", name] = data.images[rows] / 255
    for name in labels:
        codes = vqvae.encode(images["cohort", name][..., None].astype("float32"))
        images["reconstructions", name] = vqvae.decode(codes)[..., 0]
    for k, name in enumerate(labels):
        images["samples", name] = drawn[k * number : (k + 1) * number]
    shares = {key: np.array([ventricle_share(image) for image in group]) for key, group in images.items()}
    measured = {key: np.flatnonzero(np.isfinite(values)) for key, values in shares.items()}
    for (source, name), found in measured.items():
        if len(found) < 2:
            raise run_folder.RunError(f"{args.run_dir}: {len(found)} heads of {name} among the {source}; 2 are needed")
    # Of each group the picture with the median share, then the shares without those that could not be measured.
    middle = {
        key: images[key][found[np.argsort(shares[key][found])[len(found) // 2]]] for key, found in measured.items()
    }
    shares = {key: shares[key][found] for key, found in measured.items()}
    report = {"slice_position": args.slice_position, "labels": labels}
    for source in dict.fromkeys(source for source, _ in images):
        for name in labels:
            values = shares[source, name]
            report[f"{source} {name}"] = {"number": len(values), "mean": float(values.mean())}
        report[f"{source}: {labels[0]} less {labels[-1]}"] = difference(shares, source, labels)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    decoding.write_text(args.output_dir / "ventricles.json", json.dumps(report, indent=2) + "\n")
    footer = f"slice position {args.slice_position}; lines: means; pictures: the median of each"
    footer = "\n".join(filter(None, (footer, data.title, data.credit)))
    draw_figure(args.output_dir / "ventricles.png", shares, middle, labels, footer)
    for name, values in report.items():
        print(f"{name}: {json.dumps(values)}")


def main(argv=None):
    return run_folder.exit_status(run, parse(argv), "stopped")


if __name__ == "__main__":
    sys.exit(main())
