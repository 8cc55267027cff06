"""Measures whether samples of a label have that label's ventricles: the share of the head that they fill.

    python -m benchmarks.ventricles --run-dir runs/demo --output-dir results/demo

Writes ventricles.json and ventricles.png: one slice of every person of the cohort, at a height where the lateral
ventricles are wide, its reconstruction, which shows what the decoder does to them, and samples of each label there.
"""

import json
import sys
from pathlib import Path

from benchmarks import harness

with harness.command(
    __name__,
    __doc__,
    "stopped",
    run_dir=(Path, Path("runs/demo"), "a run whose people have labels"),
    output_dir=(Path, Path("results/demo"), "where the figures go"),
) as command:
    import keras  # noqa: F401
import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from skimage.filters import threshold_multiotsu

from evaluation import figures, metrics
from evaluation.pictures import one_of_each
from running import run_folder
from system import files
from system.console import UserError

POSITION, SAMPLES = 0.68, 50  # 0 is the lowest slice, 1 the highest; of each label


def ventricle_mask(image):
    """Fluid in the middle of a head; bool, shape of `image`, float in [0, 1].

    Fluid is the darkest of three classes that Otsu's method finds inside the head; the middle is an ellipse of 0.4
    times the head's width and 0.5 times its length.
    """
    head = metrics.head_mask(image)
    y, x = (
        (np.arange(size) - (lines.min() + lines.max()) / 2) / (np.ptp(lines) / 2)
        for size, lines in zip(image.shape, np.nonzero(head), strict=True)
    )
    middle = (y[:, None] / 0.5) ** 2 + (x / 0.4) ** 2 < 1
    return head & middle & (image < threshold_multiotsu(image[head], 3)[0])


def ventricle_share(image):
    """Area of the ventricles over that of the head; NaN for an image without a head of three greys."""
    head = metrics.head_mask(image)
    if len(np.unique(image[head])) < 3:
        return np.nan
    return float(ventricle_mask(image).sum() / head.sum())


def draw_figure(path, shares, pictures, labels, footer):
    """Shares by (source, label) on the left; on the right a picture of each with its ventricles outlined."""
    figure, sources = Figure(figsize=(11, 6), layout="constrained"), list(dict.fromkeys(key[0] for key in shares))
    grid = figure.add_gridspec(len(sources), len(labels) + 1, width_ratios=[2.2, *[1] * len(labels)])
    axis, jitter = figure.add_subplot(grid[:, 0]), np.random.default_rng(0)
    for place, ((source, label), values) in enumerate(shares.items()):
        colour, image = f"C{labels.index(label)}", pictures[source, label]
        axis.scatter(place + jitter.uniform(-0.15, 0.15, len(values)), 100 * values, s=8, color=colour, alpha=0.6)
        axis.hlines(100 * values.mean(), place - 0.3, place + 0.3, color="0.1")
        panel = figure.add_subplot(grid[sources.index(source), 1 + labels.index(label)])
        panel.imshow(image, **figures.GREY)
        panel.contour(ventricle_mask(image), [0.5], colors=colour, linewidths=0.8)
        panel.set(title=f"{label}, {source}", xticks=[], yticks=[])
    axis.set_xticks(range(len(shares)), [f"{label}\n{source}" for source, label in shares], fontsize=7)
    axis.set_ylabel("ventricles, % of the head's area")
    axis.set_ylim(0)
    figures.finish(figure, path, footer)


def difference(a, b, axis=-1):
    """Mean share of the first less that of the second."""
    return np.mean(a, axis=axis) - np.mean(b, axis=axis)


def gather(data, model):
    """Images by source and label: of the cohort, one of each person, their reconstructions, and samples."""
    nearest, images = one_of_each(data.slices, POSITION, len(data.slices)), {}
    for name in data.labels:
        images["cohort", name] = data.pixels(nearest[nearest.label == name])
    for name in data.labels:
        images["reconstructions", name] = model.decode(model.encode(images["cohort", name]))
    for seed, name in enumerate(data.labels):
        images["samples", name] = model.sample(SAMPLES, seed, name, POSITION)
    return images


@command
def main(args):
    data, model = harness.open_run(args.run_dir, "plain")
    labels, shares, middle = data.labels, {}, {}
    if len(labels) < 2:
        raise UserError(f"{args.run_dir}: its data have {len(labels)} labels; two or more can be compared")
    found = {"slice_position": POSITION, "labels": labels}
    for (source, name), group in gather(data, model).items():
        values = np.array([ventricle_share(image) for image in group])
        group, values = group[np.isfinite(values)], values[np.isfinite(values)]
        if len(values) < 2:
            raise UserError(f"{args.run_dir}: {len(values)} heads of {name} among the {source}; 2 are needed")
        middle[source, name], shares[source, name] = group[np.argsort(values)[len(values) // 2]], values
        found[f"{source} {name}"] = {"number": len(values), "mean": float(values.mean())}
        if name == labels[-1]:
            groups, rng = [shares[source, labels[0]], values], np.random.default_rng(0)
            low, high = stats.bootstrap(groups, difference, method="percentile", rng=rng).confidence_interval
            apart = {"difference": float(difference(*groups)), "ci95": [float(low), float(high)]}
            found[f"{source}: {labels[0]} less {name}"] = apart
    args.output_dir.mkdir(parents=True, exist_ok=True)
    files.write_text(args.output_dir / "ventricles.json", json.dumps(found, indent=2) + "\n")
    about = f"slice position {POSITION}; lines: means; pictures: the median of each"
    footer = f"{about}\n{run_folder.footer(data.title, data.credit)}"
    draw_figure(args.output_dir / "ventricles.png", shares, middle, labels, footer)
    for name, values in found.items():
        print(f"{name}: {json.dumps(values)}")


if __name__ == "__main__":
    sys.exit(main())
