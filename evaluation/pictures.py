"""Which slices are shown in the pictures of a run, and under which words."""

import numpy as np

import dataset
from evaluation import figures, metrics

ROW = 8  # slices of a row of positions.png, from the lowest position to the highest


def one_of_each(slices, position, most):
    """The slice nearest to a position of each of at most `most` people, who are spread over all of them."""
    away = (slices.slice_position - position).abs()
    nearest = slices.loc[away.groupby(slices.subject_id, sort=False).idxmin()]
    return nearest.iloc[dataset.spread(len(nearest), most)]


def show_samples(path, images, labels, positions, names, footer):
    """A picture of at most 32 samples, each under its label and slice position."""
    titles = [f"{['', *names][k]} at {p:.2f}".strip() for k, p in zip(labels[:32], positions, strict=False)]
    figures.image_grid(path, images[:32], titles, f"made by the model\n{footer}")


def at_heights(model, label=None):
    """What is told of the slices of `show_positions`, all of one noise: labels and slice positions."""
    kinds = range(1, len(model.labels) + 1) if label is None else [model.labels.index(label) + 1]
    kinds = np.array(list(kinds) or [0], "int32")
    return np.repeat(kinds, ROW), np.tile(np.linspace(0, 1, ROW, dtype="float32"), len(kinds))


def show_positions(path, images, labels, positions, names, footer):
    """A picture of the same noise at eight heights, a row for each label, or for one: slices of `at_heights`."""
    footer = f"made by the model from one noise, from the lowest slice position to the highest\n{footer}"
    rows = [["", *names][k] for k in labels[::ROW]]
    figures.image_grid(path, images, [f"at {p:.2f}" for p in positions], footer, row_names=rows)


def show_reconstructions(path, data, decoders, slices, footer):
    """A picture of some slices, what each decoder makes of their codes, and the last one's difference.

    Args:
        path: Where it goes.
        data: The `dataset.Data`.
        decoders: VQ-VAEs by the name of their row; all have the same codes.
        slices: DataFrame of the slices.
        footer: Line under the picture.
    """
    images = data.pixels(slices)
    codes = next(iter(decoders.values())).encode(images[..., None])
    outputs = {name: vqvae.decode(codes)[..., 0] for name, vqvae in decoders.items()}
    *_, shown = outputs.values()
    titles = [
        f"{row.subject_id} {row.label}\nSSIM {values['ssim']:.3f}, head {values['ssim_head']:.3f}"
        for row, values in zip(slices.itertuples(), metrics.batch_metrics(images, shown), strict=True)
    ]
    figures.reconstructions(path, images, outputs, titles, footer)
