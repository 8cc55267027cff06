"""Which prior says most about the same codes in the same time: the project's, variants of it, and the textbook's.

    python benchmarks/priors.py --run-dir runs/ixi --minutes 2 --output results/ixi/priors.json
    python benchmarks/priors.py --run-dir runs/ixi --minutes 2 --output /tmp/priors.json --variant default textbook

All rows are trained in this process on the same people, ten seconds at a time in turn, so that a slow moment of the
machine meets all alike: the same slices in the same order, the same precision and the same seconds, counted from
the sixth step on, when everything is compiled. The rows that do not say otherwise have the recipe of train.py, with the
learning rate going by that clock. The textbook's filters are chosen for as many
parameters as the default has; it is shown as it is usually trained (Adam at 1e-3, nothing else) and with the recipe
here. Bits per code are those of the validation people's codes.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import bisect
import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import modules
import run_folder
import train
from benchmarks import race, report

TRAINING = dataclasses.asdict(train.PriorTraining())
BATCH_SIZE = TRAINING["batch_size"]
AVERAGE_STEPS = 50


class TextbookConv2D(layers.Layer):
    """A convolution with the mask of van den Oord, Kalchbrenner, Kavukcuoglu 2016 (arXiv:1601.06759), figure 2.

    It sees the rows above the centre and what lies left of it in its own row; the centre itself for mask_type "B". Only
    that part is stored, as a matrix, like the kernels of `modules.MaskedConv2D`.
    """

    def __init__(self, filters, kernel_size, mask_type, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.size = (kernel_size // 2 + 1, kernel_size)
        self.visible = math.prod(self.size) - kernel_size // 2 - (mask_type == "A")

    def build(self, input_shape):
        self.channels = input_shape[-1]
        shape = (self.visible * self.channels, self.filters)
        self.kernel = self.add_weight(shape=shape, initializer="glorot_uniform", name="kernel")
        self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias")

    def call(self, x):
        side = self.size[1] // 2
        hidden = (math.prod(self.size) - self.visible) * self.channels
        kernel = ops.reshape(ops.pad(self.kernel, ((0, hidden), (0, 0))), (*self.size, self.channels, self.filters))
        x = ops.pad(x, ((0, 0), (side, 0), (side, side), (0, 0)))
        return ops.conv(x, kernel, padding="valid") + self.bias


class TextbookPixelCNN(keras.Model):
    """The PixelCNN of "Pixel Recurrent Neural Networks" (arXiv:1601.06759, table 1), over codes.

    One 7 x 7 convolution of mask type A, residual blocks (figure 5: 1 x 1 to half the channels, 3 x 3 of type B, 1 x 1
    back), two 1 x 1 layers. It has a single stack, hence a blind spot. Codes enter through an embedding; label and
    slice position do not.

    Args, inputs and output as for `modules.PixelCNN`; `filters` is the paper's 2h.
    """

    def __init__(self, num_embeddings, grid_size, filters=256, num_blocks=12, **kwargs):
        super().__init__(autocast=False, **kwargs)  # slice positions stay float32
        self.grid_size = grid_size
        self.embedding = layers.Embedding(num_embeddings, 64)
        self.first = TextbookConv2D(filters, 7, "A")
        self.blocks = [
            [layers.Dense(filters // 2), TextbookConv2D(filters // 2, 3, "B"), layers.Dense(filters)]
            for _ in range(num_blocks)
        ]
        self.last = [layers.Dense(filters), layers.Dense(num_embeddings, dtype="float32", name="logits")]
        self.bits_tracker = keras.metrics.Mean(name="bits_per_code")
        self({"codes": np.zeros((1, grid_size, grid_size), "int32")})  # builds every layer

    def call(self, inputs, training=False):
        x = self.first(self.embedding(inputs["codes"]))
        for block in self.blocks:
            y = x
            for layer in block:
                y = layer(ops.relu(y))
            x = x + y
        for layer in self.last:
            x = layer(ops.relu(x))
        return x

    compute_loss = modules.PixelCNN.compute_loss
    compute_metrics = modules.PixelCNN.compute_metrics


class NoPositions(modules.PixelCNN):
    """Without the learned embedding of the place in the grid."""

    def build(self, input_shape):
        super().build(input_shape)
        for weight in (self.row_embedding, self.column_embedding):
            weight.assign(ops.zeros_like(weight))
            weight.trainable = False


class TableAlone(modules.PixelCNN):
    """Codes embedded by a table alone."""

    def build(self, input_shape):
        super().build(input_shape)
        self.codebook_projection.trainable = False

    def embed(self, codes):
        return self.code_embedding(codes)


class NoAttention(modules.PixelCNN):
    """Without the attention, and so blind to what lies more rows above than its kernels reach."""

    def _assert_receptive_field(self):
        pass


@dataclasses.dataclass(frozen=True)
class Variant:
    """A prior and how it is trained.

    Attributes:
        build: Function that returns the model.
        optimizer: Function of the learning rate and of the steps to average over.
        learning_rate: Highest learning rate; None takes that of train.py and its schedule, a number stays as it is.
        max_shift: As in `train.PriorTraining`.
    """

    build: Callable
    optimizer: Callable = train.prior_optimizer
    learning_rate: float | None = None
    max_shift: int = TRAINING["max_shift"]


def adamw(learning_rate, average_steps):
    """AdamW where the project takes Muon."""
    average = {"use_ema": True, "ema_momentum": 1 - 1 / average_steps}
    return keras.optimizers.AdamW(learning_rate, weight_decay=1e-4, clipnorm=1.0, **average)


def adam(learning_rate, average_steps):
    """Plain Adam, without averages."""
    return keras.optimizers.Adam(learning_rate)


def make_variants(codebook, grid_size, num_labels):
    """Each `Variant` by name; `codebook` is NumPy (K, D)."""

    def ours(kind=modules.PixelCNN, **changes):
        model = kind(*codebook.shape, grid_size, num_labels, **changes)
        model.set_codebook(codebook)
        return model

    def textbook():
        target, widths = race.count(ours()), range(32, 1024, 8)
        fitting = bisect.bisect_left(
            widths, target, key=lambda filters: race.count(TextbookPixelCNN(len(codebook), grid_size, filters))
        )
        return TextbookPixelCNN(len(codebook), grid_size, widths[fitting])

    return {
        "default": Variant(ours),
        "textbook": Variant(textbook, adam, learning_rate=1e-3, max_shift=0),
        "textbook, recipe of the default": Variant(textbook),
        "AdamW for Muon": Variant(ours, adamw),
        "slices not moved": Variant(ours, max_shift=0),
        "no attention": Variant(lambda: ours(NoAttention, attention_every=0)),
        "no position embedding": Variant(lambda: ours(NoPositions)),
        "table alone": Variant(lambda: ours(TableAlone)),
        "no dilation": Variant(lambda: ours(max_dilation=1)),
    }


def parse(argv):
    parser = argparse.ArgumentParser(description="Train several priors on the same codes for the same time.")
    add = parser.add_argument
    add("--run-dir", type=Path, required=True, help="a run whose VQ-VAE is trained")
    add("--output", type=Path, required=True, help="a JSON file")
    add("--minutes", type=float, default=2.0, help="training time of each (default: %(default)s)")
    add("--variant", nargs="+", help="(default: all)")
    return parser.parse_args(argv)


def run(args):
    names = race.chosen(args, make_variants(None, None, None))  # which builds none of them
    config, data, slices = run_folder.reopen(args.run_dir)
    vqvae = run_folder.load_model(args.run_dir / "vqvae.keras", modules.VQVAE)
    codes = run_folder.extract_codes(args.run_dir, vqvae, data, slices)
    labels = config["data"]["labels"]
    inputs = run_folder.prior_inputs(codes, slices, labels)
    split = np.array([one.split for one in slices])
    training, validation = (run_folder.select(inputs, split == name) for name in ("train", "validation"))
    rows_of_images = np.array([one.row for one in slices])[split == "train"]

    def make_batches(max_shift):
        return train.MovedCodes(training, data.images, rows_of_images, vqvae, max_shift, BATCH_SIZE, seed=0)

    codebook = ops.convert_to_numpy(vqvae.quantizer.codebook)
    precision = train.resolve_precision("auto")
    train.set_precision(precision)
    variants = make_variants(codebook, vqvae.grid_size, len(labels))
    about = {
        "data": data.title,
        "splits_sha256": config["splits_sha256"],
        "vqvae_fingerprint": vqvae.fingerprint(),
        "minutes": args.minutes,
        "precision": precision,
    }
    seconds = 60 * args.minutes
    contestants = []
    for name in names:
        one = variants[name]
        contestants.append(
            race.Contestant(
                name,
                one.build,
                lambda rate, make=one.optimizer: make(rate, AVERAGE_STEPS),
                TRAINING["learning_rate"] if one.learning_rate is None else one.learning_rate,
                make_batches(one.max_shift),
                seconds,
                scheduled=one.learning_rate is None,
            )
        )
    race.race(contestants, seconds)
    rows = []
    for one in contestants:
        trained = one.finish()
        bits = one.model.evaluate(validation, batch_size=BATCH_SIZE, verbose=0, return_dict=True)["bits_per_code"]
        seconds_an_epoch = trained["training_s"] / trained["epochs"]
        row = {"variant": one.name, "validation_bits_per_code": bits, "seconds_an_epoch": seconds_an_epoch, **trained}
        rows.append(row)
        print(
            "{variant}: {validation_bits_per_code:.3f} bits per code, {parameters:,} parameters, "
            "{seconds_an_epoch:.0f} s an epoch, {epochs:.1f} epochs".format(**row),
            flush=True,
        )
    report.write(args.output, rows, **about)


def main(argv=None):
    return run_folder.exit_status(run, parse(argv), "stopped; nothing is written")


if __name__ == "__main__":
    sys.exit(main())
