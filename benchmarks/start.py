"""Measures what a trained run is worth to a small cohort: ten people of it, with and without --start-from.

    python -m benchmarks.start --data-dir ../shared/data/ixi --output results/start.json

Both runs have the sizes of the run that one of them starts from (its dropout of the prior is in that one alone), the
same epochs and so the same minutes. They are measured on the test people of the whole cohort, whom neither has seen.
"""

import json
import sys
from pathlib import Path

import numpy as np

import dataset
from benchmarks import harness
from evaluation import figures, metrics
from running import run_folder
from running.config import read_config

SHOWN = 6  # samples of each
EPOCHS = {"vqvae": 8, "coarse": 10, "coarse_prior": 12, "prior": 8}


def link_people(data_dir, folder, people):
    """A folder of links to some people of a BIDS data set; made anew."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        left.unlink()
    for name in (*people, "dataset_description.json"):
        if (data_dir / name).exists():
            (folder / name).symlink_to((data_dir / name).resolve())


def measure(model, data, run_dir):
    """Figures of a run on test people that it does not know, and some samples."""
    codes, per_slice, _ = measure.reconstruct(model.vqvae, data)
    coarse_bits, bits = measure.code_lengths(model.models, data, codes)
    for one, of_codes, of_coarse in zip(per_slice, bits, coarse_bits, strict=True):
        one["bits_per_image"] = float(of_codes.sum() + of_coarse)
    labels, positions = model.conditions(SHOWN)
    images = np.concatenate(list(model.draw(labels, positions)))
    row = {}
    for name, values in metrics.summarise(per_slice, data.of("test").subject_id).items():
        row |= {name: values["mean"], f"{name}_ci95": values["ci95"]}
    row["seconds"] = sum(epoch["seconds"] for rows in run_folder.read_histories(run_dir).values() for epoch in rows)
    return row, (images, positions)


def run(args):
    start = read_config(args.start_from)
    how = {"seed": 0, "cache_dir": args.runs_dir / "cache", "background": "black"}
    whole = dataset.prepare(args.data_dir, image_size=start["data"]["image_size"], **how)
    people = sorted(whole.of("train").subject_id.unique())[: args.people]
    link_people(args.data_dir, args.runs_dir / "people", people)
    rows, shown, titles = [], [], []
    sizes = {name.replace("_", "-"): start["options"]["vqvae"][name] for name in ("downsampling", "num_embeddings")}
    for name, more in (
        ("--start-from", {"start_from": args.start_from}),
        ("from nothing", {**sizes, "image-size": start["data"]["image_size"]}),
    ):
        run_dir = args.runs_dir / name.strip("-").replace(" ", "-")
        epochs = {f"{stage}_epochs": number for stage, number in EPOCHS.items()}
        data, model = harness.train(
            run_dir, data_dir=args.runs_dir / "people", cache_dir=how["cache_dir"], background="black", **epochs, **more
        )
        row, (images, positions) = measure(model, whole, run_dir)
        rows.append({"run": name, "people": data.slices.subject_id.nunique(), **row})
        harness.write(args.output, rows, data=whole.title, started_from=str(args.start_from))
        shown.append(images)
        titles += [f"at {position:.2f}" for position in positions]
    footer = f"ten people, the same minutes\n{run_folder.footer(whole.title, whole.credit)}"
    names = [row["run"] for row in rows]
    figures.image_grid(args.output.with_suffix(".png"), np.concatenate(shown), titles, footer, SHOWN, names)
    print(json.dumps(rows[-1], indent=1))


main = harness.command(
    run,
    __doc__,
    data_dir=(Path, ..., "a BIDS data set that the run was not trained on"),
    start_from=(Path, Path("pretrained/ds002748"), "the trained run"),
    runs_dir=(Path, Path("runs/start"), "where both runs go"),
    output=harness.OUTPUT,
    people=(harness.number(10), 10, "of the data set, for training, validation and testing together"),
)

if __name__ == "__main__":
    sys.exit(main())
