"""Does a run that is killed end as one that is not? Kills all three phases at random moments, and compares the ends.

    python benchmarks/kills.py --output results/kills.json

One run of train.py on a small cohort of synthetic people is left alone. Others are killed (SIGKILL) at a random moment
of its length, from the first import to the last epoch, and started again by the same command until they end. Then both
models' weights, the codes and the histories are compared, bit for bit.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import phantom
import run_folder
from benchmarks import report

ROOT = Path(__file__).resolve().parent.parent
SMALL = (
    *("--image-size", 32, "--base-filters", 8, "--num-embeddings", 32, "--embedding-dim", 8, "--vqvae-epochs", 6),
    *("--prior-filters", 16, "--prior-dropout", 0.1, "--prior-epochs", 6, "--restart-threshold", 0.1),
    *("--sharp-epochs", 4),
)
STAGES = ("vqvae", "prior", "sharp")


def parse(argv):
    parser = argparse.ArgumentParser(description="Kill training at random moments and compare with a run left alone.")
    add = parser.add_argument
    add("--runs-dir", type=Path, default=Path("runs/kills"), help="an earlier one is removed (default: %(default)s)")
    add("--output", type=Path, default=Path("results/kills.json"), help="(default: %(default)s)")
    add("--number", type=int, default=20, help="runs to kill (default: %(default)s)")
    add("--kills", type=int, default=2, help="times that each is killed (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    return parser.parse_args(argv)


def differences(run_dir, other):
    """What differs between two finished runs: a list of words, empty where nothing does."""
    found = []
    for stage in STAGES:
        if not (other / f"{stage}.keras").exists():
            continue
        histories = [
            [{name: value for name, value in row.items() if name != "seconds"} for row in run_folder.read_history(path)]
            for path in (folder / f"{stage}_history.csv" for folder in (run_dir, other))
        ]
        if histories[0] != histories[1]:
            found.append(f"{stage}_history.csv")
        weights = [
            keras.saving.load_model(folder / f"{stage}.keras", compile=False).get_weights()
            for folder in (run_dir, other)
        ]
        if not all(np.array_equal(a, b) for a, b in zip(*weights, strict=True)):
            found.append(f"{stage}.keras")
    codes = []
    for folder in (run_dir, other):
        with np.load(folder / "codes.npz") as file:
            codes.append(file["codes"])
    if not np.array_equal(*codes):
        found.append("codes.npz")
    left = [path.name for path in run_dir.glob("*.partial*")]
    return found + left


def epochs(run_dir):
    """Epochs of each stage that a run has in its histories."""
    return [len(run_folder.read_history(run_dir / f"{stage}_history.csv")) for stage in STAGES]


def run(args):
    if args.runs_dir.exists() and not (args.runs_dir / "cohort").exists():
        raise run_folder.RunError(f"--runs-dir {args.runs_dir}: holds something else; give a new folder")
    shutil.rmtree(args.runs_dir, ignore_errors=True)
    phantom.make_cohort(args.runs_dir / "cohort", 20, seed=0)

    def train(name, seconds=float("inf")):
        """Whether both commands of a run, all and then sharp, ended before they were killed."""
        until = time.perf_counter() + seconds
        for stage in ("all", "sharp"):
            data = ("--data-dir", args.runs_dir / "cohort", "--cache-dir", args.runs_dir / "cache", "--stage", stage)
            command = [ROOT / "train.py", *data, "--run-dir", args.runs_dir / name, *SMALL]
            left = None if seconds == float("inf") else max(0.01, until - time.perf_counter())
            try:
                done = subprocess.run(
                    [sys.executable, *map(str, command)], timeout=left, capture_output=True, text=True, check=False
                )
            except subprocess.TimeoutExpired:  # run() has killed it
                return False
            if done.returncode:
                raise run_folder.RunError(f"train.py: {done.stderr.strip().splitlines()[-1]}")
        return True

    started = time.perf_counter()
    train("alone")
    length = time.perf_counter() - started
    rng, rows = np.random.default_rng(args.seed), []
    for number in tqdm(range(args.number), "killed runs", disable=None):
        name, kills = f"killed{number}", []
        for moment in rng.uniform(0, length, args.kills):
            if train(name, moment):
                break
            kills.append({"after_s": round(float(moment), 2), "epochs": epochs(args.runs_dir / name)})
        train(name)
        found = differences(args.runs_dir / name, args.runs_dir / "alone")
        rows.append({"kills": kills, "equal": not found, "differences": found})
        report.write(args.output, rows, length_s=round(length, 1), epochs=epochs(args.runs_dir / "alone"))
        shutil.rmtree(args.runs_dir / name)
    killed = sum(len(row["kills"]) for row in rows)
    print(f"{killed} kills in {len(rows)} runs; {sum(row['equal'] for row in rows)} ended as the one left alone")


def main(argv=None):
    return run_folder.exit_status(run, parse(argv), "stopped")


if __name__ == "__main__":
    sys.exit(main())
