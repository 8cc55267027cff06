"""What a split by slice does to the figures: the same training on the same pictures, split by slice and by person.

    python -m benchmarks.leak --output results/leak/leak.json

Both runs are train.py on one cohort of synthetic people. In one, the regular expression that says whose slice a file is
tells the truth; in the other it takes every slice for a person of its own, as a split that shuffles slices does. Then
each model meets people whom neither has seen. A figure that falls between the run's own test slices and those people
was never a figure of new people.
"""

import dataclasses
import sys

from benchmarks import harness

with harness.command(__name__, __doc__, output=harness.OUTPUT) as command:
    import dataset
import numpy as np
from matplotlib.figure import Figure
from sklearn.neighbors import NearestNeighbors

from evaluation import figures, metrics
from evaluation import measure as measured
from reading import phantom

SUBJECT = {
    "by slice": r"(?P<label>AD|NC)/(?P<subject>\d+_(?P<slice>\d+))",
    "by person": r"(?P<label>AD|NC)/(?P<subject>\d+)_(?P<slice>\d+)",
}
PEOPLE, NEW_PEOPLE = 60, 30
HOW = {"downsampling": 8, "vqvae_epochs": 12, "prior_epochs": 24}
HOW |= {"max_shift": 0, "mirrored": 0}  # nothing against learning by heart
FIGURES = {
    "ssim_head": "SSIM inside the head, VQ-VAE",
    "copy_ssim_head": "SSIM inside the head, nearest training slice",
    "bits_per_code": "bits per code, prior",
}


def measure(models, data, training):
    """Figures of the test slices of `data`; `training` are those among which the nearest is looked for, (n, S, S)."""
    test, images = data.of("test"), data.pixels(data.of("test"))
    codes, per_slice, _ = measured.reconstruct(models.vqvae, data)
    coarse_bits, bits = measured.bits_of_test_slices(models, data, codes)
    known, asked = (some.reshape(len(some), -1)[:, ::4] for some in (training, images))
    nearest = NearestNeighbors(n_neighbors=1).fit(known).kneighbors(asked, return_distance=False)[:, 0]
    copies = zip(images, training[nearest], strict=True)
    found = {
        "ssim_head": [one["ssim_head"] for one in per_slice],
        "copy_ssim_head": [metrics.slice_metrics(image, other)["ssim_head"] for image, other in copies],
        "bits_per_code": (coarse_bits + bits.sum(axis=(1, 2, 3))) / codes[0].size,
    }
    people = test.subject_id.str.split("_").str[0]  # the true one, whatever the split took for a person
    return {"slices": len(test), **{name: metrics.over_people(values, people) for name, values in found.items()}}


def draw(path, rows):
    """Each figure on the run's own test slices and on new people, for both splits."""
    figure, places = Figure(figsize=(10, 3.2), layout="constrained"), np.arange(len(rows))
    for axis, (name, title) in zip(figure.subplots(1, len(FIGURES)), FIGURES.items(), strict=True):
        ends = []
        for offset, where, colour in ((-0.18, "test", "0.6"), (0.18, "new people", "tab:red")):
            means, intervals = (np.array([row[where][name][key] for row in rows]) for key in ("mean", "ci95"))
            style = {"yerr": np.abs(intervals.T - means), "capsize": 3, "color": colour, "label": where}
            axis.bar(places + offset, means, 0.34, **style)
            ends += [intervals.min(), intervals.max()]
        margin = 0.3 * (max(ends) - min(ends))
        axis.set_ylim(max(0, min(ends) - margin), max(ends) + margin)
        axis.set_xticks(places, [f"split {row['split']}" for row in rows])
        axis.set_title(title, fontsize=9)
    axis.legend(frameon=False, fontsize=8)
    figures.finish(figure, path, f"synthetic people; bars cut below; 95 % intervals\n{phantom.CREDIT}")


@command
def main(args):
    folder, rows = harness.ROOT / "runs" / "leak", []
    cohort, new = folder / "cohort", folder / "new"
    phantom.make_cohort(cohort, PEOPLE, seed=0)
    phantom.make_cohort(new, NEW_PEOPLE, seed=1)
    for kind, regex in SUBJECT.items():
        how = {"data_dir": cohort, "cache_dir": folder / "cache", "subject_regex": regex, **HOW}
        data, model = harness.train(folder / kind.replace(" ", "-"), **how)
        asked = model.config["options"]["data"] | {"data_dir": str(new), "test_fraction": 0.8}
        strangers = dataset.prepare(**asked)
        strangers = dataclasses.replace(strangers, slices=strangers.slices.assign(split="test"))
        training = data.pixels(data.of("train"))
        found = [measure(model.models, some, training) for some in (data, strangers)]
        rows.append({"split": kind, "test": found[0], "new people": found[1]})
        harness.write(args.output, rows, people=PEOPLE, new_people=NEW_PEOPLE)
    draw(args.output.with_suffix(".png"), rows)


if __name__ == "__main__":
    sys.exit(main())
