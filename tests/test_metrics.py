"""Figures against independent computations and known answers."""

import math

import numpy as np
import pytest
from scipy import ndimage
from tensorflow_probability.substrates import numpy as tfp

import metrics


def brain(size=64):
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    head = np.hypot(x / 0.6, y / 0.8) < 1
    ventricle = np.hypot(x / 0.1, y / 0.2) < 1
    return head * 0.8 - ventricle * 0.75, head


def test_head_mask_fills_the_ventricles():
    image, head = brain()
    assert (metrics.head_mask(image) == head).mean() > 0.995  # but for a pixel where the edge is rough
    assert not metrics.head_mask(np.zeros((8, 8))).any()


def test_head_mask_takes_in_the_scalp():
    """A bright brain, dark bone around it, a darker scalp: Otsu's threshold alone would stop at the brain."""
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    radius = np.hypot(x / 0.6, y / 0.8)
    image = (radius < 0.85) * 0.9 + ((radius > 0.92) & (radius < 1)) * 0.3
    assert (metrics.head_mask(image) == (radius < 1)).mean() > 0.995
    image[:, 60:62] *= radius[:, 60:62] < 0.9  # a gap in the scalp
    assert (metrics.head_mask(image) == (radius < 1)).mean() > 0.995


def test_identical_images():
    image, _ = brain()
    found = metrics.slice_metrics(image, image)
    assert found["ssim"] == pytest.approx(1)
    assert found["ssim_head"] == pytest.approx(1)
    assert found["psnr_db"] == math.inf
    assert found["l1"] == 0


def test_ms_ssim_against_a_computation_of_its_own(rng):
    a, b = rng.random((2, 96, 96))
    b = 0.7 * a + 0.3 * b
    window = np.outer(*[np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))] * 2)
    window /= window.sum()

    def blur(x):
        return ndimage.correlate(x, window)[5:-5, 5:-5]

    weights, result, x, y = np.array([0.0448, 0.2856, 0.3001, 0.2363]), 1.0, a, b
    weights = weights / weights.sum()
    for scale, weight in enumerate(weights):
        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        contrast = (2 * cov + 0.03**2) / (vx + vy + 0.03**2)
        luminance = (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)
        result *= (contrast * luminance if scale == 3 else contrast).mean() ** weight
        x, y = (z.reshape(len(z) // 2, 2, len(z) // 2, 2).mean((1, 3)) for z in (x, y))
    assert metrics.ms_ssim(a[None], b[None])[0] == pytest.approx(result, abs=1e-4)
    assert metrics.ms_ssim(a[None, :40, :40], a[None, :40, :40])[0] == pytest.approx(1)


def test_ms_ssim_is_tensorflows(rng):
    tf = pytest.importorskip("tensorflow")
    a, b = rng.random((2, 3, 176, 176), "float32")
    b = 0.8 * a + 0.2 * b
    expected = tf.image.ssim_multiscale(a[..., None], b[..., None], 1.0).numpy()
    np.testing.assert_allclose(metrics.ms_ssim(a, b), expected, atol=1e-4)  # TensorFlow rounds more


def test_black_is_no_good_reconstruction():
    image, head = brain()
    found = metrics.slice_metrics(image, np.zeros_like(image))
    assert found["ssim"] < 0.7  # the background alone
    assert found["ssim_head"] < 0.1
    assert found["psnr_db"] == pytest.approx(-10 * np.log10((image**2).mean()))
    assert found["l1"] == pytest.approx(image.mean())


def test_a_range_of_255_is_refused():
    image, _ = brain()
    with pytest.raises(ValueError, match="not in"):
        metrics.slice_metrics(image * 255, image)


def test_the_mean_is_over_people_not_slices():
    values, people = [1.0, 1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "a", "b"]
    found = metrics.over_people(values, people)
    assert found["mean"] == 0.5
    assert found["people"] == 2
    assert metrics.over_people([0.3, 0.5, math.nan], ["a", "a", "b"]) == {
        "mean": 0.4,
        "ci95": None,
        "people": 1,
        "slices": 2,
    }
    assert metrics.over_people([math.inf, math.nan], ["a", "b"])["mean"] is None


def test_the_interval_is_that_of_a_mean_of_people(rng):
    means = rng.normal(0, 1, 40)
    values = np.repeat(means, 10)
    found = metrics.over_people(values, np.repeat(np.arange(40), 10))
    standard_error = means.std() / np.sqrt(40)
    assert found["ci95"][0] == pytest.approx(means.mean() - 1.96 * standard_error, abs=0.25 * standard_error)
    assert found["ci95"][1] == pytest.approx(means.mean() + 1.96 * standard_error, abs=0.25 * standard_error)


def test_codebook_metrics():
    even = metrics.codebook_metrics(np.arange(64).reshape(4, 4, 4), 64, 16)
    assert even["perplexity"] == pytest.approx(64)
    assert even["codes_in_use"] == 1
    assert even["bits_per_pixel"] == even["entropy_bits_per_pixel"] == pytest.approx(6 / 16)
    collapsed = metrics.codebook_metrics(np.zeros((2, 4, 4), int), 64, 16)
    assert collapsed["perplexity"] == 1
    assert collapsed["codes_in_use"] == 1 / 64
    assert collapsed["entropy_bits_per_code"] == 0


def test_code_bits_are_those_of_tensorflow_probability(rng):
    logits = rng.normal(0, 5, (2, 3, 3, 7)).astype("float32")
    codes = rng.integers(0, 7, (2, 3, 3))
    expected = -tfp.distributions.Categorical(logits=logits).log_prob(codes) / np.log(2)
    np.testing.assert_allclose(metrics.code_bits(logits, codes), expected, rtol=1e-4, atol=1e-5)
