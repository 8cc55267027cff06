"""New slices of a run beside those of a latent diffusion model that has learned from the same slices for as long.

    python -m benchmarks.generators --run-dir runs/peers_ixi --monai runs/monai/bin/python --output generators.json

The time is that of all stages of the run together, from its histories; the diffusion model (`peer_diffusion.py`) is
trained for it in one go, on this machine: the run is to be of the same. Both draw `--number` slices at slice positions
of training slices, and `evaluation/realism.py` sets them beside the test people's.
"""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import harness

with harness.command(
    __name__,
    __doc__,
    run_dir=harness.RUN,
    output=harness.OUTPUT,
    work_dir=(Path, Path("runs/peers"), "arrays and a log"),
    monai=(Path, ..., "the Python of an environment with MONAI: benchmarks/requirements-monai.txt"),
    number=(harness.number(20), 640, "slices drawn by each"),
) as command:
    import keras  # noqa: F401
import numpy as np

from benchmarks import race
from evaluation import figures, measure, metrics, realism
from running import run_folder
from system.console import UserError

DIFFUSION, OURS = "latent diffusion", "this project"
SHOWN = 8


def trained_s(run_dir, decoder):
    """Seconds of all stages behind a run's samples."""
    return sum(row["seconds"] for rows in run_folder.read_histories(run_dir, decoder).values() for row in rows)


def diffusion(args, data, seconds):
    """Samples, their slice positions, reconstructions of the test slices, and what is told of the training."""
    train, test = data.of("train"), data.of("test")
    args.work_dir.mkdir(parents=True, exist_ok=True)
    arrays = {"train": data.images[train.row], "test": data.images[test.row]}
    for name, array in (arrays | {"positions": train.slice_position.to_numpy("float32")}).items():
        np.save(args.work_dir / f"{name}.npy", array)
    script = harness.ROOT / "benchmarks" / "peer_diffusion.py"
    words = [args.monai.absolute(), script, args.work_dir.absolute(), seconds, args.number]
    log = args.work_dir / "diffusion.log"
    with log.open("w") as errors:
        ended = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, stderr=errors, check=False)
    if ended.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise UserError(f"{script.name}: failed ({' '.join(last) or 'no message'}); see {log}")
    with np.load(args.work_dir / "diffusion.npz") as found:
        made = [found[name] for name in ("samples", "positions", "reconstructions")]
    return *made, json.loads(ended.stdout.splitlines()[-1])


def judge(samples, positions, reconstructed, data, model, codes):
    """The columns of a row: what is lost by the autoencoder, and how samples stand to test people's slices."""
    test = data.of("test")
    of_people = metrics.summarise(metrics.batch_metrics(data.pixels(test), reconstructed), test.subject_id)
    found, _ = realism.judge_samples(samples, positions, data, model.vqvae, codes)
    names = ("frechet_distance", "precision", "recall", "coverage", "classifier_accuracy")
    anatomy = found["anatomy"]["samples"]
    return {
        "ssim_head": of_people["ssim_head"]["mean"],
        **{name: found["samples"][name] for name in names},
        "other_people": found["floor"]["frechet_distance"],
        "both_ventricles": anatomy["both_ventricles"],
        "fold_length_distance": anatomy["fold_length_distance"],
        "copies": found["copies"]["share_of_samples"],
        "most_ms_ssim": found["copies"]["most_ms_ssim_samples"],
    }


@command
def main(args):
    data, model = harness.open_run(args.run_dir)
    codes, *_ = measure.reconstruct(model.vqvae, data)
    seconds, test = trained_s(args.run_dir, model.decoder), data.of("test")
    labels, positions = model.conditions(args.number)
    model.sample(2)  # which compiles
    drawing, samples = harness.timed(lambda: np.concatenate(list(model.draw(labels, positions))))
    parts = (model.vqvae, model.models.coarse, model.models.coarse_prior, model.models.prior)
    ours = {"parameters": sum(map(race.count, filter(None, parts))), "seconds_a_sample": drawing / args.number}
    made = {OURS: (samples, positions, model.decode(codes), ours)}
    made[DIFFUSION] = diffusion(args, data, seconds)
    rows, shown = [], {"people": data.pixels(test.iloc[:: max(1, len(test) // SHOWN)])[:SHOWN]}
    for name, (drawn, at, again, told) in made.items():
        row = {"entry": name, "training_s": seconds, **told}
        rows.append(row | judge(drawn, at, again, data, model, codes))
        shown[name] = drawn[:SHOWN]
        harness.write(args.output, rows, data=data.title, people="test", number=args.number)
    footer = f"after {seconds / 60:.0f} minutes of training each\n{run_folder.footer(data.title, data.credit)}"
    pictures = np.concatenate([*shown.values()])
    figures.image_grid(args.output.with_suffix(".png"), pictures, [""] * len(pictures), footer, SHOWN, [*shown])


if __name__ == "__main__":
    sys.exit(main())
