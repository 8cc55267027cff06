"""What each choice in the VQ-VAE is worth: the default beside variants of it, trained for the same seconds.

    python -m benchmarks.ablation --data-dir ../shared/data/ixi --minutes 1 --output results/ixi/ablation.json

What a row does not say is as in train.py, with the learning rate going by its own clock (`race.py`). Figures are those
of the validation people. All have 0.5 bits per pixel (8 bits for each of 32 x 32 codes at 128 x 128), but for finite
scalar quantisation, whose 240 codes take 0.494.
"""

import sys
from functools import partial
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

import dataset
import modules
import train
from benchmarks import race
from evaluation import metrics, realism
from extensions import losses
from running import options
from system.console import UserError

SIZE = 128
DEFAULTS, TRAINING = options.VQVAE(), options.VQVAETraining()
FACTOR, FILTERS = DEFAULTS.downsampling, DEFAULTS.base_filters
NUM_EMBEDDINGS, EMBEDDING_DIM = DEFAULTS.num_embeddings, DEFAULTS.embedding_dim
GRID = SIZE // FACTOR

default_loss = partial(losses.reconstruction_loss, kind=DEFAULTS.loss, ssim_weight=DEFAULTS.ssim_weight)


class Assembled(modules.VQVAE):
    """A VQ-VAE put together from an encoder, a quantiser and a decoder.

    Args:
        encoder, quantizer, decoder, commitment_cost: As `modules.VQVAE` has them.
        distance: Function of images and reconstructions.
        from_data: Whether `initialise` starts the codebook.
        regulariser: Function of the model and of what it returned, added to the loss.
        more: Further attributes.
    """

    def __init__(
        self, encoder, quantizer, decoder, distance=default_loss, commitment_cost=DEFAULTS.commitment_cost, **more
    ):
        keras.Model.__init__(self)
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder
        self.distance, self.commitment_cost = distance, commitment_cost
        for name, value in {"from_data": True, "regulariser": None, **more}.items():
            setattr(self, name, value)
        self.reconstruction_tracker = keras.metrics.Mean(name="reconstruction_loss")
        self.commitment_tracker = keras.metrics.Mean(name="commitment_loss")
        self.usage_tracker = modules.CodebookUsage(quantizer.num_embeddings)
        if not quantizer.built:
            quantizer.build(encoder.output_shape)
        self.built = True

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred)
        return loss if self.regulariser is None else loss + self.regulariser(self, y_pred)

    def initialise(self, images):
        """Starts the codebook from the encoder's outputs for these images."""
        if self.from_data:
            self.quantizer.initialise(self.encoder.predict(images, batch_size=16, verbose=0))

    def codebooks(self, outputs):
        """Codes of each codebook, with its number of entries, from what the model returned."""
        codes = outputs["code_indices"]
        several = np.moveaxis(codes, -1, 0) if codes.ndim == 4 else [codes]  # of a `ProductQuantizer`
        return [(some, self.quantizer.num_embeddings) for some in several]


def convolutions(**changes):
    """The default encoder and decoder, with other numbers or activation."""
    names = ("downsampling", "base_filters", "num_residual_blocks", "embedding_dim")
    parts = {name: getattr(DEFAULTS, name) for name in names} | {"activation": "relu"} | changes
    return modules.build_encoder(SIZE, **parts), modules.build_decoder(SIZE, **parts)


def group_normalised(name):
    """GroupNorm (Wu & He, arXiv:1803.08494) in eight groups, and ReLU, but for the last one, beyond the grid."""
    relu = layers.ReLU(name=name)
    return relu if name == "up0_activation" else keras.Sequential([layers.GroupNormalization(8), relu])


modules.ACTIVATIONS["group_normalised"] = group_normalised


def space_to_depth():
    """The default, whose encoder makes each 4 x 4 patch 16 channels: all its convolutions work at the small grid."""
    x = image = keras.Input((SIZE, SIZE, 1))
    x = layers.Permute((1, 3, 2, 4))(layers.Reshape((GRID, FACTOR, GRID, FACTOR))(x))
    x = layers.Conv2D(2 * FILTERS, 3, padding="same")(layers.Reshape((GRID, GRID, FACTOR**2))(x))
    x = modules.residual_block(modules.residual_block(layers.ReLU()(x), "residual0"), "residual1")
    return keras.Model(image, layers.Conv2D(EMBEDDING_DIM, 1, dtype="float32")(x)), convolutions()[1]


def depth_to_space(x):
    """16 channels of the small grid become 4 x 4 pixels."""
    x = layers.Conv2D(FACTOR**2, 3, padding="same")(layers.ReLU()(x))
    x = layers.Permute((1, 3, 2, 4))(layers.Reshape((GRID, GRID, FACTOR, FACTOR))(x))
    return layers.Reshape((SIZE, SIZE, 1))(x)


def nearest_neighbour(x):
    """Upsampling and convolution in place of transposed convolution."""
    for filters in (FILTERS, 1):
        x = layers.Conv2D(filters, 3, padding="same")(layers.UpSampling2D(2)(layers.ReLU()(x)))
    return x


def ending(encode=None, enlarge=None, output=modules.clip_to_unit, parts=convolutions):
    """Encoder and decoder with another end: a layer after the encoder, a way from features to pixels, an activation."""
    encoder, decoder = parts()
    x = enlarge(decoder.get_layer("residual1_add").output) if enlarge else decoder.get_layer("up0").output
    decoder = keras.Model(decoder.input, layers.Activation(output, dtype="float32")(x))
    return keras.Model(encoder.input, encode(dtype="float32")(encoder.output)) if encode else encoder, decoder


class CosineQuantizer(modules.VectorQuantizer):
    """Entries of length 1; with an encoder that ends in vectors of length 1, the nearest one has the largest cosine."""

    @property
    def codebook(self):
        return ops.normalize(super().codebook, axis=-1)


class RotatingQuantizer(modules.VectorQuantizer):
    """Gradients turned and scaled as z_e was on its way to z_q (Fifty et al., arXiv:2410.06424, section 4.2)."""

    def call(self, z_e, training=False):
        _, z_q, code_indices = super().call(z_e, training=training)
        z_e = ops.cast(z_e, "float32")
        length_e, length_q = (ops.stop_gradient(ops.norm(z, axis=-1, keepdims=True)) + 1e-6 for z in (z_e, z_q))
        e, q = ops.stop_gradient(z_e) / length_e, ops.stop_gradient(z_q) / length_q
        r = ops.normalize(e + q, axis=-1)
        along_r, along_e = (ops.sum(z_e * direction, axis=-1, keepdims=True) for direction in (r, e))
        return (z_e - 2 * along_r * r + 2 * along_e * q) * (length_q / length_e), z_q, code_indices


class FiniteScalarQuantizer(layers.Layer):
    """Each number of a vector is rounded to one of a few levels (Mentzer et al., arXiv:2309.15505); no codebook.

    Call arguments and results as `modules.VectorQuantizer`; there is nothing to commit to, so z_q is z_e's own output.
    The number and length of a codebook's entries, `sizes`, are of no use here.
    """

    update = "none"

    def __init__(self, *sizes, levels=(8, 6, 5), **kwargs):
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.levels = np.array(levels, "float32")
        self.num_embeddings = int(np.prod(levels))

    def call(self, z_e, training=False):
        z_e = ops.cast(z_e, "float32")
        half = (self.levels - 1) * 1.001 / 2
        offset = np.where(self.levels % 2 == 0, 0.5, 0.0).astype("float32")
        bounded = ops.tanh(z_e + np.arctanh(offset / half)) * half - offset
        rounded = bounded + ops.stop_gradient(ops.round(bounded) - bounded)
        digits = ops.round(rounded) + self.levels // 2
        places = np.concatenate([[1], np.cumprod(self.levels[:-1])]).astype("float32")
        return rounded / (self.levels // 2), z_e, ops.cast(ops.sum(digits * places, axis=-1), "int32")


class ProductQuantizer(layers.Layer):
    """Vectors cut in four, each part with a codebook of its own; results as `modules.VectorQuantizer`, parts joined.

    The codes have one more axis, for the parts.
    """

    update = DEFAULTS.codebook_update

    def __init__(self, num_embeddings, embedding_dim, **kwargs):
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.parts = [modules.VectorQuantizer(num_embeddings, embedding_dim // 4, seed=i) for i in range(4)]
        self.num_embeddings = num_embeddings

    def build(self, input_shape):
        for part in self.parts:
            part.build((*input_shape[:-1], part.embedding_dim))

    def initialise(self, z_e):
        for part, some in zip(self.parts, np.split(z_e, 4, axis=-1), strict=True):
            part.initialise(some)

    def call(self, z_e, training=False):
        cut = ops.split(ops.cast(z_e, "float32"), 4, axis=-1)
        found = [part(some, training=training) for part, some in zip(self.parts, cut, strict=True)]
        through, z_q, codes = zip(*found, strict=True)
        return ops.concatenate(through, -1), ops.concatenate(z_q, -1), ops.stack(codes, -1)


class TwoLevels(Assembled):
    """Two grids of codes, after VQ-VAE-2 (Razavi et al., arXiv:1906.00446, section 3.1).

    Each of 16 x 16 codes of 256 tells 8 x 8 pixels; 32 x 32 codes of 64, whose encoder has seen them, tell the rest:
    8,192 bits, as many as 32 x 32 codes of 256.
    """

    def __init__(self):
        encoder, decoder = convolutions()
        top = modules.VectorQuantizer(NUM_EMBEDDINGS, EMBEDDING_DIM, seed=1)
        bottom = modules.VectorQuantizer(64, EMBEDDING_DIM)
        image, features = encoder.input, encoder.output
        x = layers.Conv2D(2 * FILTERS, 4, 2, padding="same")(layers.ReLU()(features))
        z_top = layers.Conv2D(EMBEDDING_DIM, 1, dtype="float32")(layers.ReLU()(x))
        through, z_q_top, top_codes = top(z_top)
        told = layers.Conv2DTranspose(EMBEDDING_DIM, 4, 2, padding="same", dtype="float32")(through)
        z_e = layers.Dense(EMBEDDING_DIM, dtype="float32")(layers.Concatenate()([features, told]))
        through, z_q, code_indices = bottom(z_e)
        joined = layers.Dense(EMBEDDING_DIM, dtype="float32")(layers.Concatenate()([told, through]))

        def both(*levels):  # one after the other, for the commitment of both
            return ops.concatenate([ops.reshape(z, (-1, EMBEDDING_DIM)) for z in levels], 0)

        outputs = {"reconstruction": decoder(joined), "z_e": both(z_e, z_top), "z_q": both(z_q, z_q_top)}
        net = keras.Model(image, {**outputs, "code_indices": code_indices, "top_codes": top_codes})
        super().__init__(encoder, bottom, decoder, net=net, top=top, levels=keras.Model(image, [z_top, z_e]))

    def call(self, images, training=False):
        return self.net(images, training=training)

    def initialise(self, images):
        for index, quantizer in enumerate((self.top, self.quantizer)):  # the second one's inputs depend on the first
            quantizer.initialise(self.levels.predict(images, batch_size=16, verbose=0)[index])

    def codebooks(self, outputs):
        return [*super().codebooks(outputs), (outputs["top_codes"], self.top.num_embeddings)]


def l1_ms_ssim(images, outputs):
    """MS-SSIM in place of the default loss's SSIM."""
    return default_loss(images, outputs, kind="l1") + 0.3 * (1 - ops.mean(losses.ms_ssim(images, outputs)))


def with_focal_frequency(images, outputs):
    """The default loss, and the squared difference of spectra, weighted by its size (arXiv:2012.12821, eq. 8)."""
    difference = ops.squeeze(ops.cast(images, "float32") - ops.cast(outputs, "float32"), -1)
    real, imaginary = ops.fft2((difference, ops.zeros_like(difference)))
    squared = (ops.square(real) + ops.square(imaginary)) / SIZE**2
    weight = ops.stop_gradient(ops.sqrt(squared))
    weight = weight / (ops.max(weight, axis=(1, 2), keepdims=True) + 1e-12)
    return default_loss(images, outputs) + ops.mean(weight * squared)


def with_wavelets(images, outputs):
    """The default loss, and the L1 of the three detail bands of a Haar transform, two levels."""
    difference = ops.cast(images, "float32") - ops.cast(outputs, "float32")
    loss = default_loss(images, outputs)
    for _ in range(2):
        a, b, c, d = (difference[:, i::2, j::2] for i in (0, 1) for j in (0, 1))
        loss = loss + ops.mean(ops.abs(ops.stack([a - b + c - d, a + b - c - d, a - b - c + d]))) / 4
        difference = (a + b + c + d) / 4
    return loss


def even_use(model, outputs):
    """Low entropy of each vector's soft assignment, high entropy of their mean (arXiv:2310.05737, eq. 5), by 0.01."""
    z_e = ops.reshape(outputs["z_e"], (-1, EMBEDDING_DIM))[::7]
    entries = ops.stop_gradient(model.quantizer.codebook)
    distances = ops.sum(ops.square(entries), -1) - 2 * ops.matmul(z_e, ops.transpose(entries))
    log_p = ops.log_softmax(-distances / 0.1)
    each = -ops.mean(ops.sum(ops.exp(log_p) * log_p, -1))
    mean = ops.mean(ops.exp(log_p), 0)
    return 0.01 * (each + ops.sum(mean * ops.log(mean + 1e-9)))


def averaged(learning_rate):
    """The optimiser of train.py; the weights that are kept are an average over about 20 steps."""
    average = {"use_ema": True, "ema_momentum": 1 - 1 / 20}
    return keras.optimizers.AdamW.from_config(train.vqvae_optimizer(learning_rate).get_config() | average)


def ours(parts=convolutions, quantizer=modules.VectorQuantizer, seed=None, **how):
    """Function that builds the default but for its parts, its quantiser or what an `Assembled` is told besides."""

    def build():
        if seed is not None:
            keras.utils.set_random_seed(seed)
        encoder, decoder = parts()
        return Assembled(encoder, quantizer(NUM_EMBEDDINGS, encoder.output_shape[-1]), decoder, **how)

    return build


def trained(build, **how):
    """A `race.Variant`, by default with the recipe of train.py."""
    recipe = {"learning_rate": TRAINING.learning_rate, "batch_size": TRAINING.batch_size}
    return race.Variant(build, **{"optimizer": train.vqvae_optimizer, **recipe, **how})


VARIANTS = {
    "default": trained(ours()),
    "the same again": trained(ours()),
    "another seed": trained(ours(seed=1)),
    "a third seed": trained(ours(seed=2)),
    # encoder and decoder
    "space-to-depth encoder": trained(ours(space_to_depth)),
    "space-to-depth, both": trained(ours(partial(ending, enlarge=depth_to_space, parts=space_to_depth))),
    "nearest-neighbour upsampling": trained(ours(partial(ending, enlarge=nearest_neighbour))),
    "GroupNorm": trained(ours(partial(convolutions, activation="group_normalised"))),
    "leaky ReLU": trained(ours(partial(convolutions, activation="leaky_relu"))),
    "sigmoid output": trained(ours(partial(ending, output="sigmoid"))),
    "linear output": trained(ours(partial(ending, output="linear"))),
    "twice the filters": trained(ours(partial(convolutions, base_filters=2 * FILTERS))),
    "no residual blocks": trained(ours(partial(convolutions, num_residual_blocks=0))),
    "four residual blocks": trained(ours(partial(convolutions, num_residual_blocks=4))),
    # loss
    "L2": trained(ours(distance=partial(default_loss, kind="l2"))),
    "L1": trained(ours(distance=partial(default_loss, kind="l1"))),
    "L1 + 1.0 (1 - SSIM)": trained(ours(distance=partial(default_loss, ssim_weight=1.0))),
    "L1 + 0.3 (1 - MS-SSIM)": trained(ours(distance=l1_ms_ssim)),
    "and focal frequency loss": trained(ours(distance=with_focal_frequency)),
    "and wavelet loss": trained(ours(distance=with_wavelets)),
    # training
    "learning rate 1.5e-3": trained(ours(), learning_rate=1.5e-3),
    "learning rate 6e-3": trained(ours(), learning_rate=6e-3),
    "constant learning rate 1e-3": trained(ours(), learning_rate=1e-3, scheduled=False),
    "weights averaged over 20 steps": trained(ours(), optimizer=averaged),
    "batches of 2": trained(ours(), batch_size=2),
    "batches of 8": trained(ours(), batch_size=8),
    "batches of 16": trained(ours(), batch_size=16),
    "float32": trained(ours(), precision="float32"),
    # codebook
    "codebook by moving averages": trained(ours(quantizer=partial(modules.VectorQuantizer, update="ema"))),
    "entries of 64": trained(ours(partial(convolutions, embedding_dim=64))),
    "entries of 8": trained(ours(partial(convolutions, embedding_dim=8))),
    "commitment cost 0.05": trained(ours(commitment_cost=0.05)),
    "codebook not from data": trained(ours(from_data=False)),
    "no restarts": trained(ours(quantizer=partial(modules.VectorQuantizer, restart_threshold=0.0))),
    "entropy regularisation": trained(ours(regulariser=even_use)),
    "z_e normalised": trained(ours(partial(ending, partial(layers.LayerNormalization, center=False, scale=False)))),
    "cosine": trained(ours(partial(ending, layers.UnitNormalization), CosineQuantizer)),
    "rotation trick": trained(ours(quantizer=RotatingQuantizer)),
    "finite scalar quantisation": trained(
        ours(partial(convolutions, embedding_dim=3), FiniteScalarQuantizer, commitment_cost=0.0, from_data=False)
    ),
    # grids
    "factor 8, four codebooks": trained(
        ours(partial(convolutions, downsampling=8, activation="leaky_relu"), ProductQuantizer)
    ),
    "two levels": trained(TwoLevels),
}


def prepare(data_dir):
    """The people of a folder, or the demo's, if their slices have `SIZE` pixels."""
    data = dataset.prepare(**options.train(["--data-dir", str(data_dir)] if data_dir else []).options["data"])
    if data.image_size != SIZE:
        raise UserError(f"{data_dir}: slices of {data.image_size} pixels, not {SIZE}")
    return data


def enter(name, variant, images, seconds):
    """A `race.Contestant` of a variant, its codebook initialised; images are uint8, shape (n, SIZE, SIZE)."""
    batches = dataset.Batches(len(images), lambda rows: dataset.as_float(images[rows]), variant.batch_size, seed=0)
    one = race.Contestant(name, variant, batches, seconds)
    batches.set_epoch(0)
    one.model.initialise(batches.fetch(np.sort(batches.order[: train.INITIAL_SLICES])))
    return one


def reconstruct(model, images):
    """What a model makes of uint8 images (n, SIZE, SIZE).

    Returns:
        Reconstructions, float32 in [0, 1], shape (n, SIZE, SIZE); for each codebook its codes, shape (n, grid, grid),
        and its number of entries.
    """
    outputs, codes = [], []
    for start in range(0, len(images), 32):
        found = model.predict_on_batch(dataset.as_float(images[start : start + 32]))
        outputs.append(np.clip(found["reconstruction"][..., 0], 0, 1))
        some, numbers = zip(*model.codebooks(found), strict=True)
        codes.append(some)
    return np.concatenate(outputs), [np.concatenate(some) for some in zip(*codes, strict=True)], numbers


def quality(images, outputs, codes, numbers, people):
    """Figures of what `reconstruct` returns for uint8 images (n, SIZE, SIZE) of these people: a dictionary."""
    images = images / np.float32(255)
    summary = metrics.summarise(metrics.batch_metrics(images, outputs), people)
    used = [metrics.codebook_metrics(one, n, SIZE**2 / one[0].size) for one, n in zip(codes, numbers, strict=True)]
    return {
        **{name: value["mean"] for name, value in summary.items()},
        **{f"{name}_ci95": value["ci95"] for name, value in summary.items()},
        "power_ratio": realism.power_ratio(realism.radial_power(outputs), realism.radial_power(images)),
        **{name: sum(one[name] for one in used) for name in ("bits_per_pixel", "entropy_bits_per_pixel")},
        "codes_in_use": float(np.average([one["codes_in_use"] for one in used], weights=numbers)),
    }


def begin(args):
    data = prepare(args.data_dir)
    training, images = (data.images[data.of(split).row] for split in ("train", "validation"))
    people = data.of("validation").subject_id
    return (
        lambda name, seconds: enter(name, VARIANTS[name], training, seconds),
        lambda one, _: quality(images, *reconstruct(one.model, images), people),
        {"data": data.title, "people": "validation"},
    )


where = (Path, None, "as for train.py; without it, the demo cohort")
main = race.command(begin, VARIANTS, __doc__, data_dir=where)

if __name__ == "__main__":
    sys.exit(main())
