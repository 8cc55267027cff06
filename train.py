"""Trains both stages: a VQ-VAE on brain slices, then a PixelCNN prior on its grids of codes; each also for layouts.

    python train.py                                        # the embedded demo cohort
    python train.py --data-dir ../shared/data/ixi          # BIDS volumes; OASIS and ADNI folders likewise
    python train.py --help                                 # the options that matter; --help-all shows the others

A run folder holds all of a run (`runs.py` says what). The same command again goes on where the last one stopped; other
settings in the same folder are refused.
"""

import contextlib
import functools
import io
import math
import sys
from pathlib import Path

import files
import options

if __name__ == "__main__":
    options.train()  # --help and wrong options are answered here, before TensorFlow is imported, which takes seconds
with files.quietly():
    import keras
import numpy as np

import dataset
import devices
import losses
import runs
import sharpening
from evaluation import figures
from files import UserError

INITIAL_SLICES = 128  # whose encoder outputs the codebook starts from
WATCHED, SHOWN = 128, 6  # validation slices that are measured, and shown, after each epoch of the VQ-VAE


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


class Progress(keras.callbacks.Callback):
    """Shows how far the VQ-VAE is: after each epoch two figures for its history, and a picture.

    The figures are `val_ssim` and `val_psnr_db` of the epoch's logs: means over `WATCHED` validation slices, the same
    ones after every epoch. `runs.Checkpoint` keeps what is in the logs, so this stands before it. The picture,
    progress.png, is that of the latest epoch; under TensorFlow, TensorBoard has those of all.

    Args:
        data: The `dataset.Data`.
        run_dir: Where the picture goes.
        epochs: How many there will be.
    """

    def __init__(self, data, run_dir, epochs):
        super().__init__()
        watched = data.of("validation")
        watched = watched.iloc[_spread(np.arange(len(watched)), WATCHED)]
        self.images = data.pixels(watched)
        middle = np.flatnonzero((watched.slice_position - 0.5).abs() < 0.25)  # there is little to see in the others
        self.shown = _spread(middle if len(middle) >= SHOWN else np.arange(len(watched)), SHOWN)
        self.run_dir, self.epochs = run_dir, epochs
        self.footer = runs.footer(data.title, data.credit)
        self.writer = None

    def on_train_begin(self, logs=None):
        print(f"vqvae: what it makes of validation slices, after each epoch: {self.run_dir / 'progress.png'}")

    def on_epoch_end(self, epoch, logs=None):
        codes = self.model.encode(self.images[..., None])
        outputs = self.model.decode(codes)[..., 0].astype("float32")
        ssim, psnr = _ssim(self.images, outputs), _psnr_db(self.images, outputs)
        logs["val_ssim"] = float(ssim.mean())
        logs["val_psnr_db"] = float(psnr[np.isfinite(psnr)].mean()) if np.isfinite(psnr).any() else math.nan
        if not devices.is_first():
            return
        history = runs.read_history(self.run_dir / "vqvae_history.csv")[:epoch]  # what comes later is trained again
        curve = [(row["epoch"], row.get("val_ssim", math.nan)) for row in history] + [(epoch + 1, logs["val_ssim"])]
        title = (
            f"VQ-VAE after epoch {epoch + 1} of {self.epochs}: SSIM {logs['val_ssim']:.3f}, "
            f"PSNR {logs['val_psnr_db']:.1f} dB, means of {len(self.images)} validation slices"
        )
        titles = [f"SSIM {value:.3f}" for value in ssim[self.shown]]
        shown = self.images[self.shown], outputs[self.shown]
        figures.progress(self.run_dir / "progress.png", *shown, title, titles, curve, self.epochs, self.footer)
        if keras.backend.backend() == "tensorflow":
            import tensorflow

            if self.writer is None:
                folder = self.run_dir / "tensorboard" / "vqvae" / "pictures"
                self.writer = tensorflow.summary.create_file_writer(str(folder))
            picture = np.concatenate([np.concatenate(list(row), axis=1) for row in shown])
            with self.writer.as_default():
                tensorflow.summary.image("input above reconstruction", picture[None, ..., None], step=epoch)
            self.writer.flush()

    def on_train_end(self, logs=None):
        if self.writer is not None:
            self.writer.close()


def _spread(places, most):
    """At most so many of some places, (n,), spread evenly over all of them."""
    return places[np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int)]


def _ssim(images, outputs):
    """SSIM of each pair of images in [0, 1], (n, S, S), as evaluate.py has it: (n,)."""
    return keras.ops.convert_to_numpy(losses.ssim(images[..., None], outputs[..., None]))


def _psnr_db(images, outputs):
    """PSNR of each pair of images in [0, 1], (n, S, S), in dB: (n,); infinite where they are equal."""
    with np.errstate(divide="ignore"):
        return -10 * np.log10(np.square(images - outputs, dtype="float64").mean(axis=(1, 2)))


def fit(stage, model, make_optimizer, batches, validation, training, run_dir, watch=()):
    """Fits a stage, or what is left of it; the best model is left in the run folder.

    `make_optimizer` is a function of the learning rate's schedule and the number of steps; `watch` are callbacks that
    add to the logs.
    """
    checkpoint = runs.Checkpoint(batches, run_dir, stage, training)
    if checkpoint.finished():
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
    callbacks = [*watch, checkpoint]
    if keras.backend.backend() == "tensorflow":  # it writes TensorBoard's log
        callbacks.append(keras.callbacks.TensorBoard(run_dir / "tensorboard" / stage, write_graph=False))
    if optimizer.use_ema:
        callbacks.append(keras.callbacks.SwapEMAWeights())
    epoch = checkpoint.restore()
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


# ----------------------------------------------------------------------------------------------------------------
# The stages
# ----------------------------------------------------------------------------------------------------------------


def initialise(model, batches, batch_size):
    """Gives the codebook encoder outputs: at another scale, two entries would take every vector for epochs."""
    batches.set_epoch(0)
    images = batches.fetch(np.sort(batches.order[:INITIAL_SLICES]))
    parts = range(0, len(images), batch_size)
    z_e = np.concatenate([model.encoder.predict_on_batch(images[i : i + batch_size]) for i in parts])
    try:
        model.quantizer.initialise(z_e)
    except ValueError as error:
        raise UserError(f"{error}; give more slices, or a smaller --num-embeddings") from error


def train_vqvae(run_dir, data, options, name="vqvae"):
    """Stage 1: fits a VQ-VAE to the training people's slices; `name` is "layout" for that of shrunk slices."""
    training, seed = options[f"{name}_training"], options["data"]["seed"]
    model = runs.build(name, data.image_size, len(data.labels), options)
    size, batch_size = model.image_size, training["batch_size"]
    batches = dataset.ChangedImages(data, size, batch_size, seed, **options["augmentation"])
    if options["start_from"]:
        runs.start(name, model, run_dir, Path(options["start_from"]))
    else:
        initialise(model, batches, batch_size)
    fit(
        name,
        model,
        lambda rate, steps: vqvae_optimizer(rate),
        batches,
        dataset.image_batches(data, "validation", size, batch_size),
        training,
        run_dir,
        [Progress(data, run_dir, training["epochs"])] if name == "vqvae" else [],
    )


def train_prior(run_dir, data, options, name="prior"):
    """Stage 2: fits a PixelCNN to the codes of the training people's slices; "layout_prior" is that of layouts.

    Codes are told the layout of the same slice, and at drawing a layout that the other prior has drawn.
    """
    training, seed = options[f"{name}_training"], options["data"]["seed"]
    train, validation = data.of("train"), data.of("validation")
    layout = runs.load_vqvae(run_dir, "layout")
    of_layout = dataset.encode(layout, data.images, validation.row.to_numpy())
    if name == "layout_prior":
        encoders, codes = {"codes": layout}, {"codes": of_layout}
    else:
        vqvae = runs.load_vqvae(run_dir)
        encoders = {"codes": vqvae, "layout": layout}
        codes = {"codes": runs.all_codes(run_dir, vqvae, data)[data.slices.split == "validation"], "layout": of_layout}
    if (run_dir / f"{name}.keras").exists():
        runs.load_prior(run_dir, name, *encoders.values())  # raises if it belongs to another VQ-VAE
    model = runs.build(name, data.image_size, len(data.labels), options, runs.fingerprint(*encoders.values()))
    if options["start_from"]:
        runs.start(name, model, run_dir, Path(options["start_from"]))
    model.set_codebook(keras.ops.convert_to_numpy(encoders["codes"].quantizer.codebook))
    beside = None
    if options["heads"]["neighbours"]:
        beside = dataset.neighbours(train)
        if beside["below"].max() < 0:
            raise UserError("--neighbours: no person has two slices, one above the other")
        known = dataset.neighbours(validation)
        # Validated as whole heads are drawn, from the lowest slice upwards.
        codes["below"] = dataset.codes_beside(codes["codes"], known["below"])
        codes["above"] = np.full_like(codes["below"], -1)
    checked = dataset.prior_inputs(validation, data.labels, **codes)
    told = dataset.prior_inputs(train, data.labels)
    fit(
        name,
        model,
        lambda rate, steps: prior_optimizer(rate, steps * training["average_over"]),
        dataset.ChangedCodes(
            told, encoders, data, training["batch_size"], seed, beside=beside, **options["augmentation"]
        ),
        dataset.Batches(len(validation), lambda rows: dataset.select(checked, rows), training["batch_size"]),
        training,
        run_dir,
    )


def train_sharp(run_dir, data, options):
    """After stage 1, if wanted: fits the decoder against a discriminator; sharp.keras is a VQ-VAE of the same codes."""
    training, seed = options["sharp_training"], options["data"]["seed"]
    trained = runs.load_vqvae(run_dir)
    if (run_dir / "sharp.keras").exists():
        runs.load_decoders(run_dir, "sharp")  # raises if it belongs to another VQ-VAE
    runs.set_precision(options["precision"])
    keras.utils.set_random_seed(seed)
    vqvae = trained.with_fine_blocks(training["fine_blocks"])  # at the run's precision
    fit(
        "sharp",
        sharpening.Sharpener(vqvae, training["adversarial_weight"], training["lecam_weight"]),
        lambda rate, steps: sharp_optimizer(rate, steps / 20),
        dataset.ChangedImages(data, data.image_size, training["batch_size"], seed, **options["augmentation"]),
        dataset.image_batches(data, "validation", data.image_size, training["batch_size"]),
        training,
        run_dir,
    )


STAGES = {
    "vqvae": train_vqvae,
    "layout": functools.partial(train_vqvae, name="layout"),
    "layout_prior": functools.partial(train_prior, name="layout_prior"),
    "prior": train_prior,
    "sharp": train_sharp,
}


# ----------------------------------------------------------------------------------------------------------------
# The command
# ----------------------------------------------------------------------------------------------------------------


def tell(data, run_dir):
    """Says what the data are: what was found, whose it is, what it was like and what was done to it."""
    slices, about = data.slices, data.about
    people = slices.drop_duplicates(["subject_id", "label"])

    def listed(counts, most=4):
        shown = [f"{name} ({number})" for name, number in list(counts.items())[:most]]
        return ", ".join([*shown, *[f"{len(counts) - most} more"] * (len(counts) > most)])

    print(f"data: {data.title}")
    print(f"      layout {data.layout}, {len(slices)} slices of {data.image_size} x {data.image_size} pixels")
    for split, number in dataset.count(slices).items():
        print(f"      {split}: {number['people']} people, {number['slices']} slices")
    if data.labels:
        none = people.subject_id[people.label == ""].nunique()
        print(f"      labels, by people: {listed(people.label[people.label != ''].value_counts(), 30)}, none ({none})")
    sessions = slices.groupby("subject_id").session.nunique()
    if sessions.max() > 1:
        print(f"      {sessions.sum()} sessions of {len(sessions)} people")
    if about["voxel_size"]:
        print(f"      volumes: voxels of {listed(about['voxel_size'])}; orientation {listed(about['orientation'])}")
    scale = f", {about['pixel_mm']:.3g} mm a pixel" if about["pixel_mm"] else ""
    plane = f"{about['plane']} slices, " if about["plane"] else ""
    print(f"      {plane}native size {listed(about['native_pixels'])}{scale}")
    low, high = about["values_before"]
    sample = data.images[slices.row[:: max(1, len(slices) // 200)]]
    print(f"      values {low:.4g} to {high:.4g} before, 0 to 255 after (mean {sample.mean():.0f})")
    skipped = f"{len(data.bad_files)} unusable files are left out, listed in {run_dir / 'bad_files.txt'}"
    for notice in [*data.notices, *[skipped] * bool(data.bad_files)]:
        print(f"note: {notice}" if len(notice) < 400 else f"note: {notice[:360]} … (all of it in config.json)")


def preview(path, data):
    """Draws a contact sheet: some people of each split at three heights."""
    columns = []
    for split, most in (("train", 4), ("validation", 3), ("test", 3)):
        people = data.of(split).subject_id.unique()
        for person in people[np.unique(np.linspace(0, len(people) - 1, min(most, len(people))).round().astype(int))]:
            mine = data.slices[data.slices.subject_id == person].sort_values("slice_position", kind="stable")
            some = mine.iloc[[len(mine) * part // 4 for part in (3, 2, 1)]]
            label = " ".join(dict.fromkeys(filter(None, some.label)))
            columns.append((f"{split}\n{person}\n{label}", data.pixels(some), some.slice_index.tolist()))
    figures.preview(path, columns, data.about["plane"], data.about["pixel_mm"], runs.footer(data.title, data.credit))


def run(command):
    """All of a run, or one stage of it, from what `options.train` returns."""
    run_dir, options = command.run_dir, command.options
    with contextlib.ExitStack() as stack:
        stack.enter_context(devices.others_may_end())
        devices.start(command.devices)  # before anything asks for a device
        if not devices.is_first():
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        for stage in STAGES:
            batch_size = options[f"{stage}_training"]["batch_size"]
            if batch_size % devices.number():
                flag = f"--{stage.replace('_', '-')}-batch-size"
                raise UserError(f"{flag} {batch_size}: must be a multiple of {devices.number()} devices")
        options["precision"] = runs.resolve_precision(options["precision"])
        data = dataset.prepare(**options["data"])
        tell(data, run_dir)
        if devices.is_first():
            stack.enter_context(runs.alone_in(run_dir))
        new = not (run_dir / "config.json").exists()
        if not (command.dry_run and new):
            runs.open_run(run_dir, options, data)  # which refuses other data or settings than those of the run
        elif devices.is_first():
            runs.write_splits(run_dir, data)
        if new and devices.is_first():
            preview(run_dir / "preview.png", data)
        if command.dry_run:
            print(f"nothing was trained; look at {run_dir / 'preview.png'} and {run_dir / 'splits.csv'}")
            return
        if options["start_from"] and command.stage != "all" and devices.is_first():
            runs.give_back(run_dir, Path(options["start_from"]), command.stage)
            if new:
                runs.borrow(run_dir, Path(options["start_from"]), command.stage)
        for stage in [*runs.VQVAES, *runs.PRIORS] if command.stage == "all" else [command.stage]:
            STAGES[stage](run_dir, data, options)
    print(f"done: {run_dir}; now: python predict.py --run-dir {run_dir}")


def main(argv=None):
    return files.exit_status(lambda: run(options.train(argv)), "stopped; the same command goes on")


if __name__ == "__main__":
    devices.end(main())
