"""The losses against scikit-image, TensorFlow and computations of their own."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import structural_similarity

from evaluation import metrics
from extensions import losses


def test_ssim_is_scikit_images(rng):
    a = rng.random((2, 40, 52, 1), "float32")
    b = np.clip(a + 0.3 * rng.standard_normal(a.shape), 0, 1).astype("float32")
    expected = [
        structural_similarity(x[..., 0], y[..., 0], gaussian_weights=True, use_sample_covariance=False, data_range=1)
        for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(losses.ssim(a, b), expected, atol=1e-5)
    np.testing.assert_allclose(losses.ssim(a, a), 1, atol=1e-5)


def test_losses(rng):
    a, b = rng.random((2, 3, 16, 16, 1), "float32")
    l1, l2 = np.abs(a - b).mean(), ((a - b) ** 2).mean()
    assert float(losses.reconstruction_loss(a, b, "l1", 1)) == pytest.approx(l1, rel=1e-5)
    assert float(losses.reconstruction_loss(a, b, "l2", 1)) == pytest.approx(l2, rel=1e-5)
    both = l1 + 0.5 * (1 - np.mean(losses.ssim(a, b)))
    assert float(losses.reconstruction_loss(a, b, "l1_ssim", 0.5)) == pytest.approx(both, rel=1e-5)


def test_ms_ssim_against_a_computation_of_its_own(rng):
    a, b = rng.random((2, 96, 96)).astype("float32")
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
    assert float(losses.ms_ssim(a[None, ..., None], b[None, ..., None])[0]) == pytest.approx(result, abs=1e-4)
    assert float(losses.ms_ssim(a[None, :40, :40, None], a[None, :40, :40, None])[0]) == pytest.approx(1)


def test_ms_ssim_is_tensorflows(rng):
    tf = pytest.importorskip("tensorflow")
    a, b = rng.random((2, 3, 176, 176), "float32")
    b = 0.8 * a + 0.2 * b
    expected = tf.image.ssim_multiscale(a[..., None], b[..., None], 1.0).numpy()
    np.testing.assert_allclose(metrics.ms_ssim(a, b), expected, atol=1e-4)  # TensorFlow rounds more


def test_band_power_is_that_of_the_spectrum(rng):
    images = rng.random((3, 32, 32)).astype("float32")
    power = sum(np.abs(np.fft.fft2(image)) ** 2 for image in images)
    radius = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32))
    for band, found in enumerate(np.asarray(losses.band_power(images[..., None]))):
        inside = (radius >= band / 16) & (radius < (band + 1) / 16) & (radius > 0)
        assert found == pytest.approx(power[inside].sum(), rel=1e-4)
