"""The project's VQ-VAE and prior beside what a person would pick instead, for the same seconds on the same machine.

    python -m venv runs/monai && runs/monai/bin/pip install -r benchmarks/requirements-monai.txt
    python benchmarks/peers.py --data-dir ../shared/data/ixi --output-dir results/peers --monai runs/monai/bin/python
    python benchmarks/peers.py --priors runs/ixi4 --output-dir results/peers --monai runs/monai/bin/python --minutes 5

Every contestant is a process of its own. One trains at a time, ten seconds in turn, so that a slow moment of the
machine meets all alike; its clock runs only while it trains, and starts when everything is compiled. At each budget the
test people's slices are reconstructed and measured here, by the same functions for all. A contestant whose learning
rate follows a schedule is trained anew for each budget; one that keeps its rate goes on.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dataset
import figures
import metrics
import modules
import run_folder
import sampling
import train
from benchmarks import ablation, priors, race, report, worker

BENCHMARKS = Path(__file__).resolve().parent
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
    quantizer = modules.VectorQuantizer(128, 16, update="gradient", restart_threshold=0.0)
    model = ablation.Assembled(
        encoder,
        quantizer,
        keras.Model(z_q, x),
        loss=lambda a, b: modules.reconstruction_loss(a, b, "l2", 0) / ops.var(a),
    )
    quantizer.set_codebook(ops.convert_to_numpy(keras.random.uniform((128, 16), -0.05, 0.05, seed=0)))
    return model


OURS = "this project"
KERAS = {
    OURS: ablation.VARIANTS["default"],
    "this project, light": ablation.Variant(
        ablation.ours(lambda: ablation.convolutions(base_filters=24, num_residual_blocks=0)), batch_size=8
    ),
    "Keras tutorial": ablation.Variant(
        tutorial,
        keras.optimizers.Adam,
        learning_rate=1e-3,
        batch_size=128,
        scheduled=False,
        from_data=False,
    ),
    "this project, cosine codebook": ablation.VARIANTS["cosine"],
    "this project, FSQ": ablation.VARIANTS["finite scalar quantisation"],
    "this project, rotation trick": ablation.VARIANTS["rotation trick"],
}
MONAI = {"MONAI, matching": "matching", "MONAI, tutorial": "tutorial"}
SCHEDULED = {name: one.scheduled for name, one in KERAS.items()} | {"MONAI, matching": True, "MONAI, tutorial": False}


class KerasContestant:
    """A `race.Contestant` as `worker.serve` wants it; subclasses say how it is measured."""

    def __init__(self, racer):
        self.racer = racer
        self.racer.warm_up()

    def train(self, until_s):
        """Goes on until the clock shows so many seconds."""
        self.racer.train(until_s)
        return {}


class KerasVQVAE(KerasContestant):
    """A VQ-VAE of this project's parts."""

    def __init__(self, folder, name, seconds):
        self.test = np.load(folder / "test.npy", mmap_mode="r")
        training = np.load(folder / "train.npy", mmap_mode="r")
        super().__init__(ablation.enter(name, KERAS[name], training, seconds))

    def evaluate(self, path):
        trained = self.racer.finish()
        outputs, codes, number = ablation.reconstruct(self.racer.model, self.test)
        np.savez(path, outputs=outputs, codes=codes[0], num_embeddings=number[0])
        return trained


class KerasPrior(KerasContestant):
    """The default prior, trained and measured on the codes of a run."""

    def __init__(self, run_dir, seconds):
        config, data, slices = run_folder.reopen(run_dir)
        vqvae = run_folder.load_model(run_dir / "vqvae.keras", modules.VQVAE)
        inputs = run_folder.prior_inputs(
            run_folder.extract_codes(run_dir, vqvae, data, slices), slices, config["data"]["labels"]
        )
        split = np.array([one.split for one in slices])
        self.test = run_folder.select(inputs, split == "test")
        rows = np.array([one.row for one in slices])[split == "train"]
        training = run_folder.select(inputs, split == "train")
        options = priors.TRAINING
        codebook, labels = keras.ops.convert_to_numpy(vqvae.quantizer.codebook), config["data"]["labels"]
        self.build = priors.make_variants(codebook, vqvae.grid_size, len(labels))["default"].build
        train.set_precision(train.resolve_precision("auto"))
        moved = train.MovedCodes(
            training, data.images, rows, vqvae, options["max_shift"], options["batch_size"], seed=0
        )
        super().__init__(
            race.Contestant(
                OURS,
                self.build,
                lambda rate: train.prior_optimizer(rate, priors.AVERAGE_STEPS),
                options["learning_rate"],
                moved,
                seconds,
            )
        )

    def evaluate(self, path):
        trained = self.racer.finish()
        train.set_precision("float32")
        self.prior = self.build()
        self.prior.set_weights(self.racer.model.get_weights())
        bits = []
        for start in range(0, len(self.test["label"]), 32):
            batch = run_folder.select(self.test, slice(start, start + 32))
            bits.append(metrics.code_bits(self.prior.predict_on_batch(batch), batch["codes"]).sum(axis=(1, 2)))
        np.savez(path, bits=np.concatenate(bits))
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
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                bufsize=1,
            )
        self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            tail = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            raise run_folder.RunError(
                f"{self.name}: its process ended ({' '.join(tail) or 'no message'}); see {self.log}"
            )
        return json.loads(line)

    def ask(self, method, argument):
        self.process.stdin.write(json.dumps([method, argument]) + "\n")
        return self._answer()

    def close(self):
        self.process.communicate()  # ends its input, and waits


# ----------------------------------------------------------------------------------------------------------------
# The race
# ----------------------------------------------------------------------------------------------------------------


def stem(name):
    """A contestant's name as the beginning of its files' names."""
    return name.replace(",", "").replace(" ", "-")


def start(args, name, seconds):
    """The process of a VQ-VAE."""
    log = args.work_dir / f"{stem(name)}.log"
    if name in MONAI:
        command = [args.monai, BENCHMARKS / "peer_monai.py", MONAI[name], args.work_dir, seconds]
    else:
        command = [sys.executable, __file__, "--worker", name, args.work_dir, seconds]
    return Process(name, command, log)


def alternate(processes, trained_s, until_s):
    """Trains each process from `trained_s[name]` to `until_s`, ten seconds at a time in turn."""
    turns = [race.TURN_S * turn for turn in range(1, math.ceil(until_s / race.TURN_S))] + [until_s]
    for turn in tqdm(turns, f"to {until_s:g} s", leave=False, disable=None):
        for process in processes:
            if trained_s.get(process.name, 0) < turn:
                process.ask("train", turn)
                trained_s[process.name] = turn


def quality(path, images, people):
    """Figures of the reconstructions and codes that a contestant has written."""
    with np.load(path) as found:
        return ablation.quality(images, found["outputs"], [found["codes"]], [int(found["num_embeddings"])], people)


def race_vqvaes(args):
    options = train.resolve(train.parse(["--data-dir", str(args.data_dir)]))
    data, slices, _ = dataset.prepare(**options["data"])
    if data.image_size != ablation.SIZE:
        raise run_folder.RunError(f"{args.data_dir}: slices of {data.image_size} pixels, not {ablation.SIZE}")
    args.work_dir.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        np.save(args.work_dir / f"{split}.npy", data.images[[one.row for one in slices if one.split == split]])
    test = [one for one in slices if one.split == "test"]
    images, people = data.images[[one.row for one in test]], [one.subject_id for one in test]
    names = args.entry or [*KERAS, *(MONAI if args.monai else {})]
    output = args.output_dir / "peers.json"
    kept = json.loads(output.read_text())["rows"] if output.exists() else []
    kept = [row for row in kept if not (row["entry"] in names and row["minutes"] in args.minutes)]
    going_on, trained_s, rows = {}, {}, []
    for minutes in sorted(args.minutes):
        processes = []
        for name in names:
            if name not in going_on or SCHEDULED[name]:
                going_on[name] = start(args, name, 60 * minutes)
                trained_s[name] = 0
            processes.append(going_on[name])
        alternate(processes, trained_s, 60 * minutes)
        for process in processes:
            path = args.work_dir / f"{stem(process.name)}-{minutes:g}.npz"
            trained = process.ask("evaluate", str(path))
            rows.append({"entry": process.name, "minutes": minutes, **trained, **quality(path, images, people)})
            print(
                "{entry}, {minutes:g} min: SSIM {ssim:.3f}, inside the head {ssim_head:.3f}, {psnr_db:.2f} dB, "
                "{examples_per_second:.1f} images/s, {peak_mib:.0f} MiB".format(**rows[-1]),
                flush=True,
            )
            if SCHEDULED[process.name]:
                process.close()
        report.write(output, [*kept, *rows], data=data.title, people="test", turn_s=race.TURN_S)
    for name in names:
        if not SCHEDULED[name]:
            going_on[name].close()
    footer = "\n".join(filter(None, (data.title, data.credit)))
    if len({row["minutes"] for row in [*kept, *rows]}) > 1:
        draw(args.output_dir / "peers.png", [*kept, *rows], footer)
    show(args.output_dir / "reconstructions.png", args.work_dir, names, max(args.minutes), images, footer)


def race_priors(args):
    config, data, slices = run_folder.reopen(args.priors)
    vqvae = run_folder.load_model(args.priors / "vqvae.keras", modules.VQVAE)
    codes = run_folder.extract_codes(args.priors, vqvae, data, slices)
    split = np.array([one.split for one in slices])
    args.work_dir.mkdir(parents=True, exist_ok=True)
    np.savez(
        args.work_dir / "codes.npz",
        train=codes[split == "train"],
        test=codes[split == "test"],
        num_embeddings=vqvae.quantizer.num_embeddings,
    )
    people = [one.subject_id for one in slices if one.split == "test"]
    rows = []
    for minutes in sorted(args.minutes):
        processes = [
            Process(
                OURS,
                [sys.executable, __file__, "--worker", "prior", args.priors, 60 * minutes],
                args.work_dir / "prior.log",
            ),
            Process(
                "MONAI, transformer",
                [args.monai, BENCHMARKS / "peer_monai.py", "transformer", args.work_dir, 0],
                args.work_dir / "transformer.log",
            ),
        ]
        alternate(processes, {}, 60 * minutes)
        for process in processes:
            path = args.work_dir / f"{process.log.stem}.npz"
            row = {"entry": process.name, "minutes": minutes, **process.ask("evaluate", str(path))}
            with np.load(path) as found:
                row["bits_per_image"] = metrics.over_people(found["bits"], people)
            for batch in BATCHES:
                row[f"seconds_per_sample_batch_{batch}"] = process.ask("time_samples", batch)["seconds"] / batch
            process.close()
            rows.append(row)
            seconds = [row[f"seconds_per_sample_batch_{batch}"] for batch in BATCHES]
            bits = row["bits_per_image"]["mean"]
            print(
                f"{process.name}, {minutes:g} min: {bits:.0f} bits an image, {seconds[0]:.2f} s a sample, "
                f"{seconds[1]:.2f} s in a batch of {BATCHES[1]}",
                flush=True,
            )
        about = {"vqvae_fingerprint": vqvae.fingerprint(), "grid": vqvae.grid_size}
        report.write(args.output_dir / "priors.json", rows, data=data.title, people="test", **about)


# ----------------------------------------------------------------------------------------------------------------
# Pictures
# ----------------------------------------------------------------------------------------------------------------


def draw(path, rows, footer):
    """Quality against training time, a line for each contestant."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    axes = figure.subplots(1, 3)
    minutes = sorted({row["minutes"] for row in rows})
    titles = {"ssim_head": "SSIM inside the head", "psnr_db": "PSNR (dB)", "detail": "power kept above half of Nyquist"}
    for name in dict.fromkeys(row["entry"] for row in rows):
        same = sorted((row for row in rows if row["entry"] == name), key=lambda row: row["minutes"])
        for axis, key in zip(axes, titles, strict=True):
            values = [report.power_above_half(row) if key == "detail" else row[key] for row in same]
            style = {"marker": "o", "lw": 2.5 if name == OURS else 1.2, "ls": "--" if name in MONAI else "-"}
            axis.plot([row["minutes"] for row in same], values, label=name, **style)
    for axis, title in zip(axes, titles.values(), strict=True):
        axis.set(xscale="log", xlabel="minutes of training", title=title)
        axis.set_xticks(minutes, [f"{one:g}" for one in minutes], minor=False)
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
    # What has hardly begun is left outside: far below this project's first point, or with more power than there was.
    axes[-1].set_ylim(-0.03, 1.03)
    ours = min((row for row in rows if row["entry"] == OURS), key=lambda row: row["minutes"], default=None)
    if ours:
        axes[0].set_ylim(bottom=ours["ssim_head"] - 0.25)
        axes[1].set_ylim(bottom=ours["psnr_db"] - 7)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figures.finish(figure, path, f"test people\n{footer}")


def show(path, work_dir, names, minutes, images, footer):
    """Three test slices and each contestant's reconstruction of them."""
    chosen = [9, 15, 21]  # of one person's 32 slices: below, at and above the ventricles
    rows = {"input": images[chosen] / 255}
    for name in names:
        with np.load(work_dir / f"{stem(name)}-{minutes:g}.npz") as found:
            rows[name] = found["outputs"][chosen]
    figures.image_grid(
        path,
        np.concatenate(list(rows.values())),
        [""] * (3 * len(rows)),
        f"after {minutes:g} minutes\n{footer}",
        columns=3,
        row_names=[name.replace(", ", ",\n") for name in rows],
    )


def parse(argv):
    parser = argparse.ArgumentParser(description="Train this project's models and their peers for the same time.")
    add = parser.add_argument
    add("--data-dir", type=Path, help="slices or volumes that come to 128 x 128 pixels")
    add("--priors", type=Path, metavar="RUN_DIR", help="compare priors, on the codes of this run, and no VQ-VAEs")
    add("--output-dir", type=Path, required=True)
    add("--work-dir", type=Path, default=Path("runs/peers"), help="arrays and logs (default: %(default)s)")
    add("--minutes", type=float, nargs="+", default=[2, 10, 40], help="budgets (default: 2 10 40)")
    add("--entry", nargs="+", choices=[*KERAS, *MONAI], help="(default: all); rows of others that are there are kept")
    add("--monai", type=Path, help="the Python of an environment with MONAI; without it, MONAI is left out")
    return parser.parse_args(argv)


def run(args):
    if not all(0 < minutes < math.inf for minutes in args.minutes):
        raise run_folder.RunError(f"--minutes {args.minutes}: must be above 0")
    if args.priors is None and args.data_dir is None:
        raise run_folder.RunError("give --data-dir for the VQ-VAEs, or --priors for the priors")
    needs_monai = args.priors is not None or any(name in MONAI for name in args.entry or ())
    if needs_monai and args.monai is None:
        raise run_folder.RunError("--monai: needed for MONAI's models; see benchmarks/requirements-monai.txt")
    (race_vqvaes if args.priors is None else race_priors)(args)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--worker"]:  # how this program starts itself for a contestant
        _, name, folder, seconds = argv
        if name == "prior":
            worker.serve(lambda: KerasPrior(Path(folder), float(seconds)))
        else:
            worker.serve(lambda: KerasVQVAE(Path(folder), name, float(seconds)))
        return 0
    return run_folder.exit_status(run, parse(argv), "stopped; budgets that were measured are written")


if __name__ == "__main__":
    sys.exit(main())
