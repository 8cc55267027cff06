"""What must be true of the models: nearest codes, gradients, moving averages, causality, exact sampling."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from skimage.metrics import structural_similarity

import modules

SIZE, CODES = 6, 11


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)


def randomise(model, rng, scale=0.3):
    """Gives every weight of a model a random value, zeros and biases too, so that nothing is trivially unused."""
    model.set_weights(
        [rng.normal(0, scale, w.shape).astype(w.dtype) if w.dtype == "float32" else w for w in model.get_weights()]
    )


def small_prior(rng, **changes):
    options = {"num_labels": 2, "filters": 8, "num_blocks": 4, "attention_every": 2, "dropout": 0.1} | changes
    model = modules.PixelCNN(CODES, SIZE, **options)
    randomise(model, rng)
    return model


def inputs(rng, number=3, size=SIZE):
    return {
        "codes": rng.integers(0, CODES, (number, size, size)).astype("int32"),
        "label": (np.arange(number) % 3).astype("int32"),
        "slice_position": np.linspace(0, 1, number, dtype="float32"),
    }


# -- losses -------------------------------------------------------------------------------------------------------


def test_ssim_is_scikit_images(rng):
    a = rng.random((2, 40, 52, 1), "float32")
    b = np.clip(a + 0.3 * rng.standard_normal(a.shape), 0, 1).astype("float32")
    expected = [
        structural_similarity(x[..., 0], y[..., 0], gaussian_weights=True, use_sample_covariance=False, data_range=1)
        for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(modules.ssim(a, b), expected, atol=1e-5)
    np.testing.assert_allclose(modules.ssim(a, a), 1, atol=1e-5)


def test_losses(rng):
    a, b = rng.random((2, 3, 16, 16, 1), "float32")
    l1, l2 = np.abs(a - b).mean(), ((a - b) ** 2).mean()
    assert float(modules.reconstruction_loss(a, b, "l1", 1)) == pytest.approx(l1, rel=1e-5)
    assert float(modules.reconstruction_loss(a, b, "l2", 1)) == pytest.approx(l2, rel=1e-5)
    both = l1 + 0.5 * (1 - np.mean(modules.ssim(a, b)))
    assert float(modules.reconstruction_loss(a, b, "l1_ssim", 0.5)) == pytest.approx(both, rel=1e-5)


# -- quantiser ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["ema", "gradient"])
def quantizer(request, rng):
    layer = modules.VectorQuantizer(13, 5, request.param, restart_threshold=0.0)
    layer.build((None, 4, 4, 5))
    layer.initialise(rng.standard_normal((20, 5)).astype("float32"))
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


def test_moving_averages_follow_the_formula(rng):
    layer = modules.VectorQuantizer(4, 3, "ema", decay=0.9, epsilon=1e-5, restart_threshold=0.0)
    layer.build((None, 4, 4, 3))
    start = rng.standard_normal((4, 3)).astype("float32")
    layer.codebook.assign(start)
    layer.ema_sums.assign(start)
    counts, sums, codebook = np.ones(4), start.astype(float), start.astype(float)
    for _ in range(5):
        z_e = rng.standard_normal((2, 4, 4, 3)).astype("float32")
        chosen = ((z_e.reshape(-1, 1, 3) - codebook) ** 2).sum(axis=-1).argmin(axis=1)
        layer(z_e, training=True)
        for k in range(4):  # appendix A.1 of van den Oord et al. 2017, one entry at a time
            members = z_e.reshape(-1, 3)[chosen == k]
            counts[k] = 0.9 * counts[k] + 0.1 * len(members)
            sums[k] = 0.9 * sums[k] + 0.1 * members.sum(axis=0)
        total = counts.sum()
        codebook = sums / ((counts + 1e-5) / (total + 4e-5) * total)[:, None]
    np.testing.assert_allclose(layer.ema_counts, counts, rtol=1e-5)
    np.testing.assert_allclose(layer.codebook, codebook, rtol=1e-4, atol=1e-6)


def test_an_entry_that_is_not_chosen_stays_where_it_is():
    layer = modules.VectorQuantizer(2, 1, "ema", restart_threshold=0.0)
    layer.build((None, 1, 1, 1))
    for variable in (layer.codebook, layer.ema_sums):
        variable.assign([[0.0], [9.0]])
    for _ in range(50):
        layer(np.full((4, 1, 1, 1), 0.5, "float32"), training=True)
    np.testing.assert_allclose(layer.codebook, [[0.5], [9.0]], atol=0.31)
    assert float(layer.codebook[1, 0]) == pytest.approx(9.0, rel=1e-3)


def test_nothing_changes_at_inference(quantizer, rng):
    before = [np.array(weight) for weight in quantizer.weights]
    quantizer(rng.standard_normal((2, 4, 4, 5)).astype("float32"), training=False)
    for old, new in zip(before, quantizer.weights, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_dead_entries_restart_at_present_vectors(update, rng):
    layer = modules.VectorQuantizer(4, 2, update, decay=0.5, restart_threshold=0.1)
    layer.build((None, 4, 4, 2))
    far = np.array([[0, 0], [50, 50], [60, 60], [70, 70]], "float32")
    layer.codebook.assign(far)
    if update == "ema":
        layer.ema_sums.assign(far)
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


@pytest.mark.parametrize("arguments", [{"num_embeddings": 1}, {"embedding_dim": 0}, {"update": "adam"}, {"decay": 1.0}])
def test_quantiser_refuses_bad_arguments(arguments):
    with pytest.raises(ValueError, match=str(next(iter(arguments.values())))):
        modules.VectorQuantizer(**{"num_embeddings": 4, "embedding_dim": 2} | arguments)


# -- VQ-VAE -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("downsampling", [4, 8])
def test_vqvae_shapes_and_round_trip(tmp_path, rng, downsampling):
    model = modules.VQVAE(32, downsampling, base_filters=4, num_embeddings=16, embedding_dim=6)
    randomise(model, rng)
    images = rng.random((3, 32, 32, 1), "float32")
    out = model(images)
    grid = 32 // downsampling
    assert out["reconstruction"].shape == (3, 32, 32, 1)
    assert out["z_e"].shape == out["z_q"].shape == (3, grid, grid, 6)
    assert float(np.min(out["reconstruction"])) >= 0
    assert float(np.max(out["reconstruction"])) <= 1
    codes = model.encode(images)
    np.testing.assert_array_equal(codes, out["code_indices"])
    np.testing.assert_allclose(model.decode(codes, batch_size=2), out["reconstruction"], atol=1e-5)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)
    np.testing.assert_array_equal(again(images)["reconstruction"], out["reconstruction"])
    assert again.fingerprint() == model.fingerprint()
    model.quantizer.codebook.assign(model.quantizer.codebook * 1.5)
    assert again.fingerprint() != model.fingerprint()


@pytest.mark.parametrize(("update", "loss"), [("ema", "l1_ssim"), ("ema", "l2"), ("gradient", "l1")])
def test_ten_images_can_be_learned_by_heart(rng, update, loss):
    x, y = np.meshgrid(np.linspace(-1, 1, 16), np.linspace(-1, 1, 16))
    radii = np.linspace(0.3, 0.9, 10)[:, None, None]
    images = (np.hypot(x, y) < radii).astype("float32")[..., None] * 0.8
    model = modules.VQVAE(16, base_filters=16, num_embeddings=32, embedding_dim=8, codebook_update=update, loss=loss)
    model.quantizer.initialise(np.asarray(model.encoder(images)))
    model.compile(optimizer=keras.optimizers.Adam(3e-3))
    model.fit(images, epochs=250, batch_size=10, verbose=0)
    error = np.abs(model.predict(images, verbose=0)["reconstruction"] - images).mean()
    assert error < 0.04  # the mean image is off by 0.2


def test_perplexity_is_of_the_whole_epoch(rng):
    metric = modules.CodebookUsage(8)
    for codes in ([0, 0, 0], [1, 1, 1], [2, 2, 3]):
        metric.update_state(np.array(codes))
    shares = np.array([3, 3, 2, 1]) / 9
    result = metric.result()
    assert float(result["perplexity"]) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
    assert float(result["codes_in_use"]) == 0.5


@pytest.mark.parametrize(
    "arguments", [{"image_size": 30}, {"image_size": 32, "downsampling": 3}, {"image_size": 32, "loss": "mse"}]
)
def test_vqvae_refuses_bad_arguments(arguments):
    with pytest.raises(ValueError, match="must be"):
        modules.VQVAE(**arguments)


# -- PixelCNN -----------------------------------------------------------------------------------------------------


def assert_causal(model, rng):
    """Changing one code moves no logit up to its own place, and some logit after it."""
    x = inputs(rng)
    before = np.asarray(model(x)).reshape(3, SIZE * SIZE, CODES)
    for place in range(SIZE * SIZE):
        codes = x["codes"].reshape(3, -1).copy()
        codes[:, place] = (codes[:, place] + 1) % CODES
        after = np.asarray(model({**x, "codes": codes.reshape(3, SIZE, SIZE)})).reshape(before.shape)
        np.testing.assert_array_equal(after[:, : place + 1], before[:, : place + 1])
        if place + 1 < SIZE * SIZE:
            assert np.abs(after[:, place + 1 :] - before[:, place + 1 :]).max() > 1e-6


@pytest.mark.parametrize("changes", [{}, {"attention_every": 0, "vertical_kernel": (3, 5)}, {"num_blocks": 6}])
def test_causality_at_every_position_also_after_loading(tmp_path, rng, changes):
    model = small_prior(rng, **changes)
    assert_causal(model, rng)
    model.save(tmp_path / "prior.keras")
    loaded = keras.saving.load_model(tmp_path / "prior.keras", safe_mode=True)
    x = inputs(rng)
    np.testing.assert_array_equal(loaded(x), model(x))
    assert_causal(loaded, rng)


@pytest.mark.parametrize("changes", [{}, {"attention_every": 0}])
def test_receptive_field_is_what_the_network_sees(rng, changes):
    model = small_prior(rng, **changes)
    field = model.receptive_field()
    x = inputs(rng, number=1)
    for row, column in ((SIZE - 1, SIZE - 1), (SIZE - 1, 0), (2, 3)):
        before = np.asarray(model(x))[0, row, column]
        for r in range(SIZE):
            for c in range(SIZE):
                codes = x["codes"].copy()
                codes[0, r, c] = (codes[0, r, c] + 1) % CODES
                seen = np.abs(np.asarray(model({**x, "codes": codes}))[0, row, column] - before).max() > 0
                inside = r <= row and field[row - r, SIZE - 1 + c - column]
                assert seen == inside, (row, column, r, c)


def test_receptive_field_must_cover_the_grid():
    with pytest.raises(ValueError, match="receptive field misses .* take more blocks"):
        modules.PixelCNN(CODES, 32, filters=4, num_blocks=3, attention_every=0)
    modules.PixelCNN(CODES, 32, filters=4, num_blocks=3, attention_every=1)


def test_masked_convolution_is_a_convolution_with_a_mask(rng):
    x = rng.standard_normal((2, SIZE, SIZE, 3)).astype("float32")
    for stack, kernel_size, place, full in (
        ("vertical", (3, 5), (slice(0, 3), slice(0, 5)), (5, 5)),
        ("horizontal", (1, 3), (slice(0, 1), slice(0, 3)), (1, 5)),
    ):
        for mask_type in "AB":
            layer = modules.MaskedConv2D(4, kernel_size, stack, mask_type)
            out = layer(x)
            rows, columns = full
            if mask_type == "A":  # one row up or one column left, so a larger masked kernel
                rows, columns = (rows + 2, columns) if stack == "vertical" else (rows, columns + 2)
            masked = np.zeros((rows, columns, 3, 4), "float32")
            masked[place] = np.asarray(layer.kernel)
            expected = tf.nn.conv2d(x, masked, 1, "SAME") + layer.bias
            np.testing.assert_allclose(out, expected, atol=1e-5)


def test_bits_per_code_are_the_mean_log_probability(rng):
    model = small_prior(rng)
    x = inputs(rng)
    model.compile(optimizer="adam")
    bits = model.evaluate(x, verbose=0, return_dict=True)["bits_per_code"]
    logits = np.asarray(model(x), "float64")
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = -np.log2(np.take_along_axis(probabilities, x["codes"][..., None], -1)).mean()
    assert bits == pytest.approx(expected, rel=1e-5)


def test_label_and_position_reach_every_logit(rng):
    model = small_prior(rng)
    x = inputs(rng)
    base = np.asarray(model(x))
    for name, value in (("label", (x["label"] + 1) % 3), ("slice_position", 1 - x["slice_position"] * 0.9)):
        moved = np.abs(np.asarray(model({**x, name: value})) - base).max(axis=-1)
        assert moved.min() > 0


# -- sampling -----------------------------------------------------------------------------------------------------


def noise(seed, number):
    return np.stack([np.random.default_rng([seed, i]).random((SIZE, SIZE), "float32") for i in range(number)])


def naive(model, x, uniform, temperature=1.0, top_k=0, top_p=1.0, known=None):
    """The textbook loop: the whole network for every code."""
    codes = np.zeros_like(x["codes"])
    for r in range(SIZE):
        for c in range(SIZE):
            logits = model({**x, "codes": codes})[:, r, c]
            codes[:, r, c] = modules.draw_codes(logits, uniform[:, r, c], temperature, top_k, top_p)
            if known is not None:
                codes[:, r, c] = np.where(known[:, r, c] >= 0, known[:, r, c], codes[:, r, c])
    return codes


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.6}, {"temperature": 1.3, "top_k": 6, "top_p": 0.9}]
)
@pytest.mark.parametrize("number", [1, 5])
def test_sampler_draws_what_the_naive_loop_draws(rng, options, number):
    model = small_prior(rng)
    x = inputs(rng, number)
    sampler = modules.PixelCNNSampler(model, **options)
    drawn = next(sampler.sample(x["label"], x["slice_position"], seed=3, batch_size=number))
    np.testing.assert_array_equal(drawn, naive(model, x, noise(3, number), **options))


@pytest.mark.parametrize(
    "changes", [{"attention_every": 0}, {"num_labels": 0}, {"num_blocks": 6, "attention_every": 3}]
)
def test_sampler_is_exact_for_other_priors_and_after_loading(tmp_path, rng, changes):
    small_prior(rng, **changes).save(tmp_path / "prior.keras")
    model = keras.saving.load_model(tmp_path / "prior.keras")
    x = inputs(rng) if changes.get("num_labels") is None else {**inputs(rng), "label": np.zeros(3, "int32")}
    drawn = next(modules.PixelCNNSampler(model).sample(x["label"], x["slice_position"], 0, batch_size=3))
    np.testing.assert_array_equal(drawn, naive(model, x, noise(0, 3)))


def test_sampler_is_exact_on_trained_weights(rng):
    model = modules.PixelCNN(CODES, SIZE, 2, filters=8, num_blocks=4, attention_every=2)
    x = inputs(rng, 32)
    x["codes"][:] = (np.arange(SIZE)[:, None] + np.arange(SIZE) + x["label"][:, None, None]) % CODES
    model.compile(optimizer=keras.optimizers.Adam(1e-2))
    history = model.fit(x, epochs=40, batch_size=8, verbose=0).history
    assert history["bits_per_code"][-1] < 1.0
    few = {name: value[:6] for name, value in x.items()}
    drawn = next(modules.PixelCNNSampler(model).sample(few["label"], few["slice_position"], 1, batch_size=6))
    np.testing.assert_array_equal(drawn, naive(model, few, noise(1, 6)))
    assert (drawn == few["codes"]).mean() > 0.7


def test_sample_i_is_the_same_in_every_batch(rng):
    sampler = modules.PixelCNNSampler(small_prior(rng))
    labels, positions = np.arange(7) % 3, np.linspace(0, 1, 7)
    chunks = list(sampler.sample(labels, positions, 5, batch_size=4))
    assert [len(chunk) for chunk in chunks] == [4, 3]
    all_seven = np.concatenate(chunks)
    np.testing.assert_array_equal(next(sampler.sample(labels[:2], positions[:2], 5, batch_size=4)), all_seven[:2])
    np.testing.assert_array_equal(next(sampler.sample(labels, positions, 5, batch_size=7)), all_seven)
    np.testing.assert_array_equal(
        next(sampler.sample(labels[5:], positions[5:], 5, batch_size=4, first=5)), all_seven[5:]
    )


def test_known_codes_are_held_fixed(rng):
    model = small_prior(rng)
    x = inputs(rng)
    known = np.where(rng.random(x["codes"].shape) < 0.4, x["codes"], -1)
    sampler = modules.PixelCNNSampler(model)
    drawn = next(sampler.sample(x["label"], x["slice_position"], 2, known=known, batch_size=3))
    np.testing.assert_array_equal(drawn[known >= 0], known[known >= 0])
    np.testing.assert_array_equal(drawn, naive(model, x, noise(2, 3), known=known))
    free = next(sampler.sample(x["label"], x["slice_position"], 2, batch_size=3))
    assert not np.array_equal(drawn, free)


def test_drawn_codes_have_the_right_frequencies(rng):
    logits = np.log(np.array([0.5, 0.2, 0.15, 0.1, 0.05], "float32"))
    uniform = rng.random(20_000, "float32")
    rows = np.tile(logits, (len(uniform), 1))

    def frequencies(**options):
        drawn = np.asarray(modules.draw_codes(rows, uniform, **{"temperature": 1.0} | options))
        return np.bincount(drawn, minlength=5) / len(uniform)

    np.testing.assert_allclose(frequencies(), np.exp(logits), atol=0.012)
    np.testing.assert_allclose(frequencies(top_k=2), [5 / 7, 2 / 7, 0, 0, 0], atol=0.012)
    np.testing.assert_allclose(frequencies(top_p=0.6), [5 / 7, 2 / 7, 0, 0, 0], atol=0.012)
    np.testing.assert_allclose(frequencies(top_p=0.4), [1, 0, 0, 0, 0])
    sharp = np.exp(2 * logits) / np.exp(2 * logits).sum()
    np.testing.assert_allclose(frequencies(temperature=0.5), sharp, atol=0.012)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_sampler_refuses_bad_arguments(rng, options):
    with pytest.raises(ValueError, match="must be"):
        modules.PixelCNNSampler(small_prior(rng), **options)
