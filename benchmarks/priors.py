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
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import modules
import run_folder
import train
from benchmarks import report

TRAINING = dataclasses.asdict(train.PriorTraining())
BATCH_SIZE = TRAINING["batch_size"]
AVERAGE_STEPS = 50
COMPILED_AFTER = 5  # steps
WARM_UP = 0.1  # of the time
TURN_S = 10.0


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
        target, widths = count(ours()), range(32, 1024, 8)
        fitting = bisect.bisect_left(
            widths, target, key=lambda filters: count(TextbookPixelCNN(len(codebook), grid_size, filters))
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


def count(model):
    """Trained parameters."""
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


def parse(argv):
    parser = argparse.ArgumentParser(description="Train several priors on the same codes for the same time.")
    add = parser.add_argument
    add("--run-dir", type=Path, required=True, help="a run whose VQ-VAE is trained")
    add("--output", type=Path, required=True, help="a JSON file")
    add("--minutes", type=float, default=2.0, help="training time of each (default: %(default)s)")
    add("--variant", nargs="+", help="(default: all)")
    return parser.parse_args(argv)


class Contestant:
    """A variant in training, which can be stopped and gone on with; its clock runs only while it trains.

    Args:
        name: The variant's name.
        variant: The `Variant`.
        make_batches: Function of `max_shift` that returns the training batches.
        seconds: Time that it has in all; the learning rate goes by it, unless the variant keeps to one.
    """

    def __init__(self, name, variant, make_batches, seconds):
        keras.utils.set_random_seed(0)
        self.name, self.variant, self.seconds = name, variant, seconds
        self.model = variant.build()
        rate = TRAINING["learning_rate"] if variant.learning_rate is None else variant.learning_rate
        self.model.compile(optimizer=variant.optimizer(rate, AVERAGE_STEPS))
        self.batches = make_batches(variant.max_shift)
        self.steps, self.trained_s = -COMPILED_AFTER, 0.0

    def warm_up(self):
        """The first steps, whose time does not count. Only when all are built: seeding throws away what is compiled."""
        while self.steps < 0:
            self.step()
        self.trained_s = 0.0

    def step(self):
        """One batch; the first of an epoch moves and encodes the slices, which counts as training."""
        start = time.perf_counter()
        epoch, index = divmod(self.steps + COMPILED_AFTER, len(self.batches))
        if index == 0:
            self.batches.set_epoch(epoch)
        if self.variant.learning_rate is None:
            done = min(1.0, self.trained_s / self.seconds)
            decay = 0.5 * (1 + math.cos(math.pi * max(0.0, done - WARM_UP) / (1 - WARM_UP)))
            self.model.optimizer.learning_rate = TRAINING["learning_rate"] * min(1.0, done / WARM_UP) * decay
        self.model.train_on_batch(self.batches[index][0])
        self.steps += 1
        self.trained_s += time.perf_counter() - start

    def finish(self, validation):
        """Takes the averaged weights, where there are any, and returns the row."""
        self.model.optimizer.finalize_variable_values(self.model.trainable_variables)
        bits = self.model.evaluate(validation, batch_size=BATCH_SIZE, verbose=0, return_dict=True)["bits_per_code"]
        epochs = self.steps * BATCH_SIZE / self.batches.number
        return {
            "variant": self.name,
            "validation_bits_per_code": bits,
            "parameters": count(self.model),
            "seconds_an_epoch": self.trained_s / epochs,
            "training_s": self.trained_s,
            "steps": self.steps,
            "epochs": epochs,
        }


def race(contestants, seconds):
    """Trains all of them for so many seconds each, ten seconds at a time in turn: a slow moment meets all alike."""
    for one in contestants:
        one.warm_up()
    turns = math.ceil(seconds / TURN_S)
    for turn in tqdm(range(1, turns + 1), "turns", leave=False, disable=None):
        for one in contestants:
            while one.trained_s < seconds * turn / turns:
                one.step()


def run(args):
    if not 0 < args.minutes < math.inf:
        raise run_folder.RunError(f"--minutes {args.minutes}: must be above 0")
    config, data, slices = run_folder.reopen(args.run_dir)
    vqvae = run_folder.load_model(args.run_dir / "vqvae.keras", modules.VQVAE)
    codes = run_folder.extract_codes(args.run_dir, vqvae, data, slices)
    labels = config["data"]["labels"]
    inputs = run_folder.prior_inputs(codes, slices, labels)
    split = np.array([one.split for one in slices])
    training, validation = (run_folder.select(inputs, split == name) for name in ("train", "validation"))
    rows_of_images = np.array([one.row for one in slices])[split == "train"]

    def make_batches(max_shift):
        return train.MovedCodes(dict(training), data.images, rows_of_images, vqvae, max_shift, BATCH_SIZE, seed=0)

    codebook = ops.convert_to_numpy(vqvae.quantizer.codebook)
    precision = train.resolve_precision("auto")
    train.set_precision(precision)
    variants = make_variants(codebook, vqvae.grid_size, len(labels))
    for name in args.variant or ():
        if name not in variants:
            raise run_folder.RunError(f"--variant {name}: choose among {', '.join(variants)}")
    about = {
        "data": data.title,
        "splits_sha256": config["splits_sha256"],
        "vqvae_fingerprint": vqvae.fingerprint(),
        "minutes": args.minutes,
        "precision": precision,
    }
    seconds = 60 * args.minutes
    contestants = [Contestant(name, variants[name], make_batches, seconds) for name in args.variant or variants]
    race(contestants, seconds)
    rows = []
    for one in contestants:
        rows.append(one.finish(validation))
        print(
            "{variant}: {validation_bits_per_code:.3f} bits per code, {parameters:,} parameters, "
            "{seconds_an_epoch:.0f} s an epoch, {epochs:.1f} epochs".format(**rows[-1]),
            flush=True,
        )
    report.write(args.output, rows, **about)


def main(argv=None):
    return run_folder.exit_status(run, parse(argv), "stopped; nothing is written")


if __name__ == "__main__":
    sys.exit(main())
