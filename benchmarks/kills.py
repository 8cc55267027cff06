"""Does a run that is killed end as one that is not? Kills every phase at random moments, and compares the ends.

    python benchmarks/kills.py --output results/kills.json

One run of train.py on a small cohort of synthetic people is left alone. Others are killed (SIGKILL) four times each, at
a random moment after the start of the process, of the VQ-VAE's training, of the prior's and of the sharp decoder's, and
started again by the same command until they end. Then the models' weights, the codes and the histories are compared,
bit for bit.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import shutil
import signal
import subprocess
import sys
import threading
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
    *("--codebook-update", "ema"),
    *("--sharp-epochs", 6),
)
STAGES = ("vqvae", "prior", "sharp")


def parse(argv):
    parser = argparse.ArgumentParser(description="Kill training at random moments and compare with a run left alone.")
    add = parser.add_argument
    add("--runs-dir", type=Path, default=Path("runs/kills"), help="an earlier one is removed (default: %(default)s)")
    add("--output", type=Path, default=Path("results/kills.json"), help="(default: %(default)s)")
    add("--number", type=int, default=5, help="runs to kill, four times each (default: %(default)s)")
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

    program, log = [sys.executable, str(ROOT / "train.py")], args.runs_dir / "train.log"
    begun = {}

    def train(name, phase=None, after_s=0.0):
        """Both commands of a run, all and then sharp; returns whether they ended.

        They are killed `after_s` seconds after the beginning of a phase, where one is given; `begun` notes when each
        phase began.
        """
        timer = None
        for stage in ("all", "sharp"):
            data = ("--data-dir", args.runs_dir / "cohort", "--cache-dir", args.runs_dir / "cache", "--stage", stage)
            command = [*program, *map(str, (*data, "--run-dir", args.runs_dir / name, *SMALL))]
            environment = os.environ | {"PYTHONUNBUFFERED": "1"}
            with log.open("w") as errors:
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
            if stage == "all":
                begun["start"] = time.perf_counter()
                if phase == "start":
                    timer = threading.Timer(after_s, process.kill)
                    timer.start()
            for line in process.stdout:
                told = line.split(": ")[0]
                if told in STAGES and "parameters" in line:
                    begun[told] = time.perf_counter()
                    if told == phase:
                        timer = threading.Timer(after_s, process.kill)
                        timer.start()
            process.stdout.close()
            status = process.wait()
            if status == -signal.SIGKILL:
                return False
            if status:
                raise run_folder.RunError(f"train.py: {log.read_text().strip().splitlines()[-1]}")
        if timer:
            timer.cancel()
        return True

    train("alone")
    times = [*begun.values(), time.perf_counter()]
    lengths = dict(zip(begun, np.diff(times), strict=True))
    rng, rows = np.random.default_rng(args.seed), []
    for number in tqdm(range(args.number), "killed runs", disable=None):
        name, kills = f"killed{number}", []
        for phase, length in lengths.items():
            after_s = rng.uniform(0, length)
            if not train(name, phase, after_s):
                kills.append({"phase": phase, "after_s": round(after_s, 2), "epochs": epochs(args.runs_dir / name)})
        train(name)
        found = differences(args.runs_dir / name, args.runs_dir / "alone")
        rows.append({"kills": kills, "equal": not found, "differences": found})
        about = {"phases_s": {phase: round(float(length), 1) for phase, length in lengths.items()}}
        report.write(args.output, rows, **about, epochs=epochs(args.runs_dir / "alone"))
        shutil.rmtree(args.runs_dir / name)
    killed = sum(len(row["kills"]) for row in rows)
    print(f"{killed} kills in {len(rows)} runs; {sum(row['equal'] for row in rows)} ended as the one left alone")


def main(argv=None):
    return run_folder.exit_status(run, parse(argv), "stopped")


if __name__ == "__main__":
    sys.exit(main())
