"""The project's VQ-VAE beside what a person would pick instead, for the same seconds on the same machine.

    python -m benchmarks.peers --data-dir IXI --output-dir results/peers --monai runs/monai/bin/python

Every contestant is a process of its own, those of MONAI in another environment (`make peers` makes it). One trains at a
time, ten seconds in turn. At each budget the test people's slices are reconstructed and measured here, by the same
functions for all.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

from benchmarks import harness

with harness.command(
    __name__,
    __doc__,
    data_dir=(Path, ..., "slices or volumes that come to 128 x 128 pixels"),
    output_dir=(Path, ..., "where figures and pictures go"),
    work_dir=(Path, Path("runs/peers"), "arrays and logs"),
    minutes=(harness.MINUTES, [2, 10], "budgets"),
    entry=(str, [], "which (default: all)"),
    monai=(Path, None, "the Python of an environment with MONAI; without it, MONAI is left out"),
) as command:
    import keras
import numpy as np
from keras import layers, ops
from tqdm import tqdm

import modules
from benchmarks import ablation, race, worker
from evaluation import figures
from running import run_folder
from system.console import UserError

SHOWN = [9, 15, 21]  # of one person's 32 slices: below, at and above the ventricles


class Tutorial(keras.Model):
    """The VQ-VAE of keras.io's example (examples/generative/vq_vae.py).

    Its squared error is over the variance of the batch, where the example has that of its data set.
    """

    def __init__(self):
        super().__init__()
        x = image = keras.Input((ablation.SIZE, ablation.SIZE, 1))
        x = layers.Rescaling(1.0, -0.5)(x)
        for filters in (32, 64):
            x = layers.Conv2D(filters, 3, 2, padding="same", activation="relu")(x)
        self.encoder = keras.Model(image, layers.Conv2D(16, 1, padding="same", dtype="float32")(x))
        self.quantizer = modules.VectorQuantizer(128, 16, restart_threshold=0.0)
        self.quantizer.build(self.encoder.output_shape)
        self.quantizer.set_codebook(ops.convert_to_numpy(keras.random.uniform((128, 16), -0.05, 0.05, seed=0)))
        x = z_q = keras.Input(self.encoder.output_shape[1:])
        for filters in (64, 32):
            x = layers.Conv2DTranspose(filters, 3, 2, padding="same", activation="relu")(x)
        x = layers.Conv2DTranspose(1, 3, padding="same")(x)
        self.decoder = keras.Model(z_q, layers.Rescaling(1.0, 0.5, dtype="float32")(x))
        self.built = True

    def call(self, images, training=False):
        z_e = self.encoder(images)
        through, z_q, codes = self.quantizer(z_e, training=training)
        return {"reconstruction": self.decoder(through), "z_e": z_e, "z_q": z_q, "code_indices": codes[..., None]}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        codebook, commitment = self.quantizer.codebook_and_commitment(y_pred["z_e"], y_pred["z_q"])
        squared_error = ops.mean(ops.square(x - y_pred["reconstruction"]))
        return squared_error / ops.var(x) + codebook + 0.25 * commitment


KERAS = {
    "this project": ablation.VARIANTS["default"],
    "Keras tutorial": race.Variant(Tutorial, keras.optimizers.Adam, 1e-3, batch_size=128, scheduled=False),
}
MONAI = {"MONAI, matching": "matching", "MONAI, tutorial": "tutorial"}


def work(name, folder, seconds):
    """The process of a contestant of `KERAS`, which learns from train.npy and is measured on test.npy."""
    training, test = (np.load(Path(folder) / f"{split}.npy", mmap_mode="r") for split in ("train", "test"))

    def make():
        one = ablation.enter(name, KERAS[name], training, float(seconds))
        one.warm_up()

        def evaluate(path):
            row = one.finish()
            outputs, codes = ablation.reconstruct(one.model, test)
            np.savez(path, outputs=outputs, codes=codes, num_embeddings=one.model.quantizer.num_embeddings)
            return row

        one.evaluate = evaluate
        return one

    worker.serve(make)


class Process:
    """A contestant in a process of its own; its log lies beside its data."""

    def __init__(self, name, command, log):
        self.name, self.log = name, log
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        with log.open("w") as errors:
            self.process = subprocess.Popen([str(part) for part in command], stderr=errors, cwd=harness.ROOT, **pipes)
        self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            last = " ".join(self.log.read_text(errors="replace").strip().splitlines()[-1:])
            raise UserError(f"{self.name}: its process ended ({last or 'no message'}); see {self.log}")
        return json.loads(line)

    def ask(self, method, argument):
        """What the contestant's method returns, and `peak_mib`."""
        self.process.stdin.write(json.dumps([method, argument]) + "\n")
        return self._answer()

    def close(self):
        self.process.communicate()  # ends its input, and waits


def train(processes, seconds):
    """Trains each process for so many seconds, ten at a time in turn."""
    turns = [race.TURN_S * turn for turn in range(1, math.ceil(seconds / race.TURN_S))] + [seconds]
    for turn in tqdm(turns, f"to {seconds:g} s", leave=False, disable=None):
        for process in processes:
            process.ask("train", turn)


def compare(args, names):
    """Trains contestants at each budget.

    Yields:
        The beginning of each one's row; what it has written, a dictionary of arrays.
    """
    here = [sys.executable, "-c", "import sys; from benchmarks import peers; peers.work(*sys.argv[1:])"]
    for minutes in sorted(args.minutes):
        processes = []
        for name in names:
            program = [args.monai, "benchmarks/peer_monai.py", MONAI[name]] if name in MONAI else [*here, name]
            command = [*program, args.work_dir, 60 * minutes]
            processes.append(Process(name, command, args.work_dir / f"{name}.log"))
        train(processes, 60 * minutes)
        for process in processes:
            path = args.work_dir / f"{process.name}.npz"
            row = {"entry": process.name, "minutes": minutes, **process.ask("evaluate", str(path))}
            with np.load(path) as found:
                yield row, dict(found)
            process.close()


@command
def main(args):
    names = race.chosen("--entry", args.entry, [*KERAS, *MONAI] if args.entry or args.monai else [*KERAS])
    if args.monai is None and set(names) & set(MONAI):
        raise UserError("--monai: needed for MONAI's models; see benchmarks/requirements-monai.txt")
    args.work_dir = args.work_dir.absolute()  # processes work in the project's folder
    args.monai = args.monai and args.monai.absolute()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    data = ablation.prepare(args.data_dir)
    for split in ("train", "test"):
        np.save(args.work_dir / f"{split}.npy", data.images[data.of(split).row])
    images, people = data.images[data.of("test").row], data.of("test").subject_id
    output, shown = args.output_dir / "peers.json", {"input": images[SHOWN] / 255}
    rows = []
    for row, found in compare(args, names):
        told = found["outputs"], found["codes"], int(found["num_embeddings"])
        rows.append(row | ablation.quality(images, *told, people))
        harness.write(output, rows, data=data.title, people="test", turn_s=race.TURN_S)
        shown[row["entry"].replace(", ", ",\n")] = found["outputs"][SHOWN]
    footer = f"after {max(args.minutes):g} minutes\n{run_folder.footer(data.title, data.credit)}"
    pictures, titles = np.concatenate([*shown.values()]), [""] * len(SHOWN) * len(shown)
    figures.image_grid(args.output_dir / "reconstructions.png", pictures, titles, footer, len(SHOWN), [*shown])


if __name__ == "__main__":
    sys.exit(main())
