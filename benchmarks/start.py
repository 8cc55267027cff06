"""Measures what a trained run is worth to a small cohort: ten people of it, with and without --start-from.

    python -m benchmarks.start --data-dir IXI --output results/start.json

Both runs have the sizes of the run that one of them starts from (its dropout of the prior is in that one alone), the
same epochs and so the same minutes. They are measured on the test people of the whole cohort, whom neither has seen.
"""

import sys
from pathlib import Path

from benchmarks import harness

with harness.command(__name__, __doc__, data_dir=(Path, ..., "a BIDS data set"), output=harness.OUTPUT) as command:
    import dataset

from evaluation import measure as measured
from evaluation import metrics
from running import run_folder
from running.config import read_config

TRAINED = harness.ROOT / "pretrained" / "ds002748"  # the run that is started from
PEOPLE = 10  # for training, validation and testing together
EPOCHS = {"vqvae_epochs": 8, "coarse_epochs": 10, "coarse_prior_epochs": 12, "prior_epochs": 8}


def link_people(data_dir, folder, people):
    """A folder of links to some people of a BIDS data set; made anew."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        left.unlink()
    for name in (*people, "dataset_description.json"):
        if (data_dir / name).exists():
            (folder / name).symlink_to((data_dir / name).resolve())


def measure(model, data):
    """Figures of a run on test people that it does not know."""
    codes, per_slice, _ = measured.reconstruct(model.vqvae, data)
    coarse_bits, bits = measured.bits_of_test_slices(model.models, data, codes)
    for one, of_codes, of_coarse in zip(per_slice, bits, coarse_bits, strict=True):
        one["bits_per_image"] = float(of_codes.sum() + of_coarse)
    histories = run_folder.read_histories(model.run_dir)
    seconds = sum(epoch["seconds"] for rows in histories.values() for epoch in rows)
    return harness.means(metrics.summarise(per_slice, data.of("test").subject_id)) | {"seconds": seconds}


@command
def main(args):
    start, rows, folder = read_config(TRAINED), [], harness.ROOT / "runs" / "start"
    size, how = start["data"]["image_size"], {"cache_dir": folder / "cache", "background": "black"}
    whole = dataset.prepare(args.data_dir, image_size=size, seed=0, **how)
    link_people(args.data_dir, folder / "people", sorted(whole.of("train").subject_id.unique())[:PEOPLE])
    sizes = {name: start["options"]["vqvae"][name] for name in ("downsampling", "num_embeddings", "embedding_dim")}
    for name, more in (
        ("--start-from", {"start_from": TRAINED}),
        ("from nothing", {**sizes, "image_size": size}),
    ):
        run_dir = folder / name.strip("-").replace(" ", "-")
        data, model = harness.train(run_dir, data_dir=folder / "people", **how, **EPOCHS, **more)
        rows.append({"run": name, "people": data.slices.subject_id.nunique(), **measure(model, whole)})
        harness.write(args.output, rows, data=whole.title, started_from=TRAINED.name)


if __name__ == "__main__":
    sys.exit(main())
