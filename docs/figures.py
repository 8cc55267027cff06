"""Pictures of the first page, and the layer tables of the method page, from the trained run pretrained/ds002748.

    python -m docs.figures        # writes architecture.png and slices.png of docs/figures, in a minute on two cores

No data are needed: examples/slice.png is the slice that is shown, of a test person of ds002748 (CC0). Sizes are
read from the models.
"""

import functools
import itertools
import re
import sys

from benchmarks import harness

with harness.command(__name__, __doc__, "stopped") as command:
    import keras
import matplotlib as mpl
import numpy as np
import PIL.Image
from matplotlib.colors import hsv_to_rgb, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Polygon, Rectangle
from matplotlib.path import Path

import dataset
import modules
from evaluation.figures import GREY
from predict import TrainedModel
from running.config import read_config
from system import files

RUN = harness.ROOT / "pretrained" / "ds002748"
FOLDER = harness.ROOT / "docs" / "figures"
SLICE = harness.ROOT / "examples" / "slice.png"
POSITION = 0.6  # of the slice that is drawn

WIDTH = 8.38  # inches; at 100 dots an inch the width of a page on GitHub
SMALL, LARGE = 9, 11  # points
INK, ARROW, GRADIENT = "0.1", "0.35", "#c0392b"
ENCODER, DECODER, SHARP, VECTORS = "#7fb0d8", "#8fc79a", "#e8b46a", "#b39ddb"
ENCODER_WORD, DECODER_WORD, SHARP_WORD, ATTENTION_WORD = "#3f78a8", "#3f8a50", "#a86a10", "#7450a8"
VERTICAL, HORIZONTAL = "#5b8fc7", "#e08a4a"
NOT_DRAWN = 0.93  # grey of codes that are still to be drawn
MARK = {"edgecolor": "red", "linewidth": 1.5}


@functools.cache
def layers():
    """What `layers_of` says of the shipped run's "vqvae", with its plain decoder, and of its "prior"."""
    sizes = read_config(RUN)["models"]
    vqvae, prior = modules.VQVAE(**sizes["vqvae"]), modules.PixelCNN(**sizes["prior"])
    return {"vqvae": layers_of(vqvae), "prior": layers_of(prior)}


def layers_of(model):
    """What a `VQVAE` or a `PixelCNN` is made of, in the order of computation; like layers that follow are one row.

    Returns:
        A list of rows: the layer, the shape of its output for one slice as "28×28×128", and its trainable parameters.
        The parameters of the rows add up to those of the model.
    """
    rows = prior_rows(model) if isinstance(model, modules.PixelCNN) else vqvae_rows(model)
    return [
        (f"{name} × {number}" if number > 1 else name, by(shape), count * number)
        for (name, shape, count), number in merged(rows)
    ]


def merged(rows):
    """Rows, of which those that are alike and follow each other are one, and how many there were of each."""
    return [(row, len(list(alike))) for row, alike in itertools.groupby(rows)]


def vqvae_rows(model):
    """Layer, output shape and trainable parameters of each convolution and residual block of a `VQVAE`."""
    codebook = f"quantiser: codebook of {model.num_embeddings} entries"
    return [
        ("encoder: slice", model.encoder.input_shape[1:], 0),
        *(("encoder: " + name, shape, number) for name, shape, number in parts(model.encoder)),
        (codebook, model.encoder.output_shape[1:], count(model.quantizer.trainable_weights)),
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
            weights = sum((layer.trainable_weights for layer in group), [])
            rows.append((what, group[-1].output.shape[1:], count(weights)))
    return rows


def kind_of(layer):
    """A convolution in words, as "convolution 4×4, stride 2"."""
    stride = f", stride {layer.strides[0]}" if layer.strides[0] > 1 else ""
    transposed = "transposed " if isinstance(layer, keras.layers.Conv2DTranspose) else ""
    return f"{transposed}convolution {by(layer.kernel_size)}{stride}"


def prior_rows(model):
    """Layer, output shape and trainable parameters of each part of a `PixelCNN`."""
    grid = (None, model.grid_size, model.grid_size)

    def row(name, layer, *shapes, dtype=None):
        output = layer(*(keras.KerasTensor(shape, dtype) for shape in shapes))
        output = output[0] if isinstance(output, tuple) else output
        return name, output.shape[1:], count(layer.trainable_weights)

    features, vector = (*grid, model.filters), (None, model.filters)
    places = [model.row_embedding, model.column_embedding]
    return [
        row(f"table of {model.num_embeddings} codes", model.code_embedding, grid, dtype="int32"),
        row("projection of the codebook", model.codebook_projection, (*grid, model.embedding_dim)),
        ("rows and columns of the grid", features[1:], count(places)),
        row("label", model.label_embedding, (None,), dtype="int32"),
        row("slice position", model.slice_position_projection, (None, modules.WAVES)),
        row("how the slice was changed", model.change_projection, (None, modules.CHANGES)),
        *(row(f"map: {name}", one, (None, *one.codes_shape), dtype="int32") for name, one in model.maps.items()),
        *(row(f"gated block, mask {one.mask_type}", one, features, features, vector) for one in model.blocks),
        *(row("row attention", one, features) for one in model.attentions if one),  # which stand between blocks
        row("hidden layer", model.hidden, features),
        row(f"logits of {model.num_embeddings} codes", model.logits, features),
        *(row("head of a level", one, features, (*grid, model.embedding_dim)) for one in model.depth_heads),
    ]


def count(weights):
    """Numbers in some weights."""
    return sum(int(np.prod(weight.shape)) for weight in weights)


def by(shape):
    """A shape in words, as "28×28×16"."""
    return "×".join(map(str, shape))


def codes_in_words(codes):
    """The size of grids of codes (n, h, w, D): "28×28", and "28×28×2" where a place has two."""
    return by(codes[0].shape[: None if codes.shape[-1] > 1 else 2])


def colours_of(vqvae):
    """A colour for each entry of the first codebook, (K, 3): bright ones bright, those that lie near alike in hue."""
    codebook = vqvae.codebooks[0]
    # Each entry is decoded in a patch of 4 x 4 of its own, of which the middle counts.
    across = vqvae.grid_size // 4
    patches = np.resize(np.arange(len(codebook)), (-(-len(codebook) // across**2), across, across))
    z_q = np.zeros((len(patches), vqvae.grid_size, vqvae.grid_size, codebook.shape[1]), "float32")
    z_q[:, : 4 * across, : 4 * across] = codebook[patches.repeat(4, axis=1).repeat(4, axis=2)]
    size = 4 * vqvae.downsampling
    images = vqvae.decode_vectors(z_q)[:, : size * across, : size * across, 0]
    middle = images.reshape(-1, across, size, across, size)[:, :, size // 4 : -size // 4, :, size // 4 : -size // 4]
    brightness = middle.mean(axis=(2, 4)).ravel()[: len(codebook)]
    ranks = brightness.argsort(kind="stable").argsort() / len(brightness)
    centred = codebook - codebook.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    angle = np.arctan2(*(axes @ centred.T)) / (2 * np.pi) % 1
    hue = angle.argsort().argsort() / len(angle)
    return hsv_to_rgb(np.stack([hue, 0.75 - 0.45 * ranks, 0.2 + 0.8 * ranks], axis=-1)), ranks


class Canvas:
    """A figure as wide as a page, on which everything is placed in inches from its upper left corner."""

    def __init__(self, height):
        mpl.rcParams.update({"font.size": SMALL, "axes.titlesize": SMALL, "axes.linewidth": 0.6, "text.color": INK})
        self.figure, self.height = Figure(figsize=(WIDTH, height)), height
        self.axis = self.figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
        self.axis.axis("off")

    def write(self, path):
        def write(partial):
            self.figure.savefig(partial, dpi=200, facecolor="white", metadata={"Software": None})
            PIL.Image.open(partial).convert("RGB").save(partial, optimize=True)

        files.write_whole(path, write)

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
        curve = [Path.MOVETO, *[Path.CURVE4 if len(points) == 4 else Path.LINETO] * (len(points) - 1)]
        style = {"arrowstyle": "-|>", "mutation_scale": 8, "color": ARROW, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
        self.axis.add_patch(FancyArrowPatch(path=Path(points, curve), zorder=4, **style | how))

    def box(self, x, y, wide, tall, **how):
        self.axis.add_patch(Rectangle((x, y), wide, tall, **{"edgecolor": "0.25", "linewidth": 0.8} | how))

    def slab(self, x, y, shape, colour, largest):
        """Features (rows, columns, channels) as a block around x, y, which begins and ends at the two x returned.

        Its sides go with the square roots of the sizes.
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


def draw_vqvae(canvas, model, image, colours, ranks, pixel_mm):
    """The upper part: encoder from left to right, quantiser, decoder from right to left."""
    vqvae, codes = model.vqvae, model.encode(image[None])
    quantizer, z_shape, largest = vqvae.quantizer, vqvae.encoder.output_shape[1:], vqvae.image_size
    up, down, beneath, high = 1.15, 3.62, 0.68, 0.575  # the middles of both rows; from them to the words, the edges
    canvas.title(0.22, f"1  VQ-VAE: a slice becomes {codes_in_words(codes)} codes, and codes become a slice")

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
    canvas.picture(7.08, up - high, 2 * high, colours[codes[0, ..., 0]])
    words = f"code map: {codes_in_words(codes)},\neach one of {quantizer.num_embeddings}"
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
    config = vqvae.get_config()
    loss = f"$L_1$ + {config['ssim_weight']:g} (1 − SSIM) + $|\\mathrm{{sg}}[z_e] - e|^2$"
    loss += f" + {config['commitment_cost']:g} $|z_e - \\mathrm{{sg}}[e]|^2$"
    canvas.text(0.85, 2.5, f"loss: {loss}", ha="left")
    canvas.text(0.85, 2.68, "(sg stops the gradient)", ha="left")
    gradient = {"color": GRADIENT, "linewidth": 1.6, "linestyle": (0, (4, 2)), "mutation_scale": 12}
    canvas.arrow((7.45, down - 0.16), (6.2, down - 0.35), (5.5, up + 1.4), (5.36, up + 0.24), **gradient)
    canvas.text(6.05, 2.62, "gradient copied\n(straight-through)", ha="left", color=GRADIENT)


def merged_parts(network):
    """Each of `parts` once, its name, shape and how often it follows itself."""
    return [(name, shape, number) for (name, shape), number in merged(row[:2] for row in parts(network))]


def short(name, number):
    """The name of a part in up to three short lines."""
    name = name.replace("convolution", "conv").replace(", ", ",\n").replace("transposed ", "transposed\n")
    return name.replace("residual block", "residual\nblock") + f" × {number}" * (number > 1)


def draw_coarse(canvas, model, image, colours):
    """The strip in the middle: the small VQ-VAE of the shrunk slice."""
    coarse, y, side, x = model.models.coarse, 5.42, 0.6, 1.72
    codes, shrunk = model.encode_coarse(image[None]), dataset.shrink(image[None], model.models.coarse.image_size)
    words = f"Coarse codes:\na second, small VQ-VAE\nof the slice shrunk to\n{by(shrunk[0].shape)} pixels"
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
            canvas.picture(x, y - side / 2, side, colours[codes[0, ..., 0]])
            words = f"{codes_in_words(codes)} codes of {coarse.num_embeddings}"
            canvas.text(x + side / 2, y + side / 2 + 0.1, words)
            x += side
    canvas.picture(x, y - side / 2, side, coarse.decode(codes)[0, ..., 0], **GREY)


def draw_prior(canvas, model, colours, coarse_colours, pixel_mm):
    """The lower part: a grid half drawn, both stacks, the chances of the next code, the whole grid, the new slice."""
    prior, y, high = model.models.prior, 7.3, 0.575
    size = prior.grid_size
    canvas.title(6.08, "2  PixelCNN: new codes are drawn one by one, and decoded to a new slice")
    codes, coarse = model.sampler.draw([0], [POSITION], 0, [0], 1)  # the first slice of a seed
    place, told = (size // 2, size // 2), {"label": np.zeros(1, "int32"), "slice_position": np.float32([POSITION])}
    logits = prior({**told, "codes": codes, "coarse": coarse})[0, *place, 0]
    chances = keras.ops.convert_to_numpy(keras.ops.softmax(logits))

    half = colours[codes[0, ..., 0]].copy()
    half.reshape(-1, 3)[place[0] * size + place[1] :] = NOT_DRAWN
    axis = canvas.picture(0.15, y - high, 2 * high, half)
    axis.add_patch(Rectangle((place[1] - 0.5, place[0] - 0.5), 1, 1, fill=False, **MARK))
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
    canvas.picture(0.15, low + 0.2, 0.6, coarse_colours[coarse[0, ..., 0]])
    words = "told beforehand:\ncoarse codes, drawn by\na small PixelCNN;\nlabel, slice position"
    canvas.text(0.85, low + 0.5, words, ha="left")
    canvas.arrow((1.6, low + 0.12), (1.6, low - 0.2), (1.96, low - 0.1), (1.96, below + side / 2 + 0.03))
    draw_kernels(canvas, prior, 3.0, low)
    left = 4.75
    canvas.arrow((x + 0.25, y + 0.82), (left + 0.8, low - 0.05))
    canvas.picture(left, low, 1.05, colours[codes[0, ..., 0]])
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
            canvas.box(x, row - side / 2, side, side, facecolor=colour)
            canvas.text(x + side / 2, row, block.mask_type, color="white", fontweight="bold")
        canvas.arrow((x + side / 2, above + side / 2), (x + side / 2, below - side / 2 - 0.01), mutation_scale=6)
        end = x + side
        if prior.attentions[index]:
            canvas.box(end + 0.12, above - 0.17, 0.12, 0.34, facecolor=VECTORS, zorder=4.5)
            canvas.text(end + 0.18, above - 0.25, "attention", color=ATTENTION_WORD)
            x += 0.24
        x += 0.4
    return end


def draw_kernels(canvas, prior, x, y):
    """What the kernels of both stacks see from the marked place, small; hatched: not drawn yet."""
    side = 0.1
    for block in (prior.blocks[0], prior.blocks[-1]):
        is_a = block.mask_type == "A"
        canvas.text(x + 2.5 * side, y + 0.1, f"mask {block.mask_type}")
        for down, conv, colour in ((0.24, block.vertical_conv, VERTICAL), (0.72, block.horizontal_conv, HORIZONTAL)):
            rows, columns = conv.kernel_size
            is_vertical = conv.stack == "vertical"
            last_row, last_column = 2 - is_a * is_vertical, 3 + columns // 2 if is_vertical else 3 - is_a
            for row, column in np.ndindex(4, 5):
                is_seen = last_row - rows < row <= last_row and last_column - columns < column <= last_column
                how = {"facecolor": colour if is_seen else "white", "edgecolor": "0.6", "linewidth": 0.5}
                hatch = "/////" if is_a and (row, column) >= (2, 3) else None
                canvas.box(x + column * side, y + down + row * side, side, side, hatch=hatch, **how)
            canvas.box(x + 3 * side, y + down + 2 * side, side, side, facecolor="none", **MARK, zorder=3)
        x += 0.85


def draw_front(model, path):
    """Eight slices that the model draws, at eight heights, cut to what lies in any of them."""
    labels, _ = model.conditions(8)
    images = np.concatenate(list(model.draw(labels, np.linspace(0.15, 0.9, 8))))
    rows, columns = (np.flatnonzero((images > 0.1).any(axis=axes)) for axes in ((0, 2), (0, 1)))
    images = images[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    images = np.pad(images, ((0, 0), (6, 6), (6, 6)))
    grid = np.concatenate([np.concatenate(list(row), axis=1) for row in (images[:4], images[4:])])
    PIL.Image.fromarray((grid * 255).round().astype("uint8")).save(path, optimize=True)


@command
def main(args):
    keras.utils.set_random_seed(0)
    model = TrainedModel(RUN, "sharp")
    draw_front(model, FOLDER / "slices.png")
    image = np.asarray(PIL.Image.open(SLICE)).astype("float32") / np.float32(255)
    pixel_mm, canvas = model.voxel_mm[0], Canvas(9.72)
    # A code has the same colour wherever it is shown.
    colours, ranks = colours_of(model.vqvae)
    coarse_colours, _ = colours_of(model.models.coarse)
    draw_vqvae(canvas, model, image, colours, ranks, pixel_mm)
    draw_coarse(canvas, model, image, coarse_colours)
    draw_prior(canvas, model, colours, coarse_colours, pixel_mm)
    canvas.write(FOLDER / "architecture.png")


if __name__ == "__main__":
    sys.exit(main())
