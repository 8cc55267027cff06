"""Distances between sets of images against independent computations, and cases whose answer is known."""

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
from conftest import make_slices
from scipy import ndimage

import dataset
from evaluation import baselines, realism


def people_of_slices(rng, people, size=48, slices=4):
    """Smooth random heads: float in [0, 1], (people * slices, size, size), and whose each is."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    images = []
    for _ in range(people):
        head = np.hypot(x / rng.uniform(0.55, 0.7), y / rng.uniform(0.7, 0.85)) < 1
        pattern = ndimage.gaussian_filter(rng.standard_normal((size, size)), 2)
        for _ in range(slices):
            change = ndimage.gaussian_filter(rng.standard_normal((size, size)), 2)
            grain = 0.03 * rng.standard_normal((size, size))
            images.append(head * (0.6 + pattern + 0.3 * change + grain).clip(0.05, 1))
    return np.array(images, "float32"), np.repeat([f"p{i}" for i in range(people)], slices)


def test_frechet_distance_is_that_of_the_matrix_root(rng):
    a, b = rng.standard_normal((60, 5)) @ rng.standard_normal((5, 5)), 1 + 2 * rng.standard_normal((80, 5))
    covariances = [np.cov(x.T) for x in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert realism.frechet_distance(a, b) == pytest.approx(expected)
    assert realism.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert realism.frechet_distance(a, a + 3) == pytest.approx(5 * 9)


def test_mmd_is_the_unbiased_double_sum(rng):
    a, b = rng.standard_normal((6, 3)), 1 + rng.standard_normal((7, 3))
    length = np.median([np.linalg.norm(b[i] - b[j]) for i in range(7) for j in range(i)])

    def k(x, y):
        return np.exp(-((x - y) ** 2).sum() / (2 * length**2))

    within_a = np.mean([k(a[i], a[j]) for i in range(6) for j in range(6) if i != j])
    within_b = np.mean([k(b[i], b[j]) for i in range(7) for j in range(7) if i != j])
    between = np.mean([k(x, y) for x in a for y in b])
    assert realism.mmd(a, b) == pytest.approx(within_a + within_b - 2 * between)
    same = [realism.mmd(*rng.standard_normal((2, 100, 3))) for _ in range(10)]
    assert min(same) < 0 < max(same)


def test_overlap_against_brute_force_and_a_collapsed_set(rng):
    samples, real = rng.standard_normal((40, 3)), 0.5 + rng.standard_normal((50, 3))
    sample_people, real_people = np.arange(40), np.arange(50) // 2

    def reach(x, people, i):
        return sorted(np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if people[j] != people[i])[4]

    in_real = np.array(
        [[np.linalg.norm(r - s) <= reach(real, real_people, i) for s in samples] for i, r in enumerate(real)]
    )
    in_samples = np.array(
        [[np.linalg.norm(r - s) <= reach(samples, sample_people, j) for j, s in enumerate(samples)] for r in real]
    )
    assert realism.overlap(samples, real, sample_people, real_people) == pytest.approx(
        {
            "precision": in_real.any(0).mean(),
            "recall": in_samples.any(1).mean(),
            "density": in_real.sum() / (5 * 40),
            "coverage": in_real.any(1).mean(),
        }
    )
    one = real[:1] + 1e-3 * rng.standard_normal((40, 3))
    collapsed = realism.overlap(one, real, sample_people, real_people)
    assert collapsed["precision"] == 1
    assert collapsed["recall"] <= 0.02
    assert collapsed["coverage"] < 0.6


def test_real_slices_reach_their_floor_and_blurred_ones_do_not(rng):
    images, people = people_of_slices(rng, 60)
    extract = realism.TextureFeatures(48)
    space = realism.FeatureSpace(extract(images[:80]), extract.kinds)
    positions = np.tile([0.0, 0.3, 0.6, 0.9], 60)
    first, second = (
        realism.ImageSet(images[i], positions[i], people[i], extract) for i in (slice(80, 160), slice(160, 240))
    )
    assert first.features.shape == (80, 4 * 4 * 24 + 64)
    floor = realism.compare(first, second, space)
    blurred = np.array([ndimage.gaussian_filter(image, 1.0) for image in first.images])
    other = realism.compare(realism.ImageSet(blurred, first.positions, first.people, extract), second, space)
    assert 0.3 < floor["classifier_accuracy"] < 0.7
    assert other["classifier_accuracy"] > 0.95
    assert abs(floor["mmd"]) < 0.05 < other["mmd"]
    assert other["frechet_distance"] > 2 * floor["frechet_distance"]
    assert other["coverage"] < 0.5 < floor["coverage"]
    assert floor["power_ratio"] == pytest.approx([1] * 8, rel=0.2)
    assert other["power_ratio"][7] < 0.1


def test_a_cell_that_is_black_in_training_does_not_rule_the_distance(rng):
    images, _ = people_of_slices(rng, 40)
    images[0, 1, 1] = 1 / 255  # in the whole corner, the only pixel that is not black
    extract = realism.TextureFeatures(48)
    space = realism.FeatureSpace(extract(images), extract.kinds)
    speck = images[:40].copy()
    speck[:, 1, 1] = 5 / 255
    moved = np.linalg.norm(space(extract(speck)) - space(extract(images[:40])), axis=1)
    between = np.linalg.norm(np.diff(space(extract(images[:40:4])), axis=0), axis=1)
    assert moved.max() < 0.2 * between.min()


def test_the_classifier_does_not_know_people_again(rng):
    """Every person has features quite unlike another's: only a fold with the same person could tell the sets apart."""
    people = rng.standard_normal((40, 30))
    features = np.repeat(people, 6, axis=0) + 0.01 * rng.standard_normal((240, 30))
    names = np.repeat(np.arange(40), 6)
    accuracy = realism.classifier_accuracy(features[:120], features[120:], names[:120], names[120:])
    assert 0.25 < accuracy < 0.75
    leaking = realism.classifier_accuracy(features[:120], features[120:], np.arange(120), np.arange(120))
    assert leaking > 0.9
    assert realism.classifier_accuracy(features[:6], features[120:], names[:6], names[120:]) is None


def test_radial_power_finds_a_wave_in_its_ring():
    y, x = np.mgrid[:64, :64]
    for cycles in (2, 10, 31):
        power = realism.radial_power(np.cos(2 * np.pi * cycles * x / 64)[None] + 5.0)
        assert np.argmax(power) == int(cycles / 32 * 8)
        assert power.sum() == pytest.approx(power.max())


def test_a_ring_without_power_has_no_ratio():
    assert realism.power_ratio(np.array([1.0, 0.0, 3.0]), np.array([2.0, 0.0, 0.0])) == [0.5, None, None]


def test_diversity_compares_other_people_at_the_same_height(rng):
    images, people = people_of_slices(rng, 10)
    positions = np.tile([0.0, 0.3, 0.6, 0.9], 10)
    value = realism.diversity(images, positions, people, rng, pairs=30)
    assert 0 < value < 0.9
    same = np.repeat(images[:1], 40, axis=0)
    assert realism.diversity(same, positions, people, rng, pairs=30) == pytest.approx(1)
    assert realism.diversity(images[:4], positions[:4], people[:4], rng) is None


def test_copies_of_training_slices_are_caught_even_moved(rng):
    images, _ = people_of_slices(rng, 20)
    training, fresh = (images[:60] * 255).round().astype("uint8"), images[60:]
    nearest = realism.NearestTrainingSlice(training, np.arange(60))
    real = [nearest(image)[1] for image in fresh]
    copies = []
    for i in range(0, 60, 10):
        row, likeness = nearest(np.roll(training[i] / np.float32(255), (3, -2), (0, 1)))
        assert row == i
        copies.append(likeness)
    assert min(copies) > 0.99
    share, limit = realism.share_of_copies(copies, real)
    assert share == 1
    assert limit == pytest.approx(np.sort(real)[-1], abs=0.05)
    assert realism.share_of_copies(real, real)[0] <= 1 / 20


class Smoothing:
    """Stands in for a VQ-VAE: its codes are the images, and it decodes them smoother."""

    encode = staticmethod(np.asarray)

    @staticmethod
    def decode(codes):
        return ndimage.gaussian_filter(codes, (0, 0.7, 0.7, 0))


def test_training_slices_given_as_samples_are_caught(rng, monkeypatch):
    images, people = people_of_slices(rng, 12)
    split = np.repeat(["train", "test"], [8 * 4, 4 * 4])
    rows = [(f"{i}", people[i], "", i % 4, (i % 4) / 4, "", split[i], i) for i in range(len(images))]
    pixels = (images * 255).round().astype("uint8")
    slices = pd.DataFrame(rows, columns=dataset.COLUMNS)
    data = dataset.Data(pixels, slices, "made up", "", "regex", "", [], [], {"plane": "coronal"})
    stolen = np.arange(1, 15)  # of training people
    codes = data.pixels(data.of("test"))[..., None]
    encoded = []
    monkeypatch.setattr(Smoothing, "encode", staticmethod(lambda images: encoded.append(len(images)) or images))

    def judge(samples, positions):
        return realism.judge_samples(samples, positions, data, Smoothing(), codes)

    result, closest = judge(pixels[stolen] / np.float32(255), (stolen % 4) / 4)
    assert encoded == [14]  # the floor alone: the codes of test slices are known
    assert result["copies"]["share_of_samples"] == 1
    assert result["copies"]["share_of_samples_by_reconstructions"] == 1
    assert result["copies"]["most_ms_ssim_samples"] == pytest.approx(1)
    for sample, index, likeness in closest:
        assert index == stolen[sample]
        assert likeness > 0.999
    honest, _ = judge(images[32:], (np.arange(16) % 4) / 4)
    assert honest["copies"]["share_of_samples"] <= 1 / 16
    assert honest["samples"]["frechet_distance"] < 0.01 * honest["floor"]["frechet_distance"]
    assert honest["decoded_floor"]["power_ratio"][7] < 0.5 * honest["floor"]["power_ratio"][7]
    smooth, again = (Smoothing.decode(some)[..., 0] for some in (images[1:9, ..., None], codes[::2]))
    copies, _ = realism.find_copies({"samples": smooth, "test_slices": again, "reconstructions": again}, data)
    assert copies["share_of_samples_by_reconstructions"] > 0.9  # copies that are smooth


def test_nobody_is_in_the_floor_and_in_the_feature_space_and_labels_are_in_both():
    slices = make_slices(14)  # two slices each, ordered by label as in ADNI's folders
    slices["split"] = np.where(slices.subject_id < "p0010", "train", "test")
    slices["label"] = np.where(slices.index < 10, "AD", "NC")
    floor, space = realism.choose_floor(slices, 8)
    assert len(floor) == 8
    assert not set(floor.subject_id) & set(space.subject_id)
    assert set(floor.split) == set(space.split) == {"train"}
    assert set(floor.label) == set(space.label) == {"AD", "NC"}
    assert len(realism.choose_floor(slices, 1000)[0]) == 10  # half of the people


def test_what_cannot_be_judged_is_said():
    slices = make_slices(10)
    slices["split"] = np.where(slices.index < 14, "train", "test")
    assert realism.can_judge(pd.concat([slices, slices[-4:]])) == ""
    assert "five test slices beside" in realism.can_judge(slices)
    slices["subject_id"] = np.where(slices.split == "test", "p", "q")
    assert "two people for training" in realism.can_judge(pd.concat([slices] * 3))


def test_baselines_keep_to_their_bits(rng):
    images, _ = people_of_slices(rng, 20, size=64)
    training = (images[:60] * 255).round().astype("uint8")
    image = images[70]
    errors = []
    for bits in (0.5, 1.0, 2.0, 100.0):
        output, used = baselines.jpeg(image, bits)
        assert used <= bits or bits == 0.5
        errors.append(np.abs(output - image).mean())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01
    components = baselines.PrincipalComponents(training, np.arange(60), 0.05)
    assert components.bits_per_pixel == 25 * 8 / 64**2  # 0.05 * 4096 / 8 components
    output = components(image)
    assert output.shape == image.shape
    assert np.abs(output - image).mean() < np.abs(training.mean(0) / 255 - image).mean()
    for alike in (training[:1], np.repeat(training[:1], 4, axis=0)):  # nothing beyond the mean to tell
        components = baselines.PrincipalComponents(alike, np.arange(len(alike)), 0.05)
        assert components.bits_per_pixel == 0
        np.testing.assert_allclose(components(image), training[0] / 255, atol=1e-6)
    own = baselines.PrincipalComponents(training[:10], np.arange(10), 1.0)  # as many as ten slices have
    assert np.abs(own(images[3]) - images[3]).mean() < 0.01


def test_mean_slice_goes_by_position(rng):
    images = rng.integers(0, 256, (8, 16, 16)).astype("uint8")
    rows, positions = np.array([1, 2, 5]), np.array([0.0, 0.0, 1.0])
    mean = baselines.MeanSlice(images, rows, positions)
    np.testing.assert_allclose(mean(0.01), (images[1].astype(float) + images[2]) / 2 / 255, atol=1e-6)
    np.testing.assert_allclose(mean(0.99), images[5] / 255, atol=1e-6)
    np.testing.assert_allclose(mean(0.5), images[rows].mean(0) / 255, atol=1e-6)


def test_cells_are_means():
    planes = np.arange(2 * 6 * 6.0).reshape(2, 6, 6)
    expected = planes.reshape(2, 3, 2, 3, 2).mean((2, 4)).transpose(1, 2, 0)
    np.testing.assert_allclose(realism._cells(planes, 3), expected)
