"""The project's VQ-VAE and prior beside what a person would pick instead, for the same seconds on the same machine.

    python -m benchmarks.peers --data-dir ../shared/data/ixi --output-dir results/peers --monai runs/monai/bin/python
    python -m benchmarks.peers --priors runs/ixi4 --output-dir results/peers --monai runs/monai/bin/python --minutes 5

Every contestant is a process of its own; those of MONAI run in another environment (`make peers` makes runs/monai). One
trains at a time, ten seconds in turn, so that a slow moment of the machine meets all alike; its clock runs only while
it trains, and starts when everything is compiled. At each budget the test people's slices are reconstructed and
measured here, by the same functions for all. A contestant whose learning rate follows a schedule is trained anew for
each budget; one that keeps its rate goes on.
"""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops
from matplotlib.figure import Figure
from tqdm import tqdm

import modules
import runs
import sampling
from benchmarks import ablation, priors, race, report, worker
from evaluation import figures, metrics
from files import UserError

BATCHES = (1, 16)  # of samples


# ----------------------------------------------------------------------------------------------------------------
# Contestants
# ----------------------------------------------------------------------------------------------------------------


def tutorial():
    """The VQ-VAE of keras.io's example (examples/generative/vq_vae.py), built from this project's parts.

    Convolutions of 32 and 64, 128 codes of 16 that learn by gradient, commitment cost 0.25, intensities around 0, and
    the squared error over the variance (of the batch, where the example has that of its data set).
    """
    x = image = keras.Input((ablation.SIZE, ablation.SIZE, 1))
    x = layers.Rescaling(1.0, -0.5)(x)
    for filters in (32, 64):
        x = layers.Conv2D(filters, 3, 2, padding="same", activation="relu")(x)
    encoder = keras.Model(image, layers.Conv2D(16, 1, padding="same", dtype="float32")(x))
    x = z_q = keras.Input(encoder.output_shape[1:])
    for filters in (64, 32):
        x = layers.Conv2DTranspose(filters, 3, 2, padding="same", activation="relu")(x)
    x = layers.Rescaling(1.0, 0.5, dtype="float32")(layers.Conv2DTranspose(1, 3, padding="same")(x))
    quantizer, l2 = modules.VectorQuantizer(128, 16, restart_threshold=0.0), ablation.loss_of("l2")
    model = ablation.Assembled(encoder, quantizer, keras.Model(z_q, x), loss=lambda a, b: l2(a, b) / ops.var(a))
    quantizer.set_codebook(ops.convert_to_numpy(keras.random.uniform((128, 16), -0.05, 0.05, seed=0)))
    return model


OURS = "this project"
KERAS = {
    OURS: ablation.VARIANTS["default"],
    "this project, light": ablation.Variant(ablation.sized(base_filters=24, num_residual_blocks=0), batch_size=8),
    "Keras tutorial": ablation.Variant(tutorial, keras.optimizers.Adam, 1e-3, 128, scheduled=False, from_data=False),
    "this project, cosine codebook": ablation.VARIANTS["cosine"],
    "this project, FSQ": ablation.VARIANTS["finite scalar quantisation"],
    "this project, rotation trick": ablation.VARIANTS["rotation trick"],
}
MONAI = {"MONAI, matching": "matching", "MONAI, tutorial": "tutorial"}
GO_ON = ["MONAI, tutorial", *(name for name, one in KERAS.items() if not one.scheduled)]  # from budget to budget


class KerasVQVAE:
    """A VQ-VAE of this project's parts, as `worker.serve` wants it."""

    def __init__(self, folder, name, seconds):
        self.test = np.load(folder / "test.npy", mmap_mode="r")
        training = np.load(folder / "train.npy", mmap_mode="r")
        self.racer = ablation.enter(name, KERAS[name], training, seconds)
        self.racer.warm_up()

    def train(self, until_s):
        """Goes on until the clock shows so many seconds."""
        self.racer.train(until_s)
        return {}

    def evaluate(self, path):
        """Writes reconstructions and codes of the test slices; says what the training was."""
        trained = self.racer.finish()
        outputs, codes, number = ablation.reconstruct(self.racer.model, self.test)
        np.savez(path, outputs=outputs, codes=codes[0], num_embeddings=number[0])
        return trained


class KerasPrior(KerasVQVAE):
    """The default prior, trained and measured on the codes of a run."""

    def __init__(self, run_dir, seconds):
        codes = priors.Codes(run_dir)
        self.test = codes.inputs["test"]
        self.racer = codes.enter(OURS, codes.variants["default"], seconds)
        self.racer.warm_up()

    def evaluate(self, path):
        """Writes the bits of each test slice; says what the training was."""
        trained = self.racer.finish()
        runs.set_precision("float32")
        self.prior = self.racer.variant.build()
        self.prior.set_weights(self.racer.model.get_weights())
        np.savez(path, bits=metrics.code_lengths(self.prior, self.test).sum(axis=(1, 2)))
        return trained

    def time_samples(self, batch):
        """Seconds that the sampler takes for a batch, the second time."""
        sampler = sampling.PixelCNNSampler(self.prior)
        for _ in range(2):
            start = time.perf_counter()
            list(sampler.sample(np.zeros(batch, "int32"), np.full(batch, 0.5, "float32"), 0, batch_size=batch))
        return {"seconds": time.perf_counter() - start}


class Process:
    """A contestant in a process of its own; its log lies beside its data."""

    def __init__(self, name, command, log):
        self.name, self.log = name, log
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        with log.open("w") as errors:
            self.process = subprocess.Popen([str(part) for part in command], stderr=errors, cwd=report.ROOT, **pipes)
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


def start(args, name, kind, seconds):
    """The process of a contestant; `kind` is what it is called in its own program."""
    if name.startswith("MONAI"):
        command = [args.monai, report.ROOT / "benchmarks" / "peer_monai.py"]
    else:
        command = [sys.executable, "-m", "benchmarks.peers", "--worker"]
    folder = args.priors.resolve() if kind == "prior" else args.work_dir
    return Process(name, [*command, kind, folder, seconds], args.work_dir / f"{stem(name)}.log")


def stem(name):
    """A contestant's name as the beginning of its files' names."""
    return name.replace(",", "").replace(" ", "-")


# ----------------------------------------------------------------------------------------------------------------
# The race
# ----------------------------------------------------------------------------------------------------------------


def alternate(processes, trained_s, until_s):
    """Trains each process from `trained_s[name]` to `until_s`, ten seconds at a time in turn."""
    turns = [race.TURN_S * turn for turn in range(1, math.ceil(until_s / race.TURN_S))] + [until_s]
    for turn in tqdm(turns, f"to {until_s:g} s", leave=False, disable=None):
        for process in processes:
            if trained_s.get(process.name, 0) < turn:
                process.ask("train", turn)
                trained_s[process.name] = turn


def evaluate(args, process, minutes):
    """What a contestant has written at a budget, and the beginning of its row."""
    path = args.work_dir / f"{stem(process.name)}-{minutes:g}.npz"
    row = {"entry": process.name, "minutes": minutes, **process.ask("evaluate", str(path))}
    with np.load(path) as found:
        return dict(found), row


def race_vqvaes(args):
    data = ablation.prepare(args.data_dir)
    for split in ("train", "test"):
        np.save(args.work_dir / f"{split}.npy", data.images[data.of(split).row])
    images, people = data.images[data.of("test").row], data.of("test").subject_id
    names = args.entry or [*KERAS, *(MONAI if args.monai else {})]
    output = args.output_dir / "peers.json"
    rows = json.loads(output.read_text())["rows"] if output.exists() else []
    rows = [row for row in rows if not (row["entry"] in names and row["minutes"] in args.minutes)]
    racing, trained_s, shown = {}, {}, {}
    for minutes in sorted(args.minutes):
        for name in names:
            if name not in racing or name not in GO_ON:
                racing[name], trained_s[name] = start(args, name, MONAI.get(name, name), 60 * minutes), 0
        alternate(racing.values(), trained_s, 60 * minutes)
        for name, process in racing.items():
            found, row = evaluate(args, process, minutes)
            shown[name], codes = found["outputs"], [found["codes"]]
            quality = ablation.quality(images, shown[name], codes, [int(found["num_embeddings"])], people)
            rows.append({**row, **quality})
            report.write(output, rows, data=data.title, people="test", turn_s=race.TURN_S)
            if name not in GO_ON or minutes == max(args.minutes):
                process.close()
    if len({row["minutes"] for row in rows}) > 1:
        draw(args.output_dir / "peers.png", rows, report.footer(data))
    footer = f"after {max(args.minutes):g} minutes\n{report.footer(data)}"
    show(args.output_dir / "reconstructions.png", {"input": images / 255, **shown}, footer)


def race_priors(args):
    codes, rows = priors.Codes(args.priors), []
    grids = {split: codes.inputs[split]["codes"] for split in ("train", "test")}
    np.savez(args.work_dir / "codes.npz", **grids, num_embeddings=codes.vqvae.quantizer.num_embeddings)
    about = {"vqvae_fingerprint": runs.fingerprint(codes.vqvae), "grid": codes.vqvae.grid_size}
    for minutes in sorted(args.minutes):
        kinds = {OURS: "prior", "MONAI, transformer": "transformer"}
        processes = [start(args, name, kind, 60 * minutes) for name, kind in kinds.items()]
        alternate(processes, {}, 60 * minutes)
        for process in processes:
            found, row = evaluate(args, process, minutes)
            row["bits_per_image"] = metrics.over_people(found["bits"], codes.data.of("test").subject_id)
            for batch in BATCHES:
                row[f"seconds_per_sample_batch_{batch}"] = process.ask("time_samples", batch)["seconds"] / batch
            process.close()
            rows.append(row)
            report.write(args.output_dir / "priors.json", rows, data=codes.data.title, people="test", **about)


# ----------------------------------------------------------------------------------------------------------------
# Pictures
# ----------------------------------------------------------------------------------------------------------------


def draw(path, rows, footer):
    """Quality against training time, a line for each contestant."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    axes, minutes = figure.subplots(1, 3), sorted({row["minutes"] for row in rows})
    titles = {"ssim_head": "SSIM inside the head", "psnr_db": "PSNR (dB)", "detail": "power kept above half of Nyquist"}
    rows = sorted(({**row, "detail": report.power_above_half(row)} for row in rows), key=lambda row: row["minutes"])
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for name in dict.fromkeys(row["entry"] for row in rows):
            same = [row for row in rows if row["entry"] == name]
            style = {"marker": "o", "lw": 2.5 if name == OURS else 1.2, "ls": "--" if name in MONAI else "-"}
            axis.plot([row["minutes"] for row in same], [row[key] for row in same], label=name, **style)
        axis.set(xscale="log", xlabel="minutes of training", title=title)
        axis.set_xticks(minutes, [f"{one:g}" for one in minutes], minor=False)
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
    # What has hardly begun is left outside: far below this project's first point, or with more power than there was.
    axes[-1].set_ylim(-0.03, 1.03)
    for ours in [row for row in rows if row["entry"] == OURS][:1]:
        axes[0].set_ylim(bottom=ours["ssim_head"] - 0.25)
        axes[1].set_ylim(bottom=ours["psnr_db"] - 7)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figures.finish(figure, path, f"test people\n{footer}")


def show(path, outputs, footer):
    """Three test slices and each contestant's reconstruction of them."""
    chosen = [9, 15, 21]  # of one person's 32 slices: below, at and above the ventricles
    shown, names = np.concatenate([some[chosen] for some in outputs.values()]), [*outputs]
    names = [name.replace(", ", ",\n") for name in outputs]
    figures.image_grid(path, shown, [""] * len(shown), footer, columns=3, row_names=names)


# ----------------------------------------------------------------------------------------------------------------
# The command
# ----------------------------------------------------------------------------------------------------------------


def run(args):
    if args.priors is None and args.data_dir is None:
        raise UserError("give --data-dir for the VQ-VAEs, or --priors for the priors")
    if args.monai is None and (args.priors or any(name in MONAI for name in args.entry)):
        raise UserError("--monai: needed for MONAI's models; see benchmarks/requirements-monai.txt")
    args.work_dir = args.work_dir.resolve()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    (race_priors if args.priors else race_vqvaes)(args)


command = report.command(
    run,
    __doc__,
    data_dir=(Path, None, "slices or volumes that come to 128 x 128 pixels"),
    priors=(Path, None, "compare priors, on the codes of this run, and no VQ-VAEs"),
    output_dir=(Path, ..., "where figures and pictures go"),
    work_dir=(Path, Path("runs/peers"), "arrays and logs"),
    minutes=(report.at_least(0.001, float), [2, 10, 40], "budgets"),
    entry=(report.one_of([*KERAS, *MONAI]), [], "which (default: all); rows of others that are there are kept"),
    monai=(Path, None, "the Python of an environment with MONAI; without it, MONAI is left out"),
)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] != ["--worker"]:
        return command(argv)
    _, kind, folder, seconds = argv  # how this program starts itself for a contestant
    folder, seconds = Path(folder), float(seconds)
    worker.serve(lambda: KerasPrior(folder, seconds) if kind == "prior" else KerasVQVAE(folder, kind, seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
