"""Which prior says most about the same codes in the same time: the project's, variants of it, and the textbook's.

    python benchmarks/priors.py --run-dir runs/ixi --minutes 2 --output results/ixi/priors.json
    python benchmarks/priors.py --run-dir runs/ixi --minutes 2 --output /tmp/priors.json --variant default textbook

Every row is trained in this process on the codes of the run's training people: same batches in the same order, same
optimiser and precision, and the same seconds, counted from the sixth step on, when everything is compiled; the learning
rate goes by that clock. Bits per code are those of the validation people, under averaged weights. The textbook's
filters are chosen for as many parameters as the default has.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import bisect
import dataclasses
import math
import sys
import time
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dataset
import modules
import run_folder
import train
from benchmarks import report

TRAINING = dataclasses.asdict(train.PriorTraining())
BATCH_SIZE = TRAINING["batch_size"]
COMPILED_AFTER = 5  # steps
WARM_UP = 0.1  # of the time
MOST_EPOCHS = 1000


class TextbookConv2D(layers.Layer):
    """A convolution with the mask of van den Oord, Kalchbrenner, Kavukcuoglu 2016 (arXiv:1601.06759), figure 2.

    It sees the rows above the centre and what lies left of it in its own row; the centre itself for mask_type "B". The
    rows below are not stored; of the last row, what lies to the right is multiplied by 0.
    """

    def __init__(self, filters, kernel_size, mask_type, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.side = kernel_size // 2
        self.mask = np.ones((self.side + 1, kernel_size, 1, 1), "float32")
        self.mask[-1, self.side + (mask_type == "B") :] = 0

    def build(self, input_shape):
        shape = (*self.mask.shape[:2], input_shape[-1], self.filters)
        self.kernel = self.add_weight(shape=shape, initializer="glorot_uniform", name="kernel")
        self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias")

    def call(self, x):
        x = ops.pad(x, ((0, 0), (self.side, 0), (self.side, self.side), (0, 0)))
        return ops.conv(x, self.kernel * ops.cast(self.mask, self.kernel.dtype), padding="valid") + self.bias

    def count_hidden(self):
        """Weights that the mask sets to 0."""
        return int((self.mask == 0).sum()) * math.prod(self.kernel.shape[2:])


class TextbookPixelCNN(keras.Model):
    """The PixelCNN of "Pixel Recurrent Neural Networks" (arXiv:1601.06759, table 1), over codes.

    One 7 x 7 convolution of mask type A, residual blocks (figure 5: 1 x 1 to half the channels, 3 x 3 of type B, 1 x 1
    back), two 1 x 1 layers. It has a single stack, hence a blind spot. Codes enter through an embedding. The paper's
    model is told nothing; with `told`, label and slice position are added after the first convolution.

    Args, inputs and output as for `modules.PixelCNN`; `filters` is the paper's 2h.
    """

    def __init__(self, num_embeddings, grid_size, num_labels=0, filters=256, num_blocks=12, told=False, **kwargs):
        super().__init__(autocast=False, **kwargs)  # slice positions stay float32
        self.grid_size = grid_size
        self.embedding = layers.Embedding(num_embeddings, 64)
        self.told = told
        if told:
            self.condition = layers.Dense(filters)
            self.label_embedding = layers.Embedding(num_labels + 1, filters)
        self.first = TextbookConv2D(filters, 7, "A")
        self.blocks = [
            [layers.Conv2D(filters // 2, 1), TextbookConv2D(filters // 2, 3, "B"), layers.Conv2D(filters, 1)]
            for _ in range(num_blocks)
        ]
        self.last = [layers.Conv2D(filters, 1), layers.Conv2D(num_embeddings, 1, dtype="float32")]
        self.bits_tracker = keras.metrics.Mean(name="bits_per_code")
        one = {"codes": np.zeros((1, grid_size, grid_size), "int32"), "label": np.zeros(1, "int32")}
        self({**one, "slice_position": np.zeros(1, "float32")})  # builds every layer

    def call(self, inputs, training=False):
        x = self.first(self.embedding(inputs["codes"]))
        if self.told:
            waves = ops.cos(math.pi * inputs["slice_position"][:, None] * ops.arange(16, dtype="float32"))
            condition = self.condition(waves) + self.label_embedding(inputs["label"])
            x = x + ops.cast(condition, x.dtype)[:, None, None]
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

    def count_visible(self):
        """Parameters without those that the masks set to 0."""
        masked = [layer for layer in self._flatten_layers() if isinstance(layer, TextbookConv2D)]
        return self.count_params() - sum(layer.count_hidden() for layer in masked)


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


class CodebookAlone(modules.PixelCNN):
    """Codes embedded by the VQ-VAE's codebook alone."""

    def build(self, input_shape):
        super().build(input_shape)
        self.code_embedding.trainable = False

    def embed(self, codes):
        return self.codebook_projection(ops.take(self.codebook, codes, axis=0))


class NoAttention(modules.PixelCNN):
    """Without the attention, and so blind to what lies more rows above than its kernels reach."""

    def _assert_receptive_field(self):
        pass


def make_variants(codebook, grid_size, num_labels):
    """Functions that build each variant, by name; `codebook` is NumPy (K, D)."""
    sizes = {"num_embeddings": len(codebook), "grid_size": grid_size, "num_labels": num_labels}

    def ours(kind=modules.PixelCNN, **changes):
        model = kind(embedding_dim=codebook.shape[1], **sizes, **changes)
        model.set_codebook(codebook)
        return model

    def textbook(told=False):
        target = count(ours())
        widths = range(32, 1024, 8)
        nearest = bisect.bisect_left(widths, target, key=lambda n: count(TextbookPixelCNN(**sizes, filters=n)))
        return TextbookPixelCNN(**sizes, filters=widths[nearest], told=told)

    return {
        "default": ours,
        "textbook": textbook,
        "textbook, told the position": lambda: textbook(told=True),
        "no attention": lambda: ours(NoAttention, attention_every=0),
        "no position embedding": lambda: ours(NoPositions),
        "table alone": lambda: ours(TableAlone),
        "codebook alone": lambda: ours(CodebookAlone),
        "no dilation": lambda: ours(max_dilation=1),
    }


def count(model):
    """Trained parameters; of a textbook model those that its masks let through."""
    if isinstance(model, TextbookPixelCNN):
        return model.count_visible()
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


def parse(argv):
    parser = argparse.ArgumentParser(description="Train several priors on the same codes for the same time.")
    add = parser.add_argument
    add("--run-dir", type=Path, required=True, help="a run whose VQ-VAE is trained")
    add("--output", type=Path, required=True, help="a JSON file")
    add("--minutes", type=float, default=2.0, help="training time of each (default: %(default)s)")
    add("--variant", nargs="+", help="(default: all)")
    return parser.parse_args(argv)


class ByTheClock(keras.callbacks.Callback):
    """The recipe of train.py for a span of time: warm-up, cosine decay of the learning rate, and the end."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.steps = 0

    def on_train_batch_begin(self, batch, logs=None):
        if batch == COMPILED_AFTER:
            self.started = time.perf_counter()
        done = (time.perf_counter() - self.started) / self.seconds if batch >= COMPILED_AFTER else 0.0
        decay = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, done - WARM_UP) / (1 - WARM_UP))))
        self.model.optimizer.learning_rate = TRAINING["learning_rate"] * min(1.0, done / WARM_UP) * decay

    def on_train_batch_end(self, batch, logs=None):
        if batch >= COMPILED_AFTER:
            self.steps += 1
            self.trained_s = time.perf_counter() - self.started
            self.model.stop_training = self.trained_s >= self.seconds


def measure(name, build, inputs, validation, seconds):
    """Trains one variant for so many seconds and returns its row."""
    keras.utils.set_random_seed(0)
    model = build()
    model.compile(optimizer=train.make_optimizer(TRAINING["learning_rate"], average_steps=50))
    number, rng = len(inputs["label"]), np.random.default_rng(0)
    order = np.concatenate([rng.permutation(number) for _ in range(MOST_EPOCHS)])
    batches = dataset.Batches(len(order), lambda indices: run_folder.select(inputs, order[indices]), BATCH_SIZE)
    clock = ByTheClock(seconds)
    model.fit(batches, callbacks=[clock], shuffle=False, verbose=0)  # and leaves the averaged weights
    bits = model.evaluate(validation, batch_size=BATCH_SIZE, verbose=0, return_dict=True)["bits_per_code"]
    epochs = clock.steps * BATCH_SIZE / number
    return {
        "variant": name,
        "validation_bits_per_code": bits,
        "parameters": count(model),
        "seconds_an_epoch": clock.trained_s / epochs,
        "training_s": clock.trained_s,
        "steps": clock.steps,
        "epochs": epochs,
    }


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
    rows = []
    for name in args.variant or variants:
        rows.append(measure(name, variants[name], training, validation, 60 * args.minutes))
        report.write(args.output, rows, **about)
        print(
            "{variant}: {validation_bits_per_code:.3f} bits per code, {parameters:,} parameters, "
            "{seconds_an_epoch:.0f} s an epoch, {epochs:.1f} epochs".format(**rows[-1]),
            flush=True,
        )


def main(argv=None):
    return run_folder.exit_status(run, parse(argv), "stopped; the rows so far are in the file")


if __name__ == "__main__":
    sys.exit(main())
