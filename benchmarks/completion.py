"""Measures completions: part of a test person's slice is hidden and drawn anew, with a particle filter and without.

    python -m benchmarks.completion --run-dir pretrained/ixi --output results/ixi_sharp/completion.json

Without one, codes below and right of the hidden part are merely forced, and what is drawn knows nothing of them; it
shows at the lower edge. Both draw the same number of completions of the same slices; `bits below` says how well the
known codes after the hidden part go on from it. The last row is what the decoder alone loses.
"""

import sys

from benchmarks import harness

with harness.command(__name__, __doc__, run_dir=harness.RUN, output=harness.OUTPUT) as command:
    import keras  # noqa: F401
import numpy as np

from evaluation import figures, metrics
from running import run_folder
from using.completion import touched

SIDE = 0.25  # of the slice, of the hidden square
EACH, DRAWS = 3, 2  # slices of each test person, completions of each slice
KINDS = {"forced": 1, "32 particles": 32, "decoder alone": 0}  # particles; the first is what others are compared with


def hidden_squares(data, seed=0):
    """Slices of each test person, and a hidden square in the head of each: DataFrame, images, masks."""
    test, rng = data.of("test"), np.random.default_rng(seed)
    rows, masks = [], []
    side = round(SIDE * data.image_size)
    for _, mine in test.groupby("subject_id", sort=True):
        chosen = mine[mine.slice_position.between(0.2, 0.9)]
        for index in rng.choice(len(chosen), EACH, replace=False):
            image = data.pixels(chosen.iloc[[index]])[0]
            inside = np.argwhere(metrics.head_mask(image))
            low, high = inside.min(axis=0), inside.max(axis=0) - side
            row, column = (rng.integers(a, max(a, b) + 1) for a, b in zip(low, high, strict=True))
            mask = np.zeros(image.shape, bool)
            mask[row : row + side, column : column + side] = True
            rows.append(chosen.index[index])
            masks.append(mask)
    slices = test.loc[rows]
    return slices, data.pixels(slices), np.stack(masks)


def lower_edge(mask, depth):
    """The lowest rows of a square mask, so many of them."""
    rows = np.flatnonzero(mask.any(axis=1))
    edge = mask.copy()
    edge[: rows[-1] + 1 - depth] = False
    return edge


def scores(model, image, mask, drawn, position):
    """What completions (n, S, S) of a slice are off by: under the mask, at its lower edge; bits of the codes below."""
    edge = lower_edge(mask, model.vqvae.downsampling)
    away = np.abs(drawn - image)
    hidden = touched(mask, model.grid_size)
    below = np.zeros_like(hidden)
    last = np.flatnonzero(hidden.any(axis=1))[-1]
    below[last + 1 : last + 3] = hidden.any(axis=0)
    bits, _ = model.bits(drawn, slice_position=position)
    return {
        "hidden": float(away[:, mask].mean()),
        "lower_edge": float(away[:, edge].mean()),
        "bits_below": float(bits[:, below].mean()) if below.any() else np.nan,
    }


@command
def main(args):
    data, model = harness.open_run(args.run_dir)
    slices, images, masks = hidden_squares(data)
    found, shown = ({name: [] for name in KINDS} for _ in range(2))
    people, seconds = slices.subject_id, dict.fromkeys(KINDS, 0.0)
    for image, mask, position in zip(images, masks, slices.slice_position, strict=True):
        for name, particles in KINDS.items():
            if particles:
                how = {"slice_position": position, "particles": particles}
                taken, drawn = harness.timed(lambda how=how: model.complete(image, mask, DRAWS, **how))  # noqa: B023
                seconds[name] += taken
            else:
                drawn = np.where(mask, model.decode(model.encode(image[None])), image)
            found[name].append(scores(model, image, mask, drawn, position))
            shown[name].append(drawn[0])
    rows, (first, *_) = [], found.values()
    for name, of_slices in found.items():
        row = {"completion": name, **harness.means(metrics.summarise(of_slices, people))}
        if of_slices is not first:  # of the same slices, less the first kind's
            keys = ("hidden", "lower_edge", "bits_below")
            less = [{f"{key}_less": a[key] - b[key] for key in keys} for a, b in zip(of_slices, first, strict=True)]
            row |= harness.means(metrics.summarise(less, people))
        rows.append(row | {"seconds_each": seconds[name] / len(slices) / DRAWS})
        harness.write(args.output, rows, data=data.title, slices=len(slices), draws=DRAWS)
    six = np.linspace(0, len(slices) - 1, 6).astype(int)
    pictures = {"slice": images[six], **{name: np.stack(some)[six] for name, some in shown.items()}}
    figures.hidden(args.output.with_suffix(".png"), pictures, masks[six], run_folder.footer(data.title, data.credit))


if __name__ == "__main__":
    sys.exit(main())
