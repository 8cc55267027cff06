"""Figures and layer tables of the README and of these pages, made from the trained run pretrained/ds002748.

    python -m docs.figures

Writes into docs/figures/, in about half a minute on two cores:

    architecture.png      both models, with the sizes of their layers
    gradient.png          the straight-through gradient, computed on one slice
    masks.png             what the masked kernels of both stacks see
    receptive_field.png   which codes one logit depends on, by its gradient
    slice.png             the slice that is shown: of a test person of ds002748 (CC0)

No data are needed. Sizes are read from the models, and what is said to be measured is computed here. The gradients need
Keras's TensorFlow backend.
"""

import re
import sys
from pathlib import Path

import files

with files.quietly():
    import keras
import matplotlib as mpl
import numpy as np
import PIL.Image
from matplotlib.colors import LogNorm, hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

import modules
import runs
import scans
from benchmarks import report
from benchmarks.priors import TextbookConv2D
from evaluation.figures import GREY
from trained import TrainedModel

RUN = report.ROOT / "pretrained" / "ds002748"
FOLDER = report.ROOT / "docs" / "figures"
SLICE = FOLDER / "slice.png"
SCAN, POSITION = "sub-41/anat/sub-41_T1w.nii.gz", 0.6  # of the slice: a test person's, and where it lies in the head

WIDTH = 8.38  # inches; at 100 dots an inch the width of a page on GitHub
SMALL, LARGE = 9, 11  # points
INK, ARROW = "0.1", "0.35"
ENCODER, DECODER, SHARP = "#7fb0d8", "#8fc79a", "#e8b46a"
VERTICAL, HORIZONTAL = "#5b8fc7", "#e08a4a"
NOT_DRAWN = 0.93  # grey of codes that are still to be drawn


# ----------------------------------------------------------------------------------------------------------------
# Tables of layers
# ----------------------------------------------------------------------------------------------------------------


def layers(name):
    """The layers of a model of the shipped run: see `layers_of`.

    Args:
        name: "vqvae" (with the plain decoder), "sharp" (the same with the sharp one), "layout", "layout_prior" or
            "prior".
    """
    models = runs.load_models(RUN, "sharp")
    named = {"vqvae": models.decoders["plain"], "sharp": models.decoders["sharp"]}
    return layers_of(named[name] if name in named else getattr(models, name))


def layers_of(model):
    """What a `VQVAE` or a `PixelCNN` is made of, in the order of computation; like layers that follow are one row.

    Returns:
        A list of rows: the layer, the shape of its output for one slice as "28×28×128", and its trainable parameters.
        The parameters of the rows add up to those of the model.
    """
    rows = prior_rows(model) if isinstance(model, modules.PixelCNN) else vqvae_rows(model)
    merged = []
    for row in rows:
        if merged and merged[-1][0] == row:
            merged[-1][1] += 1
        else:
            merged.append([row, 1])
    return [(f"{name} × {count}" if count > 1 else name, by(shape), n * count) for (name, shape, n), count in merged]


def vqvae_rows(model):
    """Layer, output shape and trainable parameters of each convolution and residual block of a `VQVAE`."""
    codebook = f"quantiser: codebook of {model.quantizer.num_embeddings} entries"
    return [
        ("encoder: slice", model.encoder.input_shape[1:], 0),
        *(("encoder: " + name, shape, number) for name, shape, number in parts(model.encoder)),
        (codebook, model.encoder.output_shape[1:], count(model.quantizer)),
        *(("decoder: " + name, shape, number) for name, shape, number in parts(model.decoder)),
    ]


def parts(network):
    """The same of an encoder or a decoder: a residual block is one part, the sharp decoder's second branch too."""
    found = {}
    for layer in network.layers:
        block = re.match(r"residual\d+|fine\d+_\d+|fine0", layer.name)
        found.setdefault(block.group() if block else layer.name, []).append(layer)
    rows = []
    for name in sorted(found, key="fine0".__eq__):  # the branch is added to the rest at the very end
        group = found[name]
        convolutions = [layer for layer in group if layer.weights]
        if convolutions:
            what = " and ".join(map(kind_of, convolutions))
            if name == "fine0":
                what = f"second branch, {what}"
            elif len(convolutions) > 1:
                what = "residual block"
            rows.append((what, group[-1].output.shape[1:], sum(map(count, group))))
    return rows


def kind_of(layer):
    """A convolution in words, as "convolution 4×4, stride 2"."""
    stride = f", stride {layer.strides[0]}" if layer.strides[0] > 1 else ""
    transposed = "transposed " if isinstance(layer, keras.layers.Conv2DTranspose) else ""
    return f"{transposed}convolution {by(layer.kernel_size)}{stride}"


def prior_rows(model):
    """Layer, output shape and trainable parameters of each part of a `PixelCNN`."""
    grid, one = (None, model.grid_size, model.grid_size), (None,)

    def row(name, layer, *shapes, dtype=None):
        output = layer(*(keras.KerasTensor(shape, dtype) for shape in shapes))
        output = output[0] if isinstance(output, tuple) else output
        return name, output.shape[1:], count(layer)

    features = (*grid, model.filters)
    places = count_all([model.row_embedding, model.column_embedding])
    rows = [
        row(f"table of {model.num_embeddings} codes", model.code_embedding, grid, dtype="int32"),
        row("projection of the codebook", model.codebook_projection, (*grid, model.embedding_dim)),
        ("rows and columns of the grid", features[1:], places),
        row("label", model.label_embedding, one, dtype="int32"),
        row("slice position", model.position_features, (None, 16)),
        row("how the slice was changed", model.change_features, (None, modules.CHANGES)),
        *(
            row(f"map: {name}", layer, (None, layer.grid_size, layer.grid_size), dtype="int32")
            for name, layer in model.maps.items()
        ),
    ]
    for index, block in enumerate(model.blocks):
        rows.append(row(f"gated block, mask {block.mask_type}", block, features, features, (None, model.filters)))
    for attention in model.attentions.values():  # one of them stands between two blocks
        rows.append(row("row attention", attention, features))
    return [
        *rows,
        row("hidden layer", model.hidden, features),
        row(f"logits of {model.num_embeddings} codes", model.logits, features),
    ]


def count(layer):
    """Trainable parameters of a layer or model."""
    return count_all(layer.trainable_weights)


def count_all(weights):
    return sum(int(np.prod(weight.shape)) for weight in weights)


def by(shape):
    """A shape in words, as "28×28×16"."""
    return "×".join(map(str, shape))


# ----------------------------------------------------------------------------------------------------------------
# What is shown
# ----------------------------------------------------------------------------------------------------------------


def shown_slice(model):
    """The slice of the figures, float32 in [0, 1], (S, S): a real one where it is at hand, else one the model draws."""
    scan = Path(model.config["options"]["data"]["data_dir"] or ".") / SCAN
    scan = scan if scan.is_absolute() else report.ROOT / scan
    if not SLICE.exists() and scan.exists():
        ((name, (source, scale)),) = scans.find([scan]).items()
        found = scans.read(name, source, model.config, scale)
        image = found.images[np.abs(found.slice_positions - POSITION).argmin()]
        pixels = (image * 255).round().astype("uint8")
        files.write_whole(SLICE, lambda partial: PIL.Image.fromarray(pixels).save(partial, optimize=True))
    if SLICE.exists():
        return np.asarray(PIL.Image.open(SLICE)).astype("float32") / np.float32(255)
    return model.sample(1, slice_position=POSITION)[0]


def colours_of(vqvae):
    """A colour for each entry of the codebook, (K, 3): bright entries bright, entries that lie near alike in hue."""
    codebook = keras.ops.convert_to_numpy(vqvae.quantizer.codebook)
    rng, size = np.random.default_rng(0), vqvae.downsampling
    places = vqvae.grid_size**2
    brightness = np.zeros((2, len(codebook)))
    # Entries are decoded among others, since a decoder sees a code's neighbours, too.
    grids = np.stack([rng.permutation(np.resize(rng.permutation(len(codebook)), places)) for _ in range(8)])
    for grid, image in zip(grids, vqvae.decode(grids.reshape(-1, *[vqvae.grid_size] * 2))[..., 0], strict=True):
        means = image.reshape(vqvae.grid_size, size, vqvae.grid_size, size).mean(axis=(1, 3)).ravel()
        np.add.at(brightness, (slice(None), grid), [means, np.ones_like(means)])
    brightness = brightness[0] / np.maximum(brightness[1], 1)
    ranks = brightness.argsort().argsort() / len(brightness)
    centred = codebook - codebook.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    angle = np.arctan2(*(axes @ centred.T)) / (2 * np.pi) % 1
    hue = angle.argsort().argsort() / len(angle)
    return hsv_to_rgb(np.stack([hue, 0.75 - 0.45 * ranks, 0.2 + 0.8 * ranks], axis=-1)), ranks
