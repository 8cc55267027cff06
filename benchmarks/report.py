"""What a benchmark writes: its rows, and the machine they were measured on; and what is read from such rows."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np

import decoding
import devices
import metrics


def write(path, rows, **about):
    """Writes a JSON file with what a benchmark is about, the machine and the rows so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    decoding.write_text(path, json.dumps({"machine": describe(), **about, "rows": rows}, indent=2) + "\n")


def power_above_half(row):
    """Mean share of power that a row's reconstructions keep in the bands above half of Nyquist."""
    return float(np.mean(row["power_ratio"][metrics.BANDS // 2 :]))


def describe():
    """Processor, cores, memory in GiB, accelerators, versions of what computes: a dictionary of JSON values."""
    processor = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        lines = [line.split(":", 1)[1].strip() for line in cpu_info.read_text().splitlines() if "model name" in line]
        processor = lines[0] if lines else processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": processor,
        "cores": cores,
        "memory_gib": round(memory, 1),
        "accelerators": devices.gpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "keras_backend": keras.backend.backend(),
        **{name: version(name) for name in (keras.backend.backend(), "keras", "numpy")},
    }
