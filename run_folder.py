"""The folder of a run: what was asked, on which people, and what came of it.

    config.json            resolved options, versions, the data's fingerprint, the split's SHA-256
    splits.csv             path, subject_id, session, slice_index, label, split
    vqvae.keras            the best VQ-VAE, by validation reconstruction loss
    codes.npz              the codes of every slice, in the order of splits.csv
    prior.keras            the best prior, by validation bits per code
    *_history.csv          one row an epoch
    *_state.weights.h5     from which a stopped run goes on

`train.py` writes it, `predict.py` reads it.
"""

import contextlib
import csv
import json
import os
import platform
import signal
import socket
import sys
import threading
from importlib.metadata import version

import keras
import numpy as np
from tqdm import tqdm

import dataset
import decoding
import devices
import modules

WHERE_AND_HOW_CALLED = ("options.data.data_dir", "options.data.cache_dir", "data.title", "data.credit", "data.notices")


class RunError(ValueError):
    """A run that cannot go on; the message is one line that says what to do."""


def exit_status(run, args, when_stopped):
    """Calls run(args) for a command line, and says in a line on standard error what ended it early.

    Returns:
        0; 1 for bad input; 130 after Ctrl-C (SIGINT), 143 after SIGTERM, as a scheduler sends it.
    """

    def stop(number, frame):
        raise KeyboardInterrupt(number)

    in_main = threading.current_thread() is threading.main_thread()
    heeded = in_main and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
    before = signal.signal(signal.SIGTERM, stop) if heeded else None
    try:
        run(args)
    except (RunError, dataset.DataError, devices.DeviceError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print("error:", " ".join(message.split()), file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        print(when_stopped, file=sys.stderr)
        return 128 + (stopped.args[0] if stopped.args else signal.SIGINT)
    finally:
        if heeded:
            signal.signal(signal.SIGTERM, before)
    return 0


def count(slices):
    """People and slices in each split."""
    return {
        name: {
            "people": len({one.subject_id for one in slices if one.split == name}),
            "slices": sum(one.split == name for one in slices),
        }
        for name in dataset.SPLITS
    }


def open_run(run_dir, options, models, data, slices, notices):
    """Writes config.json, splits.csv and, where files were skipped, bad_files.txt; or checks those of an earlier call.

    `models` are the two models, untrained; config.json gets what they were built with, defaults included.

    Raises:
        RunError: If the folder holds a run of other settings or other data.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if devices.is_first():
        for left in run_dir.glob("*.partial*"):  # by a process that was killed while it wrote
            left.unlink()
    config = {
        "options": options,
        "models": {name: model.get_config() for name, model in zip(("vqvae", "prior"), models, strict=True)},
        "data": {
            "title": data.title,
            "credit": data.credit,
            "layout": data.layout,
            "image_size": data.image_size,
            "fingerprint": data.fingerprint,
            "labels": dataset.label_names(slices),
            "splits": count(slices),
            "notices": notices,
        },
        "splits_sha256": dataset.splits_sha256(slices),
    }
    path = run_dir / "config.json"
    if path.exists():
        refuse_if_different(path, config)
    if not devices.is_first():
        return
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        if old["options"].get("sharp_training") != options["sharp_training"]:  # set when that phase begins
            old["options"]["sharp_training"] = options["sharp_training"]
            decoding.write_text(path, json.dumps(old, indent=2) + "\n")
        return
    packages = (keras.backend.backend(), "keras", "numpy", "scipy", "scikit-image", "pillow", "nibabel", "nilearn")
    config["versions"] = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    decoding.write_text(run_dir / "splits.csv", dataset.splits_csv(slices))
    if data.bad_files:
        decoding.write_text(
            run_dir / "bad_files.txt", "".join(f"{name}\t{reason}\n" for name, reason in data.bad_files)
        )
    decoding.write_text(path, json.dumps(config, indent=2) + "\n")


@contextlib.contextmanager
def alone_in(run_dir):
    """Inside, no other train.py of this machine works in the run folder.

    Raises:
        RunError: If one is at work there already.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "lock").open("a") as file:
        with contextlib.suppress(AttributeError, OSError):  # no fcntl on Windows; file systems that cannot lock
            try:
                decoding.fcntl.flock(file, decoding.fcntl.LOCK_EX | decoding.fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(
                    f"{run_dir}: another train.py is at work here; give another --run-dir, or wait"
                ) from error
        yield


def refuse_if_different(path, config):
    """Raises RunError if the run at `path` has other settings; what the data are counts, not where they lie."""
    try:
        old = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RunError(f"{path}: damaged ({error}); give another --run-dir, or remove the folder") from error
    differences, free = [], set(WHERE_AND_HOW_CALLED)
    if not (path.parent / "sharp_history.csv").exists():  # a phase that has not begun
        name = "options.sharp_training"
        free |= {name, *(f"{name}.{option}" for option in config["options"]["sharp_training"])}

    def compare(a, b, name):
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted({*a, *b}):
                compare(a.get(key), b.get(key), f"{name}.{key}")
        elif a != b and name not in free:
            differences.append(f"{name} was {a!r} and is now {b!r}")

    for part, value in json.loads(json.dumps(config)).items():
        compare(old.get(part), value, part)
    if differences:
        raise RunError(
            f"{path.parent}: holds a run of other settings: {'; '.join(differences)}; give another --run-dir"
        )


def reopen(run_dir, data_dir=None, cache_dir=None):
    """The configuration of a run, its `Data` and its slices, checked to be what it was trained on.

    Args:
        run_dir: The run folder.
        data_dir, cache_dir: Where the data and their cache are now, if not where the run found them.

    Raises:
        RunError: If the folder holds no run, or the data or the split have changed.
    """
    path = run_dir / "config.json"
    if not path.exists():
        raise RunError(f"{run_dir}: no run here (no config.json); run train.py with this --run-dir first")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        options = dict(config["options"]["data"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: damaged ({type(error).__name__}); train again in another folder") from error
    if data_dir is not None:
        if options["data_dir"] is None:
            raise RunError(f"--data-dir {data_dir}: {run_dir} is a run on the demo cohort, which needs none")
        options["data_dir"] = str(data_dir)
    if cache_dir is not None:
        options["cache_dir"] = str(cache_dir)
    data, slices, _ = dataset.prepare(**options)
    if data.fingerprint != config["data"]["fingerprint"]:
        raise RunError(f"{options['data_dir'] or 'the demo cohort'}: not the data that {run_dir} was trained on")
    if dataset.splits_sha256(slices) != config["splits_sha256"]:
        raise RunError(
            f"{run_dir}: the split is not the one it was trained on; use the version of the code that made it"
        )
    return config, data, slices


def read_history(path):
    """Rows of a history as dictionaries of numbers; none where there is no file."""
    if not path.exists():
        return []
    try:
        with path.open(newline="") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except (ValueError, TypeError) as error:
        raise RunError(f"{path}: damaged ({error}); train again in another folder") from error


def save(write, path):
    """Calls a method that saves to a path, under another name first; of several processes the first one's file stays.

    All of them write, since Keras brings its variables up to date when it saves, which they must do together.
    """
    stem, suffixes = path.name.split(".", 1)
    partial = path.with_name(f"{stem}.{socket.gethostname()}.{os.getpid()}.partial.{suffixes}")
    with contextlib.ExitStack() as stack:
        stack.callback(partial.unlink, missing_ok=True)
        if path.exists():  # takes the room of the last one: h5py does not always live through a disk that fills up
            partial.write_bytes(bytes(path.stat().st_size))
        write(partial)
        if devices.is_first():
            partial.replace(path)


def load_model(path, kind):
    """Loads a model of a run in float32, whatever precision it was trained in.

    Raises:
        RunError: If the file is missing, damaged, another model or of other sizes than config.json says.
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
    config = path.with_name("config.json")
    if config.exists():
        name = "vqvae" if kind is modules.VQVAE else "prior"
        asked = json.loads(config.read_text(encoding="utf-8")).get("models", {}).get(name, {})
        is_now = json.loads(json.dumps(model.get_config()))
        is_now.pop("vqvae_fingerprint", None)  # which `load_prior` checks
        differing = [key for key, value in is_now.items() if asked.get(key, value) != value]
        if differing:
            raise RunError(f"{path}: of another run, whose {differing[0]} differs; remove it and run train.py again")
    return model


def load_prior(run_dir, vqvae):
    """Loads the prior in float32, and checks that it was trained on the codes of this VQ-VAE.

    Raises:
        RunError: As `load_model`, and if the two do not belong together.
    """
    path = run_dir / "prior.keras"
    prior = load_model(path, modules.PixelCNN)
    if prior.vqvae_fingerprint != vqvae.fingerprint():
        raise RunError(
            f"{path}: was trained on the codes of VQ-VAE {prior.vqvae_fingerprint}, and vqvae.keras is "
            f"{vqvae.fingerprint()}; remove prior.keras and run train.py again"
        )
    return prior


def extract_codes(run_dir, vqvae, data, slices):
    """Codes of every slice, uint16, in the order of `slices`; computed once and kept in codes.npz."""
    path, fingerprint, kept = run_dir / "codes.npz", vqvae.fingerprint(), None
    if path.exists():
        try:
            with path.open("rb") as stream, np.load(stream) as file:
                kept = file["codes"] if str(file["vqvae_fingerprint"]) == fingerprint else None
        except Exception as error:  # zipfile and NumPy raise many kinds
            raise RunError(f"{path}: cannot be read ({type(error).__name__}); remove it and run again") from error
        if kept is not None and kept.shape != (len(slices), vqvae.grid_size, vqvae.grid_size):
            raise RunError(f"{path}: holds the codes of other slices; remove it and run again")
    if devices.all_say(kept is not None):
        return kept
    rows = np.array([one.row for one in slices])

    def encode(indices):
        codes = np.empty((len(indices), vqvae.grid_size, vqvae.grid_size), "uint16")
        for start in tqdm(range(0, len(indices), modules.ENCODED_AT_ONCE), "codes", leave=False, disable=None):
            part = slice(start, start + modules.ENCODED_AT_ONCE)
            codes[part] = vqvae.encode(dataset.as_float(data.images[rows[indices[part]]]))
        return codes

    codes = devices.gather(len(slices), encode)
    save(lambda partial: np.savez_compressed(partial, codes=codes, vqvae_fingerprint=fingerprint), path)
    return codes


def prior_inputs(codes, slices, labels):
    """What the prior is fed for these slices: codes, label (0 unknown) and slice position."""
    return {
        "codes": codes,
        "label": np.array([labels.index(one.label) + 1 if one.label else 0 for one in slices], "int32"),
        "slice_position": np.array([one.slice_position for one in slices], "float32"),
    }


def select(inputs, chosen):
    """Those of `prior_inputs` that are chosen by indices or a mask, codes as int32."""
    batch = {name: values[chosen] for name, values in inputs.items()}
    return {**batch, "codes": batch["codes"].astype("int32")}
