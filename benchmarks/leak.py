"""What a split by slice does to the figures: the same training on the same pictures, split by slice and by person.

    python benchmarks/leak.py --output-dir results/leak

Both runs are train.py on one cohort of synthetic people. In one, the regular expression that says whose slice a file is
tells the truth; in the other it takes every slice for a person of its own, as a split that shuffles slices does. Then
each model meets people whom neither has seen. A figure that falls between the run's own test slices and those people
was never a figure of new people. Writes leak.json and leak.png.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.neighbors import NearestNeighbors

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dataset
import figures
import metrics
import modules
import phantom
import predict
import run_folder
from benchmarks import report

ROOT = Path(__file__).resolve().parent.parent
SUBJECT = {
    "by slice": r"(?P<label>AD|NC)/(?P<subject>\d+_(?P<slice>\d+))",
    "by person": r"(?P<label>AD|NC)/(?P<subject>\d+)_(?P<slice>\d+)",
}
NEW_PEOPLE = 30
FIGURES = {
    "ssim_head": "SSIM inside the head, VQ-VAE",
    "copy_ssim_head": "SSIM inside the head, nearest training slice",
    "bits_per_code": "bits per code, prior",
}


def parse(argv):
    parser = argparse.ArgumentParser(description="The same training, split by slice and split by person.")
    add = parser.add_argument
    add("--runs-dir", type=Path, default=Path("runs/leak"), help="(default: %(default)s)")
    add("--output-dir", type=Path, default=Path("results/leak"), help="(default: %(default)s)")
    add("--num-people", type=int, default=60, help="(default: %(default)s)")
    add("--vqvae-epochs", type=int, default=12, help="(default: %(default)s)")
    add("--prior-epochs", type=int, default=24, help="(default: %(default)s)")
    return parser.parse_args(argv)


def train_run(args, kind):
    """Trains on the cohort with one of the two ideas of a person; returns the run folder."""
    run_dir = args.runs_dir / kind.replace(" ", "-")
    data = ["--data-dir", args.runs_dir / "cohort", "--layout", "images", "--subject-regex", SUBJECT[kind]]
    sizes = ["--downsampling", 8, "--vqvae-epochs", args.vqvae_epochs, "--prior-epochs", args.prior_epochs]
    plain = ["--prior-max-shift", 0, "--cache-dir", args.runs_dir / "cache"]  # nothing against learning by heart
    command = [ROOT / "train.py", *data, "--run-dir", run_dir, *sizes, *plain]
    if subprocess.run([sys.executable, *map(str, command)], check=False).returncode:
        raise run_folder.RunError(f"{' '.join(map(str, command))}: failed")
    return run_dir


def measure(vqvae, prior, data, slices, labels, training):
    """Figures of the slices whose split is "test".

    Args:
        vqvae, prior: The trained models.
        data, slices: The data set and its slices.
        labels: The labels that the prior knows.
        training: uint8 training slices, shape (n, S, S), among which the nearest is looked for.
    """
    test = [one for one in slices if one.split == "test"]
    people = [one.subject_id.split("_")[0] for one in test]  # the true one, whatever the split took for a person
    codes, per_slice, _ = predict.reconstruct(vqvae, data, slices)
    bits = predict.prior_bits(prior, run_folder.prior_inputs(codes, test, labels)).mean(axis=(1, 2))
    search = NearestNeighbors(n_neighbors=1).fit(training.reshape(len(training), -1)[:, ::4].astype("float32"))
    copied = []
    for one in test:
        image = data.images[one.row]
        ((nearest,),) = search.kneighbors(image.reshape(1, -1)[:, ::4].astype("float32"), return_distance=False)
        copied.append(metrics.slice_metrics(image / 255, training[nearest] / 255)["ssim_head"])
    return {
        "slices": len(test),
        "ssim_head": metrics.over_people([one["ssim_head"] for one in per_slice], people),
        "copy_ssim_head": metrics.over_people(copied, people),
        "bits_per_code": metrics.over_people(bits, people),
    }


def draw(path, rows, footer):
    """Each figure on the run's own test slices and on new people, for both splits."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axis, (name, title) in zip(figure.subplots(1, len(FIGURES)), FIGURES.items(), strict=True):
        for offset, (where, colour) in zip((-0.18, 0.18), (("test", "0.6"), ("new people", "tab:red")), strict=True):
            found = [row[where][name] for row in rows]
            means = np.array([one["mean"] for one in found])
            error = np.abs(np.array([one["ci95"] for one in found]).T - means)
            axis.bar(np.arange(len(rows)) + offset, means, 0.34, yerr=error, capsize=3, color=colour, label=where)
        ends = [end for row in rows for where in ("test", "new people") for end in row[where][name]["ci95"]]
        margin = 0.3 * (max(ends) - min(ends))
        axis.set_ylim(max(0, min(ends) - margin), max(ends) + margin)
        axis.set_xticks(np.arange(len(rows)), [f"split {row['split']}" for row in rows])
        axis.set_title(title, fontsize=9)
    axis.legend(frameon=False, fontsize=8)
    figures.finish(figure, path, footer)


def run(args):
    if args.num_people < 20:
        raise run_folder.RunError(f"--num-people {args.num_people}: must be 20 or more")
    phantom.make_cohort(args.runs_dir / "cohort", args.num_people, seed=0)
    phantom.make_cohort(args.runs_dir / "new", NEW_PEOPLE, seed=1)
    rows = []
    for kind, regex in SUBJECT.items():
        run_dir = train_run(args, kind)
        config, data, slices = run_folder.reopen(run_dir)
        vqvae = run_folder.load_model(run_dir / "vqvae.keras", modules.VQVAE)
        prior = run_folder.load_prior(run_dir, vqvae)
        training = np.stack([data.images[one.row] for one in slices if one.split == "train"])
        options = config["options"]["data"] | {"data_dir": str(args.runs_dir / "new"), "subject_regex": regex}
        new, strangers, _ = dataset.prepare(**options | {"test_fraction": 0.8})
        strangers = [dataclasses.replace(one, split="test") for one in strangers]
        rows.append(
            {
                "split": kind,
                "test": measure(vqvae, prior, data, slices, config["data"]["labels"], training),
                "new people": measure(vqvae, prior, new, strangers, config["data"]["labels"], training),
            }
        )
        report.write(args.output_dir / "leak.json", rows, people=args.num_people, new_people=NEW_PEOPLE)
    footer = f"synthetic people; bars cut below; 95 % intervals\n{phantom.CREDIT}"
    draw(args.output_dir / "leak.png", rows, footer)
    for row in rows:
        for name, title in FIGURES.items():
            print(
                f"split {row['split']}: {title}: {row['test'][name]['mean']:.3f} on its own test slices, "
                f"{row['new people'][name]['mean']:.3f} on new people"
            )


def main(argv=None):
    return run_folder.exit_status(run, parse(argv), "stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
