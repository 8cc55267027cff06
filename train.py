"""Trains both stages: a VQ-VAE on brain slices, then a PixelCNN prior on its grids of codes.

    python train.py                                        # the embedded demo cohort
    python train.py --data-dir ../shared/data/ixi          # BIDS volumes; OASIS and ADNI folders likewise
    python train.py --help                                 # every option and its default

A run folder holds all of a run: config.json, splits.csv, vqvae.keras, codes.npz, prior.keras, both histories and
TensorBoard's log. The same command again goes on where the last one stopped; other settings in the same folder are
refused.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up talk; errors still raise

import argparse
import csv
import dataclasses
import inspect
import json
import math
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np

import dataset
import modules

# What the literature of this task uses; anything not named is the default of `modules.VQVAE`.
PRESETS = {
    "default": {},
    # van den Oord et al. 2017, section 4.1: 512 entries of 64, two strided convolutions and two residual blocks of 256.
    "vqvae-2017": {
        "num_embeddings": 512,
        "embedding_dim": 64,
        "base_filters": 128,
        "codebook_update": "gradient",
        "loss": "l2",
    },
    # Three convolutions each way and 32 entries of 128, at 256 x 256 x 1.
    "three-conv": {"num_embeddings": 32, "embedding_dim": 128, "num_residual_blocks": 0, "loss": "l2"},
}


class RunError(ValueError):
    """A run that cannot go on; the message is one line that says what to do."""


@dataclasses.dataclass(frozen=True)
class VQVAETraining:
    """How stage 1 is fitted: AdamW, 100 steps of warm-up, cosine decay to 0 over all epochs."""

    epochs: int = 60
    learning_rate: float = 1e-3
    patience: int = 15  # epochs without a better validation loss


@dataclasses.dataclass(frozen=True)
class PriorTraining:
    """How stage 2 is fitted: the same, with an exponential average of the weights, which is what is kept."""

    epochs: int = 40
    learning_rate: float = 2e-3
    patience: int = 8
    average_momentum: float = 0.998


# Each model's constructor arguments are flags: title, what the flag's name begins with, class.
MODELS = (("VQ-VAE (each overrides the preset)", "", modules.VQVAE), ("prior", "prior-", modules.PixelCNN))


def constructor_defaults(kind):
    """Arguments of a model's constructor that have a number or a word for a default, but for the seed."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    return {
        p.name: p.default for p in parameters if isinstance(p.default, (int, float, str)) and p.name not in INTERNAL
    }


INTERNAL = ("seed", "vqvae_fingerprint")


def parse(argv):
    parser = argparse.ArgumentParser(
        description="Train a VQ-VAE on brain slices and a PixelCNN prior on its codes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data-dir", type=Path, help="OASIS, ADNI, BIDS or image folder; without it, the embedded demo cohort")
    add("--run-dir", type=Path, help="where the run is kept (default: runs/ and the data folder's name, or runs/demo)")
    add("--stage", choices=("all", "vqvae", "prior"), default="all")
    add("--image-size", type=int, help="side in pixels (default: what holds the native slices)")
    add("--preset", choices=PRESETS, default="default", help="architecture and loss of the VQ-VAE")
    add("--seed", type=int, default=0)
    add("--batch-size", type=int, default=16)
    add("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    data = parser.add_argument_group("data").add_argument
    data("--layout", choices=("oasis", "adni", "bids", "images"), help="(default: recognised)")
    data("--subject-regex", help="for --layout images: searched in each path; its group 'subject' is the person")
    data("--label-column", help="column of participants.tsv (default: diagnosis or group, where there is one)")
    data("--num-slices", type=int, default=32, help="axial slices of each volume")
    data("--slice-spacing", type=float, default=2.0, help="mm between them")
    data("--validation-fraction", type=float, default=0.1, help="of the people, where the data have no such split")
    data("--test-fraction", type=float, default=0.15, help="likewise")
    data("--skip-bad-files", action="store_true", help="list unusable files in bad_files.txt and go on")
    data("--cache-dir", type=Path, default=Path("cache"), help="decoded slices go here")
    for title, prefix, kind in MODELS:
        group = parser.add_argument_group(title).add_argument
        for name, default in constructor_defaults(kind).items():
            flag = f"--{prefix}{name.replace('_', '-')}"
            group(flag, type=type(default), default=argparse.SUPPRESS, help=f"(default: {default})")
    for stage, training in (("vqvae", VQVAETraining), ("prior", PriorTraining)):
        group = parser.add_argument_group(f"training of the {stage}").add_argument
        for field in dataclasses.fields(training):
            group(f"--{stage}-{field.name.replace('_', '-')}", type=field.type, default=field.default)
    return parser.parse_args(argv)


def resolve(args):
    """The options of a run as plain JSON values, with presets and defaults filled in.

    Raises:
        RunError: For a number that makes no sense.
    """
    positive = ("batch_size", "vqvae_epochs", "prior_epochs", "vqvae_patience", "prior_patience", "vqvae_learning_rate")
    for name in (*positive, "prior_learning_rate"):
        if getattr(args, name) <= 0:
            raise RunError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be above 0")
    vqvae, prior = (
        {name: getattr(args, (prefix + name).replace("-", "_"), default) for name, default in given.items()}
        for (_, prefix, kind) in MODELS
        for given in [{**constructor_defaults(kind), **(PRESETS[args.preset] if kind is modules.VQVAE else {})}]
    )
    if args.image_size is not None and args.image_size % vqvae["downsampling"]:
        raise RunError(f"--image-size {args.image_size}: must be a multiple of --downsampling {vqvae['downsampling']}")
    training = {
        stage: {field.name: getattr(args, f"{stage}_{field.name}") for field in dataclasses.fields(kind)}
        for stage, kind in (("vqvae", VQVAETraining), ("prior", PriorTraining))
    }
    return {
        "data": {
            "data_dir": str(args.data_dir) if args.data_dir else None,
            "layout": args.layout,
            "image_size": args.image_size,
            "num_slices": args.num_slices,
            "slice_spacing_mm": args.slice_spacing,
            "subject_regex": args.subject_regex,
            "label_column": args.label_column,
            "skip_bad_files": args.skip_bad_files,
            "validation_fraction": args.validation_fraction,
            "test_fraction": args.test_fraction,
            "seed": args.seed,
            "cache_dir": str(args.cache_dir),
        },
        "vqvae": vqvae,
        "vqvae_training": training["vqvae"],
        "prior": prior,
        "prior_training": training["prior"],
        "batch_size": args.batch_size,
        "precision": resolve_precision(args.precision),
    }


def resolve_precision(choice):
    """ "auto" is bfloat16 on a GPU and on processors that multiply it, else float32."""
    if choice != "auto":
        return choice
    cpu_info = Path("/proc/cpuinfo")
    flags = cpu_info.read_text() if cpu_info.exists() else ""
    has_bfloat16 = "avx512_bf16" in flags or "amx_bf16" in flags or keras.distribution.list_devices("gpu")
    return "bfloat16" if has_bfloat16 else "float32"


def set_precision(precision):
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else "float32")


# ----------------------------------------------------------------------------------------------------------------
# The run folder
# ----------------------------------------------------------------------------------------------------------------


def open_run(run_dir, options):
    """Loads the data, splits them and writes or checks config.json and splits.csv.

    Returns:
        The `Data`, and its slices with their splits.

    Raises:
        RunError: If the folder holds a run of other settings or other data.
    """
    data, slices, notices = dataset.prepare(**options["data"])
    counts = {
        name: {
            "people": len({one.subject_id for one in slices if one.split == name}),
            "slices": sum(one.split == name for one in slices),
        }
        for name in dataset.SPLITS
    }
    print(f"data: {data.title}")
    print(f"      {len(slices)} slices of {data.image_size} x {data.image_size}, layout {data.layout}")
    print("      " + ", ".join(f"{name} {c['people']} people, {c['slices']} slices" for name, c in counts.items()))
    for notice in notices:
        print(f"note: {notice}")

    run_dir.mkdir(parents=True, exist_ok=True)
    config = {
        "options": options,
        "data": {
            "title": data.title,
            "credit": data.credit,
            "layout": data.layout,
            "image_size": data.image_size,
            "fingerprint": data.fingerprint,
            "labels": dataset.label_names(slices),
            "splits": counts,
            "notices": notices,
        },
    }
    path = run_dir / "config.json"
    if path.exists():
        refuse_if_different(path, config)
    else:
        config["splits_sha256"] = dataset.write_splits(slices, run_dir / "splits.csv")
        packages = ("tensorflow", "keras", "numpy", "scikit-image", "nibabel", "nilearn")
        config["versions"] = {"python": platform.python_version(), **{name: version(name) for name in packages}}
        if data.bad_files:
            lines = [f"{name}\t{reason}\n" for name, reason in data.bad_files]
            dataset.write_text(run_dir / "bad_files.txt", "".join(lines))
        dataset.write_text(path, json.dumps(config, indent=2) + "\n")
    if data.bad_files:
        print(f"note: {len(data.bad_files)} unusable files were skipped, listed in {run_dir / 'bad_files.txt'}")
    return data, slices


def refuse_if_different(path, config):
    """Raises RunError if the run at `path` has other settings; what the data are counts, not where they lie."""
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}); give another --run-dir, or remove the folder") from error
    new = json.loads(json.dumps(config))
    differences = []

    def compare(a, b, name):
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted({*a, *b}):
                compare(a.get(key), b.get(key), f"{name}.{key}" if name else key)
        elif a != b and name not in ("options.data.data_dir", "options.data.cache_dir"):
            differences.append(f"{name} was {a!r} and is now {b!r}")

    for part in ("options", "data"):
        compare(old.get(part, {}), new[part], part)
    if differences:
        raise RunError(
            f"{path.parent}: holds a run of other settings: {'; '.join(differences)}; give another --run-dir"
        )


def read_history(path):
    """Rows of a history as dictionaries of numbers; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


class Checkpoint(keras.callbacks.Callback):
    """Keeps the best weights, the whole state and the history of a stage, and stops it early.

    Keras has a callback for each of these; a process killed between two of them leaves files that disagree, and after
    a resumption early stopping has forgotten what it waited for. Here the history alone says what was best, each file
    is renamed into place, and the state comes last: what it does not cover is computed again.

    Args:
        run_dir, stage: Files are `<stage>.keras`, `<stage>_history.csv` and `<stage>_state.weights.h5`.
        monitor: Metric to be small on validation.
        patience: Epochs without a better one before the stage ends.
    """

    def __init__(self, run_dir, stage, monitor, patience):
        super().__init__()
        self.best_path = run_dir / f"{stage}.keras"
        self.history_path = run_dir / f"{stage}_history.csv"
        self.state_path = run_dir / f"{stage}_state.weights.h5"
        self.monitor = monitor
        self.patience = patience
        self.history = read_history(self.history_path)

    def _since_best(self):
        """Epochs since the best one; 0 if that was the last."""
        values = [row[f"val_{self.monitor}"] for row in self.history]
        return len(values) - 1 - int(np.argmin(values)) if values else 0

    def finished(self, epochs):
        return self.best_path.exists() and (len(self.history) >= epochs or self._since_best() >= self.patience)

    def restore(self, steps_per_epoch):
        """Loads the state of an earlier process into the model, if there is one; returns how many epochs it saw."""
        if not self.state_path.exists():
            self.history = []
            return 0
        try:
            self.model.load_weights(self.state_path)
        except Exception as error:  # h5py and Keras raise many kinds
            raise RunError(
                f"{self.state_path}: cannot be read ({type(error).__name__}); remove it to start the stage again"
            ) from error
        epoch = int(self.model.optimizer.iterations) // steps_per_epoch
        self.history = self.history[:epoch]
        return epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.monotonic()

    def on_test_end(self, logs=None):
        # Called inside the epoch's validation, while averaged weights are in the model.
        best = min((row[f"val_{self.monitor}"] for row in self.history), default=math.inf)
        if logs[self.monitor] < best:
            _save(self.model.save, self.best_path)

    def on_epoch_end(self, epoch, logs=None):
        if not math.isfinite(logs["loss"]):
            raise RunError(
                f"the loss is {logs['loss']} in epoch {epoch + 1}: lower the learning rate, in another --run-dir"
            )
        self.history.append({"epoch": epoch + 1, "seconds": round(time.monotonic() - self.started, 1), **logs})
        columns = list(self.history[0])
        lines = [columns, *([f"{row[c]:.9g}" for c in columns] for row in self.history)]
        dataset.write_text(self.history_path, "".join(",".join(line) + "\n" for line in lines))
        _save(self.model.save_weights, self.state_path)
        if self._since_best() >= self.patience:
            self.model.stop_training = True


def _save(save, path):
    """Calls a Keras method that saves to a path, under another name first."""
    stem, suffixes = path.name.split(".", 1)
    partial = path.with_name(f"{stem}.partial.{suffixes}")
    save(partial)
    partial.replace(path)


def fit(stage, model, batches, validation, monitor, training, run_dir):
    """Fits a stage, or what is left of it, and returns the path of its best model."""
    checkpoint = Checkpoint(run_dir, stage, monitor, training["patience"])
    if checkpoint.finished(training["epochs"]):
        print(f"{stage}: already trained, {len(checkpoint.history)} epochs")
        return checkpoint.best_path
    steps = training["epochs"] * len(batches)
    warm_up = min(100, steps // 10)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm_up), warmup_target=training["learning_rate"], warmup_steps=warm_up
    )
    average = {"use_ema": True, "ema_momentum": training["average_momentum"]} if "average_momentum" in training else {}
    optimizer = keras.optimizers.AdamW(rate, weight_decay=1e-4, clipnorm=1.0, **average)
    model.compile(optimizer=optimizer)
    optimizer.build(model.trainable_variables)
    checkpoint.set_model(model)
    epoch = checkpoint.restore(len(batches))
    batches.set_epoch(epoch)
    print(
        f"{stage}: {model.count_params():,} parameters, {training['epochs']} epochs"
        + f", from epoch {epoch + 1}" * (epoch > 0)
    )
    callbacks = [checkpoint, keras.callbacks.TensorBoard(run_dir / "tensorboard" / stage, write_graph=False)]
    if average:
        callbacks.append(keras.callbacks.SwapEMAWeights())
    model.fit(
        batches,
        validation_data=validation,
        initial_epoch=epoch,
        epochs=training["epochs"],
        callbacks=callbacks,
        verbose=1 if sys.stdout.isatty() else 2,
    )
    return checkpoint.best_path


# ----------------------------------------------------------------------------------------------------------------
# The two stages
# ----------------------------------------------------------------------------------------------------------------


def train_vqvae(run_dir, data, slices, options):
    """Stage 1: fits the VQ-VAE to the training people's slices."""
    keras.utils.set_random_seed(options["data"]["seed"])
    set_precision(options["precision"])
    batches = dataset.image_batches(data, slices, "train", options["batch_size"], options["data"]["seed"])
    validation = dataset.image_batches(data, slices, "validation", options["batch_size"])
    try:
        model = modules.VQVAE(data.image_size, **options["vqvae"], seed=options["data"]["seed"])
    except ValueError as error:
        raise RunError(str(error)) from error
    # The codebook starts as encoder outputs: at another scale, two entries would take every vector for epochs.
    sample = np.concatenate([batches[i][0] for i in range(min(8, len(batches)))])
    z_e = np.asarray(model.encoder.predict(sample, batch_size=options["batch_size"], verbose=0), "float32")
    try:
        model.quantizer.initialise(z_e)
    except ValueError as error:
        raise RunError(f"{error}; give more slices, or a smaller --num-embeddings") from error
    fit("vqvae", model, batches, validation, "loss", options["vqvae_training"], run_dir)


def load_model(path, kind):
    """Loads a model in float32, whatever precision it was trained in.

    Raises:
        RunError: If the file is missing, damaged or another model.
    """
    keras.config.set_dtype_policy("float32")
    if not path.exists():
        raise RunError(f"{path}: not found; run train.py with this --run-dir first")
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:  # zipfile, h5py and Keras raise many kinds
        raise RunError(
            f"{path}: not a model that can be loaded ({type(error).__name__}); train again in another folder"
        ) from error
    if not isinstance(model, kind):
        raise RunError(f"{path}: holds a {type(model).__name__}, not a {kind.__name__}; train again in another folder")
    return model


def extract_codes(run_dir, data, slices, batch_size):
    """Codes of every slice, uint16, in the order of `slices`, kept in codes.npz; and the VQ-VAE."""
    vqvae = load_model(run_dir / "vqvae.keras", modules.VQVAE)
    path = run_dir / "codes.npz"
    fingerprint = vqvae.fingerprint()
    if path.exists():
        with np.load(path) as file:
            if str(file["vqvae_fingerprint"]) == fingerprint:
                return file["codes"], vqvae
    rows = np.array([one.row for one in slices])
    everything = dataset.Batches(len(rows), lambda i: dataset.as_float(data.images[rows[i]]), batch_size)
    codes = np.concatenate([vqvae.encode(everything[i][0]) for i in range(len(everything))]).astype("uint16")
    _save(lambda partial: np.savez_compressed(partial, codes=codes, vqvae_fingerprint=fingerprint), path)
    return codes, vqvae


def prior_inputs(codes, slices, labels):
    """What the prior is fed for these slices: codes, label (0 unknown) and slice position."""
    return {
        "codes": codes.astype("int32"),
        "label": np.array([labels.index(one.label) + 1 if one.label else 0 for one in slices], "int32"),
        "slice_position": np.array([one.slice_position for one in slices], "float32"),
    }


def train_prior(run_dir, data, slices, options):
    """Stage 2: fits the PixelCNN to the codes of the training people's slices."""
    codes, vqvae = extract_codes(run_dir, data, slices, options["batch_size"])
    keras.utils.set_random_seed(options["data"]["seed"])
    set_precision(options["precision"])
    labels = dataset.label_names(slices)
    inputs = prior_inputs(codes, slices, labels)
    split = np.array([one.split for one in slices])

    def batches(name, seed=None):
        chosen = {key: value[split == name] for key, value in inputs.items()}
        fetch = lambda i: {key: value[i] for key, value in chosen.items()}  # noqa: E731
        return dataset.Batches(int((split == name).sum()), fetch, options["batch_size"], seed)

    try:
        model = modules.PixelCNN(
            vqvae.quantizer.num_embeddings,
            vqvae.grid_size,
            len(labels),
            vqvae_fingerprint=vqvae.fingerprint(),
            seed=options["data"]["seed"],
            **options["prior"],
        )
    except ValueError as error:
        raise RunError(str(error)) from error
    train_batches = batches("train", options["data"]["seed"])
    fit("prior", model, train_batches, batches("validation"), "bits_per_code", options["prior_training"], run_dir)


def run(args):
    options = resolve(args)
    name = args.data_dir.resolve().name if args.data_dir else "demo"
    run_dir = args.run_dir or Path("runs") / name
    data, slices = open_run(run_dir, options)
    if args.stage in ("all", "vqvae"):
        train_vqvae(run_dir, data, slices, options)
    if args.stage in ("all", "prior"):
        train_prior(run_dir, data, slices, options)
    print(f"done: {run_dir}; now: python predict.py --run-dir {run_dir}")


def main(argv=None):
    args = parse(argv)
    try:
        run(args)
    except (RunError, dataset.DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"error: {error.filename or ''}: {error.strerror or error}; nothing saved so far is lost", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last whole epoch", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
