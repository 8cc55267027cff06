"""Figures of anatomy on drawn heads, whose ventricles, folds and outline are known."""

import json

import numpy as np
import pytest
from scipy import ndimage, stats

from evaluation import anatomy

SIZE = 128


def ellipse(down, right, length, width, size=SIZE):
    """bool, (size, size): an ellipse by its middle and half axes, in units where the image spans from -1 to 1."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    return ((y - down) / length) ** 2 + ((x - right) / width) ** 2 < 1


def folds(broken=False):
    """Five arcs on each side, bool, (SIZE, SIZE), 3 pixels wide, about 19 long; `broken` takes the middle of each."""
    drawn = np.zeros((SIZE, SIZE), bool)
    for side in (-1, 1):
        for row in np.linspace(-0.36, 0.36, 5):
            t = np.arange(0, 18, 0.25)
            t = t[np.abs(t - 9) > 5] if broken else t
            y, x = (row + 1) * 63.5 + 3 * np.sin(t / 6), 63.5 + side * (16 + t)
            drawn[y.round().astype(int), x.round().astype(int)] = True
    return ndimage.binary_dilation(drawn) & ellipse(0, 0, 0.75, 0.62)


def draw(left=1.0, right=1.0, scalp=True, broken=False, touching=False):
    """A head: white brain with folds, two ventricles whose areas are `left` and `right`, a scalp; float32 in [0, 1]."""
    image = np.where(ellipse(0, 0, 0.75, 0.62), 0.8, 0.0)
    image[folds(broken)] = 0.4
    for side, area in ((-1, left), (1, right)):
        at = 0.06 if touching else 0.11
        if area:
            image[ellipse(0, side * at, 0.18 * area, 0.07)] = 0.2
    if scalp:
        image[ellipse(0, 0, 0.92, 0.79) & ~ellipse(0, 0, 0.86, 0.73)] = 0.7
    grain = 0.01 * np.random.default_rng(0).standard_normal(image.shape)
    return np.where(image > 0, ndimage.gaussian_filter(image, 0.5) + grain, 0).clip(0, 1).astype("float32")


@pytest.mark.parametrize("scalp", [True, False])
def test_both_ventricles_are_found_at_their_area(scalp):
    left, right = anatomy.ventricles(draw(scalp=scalp))
    head = ellipse(0, 0, *((0.92, 0.79) if scalp else (0.75, 0.62))).sum()
    truth = ellipse(0, 0.11, 0.18, 0.07).sum() / head
    assert left == pytest.approx(truth, rel=0.2)
    assert right == pytest.approx(truth, rel=0.2)


def test_a_ventricle_painted_out_is_missing_though_the_third_one_and_the_fissure_stay():
    image = draw(left=0)
    image[ellipse(0.1, 0, 0.2, 0.02)] = 0.2  # third ventricle, on the midline
    image[ellipse(-0.6, 0, 0.2, 0.02)] = 0.2  # fissure
    left, right = anatomy.ventricles(image)
    assert left == 0
    assert right > 0.005
    assert anatomy.ventricles(image[:, ::-1])[1] == 0
    assert anatomy.ventricles(draw(left=0, right=0)) == (0, 0)


def test_faint_grey_tiny_and_far_pieces_are_no_ventricles():
    image = draw(left=0)
    for piece, grey in (
        (ellipse(-0.1, -0.12, 0.12, 0.05), 0.58),  # a caudate nucleus
        (ellipse(0.2, -0.15, 0.02, 0.02), 0.2),  # a vessel
        (ellipse(0.1, -0.45, 0.15, 0.1), 0.2),  # the island's fold
    ):
        changed = np.where(piece, grey, image)
        assert (changed != image).any()
        assert anatomy.ventricles(changed)[0] == 0


def test_log_ratio_of_a_doubled_ventricle_also_where_they_touch_and_the_head_is_tilted():
    for touching in (False, True):
        for angle in (0, 10):
            image = draw(left=2, touching=touching)
            image = ndimage.rotate(image, angle, reshape=False, order=1).clip(0, 1)
            left, right = anatomy.ventricles(image)
            assert np.log(left / right) == pytest.approx(np.log(2), abs=0.2)


def test_broken_folds_are_shorter():
    whole, broken = (anatomy.fold_lengths(draw(broken=b)) for b in (False, True))
    assert np.sort(whole)[:10] == pytest.approx(19, abs=4)  # then the ventricles' outlines
    assert len(broken) == len(whole) + 10
    assert np.median(broken) < np.median(whole) / 2
    skeleton = anatomy.fold_skeleton(draw())
    near = ndimage.binary_dilation(folds(), iterations=2) | ellipse(0, 0, 0.25, 0.25)
    assert skeleton[near].sum() > 0.95 * skeleton.sum()  # neither scalp nor rim is a fold


@pytest.mark.parametrize("scalp", [True, False])
def test_brain_mask_is_the_brain(scalp):
    image, truth = draw(scalp=scalp), ellipse(0, 0, 0.75, 0.62)
    if scalp:
        image[5:20, 64] = 0.7  # a vein from the scalp to the brain
    assert (anatomy.brain_mask(image) ^ truth).sum() < 0.03 * truth.sum()


def test_outline_sees_a_cut_a_dent_and_a_stray_piece():
    image = draw()
    assert anatomy.outline(image) == (1, pytest.approx(1, abs=0.02))
    cut = image.copy()
    cut[:15, 60:68] = 0  # through the scalp, not into the brain
    pieces, _ = anatomy.outline(cut)
    assert pieces == 2
    dent = np.where(ellipse(0, 0.7, 0.35, 0.45), 0, draw(scalp=False))
    assert anatomy.outline(dent)[0] == 1
    assert anatomy.outline(dent)[1] < 0.9
    stray = image.copy()
    stray[2:6, 2:6] = 0.7
    assert anatomy.outline(stray)[0] == 2
    stray[2:6, 2:6] = 0
    stray[3, 3] = 0.7  # a speck
    assert anatomy.outline(stray)[0] == 1


@pytest.mark.parametrize("size", [32, 128])
def test_images_without_a_head_say_nothing(size):
    one = np.zeros((size, size), "float32")
    one[5, 7] = 1
    images = [np.zeros((size, size), "float32"), np.full((size, size), 0.5, "float32"), np.ones((size, size)), one]
    images.append(np.random.default_rng(0).random((size, size)))
    table = anatomy.measure(images, [0.5] * 5)
    assert table.ventricle_left[:3].isna().all()
    assert list(table.outline_pieces[:4]) == [0, 0, 0, 0]
    assert table.outline_solidity[:4].isna().all()
    nothing = anatomy.describe(table[:3])
    assert nothing["number"] == 3
    assert nothing["both_ventricles"] == 0
    assert [nothing[k] for k in ("ventricle_log_ratio", "fold_length_median", "outline_solidity")] == [None] * 3
    assert set(anatomy.distances(table[:3], table).values()) == {None}
    empty = anatomy.describe(anatomy.measure([], []))
    assert empty["number"] == empty["ventricle_number"] == 0
    assert empty["both_ventricles"] is empty["outline_pieces"] is None


def test_figures_of_a_set_are_those_counted_by_hand():
    images = [draw(), draw(left=2), draw(left=0), draw(right=1.5, broken=True), draw(left=0)]
    positions = [0.4, 0.5, 0.65, 0.6, 0.7]  # the last lies outside the window
    table = anatomy.measure(images, positions)
    found = anatomy.describe(table)
    json.dumps(found, allow_nan=False)
    ratios = [abs(np.log(left / right)) for left, right in map(anatomy.ventricles, images) if left * right > 0]
    lengths = [anatomy.fold_lengths(image) for image in images]
    outlines = np.array([anatomy.outline(image) for image in images])
    assert found == {
        "number": 5,
        "ventricle_number": 4,
        "both_ventricles": 0.75,
        "ventricle_log_ratio": pytest.approx(np.mean(ratios)),
        "fold_length_median": pytest.approx(np.median([np.mean(one) for one in lengths])),
        "outline_pieces": outlines[:, 0].mean(),
        "outline_solidity": pytest.approx(outlines[:, 1].mean()),
    }
    assert len(ratios) == 3
    real = table[:2]
    apart = anatomy.distances(table, real)
    assert apart["fold_length_distance"] == pytest.approx(
        stats.wasserstein_distance(np.concatenate(lengths), np.concatenate(lengths[:2]))
    )
    assert apart["solidity_distance"] == pytest.approx(stats.wasserstein_distance(outlines[:, 1], outlines[:2, 1]))
    assert apart["ventricle_log_ratio_distance"] == pytest.approx(stats.wasserstein_distance(ratios, ratios[:2]))
    assert set(anatomy.distances(table, table).values()) == {0}
    assert anatomy.describe(table[4:])["both_ventricles"] is None
