"""Whether slices show the anatomy of a head: two ventricles of like size, folds of full length, an uncut outline.

    real = anatomy.measure(data.pixels(slices), slices.slice_position)      # a DataFrame, one row a slice
    made = anatomy.measure(samples, positions)
    anatomy.describe(made) | anatomy.distances(made, real)

The images are axial: rows run along the head, columns from side to side. No figure here is a feature of the Fréchet
distance, nor of a loss. None means much without the same figure of real people at the same slice positions.
"""

import numpy as np
import pandas as pd
from scipy import ndimage, stats
from skimage.filters import sato, threshold_otsu
from skimage.measure import regionprops
from skimage.morphology import disk, skeletonize

from evaluation import metrics

PAIR_WINDOW = (0.4, 0.65)  # slice positions at which both lateral ventricles are to be seen
# Lengths across are in half-widths of the head, lengths along it in half-lengths.
WIDTH, LENGTH = 0.42, 0.5  # half axes of the ellipse that holds ventricles
DARK = 0.78  # fluid is darker than this share of the ellipse's median
CORE = 0.65  # the darkest pixel of a ventricle is below this share: it is no caudate nucleus, nor a faint fold
REACH = 0.08  # a lateral ventricle reaches so far from the midline; the third ventricle and the fissure do not
LEAST = 0.001  # area of the smallest ventricle, as a share of the head's; 7 pixels of 128, 20 of 224
RIDGE = 0.06  # response of the ridge filter on a fold, for an image whose local mean is 1
EIGHT = np.ones((3, 3), int)  # neighbours by an edge or a corner
COLUMNS = ["slice_position", "ventricle_left", "ventricle_right", "fold_lengths", "outline_pieces", "outline_solidity"]


def midline(head):
    """Column of a head's middle in each row: the line through the rows' middles by Theil and Sen, which heeds no ear.

    Args:
        head: bool, shape (S, S), not empty.

    Returns:
        float, shape (S,); a line, so that a tilted head is parted aslant.
    """
    rows = np.flatnonzero(head.any(axis=1))
    first = head[rows].argmax(axis=1)
    last = head.shape[1] - 1 - head[rows, ::-1].argmax(axis=1)
    wide = last - first >= np.ptp((first.min(), last.max())) / 2  # the nose says little of where the middle is
    if wide.sum() < 2:
        return np.full(len(head), (first.min() + last.max()) / 2)
    slope, start, _, _ = stats.theilslopes((first + last)[wide] / 2, rows[wide])
    return start + slope * np.arange(len(head))


def ventricle_masks(image):
    """The left and the right lateral ventricle of a slice: two masks, bool, shape (S, S); left is left in the image.

    A ventricle is a dark piece of an ellipse in the middle of the head, parted at the midline. It is large enough, dark
    enough and reaches far enough from the midline. A piece that lies mostly outside the ellipse is none: it is a fold.

    Args:
        image: float in [0, 1], shape (S, S).
    """
    head = metrics.head_mask(image)
    masks = np.zeros((2, *image.shape), bool)
    if not head.any():
        return masks
    rows = np.flatnonzero(head.any(axis=1))
    across = (np.arange(image.shape[1]) - midline(head)[:, None]) / (head.sum(axis=1).max() / 2)
    along = (np.arange(len(image))[:, None] - rows.mean()) / ((np.ptp(rows) + 1) / 2)
    middle = head & ((across / WIDTH) ** 2 + (along / LENGTH) ** 2 < 1)
    if not middle.any():
        return masks
    grey = np.median(image[middle])
    pieces, number = ndimage.label(head & (image < DARK * grey))
    within = np.bincount(pieces[middle], minlength=number + 1) > np.bincount(pieces.ravel()) / 2
    dark = middle & within[pieces] & (pieces > 0)
    for mask, side in zip(masks, (across < 0, across >= 0), strict=True):
        pieces, number = ndimage.label(dark & side)
        if number:
            areas = np.bincount(pieces.ravel())
            reach = ndimage.maximum(np.abs(across), pieces, np.arange(number + 1))
            core = ndimage.minimum(image, pieces, np.arange(number + 1))
            good = (areas >= LEAST * head.sum()) & (reach >= REACH) & (core < CORE * grey)
            mask[:] = good[pieces] & (pieces > 0)
    return masks


def ventricles(image):
    """Areas of the left and the right ventricle as shares of the head's: two floats, 0 for none, NaN without a head."""
    head = metrics.head_mask(image).sum()
    return tuple(float(mask.sum() / head) if head else np.nan for mask in ventricle_masks(image))


def brain_mask(image):
    """The brain without skull and scalp; bool, shape of `image`, float in [0, 1].

    What is brighter than 0.4 of the inner head's median, cut loose from the scalp by an opening of about 2 mm, the
    largest part, closed over folds, holes filled. It is the whole head where no skull is shown.
    """
    head = metrics.head_mask(image)
    if not head.any():
        return head
    depth = ndimage.distance_transform_edt(head)
    bright = head & (image > 0.4 * np.median(image[depth > depth.max() / 2]))
    pieces, number = ndimage.label(ndimage.binary_opening(bright, disk(max(1, round(len(image) / 100)))))
    if not number:
        return np.zeros_like(head)
    largest = pieces == np.argmax(np.bincount(pieces.ravel())[1:]) + 1
    gap = max(1, round(len(image) / 43))
    closed = ndimage.binary_closing(np.pad(largest, gap), disk(gap))[gap:-gap, gap:-gap]
    return ndimage.binary_fill_holes(closed)


def fold_skeleton(image):
    """Middle lines of the dark ridges inside the brain (folds, and slits of fluid), bool, shape of `image`.

    Ridges are those of Sato et al. 1998, at a width of about 2.4 of 128 pixels, in the image over its local mean. What
    is not brain is black first, or the brain's rim would be a ridge between it and the scalp.
    """
    brain = brain_mask(image)
    if not brain.any():
        return brain
    inside, width = np.where(brain, image, 0).astype("float32"), len(image) / 16
    weight = ndimage.gaussian_filter(brain.astype("float32"), width)
    local = ndimage.gaussian_filter(inside, width) / np.maximum(weight, 1e-3)
    ridges = sato(inside / np.maximum(local, 1e-3), sigmas=[1.2 * len(image) / 128])
    return skeletonize((ridges > RIDGE) & brain)


def fold_lengths(image):
    """Lengths in pixels of the connected pieces of a slice's folds: integers, shape (pieces,), may be empty.

    Pieces below 3 of 128 pixels are left out.
    """
    pieces, _ = ndimage.label(fold_skeleton(image), EIGHT)
    lengths = np.bincount(pieces.ravel())[1:]
    return lengths[lengths >= 3 * len(image) / 128]


def outline(image):
    """Pieces of a head, and solidity of the largest: its area over that of its convex hull, from 0 to 1.

    The head is what is brighter than half of Otsu's threshold, with its holes filled. Nothing is closed before: a
    scalp that is cut open leaves the brain a piece of its own. Pieces below 4 pixels are left out.

    Returns:
        (pieces, solidity): 0 and NaN for an image without a head.
    """
    if image.min() == image.max():
        return 0, np.nan
    pieces, _ = ndimage.label(ndimage.binary_fill_holes(image > threshold_otsu(image) / 2), EIGHT)
    areas = np.bincount(pieces.ravel())[1:]
    if not (areas >= 4).any():
        return 0, np.nan
    (largest,) = regionprops((pieces == areas.argmax() + 1).astype("uint8"))
    return int((areas >= 4).sum()), float(largest.solidity)


def measure(images, positions):
    """All of the above for a set: a DataFrame with a row for each image.

    Args:
        images: float in [0, 1], shape (n, S, S).
        positions: Slice positions, from 0 to 1, shape (n,).

    Returns:
        Columns `slice_position`, `ventricle_left`, `ventricle_right`, `fold_lengths` (an array in each row),
        `outline_pieces`, `outline_solidity`.
    """
    rows = [
        (float(position), *ventricles(image), fold_lengths(image), *outline(image))
        for image, position in zip(images, positions, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _log_ratios(table):
    """|log(left / right)| of the slices in the window that have both ventricles, and which of those there have."""
    inside = table[table.slice_position.between(*PAIR_WINDOW)]
    both = (inside.ventricle_left > 0) & (inside.ventricle_right > 0)
    left, right = inside.ventricle_left[both], inside.ventricle_right[both]
    return np.abs(np.log((left / right).to_numpy(float))), both


def _mean(values):
    """Mean of what is finite, as a Python float; None where nothing is."""
    values = np.asarray(values, float)
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else None


def _folds(table):
    return np.concatenate([*table.fold_lengths, np.zeros(0, int)])


def describe(table):
    """Figures of a set, by its table from `measure`: a dictionary of JSON numbers; None where nothing can be said.

    `number`; `ventricle_number`, slices in the window of positions 0.4 to 0.65; of these `both_ventricles`, the share
    that shows a left and a right one, and `ventricle_log_ratio`, mean |log(left / right)| of those; of all slices
    `fold_length_median` (pixels), the median of each slice's mean, `outline_pieces` and `outline_solidity` (means).
    """
    ratios, both = _log_ratios(table)
    folds = [lengths.mean() for lengths in table.fold_lengths if len(lengths)]
    return {
        "number": len(table),
        "ventricle_number": len(both),
        "both_ventricles": _mean(both),
        "ventricle_log_ratio": _mean(ratios),
        "fold_length_median": float(np.median(folds)) if folds else None,
        "outline_pieces": _mean(table.outline_pieces),
        "outline_solidity": _mean(table.outline_solidity),
    }


def distances(table, real):
    """Wasserstein distances (of order 1) from a set's values to real slices', by their tables from `measure`.

    Returns:
        Dictionary: `fold_length_distance` (pixels), `solidity_distance`, `ventricle_log_ratio_distance`; None where
        either side has no value. The slice positions of both sets should be distributed alike.
    """

    def distance(values, others):
        a, b = (np.asarray(x, float)[np.isfinite(np.asarray(x, float))] for x in (values, others))
        return float(stats.wasserstein_distance(a, b)) if len(a) and len(b) else None

    return {
        "fold_length_distance": distance(_folds(table), _folds(real)),
        "solidity_distance": distance(table.outline_solidity, real.outline_solidity),
        "ventricle_log_ratio_distance": distance(_log_ratios(table)[0], _log_ratios(real)[0]),
    }
