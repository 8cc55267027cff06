"""Which prior says most about the same codes in the same time: the project's, variants of it, and the textbook's.

    python -m benchmarks.priors --run-dir runs/ixi4 --minutes 1.5 --output results/ixi/priors.json

What a row does not say is as in train.py, with the learning rate going by its own clock (`race.py`). The textbook has
about as many parameters as the default; it is shown as it is usually trained (Adam at 1e-3, nothing else) and with the
recipe here. None is told coarse codes. Bits per code are those of the validation people's codes.
"""

import dataclasses
import math
import sys
from functools import partial
from pathlib import Path

from benchmarks import harness

with harness.command(
    __name__, __doc__, run_dir=(Path, ..., "a run whose VQ-VAE is trained"), **harness.RACE
) as command:
    import keras
import numpy as np
from keras import layers, ops

import dataset
import modules
import train
from benchmarks import race
from running import models, opening, options
from running.config import read_config

AVERAGE_STEPS = 50


class TextbookConv2D(layers.Layer):
    """A convolution with the mask of van den Oord, Kalchbrenner, Kavukcuoglu 2016 (arXiv:1601.06759), figure 2.

    It sees the rows above the centre and what lies left of it in its own row; the centre itself for mask_type "B". Only
    that part is stored, as a matrix, like the kernels of `modules.MaskedConv2D`.
    """

    def __init__(self, filters, kernel_size, mask_type, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.size = filters, (kernel_size // 2 + 1, kernel_size)
        self.visible = math.prod(self.size) - kernel_size // 2 - (mask_type == "A")

    def build(self, input_shape):
        self.channels = input_shape[-1]
        self.kernel = self.add_weight((self.visible * self.channels, self.filters), "glorot_uniform", name="kernel")
        self.bias = self.add_weight((self.filters,), "zeros", name="bias")

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
    slice position do not. Inputs and output are those of `modules.PixelCNN`; `filters` is the paper's 2h.
    """

    def __init__(self, num_embeddings, grid_size, filters=160, num_blocks=12, **kwargs):
        super().__init__(autocast=False, **kwargs)  # slice positions stay float32
        self.grid_size, self.num_quantizers, half = grid_size, 1, filters // 2
        self.embedding = layers.Embedding(num_embeddings, 64)
        self.first = TextbookConv2D(filters, 7, "A")
        self.blocks = [
            [layers.Dense(half), TextbookConv2D(half, 3, "B"), layers.Dense(filters)] for _ in range(num_blocks)
        ]
        self.last = [layers.Dense(filters), layers.Dense(num_embeddings, dtype="float32", name="logits")]
        self.bits_tracker = keras.metrics.Mean(name="bits_per_code")
        self({"codes": np.zeros((1, grid_size, grid_size, 1), "int32")})  # builds every layer

    def call(self, inputs, training=False):
        x = self.first(self.embedding(inputs["codes"][..., 0]))
        for block in self.blocks:
            y = x
            for layer in block:
                y = layer(ops.relu(y))
            x = x + y
        for layer in self.last:
            x = layer(ops.relu(x))
        return x[..., None, :]  # of one level

    compute_loss = modules.PixelCNN.compute_loss
    compute_metrics = modules.PixelCNN.compute_metrics


class NoAttention(modules.PixelCNN):
    """Without the attention, and so blind to what lies more rows above than its kernels reach."""

    def _assert_receptive_field(self):
        pass


def make_variants(codebooks=None, grid_size=None, num_labels=None):
    """Each `race.Variant` by name, none of them built; `codebooks` are NumPy (D, K, E)."""

    def ours(kind=modules.PixelCNN, **changes):
        model = kind(*codebooks.shape[1:], grid_size, num_labels, num_quantizers=len(codebooks), **changes)
        model.set_codebooks(codebooks)
        return model

    def table_alone():
        model = ours()
        model.codebook_projection.trainable = False
        model.codebook_projection.set_weights([np.zeros_like(model.codebook_projection.kernel)])
        return model

    def trained(build, **how):
        recipe = {name: getattr(options.PriorTraining, name) for name in ("learning_rate", "batch_size")}
        recipe |= dataclasses.asdict(options.Augmentation())
        recipe["optimizer"] = lambda learning_rate: train.prior_optimizer(learning_rate, AVERAGE_STEPS)
        return race.Variant(build, **recipe | how)

    def textbook():
        return TextbookPixelCNN(codebooks.shape[1], grid_size)

    averaged = {"use_ema": True, "ema_momentum": 1 - 1 / AVERAGE_STEPS}
    adamw = partial(keras.optimizers.AdamW, weight_decay=1e-4, clipnorm=1.0, **averaged)
    plain = {"optimizer": keras.optimizers.Adam, "learning_rate": 1e-3, "scheduled": False}
    return {
        "default": trained(ours),
        "textbook": trained(textbook, **plain),
        "textbook, recipe of the default": trained(textbook),
        "AdamW for Muon": trained(ours, optimizer=adamw),
        "slices not changed": trained(ours, max_shift=0, mirrored=0.0),
        "no attention": trained(lambda: ours(NoAttention, attention_every=0)),
        "table alone": trained(table_alone),
        "no dilation": trained(lambda: ours(max_dilation=1)),
    }


@command
def main(args):
    names, run_dir = race.chosen("--variant", args.variant, make_variants()), args.run_dir
    config, vqvae = read_config(run_dir), models.load_vqvae(run_dir)
    data = opening.find_data(run_dir, config)
    validation, is_validation = data.of("validation"), data.slices.split == "validation"
    inputs = dataset.prior_inputs(validation, data.labels, codes=opening.all_codes(run_dir, vqvae, data)[is_validation])
    training = dataset.prior_inputs(data.of("train"), data.labels)
    variants = make_variants(vqvae.codebooks, vqvae.grid_size, len(data.labels))

    def enter(name, seconds):
        one = variants[name]
        how = {"max_shift": one.max_shift, "mirrored": one.mirrored}
        batches = dataset.ChangedCodes(training, {"codes": vqvae}, data, one.batch_size, 0, **how)
        return race.Contestant(name, one, batches, seconds)

    def measure(one, row):
        how = {"batch_size": one.variant.batch_size, "verbose": 0, "return_dict": True}
        bits = one.model.evaluate(inputs, **how)["bits_per_code"]
        return {"validation_bits_per_code": bits, "seconds_an_epoch": row["training_s"] / row["epochs"]}

    about = {"data": data.title, "splits_sha256": config["splits_sha256"]}
    about |= {"vqvae_fingerprint": models.fingerprint(vqvae), "precision": models.resolve_precision("auto")}
    race.run(args, names, enter, measure, **about)


if __name__ == "__main__":
    sys.exit(main())
