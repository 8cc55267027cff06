"""A run is opened: its settings are written or compared, its data and codes are found."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path, PureWindowsPath

import keras
import numpy as np

import dataset
from running.config import read_config, refuse_if_different, refuse_start
from running.models import build, fingerprint
from running.run_folder import read_splits, save, stages, write_splits
from system import devices, files
from system.console import UserError


def open_run(run_dir, options, data, dry_run=False):
    """Writes config.json, splits.csv and, where files were skipped, bad_files.txt; or checks those of an earlier call.

    config.json gets what the models are built with, defaults included; with `dry_run` it is not written.

    Returns:
        Whether the run is new.

    Raises:
        UserError: If the folder holds a run of other settings or other data, the options do not fit each other, or the
            models cannot start from those of --start-from.
    """
    config = {
        "options": options,
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
        refuse_if_different(path, config)
        if devices.is_first():
            files.remove_old(run_dir, files.PARTIAL)
            old = read_config(run_dir)
            if old["options"]["sharp_training"] != options["sharp_training"]:  # set when that phase begins
                old["options"]["sharp_training"] = options["sharp_training"]
                files.write_text(path, json.dumps(old, indent=2) + "\n")
        return False
    models = {name: build(name, data.image_size, len(data.labels), options) for name in stages(options)}
    config["models"] = {name: model.get_config() for name, model in models.items()}
    if options["start_from"]:
        refuse_start(Path(options["start_from"]), config["models"])
    packages = (keras.backend.backend(), "keras", "numpy", "scipy", "scikit-image", "pillow", "nibabel", "nilearn")
    config["versions"] = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    if devices.is_first():
        run_dir.mkdir(parents=True, exist_ok=True)
        files.remove_old(run_dir, files.PARTIAL)
        write_splits(run_dir, data)
        if not dry_run:
            files.write_text(path, json.dumps(config, indent=2) + "\n")
    return True


def cache_here(config):
    """The cache that a run was trained with, or ./cache where that cannot be made: of a run from another machine."""
    cache_dir = config["options"]["data"]["cache_dir"]
    of_windows = os.name != "nt" and PureWindowsPath(cache_dir).drive
    can_be = os.path.isdir(cache_dir) or os.access(os.path.dirname(cache_dir) or ".", os.W_OK)
    return cache_dir if can_be and not of_windows else "cache"


def data_are_at_hand(config, cache_dir=None):
    """Whether the data of a run lie where it found them: the folder, or the demo cohort in the cache."""
    return os.path.exists(config["options"]["data"]["data_dir"] or Path(cache_dir or cache_here(config)) / "demo")


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
    if cache_dir is None and cache_here(config) != how["cache_dir"]:
        print(f"note: the run's cache, {how['cache_dir']}, cannot be used here; slices are decoded into ./cache")
    how["cache_dir"] = str(cache_dir or cache_here(config))
    data = dataset.prepare(**how)
    if data.fingerprint != config["data"]["fingerprint"]:
        change = dataset.first_difference(data.slices, read_splits(run_dir)) or "the pixels of a slice have changed"
        where = how["data_dir"] or "the demo cohort"
        raise UserError(f"{where}: not the data that {run_dir} was trained on: {change}")
    if dataset.splits_sha256(data.slices) != config["splits_sha256"]:
        raise UserError(f"{run_dir}: the split is not the one it was trained on; use the code that made it")
    return data


def all_codes(run_dir, vqvae, data):
    """Codes of every slice, uint16, in the order of splits.csv; computed once and kept in codes.npz."""
    path, whose = run_dir / "codes.npz", fingerprint(vqvae)
    if path.exists():
        stream = path.open("rb")  # raises OSError where it may not be read
        try:
            with stream, np.load(stream) as file:
                codes, of = file["codes"], str(file["vqvae_fingerprint"])
        except Exception as error:  # zipfile and NumPy raise many kinds
            raise UserError(f"{path}: cannot be read ({type(error).__name__}); remove it and run again") from error
        if of == whose and len(codes) == len(data.slices):
            return codes
    codes = dataset.encode(vqvae, data.images, data.slices.row.to_numpy())
    save(lambda partial: np.savez_compressed(partial, codes=codes, vqvae_fingerprint=whose), path)
    return codes
