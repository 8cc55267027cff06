"""Measures maps of what is uncommon on lesions of known place, planted on people whom the model has not seen.

    python -m benchmarks.anomaly --run-dir pretrained/ixi --output results/ixi_sharp/anomaly.json
    python -m benchmarks.anomaly --run-dir pretrained/ds002748 --lesions MS --output results/ds002748/lesions.json

Each slice gets one lesion: dark, bright, or of another texture (its own pixels in another order, so that its
intensities tell nothing), 6 to 30 mm wide, irregular, its edge blended. Every score is pixel by pixel inside the head,
and a mean over people: area under the ROC curve, average precision, and Dice at the threshold that is best over all.
Planted lesions are easier than real ones, and a score here is no score of any disease.

With `--lesions`, a BIDS folder of T1w and FLAIR volumes in one grid with masks in derivatives/lesions, the same scores
are those of real lesions, voxel by voxel inside the brain of each person, on the slices that the run takes. Beside the
maps stand what is dark in T1w, and what is bright in FLAIR, which the run never sees.
"""

import sys
from pathlib import Path

from benchmarks import harness

with harness.command(
    __name__,
    __doc__,
    run_dir=harness.RUN,
    output=harness.OUTPUT,
    lesions=(Path, None, "BIDS folder of people with real lesions and their masks, in place of planted ones"),
) as command:
    import keras  # noqa: F401
import nibabel
import numpy as np
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

import dataset
from evaluation import figures, metrics
from predict import TrainedModel
from running import run_folder
from system.console import UserError
from using import scans
from using.anomaly import SMOOTHING_MM, bits_around, map_of, restore, restore_codes

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


def real_maps(model, path):
    """Maps of a T1w volume by name, in its own voxels, NaN where the run takes no slice; and its FLAIR and lesions."""
    (source, scale), *_ = scans.find([path])[0].values()
    scan = scans.read(path.name, source, model.config, scale)
    volumes = {name: nibabel.load(file).get_fdata() for name, file in beside(path).items()}
    images = scan.images
    described = model.describe(images, None, scan.slice_positions)
    bits, coarse_bits = model.bits_of(*described)
    restored, around = restore_codes(model, *described, bits, coarse_bits, RESTORATIONS)
    of_slices = {
        "this model": map_of(model, images, restored, around),
        "its bits alone": around,
        **{f"bits of level {level + 1}": bits_around(model, bits[..., level]) for level in range(bits.shape[-1])[:-1]},
        "dark in T1w": 1 - images,
    }
    maps = {name: scans.in_volume(scan, found) for name, found in of_slices.items()}
    seen = np.isfinite(maps["this model"]) & (nibabel.load(path).get_fdata() > 0)
    return maps | {"bright in FLAIR": volumes["FLAIR"]}, seen, volumes["lesions"] > 0


def beside(path):
    """The FLAIR volume and the mask of lesions of a T1w volume; raises UserError where one is missing."""
    person, folder = path.name.split("_")[0], path.parents[2]
    files = {
        "FLAIR": path.with_name(path.name.replace("_T1w", "_FLAIR")),
        "lesions": folder / "derivatives" / "lesions" / person / "anat" / f"{person}_label-lesion_mask.nii.gz",
    }
    for file in files.values():
        if not file.exists():
            raise UserError(f"{file}: not found, and {path.name} is there; add it, or leave that person out")
        if nibabel.load(file).shape != nibabel.load(path).shape:
            raise UserError(f"{file}: of another grid than {path.name}; resample it to that")
    return files


def score_real(args):
    """Scores of real lesions, all people's and each one's."""
    model, found = TrainedModel(args.run_dir), {}
    paths = sorted(args.lesions.glob("sub-*/anat/*_T1w.nii.gz"))
    if not paths:
        raise UserError(f"--lesions {args.lesions}: no sub-*/anat/*_T1w.nii.gz; give a BIDS folder")
    for path in paths:
        maps, seen, lesions = real_maps(model, path)
        for name, values in maps.items():
            found.setdefault(name, []).append((np.nan_to_num(values), seen, lesions))
    people, rows = [path.name.split("_")[0] for path in paths], []
    title, credit, _ = dataset.describe(args.lesions)
    about = {"data": title, "credit": credit, "people": people, "restorations": RESTORATIONS}
    about["lesion_share"] = [float(lesions[seen].mean()) for _, seen, lesions in found["this model"]]
    for name, volumes in found.items():
        for whose in ("all", *people):
            some = [place for place, person in enumerate(people) if whose in ("all", person)]
            scores = score_all(*zip(*(volumes[place] for place in some), strict=True), [people[i] for i in some])
            rows.append({"map": name, "person": whose, **{score: one["mean"] for score, one in scores.items()}})
            harness.write(args.output, rows, **about)


@command
def main(args):
    if args.lesions:
        score_real(args)
        return
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
