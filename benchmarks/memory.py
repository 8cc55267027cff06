"""Memory of the sampler against the number of samples drawn at a time, each in a process of its own.

    python benchmarks/memory.py --output results/sampling_memory.json

32 x 32 codes, 10 layers of 96 features, as in benchmarks/sampling.py. `before_mib` is the most that the process has
held with the model built and nothing drawn, `peak_mib` the most it ever held.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import multiprocessing
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import modules
import run_folder
import sampling
from benchmarks import report, worker

GRID = 32


def measure(batch):
    """One row: draws so many samples at once."""
    prior = modules.PixelCNN(256, 64, GRID, filters=96, num_blocks=10)
    before = worker.peak_mib()
    draws = sampling.PixelCNNSampler(prior).sample(np.zeros(batch, int), np.full(batch, 0.5), 0, batch_size=batch)
    next(draws)
    return {"grid": GRID, "batch": batch, "before_mib": round(before), "peak_mib": round(worker.peak_mib())}


def run(args):
    if min(args.batch) < 1:
        raise run_folder.RunError(f"--batch {args.batch}: must be 1 or more")
    rows = []
    for batch in args.batch:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measure, (batch,)))
        report.write(args.output, rows)
        print("batch {batch}: {peak_mib} MiB, {before_mib} MiB before".format(**rows[-1]), flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Measure the sampler's memory.")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 128, 256, 512], help="(default: 64 128 256 512)")
    return run_folder.exit_status(run, parser.parse_args(argv), "stopped; the rows so far are in the file")


if __name__ == "__main__":
    sys.exit(main())
