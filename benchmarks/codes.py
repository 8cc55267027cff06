"""Which codes to take: their levels, entries and factor, and how the VQ-VAE begins, by what is drawn from them.

    python -m benchmarks.codes --cohort ixi --data-dir IXI --output results/ixi/codes.json

Each row is a run of its own in runs/codes, of few epochs, so that a benchmark that was stopped goes on; the coarse
codes and their prior are those of the first one. All figures are of the validation people and of the plain decoder.
Distances are those of evaluation/realism.py; the prior's gap is the distance of samples to decoded slices over that of
other people's decoded slices. Beside the file, a picture of how the encoder's output varies: its variance by principal
direction.
"""

import dataclasses
import shutil
import sys
from pathlib import Path

from benchmarks import harness

with harness.command(
    __name__,
    __doc__,
    cohort=(["ds002748", "ixi"], ..., "whose slices they are, and so how they are read"),
    data_dir=(Path, ..., "the data"),
    output=harness.OUTPUT,
    row=(str, [], "which (default: all)"),
    vqvae_epochs=(harness.number(1), 6, "of each VQ-VAE"),
    prior_epochs=(harness.number(1), 6, "of each prior"),
    number=(harness.number(20), 320, "slices drawn"),
) as command:
    import keras  # noqa: F401
import numpy as np

import dataset
import train
from benchmarks import race
from evaluation import figures, measure, metrics, realism
from predict import TrainedModel
from running import opening, options, run_folder

COHORTS = {  # how each is read, a step of it, and the entries of a level
    "ds002748": {"num-slices": 64, "slice-spacing": 1, "num-embeddings": 512},
    "ixi": {"background": "black", "num-embeddings": 256},
}
STEPS = {"vqvae-batch-size": 16, "prior-batch-size": 16}
DARK = 0.02  # mean intensity of a place, below which it is background
BEGINNING = options.VQVAETraining.continuous  # share of the VQ-VAE's epochs without a quantiser
ROWS = {  # options of train.py, and that share
    "one level": ({"downsampling": 8}, BEGINNING),
    "quantised from the first step": ({"downsampling": 8}, 0.0),
    "half of the epochs without a quantiser": ({"downsampling": 8}, 0.5),
    "one level of 4,096": ({"downsampling": 8, "num-embeddings": 4096}, BEGINNING),
    "two levels": ({"downsampling": 8, "num-quantizers": 2}, BEGINNING),
    "two levels of 1,024": ({"downsampling": 8, "num-quantizers": 2, "num-embeddings": 1024}, BEGINNING),
    "four levels": ({"downsampling": 8, "num-quantizers": 4}, BEGINNING),
    "factor 4": ({"downsampling": 4}, BEGINNING),
    "factor 4, two levels": ({"downsampling": 4, "num-quantizers": 2}, BEGINNING),
}
COARSE = ("coarse_autoencoder", "coarse", "coarse_prior")


def fit(name, args):
    """Trains the run of a row, or what is left of it; returns its `TrainedModel` and its data."""
    given, beginning = ROWS[name]
    epochs = {"vqvae-epochs": args.vqvae_epochs, "coarse-epochs": 2 * args.vqvae_epochs}
    epochs |= {"prior-epochs": args.prior_epochs, "coarse-prior-epochs": 2 * args.prior_epochs}
    run_dir = harness.ROOT / "runs" / "codes" / args.cohort / name.replace(" ", "_")
    given = {"data-dir": args.data_dir, "run-dir": run_dir} | COHORTS[args.cohort] | STEPS | epochs | given
    asked = options.train([str(part) for flag, value in given.items() for part in (f"--{flag}", value)])
    asked.options["vqvae_training"]["continuous"] = beginning
    whole = next((other.parent for other in sorted(run_dir.parent.glob("*/prior.keras"))), run_dir)
    if not run_dir.exists() and whole != run_dir:
        run_dir.mkdir()
        for stage in COARSE:
            shutil.copy2(whole / f"{stage}.keras", run_dir)
            shutil.copy2(whole / f"{stage}_history.csv", run_dir)
    train.run(asked)
    model = TrainedModel(run_dir, "plain")
    return model, opening.find_data(run_dir, model.config)


def judge(model, data, number):
    """The row of a trained run; `data` are those of which the test people are to be the ones measured."""
    codes, per_slice, _ = measure.reconstruct(model.vqvae, data)
    coarse_bits, bits = measure.bits_of_test_slices(model.models, data, codes)
    summary = metrics.summarise(per_slice, data.of("test").subject_id)
    used = metrics.codebook_metrics(codes, model.vqvae.num_embeddings, model.vqvae.downsampling**2)
    labels, positions = model.conditions(number)
    model.sample(2)  # which compiles
    seconds, images = harness.timed(lambda: np.concatenate(list(model.draw(labels, positions))))
    found, _ = realism.judge_samples(images, positions, data, model.vqvae, codes)
    distances = {name: found[name]["frechet_distance"] for name in ("samples", "decoded_floor", "floor")}
    some = data.pixels(data.of("test").iloc[dataset.spread(len(codes), 64)])[..., None]
    inside = dataset.shrink(some[..., 0], model.grid_size) > DARK  # background is always the same
    z_e = model.vqvae.encoder.predict(some, verbose=0)[inside]
    variances = np.linalg.eigvalsh(np.cov(z_e, rowvar=False))[::-1]
    return {
        **{name: summary[name]["mean"] for name in ("ssim_head", "psnr_db")},
        "raw_bits_per_pixel": used["bits_per_pixel"],
        "effective_dimension": metrics.effective_dimension(z_e),
        "variance_shares": (variances / variances.sum()).tolist(),
        "perplexity_by_level": used["perplexity_by_level"],
        "bits_by_level": bits.mean(axis=(0, 1, 2)).astype(float).tolist(),
        "bits_per_image": float(bits.sum(axis=(1, 2, 3)).mean() + coarse_bits.mean()),
        "prior_gap": found["prior_gap"]["ratio"],
        **{f"frechet_{name}": distance for name, distance in distances.items()},
        **{name: found["samples"][name] for name in ("recall", "coverage")},
        "seconds_a_sample": seconds / number,
    }


@command
def main(args):
    rows = []
    for name in race.chosen("--row", args.row, ROWS):
        model, data = fit(name, args)
        others = {"validation": "test", "test": ""}  # the test people are looked at by evaluate.py alone
        slices = data.slices.assign(split=data.slices.split.replace(others))
        rows.append({"codes": name, **judge(model, dataclasses.replace(data, slices=slices), args.number)})
        about = {name: getattr(args, name) for name in ("cohort", "vqvae_epochs", "prior_epochs", "number")}
        harness.write(args.output, rows, data=data.title, people="validation", **about)
        shares = {row["codes"]: row["variance_shares"] for row in rows}
        figures.variances(args.output.with_suffix(".png"), shares, run_folder.footer(data.title, data.credit))


if __name__ == "__main__":
    sys.exit(main())
