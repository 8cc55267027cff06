"""The models of a run: built from its options, loaded from its folder, begun with those of another run."""

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path

import keras
import numpy as np

import modules
from running.config import read_config
from running.run_folder import BEGINNINGS, VQVAES
from system import devices
from system.console import UserError


def resolve_precision(choice):
    """ "auto" is bfloat16 on a GPU and on processors that multiply it, else float32."""
    if choice != "auto":
        return choice
    cpu_info = Path("/proc/cpuinfo")
    flags = cpu_info.read_text() if cpu_info.exists() else ""
    has_bfloat16 = "avx512_bf16" in flags or "amx_bf16" in flags or devices.gpus()
    return "bfloat16" if has_bfloat16 else "float32"


@contextlib.contextmanager
def precision(name):
    """Inside, models are built and loaded to compute in "float32" or "bfloat16", and float32 is whole on GPUs, too.

    What else Keras's own settings file says, of floats and channels, is for other programs and is put aside for good.
    """
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    before = keras.config.dtype_policy()
    with devices.whole_float32():
        keras.config.set_dtype_policy({"float32": "float32", "bfloat16": "mixed_bfloat16"}[name])
        try:
            yield
        finally:
            keras.config.set_dtype_policy(before)


def build(name, image_size, num_labels, options, vqvae_fingerprint=""):
    """One of `VQVAES`, `BEGINNINGS` or `PRIORS`, untrained, at the run's precision.

    Raises:
        UserError: If the options do not fit each other.
    """
    seed = options["data"]["seed"]
    keras.utils.set_random_seed(seed)
    try:
        with precision(options["precision"]):
            for stage, beginning in BEGINNINGS.items():
                if name in (stage, beginning):
                    sizes = {"image_size": image_size, **options[stage]}
                    if name == beginning:
                        sizes["num_quantizers"] = 0
                    return modules.VQVAE(**sizes, seed=seed)
            coarse = options["coarse"]
            coarse_grid = coarse["image_size"] // coarse["downsampling"]
            codes, grid, maps = coarse, coarse_grid, {}
            if name == "prior":
                codes = options["vqvae"]
                grid = image_size // codes["downsampling"]
                if coarse_grid:
                    maps = {"coarse": {"num_embeddings": coarse["num_embeddings"], "grid_size": coarse_grid}}
            if options["heads"]["neighbours"]:
                kind = {name: codes[name] for name in ("num_embeddings", "num_quantizers")}
                maps |= {"below": {**kind, "grid_size": grid}}
            sizes = (codes["num_embeddings"], codes["embedding_dim"], grid, num_labels, maps, codes["num_quantizers"])
            return modules.PixelCNN(*sizes, vqvae_fingerprint=vqvae_fingerprint, **options[name], seed=seed)
    except ValueError as error:
        raise UserError(str(error)) from error


def take_over(model, other):
    """Gives a VQ-VAE the encoder and the decoder of another."""
    for part in ("encoder", "decoder"):
        getattr(model, part).set_weights(getattr(other, part).get_weights())


def start(name, model, run_dir, start_from):
    """Gives a new model of a run the weights that one of `VQVAES` or `PRIORS` has in another run, --start-from.

    Weights that the other model lacks keep their start: other labels, a map that it has not. The last weights of such a
    map become 0, so that the prior begins as it was.
    """
    trained = load_vqvae(start_from, name) if name in VQVAES else _load(start_from / f"{name}.keras", modules.PixelCNN)
    if name in VQVAES:
        take_over(model, trained)
        pairs = list(zip(model.levels(), trained.levels(), strict=True))
    else:
        theirs = {layer.name: layer for layer in trained.layers}
        pairs = [(layer, theirs[layer.name]) for layer in model.layers if layer.name in theirs]
        labels = [read_config(folder)["data"]["labels"] for folder in (run_dir, start_from)]
        if labels[0] != labels[1]:
            pairs = [(layer, other) for layer, other in pairs if layer is not model.label_embedding]
        for beside in model.maps.keys() - trained.maps.keys():
            last = model.maps[beside].out
            last.set_weights([np.zeros_like(w) for w in last.get_weights()])
        for place in ("codebook", "row_embedding", "column_embedding"):
            getattr(model, place).assign(getattr(trained, place))
    for layer, other in pairs:
        layer.set_weights(other.get_weights())


def fingerprint(*vqvaes):
    """16 hexadecimal digits that tell the codes of some trained VQ-VAEs from any others'."""
    digest = hashlib.sha256()
    for vqvae in vqvaes:
        for variable in (*vqvae.encoder.weights, *vqvae.codebooks):
            digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable), "float32").tobytes())
    return digest.hexdigest()[:16]


def _load(path, kind):
    """Loads a model of a run in float32, whatever precision it was trained in.

    Raises:
        UserError: If the file is missing, damaged, another model or of other sizes than config.json says.
    """
    if not path.exists():
        raise UserError(f"{path}: not found; run train.py with this --run-dir first")
    path.open("rb").close()  # raises OSError where it may not be read, of which Keras says nothing
    try:
        with precision("float32"):
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # zipfile, h5py and Keras raise many kinds
        raise UserError(
            f"{path}: not a model that can be loaded ({type(error).__name__}); train again in another folder"
        ) from error
    if not isinstance(model, kind):
        raise UserError(f"{path}: holds a {type(model).__name__}, not a {kind.__name__}; train again in another folder")
    config = read_config(path.parent)
    whose = {beginning: stage for stage, beginning in BEGINNINGS.items()} | {"sharp": "vqvae"}
    asked = config.get("models", {}).get(whose.get(path.stem, path.stem), {})
    if path.stem == "sharp":
        asked = asked | {"fine_blocks": config["options"]["sharp_training"].get("fine_blocks", 0)}
        asked |= {"beside": model.beside}  # which depends on the data
    elif path.stem in whose:
        asked = asked | {"num_quantizers": 0}
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
        coarse: VQ-VAE of the shrunk slices; None in a run without coarse codes.
        coarse_prior: Prior of coarse codes; None, too.
        prior: Prior of codes, given the coarse codes.
    """

    decoders: dict
    coarse: modules.VQVAE | None
    coarse_prior: modules.PixelCNN | None
    prior: modules.PixelCNN

    @property
    def vqvae(self):
        return list(self.decoders.values())[-1]


def load_models(run_dir, decoder="plain"):
    """Loads all models of a run in float32; raises UserError if one is missing, damaged or another run's."""
    decoders, coarse, coarse_prior = load_decoders(run_dir, decoder), None, None
    told = [next(iter(decoders.values()))]
    if read_config(run_dir)["options"]["coarse"]["image_size"]:
        coarse = load_vqvae(run_dir, "coarse")
        coarse_prior = load_prior(run_dir, "coarse_prior", coarse)
        told.append(coarse)
    return Models(decoders, coarse, coarse_prior, load_prior(run_dir, "prior", *told))


def code_bits(models, codes, coarse, told):
    """Bits of grids of codes under the priors, given what they are told, and of their coarse codes, in their shapes."""
    if models.coarse_prior is None:
        return modules.code_lengths(models.prior, {**told, "codes": codes}), np.zeros(coarse.shape, "float32")
    of_coarse = modules.code_lengths(models.coarse_prior, {**told, "codes": coarse})
    return modules.code_lengths(models.prior, {**told, "codes": codes, "coarse": coarse}), of_coarse
