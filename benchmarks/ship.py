"""Copies a trained run so that it can be given away: weights in half precision, no optimiser, no path of this machine.

    python -m benchmarks.ship --run-dir runs/ixi --data-dir IXI --output-dir pretrained/ixi

Weights are rounded before fingerprints are taken, so a prior of the copy belongs to the VQ-VAEs of the copy, and to no
other. Nothing is trained; figures of the run hold for the copy but for rounding.
"""

import io
import json
import shutil
import sys
import zipfile
from pathlib import Path

from benchmarks import harness

with harness.command(
    __name__,
    __doc__,
    "stopped",
    run_dir=(Path, ..., "a run whose stages are all trained"),
    output_dir=(Path, ..., "where the copy goes"),
    data_dir=(Path, None, "where its config.json says that the data are, seen from the project's folder"),
) as command:
    import keras  # noqa: F401
import h5py
import numpy as np

from running.config import read_config
from running.models import fingerprint, load_models
from running.run_folder import best_decoder
from system import files


def rounded(model):
    """Rounds a model's float32 weights to what half precision can hold; returns the model."""
    weights = model.get_weights()
    model.set_weights([w.astype("float16").astype("float32") if w.dtype == "float32" else w for w in weights])
    return model


def halve(content):
    """An HDF5 file, as bytes, with float32 arrays stored as float16; Keras reads them into float32."""
    buffer = io.BytesIO()
    with h5py.File(io.BytesIO(content)) as old, h5py.File(buffer, "w") as new:

        def put(name, item):
            if isinstance(item, h5py.Group):
                made = new.require_group(name)
            else:
                made = new.create_dataset(name, data=item[()], dtype="float16" if item.dtype == "float32" else None)
            made.attrs.update(item.attrs)

        new.attrs.update(old.attrs)
        old.visititems(put)
    return buffer.getvalue()


def save(model, path):
    """Writes a model whose weights are `rounded` at half its size."""
    whole = path.with_name(f"whole-{path.name}")
    model.save(whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, halve(old.read(name)) if name.endswith(".h5") else old.read(name))
    whole.unlink()


@command
def main(args):
    decoder = best_decoder(args.run_dir)
    trained = load_models(args.run_dir, decoder)
    vqvae, of_prior = rounded(next(iter(trained.decoders.values()))), {}
    kept = {"vqvae": vqvae}
    if trained.coarse:
        kept["coarse"] = rounded(trained.coarse)
        of_prior["coarse_prior"] = [kept["coarse"]]
    of_prior["prior"] = [*kept.values()]
    if decoder == "sharp":
        kept["sharp"] = rounded(trained.vqvae)
    for name, of in of_prior.items():
        prior = rounded(getattr(trained, name))
        kept[name] = type(prior)(**prior.get_config() | {"vqvae_fingerprint": fingerprint(*of)})
        kept[name].set_weights(prior.get_weights())
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, model in kept.items():
        save(model, args.output_dir / f"{name}.keras")
    config = read_config(args.run_dir)
    config["options"]["data"] |= {"data_dir": str(args.data_dir) if args.data_dir else None, "cache_dir": "cache"}
    config["options"]["start_from"] = None
    files.write_text(args.output_dir / "config.json", json.dumps(config, indent=2) + "\n")
    for path in (args.run_dir / "splits.csv", args.run_dir / "ranges.json", *args.run_dir.glob("*_history.csv")):
        if path.exists():
            shutil.copy(path, args.output_dir / path.name)
    size = np.sum([path.stat().st_size for path in args.output_dir.iterdir() if path.is_file()])
    print(f"{args.output_dir}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())
