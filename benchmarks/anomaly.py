"""Measures maps of what is uncommon on lesions of known place, planted on people whom the model has not seen.

    python -m benchmarks.anomaly --run-dir pretrained/ixi --output results/ixi_sharp/anomaly.json

Each slice gets one lesion: dark, bright, or of another texture (its own pixels in another order, so that its
intensities tell nothing), 6 to 30 mm wide, irregular, its edge blended. Every score is pixel by pixel inside the head,
and a mean over people: area under the ROC curve, average precision, and Dice at the threshold that is best over all.
Planted lesions are easier than real ones, and a score here is no score of any disease.
"""

import sys

from benchmarks import harness

with harness.command(__name__, __doc__, run_dir=harness.RUN, output=harness.OUTPUT) as command:
    import keras  # noqa: F401
import numpy as np
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from evaluation import figures, metrics
from running import run_folder
from using.anomaly import SMOOTHING_MM, restore

KINDS = ("dark", "bright", "texture")
DIAMETERS_MM = (6.0, 30.0)
EDGE_MM = 1.5  # sigma of the blending
DARK, BRIGHT = 0.25, 0.95
EACH, RESTORATIONS = 3, 8  # slices of each kind and person; of each slice


def plant(image, head, kind, diameter, rng, pixel_mm):
    """A slice with a lesion of a diameter in mm somewhere in its head, and where it is, bool (S, S).

    Args:
        image, head: float in [0, 1], shape (S, S), and its mask.
        kind: One of `KINDS`.
        rng: NumPy generator, of place, shape and texture.
    """
    radius = diameter / 2 / pixel_mm
    room = ndimage.distance_transform_edt(head)
    places = np.argwhere(room > min(radius, 0.6 * room.max()))
    row, column = places[rng.integers(len(places))]
    y, x = np.ogrid[: len(image), : len(image)]
    bumps = ndimage.gaussian_filter(rng.standard_normal(image.shape), max(1.0, radius / 2))
    away = np.hypot(y - row, x - column) / radius + 0.2 * bumps / bumps.std()
    where = (away < 1) & head
    if not where.any():
        where[row, column] = True
    weight = np.clip(ndimage.gaussian_filter(where.astype("float32"), EDGE_MM / pixel_mm) * 1.2, 0, 1)
    if kind == "texture":
        value = image.copy()
        value[where] = rng.permutation(image[where])
    else:
        value = np.full_like(image, DARK if kind == "dark" else BRIGHT)
        value = np.clip(value + 0.03 * rng.standard_normal(image.shape), 0, 1)
    return (image * (1 - weight) + value * weight).astype("float32"), where


def planted(data, pixel_mm):
    """Slices of each test person with lesions: DataFrame, images, masks of heads and lesions, kinds."""
    slices, rows = data.of("test"), []
    for number, (_, mine) in enumerate(slices.groupby("subject_id", sort=True)):
        rng = np.random.default_rng([number, 5])
        chosen = mine[mine.slice_position.between(0.25, 0.85)]
        most = min(len(chosen), len(KINDS) * EACH)
        for i, index in enumerate(rng.choice(len(chosen), most, replace=False)):
            one, kind = chosen.iloc[[index]], KINDS[i % len(KINDS)]
            image = data.pixels(one)[0]
            head = metrics.head_mask(image)
            rows.append(
                (one.index[0], *plant(image, head, kind, rng.uniform(*DIAMETERS_MM), rng, pixel_mm), head, kind)
            )
    places, images, lesions, heads, kinds = zip(*rows, strict=True)
    return slices.loc[[*places]], np.stack(images), np.stack(heads), np.stack(lesions), np.array(kinds)


def mean_slices(data, positions):
    """The mean of the training people's slices nearest to each position: shape (n, S, S)."""
    training, nearest = data.of("train"), {}
    for position in np.unique(positions):
        away = (training.slice_position - position).abs()
        nearest[position] = data.pixels(training[away < away.min() + 1e-6]).mean(axis=0)
    return np.stack([nearest[position] for position in positions])


def score_all(maps, heads, lesions, people):
    """AUROC, average precision and Dice of some maps: `metrics.over_people` of each."""
    by_person = {}
    for person in dict.fromkeys(people):
        mine = [i for i, whose in enumerate(people) if whose == person]
        by_person[person] = [np.concatenate([some[i][heads[i]] for i in mine]) for some in (maps, lesions)]
    values, truth = (np.concatenate(part) for part in zip(*by_person.values(), strict=True))
    precision, recall, thresholds = precision_recall_curve(truth, values)
    threshold = thresholds[np.argmax(2 * precision * recall / np.maximum(precision + recall, 1e-9))]

    def dice(truth, values):
        found = values >= threshold
        return 2 * (found & truth).sum() / (found.sum() + truth.sum())

    scores = {"auroc": roc_auc_score, "average_precision": average_precision_score, "dice": dice}
    return {
        name: metrics.over_people([score(truth, values) for values, truth in by_person.values()], list(by_person))
        for name, score in scores.items()
    }


def maps_of(model, data, slices, images, pixel_mm):
    """Maps by name: what `anomaly_map` says, its bits alone, and what simpler differences do, all smoothed alike."""
    positions = slices.slice_position.to_numpy("float32")
    plain = next(iter(model.models.decoders.values()))
    outputs = plain.decode(model.encode(images))[..., 0]
    heads = np.stack([metrics.head_mask(image) for image in images])
    middle = np.array([np.median(image[head]) for image, head in zip(images, heads, strict=True)])
    simpler = {
        "|x - reconstruction|": np.abs(images - outputs),
        "|x - mean slice|": np.abs(images - mean_slices(data, slices.slice_position.to_numpy())),
        "|x - median of the head|": np.abs(images - middle[:, None, None]),
    }
    sigma = SMOOTHING_MM / pixel_mm
    found = {
        "this model": model.anomaly_map(images, RESTORATIONS, slice_position=positions),
        "its bits alone": restore(model, images, 1, slice_position=positions)[1],
    }
    return found | {name: ndimage.gaussian_filter(away, (0, sigma, sigma)) for name, away in simpler.items()}


@command
def main(args):
    data, model = harness.open_run(args.run_dir)
    pixel_mm = data.about["pixel_mm"] or 1.0
    slices, images, heads, lesions, kinds = planted(data, pixel_mm)
    seconds, maps = harness.timed(lambda: maps_of(model, data, slices, images, pixel_mm))
    about = {"data": data.title, "slices": len(slices), "restorations": RESTORATIONS, "seconds": seconds}
    people, rows = slices.subject_id.to_numpy(), []
    for name, found in maps.items():
        for kind in ("all", *KINDS):
            chosen = (kinds == kind) | (kind == "all")
            scores = score_all(*(values[chosen] for values in (found, heads, lesions, people)))
            rows.append({"map": name, "lesions": kind, **harness.means(scores)})
            harness.write(args.output, rows, **about)
    shown = [np.flatnonzero(kinds == kind)[i] for i in (0, 4) for kind in KINDS]
    maps = {name: found[shown] * heads[shown] for name, found in maps.items()}
    footer = run_folder.footer(data.title, data.credit)
    figures.lesions(args.output.with_suffix(".png"), images[shown], lesions[shown], maps, kinds[shown], footer)


if __name__ == "__main__":
    sys.exit(main())
