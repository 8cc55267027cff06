"""Whether slices drawn one after the other make a head: along its axis, from the side, in its volumes.

    result = heads.judge_heads(drawn, alone, data, decode, voxel_mm)

A head is uint8, shape (s, S, S): two slices or more, the lowest first. Everything stands beside real people's heads,
of the same slices, and beside those after the VQ-VAE.
"""

import numpy as np
from scipy import stats
from tqdm import tqdm

import dataset
from evaluation import anatomy, figures, metrics, realism

OFFSETS = np.linspace(0.2, 0.8, 16)  # of the views, as shares of a head's extent
VOLUME_WINDOW = (0.3, 0.75)  # slice positions at which ventricles are summed up
COMPARED_SLICES, CANDIDATE_PEOPLE = 16, 3  # slices of a head compared with people's; people looked at closely
AXIS_BANDS = 8  # of the power along the axis


def splits_of_heads(data, number):
    """The split of each scan that has so many slices, by its name; about so many, where whole heads have all theirs."""
    scans = data.slices.groupby(dataset.scan_of(data.slices)).split.agg(["first", "size"])
    spare = 0 if (scans["size"] == number).mean() > 0.5 else number // 8
    return scans["first"][(scans["size"] - number).abs() <= spare]


def of_people(data, split, number):
    """The heads of a split's people that `splits_of_heads` names: uint8 (s, S, S), by name."""
    slices = data.of(split).sort_values("slice_position", kind="stable")
    scans, whole = slices.groupby(dataset.scan_of(slices), sort=True), splits_of_heads(data, number)
    return {name: data.images[mine.row] for name, mine in scans if name in whole}


def count_people(data, number):
    """How many scans of each split `splits_of_heads` names: a Series."""
    return splits_of_heads(data, number).value_counts()


def neighbours(heads):
    """MS-SSIM of each slice of some heads with the one above: an array (s - 1,) of each."""
    return [metrics.ms_ssim(head[1:] / 255, head[:-1] / 255) for head in heads]


def by_height(values):
    """Means of values by slice, an array of each head, in eight parts from bottom to top, or as many as there are."""
    parts = min(8, min(map(len, values)))
    return np.mean([[part.mean() for part in np.array_split(some, parts)] for some in values], axis=0).tolist()


def axis_power(heads):
    """Power of the intensities along the axis, inside the head, in at most 8 equal bands up to Nyquist."""
    powers = []
    for head in heads:
        lines = head[:, (head > 25).mean(axis=0) > 0.9].astype("float32") / 255  # that are inside from end to end
        if lines.size:
            power = np.square(np.abs(np.fft.rfft(lines - lines.mean(axis=0), axis=0)[1:])).mean(axis=1)
            powers.append([band.mean() for band in np.array_split(power, min(AXIS_BANDS, len(power)))])
    return np.mean(powers, axis=0) if powers else np.full(1, np.nan)


def volumes_ml(head, voxel_mm):
    """Volume of the head (of the brain, where no skull is shown) and of its lateral ventricles, in ml.

    That of the ventricles is NaN where no slice lies between the positions 0.3 and 0.75.
    """
    millilitres, positions = np.prod(voxel_mm) / 1000, np.linspace(0, 1, len(head))
    brain = sum(metrics.head_mask(image / 255).sum() for image in head) * millilitres
    window = np.flatnonzero((positions >= VOLUME_WINDOW[0]) & (positions <= VOLUME_WINDOW[1]))
    if not len(window):
        return float(brain), np.nan
    stands_for = min(2, len(window))  # slices: every second one is looked at
    fluid = sum(anatomy.ventricle_masks(head[i] / 255).sum() for i in window[::2]) * millilitres * stands_for
    return float(brain), float(fluid)


def view_features(heads, plane, voxel_mm, extract, size):
    """Features of the coronal or sagittal views of some heads, on squares of a slice's size."""
    features = []
    for head in heads:
        images = []
        for share in OFFSETS:
            image = figures.views(head, "axial", voxel_mm, (share, share, share))[plane][:size, :size]
            top, left = (size - image.shape[0]) // 2, (size - image.shape[1]) // 2
            square = np.zeros((size, size), "float32")
            square[top : top + image.shape[0], left : left + image.shape[1]] = image / 255
            images.append(square)
        features.append(extract(np.stack(images)))
    return np.concatenate(features)


class NearestPerson:
    """How like a head is to the most similar training person's: mean MS-SSIM of slices at the same places.

    Those looked at are the people whose shrunk heads are nearest.
    """

    def __init__(self, people):
        self.people = list(people.values())
        self.small = np.stack([self._shrunk(head) for head in self.people])

    @staticmethod
    def _chosen(head):
        return head[dataset.spread(len(head), COMPARED_SLICES)]

    def _shrunk(self, head):
        return dataset.shrink(self._chosen(head), 28).ravel()

    def __call__(self, head):
        nearest = np.argsort(np.square(self.small - self._shrunk(head)).sum(axis=1))[:CANDIDATE_PEOPLE]
        chosen = self._chosen(head) / 255
        return max(float(metrics.ms_ssim(chosen, self._chosen(self.people[i]) / 255).mean()) for i in nearest)


def _number(value):
    """A JSON number, or None for what is not finite."""
    return float(value) if np.isfinite(value) else None


def judge_heads(drawn, alone, data, decode, voxel_mm):
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
        `coronal` and `sagittal`, Fréchet distances of views to those of test people (`decoded_floor` and `floor` are
        half of the training people, after the VQ-VAE and as they are);
        `brain_ml` and `ventricles_ml`, mean and standard deviation of each set, and the Kolmogorov-Smirnov distance to
        all real people; `copies`. A number is None where these slices say nothing.
    """
    number = len(drawn[0])
    people, test = of_people(data, "train", number), list(of_people(data, "test", number).values())
    names = list(people)
    floor, space_of = [people[name] for name in names[::2]], [people[name] for name in names[1::2]]
    decoded_floor, decoded_test = ([decode(head) for head in heads] for heads in (floor, test))
    sets = {"drawn": drawn, "decoded_test": decoded_test, "test": test, "independent": alone}
    alike = {name: neighbours(heads) for name, heads in sets.items()}
    power = {name: axis_power(heads) for name, heads in sets.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = {name: power[name] / power["test"] for name in ("drawn", "decoded_test", "independent")}
    result = {
        "number": len(drawn),
        "neighbours": {name: float(np.concatenate(values).mean()) for name, values in alike.items()},
        "neighbours_by_height": {name: by_height(alike[name]) for name in ("drawn", "test")},
        "axis_power_ratio": {name: [_number(x) for x in values] for name, values in ratios.items()},
    }
    size, extract = data.image_size, realism.TextureFeatures(data.image_size)
    sets = sets | {"decoded_floor": decoded_floor, "floor": floor}
    for plane in tqdm(("coronal", "sagittal"), "views", leave=False, disable=None):
        space = realism.FeatureSpace(view_features(space_of, plane, voxel_mm, extract, size), extract.kinds)
        views = {name: space(view_features(heads, plane, voxel_mm, extract, size)) for name, heads in sets.items()}
        reached = views.pop("test")
        result[plane] = {name: realism.frechet_distance(features, reached) for name, features in views.items()}
    real = [*people.values(), *of_people(data, "validation", number).values(), *test]
    sets = {"drawn": drawn, "real": real, "decoded_test": decoded_test, "test": test}
    measured = {
        name: np.array([volumes_ml(head, voxel_mm) for head in tqdm(heads, name, leave=False, disable=None)])
        for name, heads in sets.items()
    }
    for i, kind in enumerate(("brain_ml", "ventricles_ml")):
        result[kind] = {
            name: {"mean": _number(values[:, i].mean()), "sd": _number(values[:, i].std())}
            for name, values in measured.items()
        }
        distance = stats.ks_2samp(measured["drawn"][:, i], measured["real"][:, i]).statistic
        result[kind]["distance"] = _number(distance)
    nearest = NearestPerson(people)
    likeness = {name: [nearest(head) for head in heads] for name, heads in (("drawn", drawn), ("test", test))}
    result["copies"] = {
        "share_nearer_than_any_test_person": float(np.mean(np.array(likeness["drawn"]) > max(likeness["test"]))),
        **{f"median_ms_ssim_{name}": float(np.median(values)) for name, values in likeness.items()},
        **{f"most_ms_ssim_{name}": max(values) for name, values in likeness.items()},
    }
    return result
