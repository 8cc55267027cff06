"""What each choice in the VQ-VAE is worth: the default beside variants of it, trained for the same seconds.

    python -m benchmarks.ablation --data-dir IXI --minutes 1 --output results/ixi/ablation.json

What a row does not say is as in train.py, but for the learning rate, which goes by the clock alone (`race.py`). All
have 0.5 bits per pixel: four codes of 8 bits for each of 16 x 16 places at 128 x 128. Numbers are those of the
validation people.
"""

import sys
from pathlib import Path

from benchmarks import harness

with harness.command(__name__, __doc__, data_dir=(Path, None, "as for train.py"), **harness.RACE) as command:
    import keras
import numpy as np
from keras import layers

import dataset
import modules
import train
from benchmarks import race
from evaluation import metrics, realism
from running import models, options
from system.console import UserError

SIZE = 128
TRAINING = options.VQVAETraining()
CODES = {"downsampling": 8, "num_quantizers": 4}


def sigmoid_output(size, **changes):
    """The default, whose decoder ends in a sigmoid and is not cut to [0, 1]."""
    model = modules.VQVAE(size, **changes)
    images = layers.Activation("sigmoid", dtype="float32")(model.decoder.get_layer("up0").output)
    model.decoder = keras.Model(model.decoder.input, images)
    return model


def adam(rate):
    return keras.optimizers.AdamW(rate, weight_decay=1e-4, clipnorm=1.0)


def variant(build=modules.VQVAE, seed=0, changes=None, **how):
    """A `race.Variant` with other arguments of `modules.VQVAE`, or another recipe than that of train.py."""

    def make(**more):
        keras.utils.set_random_seed(seed)
        return build(SIZE, **{**CODES, **(changes or {}), **more})

    recipe = {"optimizer": train.vqvae_optimizer, "learning_rate": TRAINING.learning_rate}
    recipe |= {"batch_size": TRAINING.batch_size, "continuous": TRAINING.continuous}
    return race.Variant(make, **(recipe | how))


VARIANTS = {
    "default": variant(),
    "another seed": variant(seed=1),
    "a third seed": variant(seed=2),
    "quantised from the first step": variant(continuous=0.0),
    "half of the time without a quantiser": variant(continuous=0.5),
    "one code of 256 for each of 32 x 32 places": variant(changes={"downsampling": 4, "num_quantizers": 1}),
    "AdamW at 3e-3 in place of Muon": variant(optimizer=adam, learning_rate=3e-3),
    "Muon at 3e-3": variant(learning_rate=3e-3),
    "sigmoid output": variant(sigmoid_output),
    "twice the filters": variant(changes={"base_filters": 2 * options.VQVAE().base_filters}),
    "no residual blocks": variant(changes={"num_residual_blocks": 0}),
    "four residual blocks": variant(changes={"num_residual_blocks": 4}),
    "L2": variant(changes={"reconstruction_loss": "l2"}),
    "L1": variant(changes={"reconstruction_loss": "l1"}),
    "batches of 16": variant(batch_size=16),
    "float32": variant(precision="float32"),
    "entries of 16": variant(changes={"embedding_dim": 16}),
    "no restarts": variant(changes={"restart_threshold": 0.0}),
}


class Contestant(race.Contestant):
    """A `modules.VQVAE` that trains first without a quantiser, for a share of the time or none, as in train.py."""

    def __init__(self, *given):
        super().__init__(*given)
        self.whole, self.quantised = self.model, False
        if self.variant.continuous:
            self.model = self.compiled(num_quantizers=0)

    def warm_up(self):
        """Compiles the model with a quantiser and what k-means needs of it, then, if there is one, that without."""
        beginning, self.model = self.model, self.whole
        train.start_codebooks(self.whole, self.batches)
        super().warm_up()
        if beginning is not self.whole:
            self.model, self.steps = beginning, -race.COMPILED_AFTER
            super().warm_up()

    def quantise(self):
        """K-means makes the codebooks, on the contestant's clock; an epoch goes on where it was."""
        if self.model is not self.whole:
            models.take_over(self.whole, self.model)
            self.model = self.whole
        train.start_codebooks(self.model, self.batches)
        self.batches.set_epoch((self.steps + race.COMPILED_AFTER) // len(self.batches))
        self.quantised = True

    def step(self, share):
        begins = self.variant.continuous * self.all_seconds
        if self.steps >= 0 and not self.quantised and self.trained_s >= begins:
            self.quantise()
        super().step(share)

    def finish(self):
        if not self.quantised:
            self.quantise()
        return super().finish()


def prepare(data_dir):
    """The people of a folder, or the demo's, if their slices have `SIZE` pixels."""
    data = dataset.prepare(**options.train(["--data-dir", str(data_dir)] if data_dir else []).options["data"])
    if data.image_size != SIZE:
        raise UserError(f"{data_dir}: slices of {data.image_size} pixels, not {SIZE}")
    return data


def enter(name, variant, images, seconds):
    """A contestant of a variant; images are uint8, shape (n, S, S)."""
    kind = race.Contestant if variant.continuous is None else Contestant
    batches = dataset.Batches(len(images), lambda rows: dataset.as_float(images[rows]), variant.batch_size, seed=0)
    return kind(name, variant, batches, seconds)


def reconstruct(model, images):
    """What a model makes of uint8 images (n, S, S): float32 in [0, 1], (n, S, S), and codes, (n, grid, grid, D)."""
    outputs, codes = [], []
    for start in range(0, len(images), 32):
        found = model.predict_on_batch(dataset.as_float(images[start : start + 32]))
        outputs.append(np.clip(found["reconstruction"][..., 0], 0, 1))
        codes.append(found["code_indices"])
    return np.concatenate(outputs), np.concatenate(codes)


def quality(images, outputs, codes, num_embeddings, people):
    """Figures of what `reconstruct` returns for uint8 images (n, S, S) of these people: a dictionary."""
    images = images / np.float32(255)
    used = metrics.codebook_metrics(codes, num_embeddings, images[0].size / codes[0, ..., 0].size)
    return {
        **harness.means(metrics.summarise(metrics.batch_metrics(images, outputs), people)),
        "power_ratio": realism.power_ratio(realism.radial_power(outputs), realism.radial_power(images)),
        **{name: used[name] for name in ("bits_per_pixel", "entropy_bits_per_pixel", "codes_in_use")},
    }


@command
def main(args):
    names = race.chosen("--variant", args.variant, VARIANTS)
    data = prepare(args.data_dir)
    training, images = (data.images[data.of(split).row] for split in ("train", "validation"))
    people = data.of("validation").subject_id

    def measure(one, row):
        return quality(images, *reconstruct(one.model, images), one.model.quantizer.num_embeddings, people)

    def join(name, seconds):
        return enter(name, VARIANTS[name], training, seconds)

    race.run(args, names, join, measure, data=data.title, people="validation")


if __name__ == "__main__":
    sys.exit(main())
