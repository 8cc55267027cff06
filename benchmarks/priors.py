"""Which prior says most about the same codes in the same time: the project's, variants of it, and the textbook's.

    python benchmarks/priors.py --run-dir runs/ixi --minutes 6 --output results/ixi/priors.json
    python benchmarks/priors.py --run-dir runs/ixi --minutes 6 --output /tmp/priors.json --variant default textbook

Every row is trained in this process on the codes of the run's training people: same batches, optimiser, precision and
wall-clock time, which is turned into a number of steps by timing a few; the cosine decay ends with the last one. Bits
per code are those of the validation people, under the averaged weights. The textbook's filters are chosen for as many
parameters as the default has.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import dataclasses
import json
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
from benchmarks import machine

TRAINING = dataclasses.asdict(train.PriorTraining())
BATCH_SIZE = TRAINING["batch_size"]


class TextbookConv2D(layers.Conv2D):
    """A convolution whose kernel is multiplied by the mask of van den Oord, Kalchbrenner, Kavukcuoglu 2016, figure 2.

    It lets through the rows above the centre and what lies left of it in its row; the centre itself for mask_type "B".
    """

    def __init__(self, filters, kernel_size, mask_type, **kwargs):
        super().__init__(filters, kernel_size, padding="same", **kwargs)
        mask = np.ones((kernel_size, kernel_size, 1, 1), "float32")
        mask[kernel_size // 2, kernel_size // 2 + (mask_type == "B") :] = 0
        mask[kernel_size // 2 + 1 :] = 0
        self.mask = mask

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel * ops.cast(self.mask, kernel.dtype))

    def count_visible(self):
        """Parameters that the mask lets through."""
        per_place = int(np.prod(self.kernel.shape[2:]))
        return int(self.mask.sum()) * per_place + int(np.prod(self.bias.shape))


class TextbookPixelCNN(keras.Model):
    """The PixelCNN of "Pixel Recurrent Neural Networks" (arXiv:1601.06759, table 1), over codes.

    One 7 x 7 convolution of mask type A, residual blocks (figure 5: 1 x 1 to half the channels, 3 x 3 of type B, 1 x 1
    back), two 1 x 1 layers. It has a single stack, hence a blind spot. Codes enter through an embedding, and it is
    told the label and the slice position as the project's prior is, added after the first convolution: without that
    the comparison would be one of what they are told.

    Args, inputs and output as for `modules.PixelCNN`; `filters` is the paper's 2h.
    """

    def __init__(self, num_embeddings, grid_size, num_labels=0, filters=256, num_blocks=12, **kwargs):
        super().__init__(**kwargs)
        self.grid_size = grid_size
        self.embedding = layers.Embedding(num_embeddings, 64)
        self.condition = layers.Dense(filters)
        self.label_embedding = layers.Embedding(num_labels + 1, filters)
        self.first = TextbookConv2D(filters, 7, "A")
        self.blocks = [
            [layers.Conv2D(filters // 2, 1), TextbookConv2D(filters // 2, 3, "B"), layers.Conv2D(filters, 1)]
            for _ in range(num_blocks)
        ]
        self.last = [layers.Conv2D(filters, 1), layers.Conv2D(num_embeddings, 1, dtype="float32")]
        self.bits_tracker = keras.metrics.Mean(name="bits_per_code")
        nothing = np.zeros(1, "int32")
        self({"codes": np.zeros((1, grid_size, grid_size), "int32"), "label": nothing, "slice_position": nothing})

    def call(self, inputs, training=False):
        position = ops.cast(inputs["slice_position"], "float32")[:, None]
        condition = self.condition(ops.cos(np.pi * position * ops.arange(16, dtype="float32")))
        condition = condition + self.label_embedding(inputs["label"])
        x = self.first(self.embedding(inputs["codes"])) + condition[:, None, None]
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
        """Parameters without the masked ones, which no gradient ever reaches."""
        masked = [layer for layer in self._flatten_layers() if isinstance(layer, TextbookConv2D)]
        return self.count_params() - sum(layer.count_params() - layer.count_visible() for layer in masked)


class NoPositions(modules.PixelCNN):
    """Without the learned embedding of the place in the grid."""

    def build(self, input_shape):
        super().build(input_shape)
        for weight in (self.row_embedding, self.column_embedding):
            weight.assign(ops.zeros_like(weight))
            weight.trainable = False


class FrozenCodebook(layers.Layer):
    """Embeds codes by the VQ-VAE's own codebook, which is not trained, and a matrix, which is."""

    def __init__(self, codebook, filters):
        super().__init__()
        self.codebook = codebook
        self.project = layers.Dense(filters)

    def build(self, input_shape):
        self.project.build((None, self.codebook.shape[1]))

    def call(self, codes):
        return self.project(ops.take(ops.convert_to_tensor(self.codebook), codes, axis=0))


class NoAttention(modules.PixelCNN):
    """Without the attention, and so blind to what lies more rows above than its kernels reach."""

    def _assert_receptive_field(self):
        pass


def make_variants(vqvae, labels):
    """Functions that build each variant, by name."""
    common = {"num_embeddings": vqvae.quantizer.num_embeddings, "grid_size": vqvae.grid_size, "num_labels": labels}

    def frozen():
        codebook = ops.convert_to_numpy(vqvae.quantizer.codebook)

        class CodebookPixelCNN(modules.PixelCNN):
            def build(self, input_shape):
                del self.embedding
                self.embedding = FrozenCodebook(codebook / codebook.std(), self.get_config()["filters"])
                super().build(input_shape)

        return CodebookPixelCNN(**common)

    def textbook():
        target = modules.PixelCNN(**common).count_params()
        sizes = range(32, 1024, 8)
        counts = []
        for filters in sizes:
            counts.append(TextbookPixelCNN(**common | {"filters": filters}).count_visible())
            if counts[-1] > target:
                break
        best = int(np.argmin(np.abs(np.array(counts) - target)))
        return TextbookPixelCNN(**common | {"filters": sizes[best]})

    return {
        "default": lambda: modules.PixelCNN(**common),
        "textbook": textbook,
        "no attention": lambda: NoAttention(**common, attention_every=0),
        "attention every 2 blocks": lambda: modules.PixelCNN(**common, attention_every=2),
        "no position embedding": lambda: NoPositions(**common),
        "no dilation": lambda: modules.PixelCNN(**common, max_dilation=1),
        "frozen codebook": frozen,
    }


def parse(argv):
    parser = argparse.ArgumentParser(description="Train several priors on the same codes for the same time.")
    add = parser.add_argument
    add("--run-dir", type=Path, required=True, help="a run whose VQ-VAE is trained")
    add("--output", type=Path, required=True, help="a JSON file")
    add("--minutes", type=float, default=6.0, help="training time of each (default: %(default)s)")
    add("--variant", nargs="+", help="(default: all)")
    return parser.parse_args(argv)


def select(inputs, chosen):
    """The inputs of some grids, codes as int32."""
    batch = {name: values[chosen] for name, values in inputs.items()}
    return {**batch, "codes": batch["codes"].astype("int32")}


def compiled(build, steps):
    """A new model of the same seed, with the optimiser that train.py gives a stage of so many steps."""
    keras.utils.set_random_seed(0)
    model = build()
    model.compile(optimizer=train.make_optimizer(TRAINING, steps))
    return model


def seconds_a_step(build, inputs):
    """How long a training step takes, on a model that is thrown away."""
    model = compiled(build, 100)
    batch = select(inputs, np.arange(BATCH_SIZE))
    for _ in range(3):
        model.train_on_batch(batch)
    start = time.perf_counter()
    for _ in range(12):
        model.train_on_batch(batch)
    return (time.perf_counter() - start) / 12


def measure(name, build, inputs, validation, seconds):
    """Trains one variant for so many seconds and returns its row."""
    number = len(inputs["label"])
    step_s = seconds_a_step(build, inputs)
    steps = max(1, round(seconds / step_s))
    model = compiled(build, steps)
    rng = np.random.default_rng(0)
    passes = -(-steps * BATCH_SIZE // number)
    order = np.concatenate([rng.permutation(number) for _ in range(passes)])[: steps * BATCH_SIZE]
    batches = dataset.Batches(len(order), lambda indices: select(inputs, order[indices]), BATCH_SIZE)
    averaged = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    start = time.perf_counter()
    history = model.fit(batches, callbacks=[averaged], shuffle=False, verbose=0).history
    trained_s = time.perf_counter() - start
    bits = model.evaluate(validation, batch_size=BATCH_SIZE, verbose=0, return_dict=True)["bits_per_code"]
    if isinstance(model, TextbookPixelCNN):
        count = model.count_visible()
    else:
        count = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    return {
        "variant": name,
        "validation_bits_per_code": bits,
        "training_bits_per_code": history["bits_per_code"][-1],
        "parameters": count,
        "seconds_an_epoch": step_s * number / BATCH_SIZE,
        "steps": steps,
        "epochs": steps * BATCH_SIZE / number,
        "training_s": trained_s,
    }


def run(args):
    config, data, slices = run_folder.reopen(args.run_dir)
    vqvae = run_folder.load_model(args.run_dir / "vqvae.keras", modules.VQVAE)
    codes = run_folder.extract_codes(args.run_dir, vqvae, data, slices)
    labels = config["data"]["labels"]
    inputs = run_folder.prior_inputs(codes, slices, labels)
    split = np.array([one.split for one in slices])
    training = {name: values[split == "train"] for name, values in inputs.items()}
    validation = select(inputs, split == "validation")
    precision = train.resolve_precision("auto")
    train.set_precision(precision)
    variants = make_variants(vqvae, len(labels))
    unknown = set(args.variant or ()) - set(variants)
    if unknown or args.minutes <= 0:
        raise run_folder.RunError(
            f"--variant {', '.join(unknown)}: choose among {', '.join(variants)}"
            if unknown
            else f"--minutes {args.minutes}: must be above 0"
        )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in args.variant or variants:
        rows.append(measure(name, variants[name], training, validation, 60 * args.minutes))
        report = {
            "machine": machine.describe(),
            "data": data.title,
            "splits_sha256": config["splits_sha256"],
            "vqvae_fingerprint": vqvae.fingerprint(),
            "minutes": args.minutes,
            "precision": precision,
            "rows": rows,
        }
        dataset.write_text(args.output, json.dumps(report, indent=2) + "\n")
        print(
            "{variant}: {validation_bits_per_code:.3f} bits per code, {parameters:,} parameters, "
            "{seconds_an_epoch:.0f} s an epoch, {epochs:.1f} epochs".format(**rows[-1]),
            flush=True,
        )


def main(argv=None):
    return run_folder.exit_status(run, parse(argv), "stopped; the rows so far are in the file")


if __name__ == "__main__":
    sys.exit(main())
