"""An optional phase after stage 1: the decoder learns texture from a discriminator, the codes stay as they are.

Losses that compare pixel by pixel are smallest for the mean of all slices that share the codes, and a mean is a blur.
Here a discriminator looks at patches and tells reconstructions from slices, and the decoder learns to pass for real, as
in VQGAN. Encoder and codebook are not touched: every grid of codes means what it meant, and a prior stays valid.

The loss stays one function of one model, so that Keras's own training loop fits it under every backend: where the
decoder learns, the discriminator's weights are held by `stop_gradient`, and the reverse. The weight of the adversarial
term adapts in the backward pass (`equal_pull`).

References
    Esser, Rombach, Ommer: Taming Transformers for High-Resolution Image Synthesis, CVPR 2021, arXiv:2012.09841.
    Isola, Zhu, Zhou, Efros: Image-to-Image Translation with Conditional Adversarial Networks, CVPR 2017,
        arXiv:1611.07004. The discriminator of patches.
    Lim, Ye: Geometric GAN, 2017, arXiv:1705.02894. The hinge loss.
    Tseng et al.: Regularizing Generative Adversarial Networks under Limited Data, CVPR 2021, arXiv:2104.03310. LeCam.
"""

import keras
import numpy as np
from keras import layers, ops

from extensions import losses

BESIDE = 2  # slices on either side that the decoder of a run with --neighbours is told
EVERY = 4  # rows and columns from one side view to the next
SHARE_ALONE = 0.25  # of slices of a stack that are decoded as if they were alone


def fine_end(x, image, filters, activation):
    """Adds fine detail to the last layer of a decoder: x, (B, S / 2, S / 2, F), its features; image, (B, S, S, 1)."""
    x = layers.Conv2DTranspose(filters, 4, 2, padding="same", name="fine0")(x)  # (B, S, S, filters)
    x = activation(name="fine0_activation")(x)
    x = layers.Conv2D(1, 3, padding="same", kernel_initializer="zeros", name="fine0_conv3x3")(x)
    return layers.Add(name="fine0_add")([image, x])


def between(z_q, number, alone):
    """z_q of the slices of a stack (s, H, W, E), each between those of `number` slices below and above it.

    Beyond the ends stands the last slice; `alone`: zeros stand for all others. Returns (s, H, W, (2 number + 1) E).
    """
    if not number:
        return z_q
    if alone:
        width = number * z_q.shape[-1]
        return ops.pad(z_q, ((0, 0), (0, 0), (0, 0), (width, width)))
    last = ops.shape(z_q)[0] - 1
    places = ops.arange(last + 1)[:, None] + np.arange(-number, number + 1)  # (s, 2 number + 1)
    told = ops.take(z_q, ops.clip(places, 0, last), axis=0)  # (s, 2 number + 1, H, W, E)
    return ops.reshape(ops.transpose(told, (0, 2, 3, 1, 4)), (-1, *z_q.shape[1:3], (2 * number + 1) * z_q.shape[-1]))


def with_fine_blocks(vqvae, number, beside=0):
    """A VQ-VAE of the same codes and the same images, whose decoder has so many fine blocks to be trained further.

    And it takes the z_q of `beside` slices on either side, whose weights begin as 0.
    """
    finer = type(vqvae)(**vqvae.get_config() | {"fine_blocks": number, "beside": beside})
    finer.encoder.set_weights(vqvae.encoder.get_weights())
    for level, trained in zip(finer.levels(), vqvae.levels(), strict=True):
        level.set_weights(trained.get_weights())
    for layer in vqvae.decoder.layers:
        weights = layer.get_weights()
        if layer.name == "project":
            width = beside * weights[0].shape[2]
            weights[0] = np.pad(weights[0], ((0, 0), (0, 0), (width, width), (0, 0)))
        finer.decoder.get_layer(layer.name).set_weights(weights)
    return finer


def build_discriminator(filters=32, name="discriminator"):
    """Functional model: images (B, h, w, 1) -> logits of patches, float32, (B, h / 8, w / 8, 1); above 0 is real."""
    x = inputs = keras.Input((None, None, 1), name="image")
    for stage in range(3):
        x = layers.Conv2D(filters * 2**stage, 4, 2, padding="same", name=f"down{stage}")(x)
        if stage:
            x = layers.GroupNormalization(8, name=f"down{stage}_norm")(x)
        x = layers.LeakyReLU(0.2, name=f"down{stage}_relu")(x)
    x = layers.Conv2D(1, 3, padding="same", dtype="float32", name="logits")(x)
    return keras.Model(inputs, x, name=name)


@ops.custom_gradient
def equal_pull(images):
    """The images themselves; backwards, each image's gradient is scaled to the norm that the L1 loss has there.

    Esser et al. 2021 (eq. 7) weigh the adversarial loss by the ratio of both losses' gradients at the decoder's last
    layer, for which each must be computed apart. The gradient of a mean of absolute values has the same norm for every
    image, so here the ratio is taken at the decoder's output.
    """

    def gradient(*args, upstream=None):
        upstream = args[0] if upstream is None else upstream
        pixels = np.prod(upstream.shape[1:])
        norm = ops.sqrt(ops.sum(ops.square(upstream), axis=(1, 2, 3), keepdims=True))
        number = ops.cast(ops.shape(upstream)[0], upstream.dtype)
        return upstream / (norm + 1e-12) / (number * np.sqrt(pixels))

    return images * 1.0, gradient


def side_views(stack, number):
    """Every `EVERY`th coronal and sagittal view of a stack of `number` slices (s, S, S, 1): (2 S / EVERY, s, S, 1)."""
    stack = ops.reshape(stack, (number, *stack.shape[1:]))  # TensorFlow does not know it of a batch
    return ops.concatenate([ops.transpose(stack, axes)[::EVERY] for axes in ((1, 0, 2, 3), (2, 0, 1, 3))])


class PowerKept(keras.metrics.Metric):
    """Share of each ring's power that reconstructions keep: the least and the greatest of eight, over an epoch."""

    def __init__(self, name="power_kept", **kwargs):
        super().__init__(name=name, **kwargs)
        self.original = self.add_variable((losses.BANDS,), initializer="zeros", name="original")
        self.kept = self.add_variable((losses.BANDS,), initializer="zeros", name="kept")

    def update_state(self, images, reconstructions, sample_weight=None):
        self.original.assign_add(losses.band_power(images))
        self.kept.assign_add(losses.band_power(reconstructions))

    def result(self):
        ratio = ops.maximum(self.kept, 1e-12) / ops.maximum(self.original, 1e-12)
        return {
            "least_power": ops.min(ratio),
            "most_power": ops.max(ratio),
            "power_gap": ops.mean(ops.abs(ops.log(ratio))),
        }


class Sharpener(keras.Model):
    """Trains the decoder of a VQ-VAE against a discriminator; `save` keeps the VQ-VAE alone.

    The decoder's loss is `reconstruction - D(x_hat)`. The first is L1 and SSIM, whatever the VQ-VAE was trained by; the
    gradient of the second is brought to the norm of the L1 loss's (`equal_pull`) times `adversarial_weight`. The
    discriminator's is the hinge loss `(max(0, 1 - D(x)) + max(0, 1 + D(x_hat))) / 2` (Lim and Ye 2017), and the LeCam
    term, which holds its answers near the means of those to the other kind, so that it does not win by learning the
    few training people by heart: `(D(x) - m_made)^2 + (D(x_hat) - m_real)^2` (Tseng et al. 2021).

    Where the decoder takes slices beside, a batch is a stack of one scan, and the same losses are added of its coronal
    and sagittal views, with a discriminator of their own. Some slices (`SHARE_ALONE`) are decoded as if alone.

    Args:
        vqvae: A trained `modules.VQVAE`; its decoder changes, nothing else of it.
        adversarial_weight: Pull of the discriminator on each image, as a share of the L1 loss's.
        lecam_weight: Weight of the LeCam term.
        seed: Of which slices are decoded as if alone.
        stack_size: Slices of a batch; needed where the decoder takes slices beside.

    Call arguments:
        images: float32 in [0, 1], shape (batch, image_size, image_size, 1).

    Returns:
        Reconstructions like the images.
    """

    def __init__(self, vqvae, adversarial_weight=1.0, lecam_weight=0.0, seed=0, stack_size=None, **kwargs):
        super().__init__(**kwargs)
        self.vqvae, self.stack_size = vqvae, stack_size
        self.adversarial_weight, self.lecam_weight = adversarial_weight, lecam_weight
        self.discriminators = [build_discriminator()]
        if vqvae.beside:
            self.discriminators.append(build_discriminator(name="side_discriminator"))
        # Moving averages of each discriminator's answers to real images and to made ones.
        shape = (len(self.discriminators), 2)
        self.answers = self.add_weight(shape, "zeros", trainable=False, dtype="float32", name="answers")
        for part in (vqvae.encoder, *vqvae.levels()):
            part.trainable = False
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.reconstruction_tracker = keras.metrics.Mean(name="reconstruction_loss")
        self.discriminator_tracker = keras.metrics.Mean(name="discriminator_loss")
        self.power_kept = PowerKept()
        self.built = True

    def call(self, images, training=False):
        z_e = self.vqvae.encoder(images, training=False)
        _, entries, _ = self.vqvae.choose_entries(z_e)
        z_q = ops.stop_gradient(ops.sum(entries, axis=-2))
        told = between(z_q, self.vqvae.beside, alone=False)
        if training and self.vqvae.beside:
            own = between(ops.ones_like(z_q), self.vqvae.beside, alone=True)
            random = keras.random.uniform((ops.shape(z_q)[0], 1, 1, 1), seed=self.seed_generator)
            told = ops.where(random < SHARE_ALONE, own * told, told)
        return self.vqvae.decoder(told, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        views = [(x, y_pred)]
        if self.vqvae.beside:
            views.append(tuple(side_views(images, self.stack_size) for images in (x, y_pred)))
        return sum(self._loss(kind, *images, training) for kind, images in enumerate(views))

    def _loss(self, kind, x, made, training):
        """The loss of slices (kind 0) or of side views (kind 1), real and made ones."""
        reconstruction = losses.reconstruction_loss(x, made, "l1_ssim", self.vqvae.ssim_weight)
        judge, weight = self.discriminators[kind], self.adversarial_weight
        held = [ops.stop_gradient(variable) for variable in judge.trainable_variables]
        pulled = weight * made + (1 - weight) * ops.stop_gradient(made)
        of_decoder, _ = judge.stateless_call(held, judge.non_trainable_variables, equal_pull(pulled))
        of_real, of_made = judge(x), judge(ops.stop_gradient(made))
        hinge = (ops.mean(ops.relu(1.0 - of_real)) + ops.mean(ops.relu(1.0 + of_made))) / 2
        answers = ops.convert_to_tensor(self.answers)
        if training:
            means = ops.stop_gradient(ops.stack([ops.mean(of_real), ops.mean(of_made)]))
            is_this = np.arange(len(self.discriminators))[:, None] == kind
            answers = ops.where(is_this, 0.99 * answers + 0.01 * means, answers)
            self.answers.assign(answers)
        mean_real, mean_made = ops.unstack(ops.stop_gradient(answers)[kind], 2)
        lecam = ops.mean(ops.square(of_real - mean_made)) + ops.mean(ops.square(of_made - mean_real))
        self.reconstruction_tracker.update_state(reconstruction)
        self.discriminator_tracker.update_state(hinge)
        return reconstruction - ops.mean(of_decoder) + hinge + self.lecam_weight * lecam

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.power_kept.update_state(x, y_pred)
        return self.get_metrics_result()

    def save(self, path):
        """Writes the VQ-VAE with its present decoder."""
        self.vqvae.save(path)
