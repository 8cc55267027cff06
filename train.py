"""Trains both stages: a VQ-VAE on brain slices, then a PixelCNN prior on its codes; each also for coarse codes.

    python train.py                                        # the embedded demo cohort
    python train.py --data-dir IXI          # BIDS volumes; OASIS and ADNI folders likewise
    python train.py --help                                 # the options that matter; --help-all shows the others

A run folder holds all of a run (`running/run_folder.py` says what). The same command again goes on where the last one
stopped; other settings in the same folder are refused.
"""

import contextlib
import functools
import io
import shlex
import sys
from pathlib import Path

from running import options
from system import console

if __name__ == "__main__":
    options.train()  # --help and wrong options are answered here, before TensorFlow is imported, which takes seconds
with console.quietly():
    import keras
import numpy as np
from sklearn.cluster import MiniBatchKMeans

import dataset
from evaluation import progress
from extensions import sharpening
from extensions.muon import KernelMuon
from running import checkpoint, models, opening, plan, run_folder
from system import devices
from system.console import UserError

SLICES, VECTORS = 256, 60_000  # at least and at most: whose encoder outputs the codebooks start from, as their means


# ----------------------------------------------------------------------------------------------------------------
# Stage 1: the VQ-VAE
# ----------------------------------------------------------------------------------------------------------------


def train_vqvae(run_dir, data, options, name="vqvae"):
    """Fits a VQ-VAE to the training people's slices; `name` is "coarse" for that of shrunk slices.

    The first epochs train encoder and decoder alone, without a quantiser: one that is there from the first step keeps
    what the encoder says to a few directions (Zhao et al. 2026, arXiv:2605.06870). Then k-means makes the codebooks,
    and eq. 3 trains all.
    """
    training, seed = options[f"{name}_training"], options["data"]["seed"]
    first, rest = run_folder.parts(training)
    model = models.build(name, data.image_size, len(data.labels), options)
    size, batch_size = model.image_size, training["batch_size"]
    batches = dataset.ChangedImages(data, size, batch_size, seed, **options["augmentation"])
    validation = dataset.image_batches(data, "validation", size, batch_size)

    def fit_part(stage, model, before, begin=None, **how):
        watch = [progress.Progress(data, run_dir, stage, before, training["epochs"])] if name == "vqvae" else []
        rates = training | how
        fit(stage, model, lambda rate, steps: vqvae_optimizer(rate), batches, validation, rates, run_dir, watch, begin)

    def begin():
        if options["start_from"]:
            models.start(name, model, run_dir, Path(options["start_from"]))
            return
        if first:
            stage = run_folder.BEGINNINGS[name]
            beginning = models.build(stage, data.image_size, len(data.labels), options)
            fit_part(stage, beginning, 0, epochs=first, patience=first)
            models.take_over(model, models.load_vqvae(run_dir, stage))
        start_codebooks(model, batches)

    fit_part(name, model, first, begin, epochs=rest)
    for line in run_folder.blown_up(run_dir, [name]):
        print(f"warning: {line}")


def start_codebooks(model, batches):
    """Makes the codebooks the means of encoder outputs by k-means; each level's, of what those before leave."""
    batches.set_epoch(0)
    rng, most = np.random.default_rng(model.quantizer.seed), max(VECTORS, model.num_embeddings)
    slices = np.sort(batches.order[: max(SLICES, -(-most // model.grid_size**2))])
    rows = [slices[i : i + model.AT_ONCE] for i in range(0, len(slices), model.AT_ONCE)]
    left = np.concatenate([keras.ops.convert_to_numpy(model.encoder.predict_on_batch(batches.fetch(r))) for r in rows])
    left = rng.permutation(left.reshape(-1, left.shape[-1]))[:most]
    if len(left) < model.num_embeddings:
        raise UserError(
            f"{len(left)} vectors cannot start a codebook of {model.num_embeddings} entries; give more slices, or a "
            "smaller --num-embeddings"
        )
    for level in model.levels():
        means = MiniBatchKMeans(model.num_embeddings, n_init=1, batch_size=4096, random_state=level.seed).fit(left)
        codebook = devices.from_first(means.cluster_centers_.astype("float32"))
        level.set_codebook(codebook)
        left = left - codebook[means.predict(left)]


def train_sharp(run_dir, data, options):
    """After stage 1, if wanted: fits the decoder against a discriminator; sharp.keras is a VQ-VAE of the same codes."""
    training, seed = options["sharp_training"], options["data"]["seed"]
    trained = models.load_vqvae(run_dir)
    if (run_dir / "sharp.keras").exists():
        models.load_decoders(run_dir, "sharp")  # raises if it belongs to another VQ-VAE
    keras.utils.set_random_seed(seed)
    size = training["batch_size"]
    of_stacks = dataset.has_stacks(data, size, options)
    if options["heads"]["neighbours"] and not of_stacks:
        print("note: no scan has enough neighbouring slices for a stack: the sharp decoder sees each slice alone")
    vqvae = sharpening.with_fine_blocks(trained, training["fine_blocks"], sharpening.BESIDE * of_stacks)
    batches = dataset.ChangedStacks if of_stacks else dataset.ChangedImages
    fit(
        "sharp",
        sharpening.Sharpener(vqvae, training["adversarial_weight"], training["lecam_weight"], seed, size),
        lambda rate, steps: sharp_optimizer(rate, steps / 20),
        batches(data, data.image_size, size, seed, **options["augmentation"]),
        dataset.image_batches(data, "validation", data.image_size, size, in_stacks=of_stacks),
        training,
        run_dir,
    )


# ----------------------------------------------------------------------------------------------------------------
# Stage 2: the prior
# ----------------------------------------------------------------------------------------------------------------


def train_prior(run_dir, data, options, name="prior"):
    """Fits a PixelCNN to the codes of the training people's slices; `name` is "coarse_prior" for that of coarse codes.

    The prior of codes is told the coarse codes of the same slice, and at drawing those that the other prior has drawn.
    """
    training, seed = options[f"{name}_training"], options["data"]["seed"]
    encoders, codes = codes_of(name, run_dir, data, options["coarse"]["image_size"])
    if (run_dir / f"{name}.keras").exists():
        models.load_prior(run_dir, name, *encoders.values())  # raises if it belongs to another VQ-VAE
    model = models.build(name, data.image_size, len(data.labels), options, models.fingerprint(*encoders.values()))
    if options["start_from"]:
        models.start(name, model, run_dir, Path(options["start_from"]))
    model.set_codebooks(encoders["codes"].codebooks)
    train, validation, below = data.of("train"), data.of("validation"), None
    if options["heads"]["neighbours"]:
        below = dataset.places_below(train)
        if below.max() < 0:
            raise UserError("--neighbours: no person has two slices, one above the other")
        codes["below"] = dataset.codes_below(codes["codes"], dataset.places_below(validation))
    checked, told = dataset.prior_inputs(validation, data.labels, **codes), dataset.prior_inputs(train, data.labels)
    fit(
        name,
        model,
        lambda rate, steps: prior_optimizer(rate, steps * training["average_over"]),
        dataset.ChangedCodes(
            told, encoders, data, training["batch_size"], seed, below=below, **options["augmentation"]
        ),
        dataset.Batches(len(validation), lambda rows: dataset.select(checked, rows), training["batch_size"]),
        training,
        run_dir,
    )


def codes_of(name, run_dir, data, with_coarse):
    """The VQ-VAEs that make a prior's codes, by the names that it has for them, and those of the validation slices."""
    encoders, codes = {}, {}
    if name == "prior":
        encoders["codes"] = models.load_vqvae(run_dir)
        codes["codes"] = opening.all_codes(run_dir, encoders["codes"], data)[data.slices.split == "validation"]
    if with_coarse:
        whose = "coarse" if name == "prior" else "codes"
        encoders[whose] = models.load_vqvae(run_dir, "coarse")
        codes[whose] = dataset.encode(encoders[whose], data.images, data.of("validation").row.to_numpy())
    return encoders, codes


# ----------------------------------------------------------------------------------------------------------------
# Fitting a stage
# ----------------------------------------------------------------------------------------------------------------


def fit(stage, model, make_optimizer, batches, validation, training, run_dir, watch=(), begin=None):
    """Fits a stage, or what is left of it; the best model is left in the run folder.

    `make_optimizer` is a function of the learning rate's schedule and the number of steps; `watch` are callbacks that
    add to the logs; `begin` gives the model the weights that the stage begins with, where it does.
    """
    kept = checkpoint.Checkpoint(batches, run_dir, stage, training)
    if kept.finished():
        print(f"{stage}: already trained, {len(kept.history)} epochs")
        return
    if begin and not kept.begun():
        begin()
    steps = training["epochs"] * len(batches)
    warm_up = min(100, steps // 2)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm_up), warmup_target=training["learning_rate"], warmup_steps=warm_up
    )
    optimizer = make_optimizer(rate, steps)
    model.compile(optimizer=optimizer)
    optimizer.build(model.trainable_variables)
    kept.set_model(model)
    print(f"{stage}: {model.count_params():,} parameters, {training['epochs']} epochs")
    callbacks = [*watch, kept]
    if keras.backend.backend() == "tensorflow":  # it writes TensorBoard's log
        callbacks.append(keras.callbacks.TensorBoard(run_dir / "tensorboard" / stage, write_graph=False))
    if optimizer.use_ema:
        callbacks.append(keras.callbacks.SwapEMAWeights())
    epoch = kept.restore()
    if epoch:
        print(f"{stage}: from epoch {epoch + 1}")
    model.fit(
        batches,
        validation_data=validation,
        initial_epoch=epoch,
        epochs=training["epochs"],
        callbacks=callbacks,
        shuffle=False,  # Batches does it; Keras would also shuffle the batches, from a state that it does not save
        verbose=1 if sys.stdout.isatty() else 2,
    )
    devices.wait_for_all(stage)  # until the first one has written


def vqvae_optimizer(learning_rate):
    """Muon for the kernels, AdamW (Loshchilov & Hutter 2019) for the rest, faster for the codebooks."""
    decay = {"weight_decay": 1e-4, "adam_weight_decay": 1e-4}
    return KernelMuon(learning_rate, adam_lr_ratio=0.3, clipnorm=1.0, **decay)


def prior_optimizer(learning_rate, average_steps):
    """Muon (Liu et al. 2025, arXiv:2502.16982) for every matrix, AdamW for embeddings, biases and the logits' layer.

    Weights are averaged over about `average_steps` steps.
    """
    momentum = 1 - 1 / max(1.0, average_steps)
    decay = {"weight_decay": 1e-4, "adam_weight_decay": 1e-4}
    how = {"clipnorm": 1.0, "exclude_layers": ["logits"], "use_ema": True, "ema_momentum": momentum}
    return keras.optimizers.Muon(learning_rate, **decay, **how)


def sharp_optimizer(learning_rate, average_steps):
    """AdamW for decoder and discriminator alike; weights are averaged over about `average_steps` steps."""
    momentum = 1 - 1 / max(1.0, average_steps)
    how = {"weight_decay": 1e-4, "beta_1": 0.5, "beta_2": 0.9, "use_ema": True, "ema_momentum": momentum}
    return keras.optimizers.AdamW(learning_rate, **how)


# ----------------------------------------------------------------------------------------------------------------
# The command
# ----------------------------------------------------------------------------------------------------------------

STAGES = {
    "vqvae": train_vqvae,
    "coarse": functools.partial(train_vqvae, name="coarse"),
    "coarse_prior": functools.partial(train_prior, name="coarse_prior"),
    "prior": train_prior,
    "sharp": train_sharp,
}


def optimizer_of(stage):
    """What a stage learns by, for `plan.tell`, which only measures."""
    if stage in run_folder.VQVAES:
        return vqvae_optimizer(1e-4)
    return sharp_optimizer(1e-4, 100) if stage == "sharp" else prior_optimizer(1e-4, 100)


def run(command):
    """All of a run, or one stage of it, from what `options.train` returns."""
    run_dir, options = command.run_dir, command.options
    stages = run_folder.stages(options)
    if command.stage not in ("all", "sharp", *stages):
        raise UserError(
            f"--stage {command.stage}: this run has no coarse codes; give one of all, {', '.join(stages)}, sharp"
        )
    stages = stages if command.stage == "all" else [command.stage]
    with contextlib.ExitStack() as stack:
        stack.enter_context(devices.others_may_end())
        devices.start(command.devices)  # before anything asks for a device
        if not devices.is_first():
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        for stage in stages:
            batch_size = options[f"{stage}_training"]["batch_size"]
            if batch_size % devices.number():
                raise UserError(f"{stage}: its batches of {batch_size} cannot be shared by {devices.number()} devices")
        options["precision"] = models.resolve_precision(options["precision"])
        stack.enter_context(models.precision(options["precision"]))
        data = dataset.prepare(**options["data"])
        progress.tell(data, run_dir, options)
        if devices.is_first():
            stack.enter_context(run_folder.alone_in(run_dir, "train.py"))
        new = opening.open_run(run_dir, options, data, command.dry_run)
        if new and devices.is_first():
            progress.preview(run_dir / "preview.png", data)
        if command.dry_run:
            if devices.is_first():
                plan.tell(data, options, [*stages, *["sharp"] * (command.stage == "all")], optimizer_of, command.again)
            print(f"nothing was trained; look at {run_dir / 'preview.png'} and {run_dir / 'splits.csv'}")
            return
        for stage in stages:
            STAGES[stage](run_dir, data, options)
    print(f"done: {run_dir}; now: python predict.py --run-dir {shlex.quote(str(run_dir))}")


def main(argv=None):
    return console.exit_status(lambda: run(options.train(argv)), "stopped; the same command goes on")


if __name__ == "__main__":
    devices.end(main())
