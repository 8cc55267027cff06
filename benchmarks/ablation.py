"""What each choice in the VQ-VAE is worth: the default beside variants of it, trained for the same seconds.

    python benchmarks/ablation.py --data-dir ../shared/data/ixi --minutes 1 --output results/ixi/ablation.json
    python benchmarks/ablation.py --data-dir ../shared/data/ixi --minutes 5 --output a.json --variant default cosine

All rows are trained in this process on the same people, ten seconds at a time in turn, so that a slow moment of the
machine meets all alike; what a row does not say is as in train.py, with the learning rate going by its own clock.
Figures are those of the validation people. All have 0.5 bits per pixel (8 bits for each of 32 x 32 codes at 128 x 128),
but for finite scalar quantisation, whose 240 codes take 0.494.

References
    Those of modules.py, and
    Mentzer et al.: Finite Scalar Quantization: VQ-VAE Made Simple, ICLR 2024, arXiv:2309.15505.
    Fifty et al.: Restructuring Vector Quantization with the Rotation Trick, ICLR 2025, arXiv:2410.06424.
    Yu et al.: Language Model Beats Diffusion: Tokenizer is Key to Visual Generation, ICLR 2024, arXiv:2310.05737.
    Jiang et al.: Focal Frequency Loss for Image Reconstruction and Synthesis, ICCV 2021, arXiv:2012.12821.
    Razavi et al.: Generating Diverse High-Fidelity Images with VQ-VAE-2, NeurIPS 2019, arXiv:1906.00446.
    Wu, He: Group Normalization, ECCV 2018, arXiv:1803.08494.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dataset
import metrics
import modules
import realism
import run_folder
import train
from benchmarks import race, report

SIZE = 128
DEFAULTS = train.constructor_defaults(modules.VQVAE)
FACTOR, FILTERS = DEFAULTS["downsampling"], DEFAULTS["base_filters"]
NUM_EMBEDDINGS, EMBEDDING_DIM = DEFAULTS["num_embeddings"], DEFAULTS["embedding_dim"]
TRAINING = dataclasses.asdict(train.VQVAETraining())

# ----------------------------------------------------------------------------------------------------------------
# A VQ-VAE of any parts
# ----------------------------------------------------------------------------------------------------------------


def default_loss(images, outputs):
    return modules.reconstruction_loss(images, outputs, DEFAULTS["loss"], DEFAULTS["ssim_weight"])


class Assembled(modules.VQVAE):
    """A VQ-VAE put together from an encoder, a quantiser and a decoder.

    Args:
        encoder, quantizer, decoder: As `modules.VQVAE` has them.
        loss: Function of images and reconstructions.
        regulariser: Function of the model and of what it returned, added to the loss.
        more: Further layers, by name.
    """

    def __init__(
        self,
        encoder,
        quantizer,
        decoder,
        loss=default_loss,
        regulariser=None,
        commitment_cost=DEFAULTS["commitment_cost"],
        **more,
    ):
        keras.Model.__init__(self)
        for name, layer in more.items():
            setattr(self, name, layer)
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder
        self.image_size = encoder.input_shape[1]
        self.commitment_cost, self.loss_function, self.regulariser = commitment_cost, loss, regulariser
        self.reconstruction_tracker = keras.metrics.Mean(name="reconstruction_loss")
        self.commitment_tracker = keras.metrics.Mean(name="commitment_loss")
        self.usage_tracker = modules.CodebookUsage(quantizer.num_embeddings)
        self.build((None, *encoder.input_shape[1:]))

    def distance(self, images, reconstructions):
        return self.loss_function(images, reconstructions)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred)
        return loss if self.regulariser is None else loss + self.regulariser(self, y_pred)

    def initialise(self, images):
        """Starts the codebook from the encoder's outputs for these images."""
        self.quantizer.initialise(self.encoder.predict(images, batch_size=16, verbose=0))

    def codebooks(self, outputs):
        """Codes of each codebook, with its number of entries, from what the model returned."""
        return [(outputs["code_indices"], self.quantizer.num_embeddings)]


# ----------------------------------------------------------------------------------------------------------------
# Encoders and decoders
# ----------------------------------------------------------------------------------------------------------------


def convolutions(**changes):
    """The default encoder and decoder, with other numbers or activation."""
    names = ("downsampling", "base_filters", "num_residual_blocks", "embedding_dim")
    parts = {name: DEFAULTS[name] for name in names} | {"activation": "relu"} | changes
    return modules.build_encoder(SIZE, **parts), modules.build_decoder(SIZE, **parts)


def space_to_depth_encoder(filters=2 * FILTERS):
    """Each 4 x 4 patch becomes 16 channels, and all convolutions work at the small grid."""
    x = inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Reshape((SIZE // FACTOR, FACTOR, SIZE // FACTOR, FACTOR))(x)
    x = layers.Reshape((SIZE // FACTOR, SIZE // FACTOR, FACTOR**2))(layers.Permute((1, 3, 2, 4))(x))
    x = layers.ReLU()(layers.Conv2D(filters, 3, padding="same")(x))
    for block in range(2):
        x = modules.residual_block(x, f"residual{block}")
    return keras.Model(inputs, layers.Conv2D(EMBEDDING_DIM, 1, dtype="float32")(x))


def depth_to_space_decoder(filters=2 * FILTERS):
    """The reverse: 16 channels of the small grid become 4 x 4 pixels."""
    grid = SIZE // FACTOR
    x = inputs = keras.Input((grid, grid, EMBEDDING_DIM))
    x = layers.Conv2D(filters, 3, padding="same")(x)
    for block in range(2):
        x = modules.residual_block(x, f"residual{block}")
    x = layers.Conv2D(FACTOR**2, 3, padding="same")(layers.ReLU()(x))
    x = layers.Permute((1, 3, 2, 4))(layers.Reshape((grid, grid, FACTOR, FACTOR))(x))
    x = layers.Reshape((SIZE, SIZE, 1))(x)
    return keras.Model(inputs, layers.Activation(modules.clip_to_unit, dtype="float32")(x))


def plain_decoder(upsample="transposed", output="clip"):
    """The default decoder with another way of enlarging, or another output."""
    grid = SIZE // FACTOR
    x = inputs = keras.Input((grid, grid, EMBEDDING_DIM))
    x = layers.Conv2D(2 * FILTERS, 3, padding="same")(x)
    for block in range(2):
        x = modules.residual_block(x, f"residual{block}")
    for filters in (FILTERS, 1):
        x = layers.ReLU()(x)
        if upsample == "nearest":
            x = layers.Conv2D(filters, 3, padding="same")(layers.UpSampling2D(2)(x))
        else:
            x = layers.Conv2DTranspose(filters, 4, 2, padding="same")(x)
    last = {"clip": modules.clip_to_unit, "sigmoid": "sigmoid", "linear": "linear"}[output]
    return keras.Model(inputs, layers.Activation(last, dtype="float32")(x))


def group_normalised():
    """Encoder and decoder with GroupNorm in eight groups before each activation on the grid."""

    def residual(x):
        y = layers.ReLU()(layers.GroupNormalization(8)(x))
        y = layers.Conv2D(x.shape[-1] // 2, 3, padding="same")(y)
        y = layers.ReLU()(layers.GroupNormalization(8)(y))
        return layers.Add()([x, layers.Conv2D(x.shape[-1], 1)(y)])

    grid = SIZE // FACTOR
    x = image = keras.Input((SIZE, SIZE, 1))
    for filters in (FILTERS, 2 * FILTERS):
        x = layers.ReLU()(layers.GroupNormalization(8)(layers.Conv2D(filters, 4, 2, padding="same")(x)))
    z_e = layers.Conv2D(EMBEDDING_DIM, 1, dtype="float32")(residual(residual(x)))
    x = z_q = keras.Input((grid, grid, EMBEDDING_DIM))
    x = residual(residual(layers.Conv2D(2 * FILTERS, 3, padding="same")(x)))
    x = layers.ReLU()(layers.GroupNormalization(8)(x))
    x = layers.Conv2DTranspose(FILTERS, 4, 2, padding="same")(x)
    x = layers.Conv2DTranspose(1, 4, 2, padding="same")(layers.ReLU()(x))
    x = layers.Activation(modules.clip_to_unit, dtype="float32")(x)
    return keras.Model(image, z_e), keras.Model(z_q, x)


def ending_in(layer):
    """The default's, with one more layer at the encoder's end."""
    encoder, decoder = convolutions()
    return keras.Model(encoder.input, layer(encoder.output)), decoder


# ----------------------------------------------------------------------------------------------------------------
# Quantisers
# ----------------------------------------------------------------------------------------------------------------


def codebook(**changes):
    return modules.VectorQuantizer(NUM_EMBEDDINGS, changes.pop("embedding_dim", EMBEDDING_DIM), **changes)


class CosineQuantizer(modules.VectorQuantizer):
    """Entries of length 1; with an encoder that ends in vectors of length 1, the nearest one has the largest cosine."""

    @property
    def codebook(self):
        return ops.normalize(super().codebook, axis=-1)


class RotatingQuantizer(modules.VectorQuantizer):
    """Gradients turned and scaled as z_e was on its way to z_q, in place of copied (Fifty et al. 2025, section 4.2)."""

    def call(self, z_e, training=False):
        _, z_q, code_indices = super().call(z_e, training=training)
        z_e = ops.cast(z_e, "float32")
        length_e, length_q = (ops.stop_gradient(ops.norm(z, axis=-1, keepdims=True)) + 1e-6 for z in (z_e, z_q))
        e, q = ops.stop_gradient(z_e) / length_e, ops.stop_gradient(z_q) / length_q
        r = ops.normalize(e + q, axis=-1)

        def along(direction):
            return ops.sum(z_e * direction, axis=-1, keepdims=True)

        turned = (z_e - 2 * along(r) * r + 2 * along(e) * q) * (length_q / length_e)
        return turned, z_q, code_indices


class FiniteScalarQuantizer(layers.Layer):
    """Each number of a vector is rounded to one of a few levels (Mentzer et al. 2024, section 3.1); no codebook.

    Call arguments and results as `modules.VectorQuantizer`; there is nothing to commit to, so z_q is z_e's own output.
    """

    update = "none"

    def __init__(self, levels, **kwargs):
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
    """Vectors cut in equal parts, each with a codebook of its own; results as `modules.VectorQuantizer`, parts joined.

    The codes have one more axis, for the parts.
    """

    update = DEFAULTS["codebook_update"]

    def __init__(self, parts, num_embeddings, embedding_dim, **kwargs):
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.parts = [modules.VectorQuantizer(num_embeddings, embedding_dim // parts, seed=i) for i in range(parts)]
        self.num_embeddings = num_embeddings

    def build(self, input_shape):
        for part in self.parts:
            part.build((*input_shape[:-1], part.embedding_dim))

    def initialise(self, z_e):
        for part, some in zip(self.parts, np.split(z_e, len(self.parts), axis=-1), strict=True):
            part.initialise(some)

    def call(self, z_e, training=False):
        cut = ops.split(ops.cast(z_e, "float32"), len(self.parts), axis=-1)
        found = [part(some, training=training) for part, some in zip(self.parts, cut, strict=True)]
        through, z_q, codes = zip(*found, strict=True)
        return ops.concatenate(through, -1), ops.concatenate(z_q, -1), ops.stack(codes, -1)


class SeveralCodebooks(Assembled):
    """Whose codes have one more axis, for the codebooks of a `ProductQuantizer`."""

    def codebooks(self, outputs):
        parts = np.moveaxis(outputs["code_indices"], -1, 0)
        return [(codes, self.quantizer.num_embeddings) for codes in parts]


class TwoLevels(Assembled):
    """Two grids of codes, after VQ-VAE-2 (Razavi et al. 2019, section 3.1).

    Each of 16 x 16 codes of 256 tells 8 x 8 pixels; 32 x 32 codes of 64, whose encoder has seen them, tell the rest:
    8,192 bits, as many as 32 x 32 codes of 256.
    """

    def __init__(self):
        encoder, decoder = convolutions()
        wide = layers.Conv2D(EMBEDDING_DIM, 1, dtype="float32")
        narrow = layers.Conv2D(2 * FILTERS, 4, 2, padding="same")
        super().__init__(
            encoder,
            modules.VectorQuantizer(64, EMBEDDING_DIM),
            decoder,
            down=keras.Sequential([layers.ReLU(), narrow, layers.ReLU(), wide]),
            top=modules.VectorQuantizer(NUM_EMBEDDINGS, EMBEDDING_DIM, seed=1),
            up=layers.Conv2DTranspose(EMBEDDING_DIM, 4, 2, padding="same", dtype="float32"),
            mix=layers.Dense(EMBEDDING_DIM, dtype="float32"),
            join=layers.Dense(EMBEDDING_DIM, dtype="float32"),
        )
        self(np.zeros((1, SIZE, SIZE, 1), "float32"))

    def initialise(self, images):
        self.top.initialise(ops.convert_to_numpy(self.down(self.encoder(images))))
        _, z_e = self._levels(images, training=False)[:2]
        self.quantizer.initialise(ops.convert_to_numpy(z_e))

    def _levels(self, images, training):
        features = self.encoder(images, training=training)
        z_top = self.down(features)
        through, z_q_top, top_codes = self.top(z_top, training=training)
        told = self.up(through)
        z_e = self.mix(ops.concatenate([features, told], -1))
        return told, z_e, (z_top, z_q_top, top_codes)

    def codebooks(self, outputs):
        return [*super().codebooks(outputs), (outputs["top_codes"], self.top.num_embeddings)]

    def call(self, images, training=False):
        told, z_e, (z_top, z_q_top, top_codes) = self._levels(images, training)
        through, z_q, code_indices = self.quantizer(z_e, training=training)
        return {
            "reconstruction": self.decoder(self.join(ops.concatenate([told, through], -1)), training=training),
            # One after the other, for the commitment of both.
            "z_e": ops.concatenate([ops.reshape(z, (-1, EMBEDDING_DIM)) for z in (z_e, z_top)], 0),
            "z_q": ops.concatenate([ops.reshape(z, (-1, EMBEDDING_DIM)) for z in (z_q, z_q_top)], 0),
            "code_indices": code_indices,
            "top_codes": top_codes,
        }


# ----------------------------------------------------------------------------------------------------------------
# Losses
# ----------------------------------------------------------------------------------------------------------------


def l1_ms_ssim(images, outputs):
    return modules.reconstruction_loss(images, outputs, "l1", 0) + 0.3 * (
        1 - ops.mean(modules.ms_ssim(images, outputs))
    )


def with_focal_frequency(images, outputs):
    """The default loss, and the squared difference of spectra weighted by its own size (Jiang et al. 2021, eq. 8)."""
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
    """Low entropy of each vector's soft assignment, high entropy of their mean (Yu et al. 2024, eq. 5), times 0.01."""
    z_e = ops.reshape(outputs["z_e"], (-1, EMBEDDING_DIM))[::7]
    entries = ops.stop_gradient(model.quantizer.codebook)
    distances = ops.sum(ops.square(entries), -1) - 2 * ops.matmul(z_e, ops.transpose(entries))
    log_p = ops.log_softmax(-distances / 0.1)
    each = -ops.mean(ops.sum(ops.exp(log_p) * log_p, -1))
    mean = ops.mean(ops.exp(log_p), 0)
    return 0.01 * (each + ops.sum(mean * ops.log(mean + 1e-9)))


# ----------------------------------------------------------------------------------------------------------------
# The variants
# ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Variant:
    """A VQ-VAE and how it is trained; what is not said is as in train.py.

    Attributes:
        build: Function that returns the model.
        optimizer: Function of the learning rate.
        scheduled: Whether the learning rate warms up and decays; without, it stays as it is.
        from_data: Whether the codebook starts as encoder outputs.
    """

    build: Callable
    optimizer: Callable = train.vqvae_optimizer
    learning_rate: float = TRAINING["learning_rate"]
    batch_size: int = TRAINING["batch_size"]
    scheduled: bool = True
    precision: str = "auto"
    from_data: bool = True


def averaged(learning_rate):
    """The optimiser of train.py; the weights that are kept are an average over about 20 steps."""
    options = {"use_ema": True, "ema_momentum": 1 - 1 / 20}
    return keras.optimizers.AdamW.from_config(train.vqvae_optimizer(learning_rate).get_config() | options)


def ours(parts=None, quantizer=None, kind=Assembled, **options):
    """Function that builds an `Assembled` of the default's parts but for those given (functions)."""

    def build():
        encoder, decoder = (parts or convolutions)()
        return kind(encoder, (quantizer or codebook)(), decoder, **options)

    return build


def normalisation():
    return layers.LayerNormalization(center=False, scale=False, dtype="float32")


def seeded(seed):
    def build():
        keras.utils.set_random_seed(seed)
        return ours()()

    return build


def with_decoder(decoder, **options):
    return ours(lambda: (convolutions()[0], decoder(**options)))


VARIANTS = {
    "default": Variant(ours()),
    "the same again": Variant(ours()),
    "another seed": Variant(seeded(1)),
    "a third seed": Variant(seeded(2)),
    # encoder and decoder
    "space-to-depth encoder": Variant(ours(lambda: (space_to_depth_encoder(), convolutions()[1]))),
    "space-to-depth, both": Variant(ours(lambda: (space_to_depth_encoder(), depth_to_space_decoder()))),
    "nearest-neighbour upsampling": Variant(with_decoder(plain_decoder, upsample="nearest")),
    "GroupNorm": Variant(ours(group_normalised)),
    "leaky ReLU": Variant(ours(lambda: convolutions(activation="leaky_relu"))),
    "sigmoid output": Variant(with_decoder(plain_decoder, output="sigmoid")),
    "linear output": Variant(with_decoder(plain_decoder, output="linear")),
    "twice the filters": Variant(ours(lambda: convolutions(base_filters=2 * FILTERS))),
    "no residual blocks": Variant(ours(lambda: convolutions(num_residual_blocks=0))),
    "four residual blocks": Variant(ours(lambda: convolutions(num_residual_blocks=4))),
    # loss
    "L2": Variant(ours(loss=lambda a, b: modules.reconstruction_loss(a, b, "l2", 0))),
    "L1": Variant(ours(loss=lambda a, b: modules.reconstruction_loss(a, b, "l1", 0))),
    "L1 + 1.0 (1 - SSIM)": Variant(ours(loss=lambda a, b: modules.reconstruction_loss(a, b, "l1_ssim", 1.0))),
    "L1 + 0.3 (1 - MS-SSIM)": Variant(ours(loss=l1_ms_ssim)),
    "and focal frequency loss": Variant(ours(loss=with_focal_frequency)),
    "and wavelet loss": Variant(ours(loss=with_wavelets)),
    # training
    "learning rate 1.5e-3": Variant(ours(), learning_rate=1.5e-3),
    "learning rate 6e-3": Variant(ours(), learning_rate=6e-3),
    "constant learning rate 1e-3": Variant(ours(), learning_rate=1e-3, scheduled=False),
    "weights averaged over 20 steps": Variant(ours(), averaged),
    "batches of 2": Variant(ours(), batch_size=2),
    "batches of 8": Variant(ours(), batch_size=8),
    "batches of 16": Variant(ours(), batch_size=16),
    "float32": Variant(ours(), precision="float32"),
    # codebook
    "codebook by moving averages": Variant(ours(quantizer=lambda: codebook(update="ema"))),
    "entries of 64": Variant(ours(lambda: convolutions(embedding_dim=64), lambda: codebook(embedding_dim=64))),
    "entries of 8": Variant(ours(lambda: convolutions(embedding_dim=8), lambda: codebook(embedding_dim=8))),
    "commitment cost 0.05": Variant(ours(commitment_cost=0.05)),
    "codebook not from data": Variant(ours(), from_data=False),
    "no restarts": Variant(ours(quantizer=lambda: codebook(restart_threshold=0.0))),
    "entropy regularisation": Variant(ours(regulariser=even_use)),
    "z_e normalised": Variant(ours(lambda: ending_in(normalisation()))),
    "cosine": Variant(
        ours(
            lambda: ending_in(layers.UnitNormalization(dtype="float32")),
            lambda: CosineQuantizer(NUM_EMBEDDINGS, EMBEDDING_DIM),
        )
    ),
    "rotation trick": Variant(ours(quantizer=lambda: RotatingQuantizer(NUM_EMBEDDINGS, EMBEDDING_DIM))),
    "finite scalar quantisation": Variant(
        ours(lambda: convolutions(embedding_dim=3), lambda: FiniteScalarQuantizer((8, 6, 5)), commitment_cost=0.0),
        from_data=False,
    ),
    # grids
    "factor 8, four codebooks": Variant(
        ours(
            lambda: convolutions(downsampling=8, activation="leaky_relu"),
            lambda: ProductQuantizer(4, NUM_EMBEDDINGS, EMBEDDING_DIM),
            kind=SeveralCodebooks,
        )
    ),
    "two levels": Variant(TwoLevels),
}


# ----------------------------------------------------------------------------------------------------------------
# The benchmark
# ----------------------------------------------------------------------------------------------------------------


def enter(name, variant, images, seconds):
    """A `race.Contestant` of a variant, its codebook initialised; images are uint8, shape (n, SIZE, SIZE)."""
    batches = dataset.Batches(len(images), lambda i: dataset.as_float(images[i]), variant.batch_size, seed=0)
    batches.set_epoch(0)
    sample = batches.fetch(np.sort(batches.order[: train.INITIAL_SLICES]))

    def build():
        train.set_precision(train.resolve_precision(variant.precision))
        model = variant.build()
        if variant.from_data:
            model.initialise(sample)
        return model

    return race.Contestant(name, build, variant.optimizer, variant.learning_rate, batches, seconds, variant.scheduled)


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
        codes.append([some for some, _ in model.codebooks(found)])
    numbers = [number for _, number in model.codebooks(found)]
    return np.concatenate(outputs), [np.concatenate(some) for some in zip(*codes, strict=True)], numbers


def quality(images, outputs, codes, numbers, people):
    """Figures of reconstructions and codes: a dictionary.

    Args:
        images: uint8, shape (n, SIZE, SIZE).
        outputs, codes, numbers: As `reconstruct` returns them.
        people: Whose slice each is.
    """
    images = images / np.float32(255)
    summary = metrics.summarise(metrics.batch_metrics(images, outputs), people)
    used = [
        metrics.codebook_metrics(some, number, images[0].size / some[0].size)
        for some, number in zip(codes, numbers, strict=True)
    ]
    return {
        **{name: value["mean"] for name, value in summary.items()},
        **{f"{name}_ci95": value["ci95"] for name, value in summary.items()},
        "power_ratio": (realism.radial_power(outputs) / realism.radial_power(images)).tolist(),
        "bits_per_pixel": sum(one["bits_per_pixel"] for one in used),
        "entropy_bits_per_pixel": sum(one["entropy_bits_per_pixel"] for one in used),
        "codes_in_use": float(np.average([one["codes_in_use"] for one in used], weights=numbers)),
    }


def parse(argv):
    parser = argparse.ArgumentParser(description="Train variants of the VQ-VAE on the same people for the same time.")
    add = parser.add_argument
    add("--data-dir", type=Path, help="(default: the demo cohort)")
    add("--output", type=Path, required=True, help="a JSON file")
    add("--minutes", type=float, default=1.5, help="training time of each (default: %(default)s)")
    add("--variant", nargs="+", help="(default: all)")
    return parser.parse_args(argv)


def run(args):
    names = race.chosen(args, VARIANTS)
    options = train.resolve(train.parse(["--data-dir", str(args.data_dir)] if args.data_dir else []))
    data, slices, _ = dataset.prepare(**options["data"])
    if data.image_size != SIZE:
        raise run_folder.RunError(f"{args.data_dir}: slices of {data.image_size} pixels, not {SIZE}")
    seconds = 60 * args.minutes
    rows_of = {split: [one.row for one in slices if one.split == split] for split in ("train", "validation")}
    training, images = data.images[rows_of["train"]], data.images[rows_of["validation"]]
    people = [one.subject_id for one in slices if one.split == "validation"]
    contestants = [
        enter(name, VARIANTS[name], training, seconds) for name in tqdm(names, "models", leave=False, disable=None)
    ]
    race.race(contestants, seconds)
    rows = []
    for one in contestants:
        trained = one.finish()
        found = quality(images, *reconstruct(one.model, images), people)
        rows.append({"variant": one.name, **trained, **found})
        print(
            "{variant}: SSIM {ssim:.3f}, inside the head {ssim_head:.3f}, {psnr_db:.2f} dB, "
            "{examples_per_second:.0f} slices/s".format(**rows[-1]),
            flush=True,
        )
        report.write(args.output, rows, data=data.title, minutes=args.minutes, people="validation")


def main(argv=None):
    return run_folder.exit_status(run, parse(argv), "stopped; what was measured is written")


if __name__ == "__main__":
    sys.exit(main())
