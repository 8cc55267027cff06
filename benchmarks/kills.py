"""Does a run that is killed end as one that is not? Kills every phase at random moments, and compares the ends.

    python -m benchmarks.kills --output results/kills.json

One run of train.py on a small cohort of synthetic people is left alone. Others are killed (SIGKILL) at a random moment
of each phase, the start of the process and every stage, and started again by the same command until they end. Then the
models' weights, the codes and the histories are compared, bit for bit.
"""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

from benchmarks import harness

with harness.command(__name__, __doc__, output=harness.OUTPUT) as command:
    import keras
import numpy as np
from tqdm import tqdm

from reading import phantom
from running import run_folder
from system.console import UserError

SMALL = {
    **{"image-size": 32, "base-filters": 8, "num-embeddings": 32, "embedding-dim": 8, "restart-threshold": 0.1},
    **{"num-quantizers": 2, "prior-filters": 16, "prior-dropout": 0.1},
    **{f"{stage}-epochs": 6 for stage in ("vqvae", "coarse", "coarse-prior", "prior", "sharp")},
}
BOTH_PARTS = [part for stage in run_folder.VQVAES for part in (run_folder.BEGINNINGS[stage], stage)]
STAGES, RUNS = (*BOTH_PARTS, *run_folder.PRIORS, "sharp"), 3  # runs to kill, eight times each


def differences(run_dir, other):
    """What differs between two finished runs: a list of words, empty where nothing does."""
    found, folders = [path.name for path in run_dir.glob("*.partial*")], (run_dir, other)
    for stage in STAGES:
        paths = [folder / f"{stage}.keras" for folder in folders]
        if not all(path.exists() for path in paths):
            found += [paths[0].name] * any(path.exists() for path in paths)
            continue
        a, b = (run_folder.read_history(folder / f"{stage}_history.csv") for folder in folders)
        if [row | {"seconds": 0} for row in a] != [row | {"seconds": 0} for row in b]:
            found.append(f"{stage}_history.csv")
        a, b = (keras.saving.load_model(path, compile=False).get_weights() for path in paths)
        if not all(np.array_equal(*pair) for pair in zip(a, b, strict=True)):
            found.append(paths[0].name)
    a, b = (np.load(folder / "codes.npz")["codes"] for folder in folders)
    return found + ["codes.npz"] * (not np.array_equal(a, b))


def epochs(run_dir):
    """Epochs of each stage that a run has in its histories."""
    return [len(run_folder.read_history(run_dir / f"{stage}_history.csv")) for stage in STAGES]


def train(folder, name, phase=None, after_s=0.0):
    """Both commands of a run, all and then sharp, killed so long after the beginning of a phase, where one is given.

    Returns:
        When each phase, "start" or a stage, began, a dictionary; whether the commands came to their end.
    """
    log, begun, timer = folder / "train.log", {}, None
    where = {"data-dir": folder / "cohort", "cache-dir": folder / "cache", "run-dir": folder / name}
    for stage in ("all", "sharp"):
        given = sum(((f"--{key}", str(value)) for key, value in {**where, "stage": stage, **SMALL}.items()), ())
        pipes = {"stdout": subprocess.PIPE, "text": True, "env": os.environ | {"PYTHONUNBUFFERED": "1"}}
        with log.open("w") as errors:
            process = subprocess.Popen([sys.executable, harness.ROOT / "train.py", *given], stderr=errors, **pipes)
        with process.stdout as lines:
            for line in itertools.chain(["start: parameters"] if stage == "all" else [], lines):
                what = line.split(": ")[0]
                if what in ("start", *STAGES) and "parameters" in line:
                    begun[what] = time.perf_counter()
                    if what == phase:
                        timer = threading.Timer(after_s, process.kill)
                        timer.start()
        if process.wait() == -signal.SIGKILL:
            return begun, False
        if process.returncode:
            raise UserError(f"train.py: {log.read_text().strip().splitlines()[-1]}")
    if timer:
        timer.cancel()
    return begun, True


@command
def main(args):
    folder, rows, rng = harness.ROOT / "runs" / "kills", [], np.random.default_rng(0)
    if folder.exists() and not (folder / "cohort").exists():
        raise UserError(f"{folder}: holds something else; move it away")
    shutil.rmtree(folder, ignore_errors=True)
    phantom.make_cohort(folder / "cohort", 20, seed=0)
    begun, _ = train(folder, "alone")
    lengths = dict(zip(begun, np.diff([*begun.values(), time.perf_counter()]).tolist(), strict=True))
    about = {"phases_s": {phase: round(length, 1) for phase, length in lengths.items()}}
    for number in tqdm(range(RUNS), "killed runs", disable=None):
        name, kills = f"killed{number}", []
        for phase, length in lengths.items():
            after_s = rng.uniform(0, length)
            if not train(folder, name, phase, after_s)[1]:
                kills.append({"phase": phase, "after_s": round(after_s, 2), "epochs": epochs(folder / name)})
        train(folder, name)
        found = differences(folder / name, folder / "alone")
        rows.append({"kills": kills, "equal": not found, "differences": found})
        harness.write(args.output, rows, **about, epochs=epochs(folder / "alone"))
        shutil.rmtree(folder / name)
    killed = sum(len(row["kills"]) for row in rows)
    print(f"{killed} kills in {len(rows)} runs; {sum(row['equal'] for row in rows)} ended as the one left alone")


if __name__ == "__main__":
    sys.exit(main())
