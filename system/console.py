"""What a person sees of a command: errors in one line, the exit status, progress; no start-up talk.

Nothing heavy is imported here, so that a command can answer `--help` and wrong arguments at once.
"""

import contextlib
import ctypes
import errno
import importlib.metadata
import logging
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

from tqdm import tqdm

REQUIREMENTS = Path(__file__).parent.parent / "requirements.txt"
SECONDS = 10  # between two lines on how far a loop is, where they go into a file


class UserError(ValueError):
    """Something that the user can mend; the message is one line that says what is wrong and what to do."""


def in_a_line(error):
    """The message of any exception, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def prepare():
    """What a program does first: no character, closed stream, or setting of Matplotlib's window stops it later.

    Ends the program where an installed package is older than requirements.txt allows.
    """
    os.environ["MPLBACKEND"] = "agg"  # pictures are files
    keep_memory()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # 2>&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        with contextlib.suppress(AttributeError):  # a notebook's own streams know all characters
            getattr(sys, name).reconfigure(errors="backslashreplace")
    for name, least in re.findall(r"^([\w-]+)[>~]=([\d.]+)", REQUIREMENTS.read_text(encoding="utf-8"), re.MULTILINE):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
            has, needs = ([int(number) for number in re.findall(r"\d+", one)[:3]] for one in (version, least))
            if has < needs:
                raise SystemExit(f"error: {name} {version}: needs {least}; pip install -r requirements.txt")


def keep_memory():
    """Has glibc keep the memory that is given back to it, in one pool; elsewhere nothing is changed.

    As it comes, it gives the arrays of a training step back to the system, which clears every page before the next step
    writes to it again: nearly half of a step's time on two cores.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL("libc.so.6").mallopt
            for name, value in ((-8, 1), (-4, 0), (-1, -1), (-2, 2**28)):  # arenas, mmap, trim threshold, top pad
                mallopt(name, value)


@contextlib.contextmanager
def own_pictures():
    """Inside, no matplotlibrc of the person's changes a picture."""
    matplotlib = sys.modules.get("matplotlib")
    with matplotlib.rc_context() if matplotlib else contextlib.nullcontext():
        if matplotlib:
            matplotlib.rcdefaults()
        yield


def exit_status(run, when_stopped):
    """Calls `run()` for a command line, and says in a line on standard error what ended it early.

    Returns:
        0; 1 for bad input; 130 after Ctrl-C (SIGINT), 143 after SIGTERM, as a scheduler sends it.
    """

    def stop(number, frame):
        raise KeyboardInterrupt(number)

    in_main = threading.current_thread() is threading.main_thread()
    heeded = in_main and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
    before = signal.signal(signal.SIGTERM, stop) if heeded else None
    try:
        with own_pictures():
            run()
    except SystemExit as end:  # of the parser of arguments, which has said why
        return end.code
    except UserError as error:
        print("error:", in_a_line(error), file=sys.stderr)
        return 1
    except OSError as error:
        place = error.filename or ("standard output" if error.errno in (errno.EPIPE, errno.ENOSPC) else None)
        print("error:", f"{place}: {error.strerror}" if place else in_a_line(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        print(when_stopped, file=sys.stderr)
        return 128 + (stopped.args[0] if stopped.args else signal.SIGINT)
    finally:
        if heeded:
            signal.signal(signal.SIGTERM, before)
    return 0


@contextlib.contextmanager
def quietly():
    """Around the first import of Keras: TensorFlow's start-up talk is lost, what goes wrong there still raises.

    TensorFlow writes to file descriptor 2 before any setting of its own applies, once more at its first operation.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for number in (0, 1, 2):  # where one is closed, the next file that is opened would get its number, and the talk
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr:
        sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
        if sys.modules.get("tensorflow"):
            sys.modules["tensorflow"].constant(1)
            logging.getLogger("tensorflow").setLevel(logging.ERROR)  # several samplers in a process are no mistake
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def with_progress(batches, number, description, unit):
    """Yields batches, and tells on standard error how far they are: by a bar, or in a file by a line now and then.

    Without a description nothing is told.
    """
    if description is None:
        yield from batches
        return
    terminal = sys.stderr is not None and sys.stderr.isatty()
    told, done = time.monotonic(), 0
    with tqdm(total=number, desc=description, unit=unit, leave=False, delay=1, disable=not terminal) as bar:
        for batch in batches:
            yield batch
            done += len(batch)
            bar.update(len(batch))
            if not terminal and time.monotonic() - told >= SECONDS:
                told = time.monotonic()
                print(f"{description}: {done} of {number}", file=sys.stderr)
