"""What benchmarks share: their options, the runs they train and open, the files they write. It is imported at once."""

import argparse
import contextlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from system import console, files
from system.console import UserError

ROOT = Path(__file__).resolve().parent.parent


def number(least, most=math.inf, kind=int):
    """The type of an option that is a finite number within limits."""

    def parse(text):
        value = kind(text)
        if not least <= value <= most or value == math.inf:
            limits = f"{least} or more" if most == math.inf else f"{least} to {most}"
            raise argparse.ArgumentTypeError(f"{text}: must be {limits}")
        return value

    parse.__name__ = kind.__name__  # which argparse names where there is no number
    return parse


OUTPUT = (Path, ..., "a JSON file")
RUN = (Path, ..., "a run whose data are at hand")
MINUTES = number(0.001, kind=float)
RACE = {  # options of `race.run`
    "output": OUTPUT,
    "minutes": (MINUTES, 1.5, "training time of each"),
    "variant": (str, [], "which (default: all)"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(1, f"error: {message}\n")


@contextlib.contextmanager
def command(name, about, when_stopped="stopped; what was measured is written", **flags):
    """The command line of a benchmark, around its import of Keras.

    As a program it answers --help and wrong options before that import, which takes seconds; TensorFlow says nothing.

    Args:
        name: The benchmark's `__name__`.
        about: Its docstring, whose first line --help shows.
        flags: Type (or list of words), default and meaning of each option. One without a default (`...`) must be given,
            one whose default is a list takes several values.

    Yields:
        A decorator that makes `main(argv=None)`, which returns the exit status, of a function of the options.
    """
    parser = _Parser(description=about.partition("\n")[0], allow_abbrev=False)
    for flag, (kind, default, meaning) in flags.items():
        how = {"default": default, "required": default is ..., "nargs": "+" if isinstance(default, list) else None}
        how |= {"choices": kind, "metavar": "NAME"} if isinstance(kind, list) else {"type": kind}
        meaning += " (default: %(default)s)" * (default not in (..., None, []))
        parser.add_argument("--" + flag.replace("_", "-"), help=meaning, **how)
    if name == "__main__":
        parser.parse_args()
    with console.quietly():
        yield lambda run: lambda argv=None: console.exit_status(lambda: run(parser.parse_args(argv)), when_stopped)


def train(run_dir, **options):
    """Runs train.py with the options that are not None, or goes on; returns what `open_run` does."""
    given = [(f"--{name.replace('_', '-')}", value) for name, value in options.items() if value is not None]
    arguments = [str(part) for part in ("--run-dir", run_dir, *sum(given, ()))]
    if subprocess.run([sys.executable, ROOT / "train.py", *arguments], check=False).returncode:
        raise UserError(f"train.py {' '.join(arguments)}: failed")
    return open_run(run_dir, "plain")


def open_run(run_dir, decoder=None):
    """Data and `TrainedModel` of a run."""
    from predict import TrainedModel
    from running import opening
    from running.config import read_config

    return opening.find_data(run_dir, read_config(run_dir)), TrainedModel(run_dir, decoder)


def timed(call):
    """Seconds that a call takes, and what it returns."""
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def means(summary):
    """Columns of a row, by name: the mean and, under "{name}_ci95", the interval of each `metrics.over_people`."""
    rows = ({name: found["mean"], f"{name}_ci95": found["ci95"]} for name, found in summary.items())
    return {name: value for row in rows for name, value in row.items()}


def write(path, rows, **about):
    """Writes a JSON file with what a benchmark is about, the machine and the rows so far; says the last row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps({"machine": describe(), **about, "rows": rows}, indent=2) + "\n")
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in rows[-1].items()}
    print(", ".join(f"{name} {value}" for name, value in shown.items() if not isinstance(value, list)), flush=True)


def describe():
    """Processor, cores, memory in GiB, accelerators, versions of what computes: a dictionary of JSON values."""
    import keras

    from system import devices

    cpu_info, backend = Path("/proc/cpuinfo"), keras.backend.backend()
    names = re.findall(r"model name\s*:\s*(.*)", cpu_info.read_text()) if cpu_info.exists() else []
    return {
        "processor": next(iter(names), platform.processor() or platform.machine()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "accelerators": devices.gpus(),
        "python": platform.python_version(),
        "keras_backend": backend,
        **{name: version(name) for name in (backend, "keras", "numpy")},
    }
