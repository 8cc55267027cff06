"""Figures of merit, on images in [0, 1] and per person.

A data set of slices holds few people and many slices of each, so a mean is taken within each person first, and the
interval is a bootstrap over people.
"""

import math

import keras
import numpy as np
import pandas as pd
from scipy import ndimage, stats
from skimage.filters import threshold_otsu
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from skimage.morphology import disk

from extensions import losses


def percent(share):
    """A share as text, "99.8%"; "100%" is said of all alone."""
    return "100%" if share == 1 else f"{min(100 * share, 99.9):.1f}%"


def head_mask(image):
    """The head in a slice, scalp and skull included where they are shown; bool, shape of `image`.

    What is brighter than half of Otsu's threshold (Otsu's own parts the brain from everything darker, and then the
    scalp is now in and now out), closed over gaps of a twentieth of the image, holes filled, the largest part. A slice
    of a single value has no head: its mask is empty.
    """
    if image.min() == image.max():
        return np.zeros(image.shape, bool)
    gap = max(1, round(image.shape[0] / 43))  # 3 of 128 pixels on either side
    closed = ndimage.binary_closing(np.pad(image > threshold_otsu(image) / 2, gap), disk(gap))[gap:-gap, gap:-gap]
    labels, number = ndimage.label(ndimage.binary_fill_holes(closed))
    return labels == np.argmax(np.bincount(labels.ravel(), minlength=number + 1)[1:]) + 1


def slice_metrics(image, reconstruction):
    """SSIM, SSIM inside the head, PSNR in dB and L1 of one slice.

    SSIM as in Wang et al. 2004: Gaussian weights of sigma 1.5, population covariance, data range 1.

    Args:
        image, reconstruction: float arrays in [0, 1], shape (height, width).

    Returns:
        Dictionary of numbers; `ssim_head` is NaN where there is no head.

    Raises:
        ValueError: If a value lies outside [0, 1], since the data range would then not be 1.
    """
    for name, values in (("image", image), ("reconstruction", reconstruction)):
        if values.min() < 0 or values.max() > 1:
            raise ValueError(f"{name}: values from {values.min():g} to {values.max():g}, not in [0, 1]")
    ssim, local = structural_similarity(
        image, reconstruction, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, full=True
    )
    mask = head_mask(image)
    identical = np.array_equal(image, reconstruction)
    return {
        "ssim": float(ssim),
        "ssim_head": float(local[mask].mean()) if mask.any() else math.nan,
        "psnr_db": math.inf if identical else float(peak_signal_noise_ratio(image, reconstruction, data_range=1.0)),
        "l1": float(np.abs(image - reconstruction).mean()),
    }


def ms_ssim(images, others):
    """MS-SSIM of pairs of images in [0, 1], shape (n, S, S), by `losses.ms_ssim`: float32, shape (n,)."""
    images, others = (np.asarray(x, "float32")[..., None] for x in (images, others))
    parts = [slice(start, start + 64) for start in range(0, len(images), 64)]
    return np.concatenate([keras.ops.convert_to_numpy(losses.ms_ssim(images[i], others[i])) for i in parts])


def batch_metrics(images, outputs):
    """`slice_metrics` and `ms_ssim` of each pair: float in [0, 1], shape (n, S, S) -> n dictionaries."""
    return [
        {**slice_metrics(image, output), "ms_ssim": float(likeness)}
        for image, output, likeness in zip(images, outputs, ms_ssim(images, outputs), strict=True)
    ]


def summarise(per_slice, subject_ids):
    """`over_people` of each metric of a list of dictionaries, one a slice."""
    return {name: over_people([values[name] for values in per_slice], subject_ids) for name in per_slice[0]}


def person_by_person(slices, per_slice):
    """A DataFrame with a row for each person: subject_id, label, number of slices, mean of each metric where finite.

    Args:
        slices: DataFrame of the slices.
        per_slice: A dictionary of metrics for each.
    """
    values = pd.DataFrame(per_slice, index=slices.index).replace([np.inf, -np.inf], np.nan)
    people = slices.groupby("subject_id", sort=False)
    about = people.label.agg(label="first", slices="size")
    return about.join(values.groupby(slices.subject_id, sort=False).mean()).reset_index()


def over_people(values, subject_ids):
    """Mean over people of each person's mean, with a 95 % bootstrap interval over people.

    Args:
        values: One number for each slice. Those that are not finite are left out: the SSIM inside a head that a slice
            does not have, the PSNR of a slice that is reproduced exactly.
        subject_ids: Whose slice it is, same length.

    Returns:
        Dictionary of `mean` (None if nothing is left), `ci95` (low, high; None below two people), `people` and
        `slices`, the number of each that is left.
    """
    values, subject_ids = np.asarray(values, float), np.asarray(subject_ids)
    finite = np.isfinite(values)
    values, subject_ids = values[finite], subject_ids[finite]
    means = np.array([values[subject_ids == person].mean() for person in np.unique(subject_ids)])
    interval = None
    if len(means) > 1:
        resampled = stats.bootstrap((means,), np.mean, method="percentile", rng=np.random.default_rng(0))
        interval = [float(resampled.confidence_interval.low), float(resampled.confidence_interval.high)]
    mean = float(means.mean()) if len(means) else None
    return {"mean": mean, "ci95": interval, "people": len(means), "slices": len(values)}


def codebook_metrics(codes, num_embeddings, pixels_per_code):
    """Use of the codebooks on a set of slices.

    Args:
        codes: Integers in [0, num_embeddings), of D levels, shape (..., D).
        num_embeddings: Entries of each codebook, K.
        pixels_per_code: Pixels that each place stands for: the downsampling factor squared.

    Returns:
        Dictionary: `num_embeddings`, K; `num_quantizers`, D; `perplexity` (1 to K) of the first level, and
        `perplexity_by_level`; `codes_in_use` (share of K, mean of the levels); `bits_per_pixel` at log2 K bits a code,
        `entropy_bits_per_code`, the mean of the levels, and `entropy_bits_per_pixel`, by the codes' histograms.
    """
    levels = np.reshape(codes, (-1, np.shape(codes)[-1])).T
    counts = [np.bincount(level, minlength=num_embeddings) for level in levels]
    entropy = [float(stats.entropy(one, base=2)) for one in counts]
    return {
        "num_embeddings": num_embeddings,
        "num_quantizers": len(levels),
        "perplexity": 2 ** entropy[0],
        "perplexity_by_level": [2**bits for bits in entropy],
        "codes_in_use": float(np.mean([(one > 0).mean() for one in counts])),
        "bits_per_pixel": len(levels) * math.log2(num_embeddings) / pixels_per_code,
        "entropy_bits_per_code": float(np.mean(entropy)),
        "entropy_bits_per_pixel": sum(entropy) / pixels_per_code,
    }


def effective_dimension(vectors):
    """In how many directions vectors (n, E) vary, by the participation ratio of their covariance's eigenvalues.

    (sum of l)^2 / sum of l^2, from 1 to E: E where all directions vary alike; 0 where none does.
    """
    if len(vectors) < 2:
        return 0.0
    variances = np.linalg.eigvalsh(np.atleast_2d(np.cov(vectors, rowvar=False)))
    return float(variances.sum() ** 2 / max(1e-30, np.square(variances).sum()))
