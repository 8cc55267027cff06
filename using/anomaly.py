"""Maps of what is uncommon in a scan: what it differs by from itself with its unlikeliest parts drawn anew.

found = anomaly.anomaly_map(model, images)
"""

import textwrap
import zlib

import numpy as np
from scipy import ndimage

from evaluation import figures
from system import files
from using import scans
from using.inputs import describe, read_scans

UNLIKELY = 0.2  # share of the codes that `restore` draws anew
SMOOTHING_MM = 4.0  # sigma of what a slice differs by from its restorations
UNCOMMON_OF_WHITE = 4  # intensity times bits that are white in anomaly.png


def without_unlikeliest(codes, bits):
    """Grids of codes (n, h, w, D) with -1 for the share `UNLIKELY` of their places that, with neighbours, take most.

    Args:
        codes: Integers, shape (n, h, w, D).
        bits: Of each place, shape (n, h, w).
    """
    around = ndimage.gaussian_filter(bits, (0, 1, 1)).reshape(len(bits), -1)
    order = np.argsort(-around, axis=1, kind="stable")[:, : round(UNLIKELY * around.shape[1])]
    changed = codes.reshape(*around.shape, codes.shape[-1]).copy()
    np.put_along_axis(changed, order[..., None], -1, axis=1)
    return changed.reshape(codes.shape)


def restore(model, images, number=8, seed=0, label=None, slice_position=None):
    """Draws the unlikeliest parts anew, several times: what the slices might be if all in them were common.

    Which parts, the bits of the codes say, averaged over neighbours: a single unlikely code is nothing.

    Args:
        model: A `predict.TrainedModel`.
        images: The slices.
        number: Restorations of each.
        seed: A number from which they follow.
        label, slice_position: As for `TrainedModel.bits`.

    Returns:
        float32 in [0, 1], shape (n, number, S, S), of the plain decoder; and the bits around each pixel, (n, S, S).
    """
    described = model.describe(images, label, slice_position)
    return restore_codes(model, *described, *model.bits_of(*described), number, seed)


def restore_codes(model, codes, coarse, told, bits, coarse_bits, number=8, seed=0):
    """As `restore`, of what `TrainedModel.describe` and `bits_of` say; a slice's noise depends on its codes alone."""
    bits, coarse_bits = bits.sum(axis=-1), coarse_bits.sum(axis=-1)  # of a place
    known, known_coarse = without_unlikeliest(codes, bits), without_unlikeliest(coarse, coarse_bits)
    every = np.repeat(np.arange(len(codes)), number)
    of_slice = np.array([zlib.crc32(grid.astype("<u2").tobytes()) for grid in codes], "int64")
    drawn = model.sampler.sample(
        told["label"][every],
        told["slice_position"][every],
        seed,
        (of_slice[:, None] + (np.arange(number) << 32)).ravel(),
        known=known[every],
        known_coarse=known_coarse[every],
    )
    plain = next(iter(model.models.decoders.values()))
    restored = np.concatenate([plain.decode(some)[..., 0] for some in drawn])
    return restored.reshape(len(codes), number, *restored.shape[1:]), bits_around(model, bits)


def bits_around(model, bits):
    """Bits of places (n, grid, grid) around each pixel: (n, S, S)."""
    side = model.vqvae.downsampling
    return ndimage.gaussian_filter(bits.repeat(side, axis=1).repeat(side, axis=2), (0, side, side))


def anomaly_map(model, images, number=8, seed=0, label=None, slice_position=None):
    """Where slices are not as the run's data are: shape (n, S, S), 0 or more.

    What a slice differs by from the mean of its restorations, smoothed, times the bits of the codes there: after
    Marimont & Tarroni (ISBI 2021) and Pinaya et al. (Medical Image Analysis 79, 2022). The arguments are those of
    `restore`. It shows what this model finds uncommon, which is also another scanner, a movement, a rare fold; it
    finds no disease.
    """
    return map_of(model, images, *restore(model, images, number, seed, label, slice_position))


def map_of(model, images, restored, around):
    """As `anomaly_map`, of what `restore` returns."""
    sigma = SMOOTHING_MM / model.voxel_mm[0]
    return ndimage.gaussian_filter(np.abs(restored.mean(axis=1) - images), (0, sigma, sigma)) * around


def map_inputs(model, args, folder, footer):
    """--anomaly: a map of each scan, and a picture of them."""
    shown, rows = [], []
    try:
        for scan, is_shown in read_scans(args.input, model.config):
            made = describe(model, scan, args)
            found = map_of(model, scan.images, *restore_codes(model, *made.described, *made.bits, seed=args.seed))
            (folder / scan.name).mkdir(parents=True, exist_ok=True)
            path = folder / scan.name / ("anomaly.nii.gz" if scan.grid else "anomaly.png")
            about = {"input": str(scan.path), "slices": len(found), "seed": args.seed, "most": f"{found.max():.4f}"}
            about |= model.about
            if scan.grid:
                scans.write_volume(scan, scans.in_volume(scan, found), path)
            else:
                scans.write_image(scan, found[0] / UNCOMMON_OF_WHITE, path, about)
            rows.append({"file": f"{scan.name}/{path.name}", **about})
            if is_shown or not shown:
                worst = found.max(axis=(1, 2)).argmax()
                shown.append((scan.images[worst], found[worst], textwrap.fill(scan.name[:40], 20)))
            print(f"{scan.name}: {folder / scan.name}")
    finally:
        if shown:
            files.write_csv(folder / "anomalies.csv", rows)
            figures.anomalies(folder / "anomalies.png", *zip(*shown, strict=True), footer)
            print(f"what is uncommon for {args.run_dir}: {folder / 'anomalies.png'}; it finds no disease")
