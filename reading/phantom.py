"""The embedded demo cohort: synthetic people made from the ICBM 152 templates, written as ADNI's images are.

    python -m reading.phantom OUTPUT_DIR    # AD_NC/{train,test}/{AD,NC}/<id>_<slice>.jpeg, 100 people, about a minute

nilearn ships the ICBM 152 nonlinear templates (2009a) of T1 intensity, grey and white matter at 1 mm. A synthetic
person is that anatomy under

- a smooth random diffeomorphism: a stationary velocity field, integrated by scaling and squaring
  (Arsigny et al., MICCAI 2006);
- tissue maps of its own: noise on the tissues' log odds moves sulci and gyri where the average of many brains is
  undecided;
- contrasts, a bias field and Rician noise of its own (Gudbjartsson and Patz, MRM 1995).

Half of the people are labelled AD: their ventricles are expanded and their cortex gives way to fluid. The label is a
caricature of atrophy, there to give the conditional model something to learn; it says nothing about the disease.
"""

import argparse
import functools
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
from scipy import ndimage
from tqdm import tqdm

VERSION = 1  # raise when the pictures change
NUM_PEOPLE = 100
SLICES_MM = np.arange(-10, 30, 2)  # heights of the 20 axial slices in MNI space
FIRST_SLICE = 78  # number of the lowest one in the file names, as in ADNI
HEIGHT, WIDTH, PIXEL_MM = 240, 256, 0.85
COARSE_MM = 4  # grid of the velocity fields
SQUARINGS = 6
CREDIT = "synthetic people made from the ICBM 152 nonlinear 2009a templates (Fonov et al. 2011)"


@functools.cache
def _template():
    """Log odds of grey matter, white matter and fluid; leftover T1 detail; brain mask; ventricle pull; affine."""
    grey, white = (load(resolution=1) for load in (load_mni152_gm_template, load_mni152_wm_template))
    image = load_mni152_template(resolution=1)
    grey, white, t1 = (np.asarray(i.dataobj, "float32") for i in (grey, white, image))
    t1 = t1 / np.percentile(t1[t1 > 0], 99.5)
    brain = ndimage.binary_fill_holes(ndimage.binary_opening(t1 > 0.05, iterations=2))
    fluid = np.clip(brain - grey - white, 0, 1)
    tissues = np.stack([grey, white, fluid]) + 1e-3
    tissues /= tissues.sum(axis=0)
    means = np.linalg.lstsq(tissues[:, brain].T, t1[brain], rcond=None)[0]
    detail = np.where(brain, t1 - np.tensordot(means, tissues, 1), 0)

    x, y, z = np.meshgrid(*(np.arange(n) for n in t1.shape), indexing="ij", sparse=True)
    (sx, _, _, ox), (_, sy, _, oy), (_, _, sz, oz), _ = image.affine
    middle = (
        (abs(sx * x + ox) < 38) & (sy * y + oy > -50) & (sy * y + oy < 35) & (sz * z + oz > -12) & (sz * z + oz < 32)
    )
    labels, _ = ndimage.label((fluid > 0.5) & middle)
    ventricles = labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1
    # Sampling from nearer the ventricles' middle makes them larger: the pull is the slope of their blurred mask.
    blurred = ndimage.gaussian_filter(ventricles.astype("float32"), 4)[::COARSE_MM, ::COARSE_MM, ::COARSE_MM]
    pull = np.stack(np.gradient(blurred))
    return (
        np.log(tissues).astype("float32"),
        detail.astype("float32"),
        brain.astype("float32"),
        pull / abs(pull).max(),
        image.affine,
    )


def _smooth_noise(rng, shape, sigma):
    """Gaussian-filtered white noise of unit variance."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, "float32"), sigma, mode="wrap")
    return noise / noise.std()


def _sample(volume, points, spacing=1):
    """Linear interpolation of a volume at points (3, ...), given in voxels of 1 mm."""
    return ndimage.map_coordinates(volume, points / spacing, order=1, mode="nearest", output="float32")


def _displacement(rng, atrophy):
    """Displacement in mm on the coarse grid, (3, X, Y, Z): the exponential of a random velocity field."""
    pull = _template()[3]
    shape = pull.shape[1:]
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype="float32") * COARSE_MM for n in shape), indexing="ij"))
    centre = grid.reshape(3, -1).mean(axis=1)[:, None, None, None]
    velocity = np.stack([2.5 * _smooth_noise(rng, shape, 6) + 1.0 * _smooth_noise(rng, shape, 2.5) for _ in range(3)])
    linear = np.diag(rng.normal(0, 0.03, 3)) + 0.02 * np.array(
        [[0, 1, 1], [-1, 0, 1], [-1, -1, 0]]
    ) * rng.standard_normal((3, 1))  # size, a little rotation and shear
    velocity += np.tensordot(linear, grid - centre, 1) + 5.0 * atrophy * pull
    displacement = (velocity / 2**SQUARINGS).astype("float32")
    for _ in range(SQUARINGS):
        moved = grid + displacement
        displacement = displacement + np.stack([_sample(component, moved, COARSE_MM) for component in displacement])
    return displacement


def make_person(seed, label):
    """Axial slices of one synthetic person.

    Args:
        seed: Integer or sequence of integers; the same seed gives the same person.
        label: "AD" or "NC".

    Returns:
        uint8 of shape (20, 240, 256), lowest slice first; rows run from anterior to posterior, columns from the
        person's left to right.
    """
    log_odds, detail, brain, _, affine = _template()
    rng = np.random.default_rng(seed)
    atrophy = rng.uniform(0.6, 1.4) if label == "AD" else rng.normal(0, 0.15)
    displacement = _displacement(rng, atrophy)

    across = (np.arange(WIDTH) - (WIDTH - 1) / 2) * PIXEL_MM
    along = ((HEIGHT - 1) / 2 - np.arange(HEIGHT)) * PIXEL_MM - 18  # the brain's middle lies 18 mm behind MNI's origin
    world = np.stack(np.meshgrid(SLICES_MM, along, across, indexing="ij"))[::-1].astype("float32")  # x, y, z
    voxel = (world - affine[:3, 3, None, None, None]) / np.diag(affine)[:3, None, None, None]
    points = voxel + np.stack([_sample(component, voxel, COARSE_MM) for component in displacement])

    mask = _sample(brain, points)
    inside = mask > 0.05
    points, mask = points[:, inside], mask[inside]
    odds = np.stack([2.0 * _sample(tissue, points) for tissue in log_odds])
    fields = [rng.standard_normal([n // 3 + 2 for n in brain.shape], "float32") for _ in range(2)]
    odds[0] += 1.2 * _sample(fields[0], points, 3)
    odds[1] += 1.2 * _sample(fields[1], points, 3)
    odds[2] += 1.5 * atrophy  # thinner cortex, wider sulci
    tissues = np.exp(odds - odds.max(axis=0))
    tissues /= tissues.sum(axis=0)

    means = np.array([0.58, 0.86, 0.18]) + rng.normal(0, [0.03, 0.02, 0.03])
    signal = np.tensordot(means, tissues, 1) + 0.6 * _sample(detail, points)
    unit = world[:, inside] / 80
    bias = rng.normal(0, 0.06, 3) @ unit + rng.normal(0, 0.05, 3) @ unit**2
    signal = np.clip(signal, 0, None) * np.exp(bias) * mask
    noise = rng.uniform(0.008, 0.02) * rng.standard_normal((2, len(mask)))
    signal = np.hypot(signal + noise[0], noise[1]) * (mask > 0.5)  # Rician; skull-stripped images are black outside

    slices = np.zeros(inside.shape, "float32")
    slices[inside] = signal
    return (np.clip(slices / np.percentile(signal, 99.5), 0, 1) * 255).round().astype("uint8")


def make_cohort(output_dir, num_people=NUM_PEOPLE, seed=0):
    """Writes a cohort in ADNI's layout; every fifth person is for testing, every second labelled AD.

    The folder appears under its name only when it is whole. An existing folder is left as it is.
    """
    output_dir = Path(output_dir)
    if output_dir.exists():
        return
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(".partial", dir=output_dir.parent, ignore_cleanup_errors=True) as folder:
        partial = Path(folder) / output_dir.name

        def write(person):
            label, part = ("AD", "NC")[person % 2], "test" if person % 5 == 4 else "train"
            images = partial / "AD_NC" / part / label
            images.mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(make_person([seed, person], label), FIRST_SLICE):
                PIL.Image.fromarray(image).save(images / f"{100001 + person}_{number}.jpeg", quality=95)

        _template()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            made = pool.map(write, range(num_people))
            list(tqdm(made, "making the demo cohort", num_people, leave=False, disable=None))
        try:
            partial.rename(output_dir)
        except OSError:
            if not output_dir.exists():  # else another process was first
                raise


def main(argv=None):
    parser = argparse.ArgumentParser(description="Write the demo cohort.")
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--num-people", type=int, default=NUM_PEOPLE)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.output_dir.exists():
        print(f"error: {args.output_dir} exists already; give a new folder", file=sys.stderr)
        return 1
    make_cohort(args.output_dir, args.num_people, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
