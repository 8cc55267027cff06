"""What a person sees before and during training: what the data are, and validation slices after each epoch."""

import math
from pathlib import Path

import keras
import numpy as np

import dataset
from evaluation import figures
from extensions import losses
from running import run_folder
from running.config import read_config
from system import devices

WATCHED, SHOWN = 128, 6  # validation slices that are measured, and shown, after each epoch of the VQ-VAE


class Progress(keras.callbacks.Callback):
    """Shows how far the VQ-VAE is: after each epoch two figures for its history, and a picture.

    The figures are `val_ssim` and `val_psnr_db` of the epoch's logs: means over `WATCHED` validation slices, the same
    ones after every epoch. `checkpoint.Checkpoint` keeps what is in the logs, so this stands before it. The picture,
    progress.png, is that of the latest epoch; under TensorFlow, TensorBoard has those of all.

    Args:
        data: The `dataset.Data`.
        run_dir: Where the picture goes.
        stage: "vqvae", or "autoencoder", what it begins as.
        before, epochs: How many epochs there were before the stage, and how many there will be in all.
    """

    def __init__(self, data, run_dir, stage, before, epochs):
        super().__init__()
        watched = data.of("validation")
        watched = watched.iloc[dataset.spread(len(watched), WATCHED)]
        self.images = data.pixels(watched)
        middle = np.flatnonzero((watched.slice_position - 0.5).abs() < 0.25)  # there is little to see in the others
        middle = middle if len(middle) >= SHOWN else np.arange(len(watched))
        self.shown = middle[dataset.spread(len(middle), SHOWN)]
        self.run_dir, self.stage, self.before, self.epochs = run_dir, stage, before, epochs
        self.footer = run_folder.footer(data.title, data.credit)
        self.writer = None

    def on_train_begin(self, logs=None):
        print(f"{self.stage}: what it makes of validation slices, after each epoch: {self.run_dir / 'progress.png'}")

    def on_epoch_end(self, epoch, logs=None):
        outputs = self.model.reconstruct(self.images[..., None])[..., 0].astype("float32")
        ssim, psnr = _ssim(self.images, outputs), _psnr_db(self.images, outputs)
        logs["val_ssim"] = float(ssim.mean())
        logs["val_psnr_db"] = float(psnr[np.isfinite(psnr)].mean()) if np.isfinite(psnr).any() else math.nan
        if not devices.is_first():
            return
        epoch += self.before
        history = run_folder.read_histories(self.run_dir)["vqvae"][:epoch]  # the rest is trained again
        curve = [(row["epoch"], row.get("val_ssim", math.nan)) for row in history] + [(epoch + 1, logs["val_ssim"])]
        title = (
            f"VQ-VAE{', not yet quantised,' * (self.stage == 'autoencoder')} after epoch {epoch + 1} of {self.epochs}: "
            f"SSIM {logs['val_ssim']:.3f}, PSNR {logs['val_psnr_db']:.1f} dB, means of {len(self.images)} validation "
            "slices"
        )
        titles = [f"SSIM {value:.3f}" for value in ssim[self.shown]]
        shown = self.images[self.shown], outputs[self.shown]
        figures.progress(self.run_dir / "progress.png", *shown, title, titles, curve, self.epochs, self.footer)
        if keras.backend.backend() == "tensorflow":
            import tensorflow

            if self.writer is None:
                folder = self.run_dir / "tensorboard" / self.stage / "pictures"
                self.writer = tensorflow.summary.create_file_writer(str(folder))
            picture = np.concatenate([np.concatenate(list(row), axis=1) for row in shown])
            with self.writer.as_default():
                tensorflow.summary.image("input above reconstruction", picture[None, ..., None], step=epoch)
            self.writer.flush()

    def on_train_end(self, logs=None):
        if self.writer is not None:
            self.writer.close()


def _ssim(images, outputs):
    """SSIM of each pair of images in [0, 1], (n, S, S), as evaluate.py has it: (n,)."""
    return keras.ops.convert_to_numpy(losses.ssim(images[..., None], outputs[..., None]))


def _psnr_db(images, outputs):
    """PSNR of each pair of images in [0, 1], (n, S, S), in dB: (n,); infinite where they are equal."""
    with np.errstate(divide="ignore"):
        return -10 * np.log10(np.square(images - outputs, dtype="float64").mean(axis=(1, 2)))


def tell(data, run_dir, options):
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
    for notice in [*data.notices, *[skipped] * bool(data.bad_files), *unlike_start(about, options)]:
        print(f"note: {notice}" if len(notice) < 400 else f"note: {notice[:360]} … (all of it in config.json)")


def unlike_start(about, options):
    """Lines on how the data differ from those of the run of --start-from."""
    if not options["start_from"]:
        return []
    start = read_config(Path(options["start_from"]))
    theirs, ours = start["data"]["about"].get("pixel_mm"), about["pixel_mm"]
    backgrounds = [one["data"]["background"] for one in (start["options"], options)]
    lines = []
    if theirs and ours and abs(theirs / ours - 1) > 0.05:
        lines.append(f"{ours:.3g} mm a pixel, and {theirs:.3g} in the run of --start-from; --voxel-size changes that")
    if backgrounds[0] != backgrounds[1]:
        lines.append("--background {1}, and {0} in the run of --start-from".format(*backgrounds))
    return lines


def preview(path, data):
    """Draws a contact sheet: some people of each split at three heights."""
    columns = []
    for split, most in (("train", 4), ("validation", 3), ("test", 3)):
        people = data.of(split).subject_id.unique()
        for person in people[dataset.spread(len(people), most)]:
            mine = data.slices[data.slices.subject_id == person].sort_values("slice_position", kind="stable")
            some = mine.iloc[[len(mine) * part // 4 for part in (3, 2, 1)]]
            label = " ".join(dict.fromkeys(filter(None, some.label)))
            columns.append((f"{split}\n{person}\n{label}", data.pixels(some), some.slice_index.tolist()))
    figures.preview(
        path, columns, data.about["plane"], data.about["pixel_mm"], run_folder.footer(data.title, data.credit)
    )
