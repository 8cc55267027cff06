"""What benchmarks share: their options, runs they train and open, processes of their own, the files they write."""

import argparse
import concurrent.futures
import json
import math
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np

import devices
import files
import losses
import runs
from files import UserError

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = (Path, ..., "a JSON file")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


def at_least(least, kind=int):
    """The type of an option that is a finite number from `least` on."""

    def number(text):
        value = kind(text)
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text}: must be {least} or more")
        return value

    return number


def one_of(names):
    """The type of an option that is one of these words."""

    def name(text):
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text}: choose among {', '.join(names)}")
        return text

    return name


def command(run, about, when_stopped="stopped; what was measured is written", **flags):
    """The `main(argv=None)` of a benchmark, which calls `run` with its options and returns the exit status.

    Args:
        about: The benchmark's docstring, whose first line `--help` shows.
        when_stopped: What is said after Ctrl-C.
        flags: Type, default and meaning of each option; without a default (`...`) it must be given, and one whose
            default is a list takes several values.
    """
    parser = _Parser(description=about.partition("\n")[0], allow_abbrev=False)
    for name, (kind, default, meaning) in flags.items():
        how = {"type": kind, "default": default, "required": default is ...}
        if kind is bool:
            how = {"action": "store_true"}
        elif isinstance(default, list):
            how["nargs"] = "+"
        meaning += " (default: %(default)s)" * (default not in (..., None, False, []))
        parser.add_argument("--" + name.replace("_", "-"), help=meaning, **how)
    return lambda argv=None: files.exit_status(lambda: run(parser.parse_args(argv)), when_stopped)


def train(run_dir, **options):
    """Runs train.py, or goes on with what an earlier call began; an option of None is left out."""
    given = [(f"--{name.replace('_', '-')}", value) for name, value in options.items() if value is not None]
    arguments = [str(part) for part in ("--run-dir", run_dir, *sum(given, ()))]
    if subprocess.run([sys.executable, ROOT / "train.py", *arguments], check=False).returncode:
        raise UserError(f"train.py {' '.join(arguments)}: failed")


def open_run(run_dir):
    """Data, VQ-VAE and prior of a run."""
    data, vqvae = runs.find_data(run_dir, runs.read_config(run_dir)), runs.load_vqvae(run_dir)
    return data, vqvae, runs.load_prior(run_dir, vqvae)


def footer(data):
    """Title and credit of a `dataset.Data`, for the foot of a picture."""
    return runs.footer({"data": vars(data)})


def clear(folder):
    """Removes a folder of an earlier call, which holds a cohort; raises UserError where it is something else."""
    if folder.exists() and not (folder / "cohort").exists():
        raise UserError(f"{folder}: holds something else; give a new folder")
    shutil.rmtree(folder, ignore_errors=True)


def alone(function, *arguments):
    """What a function returns in a process of its own, for the memory that it takes."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except concurrent.futures.BrokenExecutor as error:
            raise UserError(f"the process of {function.__name__}{arguments} ended before its time") from error


def write(path, rows, **about):
    """Writes a JSON file with what a benchmark is about, the machine and the rows so far; says the last row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps({"machine": describe(), **about, "rows": rows}, indent=2) + "\n")
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in rows[-1].items()}
    print(", ".join(f"{name} {value}" for name, value in shown.items() if not isinstance(value, list)), flush=True)


def power_above_half(row):
    """Mean share of power that a row's reconstructions keep in the bands above half of Nyquist."""
    return float(np.nanmean(np.array(row["power_ratio"][losses.BANDS // 2 :], float)))


def describe():
    """Processor, cores, memory in GiB, accelerators, versions of what computes: a dictionary of JSON values."""
    processor, cpu_info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpu_info.exists():
        names = [line.split(":", 1)[1].strip() for line in cpu_info.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    backend = keras.backend.backend()
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "accelerators": devices.gpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "keras_backend": backend,
        **{name: version(name) for name in (backend, "keras", "numpy")},
    }
