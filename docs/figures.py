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

import functools
import re
import sys
from pathlib import Path

from system import console, files

with console.quietly():
    import keras
import matplotlib as mpl
import numpy as np
import PIL.Image
from matplotlib.colors import LogNorm, hsv_to_rgb, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Polygon, Rectangle
from matplotlib.path import Path as MplPath

import dataset
import modules
from benchmarks import harness
from benchmarks.priors import TextbookConv2D
from evaluation.figures import GREY
from predict import TrainedModel
from running import models
from using import scans

RUN = harness.ROOT / "pretrained" / "ds002748"
FOLDER = harness.ROOT / "docs" / "figures"
SLICE = FOLDER / "slice.png"
SCAN, POSITION = "sub-41/anat/sub-41_T1w.nii.gz", 0.6  # of the slice: a test person's, and where it lies in the head

WIDTH = 8.38  # inches; at 100 dots an inch the width of a page on GitHub
SMALL, LARGE = 9, 11  # points
INK, ARROW, GRADIENT = "0.1", "0.35", "#c0392b"
ENCODER, DECODER, SHARP, VECTORS = "#7fb0d8", "#8fc79a", "#e8b46a", "#b39ddb"
ENCODER_WORD, DECODER_WORD, SHARP_WORD, ATTENTION_WORD = "#3f78a8", "#3f8a50", "#a86a10", "#7450a8"
VERTICAL, HORIZONTAL = "#5b8fc7", "#e08a4a"
NOT_DRAWN = 0.93  # grey of codes that are still to be drawn


# ----------------------------------------------------------------------------------------------------------------
# Tables of layers
# ----------------------------------------------------------------------------------------------------------------


def layers(name):
    """The layers of a model of the shipped run: see `layers_of`.

    Args:
        name: "vqvae" (with the plain decoder), "sharp" (the same with the sharp one), "coarse", "coarse_prior" or
            "prior".
    """
    models = shipped_models()
    named = {"vqvae": models.decoders["plain"], "sharp": models.decoders["sharp"]}
    return layers_of(named[name] if name in named else getattr(models, name))


@functools.cache
def shipped_models():
    """The models of the shipped run."""
    return models.load_models(RUN, "sharp")


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
    for block in model.blocks:
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
    scan = scan if scan.is_absolute() else harness.ROOT / scan
    if not SLICE.exists() and scan.exists():
        ((name, (source, scale)),) = scans.find([scan])[0].items()
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
    # Each entry is decoded in a patch of 4 x 4 of its own, of which the middle counts.
    across = vqvae.grid_size // 4
    patches = np.resize(np.arange(len(codebook)), (-(-len(codebook) // across**2), across, across))
    grids = np.zeros((len(patches), vqvae.grid_size, vqvae.grid_size), int)
    grids[:, : 4 * across, : 4 * across] = patches.repeat(4, axis=1).repeat(4, axis=2)
    size = 4 * vqvae.downsampling
    images = vqvae.decode(grids)[:, : size * across, : size * across, 0]
    middle = images.reshape(-1, across, size, across, size)[:, :, size // 4 : -size // 4, :, size // 4 : -size // 4]
    brightness = middle.mean(axis=(2, 4)).ravel()[: len(codebook)]
    ranks = brightness.argsort(kind="stable").argsort() / len(brightness)
    centred = codebook - codebook.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    angle = np.arctan2(*(axes @ centred.T)) / (2 * np.pi) % 1
    hue = angle.argsort().argsort() / len(angle)
    return hsv_to_rgb(np.stack([hue, 0.75 - 0.45 * ranks, 0.2 + 0.8 * ranks], axis=-1)), ranks


# ----------------------------------------------------------------------------------------------------------------
# What is measured
# ----------------------------------------------------------------------------------------------------------------


def gradients(vqvae, image):
    """Gradients of the reconstruction loss of one slice: of the decoder's input, and of the encoder's output.

    The first is computed without the encoder: the codebook's entries are a constant given to the decoder. The second
    goes through `VectorQuantizer`, whose nearest entry has no gradient of its own.

    Args:
        vqvae: A `VQVAE`.
        image: float32 in [0, 1], shape (S, S).

    Returns:
        dL/dz_q and dL/dz_e, NumPy, each of shape (grid, grid, D).
    """
    import tensorflow as tf

    x = tf.constant(image[None, ..., None])
    z_e = vqvae.encoder(x)
    with tf.GradientTape() as tape:
        tape.watch(z_e)
        straight_through, z_q, _ = vqvae.quantizer(z_e)
        loss = vqvae.distance(x, vqvae.decoder(straight_through))
    through = tape.gradient(loss, z_e)
    z_q = tf.constant(z_q.numpy())
    with tf.GradientTape() as tape:
        tape.watch(z_q)
        loss = vqvae.distance(x, vqvae.decoder(z_q))
    return tape.gradient(loss, z_q).numpy()[0], through.numpy()[0]


def receptive_field(prior, inputs, place, blocks=None, attention=True):
    """How much one logit of a `PixelCNN` depends on each code: the length of its gradient by the embedded code.

    Args:
        prior: The model.
        inputs: As for the model, one grid of codes.
        place: Row and column of the logit, which is that of the code there.
        blocks: How many of the first blocks are computed before the last layers; None takes all.
        attention: Whether the attention behind the last of these blocks is computed.

    Returns:
        NumPy, shape (grid, grid): exactly 0 where the logit does not depend on the code at all.
    """
    import tensorflow as tf

    blocks = len(prior.blocks) if blocks is None else blocks
    condition, around = prior.condition(inputs), prior.place(inputs)
    embedded = tf.convert_to_tensor(prior.embed(inputs["codes"]))
    with tf.GradientTape() as tape:
        tape.watch(embedded)
        v = h = embedded
        for index, block in enumerate(prior.blocks[:blocks]):  # as in PixelCNN.call
            v, h = block(v, h, condition)
            if index == 0:
                v, h = v + around, h + around
            if str(index) in prior.attentions and (attention or index < blocks - 1):
                v = prior.attentions[str(index)](v)
        logit = prior.head(v, h)[0, *place, int(inputs["codes"][0, *place])]
    return np.linalg.norm(tape.gradient(logit, embedded).numpy()[0], axis=-1)


def one_stack_field(size, place, number, filters=32):
    """The same of a single stack of masked 3 x 3 convolutions with random weights, as PixelCNNs were before 2016."""
    import tensorflow as tf

    x = tf.random.stateless_normal((1, size, size, filters), (0, 0))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = x
        for index in range(number):
            y = keras.ops.tanh(TextbookConv2D(filters, 3, "B" if index else "A")(y))
        output = y[0, *place, 0]
    return np.linalg.norm(tape.gradient(output, x).numpy()[0], axis=-1)


def seen(kernel_size, stack, mask_type, dilation, rows, columns, place):
    """Which places a `MaskedConv2D` sees from one place of a small grid: bool, (rows, columns)."""
    layer = modules.MaskedConv2D(1, kernel_size, stack, mask_type, dilation)
    layer.build((None, rows, columns, 1))
    layer.set_weights([np.ones_like(layer.kernel), np.zeros(1)])
    single = np.eye(rows * columns, dtype="float32").reshape(-1, rows, columns, 1)  # one place lit in each
    return (keras.ops.convert_to_numpy(layer(single))[:, *place, 0] > 0).reshape(rows, columns)


# ----------------------------------------------------------------------------------------------------------------
# Figures
# ----------------------------------------------------------------------------------------------------------------


class Canvas:
    """A figure as wide as a page, on which everything is placed in inches from its upper left corner."""

    def __init__(self, height):
        mpl.rcParams.update({"font.size": SMALL, "axes.titlesize": SMALL, "axes.linewidth": 0.6, "text.color": INK})
        self.figure, self.height = Figure(figsize=(WIDTH, height)), height
        self.axis = self.figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
        self.axis.axis("off")

    def write(self, name):
        def write(partial):
            self.figure.savefig(partial, dpi=200, facecolor="white", metadata={"Software": None})
            PIL.Image.open(partial).convert("RGB").save(partial, optimize=True)

        FOLDER.mkdir(parents=True, exist_ok=True)
        files.write_whole(FOLDER / name, write)

    def text(self, x, y, words, ha="center", va="center", **how):
        self.axis.text(x, y, words, ha=ha, va=va, linespacing=1.15, zorder=5, **how)

    def title(self, y, words):
        self.text(0.15, y, words, ha="left", fontsize=LARGE, fontweight="bold")

    def frame(self, x, y, wide, tall):
        """Axes whose upper left corner is at x, y."""
        return self.figure.add_axes((x / WIDTH, 1 - (y + tall) / self.height, wide / WIDTH, tall / self.height))

    def picture(self, x, y, wide, image, **how):
        """An image of that width; returns its axes."""
        axis = self.frame(x, y, wide, wide * image.shape[0] / image.shape[1])
        axis.imshow(image, **{"interpolation": "nearest", "aspect": "auto"} | how)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(linewidth=0.6, color=ARROW)
        return axis

    def brain(self, x, y, wide, image, pixel_mm):
        """A slice with its sides marked, and a scale."""
        axis, size = self.picture(x, y, wide, image, **GREY | {"interpolation": "hanning"}), len(image)
        for place, mark in ((0.06, "L"), (0.94, "R")):
            axis.text(place * size, 0.5 * size, mark, color="yellow", ha="center", va="center")
        end = 0.04 * size + 50 / pixel_mm
        axis.plot([0.04 * size, end], [0.95 * size] * 2, color="yellow", linewidth=1.5)
        axis.text(end + 0.03 * size, 0.95 * size, "50 mm", color="yellow", va="center")

    def arrow(self, *points, **how):
        """An arrow from the first point to the last: straight, or with two points between, towards which it bends."""
        curve = [MplPath.MOVETO, *[MplPath.CURVE4 if len(points) == 4 else MplPath.LINETO] * (len(points) - 1)]
        style = {"arrowstyle": "-|>", "mutation_scale": 8, "color": ARROW, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
        self.axis.add_patch(FancyArrowPatch(path=MplPath(points, curve), zorder=4, **style | how))

    def box(self, x, y, wide, tall, colour, **how):
        style = {"facecolor": colour, "edgecolor": "0.25", "linewidth": 0.8}
        self.axis.add_patch(Rectangle((x, y), wide, tall, **style | how))

    def cell(self, x, y, side, colour, hatched=False, marked=False):
        how = {"edgecolor": "red", "linewidth": 1.6, "zorder": 3} if marked else {"edgecolor": "0.6", "linewidth": 0.5}
        self.box(x, y, side, side, colour, hatch="/////" if hatched else None, **how)

    def cells(self, x, y, side, found, colour, here, hatched):
        """A grid of cells: `found` in a colour, the place `here` marked, it and those after it hatched if wanted."""
        order = np.arange(found.size).reshape(found.shape)
        for (row, column), is_seen in np.ndenumerate(found):
            later = hatched and order[row, column] >= order[here]
            self.cell(x + column * side, y + row * side, side, colour if is_seen else "white", later)
        self.cell(x + here[1] * side, y + here[0] * side, side, "none", marked=True)

    def slab(self, x, y, shape, colour, largest):
        """Features (rows, columns, channels) as a block around x, y; its sides go with the square roots of the sizes.

        Returns:
            Where it begins and ends in x.
        """
        tall = 0.9 * (shape[0] / largest) ** 0.5
        wide, deep = 0.022 * shape[2] ** 0.5 + 0.02, 0.22 * tall
        left, right, top, bottom = x - (wide + deep) / 2, x + (wide - deep) / 2, y - tall / 2 + deep / 2, y + tall / 2
        faces = {
            1.0: ((left, top), (right, top), (right, bottom), (left, bottom)),
            1.25: ((left, top), (right, top), (right + deep, top - deep), (left + deep, top - deep)),
            0.75: ((right, top), (right, bottom), (right + deep, bottom - deep), (right + deep, top - deep)),
        }
        for light, corners in faces.items():
            shade = np.clip(np.array(to_rgb(colour)) * light, 0, 1)
            self.axis.add_patch(Polygon(corners, facecolor=shade, edgecolor="0.25", linewidth=0.5))
        return left, right + deep


# -- architecture.png ---------------------------------------------------------------------------------------------


def draw_architecture(model, image, pixel_mm):
    """The VQ-VAE with its layers and the gradient, the coarse codes, and the prior that draws new codes.

    A code has the same colour wherever it is shown: see `colours_of`.
    """
    canvas = Canvas(9.72)
    colours, ranks = colours_of(model.vqvae)
    coarse_colours, _ = colours_of(model.models.coarse)
    draw_vqvae(canvas, model, image, colours, ranks, pixel_mm)
    draw_coarse(canvas, model, image, coarse_colours)
    draw_prior(canvas, model, colours, coarse_colours, pixel_mm)
    canvas.write("architecture.png")


def draw_vqvae(canvas, model, image, colours, ranks, pixel_mm):
    """The upper part: encoder from left to right, quantiser, decoder from right to left."""
    vqvae, codes = model.vqvae, model.encode(image[None])
    quantizer, z_shape, largest = vqvae.quantizer, vqvae.encoder.output_shape[1:], vqvae.image_size
    up, down, beneath, high = 1.15, 3.62, 0.68, 0.575  # the middles of both rows; from them to the words, the edges
    canvas.title(0.22, f"1  VQ-VAE: a slice becomes {by(codes[0].shape)} codes, and codes become a slice")

    canvas.brain(0.15, up - high, 2 * high, image, pixel_mm)
    canvas.text(0.725, up + beneath, f"slice\n{by(image.shape)}", va="top")
    canvas.text(3.6, 0.5, "encoder", color=ENCODER_WORD, fontweight="bold")
    end, rows = 1.35, merged_parts(vqvae.encoder)
    for place, (name, shape, number) in enumerate(rows):
        x, words = 1.88 + 0.87 * place, f"{short(name, number)}\n{by(shape)}"
        is_z_e = place == len(rows) - 1
        start, after = canvas.slab(x, up, shape, VECTORS if is_z_e else ENCODER, largest)
        canvas.arrow((end + 0.04, up), (start - 0.04, up))
        if is_z_e:
            canvas.text(x, up - 0.3, f"$\\bf{{z_e}}$: {words}", va="bottom")
        else:
            canvas.text(x, up + beneath, words, va="top")
        end = after

    canvas.arrow((end + 0.04, up), (6.03, up))
    canvas.text(6.39, up - high - 0.16, "nearest entry")
    canvas.picture(6.08, up - 0.62, 0.62, colours[np.argsort(ranks, kind="stable").reshape(-1, 16)])
    words = f"codebook:\n{quantizer.num_embeddings} entries\nof {quantizer.embedding_dim} numbers"
    canvas.text(6.39, up + beneath, words, va="top")
    canvas.arrow((6.75, up), (7.03, up))
    canvas.picture(7.08, up - high, 2 * high, colours[codes[0]])
    words = f"code map: {by(codes[0].shape)},\neach one of {quantizer.num_embeddings}"
    canvas.text(7.655, up + beneath, words, va="top")

    canvas.arrow((7.655, up + beneath + 0.4), (7.655, down - 0.25))
    begin, _ = canvas.slab(7.655, down, z_shape, VECTORS, largest)
    canvas.text(7.655, down + beneath, f"$\\bf{{z_q}}$: the entries $e$\nof the codes\n{by(z_shape)}", va="top")
    canvas.text(4.45, down - 0.74, "decoder", color=DECODER_WORD, fontweight="bold")
    canvas.text(1.75, down - 0.74, "orange: of the sharp decoder alone", ha="left", color=SHARP_WORD)
    place = 0
    for name, shape, number in merged_parts(vqvae.decoder):
        is_sharp = name.startswith("second") or (name == "residual block" and shape != rows[-2][1])
        place += not is_sharp
        x = begin - 0.16 if is_sharp else 7.655 - 1.02 * place
        left, right = canvas.slab(x, down, shape, SHARP if is_sharp else DECODER, largest)
        if not is_sharp:
            canvas.arrow((begin - 0.04, down), (right + 0.04, down))
            canvas.text(x, down + beneath, f"{short(name, number)}\n{by(shape)}", va="top")
        begin = left
    output = model.decode(codes)[0]
    canvas.arrow((begin - 0.04, down), (1.35, down))
    canvas.brain(0.15, down - high, 2 * high, output, pixel_mm)
    canvas.text(0.725, down + beneath, f"reconstruction\n{by(output.shape)}", va="top")

    canvas.arrow((0.725, up + beneath + 0.4), (0.725, down - high - 0.05), arrowstyle="<|-|>")
    terms = "$L_1$" if vqvae.loss_kind.startswith("l1") else "$L_2$"
    terms += f" + {vqvae.ssim_weight:g} (1 − SSIM)" * vqvae.loss_kind.endswith("ssim")
    terms += " + $|\\mathrm{sg}[z_e] - e|^2$" * (quantizer.update == "gradient")
    terms += f" + {vqvae.commitment_cost:g} $|z_e - \\mathrm{{sg}}[e]|^2$"
    canvas.text(0.85, 2.5, f"loss: {terms}", ha="left")
    canvas.text(0.85, 2.68, "(sg stops the gradient)", ha="left")
    gradient = {"color": GRADIENT, "linewidth": 1.6, "linestyle": (0, (4, 2)), "mutation_scale": 12}
    canvas.arrow((7.45, down - 0.16), (6.2, down - 0.35), (5.5, up + 1.4), (5.36, up + 0.24), **gradient)
    canvas.text(6.05, 2.62, "gradient copied\n(straight-through)", ha="left", color=GRADIENT)


def merged_parts(network):
    """The rows of `parts`, with how often each follows itself in place of its parameters."""
    rows = []
    for name, shape, _ in parts(network):
        if rows and rows[-1][:2] == [name, shape]:
            rows[-1][2] += 1
        else:
            rows.append([name, shape, 1])
    return rows


def short(name, number):
    """The name of a part in up to three short lines."""
    name = name.replace("convolution", "conv").replace(", ", ",\n").replace("transposed ", "transposed\n")
    return name.replace("residual block", "residual\nblock") + f" × {number}" * (number > 1)


def draw_coarse(canvas, model, image, colours):
    """The strip in the middle: the small VQ-VAE of the shrunk slice."""
    coarse, y, side, x = model.models.coarse, 5.42, 0.6, 1.65
    codes, shrunk = model.encode_coarse(image[None]), dataset.shrink(image[None], model.models.coarse.image_size)
    words = f"Coarse: a second,\nsmall VQ-VAE of\nthe slice shrunk to\n{by(shrunk[0].shape)} pixels"
    canvas.text(0.15, y, words, ha="left")
    canvas.picture(x, y - side / 2, side, shrunk[0], **GREY)
    x += side
    for network, colour in ((coarse.encoder, ENCODER), (coarse.decoder, DECODER)):
        rows = merged_parts(network)
        for place, (_, shape, _) in enumerate(rows):
            is_z_e = network is coarse.encoder and place == len(rows) - 1
            start, after = canvas.slab(x + 0.36, y, shape, VECTORS if is_z_e else colour, 5 * coarse.image_size)
            canvas.arrow((x + 0.03, y), (start - 0.03, y))
            x = after
        canvas.arrow((x + 0.03, y), (x + 0.22, y))
        x += 0.25
        if network is coarse.encoder:
            canvas.picture(x, y - side / 2, side, colours[codes[0]])
            words = f"{by(codes[0].shape)} codes of {coarse.quantizer.num_embeddings}"
            canvas.text(x + side / 2, y + side / 2 + 0.1, words)
            x += side
    canvas.picture(x, y - side / 2, side, coarse.decode(codes)[0, ..., 0], **GREY)


def draw_prior(canvas, model, colours, coarse_colours, pixel_mm):
    """The lower part: a grid half drawn, both stacks, the chances of the next code, the whole grid, the new slice."""
    prior, y, high = model.models.prior, 7.3, 0.575
    size, seed = prior.grid_size, 0  # the first slice of this seed
    canvas.title(6.08, "2  PixelCNN: new codes are drawn one by one, and decoded to a new slice")
    (coarse,) = model.sampler.coarse.sample([0], [POSITION], seed, batch_size=1, level=1)
    (codes,) = model.sampler.sample([0], [POSITION], seed, batch_size=1, known_coarse=coarse)
    place = (size // 2, size // 2)
    chances = keras.ops.convert_to_numpy(keras.ops.softmax(prior(told(codes, coarse))[0, *place]))

    half = colours[codes[0]].copy()
    half.reshape(-1, 3)[place[0] * size + place[1] :] = NOT_DRAWN
    axis = canvas.picture(0.15, y - high, 2 * high, half)
    mark(axis, place)
    canvas.text(0.725, y + high + 0.12, "the codes so far")
    axis.text(0.5, 0.25, "not drawn yet", color="0.4", ha="center", va="center", transform=axis.transAxes)
    above, below, side, x = y - 0.32, y + 0.32, 0.28, 1.82
    end = draw_stacks(canvas, prior, x, above, below, side)
    for row in (above, below):
        canvas.arrow((1.35, y), (1.6, y), (1.45, row), (x - 0.03, row))
        canvas.arrow((end, row), (end + 0.3, row), (end + 0.1, y), (end + 0.37, y))
    best = np.argsort(-chances)[:12]
    x = end + 0.45
    axis = canvas.frame(x, y - 0.4, 1.1, 0.8)
    axis.bar(range(len(best)), chances[best], color=colours[best], width=1, edgecolor="0.3", linewidth=0.5)
    axis.text(0.8, chances[best[0]], f"{chances[best[0]]:.0%}", va="top")
    axis.set(xticks=[], yticks=[], xlim=(-0.7, len(best)))
    axis.spines[["top", "right"]].set_visible(False)
    canvas.text(x + 0.55, y + 0.45, f"the likeliest of\n{len(chances)} codes", va="top")
    canvas.arrow((x + 0.55, y - 0.47), (x + 0.55, y - 1.08), (0.725, y - 1.08), (0.725, y - high - 0.05))
    words = f"one code is drawn and joins the others: {size * size} times"
    canvas.text((x + 1.3) / 2, y - 0.95, words, bbox={"facecolor": "white", "edgecolor": "none", "pad": 4})

    low = 8.3
    canvas.picture(0.15, low + 0.2, 0.6, coarse_colours[coarse[0]])
    canvas.text(
        0.85, low + 0.5, "told beforehand:\ncoarse codes, drawn by\na small PixelCNN;\nlabel, slice position", ha="left"
    )
    canvas.arrow((1.6, low + 0.12), (1.6, low - 0.2), (1.96, low - 0.1), (1.96, below + side / 2 + 0.03))
    draw_kernels(canvas, prior, 3.0, low)
    left = 4.75
    canvas.arrow((x + 0.25, y + 0.82), (left + 0.8, low - 0.05))
    canvas.picture(left, low, 1.05, colours[codes[0]])
    canvas.text(left + 0.525, low + 1.17, "the whole grid")
    canvas.text(6.5, low + 0.08, "decoder", color=DECODER_WORD, fontweight="bold")
    x, y = left + 1.08, low + 0.55
    for _, shape, _ in merged_parts(model.models.decoders["plain"].decoder)[::2]:
        start, after = canvas.slab(x + 0.27, y, shape, DECODER, 4 * model.image_size)
        canvas.arrow((x, y), (start - 0.02, y), mutation_scale=6)
        x = after + 0.03
    canvas.arrow((x, y), (7.14, y), mutation_scale=6)
    canvas.brain(7.18, low, 1.05, model.decode(codes)[0], pixel_mm)
    canvas.text(7.705, low + 1.17, "a new slice")


def draw_stacks(canvas, prior, x, above, below, side):
    """Both stacks of the prior, a box for each block with its mask; returns where they end."""
    canvas.text(x, above - 0.25, "vertical stack", ha="left", color=VERTICAL, fontweight="bold")
    canvas.text(x + 0.4, below + 0.25, "horizontal stack", ha="left", color=HORIZONTAL, fontweight="bold")
    end = None
    for index, block in enumerate(prior.blocks):
        for row, colour in ((above, VERTICAL), (below, HORIZONTAL)):
            if index:
                canvas.arrow((end, row), (x - 0.01, row), mutation_scale=6)
            canvas.box(x, row - side / 2, side, side, colour)
            canvas.text(x + side / 2, row, block.mask_type, color="white", fontweight="bold")
        canvas.arrow((x + side / 2, above + side / 2), (x + side / 2, below - side / 2 - 0.01), mutation_scale=6)
        end = x + side
        if str(index) in prior.attentions:
            canvas.box(end + 0.12, above - 0.17, 0.12, 0.34, VECTORS, zorder=4.5)
            canvas.text(end + 0.18, above - 0.25, "attention", color=ATTENTION_WORD)
            x += 0.24
        x += 0.4
    return end


def draw_kernels(canvas, prior, x, y):
    """What the masks of both stacks let through, small."""
    side, here = 0.1, (2, 3)
    for block in (prior.blocks[0], prior.blocks[-1]):
        canvas.text(x + 2.5 * side, y + 0.1, f"mask {block.mask_type}")
        for down, conv, colour in ((0.24, block.vertical_conv, VERTICAL), (0.72, block.horizontal_conv, HORIZONTAL)):
            found = seen(conv.kernel_size, conv.stack, conv.mask_type, 1, 4, 5, here)
            canvas.cells(x, y + down, side, found, colour, here, hatched=conv.mask_type == "A")
        x += 0.85


def mark(axis, place):
    """Marks a code of a grid."""
    corner = (place[1] - 0.5, place[0] - 0.5)
    axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="red", linewidth=1.5))


# -- The other figures --------------------------------------------------------------------------------------------


def draw_gradient(vqvae, image, pixel_mm):
    """Both gradients as maps, and one against the other."""
    of_z_q, of_z_e = gradients(vqvae, image)
    difference, largest = np.abs(of_z_q - of_z_e).max(), np.abs(of_z_q).max()
    exponent = int(np.floor(np.log10(largest)))
    unit, canvas, y, side = 10.0**exponent, Canvas(3.25), 0.6, 1.68
    numbers = f"largest difference {power(difference)}, largest number {power(largest)}"
    canvas.title(0.2, f"The gradient arrives unchanged: {numbers}")
    canvas.brain(0.15, y, side, image, pixel_mm)
    canvas.text(0.15 + side / 2, y - 0.12, "the slice")
    words = "L: reconstruction loss alone.\nForward: the nearest entry.\nBackward: as if the\nquantiser were not there."
    canvas.text(0.15, y + side + 0.1, words, ha="left", va="top")
    norms = [np.linalg.norm(g, axis=-1) / unit for g in (of_z_q, of_z_e)]
    names = ("decoder: $\\partial L/\\partial z_q$", "encoder: $\\partial L/\\partial z_e$")
    for x, norm, name in zip((2.4, 4.3), norms, names, strict=True):
        axis = canvas.picture(x, y, side, norm, cmap="magma", vmin=0)
        ticks = grid_ticks(len(norm))
        axis.set(title=name, xlabel="column of the grid", xticks=ticks, yticks=ticks)
        if x < 4:
            axis.set_ylabel("row of the grid")
        else:
            axis.set_yticklabels([])
    bar = canvas.frame(2.4, y + side + 0.45, 1.9 + side, 0.09)
    canvas.figure.colorbar(axis.images[0], cax=bar, orientation="horizontal")
    bar.set_xlabel(f"length over the channels, $10^{{{exponent}}}$", labelpad=2)
    axis, most = canvas.frame(6.57, y, side, side), 1.1 * largest / unit
    axis.plot([-most, most], [-most, most], color="0.7", linewidth=0.8)
    axis.plot(of_z_q.ravel() / unit, of_z_e.ravel() / unit, ".", markersize=2, color=VERTICAL)
    axis.set(xlim=(-most, most), ylim=(-most, most), title=f"all {of_z_q.size:,} numbers")
    axis.set_xlabel(f"$\\partial L/\\partial z_q$, $10^{{{exponent}}}$")
    axis.set_ylabel(f"$\\partial L/\\partial z_e$, $10^{{{exponent}}}$", labelpad=1)
    canvas.write("gradient.png")


def power(number):
    """A number in mathematical text, as 2.3 times a power of ten."""
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"${mantissa} \\cdot 10^{{{int(exponent)}}}$"


def grid_ticks(size):
    """Four ticks along a side of a grid."""
    return np.linspace(0, size - 1, 4).round().astype(int).tolist()


def draw_masks(prior):
    """What the kernels of both stacks see from one place."""
    side, rows, columns, here, pitch = 0.165, 4, 11, (2, 8), 2.07
    canvas, groups = Canvas(3.1), {}
    for index, block in enumerate(prior.blocks):
        for conv in (block.vertical_conv, block.horizontal_conv):
            how = (tuple(conv.kernel_size), conv.stack, conv.mask_type, conv.dilation)
            groups.setdefault(how, []).append(index + 1)
    for stack, colour, y in (("vertical", VERTICAL, 0.72), ("horizontal", HORIZONTAL, 2.25)):
        found = sorted((how for how in groups if how[1] == stack), key=lambda how: (how[2], how[3]))
        title = f"{stack.capitalize()} stack, kernel {by(found[0][0])}"
        canvas.text(0.15, y - 0.5, title, ha="left", fontsize=LARGE, fontweight="bold", color=colour)
        for place, how in enumerate(found):
            x, blocks = 0.15 + place * pitch, groups[how]
            canvas.cells(x, y, side, seen(*how, rows, columns, here), colour, here, hatched=how[2] == "A")
            numbers = f"{blocks[0]} to {blocks[-1]}" if len(blocks) > 3 else ", ".join(map(str, blocks))
            apart = f", {how[3]} apart" if how[3] > 1 else ""
            canvas.text(
                x, y - 0.08, f"mask {how[2]}{apart}: block{'s' * (len(blocks) > 1)} {numbers}", "left", "baseline"
            )
    x = 0.15 + 2 * pitch
    words = (
        "Mask A takes the codes themselves:\nnever the code that is to be predicted.",
        "Mask B takes features of the block before,\nwhich know only of codes before their place:\n"
        "so their own place, or row, may be seen.",
    )
    for y, paragraph in zip((0.15, 0.52), words, strict=True):
        canvas.text(x, y, paragraph, ha="left", va="top")
    canvas.cell(x, 1.2, side, "none", marked=True)
    canvas.cell(x, 1.43, side, "white", hatched=True)
    for y, word in ((1.2, "the place whose code is predicted"), (1.43, "not drawn yet")):
        canvas.text(x + 0.25, y + side / 2, word, ha="left")
    canvas.write("masks.png")


def draw_receptive_field(prior, inputs):
    """The gradient after more and more blocks, and that of a single stack."""
    size, number = prior.grid_size, len(prior.blocks)
    place = (size // 2, size // 2)
    before = place[0] * size + place[1]
    first = 1 + min(map(int, prior.attentions))  # blocks up to the first attention
    fields = {
        "1 block": receptive_field(prior, inputs, place, 1, False),
        "2 blocks": receptive_field(prior, inputs, place, 2, False),
        f"{first} blocks": receptive_field(prior, inputs, place, first, False),
        f"{first} blocks and the attention": receptive_field(prior, inputs, place, first),
        f"all {number} blocks": receptive_field(prior, inputs, place),
        f"for comparison: one stack, {number} layers": one_stack_field(size, place, number),
    }
    canvas, side = Canvas(6.5), 2.0
    canvas.title(0.2, "What one logit depends on: the codes above it and to its left, nothing else")
    for index, (name, field) in enumerate(fields.items()):
        row, column = divmod(index, 3)
        reached, after = np.count_nonzero(field.ravel()[:before]), np.count_nonzero(field.ravel()[before:])
        share = np.ma.masked_equal(field / field.max(), 0)
        x, y = 0.65 + 2.67 * column, 0.8 + 2.65 * row
        axis = canvas.picture(x, y, side, share, cmap="viridis", norm=LogNorm(1e-3, 1))
        canvas.text(x + side / 2, y - 0.2, f"{name}\nreaches {reached} of {before} before, {after} at or after")
        edge = np.array([(-0.5, 0.5), (place[1] - 0.5, 0.5), (place[1] - 0.5, -0.5), (size - 0.5, -0.5)])
        axis.plot(edge[:, 0], place[0] + edge[:, 1], color="0.4", linewidth=0.8)
        mark(axis, place)
        ticks = grid_ticks(size)
        axis.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), xticks=ticks, yticks=ticks)
        axis.set_xlabel("column of the grid", labelpad=2) if row else axis.set_xticklabels([])
        axis.set_ylabel("row of the grid", labelpad=2) if column == 0 else axis.set_yticklabels([])
    axis.text(0.86 * size, 0.38 * size, "blind\nspot", color=GRADIENT, ha="center", va="center")
    bar = canvas.frame(1.9, 5.97, 4.6, 0.1)
    canvas.figure.colorbar(axis.images[0], cax=bar, orientation="horizontal", extend="min")
    bar.set_xlabel("gradient of the logit by each code, as a share of the greatest; white: exactly 0", labelpad=1)
    canvas.write("receptive_field.png")


def told(codes, coarse):
    """What a prior is told of one slice, and the slice's codes; the label is not known."""
    return {
        "codes": codes,
        "label": np.zeros(1, "int32"),
        "slice_position": np.full(1, POSITION, "float32"),
        "coarse": coarse,
    }


def run(args):
    keras.utils.set_random_seed(0)
    model = TrainedModel(RUN, "sharp")
    image, pixel_mm = shown_slice(model), model.voxel_mm[0]
    draw_architecture(model, image, pixel_mm)
    draw_gradient(model.models.decoders["plain"], image, pixel_mm)
    draw_masks(model.models.prior)
    inputs = told(model.encode(image[None]), model.encode_coarse(image[None]))
    draw_receptive_field(model.models.prior, inputs)


main = harness.command(run, __doc__, "stopped")

if __name__ == "__main__":
    sys.exit(main())
