"""Maps of what is uncommon in a scan: what it differs by from itself with its unlikeliest parts drawn anew.

found = anomaly.anomaly_map(model, images)
"""

import numpy as np
from scipy import ndimage

from evaluation import figures
from using import scans
from using.inputs import read_scans

UNLIKELY = 0.2  # share of the codes that `restore` draws anew
SMOOTHING_MM = 4.0  # sigma of what a slice differs by from its restorations
UNCOMMON_OF_WHITE = 4  # intensity times bits that are white in anomaly.png


def without_unlikeliest(codes, bits):
    """Grids of codes (n, h, w) with -1 for the share `UNLIKELY` of each that, with their neighbours, take most bits."""
    around = ndimage.gaussian_filter(bits, (0, 1, 1)).reshape(len(bits), -1)
    order = np.argsort(-around, axis=1, kind="stable")[:, : round(UNLIKELY * around.shape[1])]
    changed = codes.reshape(len(codes), -1).copy()
    np.put_along_axis(changed, order, -1, axis=1)
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
    codes, coarse, told = model.describe(images, label, slice_position)
    bits, coarse_bits = model.bits_of(codes, coarse, told)
    known, known_coarse = without_unlikeliest(codes, bits), without_unlikeliest(coarse, coarse_bits)
    every = np.repeat(np.arange(len(codes)), number)
    drawn = model.sampler.sample(
        told["label"][every],
        told["slice_position"][every],
        seed,
        known=known[every],
        known_coarse=known_coarse[every],
    )
    plain = next(iter(model.models.decoders.values()))
    restored = np.concatenate([plain.decode(some)[..., 0] for some in drawn])
    side = model.vqvae.downsampling
    around = ndimage.gaussian_filter(bits.repeat(side, axis=1).repeat(side, axis=2), (0, side, side))
    return restored.reshape(len(codes), number, *restored.shape[1:]), around


def anomaly_map(model, images, number=8, seed=0, label=None, slice_position=None):
    """Where slices are not as the run's data are: shape (n, S, S), 0 or more.

    What a slice differs by from the mean of its restorations, smoothed, times the bits of the codes there: after
    Marimont & Tarroni (ISBI 2021) and Pinaya et al. (Medical Image Analysis 79, 2022). The arguments are those of
    `restore`. It shows what this model finds uncommon, which is also another scanner, a movement, a rare fold; it
    finds no disease.
    """
    images = np.asarray(images)
    restored, around = restore(model, images, number, seed, label, slice_position)
    sigma = SMOOTHING_MM / model.voxel_mm[0]
    return ndimage.gaussian_filter(np.abs(restored.mean(axis=1) - images), (0, sigma, sigma)) * around


def map_inputs(model, args, folder, footer):
    """--anomaly: a map of each scan, and a picture of them."""
    shown = []
    for scan in read_scans(args.input, model.config):
        heights = args.slice_position if scan.slice_positions is None else scan.slice_positions
        found = anomaly_map(model, scan.images, seed=args.seed, label=args.label, slice_position=heights)
        (folder / scan.name).mkdir(parents=True, exist_ok=True)
        if scan.volume:
            scans.write_volume(scan, found, folder / scan.name / "anomaly.nii.gz")
        else:
            scans.write_image(scan, found[0] / UNCOMMON_OF_WHITE, folder / scan.name / "anomaly.png")
        worst = found.max(axis=(1, 2)).argmax()
        shown.append((scan.images[worst], found[worst], scan.name[:24]))
        print(f"{scan.name}: {folder / scan.name}")
        images, maps, titles = zip(*shown[:8], strict=True)
        figures.anomalies(folder / "anomalies.png", images, maps, titles, footer)
    print(f"what is uncommon for {args.run_dir}: {folder / 'anomalies.png'}; it finds no disease")
