"""Measures whether samples of a label have that label's ventricles: the share of the head that they fill.

    python -m benchmarks.ventricles --run-dir runs/demo --output results/demo/ventricles.json

One slice of every person of the cohort, at a height where the lateral ventricles are wide, its reconstruction, which
shows what the decoder does to them, and samples of each label there.
"""

import sys

from benchmarks import harness

with harness.command(__name__, __doc__, run_dir=harness.RUN, output=harness.OUTPUT) as command:
    import keras  # noqa: F401
import numpy as np
from scipy import stats
from skimage.filters import threshold_multiotsu

from evaluation import metrics
from evaluation.pictures import one_of_each
from system.console import UserError

POSITION, SAMPLES = 0.68, 50  # 0 is the lowest slice, 1 the highest; of each label


def ventricle_share(image):
    """Area of the fluid in the middle of a head, float in [0, 1], over that of the head; NaN without three greys.

    Fluid is the darkest of three classes that Otsu's method finds inside the head; the middle is an ellipse of 0.4
    times the head's width and 0.5 times its length.
    """
    head = metrics.head_mask(image)
    if len(np.unique(image[head])) < 3:
        return np.nan
    y, x = (
        (np.arange(size) - (lines.min() + lines.max()) / 2) / (np.ptp(lines) / 2)
        for size, lines in zip(image.shape, np.nonzero(head), strict=True)
    )
    middle = (y[:, None] / 0.5) ** 2 + (x / 0.4) ** 2 < 1
    return float((head & middle & (image < threshold_multiotsu(image[head], 3)[0])).sum() / head.sum())


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
    if len(data.labels) < 2:
        raise UserError(f"{args.run_dir}: its data have {len(data.labels)} labels; two or more can be compared")
    shares = {}
    for (source, name), images in gather(data, model).items():
        values = np.array([ventricle_share(image) for image in images])
        shares.setdefault(source, {})[name] = values = values[np.isfinite(values)]
        if len(values) < 2:
            raise UserError(f"{args.run_dir}: {len(values)} heads of {name} among the {source}; 2 are needed")
    rows = []
    for source, of_labels in shares.items():
        first, *_, last = of_labels.values()
        interval = stats.bootstrap((first, last), difference, method="percentile", rng=np.random.default_rng(0))
        apart = {"difference": float(difference(first, last)), "difference_ci95": [*interval.confidence_interval]}
        rows.append({"images": source, **{name: float(some.mean()) for name, some in of_labels.items()}, **apart})
        harness.write(args.output, rows, slice_position=POSITION)


if __name__ == "__main__":
    sys.exit(main())
