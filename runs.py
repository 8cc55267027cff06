"""The folder of a run: what was asked, on which people, and what came of it.

    config.json            resolved options, versions, the data's fingerprint, the split's SHA-256
    splits.csv             path, subject_id, session, slice_index, label, split, slice_position
    vqvae.keras            the best VQ-VAE, by validation reconstruction loss
    layout.keras           the same of shrunk slices, whose codes are layouts
    codes.npz              the codes of every slice, in the order of splits.csv
    layout_prior.keras     the best prior of layouts, by validation bits per code
    prior.keras            the best prior of codes, given the layout
    sharp.keras            the VQ-VAE with its sharp decoder, where that phase was run
    ranges.json            what is usual for the test people, by decoder, once evaluate.py has measured it
    *_history.csv          one row an epoch
    progress.png           validation slices and what the VQ-VAE makes of them, after each epoch
    *_state.weights.h5     from which a stopped run goes on

`train.py` writes it, `predict.py` and `evaluate.py` read it.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import platform
import shutil
import tempfile
import textwrap
import time
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
import pandas as pd

import dataset
import devices
import modules
from files import UserError, in_a_line, write_text, write_whole

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

WHERE_AND_HOW_CALLED = (
    "options.data.data_dir",
    "options.data.cache_dir",
    "data.title",
    "data.credit",
    "data.notices",
    "data.about",
    "options.start_from",
)


# ----------------------------------------------------------------------------------------------------------------
# What was asked, on which people
# ----------------------------------------------------------------------------------------------------------------


def resolve_precision(choice):
    """ "auto" is bfloat16 on a GPU and on processors that multiply it, else float32."""
    if choice != "auto":
        return choice
    cpu_info = Path("/proc/cpuinfo")
    flags = cpu_info.read_text() if cpu_info.exists() else ""
    has_bfloat16 = "avx512_bf16" in flags or "amx_bf16" in flags or devices.gpus()
    return "bfloat16" if has_bfloat16 else "float32"


def set_precision(precision):
    """What models built or loaded from now on compute in; float32 is float32 on GPUs, too (`devices.keep_float32`)."""
    devices.keep_float32()
    keras.config.set_dtype_policy({"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision])


VQVAES, PRIORS = ("vqvae", "layout"), ("layout_prior", "prior")  # models of a run, also their stages and files
BESIDE = ("below", "above")  # maps of both priors of a run with --neighbours
MONITORS = {  # what is to be small on the validation people
    **dict.fromkeys(VQVAES, "val_reconstruction_loss"),
    **dict.fromkeys(PRIORS, "val_bits_per_code"),
    "sharp": "val_power_gap",
}


def build(name, image_size, num_labels, options, vqvae_fingerprint=""):
    """One of `VQVAES` or `PRIORS`, untrained, at the run's precision.

    Raises:
        UserError: If the options do not fit each other.
    """
    seed = options["data"]["seed"]
    set_precision(options["precision"])
    keras.utils.set_random_seed(seed)
    try:
        if name in VQVAES:
            return modules.VQVAE(**{"image_size": image_size, **options[name]}, seed=seed)
        layout = options["layout"]
        layout_grid = layout["image_size"] // layout["downsampling"]
        codes, grid, maps = layout, layout_grid, {}
        if name == "prior":
            codes = options["vqvae"]
            grid = image_size // codes["downsampling"]
            maps = {"layout": {"num_embeddings": layout["num_embeddings"], "grid_size": layout_grid}}
        if options.get("heads", {}).get("neighbours"):
            maps |= {beside: {"num_embeddings": codes["num_embeddings"], "grid_size": grid} for beside in BESIDE}
        sizes = (codes["num_embeddings"], codes["embedding_dim"], grid, num_labels, maps)
        return modules.PixelCNN(*sizes, vqvae_fingerprint=vqvae_fingerprint, **options[name], seed=seed)
    except ValueError as error:
        raise UserError(str(error)) from error


def start(name, model, run_dir, start_from):
    """Gives a new model of a run the weights that one of `VQVAES` or `PRIORS` has in another run, --start-from.

    What the other model lacks stays as it is: labels that are others, a map that it has not. The last weights of such a
    map become 0, so that the prior begins as it was.

    Raises:
        UserError: If the models differ in size.
    """
    trained = load_vqvae(start_from, name) if name in VQVAES else _load(start_from / f"{name}.keras", modules.PixelCNN)
    set_precision(read_config(run_dir)["options"]["precision"])
    if name in VQVAES:
        pairs = [(getattr(model, part), getattr(trained, part)) for part in ("encoder", "quantizer", "decoder")]
    else:
        theirs = {layer.name: layer for layer in trained.layers}
        pairs = [(layer, theirs[layer.name]) for layer in model.layers if layer.name in theirs]
        labels = [read_config(folder)["data"]["labels"] for folder in (run_dir, start_from)]
        if labels[0] != labels[1]:
            pairs = [(layer, other) for layer, other in pairs if layer is not model.label_embedding]
        new = {layer.name for layer in model.layers} - theirs.keys() - {*BESIDE}
        if new:
            raise UserError(f"{start_from}: its {name} lacks {sorted(new)[0]}; leave out the options that change it")
        for beside in model.maps.keys() - trained.maps.keys():
            last = model.maps[beside].out
            last.set_weights([np.zeros_like(w) for w in last.get_weights()])
    try:
        for layer, other in pairs:
            layer.set_weights(other.get_weights())
        for place in ("codebook", "row_embedding", "column_embedding") if name in PRIORS else ():
            getattr(model, place).assign(getattr(trained, place))
    except ValueError as error:
        raise UserError(f"{start_from}: its {name} has other sizes; leave out the options that change them") from error


NEEDS = {"layout_prior": ("layout",), "prior": ("vqvae", "layout"), "sharp": ("vqvae",)}  # stages before a stage


def borrow(run_dir, start_from, stage):
    """Gives a run that trains one stage alone the other models of the run of --start-from, but for those built on it.

    A prior that is another model there, since it is told other maps, is left out.
    """
    configs = [read_config(folder) for folder in (start_from, run_dir)]
    theirs, ours = (config["models"] for config in configs)
    alike = configs[0]["data"]["labels"] == configs[1]["data"]["labels"]
    for other in (*VQVAES, *PRIORS, "sharp"):
        model = other.replace("sharp", "vqvae")
        same = {**theirs.get(model, {}), "seed": 0} == {**ours[model], "seed": 0} and (alike or other not in PRIORS)
        if other == stage or stage in NEEDS.get(other, ()) or not same or (run_dir / f"{other}.keras").exists():
            continue
        for name in (f"{other}_history.csv", f"{other}.keras"):
            if (start_from / name).exists():
                write_whole(run_dir / name, lambda partial, name=name: shutil.copyfile(start_from / name, partial))


def give_back(run_dir, start_from, stage):
    """Removes a stage's model that `borrow` took over, when the stage is to be trained after all."""
    ours, theirs = (folder / f"{stage}_history.csv" for folder in (run_dir, start_from))
    if ours.exists() and theirs.exists() and ours.read_bytes() == theirs.read_bytes():
        for path in (ours, run_dir / f"{stage}.keras"):
            path.unlink(missing_ok=True)


def open_run(run_dir, options, data):
    """Writes config.json, splits.csv and, where files were skipped, bad_files.txt; or checks those of an earlier call.

    config.json gets what both models are built with, defaults included.

    Raises:
        UserError: If the folder holds a run of other settings or other data, or the options do not fit each other.
    """
    models = {name: build(name, data.image_size, len(data.labels), options) for name in (*VQVAES, *PRIORS)}
    config = {
        "options": options,
        "models": {name: model.get_config() for name, model in models.items()},
        "data": {
            "title": data.title,
            "credit": data.credit,
            "layout": data.layout,
            "image_size": data.image_size,
            "fingerprint": data.fingerprint,
            "labels": data.labels,
            "splits": dataset.count(data.slices),
            "notices": data.notices,
            "about": data.about,
        },
        "splits_sha256": dataset.splits_sha256(data.slices),
    }
    path = run_dir / "config.json"
    if path.exists():
        _refuse_if_different(path, config)
    if not devices.is_first():
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    for left in run_dir.glob("*.partial*"):  # by a process that was killed while it wrote
        left.unlink()
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        if old["options"].get("sharp_training") != options["sharp_training"]:  # set when that phase begins
            old["options"]["sharp_training"] = options["sharp_training"]
            write_text(path, json.dumps(old, indent=2) + "\n")
        return
    packages = (keras.backend.backend(), "keras", "numpy", "scipy", "scikit-image", "pillow", "nibabel", "nilearn")
    config["versions"] = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    write_splits(run_dir, data)
    write_text(path, json.dumps(config, indent=2) + "\n")


def write_splits(run_dir, data):
    """Writes splits.csv and, where files were skipped, bad_files.txt."""
    columns = ["path", "subject_id", "session", "slice_index", "label", "split", "slice_position"]
    write_text(run_dir / "splits.csv", data.slices[columns].to_csv(index=False, lineterminator="\n"))
    (run_dir / "bad_files.txt").unlink(missing_ok=True)
    if data.bad_files:
        write_text(run_dir / "bad_files.txt", "".join(f"{name}\t{reason}\n" for name, reason in data.bad_files))


def _refuse_if_different(path, config):
    """Raises UserError if the run at `path` has other settings; what the data are counts, not where they lie."""
    old = read_config(path.parent)
    old["options"] = {"heads": {"neighbours": False}, "start_from": None, **old["options"]}  # new since then
    differences, free = [], set(WHERE_AND_HOW_CALLED)
    if not (path.parent / "sharp_history.csv").exists():  # a phase that has not begun
        name = "options.sharp_training"
        free |= {name, *(f"{name}.{option}" for option in config["options"]["sharp_training"])}

    def compare(a, b, name):
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted(a):  # options that are new since then had one way to be
                compare(a.get(key), b.get(key), f"{name}.{key}")
        elif a != b and name not in free:
            differences.append(f"{name} was {a!r} and is now {b!r}")

    for part, value in json.loads(json.dumps(config)).items():
        compare(old.get(part), value, part)
    if differences:
        raise UserError(
            f"{path.parent}: holds a run of other settings: {'; '.join(differences)}; give another --run-dir"
        )


@contextlib.contextmanager
def alone_in(run_dir):
    """Inside, no other train.py of this machine works in the run folder.

    Raises:
        UserError: If one is at work there already.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "lock").open("a") as file:
        with contextlib.suppress(AttributeError, OSError):  # no fcntl on Windows; file systems that cannot lock
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{run_dir}: another train.py is at work here; give another --run-dir, or wait"
                ) from error
        yield


def read_config(run_dir):
    """config.json of a run.

    Raises:
        UserError: If the folder holds no run, or a damaged one.
    """
    path = run_dir / "config.json"
    if not path.exists():
        raise UserError(f"{run_dir}: no run here (no config.json); run train.py with this --run-dir first")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config["options"]["data"]["data_dir"], config["data"]["labels"]  # noqa: B018
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}); train again in another folder") from error
    return config


def footer(title, credit):
    """Title and credit of data, for the foot of a picture; a licence in full stands in the report."""
    lines = dict.fromkeys(filter(None, (title, credit)))
    return "\n".join(textwrap.shorten(line, 150, placeholder=" …") for line in lines)


def read_splits(run_dir):
    """splits.csv of a run: a DataFrame like `dataset.Data.slices`, but for `row`, for which one needs the data."""
    path = run_dir / "splits.csv"
    try:
        slices = pd.read_csv(path, dtype=str, keep_default_na=False)
        return slices.astype({"slice_index": int, "slice_position": float})
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: damaged, or of an older version ({in_a_line(error)}); train again") from error


def data_are_at_hand(config, cache_dir=None):
    """Whether the data of a run lie where it found them: the folder, or the demo cohort in the cache."""
    how = config["options"]["data"]
    return Path(how["data_dir"] or Path(cache_dir or how["cache_dir"]) / "demo").exists()


def find_data(run_dir, config, data_dir=None, cache_dir=None):
    """The data of a run, checked to be what it was trained on.

    Args:
        run_dir: The run folder.
        config: Its config.json.
        data_dir, cache_dir: Where the data and their cache are now, if not where the run found them.

    Raises:
        UserError: If they are not there, or the data or the split have changed.
    """
    how = dict(config["options"]["data"])
    if data_dir is not None:
        if how["data_dir"] is None:
            raise UserError(f"--data-dir {data_dir}: {run_dir} is a run on the demo cohort, which needs none")
        how["data_dir"] = str(data_dir)
    if cache_dir is not None:
        how["cache_dir"] = str(cache_dir)
    data = dataset.prepare(**how)
    if data.fingerprint != config["data"]["fingerprint"]:
        raise UserError(f"{how['data_dir'] or 'the demo cohort'}: not the data that {run_dir} was trained on")
    if dataset.splits_sha256(data.slices) != config["splits_sha256"]:
        raise UserError(f"{run_dir}: the split is not the one it was trained on; use the code that made it")
    return data


# ----------------------------------------------------------------------------------------------------------------
# What came of it
# ----------------------------------------------------------------------------------------------------------------


def save(write, path):
    """Calls a method that saves to a path; an earlier file stays as it is until the new one is whole.

    Of several processes the first one's file stays. All of them write, since Keras brings its variables up to date when
    it saves, which they must do together.
    """

    def into_its_room(partial):
        if path.exists():  # h5py does not always live through a disk that fills up
            partial.write_bytes(bytes(path.stat().st_size))
        write(partial)

    if devices.is_first():
        write_whole(path, into_its_room)
    else:
        with tempfile.TemporaryDirectory() as nowhere:
            write(Path(nowhere) / path.name)


def read_history(path):
    """Rows of a history as dictionaries of numbers; none where there is no file."""
    try:
        return pd.read_csv(path, dtype=str).astype(float).to_dict("records")
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise UserError(f"{path}: damaged ({in_a_line(error)}); train again in another folder") from error


def waited(stage, history):
    """Epochs of a stage's history since the best one; 0 if that was the last."""
    values = [row.get(MONITORS[stage], math.nan) for row in history]
    return len(values) - 1 - int(np.argmin(values)) if values else 0


def is_finished(stage, history, training):
    """Whether a stage of this history has had all its epochs, or waited in vain for a better one."""
    return len(history) >= training["epochs"] or waited(stage, history) >= training["patience"]


def read_histories(run_dir, decoder="plain"):
    """The histories of the stages behind a run's prior and one of its decoders, by stage."""
    stages = (*VQVAES, *PRIORS, *["sharp"] * (decoder == "sharp"))
    return {stage: read_history(run_dir / f"{stage}_history.csv") for stage in stages}


def best_decoder(run_dir):
    """ "sharp" where a run has that decoder, else "plain"."""
    return "sharp" if (run_dir / "sharp.keras").exists() else "plain"


def unfinished(run_dir, config, decoder):
    """A line for each stage, behind the prior and one decoder, that was stopped before its end."""
    lines = []
    for stage, history in read_histories(run_dir, decoder).items():
        training = config["options"][f"{stage}_training"]
        if not is_finished(stage, history, training):
            lines.append(f"{stage} was trained for {len(history)} of {training['epochs']} epochs")
    return lines


def read_ranges(run_dir, decoder):
    """What is usual for test people with a decoder: see `write_ranges`; empty where evaluate.py has not measured it."""
    path = run_dir / "ranges.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")).get(decoder, {}) if path.exists() else {}
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({in_a_line(error)}); remove it and run evaluate.py") from error


def write_ranges(run_dir, decoder, per_slice, subject_ids):
    """Keeps what is usual: of each metric the range of 98 in 100 test slices, and of the test people's means.

    Args:
        per_slice: A dictionary of metrics for each test slice.
        subject_ids: Whose slice each is.
    """
    values = pd.DataFrame(per_slice).replace([np.inf, -np.inf], np.nan)
    slices, people = values.quantile([0.01, 0.99]), values.groupby(np.asarray(subject_ids)).mean()
    found = {
        name: {
            "slices": [round(float(x), 4) for x in slices[name]],
            "people": [round(float(x), 4) for x in (people[name].min(), people[name].max())],
        }
        for name in values
    }
    path = run_dir / "ranges.json"
    old = {other: ranges for other in ("plain", "sharp") if (ranges := read_ranges(run_dir, other))}
    write_text(path, json.dumps({**old, decoder: found}, indent=2) + "\n")


def fingerprint(*vqvaes):
    """16 hexadecimal digits that tell the codes of some trained VQ-VAEs from any others'."""
    digest = hashlib.sha256()
    for vqvae in vqvaes:
        for variable in (*vqvae.encoder.weights, vqvae.quantizer.codebook):
            digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable), "float32").tobytes())
    return digest.hexdigest()[:16]


def _load(path, kind):
    """Loads a model of a run in float32, whatever precision it was trained in.

    Raises:
        UserError: If the file is missing, damaged, another model or of other sizes than config.json says.
    """
    set_precision("float32")
    if not path.exists():
        raise UserError(f"{path}: not found; run train.py with this --run-dir first")
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # zipfile, h5py and Keras raise many kinds
        raise UserError(
            f"{path}: not a model that can be loaded ({type(error).__name__}); train again in another folder"
        ) from error
    if not isinstance(model, kind):
        raise UserError(f"{path}: holds a {type(model).__name__}, not a {kind.__name__}; train again in another folder")
    config = read_config(path.parent)
    asked = config.get("models", {}).get(path.stem.replace("sharp", "vqvae"), {})
    if path.stem == "sharp":
        asked = asked | {"fine_blocks": config["options"]["sharp_training"].get("fine_blocks", 0)}
    is_now = json.loads(json.dumps(model.get_config()))
    is_now.pop("vqvae_fingerprint", None)  # which `load_prior` checks
    differing = [key for key, value in is_now.items() if asked.get(key, value) != value]
    if differing:
        raise UserError(f"{path}: of another run, whose {differing[0]} differs; remove it and run train.py again")
    return model


def load_vqvae(run_dir, name="vqvae"):
    """Loads one of `VQVAES`, with its plain decoder, in float32; raises UserError where that cannot be."""
    return _load(run_dir / f"{name}.keras", modules.VQVAE)


def load_decoders(run_dir, decoder):
    """Loads the VQ-VAEs that show what a decoder does, by name, the one asked for last; all have the same codes.

    Args:
        run_dir: The run folder.
        decoder: "plain", or "sharp" for both.

    Raises:
        UserError: If one is missing, damaged or another run's.
    """
    vqvae = load_vqvae(run_dir)
    if decoder == "plain":
        return {"output": vqvae}
    sharp = _load(run_dir / "sharp.keras", modules.VQVAE)
    if fingerprint(sharp) != fingerprint(vqvae):
        raise UserError(f"{run_dir / 'sharp.keras'}: of another VQ-VAE than vqvae.keras; remove it and its state")
    return {"plain": vqvae, "sharp": sharp}


def load_prior(run_dir, name, *vqvaes):
    """Loads one of `PRIORS` in float32, and checks that it was trained on the codes of these VQ-VAEs.

    Raises:
        UserError: As `load_vqvae`, and if they do not belong together.
    """
    path = run_dir / f"{name}.keras"
    prior = _load(path, modules.PixelCNN)
    if prior.vqvae_fingerprint != fingerprint(*vqvaes):
        raise UserError(
            f"{path}: was trained on the codes of VQ-VAE {prior.vqvae_fingerprint}, and the run's are "
            f"{fingerprint(*vqvaes)}; remove {path.name} and run train.py again"
        )
    return prior


@dataclasses.dataclass(frozen=True)
class Models:
    """The trained models of a run.

    Attributes:
        decoders: VQ-VAEs that differ by their decoder, by name; the last is the one asked for.
        layout: VQ-VAE of the shrunk slices.
        layout_prior: Prior of layouts.
        prior: Prior of codes, given the layout.
    """

    decoders: dict
    layout: modules.VQVAE
    layout_prior: modules.PixelCNN
    prior: modules.PixelCNN

    @property
    def vqvae(self):
        return list(self.decoders.values())[-1]


def load_models(run_dir, decoder="plain"):
    """Loads all models of a run in float32; raises UserError if one is missing, damaged or another run's."""
    decoders, layout = load_decoders(run_dir, decoder), load_vqvae(run_dir, "layout")
    layout_prior = load_prior(run_dir, "layout_prior", layout)
    return Models(decoders, layout, layout_prior, load_prior(run_dir, "prior", *list(decoders.values())[:1], layout))


def all_codes(run_dir, vqvae, data):
    """Codes of every slice, uint16, in the order of splits.csv; computed once and kept in codes.npz."""
    path, whose = run_dir / "codes.npz", fingerprint(vqvae)
    if path.exists():
        try:
            with path.open("rb") as stream, np.load(stream) as file:
                codes, of = file["codes"], str(file["vqvae_fingerprint"])
        except Exception as error:  # zipfile and NumPy raise many kinds
            raise UserError(f"{path}: cannot be read ({type(error).__name__}); remove it and run again") from error
        if of == whose and len(codes) == len(data.slices):
            return codes
    codes = dataset.encode(vqvae, data.images, data.slices.row.to_numpy())
    save(lambda partial: np.savez_compressed(partial, codes=codes, vqvae_fingerprint=whose), path)
    return codes


class Checkpoint(keras.callbacks.Callback):
    """Keeps the best weights, the whole state and the history of a stage after each epoch, and stops it early.

    Keras has a callback for each of these; a process killed between two of them leaves files that disagree, and after
    a resumption early stopping has forgotten what it waited for. Here the history alone says what was best, each file
    is renamed into place, and the state comes last: what it does not cover is computed again.

    Args:
        batches: The training batches, told which epoch it is.
        run_dir, stage: Files are `<stage>.keras`, `<stage>_history.csv` and `<stage>_state.weights.h5`.
        training: The stage's `epochs` and `patience`.
    """

    def __init__(self, batches, run_dir, stage, training):
        super().__init__()
        self.batches = batches
        self.best_path = run_dir / f"{stage}.keras"
        self.history_path = run_dir / f"{stage}_history.csv"
        self.state_path = run_dir / f"{stage}_state.weights.h5"
        self.stage, self.training, self.monitor = stage, training, MONITORS[stage]
        self.history = read_history(self.history_path)
        if self.history and self.monitor not in self.history[0]:
            raise UserError(f"{self.history_path}: damaged (no column {self.monitor}); remove it")

    def finished(self):
        return self.best_path.exists() and is_finished(self.stage, self.history, self.training)

    def restore(self):
        """Loads the state of an earlier process, where there is one; returns how many epochs it has seen."""
        if not (self.state_path.exists() and self.best_path.exists()):  # without its best model a stage starts again
            self.history = []
            return 0
        try:
            self.model.load_weights(self.state_path)
        except Exception as error:  # h5py and Keras raise many kinds
            raise UserError(
                f"{self.state_path}: cannot be read ({type(error).__name__}); remove it to start the stage again"
            ) from error
        epoch, more = divmod(int(self.model.optimizer.iterations), len(self.batches))
        if more:
            raise UserError(
                f"{self.state_path}: its epochs had not {len(self.batches)} batches; give as many --devices"
            )
        self.history = self.history[:epoch]
        return epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.monotonic()
        # An epoch's order, dropout and restarts follow from its number.
        self.batches.set_epoch(epoch)
        for variable in self.model.variables:
            if variable.name == "seed_generator_state":  # which Keras does not save
                variable.assign([int(variable[0]), epoch * 1_000_000])

    def on_test_end(self, logs=None):
        # Called inside the epoch's validation, while averaged weights are in the model.
        if logs[self.monitor.removeprefix("val_")] < min((row[self.monitor] for row in self.history), default=math.inf):
            save(self.model.save, self.best_path)

    def on_epoch_end(self, epoch, logs=None):
        if not math.isfinite(logs["loss"]):
            raise UserError(
                f"the loss is {logs['loss']} in epoch {epoch + 1}: lower the learning rate, in another --run-dir"
            )
        self.history.append({"epoch": epoch + 1, "seconds": round(time.monotonic() - self.started, 1), **logs})
        if devices.is_first():
            table = pd.DataFrame(self.history).to_csv(index=False, float_format="%.9g", lineterminator="\n")
            write_text(self.history_path, table)
        save(self.model.save_weights, self.state_path)
        if waited(self.stage, self.history) >= self.training["patience"]:
            self.model.stop_training = True
