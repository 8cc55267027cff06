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
import contextlib
import dataclasses
import inspect
import sys
from pathlib import Path

import keras
import numpy as np

import checkpointing
import dataset
import devices
import modules
import run_folder
import sharpening

# By name; anything not named is the default of `modules.VQVAE`.
PRESETS = {
    "default": {},
    # For slices of 256 x 256 at 1 mm, as OASIS and ADNI have them: 32 x 32 codes instead of 64 x 64.
    "1mm": {"downsampling": 8, "num_embeddings": 512},
    # After van den Oord et al. 2017, section 4.1: two residual blocks of 256 channels, L2; 512 entries of 64.
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


@dataclasses.dataclass(frozen=True)
class VQVAETraining:
    """How stage 1 is fitted: AdamW, 100 steps of warm-up, cosine decay to 0 over all epochs."""

    epochs: int = 60
    batch_size: int = 4
    learning_rate: float = 3e-3
    patience: int = 15  # epochs without a better reconstruction of the validation people


@dataclasses.dataclass(frozen=True)
class PriorTraining:
    """How stage 2 is fitted: Muon, the same schedule, an exponential average of the weights, which is what is kept."""

    epochs: int = 40
    batch_size: int = 8
    learning_rate: float = 6e-3
    patience: int = 8  # epochs without fewer bits per code on the validation people
    average_over: float = 0.05  # share of all steps, which the average reaches back
    max_shift: int = 4  # pixels by which each training slice is moved before it is encoded, anew each epoch


@dataclasses.dataclass(frozen=True)
class SharpTraining:
    """How the decoder is sharpened, if it is: AdamW, the same schedule; the average of the weights is what is kept."""

    epochs: int = 12
    batch_size: int = 16
    learning_rate: float = 5e-4
    patience: int = 4
    adversarial_weight: float = 1.0  # pull of the discriminator on each image, as a share of the L1 loss's


INITIAL_SLICES = 128  # whose encoder outputs the codebook starts from

STAGES = {"vqvae": VQVAETraining, "prior": PriorTraining, "sharp": SharpTraining}

# Without --data-dir: a few minutes on two cores.
DEMO = {
    "image_size": 128,
    "downsampling": 8,
    "vqvae_epochs": 12,
    "prior_epochs": 10,
}


def constructor_defaults(kind):
    """Arguments of a model's constructor that are flags: those with a number or a word for a default."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    not_flags = ("seed", "num_labels", "vqvae_fingerprint")
    return {
        p.name: p.default for p in parameters if isinstance(p.default, (int, float, str)) and p.name not in not_flags
    }


def parse(argv):
    parser = argparse.ArgumentParser(description="Train a VQ-VAE on brain slices and a PixelCNN prior on its codes.")
    add = parser.add_argument
    add("--data-dir", type=Path, help="OASIS, ADNI, BIDS or image folder; without it, the embedded demo cohort")
    add("--run-dir", type=Path, help="where the run is kept (default: runs/ and the data folder's name, or runs/demo)")
    stages = "all: vqvae and prior; sharp: then, if wanted, the decoder against a discriminator (default: %(default)s)"
    add("--stage", choices=("all", *STAGES), default="all", help=stages)
    add("--image-size", type=int, help="side in pixels (default: what holds the native slices; 128 for the demo)")
    add(
        "--preset",
        choices=PRESETS,
        default="default",
        help="of the VQ-VAE and its loss (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="of splits, weights, order and dropout (default: %(default)s)")
    precisions = ("auto", "float32", "bfloat16")
    add("--precision", choices=precisions, default="auto", help="auto: bfloat16 where the hardware has it")
    add("--devices", type=int, default=1, help="that share each batch; 0: all; under JAX (default: %(default)s)")
    data = parser.add_argument_group("data").add_argument
    data("--layout", choices=("oasis", "adni", "bids", "images"), help="(default: recognised)")
    data("--subject-regex", help="for --layout images: searched in each path; its group 'subject' is the person")
    data("--label-column", help="column of participants.tsv (default: diagnosis or group, where there is one)")
    data("--num-slices", type=int, default=32, help="axial slices of each volume (default: %(default)s)")
    data("--slice-spacing", type=float, default=2.0, help="mm between them (default: %(default)s)")
    share = "share of the people, where the data have no such split (default: %(default)s)"
    data("--validation-fraction", type=float, default=0.1, help=share)
    data("--test-fraction", type=float, default=0.15, help=share)
    data("--skip-bad-files", action="store_true", help="list unusable files in bad_files.txt and go on")
    data("--cache-dir", type=Path, default=Path("cache"), help="decoded slices go here (default: %(default)s)")
    for title, prefix, kind in (
        ("VQ-VAE (each overrides the preset)", "--", modules.VQVAE),
        ("prior", "--prior-", modules.PixelCNN),
    ):
        group = parser.add_argument_group(title).add_argument
        for name, default in constructor_defaults(kind).items():
            flag = prefix + name.replace("_", "-")
            group(flag, type=type(default), default=argparse.SUPPRESS, help=f"(default: {default})")
    for stage, training in STAGES.items():
        group = parser.add_argument_group(f"training, {stage}").add_argument
        for field in dataclasses.fields(training):
            flag = f"--{stage}-{field.name.replace('_', '-')}"
            group(flag, type=field.type, default=field.default, help="(default: %(default)s)")
    demo = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in DEMO.items())
    parser.epilog = f"Without --data-dir the defaults are {demo}."
    args = parser.parse_args(argv)
    if args.data_dir is None:
        parser.set_defaults(**DEMO)
        args = parser.parse_args(argv)
    return args


def resolve(args):
    """The options of a run as plain JSON values, with presets and defaults filled in.

    Raises:
        run_folder.RunError: For a number that makes no sense.
    """
    fields = ("epochs", "batch_size", "learning_rate", "patience")
    for name in (f"{stage}_{field}" for stage in STAGES for field in fields):
        if getattr(args, name) <= 0:
            raise run_folder.RunError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be above 0")
    if not 0 <= args.prior_max_shift <= 64:
        raise run_folder.RunError(f"--prior-max-shift {args.prior_max_shift}: must be from 0 to 64 pixels")
    if not 0 < args.sharp_adversarial_weight <= 100:
        raise run_folder.RunError(
            f"--sharp-adversarial-weight {args.sharp_adversarial_weight}: must be above 0 and at most 100"
        )
    if not 0 <= args.seed < 2**32:
        raise run_folder.RunError(f"--seed {args.seed}: must be from 0 to 4294967295")
    given = vars(args)
    vqvae = constructor_defaults(modules.VQVAE) | PRESETS[args.preset]
    vqvae |= {name: given[name] for name in vqvae if name in given}
    prior = constructor_defaults(modules.PixelCNN)
    prior |= {name: given[f"prior_{name}"] for name in prior if f"prior_{name}" in given}
    if args.image_size is not None and (vqvae["downsampling"] < 1 or args.image_size % vqvae["downsampling"]):
        raise run_folder.RunError(
            f"--image-size {args.image_size}: must be a multiple of --downsampling {vqvae['downsampling']}"
        )
    if vqvae["num_embeddings"] > 2**16:
        raise run_folder.RunError(f"--num-embeddings {vqvae['num_embeddings']}: must be 65536 or fewer")
    return {
        "data": {
            "data_dir": str(args.data_dir.resolve()) if args.data_dir else None,
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
            "cache_dir": str(args.cache_dir.resolve()),
        },
        "vqvae": vqvae,
        "prior": prior,
        **{
            f"{stage}_training": {field.name: given[f"{stage}_{field.name}"] for field in dataclasses.fields(training)}
            for stage, training in STAGES.items()
        },
        "precision": resolve_precision(args.precision),
    }


def resolve_precision(choice):
    """ "auto" is bfloat16 on a GPU and on processors that multiply it, else float32."""
    if choice != "auto":
        return choice
    cpu_info = Path("/proc/cpuinfo")
    flags = cpu_info.read_text() if cpu_info.exists() else ""
    has_bfloat16 = "avx512_bf16" in flags or "amx_bf16" in flags or devices.gpus()
    return "bfloat16" if has_bfloat16 else "float32"


def set_precision(precision):
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else "float32")


# ----------------------------------------------------------------------------------------------------------------
# Fitting a stage
# ----------------------------------------------------------------------------------------------------------------


def vqvae_optimizer(learning_rate):
    """AdamW (Loshchilov & Hutter 2019)."""
    return keras.optimizers.AdamW(learning_rate, weight_decay=1e-4, clipnorm=1.0)


def prior_optimizer(learning_rate, average_steps):
    """Muon (Liu et al. 2025, arXiv:2502.16982) for every matrix, AdamW for embeddings, biases and the logits' layer.

    Weights are averaged over about `average_steps` steps.
    """
    return keras.optimizers.Muon(
        learning_rate,
        weight_decay=1e-4,
        adam_weight_decay=1e-4,
        clipnorm=1.0,
        exclude_layers=["logits"],
        use_ema=True,
        ema_momentum=1 - 1 / max(1.0, average_steps),
    )


def sharp_optimizer(learning_rate, average_steps):
    """AdamW for decoder and discriminator alike; weights are averaged over about `average_steps` steps."""
    return keras.optimizers.AdamW(
        learning_rate,
        weight_decay=1e-4,
        beta_1=0.5,
        beta_2=0.9,
        use_ema=True,
        ema_momentum=1 - 1 / max(1.0, average_steps),
    )


def fit(stage, model, make_optimizer, batches, validation, monitor, training, run_dir, vqvae_fingerprint=""):
    """Fits a stage, or what is left of it; the best model is left in the run folder.

    `make_optimizer` is a function of the learning rate's schedule and the number of steps; `vqvae_fingerprint` is that
    of `checkpointing.Checkpoint`.
    """
    checkpoint = checkpointing.Checkpoint(batches, run_dir, stage, monitor, training["patience"], vqvae_fingerprint)
    if checkpoint.finished(training["epochs"]):
        print(f"{stage}: already trained, {len(checkpoint.history)} epochs")
        return
    steps = training["epochs"] * len(batches)
    warm_up = min(100, steps // 10)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm_up), warmup_target=training["learning_rate"], warmup_steps=warm_up
    )
    optimizer = make_optimizer(rate, steps)
    model.compile(optimizer=optimizer)
    optimizer.build(model.trainable_variables)
    checkpoint.set_model(model)
    print(f"{stage}: {model.count_params():,} parameters, {training['epochs']} epochs")
    callbacks = [checkpoint]
    if keras.backend.backend() == "tensorflow":  # it writes TensorBoard's log
        callbacks.append(keras.callbacks.TensorBoard(run_dir / "tensorboard" / stage, write_graph=False))
    if optimizer.use_ema:
        callbacks.append(keras.callbacks.SwapEMAWeights())

    def go_on():
        """Fits what is left from the last state on: of an epoch that was stopped in its middle, or of all epochs."""
        epoch, batches.first = checkpoint.restore()
        if epoch or batches.first:
            first_the_rest = f", batch {batches.first + 1}; first the rest of that epoch" * (batches.first > 0)
            print(f"{stage}: from epoch {epoch + 1}{first_the_rest}")
        model.fit(
            batches,
            validation_data=validation,
            initial_epoch=epoch,
            epochs=epoch + 1 if batches.first else training["epochs"],
            callbacks=callbacks,
            shuffle=False,  # Batches does it; Keras would also shuffle the batches, from a state that it does not save
            verbose=1 if sys.stdout.isatty() else 2,
        )

    with checkpoint.signals_wait():
        go_on()
        if batches.first and not checkpoint.finished(training["epochs"]):
            devices.wait_for_all(f"{stage}: the rest of an epoch")
            go_on()  # from the file, since `fit` ends with averaged weights in the model


# ----------------------------------------------------------------------------------------------------------------
# The two stages
# ----------------------------------------------------------------------------------------------------------------


def build_models(image_size, num_labels, options, vqvae_fingerprint=""):
    """Both models of a run, untrained, at its precision.

    Raises:
        RunError: If the options do not fit each other.
    """
    seed, vqvae = options["data"]["seed"], options["vqvae"]
    set_precision(options["precision"])
    keras.utils.set_random_seed(seed)
    try:
        return modules.VQVAE(image_size, **vqvae, seed=seed), modules.PixelCNN(
            vqvae["num_embeddings"],
            vqvae["embedding_dim"],
            image_size // vqvae["downsampling"],
            num_labels,
            vqvae_fingerprint=vqvae_fingerprint,
            **options["prior"],
            seed=seed,
        )
    except ValueError as error:
        raise run_folder.RunError(str(error)) from error


def train_vqvae(model, run_dir, data, slices, options):
    """Stage 1: fits the VQ-VAE to the training people's slices."""
    batch_size = options["vqvae_training"]["batch_size"]
    batches = dataset.image_batches(data, slices, "train", batch_size, options["data"]["seed"])
    validation = dataset.image_batches(data, slices, "validation", batch_size)
    # The codebook starts as encoder outputs: at another scale, two entries would take every vector for epochs.
    batches.set_epoch(0)
    sample = batches.order[:INITIAL_SLICES]
    sample = batches.fetch(np.sort(sample[: len(sample) - len(sample) % devices.number()]))
    with devices.alone():
        z_e = devices.local(model.encoder).predict(sample, batch_size=batch_size, verbose=0)
    try:
        model.quantizer.initialise(z_e)
    except ValueError as error:
        raise run_folder.RunError(f"{error}; give more slices, or a smaller --num-embeddings") from error
    training = options["vqvae_training"]
    fit(
        "vqvae",
        model,
        lambda rate, steps: vqvae_optimizer(rate),
        batches,
        validation,
        "reconstruction_loss",
        training,
        run_dir,
    )


class MovedCodes(dataset.Batches):
    """Batches of a prior's training inputs, whose codes are those of the slices moved a little, anew each epoch.

    A slice moved by a pixel has quite other codes, so that no pattern of codes can be learned by heart.

    Args:
        inputs: What `run_folder.prior_inputs` tells of the training slices.
        images, image_rows: All images, uint8, shape (m, image_size, image_size), and which of them are these slices'.
        vqvae: The model that encodes them.
        max_shift: Most pixels they are moved, up, down, left and right; 0 leaves the codes of `inputs`.
        batch_size, seed: As for `dataset.Batches`; the shifts, too, depend on the seed and the epoch alone.
    """

    def __init__(self, inputs, images, image_rows, vqvae, max_shift, batch_size, seed):
        self.inputs, self.images, self.image_rows = inputs, images, image_rows
        self.vqvae, self.max_shift = vqvae, max_shift
        super().__init__(len(image_rows), lambda indices: run_folder.select(self.inputs, indices), batch_size, seed)

    def set_epoch(self, epoch):
        """Draws the order and the shifts of one epoch, and encodes; to be called when it begins."""
        super().set_epoch(epoch)
        if not self.max_shift:
            return
        rng = np.random.default_rng([self.seed, epoch])
        shifts = rng.integers(-self.max_shift, self.max_shift + 1, (2, self.number))
        with devices.alone():
            codes = devices.gather(self.number, lambda indices: self._encode(indices, shifts[:, indices]))
        self.inputs = self.inputs | {"codes": codes}

    def _encode(self, indices, shifts):
        """Codes of some slices, moved by `shifts`, integers, shape (2, len(indices))."""
        codes = np.empty((len(indices), *self.inputs["codes"].shape[1:]), self.inputs["codes"].dtype)
        for start in range(0, len(indices), modules.ENCODED_AT_ONCE):
            part = slice(start, start + modules.ENCODED_AT_ONCE)
            moved = dataset.move(self.images[self.image_rows[indices[part]]], *shifts[:, part])
            codes[part] = self.vqvae.encode(dataset.as_float(moved))
        return codes


def train_prior(run_dir, data, slices, options):
    """Stage 2: fits the PixelCNN to the codes of the training people's slices."""
    with devices.alone():
        vqvae = run_folder.load_model(run_dir / "vqvae.keras", modules.VQVAE)
        if (run_dir / "prior.keras").exists():
            run_folder.load_prior(run_dir, vqvae)  # raises if it belongs to another VQ-VAE
        codes = run_folder.extract_codes(run_dir, vqvae, data, slices)
    labels = dataset.label_names(slices)
    _, model = build_models(data.image_size, len(labels), options, vqvae.fingerprint())
    model.set_codebook(keras.ops.convert_to_numpy(vqvae.quantizer.codebook))
    rows, split = np.array([one.row for one in slices]), np.array([one.split for one in slices])
    inputs = run_folder.prior_inputs(codes, slices, labels)
    of_split = {part: {key: x[split == part] for key, x in inputs.items()} for part in ("train", "validation")}
    validation = of_split["validation"]
    del codes, inputs
    training = options["prior_training"]
    fit(
        "prior",
        model,
        lambda rate, steps: prior_optimizer(rate, steps * training["average_over"]),
        MovedCodes(
            of_split.pop("train"),  # not kept here, since each epoch has codes of its own
            data.images,
            rows[split == "train"],
            vqvae,
            training["max_shift"],
            training["batch_size"],
            options["data"]["seed"],
        ),
        dataset.Batches(len(validation["label"]), lambda i: run_folder.select(validation, i), training["batch_size"]),
        "bits_per_code",
        training,
        run_dir,
        vqvae.fingerprint(),
    )


def train_sharp(run_dir, data, slices, options):
    """After stage 1, if wanted: fits the decoder against a discriminator; sharp.keras is a VQ-VAE of the same codes."""
    training = options["sharp_training"]
    path = run_dir / "sharp.keras"
    with devices.alone():
        trained = run_folder.load_model(run_dir / "vqvae.keras", modules.VQVAE)
        sharp = run_folder.load_model(path, modules.VQVAE) if path.exists() else trained
    if sharp.fingerprint() != trained.fingerprint():
        raise run_folder.RunError(f"{path}: of another VQ-VAE than vqvae.keras; remove it and sharp_state.weights.h5")
    set_precision(options["precision"])
    keras.utils.set_random_seed(options["data"]["seed"])
    vqvae = modules.VQVAE(**trained.get_config())  # at the run's precision
    vqvae.set_weights(trained.get_weights())
    fit(
        "sharp",
        sharpening.Sharpener(vqvae, training["adversarial_weight"]),
        lambda rate, steps: sharp_optimizer(rate, steps / 20),
        dataset.image_batches(data, slices, "train", training["batch_size"], options["data"]["seed"]),
        dataset.image_batches(data, slices, "validation", training["batch_size"]),
        "power_gap",
        training,
        run_dir,
        trained.fingerprint(),
    )


def run(args):
    devices.start(args.devices)  # before anything asks for a device
    options = resolve(args)
    if modules.ENCODED_AT_ONCE % devices.number():
        raise run_folder.RunError(
            f"--devices {devices.number()}: must divide the {modules.ENCODED_AT_ONCE} slices that are encoded at a time"
        )
    for stage in STAGES:
        batch_size = options[f"{stage}_training"]["batch_size"]
        if batch_size % devices.number():
            raise run_folder.RunError(
                f"--{stage}-batch-size {batch_size}: must be a multiple of the {devices.number()} devices"
            )
    name = args.data_dir.resolve().name if args.data_dir else "demo"
    run_dir = args.run_dir or Path("runs") / name
    if args.data_dir and run_dir.resolve().is_relative_to(args.data_dir.resolve()):
        raise run_folder.RunError(f"--run-dir {run_dir}: lies inside the data folder {args.data_dir}; choose another")
    with contextlib.ExitStack() as stack:
        if not devices.is_first():
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        stack.enter_context(devices.others_may_end())
        train(args.stage, run_dir, options)


def train(stage, run_dir, options):
    """All of a run, or one stage of it, from the options that `resolve` returns."""
    data, slices, notices = dataset.prepare(**options["data"])
    print(f"data: {data.title}")
    print(f"      {len(slices)} slices of {data.image_size} x {data.image_size}, layout {data.layout}")
    print(
        "      "
        + ", ".join(f"{k}: {n['people']} people, {n['slices']} slices" for k, n in run_folder.count(slices).items())
    )
    if data.bad_files:
        notices = [
            *notices,
            f"{len(data.bad_files)} unusable files are left out, listed in {run_dir / 'bad_files.txt'}",
        ]
    for notice in notices:
        print(f"note: {notice}" if len(notice) < 400 else f"note: {notice[:360]} … (all of it in config.json)")
    # Both models are built before anything is written, so that a mistake in the options shows now.
    models = build_models(data.image_size, len(dataset.label_names(slices)), options)
    with run_folder.alone_in(run_dir) if devices.is_first() else contextlib.nullcontext():
        run_folder.open_run(run_dir, options, models, data, slices, notices)
        if stage in ("all", "vqvae"):
            train_vqvae(models[0], run_dir, data, slices, options)
            devices.wait_for_all("vqvae")
        if stage in ("all", "prior"):
            train_prior(run_dir, data, slices, options)
        if stage == "sharp":
            train_sharp(run_dir, data, slices, options)
    devices.wait_for_all("end")
    sharp = " --decoder sharp" * (stage == "sharp")
    print(f"done: {run_dir}; now: python predict.py --run-dir {run_dir}{sharp}")


def main(argv=None):
    return run_folder.exit_status(run, parse(argv), "stopped; the same command goes on")


if __name__ == "__main__":
    devices.end(main())
