"""What a benchmark was run on, for its JSON."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import keras


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
        "accelerators": keras.distribution.list_devices("gpu"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "keras_backend": keras.backend.backend(),
        **{name: version(name) for name in ("tensorflow", "keras", "numpy")},
    }
