"""Does a large data set fit? Time to decode it, memory, and what share of a training step reading takes.

    python -m benchmarks.large --output results/large.json

A folder of 256 x 256 PNGs in OASIS's layout is made for each size (hard links to a few hundred slices of synthetic
people, decoded one by one all the same; what a disk adds is not in the figures, since all of it is in the system's
memory). A process of its own then decodes it into a cache, and another takes training steps of the VQ-VAE on batches
from all over it, as `train.py` feeds them.
"""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import PIL.Image

import dataset
import train
from benchmarks import harness, worker
from reading import phantom
from running import models, options

SIZE, PER_PERSON, DISTINCT = 256, 32, 320  # pixels, slices, slices


def make_originals(folder):
    """The slices that all others are links to, beside the cohort that they come from."""
    cohort, rng = folder.parent / "cohort", np.random.default_rng(0)
    phantom.make_cohort(cohort, 16, seed=0)
    folder.mkdir()
    for index, path in enumerate(sorted(cohort.rglob("*.jpeg"))[:DISTINCT]):
        image = np.asarray(PIL.Image.open(path).convert("L").resize((SIZE, SIZE)), float)
        noisy = image + rng.normal(0, 3, image.shape) * (image > 0)
        PIL.Image.fromarray(noisy.clip(0, 255).astype("uint8")).save(folder / f"{index:03d}.png")


def make(folder, number):
    """`number` PNGs in three splits, which are links to the originals beside the folder."""
    files, people = sorted((folder.parent / "originals").iterdir()), number // PER_PERSON
    for person in range(people):
        name = "train" if person < 0.8 * people else "validate" if person < 0.9 * people else "test"
        split = folder / f"keras_png_slices_{name}"
        split.mkdir(parents=True, exist_ok=True)
        for k in range(PER_PERSON):
            target = split / f"case_{person:05d}_slice_{k}.nii.png"
            os.link(files[(person * PER_PERSON + k) % len(files)], target)


def prepare(folder):
    """The folder's data, decoded or from the cache, how they are trained on, and the seconds that it took."""
    how = options.train(["--data-dir", str(folder), "--cache-dir", str(folder.parent / "cache")]).options
    seconds, data = harness.timed(lambda: dataset.prepare(**how["data"]))
    return data, how | {"precision": models.resolve_precision(how["precision"])}, seconds


def decode(folder):
    """The first columns of a row: what it takes to decode the folder."""
    data, _, seconds = prepare(folder)
    number = len(data.slices)
    found = {"slices": number, "cache_gb": number * SIZE**2 / 1e9, "decoding_s": seconds}
    return found | {"decoded_per_second": number / seconds, "decoding_peak_mib": worker.peak_mib()}


def fit(folder, steps):
    """The other columns: what it takes to open the cache and to train."""
    data, how, seconds = prepare(folder)
    model = models.build("vqvae", data.image_size, 0, how)
    model.compile(optimizer=train.vqvae_optimizer(1e-4))
    batches = dataset.ChangedImages(data, SIZE, how["vqvae_training"]["batch_size"], seed=0)
    batches.set_epoch(0)
    times = []
    for index in range(3 + steps):  # the first three compile
        reading, batch = harness.timed(lambda index=index: batches[index % len(batches)][0])
        times.append((reading, harness.timed(lambda batch=batch: model.train_on_batch(batch))[0]))
    reading, stepping = np.sum(times[3:], axis=0).tolist()
    # A whole epoch of reading, so that every slice has been in memory.
    epoch_s, _ = harness.timed(lambda: [len(batches[index]) for index in range(len(batches))])
    return {
        "opening_s": seconds,
        "images_per_second": steps * batches.batch_size / (reading + stepping),
        "share_in_steps": stepping / (reading + stepping),
        "reading_images_per_second": batches.number / epoch_s,
        "training_peak_mib": worker.peak_mib(),
        "training_own_mib": own_mib(),
    }


def own_mib():
    """Memory of this process now, without pages of files, which the system takes back when it needs them."""
    status = Path("/proc/self/status")
    return int(status.read_text().split("RssAnon:")[1].split()[0]) / 2**10 if status.exists() else None


def run(args):
    harness.clear(args.work_dir)
    make_originals(args.work_dir / "originals")
    rows = []
    for number in args.slices:
        folder = args.work_dir / f"slices{number}"
        make(folder, number)
        rows.append(harness.alone(decode, folder) | harness.alone(fit, folder, args.steps))
        harness.write(args.output, rows, image_size=SIZE)
        for made in (folder, args.work_dir / "cache"):
            shutil.rmtree(made)
    shutil.rmtree(args.work_dir)


main = harness.command(
    run,
    __doc__,
    output=harness.OUTPUT,
    slices=(harness.number(20 * PER_PERSON), [10_000, 100_000], "of each data set"),
    steps=(harness.number(1), 40, "of training"),
    work_dir=(Path, Path("runs/large"), "made and removed"),
)

if __name__ == "__main__":
    sys.exit(main())
