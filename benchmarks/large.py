"""Does a large data set fit? Time to decode it, memory, and what share of a training step reading takes.

    python benchmarks/large.py --output results/large.json

A folder of 256 x 256 PNGs in OASIS's layout is made for each size (hard links to a few hundred slices of synthetic
people, decoded one by one all the same; what a disk adds is not in the figures, since all of it is in the system's
memory). A process of its own then decodes it into a cache, and another takes training steps of the VQ-VAE on batches
from all over it, as `train.py` feeds them.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dataset
import phantom
import run_folder
import train
from benchmarks import report, worker

SIZE = 256
PER_PERSON = 32
DISTINCT = 320  # slices


def make(folder, number):
    """`number` PNGs in three splits, which are links to `DISTINCT` ones."""
    originals = folder.parent / "originals"
    if not originals.exists():
        phantom.make_cohort(folder.parent / "cohort", 16, seed=0)
        originals.mkdir()
        rng = np.random.default_rng(0)
        for index, path in enumerate(sorted((folder.parent / "cohort").rglob("*.jpeg"))[:DISTINCT]):
            image = np.asarray(PIL.Image.open(path).convert("L").resize((SIZE, SIZE)), float)
            noisy = image + rng.normal(0, 3, image.shape) * (image > 0)
            PIL.Image.fromarray(noisy.clip(0, 255).astype("uint8")).save(originals / f"{index:03d}.png")
    files = sorted(originals.iterdir())
    people = number // PER_PERSON
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
    options = train.resolve(train.parse(["--data-dir", str(folder), "--cache-dir", str(folder.parent / "cache")]))
    data, slices, _ = dataset.prepare(**options["data"])
    found = {"slices": len(slices), "prepare_s": time.perf_counter() - start, "prepare_peak_mib": worker.peak_mib()}
    if not steps:
        return found
    model, _ = train.build_models(data.image_size, 0, options)
    model.compile(optimizer=train.vqvae_optimizer(1e-4))
    batches = dataset.image_batches(data, slices, "train", options["vqvae_training"]["batch_size"], seed=0)
    batches.set_epoch(0)
    for index in range(3):
        model.train_on_batch(batches[index][0])
    reading = stepping = 0.0
    for index in range(3, 3 + steps):
        start = time.perf_counter()
        batch = batches[index % len(batches)][0]
        between = time.perf_counter()
        model.train_on_batch(batch)
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


def parse(argv):
    parser = argparse.ArgumentParser(description="Decode large made data sets and train on them for a few steps.")
    add = parser.add_argument
    add("--output", type=Path, required=True, help="a JSON file")
    add("--slices", type=int, nargs="+", default=[10_000, 100_000], help="(default: 10000 100000)")
    add("--steps", type=int, default=40, help="of training (default: %(default)s)")
    add("--work-dir", type=Path, default=Path("runs/large"), help="made and removed (default: %(default)s)")
    add("--worker", type=Path, help=argparse.SUPPRESS)  # how this program starts itself
    return parser.parse_args(argv)


def run(args):
    if args.worker:
        print(json.dumps(work(args.worker, args.steps)))
        return
    if min(args.slices) < 20 * PER_PERSON or args.steps < 1:
        raise run_folder.RunError(f"--slices must be {20 * PER_PERSON} or more, --steps 1 or more")
    if args.work_dir.exists() and not (args.work_dir / "originals").exists():
        raise run_folder.RunError(f"--work-dir {args.work_dir}: holds something else; give a new folder")
    shutil.rmtree(args.work_dir, ignore_errors=True)
    rows = []
    for number in args.slices:
        folder = args.work_dir / f"slices{number}"
        make(folder, number)
        said = []
        for steps in (0, args.steps):  # decoding and training in processes of their own, for the memory of each
            command = [sys.executable, __file__, "--output", "-", "--worker", folder, "--steps", steps]
            done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                raise run_folder.RunError(
                    f"{folder}: its process ended with {done.returncode}; what it said stands above"
                )
            said.append(json.loads(done.stdout.splitlines()[-1]))
        built, trained = said
        row = {
            "slices": built["slices"],
            "cache_gb": built["slices"] * SIZE**2 / 1e9,
            "decoding_s": built["prepare_s"],
            "decoded_per_second": built["slices"] / built["prepare_s"],
            "decoding_peak_mib": built["prepare_peak_mib"],
            "opening_s": trained["prepare_s"],
            **{name: trained[name] for name in trained if name.startswith(("images", "share", "reading", "training"))},
        }
        rows.append(row)
        print(
            "{slices} slices: decoded in {decoding_s:.0f} s ({decoded_per_second:.0f}/s, {decoding_peak_mib:.0f} MiB), "
            "opened in {opening_s:.1f} s; {images_per_second:.1f} images/s in training, {share_in_steps:.1%} of the "
            "time in steps, {training_peak_mib:.0f} MiB".format(**row),
            flush=True,
        )
        report.write(args.output, rows, image_size=SIZE)
        shutil.rmtree(folder)
        shutil.rmtree(args.work_dir / "cache")
    shutil.rmtree(args.work_dir)


def main(argv=None):
    return run_folder.exit_status(run, parse(argv), "stopped; what was measured is written")


if __name__ == "__main__":
    sys.exit(main())
