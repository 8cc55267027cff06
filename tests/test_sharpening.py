"""The phase that sharpens the decoder: who learns from what, and that the codes stay."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import modules
from evaluation import realism
from extensions import losses, sharpening
from running import models


@pytest.fixture
def sharpener():
    vqvae = modules.VQVAE(32, base_filters=4, num_embeddings=16, embedding_dim=4)
    return sharpening.Sharpener(vqvae, adversarial_weight=0.5)


def test_equal_pull_has_the_norm_of_the_l1_gradient(rng):
    images, target = tf.constant(rng.random((3, 8, 8, 1)), "float32"), rng.random((3, 8, 8, 1)).astype("float32")
    weights = tf.constant(rng.standard_normal((3, 8, 8, 1)) * [[[[5.0]]], [[[1.0]]], [[[0.01]]]], "float32")
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(images)
        l1 = tf.reduce_mean(abs(images - target))
        pulled = sharpening.equal_pull(images)
        adversarial = tf.reduce_sum(pulled * weights)
    np.testing.assert_array_equal(pulled, images)
    of_l1, of_adversarial = (tape.gradient(loss, images).numpy() for loss in (l1, adversarial))
    norms = [np.sqrt((g**2).sum((1, 2, 3))) for g in (of_l1, of_adversarial)]
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-5)
    direction = weights / np.sqrt((weights.numpy() ** 2).sum((1, 2, 3), keepdims=True))
    np.testing.assert_allclose(of_adversarial, direction * norms[0][:, None, None, None], rtol=1e-4)


def test_each_learns_from_its_own_part_of_the_loss(sharpener, rng):
    images = tf.constant(rng.random((2, 32, 32, 1)), "float32")
    judge, decoder = sharpener.discriminators[0], sharpener.vqvae.decoder
    with tf.GradientTape(persistent=True) as tape:
        outputs = sharpener(images, training=True)
        loss = sharpener.compute_loss(images, None, outputs)
        made = judge(tf.stop_gradient(outputs))
        hinge = (tf.reduce_mean(tf.nn.relu(1 - judge(images))) + tf.reduce_mean(tf.nn.relu(1 + made))) / 2
        reconstruction = losses.reconstruction_loss(images, outputs, "l1_ssim", 0.3)
        fooled = tf.reduce_mean(judge(outputs))
    for found, expected in zip(
        tape.gradient(loss, judge.trainable_variables),
        tape.gradient(hinge, judge.trainable_variables),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    of_loss, of_reconstruction, of_fooled = (
        np.concatenate([np.ravel(g) for g in tape.gradient(part, decoder.trainable_variables)])
        for part in (loss, reconstruction, fooled)
    )
    pull = of_loss - of_reconstruction  # towards what the discriminator takes for real
    assert np.dot(-pull, of_fooled) > 0
    assert len(sharpener.trainable_variables) == len(judge.trainable_variables) + len(decoder.trainable_variables)


def test_the_lecam_term_holds_answers_near_the_means_of_those_to_the_other_kind(rng):
    images = rng.random((4, 32, 32, 1)).astype("float32")
    losses_of = {}
    for weight in (0.0, 0.5):
        keras.utils.set_random_seed(1)
        model = sharpening.Sharpener(modules.VQVAE(32, 8, 4, num_embeddings=8, embedding_dim=4), 0.5, weight)
        model.answers.assign([[0.3, -0.2]])
        outputs = model(images)
        losses_of[weight] = float(model.compute_loss(images, None, outputs, training=True))
    real, made = (np.asarray(model.discriminators[0](x), "float64") for x in (images, outputs))
    means = 0.99 * np.array([0.3, -0.2]) + 0.01 * np.array([real.mean(), made.mean()])
    np.testing.assert_allclose(model.answers[0], means, rtol=1e-4)
    expected = 0.5 * (np.square(real - means[1]).mean() + np.square(made - means[0]).mean())
    assert losses_of[0.5] - losses_of[0.0] == pytest.approx(expected, rel=1e-3)
    model.compute_loss(images, None, outputs, training=False)  # a look at validation changes no mean
    np.testing.assert_allclose(model.answers[0], means, rtol=1e-4)


def test_the_codes_stay(sharpener, rng):
    images = rng.random((8, 32, 32, 1)).astype("float32")
    vqvae = sharpener.vqvae
    codes, fingerprint, decoded = vqvae.encode(images), models.fingerprint(vqvae), vqvae.decode(vqvae.encode(images))
    sharpener.compile(optimizer="adam")
    found = sharpener.fit(images, validation_data=(images,), batch_size=4, epochs=2, verbose=0).history
    np.testing.assert_array_equal(vqvae.encode(images), codes)
    assert models.fingerprint(vqvae) == fingerprint
    assert np.abs(vqvae.decode(codes) - decoded).max() > 1e-4
    assert {"val_power_gap", "val_least_power", "val_most_power", "val_discriminator_loss"} <= set(found)


def test_power_kept_is_that_of_the_spectrum(rng):
    images = rng.random((3, 32, 32)).astype("float32")
    others = images.copy()
    others[:, ::2] *= 0.5
    metric = sharpening.PowerKept()
    for i in range(3):
        metric.update_state(images[i : i + 1, ..., None], others[i : i + 1, ..., None])
    ratio = realism.radial_power(others) / realism.radial_power(images)
    found = {name: float(value) for name, value in metric.result().items()}
    assert found["least_power"] == pytest.approx(ratio.min(), rel=1e-4)
    assert found["most_power"] == pytest.approx(ratio.max(), rel=1e-4)
    assert found["power_gap"] == pytest.approx(np.abs(np.log(ratio)).mean(), rel=1e-4)


@pytest.fixture
def of_stacks(rng):
    """A sharpener whose decoder is told a slice on either side, by weights that are not 0."""
    vqvae = modules.VQVAE(32, base_filters=4, num_embeddings=16, embedding_dim=4)
    finer = sharpening.with_fine_blocks(vqvae, 1, beside=1)
    images = rng.random((12, 32, 32, 1)).astype("float32")
    np.testing.assert_allclose(finer.reconstruct(images), vqvae.reconstruct(images), atol=1e-5)  # as it begins
    np.testing.assert_allclose(
        finer.decode_vectors(vqvae.vectors(vqvae.encode(images)), stack=True), vqvae.reconstruct(images), atol=1e-5
    )
    project = finer.decoder.get_layer("project")
    project.set_weights([rng.normal(0, 0.2, w.shape).astype("float32") for w in project.get_weights()])
    return sharpening.Sharpener(finer, adversarial_weight=0.5, stack_size=12), images


def test_a_slice_of_a_stack_is_told_those_beside_it_and_no_others(of_stacks, rng):
    vqvae, images = of_stacks[0].vqvae, of_stacks[1]
    z_q = vqvae.vectors(vqvae.encode(images))
    told = np.asarray(sharpening.between(z_q, 1, alone=False))
    for i in range(12):
        wanted = [z_q[max(0, i - 1)], z_q[i], z_q[min(11, i + 1)]]
        np.testing.assert_array_equal(told[i], np.concatenate(wanted, axis=-1))
    decoded, other = vqvae.decode_vectors(z_q, stack=True), z_q.copy()
    other[5] += rng.normal(size=z_q[5].shape)
    changed = np.abs(vqvae.decode_vectors(other, stack=True) - decoded).max(axis=(1, 2, 3)) > 1e-4
    assert list(np.flatnonzero(changed)) == [4, 5, 6]
    alone = vqvae.decode_vectors(z_q)
    np.testing.assert_allclose(vqvae.decode_vectors(z_q[3:4]), alone[3:4], atol=1e-5)  # whatever is beside it
    np.testing.assert_allclose(alone, vqvae.reconstruct(images), atol=1e-5)


def test_side_views_are_those_of_the_stack():
    stack = np.arange(3 * 8 * 8, dtype="float32").reshape(3, 8, 8, 1)
    views = np.asarray(sharpening.side_views(stack, 3))
    assert views.shape == (4, 3, 8, 1)
    np.testing.assert_array_equal(views[1, ..., 0], stack[:, 4, :, 0])  # coronal: a row of each slice
    np.testing.assert_array_equal(views[3, ..., 0], stack[:, :, 4, 0])  # sagittal: a column of each


def test_a_stack_is_learned_from_the_sides_too(of_stacks):
    model, images = of_stacks
    images = tf.constant(images)
    with tf.GradientTape(persistent=True) as tape:
        outputs = model(images, training=True)
        loss = model.compute_loss(images, None, outputs)
        sides = sharpening.side_views(images, 12), sharpening.side_views(outputs, 12)
        reconstruction = sum(losses.reconstruction_loss(*pair, "l1_ssim", 0.3) for pair in ((images, outputs), sides))
        fooled = tf.reduce_mean(model.discriminators[1](sides[1]))
    side_judge = model.discriminators[1].trainable_variables
    assert all(np.abs(gradient).max() > 0 for gradient in tape.gradient(loss, side_judge))
    decoder = model.vqvae.decoder.trainable_variables
    of_loss, of_rest, of_fooled = (
        np.concatenate([np.ravel(g) for g in tape.gradient(part, decoder)]) for part in (loss, reconstruction, fooled)
    )
    assert np.dot(of_rest - of_loss, of_fooled) > 0
    assert (np.asarray(model.answers) != 0).all()


def test_some_slices_of_a_stack_are_trained_alone(of_stacks, monkeypatch):
    model, images = of_stacks
    apart = model.vqvae.reconstruct(images)
    monkeypatch.setattr(sharpening, "SHARE_ALONE", 1.0)
    np.testing.assert_allclose(model(images, training=True), apart, atol=1e-5)
    monkeypatch.setattr(sharpening, "SHARE_ALONE", 0.0)
    together = model(images, training=True)
    np.testing.assert_allclose(together, model(images), atol=1e-5)
    assert np.abs(np.asarray(together) - apart).max() > 0.01


class OneBatch(keras.utils.PyDataset):
    def __init__(self, images):
        super().__init__()
        self.images = images

    def __len__(self):
        return 1

    def __getitem__(self, _):
        return (self.images,)


def test_stacks_are_learned_from_as_train_py_does(of_stacks):
    model, images = of_stacks
    before = model.vqvae.decoder.get_weights()
    model.compile("sgd")
    model.fit(OneBatch(images), verbose=0)  # TensorFlow knows no size of a batch
    assert any((old != new).any() for old, new in zip(before, model.vqvae.decoder.get_weights(), strict=True))
