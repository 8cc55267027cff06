"""Whether slices drawn one after the other make a head: along its axis, from the side, in its volumes.

    found = heads.judge(drawn, alone, data, decode, voxel_mm)

A head is uint8, shape (s, S, S): its slices, the lowest first. Everything stands beside real people's heads, cut to the
same slices, and beside those after the VQ-VAE.
"""

import numpy as np
from scipy import stats
from tqdm import tqdm

import dataset
from evaluation import anatomy, figures, metrics, realism

OFFSETS = np.linspace(0.2, 0.8, 16)  # of the views, as shares of a head's extent
WINDOW = (0.3, 0.75)  # slice positions at which ventricles are summed up
COMPARED, CANDIDATES = 16, 3  # slices of a head compared with training people's; people looked at closely
BANDS = 8


def of_people(data, split, number):
    """The heads of a split's people that have so many slices: uint8 (number, S, S), by name."""
    slices = data.of(split).sort_values("slice_position", kind="stable")
    scans = slices.groupby(dataset.scan_of(slices), sort=True)
    return {name: data.images[mine.row] for name, mine in scans if len(mine) == number}


def neighbours(heads):
    """MS-SSIM of each slice of some heads with the one above: shape (n, s - 1)."""
    return np.stack([metrics.ms_ssim(head[1:] / 255, head[:-1] / 255) for head in heads])


def axis_power(heads):
    """Power of the intensities along the axis, inside the head, in at most `BANDS` equal bands up to Nyquist."""
    found = []
    for head in heads:
        lines = head[:, (head > 25).mean(axis=0) > 0.9].astype("float32") / 255  # that are inside from end to end
        if lines.size:
            power = np.square(np.abs(np.fft.rfft(lines - lines.mean(axis=0), axis=0)[1:])).mean(axis=1)
            found.append([band.mean() for band in np.array_split(power, min(BANDS, len(power)))])
    return np.mean(found, axis=0) if found else np.full(1, np.nan)


def volumes_ml(head, positions, voxel_mm):
    """Volume of the head (of the brain, where no skull is shown) and of its lateral ventricles, in ml."""
    millilitres = np.prod(voxel_mm) / 1000
    brain = sum(metrics.head_mask(image / 255).sum() for image in head) * millilitres
    window = np.flatnonzero((positions >= WINDOW[0]) & (positions <= WINDOW[1]))[::2]
    every = np.ptp(window) / max(1, len(window) - 1)
    fluid = sum(anatomy.ventricle_masks(head[i] / 255).sum() for i in window) * millilitres * every
    return float(brain), float(fluid)


def view_features(heads, plane, voxel_mm, extract, size):
    """Features of the coronal or sagittal views of some heads, on squares of a slice's size."""
    found = []
    for head in heads:
        images = []
        for share in OFFSETS:
            image = figures.views(head, "axial", voxel_mm, (share, share, share))[plane][:size, :size]
            top, left = (size - image.shape[0]) // 2, (size - image.shape[1]) // 2
            square = np.zeros((size, size), "float32")
            square[top : top + image.shape[0], left : left + image.shape[1]] = image / 255
            images.append(square)
        found.append(extract(np.stack(images)))
    return np.concatenate(found)


class NearestPerson:
    """How like a head is to the most similar training person's: mean MS-SSIM of slices at the same places.

    Those looked at are the people whose shrunk heads are nearest.
    """

    def __init__(self, people):
        self.people = list(people.values())
        self.small = np.stack([self._shrunk(head) for head in self.people])

    def _shrunk(self, head):
        chosen = head[np.linspace(0, len(head) - 1, COMPARED).round().astype(int)]
        return dataset.shrink(chosen, 28).ravel()

    def __call__(self, head):
        places = np.linspace(0, len(head) - 1, COMPARED).round().astype(int)
        nearest = np.argsort(np.square(self.small - self._shrunk(head)).sum(axis=1))[:CANDIDATES]
        return max(float(metrics.ms_ssim(head[places] / 255, self.people[i][places] / 255).mean()) for i in nearest)


def judge(drawn, alone, data, decode, voxel_mm):
    """What metrics.json says of whole heads.

    Args:
        drawn: The heads drawn, a list of uint8 (s, S, S).
        alone: Heads of the same slice positions whose slices know nothing of each other.
        data: The data set, a `dataset.Data` of axial slices.
        decode: Turns a real head into what the VQ-VAE makes of it.
        voxel_mm: (across, along, between).

    Returns:
        Dictionary: `neighbours`, MS-SSIM of neighbouring slices; `neighbours_by_height`, the same of the heads drawn
        and of test people in eight parts from bottom to top; `axis_power_ratio`, of each set to test people;
        `coronal` and `sagittal`, Fréchet distances of views to those of test people;
        `brain_ml` and `ventricles_ml`, mean and standard deviation of each set, and the Kolmogorov-Smirnov distance to
        all real people; `copies`.
    """
    number = len(drawn[0])
    people, test = of_people(data, "train", number), of_people(data, "test", number)
    names = list(people)
    floor, space_of = [people[name] for name in names[::2]], [people[name] for name in names[1::2]]
    decoded_floor, decoded_test = ([decode(head) for head in some] for some in (floor, test.values()))
    real = list(test.values())
    sets = {"drawn": drawn, "decoded_test": decoded_test, "test": real, "independent": alone}
    like = {name: neighbours(some) for name, some in sets.items()}
    power = {name: axis_power(some) for name, some in sets.items()}
    found = {
        "number": len(drawn),
        "neighbours": {name: float(values.mean()) for name, values in like.items()},
        "neighbours_by_height": {
            name: [float(part.mean()) for part in np.array_split(like[name], min(8, like[name].shape[1]), axis=1)]
            for name in ("drawn", "test")
        },
        "axis_power_ratio": {
            name: [float(x) if np.isfinite(x) else None for x in power[name] / power["test"]]
            for name in ("drawn", "decoded_test", "independent")
        },
    }
    size = data.image_size
    extract = realism.TextureFeatures(size)
    judged = {"drawn": drawn, "independent": alone, "decoded_floor": decoded_floor, "floor": floor}
    for plane in tqdm(("coronal", "sagittal"), "views", leave=False, disable=None):
        space = realism.FeatureSpace(view_features(space_of, plane, voxel_mm, extract, size), extract.kinds)
        reached = space(view_features(real, plane, voxel_mm, extract, size))
        found[plane] = {
            name: realism.frechet_distance(space(view_features(some, plane, voxel_mm, extract, size)), reached)
            for name, some in judged.items()
        }
    positions = np.linspace(0, 1, len(real[0]))
    everybody = [*people.values(), *of_people(data, "validation", number).values(), *real]
    measured = {
        name: np.array([volumes_ml(head, positions, voxel_mm) for head in tqdm(some, name, leave=False, disable=None)])
        for name, some in {"drawn": drawn, "real": everybody, "decoded_test": decoded_test, "test": real}.items()
    }
    for i, kind in enumerate(("brain_ml", "ventricles_ml")):
        found[kind] = {
            name: {"mean": float(values[:, i].mean()), "sd": float(values[:, i].std())}
            for name, values in measured.items()
        }
        found[kind]["distance"] = float(stats.ks_2samp(measured["drawn"][:, i], measured["real"][:, i]).statistic)
    nearest = NearestPerson(people)
    likeness = {name: [nearest(head) for head in some] for name, some in (("drawn", drawn), ("test", real))}
    found["copies"] = {
        "share_nearer_than_any_test_person": float(np.mean(np.array(likeness["drawn"]) > max(likeness["test"]))),
        **{f"median_ms_ssim_{name}": float(np.median(values)) for name, values in likeness.items()},
        "most_ms_ssim_drawn": max(likeness["drawn"]),
        "most_ms_ssim_test": max(likeness["test"]),
    }
    return found
