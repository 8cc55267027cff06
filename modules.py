"""The two models: a VQ-VAE and a PixelCNN prior over its grid of codes.

Read from top to bottom:
1. the VQ-VAE: `VectorQuantizer`, encoder, decoder, `VQVAE`      (van den Oord et al. 2017);
2. the prior: `MaskedConv2D`, `GatedBlock`, `PixelCNN`           (van den Oord et al. 2016).

What is of neither paper stands in `extensions/`: losses; how a codebook is watched; of the prior, row
attention, maps of known codes and the head of residual levels; the fine end of the sharp decoder. `sampling.py` draws
from the prior.

Everything is written in `keras.ops`, so the models run under TensorFlow and JAX.
Images are float32 in [0, 1], shape (batch, height, width, 1); grids of codes are int32, shape
(batch, height / factor, width / factor, levels), with one level in both papers. Comments at the ends of lines give
shapes: B slices a batch, S pixels and H (or W) codes along a side, D levels of codes, K entries of a codebook, E
numbers in an entry, F filters.

Both models are used twice. A small VQ-VAE of the slice shrunk to 32 x 32 encodes it as 8 x 8 coarse codes: outline,
ventricles, rough positions. A small PixelCNN draws coarse codes; the large one draws the slice's own codes, given them.

References
    van den Oord, Vinyals, Kavukcuoglu: Neural Discrete Representation Learning, NeurIPS 2017, arXiv:1711.00937.
    van den Oord et al.: Conditional Image Generation with PixelCNN Decoders, NeurIPS 2016, arXiv:1606.05328.
    Lee et al.: Autoregressive Image Generation using Residual Quantization, CVPR 2022, arXiv:2203.01941.
"""

import functools
import math

import keras
import numpy as np
from keras import layers, ops
from tqdm import tqdm

from extensions import losses
from extensions.attention import CodeMap, DepthHead, RowAttention
from extensions.codebooks import CodebookUsage
from extensions.sharpening import between, fine_end

PACKAGE = "brain_vqvae"


def _arguments(given):  # the first `locals()` of a constructor: config.json keeps it, defaults included
    return {name: value for name, value in given.items() if name not in ("self", "kwargs", "__class__")}


# ----------------------------------------------------------------------------------------------------------------
# 1. VQ-VAE
# ----------------------------------------------------------------------------------------------------------------


class VectorQuantizer(layers.Layer):
    """Replaces each vector by the nearest entry of a learned codebook.

    The forward pass is `z_q(x) = e_k, k = argmin_j |z_e(x) - e_j|` (van den Oord et al. 2017, eq. 1 and 2); the
    backward pass copies the gradient of `z_q` to `z_e` (straight-through). The codebook learns by the codebook term of
    the objective (ibid., eq. 3).

    An entry used less than `restart_threshold` times its even share (a moving average) is dead: it moves to a
    vector of the present batch. Arithmetic is float32 under every precision policy, and no variable changes outside
    training.

    Args:
        num_embeddings: Number of codebook entries, K.
        embedding_dim: Length of each entry, E.
        restart_threshold: Share of the even use below which an entry is moved; 0 never moves one.
        seed: Seed of the restarts.

    Call arguments:
        z_e: Encoder output, shape (batch, height, width, E).
        training: Whether to count the use of the entries and to move dead ones.

    Returns:
        Three tensors: the straight-through output, shape of `z_e`; `z_q`, the chosen codebook entries, shape of
        `z_e`; `code_indices`, int32, shape (batch, height, width).

    Raises:
        ValueError: For an argument out of range, or a last axis that is not E.
    """

    DECAY = 0.99  # of the moving average of the entries' use

    def __init__(self, num_embeddings, embedding_dim, restart_threshold=0.02, seed=0, **kwargs):
        kwargs.pop("dtype", None)
        super().__init__(dtype="float32", autocast=False, **kwargs)
        if num_embeddings < 2 or embedding_dim < 1:
            raise ValueError(f"a codebook needs 2 entries of 1 number or more, not {num_embeddings} of {embedding_dim}")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.restart_threshold = restart_threshold
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape):
        if input_shape[-1] != self.embedding_dim:
            raise ValueError(f"z_e has {input_shape[-1]} channels, the codebook's entries have {self.embedding_dim}")
        shape = (self.num_embeddings, self.embedding_dim)
        limit = 1.0 / self.num_embeddings
        uniform = keras.initializers.RandomUniform(-limit, limit, seed=self.seed)
        self.entries = self.add_weight(shape, uniform, name="entries")
        self.use = self.add_weight(shape[:1], "ones", trainable=False, name="use")
        # How far restarts have moved the entries; apart, since JAX lets only the optimiser assign what it trains.
        self.moved = self.add_weight(shape, "zeros", trainable=False, name="moved")

    @property
    def codebook(self):
        """The entries as they are now, shape (K, E)."""
        # By the product their gradient is a whole tensor. TensorFlow's of a lookup is a list of rows, of which its
        # optimisers add up the squares row by row: Adam's steps become the longer, the more vectors chose an entry.
        return 1.0 * self.entries + self.moved

    def call(self, z_e, training=False):
        z_e = ops.cast(z_e, "float32")
        code_indices = self.nearest(z_e)  # (B, H, W, E) -> (B, H, W)
        z_q = ops.take(self.codebook, code_indices, axis=0)  # (B, H, W, E)
        if training:
            vectors = ops.reshape(z_e, (-1, self.embedding_dim))  # (N, E) with N = B H W
            self._restart(ops.stop_gradient(vectors), ops.reshape(code_indices, (-1,)))
        return z_e + ops.stop_gradient(z_q - z_e), z_q, code_indices  # the gradient of the first is copied to z_e

    def nearest(self, z_e):
        """Indices of the nearest entries, int32, shape of `z_e` without its last axis."""
        # |z - e|^2 = |z|^2 - 2 z.e + |e|^2, and |z|^2 is the same for every entry.
        codebook = self.codebook  # (K, E)
        distances = ops.sum(ops.square(codebook), axis=1) - 2.0 * ops.matmul(z_e, ops.transpose(codebook))  # (..., K)
        return ops.cast(ops.argmin(distances, axis=-1), "int32")  # (...)

    @staticmethod
    def codebook_and_commitment(z_e, z_q):
        """The second and the third term of eq. 3, without its weight: |sg[z_e] - e|^2 and |z_e - sg[e]|^2, means."""
        codebook = ops.mean(ops.square(ops.stop_gradient(z_e) - z_q))
        return codebook, ops.mean(ops.square(z_e - ops.stop_gradient(z_q)))

    def _restart(self, vectors, chosen):
        """Counts the use of the entries and moves dead ones to randomly chosen vectors (N, E); chosen: (N,)."""
        counts = ops.sum(ops.one_hot(chosen, self.num_embeddings, dtype="float32"), axis=0)  # (K,)
        use = self.DECAY * self.use + (1 - self.DECAY) * counts
        even_share = ops.sum(use) / self.num_embeddings
        dead = use < self.restart_threshold * even_share
        picks = keras.random.uniform((self.num_embeddings,), seed=self.seed_generator)
        number = ops.cast(ops.shape(vectors)[0], "float32")
        replacements = ops.take(vectors, ops.cast(ops.floor(picks * number), "int32"), axis=0)  # (K, E)
        self.moved.assign(ops.where(dead[:, None], replacements - self.entries, self.moved.value))
        self.use.assign(ops.where(dead, even_share, use))

    def set_codebook(self, codebook):
        """Sets the entries, NumPy (K, E), and resets the averages of their use."""
        self.entries.assign(codebook)
        self.moved.assign(np.zeros_like(codebook))
        self.use.assign(np.ones(self.num_embeddings, "float32"))


def leaky_relu(x):
    """x, and a tenth of it below 0. TensorFlow's graph optimiser merges its own with a sum before it, wrongly."""
    return ops.where(x > 0, x, 0.1 * x)


ACTIVATIONS = {"relu": layers.ReLU, "leaky_relu": functools.partial(layers.Activation, leaky_relu)}


def residual_block(x, name, activation="relu", last_initializer="glorot_uniform"):
    """x + conv1x1(relu(conv3x3(relu(x)))), with half the channels inside (van den Oord et al. 2017, section 4.1)."""
    filters = x.shape[-1]
    y = ACTIVATIONS[activation](name=f"{name}_activation1")(x)
    y = layers.Conv2D(filters // 2, 3, padding="same", name=f"{name}_conv3x3")(y)
    y = ACTIVATIONS[activation](name=f"{name}_activation2")(y)
    y = layers.Conv2D(filters, 1, kernel_initializer=last_initializer, name=f"{name}_conv1x1")(y)
    return layers.Add(name=f"{name}_add")([x, y])


@ops.custom_gradient
def clip_to_unit(x):
    """Cuts values to [0, 1]. Outside, only a gradient that leads back inside is passed.

    With none at all, as from a ReLU, a pixel can be stuck at black; with all of it, values drift away from 0 unbounded.
    """

    def gradient(*args, upstream=None):  # TensorFlow gives it by name, JAX by place
        upstream = args[0] if upstream is None else upstream
        outward = ops.logical_or(ops.logical_and(x < 0, upstream > 0), ops.logical_and(x > 1, upstream < 0))
        return ops.where(outward, ops.zeros_like(upstream), upstream)

    return ops.clip(x, 0.0, 1.0), gradient


def build_encoder(image_size, downsampling, base_filters, num_residual_blocks, embedding_dim, activation):
    """Functional model: images (B, S, S, 1) -> z_e (B, S / downsampling, S / downsampling, E), float32."""
    x = inputs = keras.Input((image_size, image_size, 1), name="image")
    for stage in range(int(math.log2(downsampling))):
        x = layers.Conv2D(base_filters * 2**stage, 4, 2, padding="same", name=f"down{stage}")(x)  # S halved, F doubled
        x = ACTIVATIONS[activation](name=f"down{stage}_activation")(x)
    for block in range(num_residual_blocks):
        x = residual_block(x, f"residual{block}", activation)
    z_e = layers.Conv2D(embedding_dim, 1, dtype="float32", name="z_e")(x)  # (B, H, W, E)
    return keras.Model(inputs, z_e, name="encoder")


def build_decoder(
    image_size, downsampling, base_filters, num_residual_blocks, embedding_dim, activation, fine_blocks=0, beside=0
):
    """Functional model: z_q (B, S / downsampling, S / downsampling, E) -> images in [0, 1], (B, S, S, 1), float32.

    With `beside` it is told as many z_q of slices below and above, too: (2 beside + 1) E numbers a place.

    The images end in `clip_to_unit`: the background of a slice is exactly 0, and a network that ends in a sigmoid or in
    nothing can only come near it, at a price in SSIM that has nothing to do with the brain.

    The sharp decoder has `fine_blocks` more residual blocks at each finer size, and a fine end; see
    `extensions.sharpening.with_fine_blocks`. They begin as nothing: their last weights are 0.
    """
    grid = image_size // downsampling
    stages = int(math.log2(downsampling))
    x = inputs = keras.Input((grid, grid, (2 * beside + 1) * embedding_dim), name="z_q")
    x = layers.Conv2D(base_filters * 2 ** (stages - 1), 3, padding="same", name="project")(x)  # (B, H, W, F)
    for block in range(num_residual_blocks):
        x = residual_block(x, f"residual{block}", activation)
    for stage in reversed(range(1, stages)):
        x = ACTIVATIONS[activation](name=f"up{stage}_activation")(x)
        filters = base_filters * 2 ** (stage - 1)
        x = layers.Conv2DTranspose(filters, 4, 2, padding="same", name=f"up{stage}")(x)  # sides doubled, F halved
        for block in range(fine_blocks):
            x = residual_block(x, f"fine{stage}_{block}", activation, "zeros")
    x = ACTIVATIONS[activation](name="up0_activation")(x)
    y = layers.Conv2DTranspose(1, 4, 2, padding="same", name="up0")(x)  # (B, S, S, 1)
    if fine_blocks:
        y = fine_end(x, y, base_filters // 2, ACTIVATIONS[activation])
    images = layers.Activation(clip_to_unit, dtype="float32", name="image")(y)
    return keras.Model(inputs, images, name="decoder")


@keras.saving.register_keras_serializable(PACKAGE)
class VQVAE(keras.Model):
    """Vector-quantised variational autoencoder (van den Oord et al. 2017).

    The objective is eq. 3 of the paper, with means in place of sums:
    `reconstruction + |sg[z_e] - e|^2 + commitment_cost * |z_e - sg[e]|^2`.

    With more than one level, each further codebook codes what the levels before left over, and z_q is the sum of the
    chosen entries (residual quantisation: Lee et al. 2022, section 3.1); the last two terms are summed over the levels.
    With none it is an autoencoder: `train.py` begins with that.

    Args:
        image_size: Side of the square images in pixels, a multiple of `downsampling`.
        downsampling: Pixels per code along each axis: 2, 4, 8 or 16.
        base_filters: Channels after the first strided convolution; each further one doubles them.
        num_residual_blocks: Residual blocks on the code grid, in the encoder and again in the decoder. With none and
            `downsampling=4`, encoder and decoder have three convolutions each.
        activation: "relu", "leaky_relu" (slope 0.1 below 0), or "auto": the first up to a downsampling of 4, where it
            is a little better; the second beyond, where whole networks of ReLUs die and leave every slice black.
        fine_blocks: Residual blocks of the decoder at each size finer than the code grid: see `build_decoder`.
        beside: Slices on either side whose z_q the decoder is told, where it decodes a stack of them.
        num_embeddings, embedding_dim, restart_threshold: See `VectorQuantizer`; those of each level.
        num_quantizers: Levels of codes, D.
        commitment_cost: Weight of the commitment term, beta.
        reconstruction_loss: "l1", "l2" or "l1_ssim".
        ssim_weight: Weight of (1 - SSIM) in "l1_ssim".
        seed: Seed of the codebook's restarts.

    Call arguments:
        images: float32 in [0, 1], shape (batch, image_size, image_size, 1).

    Returns:
        A dictionary: `reconstruction` like the images; `z_e` and `z_q`, shape (batch, grid, grid, E); `entries`, of
        each level, shape (batch, grid, grid, D, E); `code_indices`, int32, shape (batch, grid, grid, D).

    Raises:
        ValueError: If a size does not fit, or the loss is unknown.
    """

    def __init__(
        self,
        image_size,
        downsampling=4,
        base_filters=32,
        num_residual_blocks=2,
        activation="auto",
        fine_blocks=0,
        beside=0,
        num_embeddings=256,
        embedding_dim=64,
        num_quantizers=1,
        restart_threshold=0.02,
        commitment_cost=0.25,
        reconstruction_loss="l1_ssim",
        ssim_weight=0.3,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if downsampling not in (2, 4, 8, 16):
            raise ValueError(f"downsampling must be 2, 4, 8 or 16, not {downsampling}")
        if image_size < 16 or image_size % downsampling:
            raise ValueError(f"image_size must be 16 or more and a multiple of {downsampling}, not {image_size}")
        if base_filters < 2 or num_residual_blocks < 0:
            raise ValueError(
                f"base_filters must be 2 or more, not {base_filters}; blocks 0 or more, not {num_residual_blocks}"
            )
        if num_quantizers < 0:
            raise ValueError(f"num_quantizers must be 0 or more, not {num_quantizers}")
        if activation == "auto":
            activation = "relu" if downsampling <= 4 else "leaky_relu"
        if activation not in ACTIVATIONS:
            raise ValueError(f'activation must be "auto", "relu" or "leaky_relu", not {activation!r}')
        if reconstruction_loss not in ("l1", "l2", "l1_ssim"):
            raise ValueError(f'reconstruction_loss must be "l1", "l2" or "l1_ssim", not {reconstruction_loss!r}')
        self._config = _arguments(locals())
        self.image_size, self.downsampling, self.grid_size = image_size, downsampling, image_size // downsampling
        self.commitment_cost = commitment_cost
        self.reconstruction_loss, self.ssim_weight = reconstruction_loss, ssim_weight
        sizes = (image_size, downsampling, base_filters, num_residual_blocks, embedding_dim, activation)
        self.encoder = build_encoder(*sizes)
        of_level = (num_embeddings, embedding_dim, restart_threshold)
        quantizers = [VectorQuantizer(*of_level, seed + 100 * level) for level in range(num_quantizers)]
        self.quantizer, self.finer = quantizers[0] if quantizers else None, quantizers[1:]
        self.decoder, self.beside = build_decoder(*sizes, fine_blocks, beside), beside
        self.num_embeddings, self.num_quantizers = num_embeddings, num_quantizers
        self.reconstruction_tracker = keras.metrics.Mean(name="reconstruction_loss")
        self.commitment_tracker = keras.metrics.Mean(name="commitment_loss")
        self.usage_trackers = [CodebookUsage(num_embeddings, level) for level in range(num_quantizers)]
        for quantizer in quantizers:
            quantizer.build(self.encoder.output_shape)
        self.built = True

    def levels(self):
        """The `VectorQuantizer` of each level, the first one first."""
        return [self.quantizer, *self.finer] if self.num_quantizers else []

    @property
    def codebooks(self):
        """The entries of all levels as they are now, NumPy (D, K, E)."""
        return np.stack([ops.convert_to_numpy(level.codebook) for level in self.levels()])

    def call(self, images, training=False):
        z_e = self.encoder(images, training=training)
        if not self.num_quantizers:
            return {"reconstruction": self.decoder(z_e, training=training), "z_e": z_e}
        straight_through, entries, code_indices = self.choose_entries(z_e, training)
        reconstruction = self.decoder(between(straight_through, self.beside, alone=True), training=training)
        z_q = ops.sum(entries, axis=-2)  # (B, H, W, D, E) -> (B, H, W, E)
        outputs = {"reconstruction": reconstruction, "z_e": z_e, "z_q": z_q}
        return outputs | {"entries": entries, "code_indices": code_indices}

    def choose_entries(self, z_e, training=False):
        """The straight-through output, shape of `z_e`; entries (B, H, W, D, E) and codes (B, H, W, D) of the levels."""
        straight_through, left, entries, codes = 0.0, z_e, [], []
        for level in self.levels():
            through, chosen, indices = level(left, training=training)
            # The gradient goes through the first level; the finer ones only add to it.
            straight_through = straight_through + ops.stop_gradient(through) if entries else through
            left = left - ops.stop_gradient(chosen)
            entries.append(chosen)
            codes.append(indices)
        return straight_through, ops.stack(entries, axis=-2), ops.stack(codes, axis=-1)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = losses.reconstruction_loss(x, y_pred["reconstruction"], self.reconstruction_loss, self.ssim_weight)
        self.reconstruction_tracker.update_state(loss)
        if self.num_quantizers:
            entries = y_pred["entries"]
            before = ops.stop_gradient(ops.cumsum(entries, axis=-2) - entries)  # the sum of the levels before
            left = y_pred["z_e"][..., None, :] - before  # (B, H, W, D, E)
            codebook, commitment = self.quantizer.codebook_and_commitment(left, entries)  # means over the levels
            loss += self.num_quantizers * (codebook + self.commitment_cost * commitment)
            self.commitment_tracker.update_state(self.num_quantizers * commitment)
        return loss

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        for level, tracker in enumerate(self.usage_trackers):
            tracker.update_state(y_pred["code_indices"][..., level])
        return self.get_metrics_result()

    def encode(self, images):
        """Codes of float32 images (n, image_size, image_size, 1): NumPy int32, shape (n, grid, grid, D)."""
        return self._in_batches(lambda x: self.choose_entries(self.encoder.predict_on_batch(x))[-1], images)

    def reconstruct(self, images):
        """What the model makes of images (n, image_size, image_size, 1): NumPy, the same shape."""
        return self._in_batches(lambda x: self.predict_on_batch(x)["reconstruction"], images)

    def decode(self, code_indices):
        """Images of NumPy codes (n, grid, grid, D): NumPy float32 in [0, 1], shape (n, image_size, image_size, 1).

        Raises:
            ValueError: For codes of another shape, or that the codebooks do not have.
        """
        return self.decode_vectors(self.vectors(code_indices))

    def vectors(self, code_indices):
        """z_q of NumPy codes (n, grid, grid, D), the sum of their entries: NumPy float32 (n, grid, grid, E)."""
        grid, most = (self.grid_size, self.grid_size, self.num_quantizers), self.num_embeddings - 1
        if code_indices.shape[1:] != grid:
            raise ValueError(f"codes have shape (n, {', '.join(map(str, grid))}), not {code_indices.shape}")
        if code_indices.size and not 0 <= code_indices.min() <= code_indices.max() <= most:
            raise ValueError(f"codes are 0 to {most}, not {code_indices.min()} to {code_indices.max()}")
        return sum(codebook[code_indices[..., level]] for level, codebook in enumerate(self.codebooks))

    def decode_vectors(self, z_q, stack=False):
        """Images of NumPy vectors (n, grid, grid, E), sums of codebook entries; `stack`: of one scan, from the lowest.

        Slices of a stack are decoded with those beside them, where the decoder takes them.
        """
        z_q = ops.convert_to_numpy(between(z_q, self.beside, alone=not stack))
        return self._in_batches(self.decoder.predict_on_batch, z_q)

    AT_ONCE = 32  # images encoded and grids decoded: one size, so that an image is rounded alike in every batch

    def _in_batches(self, function, x):
        """Applies a function to `AT_ONCE` rows of x at a time, the last ones filled up with zeros."""
        done = []
        for start in range(0, max(1, len(x)), self.AT_ONCE):
            batch = x[start : start + self.AT_ONCE]
            filled = np.pad(batch, ((0, self.AT_ONCE - len(batch)), *[(0, 0)] * (x.ndim - 1)))
            done.append(ops.convert_to_numpy(function(filled))[: len(batch)])
        return np.concatenate(done)

    def get_config(self):
        return dict(self._config)


# ----------------------------------------------------------------------------------------------------------------
# 2. PixelCNN prior
# ----------------------------------------------------------------------------------------------------------------


class MaskedConv2D(layers.Layer):
    """A masked convolution that stores only the part of its kernel that the mask lets through.

    A PixelCNN predicts codes in raster order, so the code at (row, column) may be told only of codes above it and
    codes left of it in its own row. Two stacks of convolutions share the work (van den Oord et al. 2016,
    section 2.2, figure 1):

        stack="vertical", kernel (3, 5):     stack="horizontal", kernel (1, 3):
            1 1 1 1 1                            . . . . .
            1 1 1 1 1                            . . . . .
            1 1 X 1 1                            1 1 X . .

    `mask_type="B"` includes the row (vertical) or code (horizontal) marked X, for inputs that are already shifted;
    `mask_type="A"`, for the codes themselves, is the same kernel moved up by one row or left by one column. A dilated
    horizontal kernel skips codes, and so reaches along a row in few layers. The kernel is kept as a matrix, which is
    how the optimiser (Muon) and the sampler take it.

    Args:
        filters: Number of output channels.
        kernel_size: (rows, columns) of the part that is not masked; columns are odd in a vertical stack, rows are 1
            in a horizontal one.
        stack: "vertical" or "horizontal".
        mask_type: "A" or "B".
        dilation: Columns from one element of a horizontal kernel to the next.

    Call arguments:
        x: Features, shape (batch, height, width, channels).

    Returns:
        Features of shape (batch, height, width, filters).
    """

    def __init__(self, filters, kernel_size, stack, mask_type, dilation=1, **kwargs):
        super().__init__(**kwargs)
        rows, columns = kernel_size
        if mask_type not in ("A", "B") or stack not in ("vertical", "horizontal"):
            raise ValueError(f'stack is "vertical" or "horizontal", mask_type "A" or "B", not {stack!r}, {mask_type!r}')
        if (stack == "vertical" and columns % 2 == 0) or (stack == "horizontal" and rows != 1):
            raise ValueError(f"a {stack} kernel cannot be {rows} x {columns}: odd columns, or a single row")
        if dilation < 1 or (stack == "vertical" and dilation != 1):
            raise ValueError(f"dilation is 1 or more in a horizontal kernel and 1 in a vertical one, not {dilation}")
        self.filters, self.kernel_size = filters, (rows, columns)
        self.stack, self.mask_type, self.dilation = stack, mask_type, dilation

    def build(self, input_shape):
        self.patch_size = (*self.kernel_size, input_shape[-1])
        shape = (math.prod(self.patch_size), self.filters)
        self.kernel = self.add_weight(shape=shape, initializer="glorot_uniform", name="kernel")
        self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias")

    def call(self, x):
        rows, columns = self.kernel_size
        shift = 1 if self.mask_type == "A" else 0
        if self.stack == "vertical":
            x = x[:, : x.shape[1] - shift]  # (B, H - shift, W, C)
            pads = ((rows - 1 + shift, 0), (columns // 2, columns // 2))
        else:
            x = x[:, :, : x.shape[2] - shift]  # (B, H, W - shift, C)
            pads = ((0, 0), ((columns - 1) * self.dilation + shift, 0))
        return self._convolve(ops.pad(x, ((0, 0), *pads, (0, 0))))  # the kernel's reach wider -> (B, H, W, F)

    def _convolve(self, x):
        kernel = ops.reshape(self.kernel, (*self.patch_size, self.filters))  # (rows, columns, C, F)
        return ops.conv(x, kernel, padding="valid", dilation_rate=(1, self.dilation)) + self.bias

    # For sampling.py: the same for one row, and for one code.

    def row(self, window):
        """One row of a vertical stack, from the `rows` input rows under its kernel: (B, rows, W, C) -> (B, 1, W, F)."""
        side = self.kernel_size[1] // 2
        return self._convolve(ops.pad(window, ((0, 0), (0, 0), (side, side), (0, 0))))

    def position(self, inputs):
        """One code of a horizontal stack, from those under its kernel, left to right: `columns` (B, C) -> (B, F)."""
        return ops.matmul(ops.concatenate(inputs, axis=-1), self.kernel) + self.bias


def gate(x):
    """tanh(first half of the channels) * sigmoid(second half): van den Oord et al. 2016, eq. 2."""
    features, gates = ops.split(x, 2, axis=-1)  # (..., 2 F) -> two of (..., F)
    return ops.tanh(features) * ops.sigmoid(gates)


class GatedBlock(layers.Layer):
    """One layer of the gated PixelCNN: both stacks, gates, conditioning (van den Oord et al. 2016, figure 2, eq. 4).

    The vertical stack sees the rows above; its features before the gate are added, through a 1 x 1 convolution, to the
    horizontal stack, which also sees the codes to the left. A block of mask type B adds its input to its output, here
    in both stacks and in the paper in the horizontal one alone; type A cannot, since its input holds the very codes to
    be predicted.

    The maths stands in three methods, `conditioning`, `vertical` and `horizontal`, which `call` applies to whole grids
    and the sampler to single rows and codes.

    Args:
        filters: Channels of both stacks.
        vertical_kernel: (rows, columns) of the vertical stack's masked kernel.
        horizontal_kernel: Columns of the horizontal stack's masked kernel.
        mask_type: "A" for the first block, "B" for all others.
        dilation: Columns from one element of the horizontal kernel to the next.
        dropout: Share of gated features dropped in training.

    Call arguments:
        v, h: Inputs of the vertical and the horizontal stack, shape (batch, height, width, channels).
        condition: Shape (batch, features).

    Returns:
        The outputs of both stacks, each of shape (batch, height, width, filters).
    """

    def __init__(
        self, filters, vertical_kernel, horizontal_kernel, mask_type, dilation=1, dropout=0.0, seed=0, **kwargs
    ):
        super().__init__(**kwargs)
        self.mask_type = mask_type
        self.vertical_conv = MaskedConv2D(2 * filters, vertical_kernel, "vertical", mask_type)
        self.horizontal_conv = MaskedConv2D(2 * filters, (1, horizontal_kernel), "horizontal", mask_type, dilation)
        self.vertical_to_horizontal = layers.Dense(2 * filters)
        self.vertical_out = layers.Dense(filters)
        self.horizontal_out = layers.Dense(filters)
        self.condition_projection = layers.Dense(4 * filters, use_bias=False)
        self.vertical_dropout = layers.Dropout(dropout, seed=seed)
        self.horizontal_dropout = layers.Dropout(dropout, seed=seed + 1)
        self.built = True  # its layers are, when they are first called

    def conditioning(self, condition):
        """What is added before the two gates: (B, features) -> two of (B, 2 filters)."""
        return ops.split(self.condition_projection(condition), 2, axis=-1)

    def vertical(self, convolved, v, bias, training=False):
        """The vertical stack after its convolution; returns its output and its message to the horizontal stack."""
        out = self.vertical_out(self.vertical_dropout(gate(convolved + bias), training=training))  # 2 F -> F
        return out if self.mask_type == "A" else out + v, self.vertical_to_horizontal(convolved)

    def horizontal(self, convolved, h, message, training=False):
        """The horizontal stack after its convolution; the message has the condition's bias added."""
        out = self.horizontal_out(self.horizontal_dropout(gate(convolved + message), training=training))  # 2 F -> F
        return out if self.mask_type == "A" else out + h

    def call(self, v, h, condition, training=False):
        v_bias, h_bias = (bias[:, None, None] for bias in self.conditioning(condition))  # (B, 1, 1, 2 F)
        v, message = self.vertical(self.vertical_conv(v), v, v_bias, training)
        return v, self.horizontal(self.horizontal_conv(h), h, message + h_bias, training)


def dilations_of(grid_size, num_blocks, most=None):
    """Dilations of the horizontal kernels, block by block: 1, 2, 4, 1, 2, 4, 1, 2 for a grid of 28 and 8 blocks.

    They double up to `most`, a quarter of the grid where it is None, and start again.
    """
    most = max(1, grid_size // 4) if most is None else most
    if most < 1:
        raise ValueError(f"max_dilation must be 1 or more, not {most}")
    return [2 ** (block % most.bit_length()) for block in range(num_blocks)]


CHANGES = 3  # numbers that say how a slice was changed before it was encoded: mirrored, moved down, moved right
WAVES = 16  # cosines that the slice position is told as


@keras.saving.register_keras_serializable(PACKAGE)
class PixelCNN(keras.Model):
    """Gated PixelCNN: p(codes | label, slice position, maps) as a product over codes in raster order.

    `p(x) = prod_i p(x_i | x_1, ..., x_{i-1}, h)` (van den Oord et al. 2016, eq. 1 and 3), where h is the label, the
    slice position, and grids of other codes, if the prior has any (`maps`). Where a place has codes of several levels,
    they follow each other: `p(x_i) = prod_d p(x_id | x_i1, ..., x_i,d-1, those before i, h)`. The network runs once a
    place, and a small head tells each further level (`DepthHead`).

    A code enters as a row of a table of its own plus a projection of its entry in the VQ-VAE's codebook, which stays as
    it is (`set_codebooks`): codes that look alike begin alike, and a table alone takes long to find out which do. Of
    several levels, the first has the table, and the sum of the entries is projected.

    Args:
        num_embeddings: Number of codes of a level, K.
        embedding_dim: Length of the codebooks' entries, E.
        grid_size: Codes along each side of the square grid.
        num_labels: Number of known labels; a label is 1 ... num_labels, and 0 says that it is not known.
        maps: The grids of codes that are told beforehand: a dictionary of `num_embeddings`, `grid_size` and, where it
            is not 1, `num_quantizers` for each, by the name under which `inputs` has it.
        num_quantizers: Levels of codes, D.
        filters: Channels of both stacks.
        num_blocks: Gated blocks, the first of mask type A.
        vertical_kernel: (rows, columns) of the vertical stack's masked kernels.
        max_dilation: See `dilations_of`.
        horizontal_kernel: Columns of the horizontal stack's masked kernels; None takes the smallest from 3 on that
            reaches across a whole row.
        attention_every: A row attention after each so many blocks, but for the last; 0 for none.
        dropout: Share of gated features dropped in training.
        vqvae_fingerprint: `running.models.fingerprint` of the VQ-VAE whose codes these are; kept with the weights, so
            that a prior is not used with codes of another codebook.
        seed: Seed of the dropout.

    Call arguments:
        inputs: A dictionary: `codes`, int32, shape (batch, grid, grid, D); `label`, int32, shape (batch,);
            `slice_position`, float32 in [0, 1] from the lowest slice to the highest, shape (batch,); the grids of
            `maps`, by their names, -1 where a code is not known, as in a whole grid that is left out; `change`,
            float32, shape (batch, 3): whether the slice is mirrored, how far it is moved down and right, in units of
            the farthest. Without it, slices are as they are.

    Returns:
        Logits, float32, shape (batch, grid, grid, D, K); those of a level at (r, c) depend only on codes before (r, c)
        and on those of the levels before it there.

    Raises:
        ValueError: If the receptive field does not cover the grid.
    """

    def __init__(
        self,
        num_embeddings,
        embedding_dim,
        grid_size,
        num_labels=0,
        maps=None,
        num_quantizers=1,
        filters=64,
        num_blocks=8,
        vertical_kernel=(2, 3),
        max_dilation=None,
        horizontal_kernel=None,
        attention_every=4,
        dropout=0.0,
        vqvae_fingerprint="",
        seed=0,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)  # slice positions stay float32
        if num_blocks < 2:
            raise ValueError(f"num_blocks must be 2 or more, not {num_blocks}")
        self._config = _arguments(locals())
        self.vqvae_fingerprint = vqvae_fingerprint
        self.num_embeddings, self.embedding_dim, self.num_quantizers = num_embeddings, embedding_dim, num_quantizers
        self.grid_size, self.num_labels, self.filters = grid_size, num_labels, filters
        self.vertical_kernel = tuple(vertical_kernel)  # a list, once it has been JSON
        self.dilations = dilations_of(grid_size, num_blocks, max_dilation)
        # A block of dilation d reaches d (k - 1) codes to the left, the first one more.
        across = max(3, 1 + math.ceil((grid_size - 2) / sum(self.dilations)))
        self.horizontal_kernel = horizontal_kernel or across
        small, wide = keras.initializers.RandomNormal(0, 0.02), keras.initializers.RandomNormal(0, 1)
        entries = (num_quantizers * num_embeddings, embedding_dim)  # of all levels, one below the other
        self.codebook = self.add_weight(entries, wide, trainable=False, name="codebook")
        self.row_embedding = self.add_weight((grid_size, 1, filters), small, name="rows")
        self.column_embedding = self.add_weight((1, grid_size, filters), small, name="columns")
        self.code_embedding = layers.Embedding(num_embeddings, filters, name="code_embedding")
        self.codebook_projection = layers.Dense(filters, use_bias=False, name="codebook_projection")
        # At Keras's own start, of 0.05, labels are drowned by the slice position's features for many epochs.
        self.label_embedding = layers.Embedding(num_labels + 1, filters, wide, name="label_embedding")
        self.slice_position_projection = layers.Dense(filters, name="slice_position_projection")
        self.change_projection = layers.Dense(filters, use_bias=False, name="change_projection")
        self.maps = {
            name: CodeMap(**sizes, output_size=grid_size, filters=filters, name=name)
            for name, sizes in (maps or {}).items()
        }
        self.blocks = [
            GatedBlock(
                filters,
                self.vertical_kernel,
                self.horizontal_kernel,
                mask_type="B" if block else "A",
                dilation=dilation,
                dropout=dropout,
                seed=seed + 2 * block,
                name=f"block{block}",
            )
            for block, dilation in enumerate(self.dilations)
        ]
        self.attentions = [  # None after a block that has none
            RowAttention(grid_size, filters, name=f"attention{block}")
            if attention_every and (block + 1) % attention_every == 0
            else None
            for block in range(num_blocks - 1)
        ] + [None]
        self.hidden = layers.Dense(filters, activation="relu", name="hidden")
        self.logits = layers.Dense(num_embeddings, dtype="float32", name="logits")
        self.depth_heads = [
            DepthHead(num_embeddings, 2 * filters, name=f"depth{level}") for level in range(1, num_quantizers)
        ]
        self._assert_receptive_field()
        self.bits_tracker = keras.metrics.Mean(name="bits_per_code")
        self.built = True  # by this one call of all layers
        blank = {"codes": np.zeros((1, grid_size, grid_size, num_quantizers), "int32"), "label": np.zeros(1, "int32")}
        self(blank | {"slice_position": np.zeros(1, "float32")})

    def set_codebooks(self, codebooks):
        """Takes over a VQ-VAE's codebooks, NumPy (D, K, E): the first moved and scaled to mean 0 and variance 1."""
        scaled = codebooks / codebooks[0].std()
        scaled[0] -= scaled[0].mean(axis=0)
        self.codebook.assign(scaled.reshape(self.codebook.shape))

    def entries(self, codes):
        """The codebooks' entries of codes: (..., D) -> (..., D, E)."""
        return ops.take(self.codebook, codes + self.num_embeddings * np.arange(self.num_quantizers), axis=0)

    def embed(self, codes):
        """What enters both stacks for the codes of a place: (..., D) -> (..., filters)."""
        return self.code_embedding(codes[..., 0]) + self.codebook_projection(ops.sum(self.entries(codes), axis=-2))

    def condition(self, inputs):
        """Label (B,), slice position (B,) and change (B, 3) as one vector (B, filters); the position as cosines."""
        waves = ops.cos(math.pi * inputs["slice_position"][:, None] * ops.arange(WAVES, dtype="float32"))  # (B, 16)
        features = self.label_embedding(inputs["label"]) + self.slice_position_projection(waves)
        change = inputs["change"] if "change" in inputs else ops.zeros((1, CHANGES))
        return ops.silu(features + self.change_projection(change))

    def place_features(self, inputs):
        """What is known of each place: a learned embedding of it, and the maps. (B or 1, grid, grid, filters)."""
        features = ops.cast(self.row_embedding + self.column_embedding, self.compute_dtype)[None]
        for name, code_map in self.maps.items():
            unknown = ops.full((1, *code_map.codes_shape), -1, "int32")
            features = features + code_map(inputs.get(name, unknown))
        return features

    def to_logits(self, v, h):
        """Features of each place, (..., F), from those of both stacks, and the first level's logits, float32 (..., K).

        The logits of a further level d are `depth_heads[d - 1](features, sum of the entries of the levels before)`.
        """
        features = ops.relu(v + h)
        return features, self.logits(self.hidden(features))

    def call(self, inputs, training=False):
        condition = self.condition(inputs)  # (B, F)
        places = self.place_features(inputs)  # (B, H, W, F)
        v = h = self.embed(inputs["codes"])  # (B, H, W, D) -> (B, H, W, F)
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            v, h = block(v, h, condition, training=training)  # each (B, H, W, F)
            if block is self.blocks[0]:  # whose input is the codes alone, and which hands nothing of it on
                v, h = v + places, h + places
            if attention:
                v = attention(v)
        features, first = self.to_logits(v, h)  # (B, H, W, F), (B, H, W, K)
        before = ops.unstack(ops.cumsum(self.entries(inputs["codes"]), axis=-2), axis=-2)  # sums up to each level
        finer = [head(features, known) for head, known in zip(self.depth_heads, before[:-1], strict=True)]
        return ops.stack([first, *finer], axis=-2)  # (B, H, W, D, K)

    def distribution(self, inputs):
        """The distribution of the codes, given those before each: what `call` gives the logits of.

        With the same codes in `inputs`, minus its `log_prob(codes)` is the length of each grid in nats, shape (batch,);
        its `distribution`, a categorical one for each code, says what each takes, shape (batch, grid, grid, D).

        Returns:
            TensorFlow Probability's `Independent(Categorical)`: TensorFlow's own, NumPy's under other backends.
        """
        logits = self(inputs)
        if keras.backend.backend() == "tensorflow":
            from tensorflow_probability import distributions as tfd
        else:  # the release for JAX does not keep up with JAX
            from tensorflow_probability.substrates.numpy import distributions as tfd

            logits = ops.convert_to_numpy(logits)
        return tfd.Independent(tfd.Categorical(logits), 3)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        nats = ops.mean(ops.sparse_categorical_crossentropy(x["codes"], y_pred, from_logits=True))  # (B, H, W, D) -> ()
        self.bits_tracker.update_state(nats / math.log(2.0))
        return nats

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return self.get_metrics_result()

    def _assert_receptive_field(self):
        """Raises ValueError if a logit cannot depend on every code before it, by the kernels and the attention."""
        last, blocks = self.grid_size - 1, len(self.blocks)
        rows, columns = self.vertical_kernel
        left = 1 + sum(dilation * (self.horizontal_kernel - 1) for dilation in self.dilations)
        up, sideways = 1 + blocks * (rows - 1), blocks * (columns // 2)
        if left < last or not (any(self.attentions) or (up >= last and sideways >= last)):
            raise ValueError(
                f"the receptive field does not cover a {self.grid_size} x {self.grid_size} grid: take more blocks, a "
                "larger kernel or attention"
            )

    def get_config(self):
        return dict(self._config)


def code_lengths(prior, inputs):
    """Bits that each code of some grids costs under a `PixelCNN`, -log2 p(code).

    Args:
        prior, inputs: The model and what it is fed, with the codes: see its `call`.

    Returns:
        float32, shape of inputs["codes"].
    """
    bits = []
    for start in tqdm(range(0, max(1, len(inputs["label"])), 32), "code lengths", leave=False, disable=None):
        batch = {name: values[start : start + 32] for name, values in inputs.items()}
        batch["codes"] = batch["codes"].astype("int32")
        nats = -prior.distribution(batch).distribution.log_prob(batch["codes"])
        bits.append(keras.ops.convert_to_numpy(nats) / math.log(2))
    return np.concatenate(bits)
