"""Figures against independent computations and known answers."""

import math

import numpy as np
import pandas as pd
import pytest
from conftest import prior_inputs, small_prior

from evaluation import metrics
from modules import code_lengths


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
    codes = np.arange(64).reshape(4, 4, 4, 1)
    even = metrics.codebook_metrics(codes, 64, 16)
    assert even["perplexity"] == pytest.approx(64)
    assert even["codes_in_use"] == 1
    assert even["bits_per_pixel"] == even["entropy_bits_per_pixel"] == pytest.approx(6 / 16)
    two = metrics.codebook_metrics(np.concatenate([codes, codes // 2], axis=-1), 64, 16)
    assert two["perplexity_by_level"] == pytest.approx([64, 32])
    assert two["codes_in_use"] == 0.75
    assert two["bits_per_pixel"] == pytest.approx(12 / 16)
    assert two["entropy_bits_per_code"] == pytest.approx(5.5)
    assert two["entropy_bits_per_pixel"] == pytest.approx(11 / 16)
    collapsed = metrics.codebook_metrics(np.zeros((2, 4, 4, 1), int), 64, 16)
    assert collapsed["perplexity"] == 1
    assert collapsed["codes_in_use"] == 1 / 64
    assert collapsed["entropy_bits_per_code"] == 0


def test_the_effective_dimension_is_that_of_equal_variances(rng):
    vectors = rng.standard_normal((20_000, 6)) @ np.diag([1, 1, 1, 1e-3, 1e-3, 0]) @ np.linalg.qr(rng.random((6, 6)))[0]
    assert metrics.effective_dimension(vectors) == pytest.approx(3, abs=0.01)
    assert metrics.effective_dimension(np.ones((5, 3))) == 0


def test_code_lengths_are_minus_log2_of_the_probability(rng):
    model, x = small_prior(rng), prior_inputs(rng, 37)  # more than one batch
    logits = np.asarray(model(x), "float64")
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = -np.log2(np.take_along_axis(probabilities, x["codes"][..., None], -1))[..., 0]
    np.testing.assert_allclose(code_lengths(model, x), expected, rtol=1e-4, atol=1e-5)


def test_people_have_the_means_of_their_own_finite_values():
    slices = pd.DataFrame({"subject_id": ["b", "b", "a", "a"], "label": ["AD", "AD", "", ""]}, index=[4, 5, 8, 9])
    found = metrics.person_by_person(slices, [{"x": 1.0}, {"x": math.inf}, {"x": math.nan}, {"x": math.nan}])
    assert found.subject_id.tolist() == ["b", "a"]
    assert found.label.tolist() == ["AD", ""]
    assert found.slices.tolist() == [2, 2]
    assert found.x[0] == 1
    assert math.isnan(found.x[1])
