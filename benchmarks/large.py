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
import time
from pathlib import Path

import numpy as np
import PIL.Image

import dataset
import options
import phantom
import runs
import train
from benchmarks import report, worker

SIZE = 256
PER_PERSON = 32
DISTINCT = 320  # slices


def make_originals(folder):
    """The slices that all others are links to, beside the cohort that they come from."""
    phantom.make_cohort(folder.parent / "cohort", 16, seed=0)
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, path in enumerate(sorted((folder.parent / "cohort").rglob("*.jpeg"))[:DISTINCT]):
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


def work(folder, steps):
    """Decodes, or opens, the folder's cache, and takes training steps; what it took."""
    start = time.perf_counter()
    how = options.train(["--data-dir", str(folder), "--cache-dir", str(folder.parent / "cache")]).options
    how["precision"] = runs.resolve_precision(how["precision"])
    data = dataset.prepare(**how["data"])
    found = {"slices": len(data.slices), "prepare_s": time.perf_counter() - start, "peak_mib": worker.peak_mib()}
    if not steps:
        return found
    model, _ = runs.build_models(data.image_size, 0, how)
    model.compile(optimizer=train.vqvae_optimizer(1e-4))
    batches = dataset.image_batches(data, "train", how["vqvae_training"]["batch_size"], seed=0)
    batches.set_epoch(0)
    reading = stepping = 0.0
    for index in range(-3, steps):  # the first three compile
        start = time.perf_counter()
        batch = batches[(index + 3) % len(batches)][0]
        between = time.perf_counter()
        model.train_on_batch(batch)
        if index >= 0:
            reading, stepping = reading + between - start, stepping + time.perf_counter() - between
    start = time.perf_counter()
    for index in range(len(batches)):  # a whole epoch of reading, so that every slice has been in memory
        batches[index]
    return found | {
        "images_per_second": steps * batches.batch_size / (reading + stepping),
        "share_in_steps": stepping / (reading + stepping),
        "reading_images_per_second": batches.number / (time.perf_counter() - start),
        "training_peak_mib": worker.peak_mib(),
    }


def run(args):
    report.clear(args.work_dir)
    make_originals(args.work_dir / "originals")
    rows = []
    for number in args.slices:
        folder = args.work_dir / f"slices{number}"
        make(folder, number)
        built, trained = (report.alone(work, folder, steps) for steps in (0, args.steps))  # for the memory of each
        row = {
            "slices": built["slices"],
            "cache_gb": built["slices"] * SIZE**2 / 1e9,
            "decoding_s": built["prepare_s"],
            "decoded_per_second": built["slices"] / built["prepare_s"],
            "decoding_peak_mib": built["peak_mib"],
            "opening_s": trained["prepare_s"],
        }
        rows.append(row | {name: value for name, value in trained.items() if name not in built})
        report.write(args.output, rows, image_size=SIZE)
        shutil.rmtree(folder)
        shutil.rmtree(args.work_dir / "cache")
    shutil.rmtree(args.work_dir)


main = report.command(
    run,
    __doc__,
    output=report.OUTPUT,
    slices=(report.at_least(20 * PER_PERSON), [10_000, 100_000], "of each data set"),
    steps=(report.at_least(1), 40, "of training"),
    work_dir=(Path, Path("runs/large"), "made and removed"),
)

if __name__ == "__main__":
    sys.exit(main())
