"""What must be true of the models: nearest codes, gradients, the objective, causality."""

import dataclasses
import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CODES, SIZE, assert_causal, logits_after_each_change, prior_inputs, randomise, small_prior, told

import modules
from extensions.codebooks import CodebookUsage
from extensions.sharpening import with_fine_blocks
from running import models, options

# -- quantiser ----------------------------------------------------------------------------------------------------


@pytest.fixture
def quantizer(rng):
    layer = modules.VectorQuantizer(13, 5, restart_threshold=0.0)
    layer.build((None, 4, 4, 5))
    layer.set_codebook(rng.standard_normal((13, 5)).astype("float32"))
    return layer


def test_codes_are_the_nearest_by_brute_force(quantizer, rng):
    z_e = rng.standard_normal((3, 4, 4, 5)).astype("float32")
    codebook = np.asarray(quantizer.codebook)
    distances = ((z_e[..., None, :] - codebook) ** 2).sum(axis=-1)
    straight_through, z_q, indices = quantizer(z_e)
    np.testing.assert_array_equal(indices, distances.argmin(axis=-1))
    np.testing.assert_array_equal(z_q, codebook[distances.argmin(axis=-1)])
    np.testing.assert_allclose(straight_through, z_q, atol=1e-6)


def test_the_gradient_goes_straight_through(quantizer, rng):
    z_e = tf.constant(rng.standard_normal((2, 4, 4, 5)), "float32")
    weight = rng.standard_normal((2, 4, 4, 5)).astype("float32")
    with tf.GradientTape() as tape:
        tape.watch(z_e)
        loss = tf.reduce_sum(quantizer(z_e)[0] * weight)
    np.testing.assert_array_equal(tape.gradient(loss, z_e), weight)


@pytest.mark.parametrize("levels", [1, 3])
def test_the_objective_is_eq_3_at_each_level(rng, levels):
    """And moves the entries towards the vectors, the vectors towards the entries, each by its own term.

    A level's vectors are what the levels before have left; only through the first does the encoder learn of them.
    """
    sizes = {"base_filters": 4, "num_embeddings": 8, "embedding_dim": 4, "num_quantizers": levels}
    model = modules.VQVAE(16, **sizes, reconstruction_loss="l2")
    for quantizer in model.levels():
        quantizer.set_codebook(rng.normal(0, 0.1, (8, 4)).astype("float32"))
    images = rng.random((3, 16, 16, 1), "float32")
    with tf.GradientTape(persistent=True) as tape:
        out = model(images, training=True)
        loss = model.compute_loss(images, None, out)
    z_e, left = (np.asarray(out["z_e"], "float64").reshape(-1, 4) for _ in range(2))
    error = np.square(images - np.asarray(out["reconstruction"], "float64")).mean()
    distance = 0.0
    for level, quantizer in enumerate(model.levels()):
        codebook = np.asarray(quantizer.codebook, "float64")
        codes = np.square(left[:, None] - codebook).sum(axis=-1).argmin(axis=-1)  # brute force
        np.testing.assert_array_equal(np.asarray(out["code_indices"])[..., level].ravel(), codes)
        expected = np.zeros((8, 4))
        np.add.at(expected, codes, 2 * (codebook[codes] - left) / z_e.size)
        gradient = tf.convert_to_tensor(tape.gradient(loss, quantizer.entries.value))
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-8)
        left = left - codebook[codes]
        distance += np.square(left).mean()
    assert float(loss) == pytest.approx(error + distance + 0.25 * distance, rel=1e-5)
    np.testing.assert_allclose(np.asarray(out["z_q"]).reshape(-1, 4), z_e - left, atol=1e-6)


def test_without_levels_it_is_an_autoencoder(tmp_path, rng):
    model = modules.VQVAE(16, base_filters=4, embedding_dim=4, num_quantizers=0)
    images = rng.random((4, 16, 16, 1), "float32")
    model.compile(optimizer="adam")
    model.fit(images, verbose=0)
    outputs = model.predict(images, verbose=0)["reconstruction"]
    z_e = model.encoder.predict(images, verbose=0)
    np.testing.assert_array_equal(outputs, model.decoder.predict(z_e, verbose=0))
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)
    np.testing.assert_array_equal(again.predict(images, verbose=0)["reconstruction"], outputs)


def test_nothing_changes_at_inference(rng):
    model = modules.VQVAE(16, base_filters=4, num_embeddings=8, embedding_dim=4)
    before = [np.array(variable) for variable in model.variables]
    model.predict(rng.random((4, 16, 16, 1), "float32"), verbose=0)
    model(rng.random((4, 16, 16, 1), "float32"), training=False)
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, new)


def test_dead_entries_restart_at_present_vectors(rng):
    layer = modules.VectorQuantizer(4, 2, restart_threshold=0.9)
    layer.build((None, 4, 4, 2))
    far = np.array([[0, 0], [50, 50], [60, 60], [70, 70]], "float32")
    layer.set_codebook(far)
    z_e = rng.standard_normal((2, 4, 4, 2)).astype("float32")
    for _ in range(8):
        layer(z_e, training=True)
    assert np.abs(layer.codebook).max() < 10
    assert len(np.unique(layer(z_e)[2])) == 4


def test_quantiser_is_float32_under_mixed_precision(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = modules.VQVAE(16, base_filters=4, num_embeddings=8, embedding_dim=4)
        out = model(rng.random((2, 16, 16, 1), "float32"))
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.quantizer.codebook.dtype == "float32"
    assert {str(out[name].dtype) for name in ("z_e", "z_q", "reconstruction")} == {"<dtype: 'float32'>"}


@pytest.mark.parametrize("arguments", [{"num_embeddings": 1}, {"embedding_dim": 0}])
def test_quantiser_refuses_bad_arguments(arguments):
    with pytest.raises(ValueError, match=str(next(iter(arguments.values())))):
        modules.VectorQuantizer(**{"num_embeddings": 4, "embedding_dim": 2} | arguments)


# -- VQ-VAE -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("downsampling", "levels"), [(4, 1), (8, 2)])
def test_vqvae_shapes_and_round_trip(tmp_path, rng, downsampling, levels):
    sizes = {"base_filters": 4, "num_embeddings": 16, "embedding_dim": 6, "num_quantizers": levels}
    model = modules.VQVAE(32, downsampling, **sizes)
    randomise(model, rng, scale=0.2)
    images = rng.random((3, 32, 32, 1), "float32")
    out = model(images)
    grid = 32 // downsampling
    assert out["reconstruction"].shape == (3, 32, 32, 1)
    assert out["z_e"].shape == out["z_q"].shape == (3, grid, grid, 6)
    assert float(np.min(out["reconstruction"])) >= 0
    assert float(np.max(out["reconstruction"])) <= 1
    codes = model.encode(images)
    np.testing.assert_array_equal(codes, out["code_indices"])
    np.testing.assert_allclose(model.decode(codes), out["reconstruction"], rtol=1e-4, atol=1e-5)
    many = np.concatenate([images] * 12)  # more than are encoded at a time
    np.testing.assert_array_equal(model.encode(many), np.concatenate([codes] * 12))
    np.testing.assert_array_equal(model.decode(np.concatenate([codes] * 12))[33:], model.decode(codes))
    assert model.encode(images[:0]).shape == (0, grid, grid, levels)
    for wrong in (codes - 20, codes + 16, codes[:, 1:], codes[..., 1:]):
        with pytest.raises(ValueError, match="codes (are 0 to 15|have shape)"):
            model.decode(wrong)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)
    np.testing.assert_array_equal(again(images)["reconstruction"], out["reconstruction"])
    assert models.fingerprint(again) == models.fingerprint(model)
    last = model.levels()[-1]
    last.set_codebook(np.array(last.codebook) * 1.5)
    assert models.fingerprint(again) != models.fingerprint(model)


def test_ten_images_can_be_learned_by_heart():
    x, y = np.meshgrid(np.linspace(-1, 1, 16), np.linspace(-1, 1, 16))
    radii = np.linspace(0.3, 0.9, 10)[:, None, None]
    images = (np.hypot(x, y) < radii).astype("float32")[..., None] * 0.8
    model = modules.VQVAE(16, base_filters=32, num_embeddings=32, embedding_dim=8)
    model.quantizer.set_codebook(np.asarray(model.encoder(images)).reshape(-1, 8)[:: 10 * 16 // 32])
    model.compile(optimizer=keras.optimizers.Adam(2e-3))
    model.fit(np.tile(images, (50, 1, 1, 1)), epochs=4, batch_size=10, shuffle=False, verbose=0)  # 200 steps
    error = np.abs(model.predict(images, verbose=0)["reconstruction"] - images).mean()
    assert error < 0.03  # the mean image is off by 0.15


@pytest.mark.parametrize(("activation", "blocks", "fine"), [("leaky_relu", 0, 1), ("leaky_relu", 1, 0), ("relu", 1, 1)])
def test_a_compiled_decoder_computes_what_its_layers_do(rng, activation, blocks, fine):
    """TensorFlow's graph optimiser merges some layers, and is off by a whole intensity where it does so wrongly."""
    model = modules.VQVAE(32, 8, 4, blocks, activation, fine, num_embeddings=16, embedding_dim=4)
    randomise(model, rng)
    z_q = rng.standard_normal((4, 4, 4, 4)).astype("float32")
    np.testing.assert_allclose(model.decode_vectors(z_q), model.decoder(z_q), atol=1e-5)


def test_perplexity_is_of_the_whole_epoch(rng):
    metric = CodebookUsage(8)
    for codes in ([0, 0, 0], [1, 1, 1], [2, 2, 3]):
        metric.update_state(np.array(codes))
    shares = np.array([3, 3, 2, 1]) / 9
    result = metric.result()
    assert float(result["perplexity"]) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
    assert float(result["codes_in_use"]) == 0.5


def test_output_is_cut_to_unit_range_and_only_led_back_into_it():
    x = tf.constant([-3.0, -3.0, 0.25, 1.7, 1.7])
    with tf.GradientTape() as tape:
        tape.watch(x)
        out = modules.clip_to_unit(x)
        loss = tf.reduce_sum(out * [1.0, -1.0, 1.0, 1.0, -1.0])  # descent moves against the sign
    np.testing.assert_array_equal(out, np.array([0, 0, 0.25, 1, 1], "float32"))
    np.testing.assert_array_equal(tape.gradient(loss, x), [0, -1, 1, 1, 0])


@pytest.mark.parametrize(
    "arguments",
    [
        {"image_size": 30},
        {"image_size": 32, "downsampling": 3},
        {"image_size": 32, "reconstruction_loss": "mse"},
        {"image_size": 32, "num_residual_blocks": -1},
        {"image_size": 32, "activation": "tanh"},
    ],
)
def test_vqvae_refuses_bad_arguments(arguments):
    with pytest.raises(ValueError, match="must be"):
        modules.VQVAE(**arguments)


# -- PixelCNN -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_every": 0, "vertical_kernel": (3, 5)},
        {"num_blocks": 6, "max_dilation": 4},
        {"maps": {"coarse": {"num_embeddings": 5, "grid_size": 3}, "below": {"num_embeddings": CODES, "grid_size": 9}}},
        {"num_quantizers": 2, "maps": {"below": {"num_embeddings": CODES, "grid_size": 9, "num_quantizers": 2}}},
        {"num_quantizers": 3, "num_blocks": 6, "max_dilation": 4},
    ],
)
def test_causality_at_every_position_also_after_loading(tmp_path, rng, changes):
    model = small_prior(rng, **changes)
    assert_causal(model, rng)
    model.save(tmp_path / "prior.keras")
    loaded = keras.saving.load_model(tmp_path / "prior.keras", safe_mode=True)
    x = prior_inputs(rng, levels=model.num_quantizers) | told(model, 3)
    np.testing.assert_array_equal(loaded(x), model(x))
    assert_causal(loaded, rng)


class Unchecked(modules.PixelCNN):
    def _assert_receptive_field(self):
        pass


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_every": 0, "num_blocks": 8},
        {"attention_every": 0, "num_blocks": 7},  # a row too few
        {"attention_every": 0, "num_blocks": 4, "vertical_kernel": (3, 5)},
        {"attention_every": 0, "num_blocks": 3, "vertical_kernel": (4, 5)},  # a column too few
        {"attention_every": 1, "num_blocks": 2, "max_dilation": 1, "horizontal_kernel": 4},  # reaches 7 to the left
        {"attention_every": 1, "num_blocks": 2, "max_dilation": 2, "horizontal_kernel": 4},
        {"attention_every": 2, "num_blocks": 2},  # whose attention would stand behind the last block
    ],
)
def test_a_prior_is_refused_where_it_would_not_see_every_earlier_code(rng, changes):
    """What the constructor works out from kernels and attention is what the network sees."""
    model = small_prior(rng, Unchecked, **{"filters": 24} | changes)  # with fewer, rectifiers may all be at rest
    before, after = logits_after_each_change(model, rng)
    seen = np.abs(after - before).max(axis=-1) > 0  # of the code changed by the logits at each place
    if all(seen[:place, place].all() for place in range(SIZE**2)):
        modules.PixelCNN._assert_receptive_field(model)
    else:
        with pytest.raises(ValueError, match="receptive field does not cover a 9 x 9 grid"):
            modules.PixelCNN._assert_receptive_field(model)


def test_the_options_of_train_are_the_arguments_of_the_models():
    for group, model in ((options.VQVAE, modules.VQVAE), (options.Prior, modules.PixelCNN)):
        arguments = inspect.signature(model.__init__).parameters
        for field in dataclasses.fields(group):
            assert arguments[field.name].default == field.default, field.name


def test_masked_convolution_is_a_convolution_with_a_mask(rng):
    x = rng.standard_normal((2, SIZE, SIZE, 3)).astype("float32")
    for stack, kernel_size, place, full in (
        ("vertical", (3, 5), (slice(0, 3), slice(0, 5)), (5, 5)),
        ("horizontal", (1, 3), (slice(0, 1), slice(0, 3)), (1, 5)),
        ("horizontal", (1, 2), (slice(0, 1), slice(0, 4, 3)), (1, 7)),  # dilated
    ):
        for mask_type in "AB":
            layer = modules.MaskedConv2D(4, kernel_size, stack, mask_type, dilation=place[1].step or 1)
            out = layer(x)
            rows, columns = full
            if mask_type == "A":  # one row up or one column left, so a larger masked kernel
                rows, columns = (rows + 2, columns) if stack == "vertical" else (rows, columns + 2)
            masked = np.zeros((rows, columns, 3, 4), "float32")
            masked[place] = np.asarray(layer.kernel).reshape(masked[place].shape)
            expected = tf.nn.conv2d(x, masked, 1, "SAME") + layer.bias
            np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("levels", [1, 2])
def test_bits_per_code_are_the_mean_log_probability(rng, levels):
    model = small_prior(rng, num_quantizers=levels)
    x = prior_inputs(rng, levels=levels)
    model.compile(optimizer="adam")
    bits = model.evaluate(x, verbose=0, return_dict=True)["bits_per_code"]
    logits = np.asarray(model(x), "float64")
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = -np.log2(np.take_along_axis(probabilities, x["codes"][..., None], -1)).mean()
    assert bits == pytest.approx(expected, rel=1e-5)
    distribution = model.distribution(x)
    assert distribution.event_shape == (SIZE, SIZE, levels)
    nats = -np.asarray(distribution.log_prob(x["codes"]))
    assert nats.mean() / np.log(2) / SIZE**2 / levels == pytest.approx(expected, rel=1e-5)


def test_label_and_position_reach_every_logit(rng):
    model = small_prior(rng, filters=32)  # with fewer, the last layer's rectifiers may all be at rest somewhere
    x = prior_inputs(rng)
    base = np.asarray(model(x))
    for name, value in (("label", (x["label"] + 1) % 3), ("slice_position", 1 - x["slice_position"] * 0.9)):
        moved = np.abs(np.asarray(model({**x, name: value})) - base).max(axis=-1)
        assert moved.min() > 0


def test_each_code_of_a_map_reaches_the_places_over_it(rng):
    """And through the stacks others; a map that is not known is another input than any code."""
    model = small_prior(rng, filters=32, maps={"coarse": {"num_embeddings": 5, "grid_size": 3}})
    x = prior_inputs(rng, 1)
    codes = rng.integers(0, 5, (1, 3, 3, 1)).astype("int32")
    base = np.asarray(model({**x, "coarse": codes}))[0]
    for row in range(3):
        for column in range(3):
            other = codes.copy()
            other[0, row, column] = (other[0, row, column] + 1) % 5
            moved = np.abs(np.asarray(model({**x, "coarse": other}))[0] - base).max(axis=(-1, -2))
            assert moved[3 * row : 3 * row + 3, 3 * column : 3 * column + 3].min() > 0
    unknown = np.asarray(model({**x, "coarse": np.full_like(codes, -1)}))
    for code in range(5):
        assert np.abs(np.asarray(model({**x, "coarse": np.full_like(codes, code)})) - unknown).max() > 1e-3


def test_dilations_double_and_start_again():
    assert modules.dilations_of(28, 8) == [1, 2, 4, 1, 2, 4, 1, 2]
    assert modules.dilations_of(3, 3) == [1, 1, 1]
    with pytest.raises(ValueError, match="max_dilation must be 1 or more, not 0"):
        modules.dilations_of(28, 8, 0)


def test_a_change_is_told_and_none_is_a_change_of_nothing(rng):
    model = small_prior(rng)
    x = prior_inputs(rng)
    none = np.zeros((3, modules.CHANGES), "float32")
    np.testing.assert_allclose(model(x), model({**x, "change": none}), atol=1e-6)
    for one in np.eye(modules.CHANGES, dtype="float32"):
        assert np.abs(np.asarray(model({**x, "change": none + one})) - np.asarray(model(x))).max() > 1e-3


def test_fine_blocks_begin_as_nothing_and_then_learn(rng):
    model = modules.VQVAE(32, downsampling=8, base_filters=4, num_embeddings=16, embedding_dim=4)
    images = rng.random((4, 32, 32, 1)).astype("float32")
    finer = with_fine_blocks(model, 2)
    codes = model.encode(images)
    np.testing.assert_array_equal(finer.encode(images), codes)
    np.testing.assert_array_equal(finer.decode(codes), model.decode(codes))
    assert finer.count_params() > model.count_params()
    finer.compile(optimizer="adam")
    finer.fit(images, epochs=2, verbose=0)
    for layer in finer.decoder.layers:
        if "fine" in layer.name and layer.get_weights():
            assert np.abs(layer.get_weights()[0]).max() > 0, layer.name
