"""Files are whole or not there; a command ends with a line and a status, whatever it is started from."""

import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import matplotlib
import PIL.Image
import pytest

from running import run_folder
from system import console, files


def test_a_file_that_cannot_be_saved_leaves_nothing_behind(tmp_path):
    path = tmp_path / "model.weights.h5"
    path.write_bytes(b"the last one")

    def write(partial):
        assert partial.name.endswith(".weights.h5")  # Keras goes by the ending
        assert partial.stat().st_size == len("the last one")
        partial.write_bytes(b"half of the next")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        run_folder.save(write, path)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"the last one"


def test_half_a_picture_never_stands_under_its_name(tmp_path):
    path = tmp_path / "samples.png"
    path.write_bytes(b"the last one")
    picture = PIL.Image.new("L", (8, 8))

    def write(partial):
        picture.save(partial)
        raise OSError(28, "so it was not written")

    with pytest.raises(OSError, match="No space left on device") as error:
        files.write_whole(path, write)
    assert error.value.filename == str(path)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"the last one"
    files.write_whole(path, picture.save)
    with PIL.Image.open(path) as written:
        assert written.size == (8, 8)


def test_only_what_a_killed_process_left_is_removed(tmp_path):
    left = f"samples.{socket.gethostname()}.17.partial.png"
    own = ["thesis.partial.docx", "download.iso.partial", "a.v1.2.partial.png"]
    for name in (left, *own):
        (tmp_path / name).touch()
    (tmp_path / f"folder.{left}").mkdir()
    files.remove_old(tmp_path, files.PARTIAL)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*own, f"folder.{left}"])


def raise_one(error):
    raise error


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        (lambda: None, 0, ""),
        (lambda: raise_one(console.UserError("a\nb")), 1, "error: a b\n"),
        (
            lambda: raise_one(OSError(28, "No space left on device", "x.h5")),
            1,
            "error: x.h5: No space left on device\n",
        ),
        (lambda: raise_one(BrokenPipeError(32, "Broken pipe")), 1, "error: standard output: Broken pipe\n"),
        (lambda: raise_one(KeyboardInterrupt()), 130, "stopped\n"),
        (lambda: signal.raise_signal(signal.SIGTERM), 143, "stopped\n"),
        (lambda: raise_one(SystemExit(1)), 1, ""),
    ],
)
def test_what_ends_a_command_is_said_in_a_line(capsys, end, status, said):
    before = signal.getsignal(signal.SIGTERM)
    assert console.exit_status(end, "stopped") == status
    assert capsys.readouterr().err == said
    assert signal.getsignal(signal.SIGTERM) is before


def test_characters_and_closed_streams_do_not_stop_a_command():
    program = "from system import console\nconsole.prepare()\nwith console.quietly(): pass\nprint('Démence')"
    done = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" 2>&-', sys.executable, program],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        stdout=subprocess.PIPE,
    )
    assert (done.returncode, done.stdout) == (0, b"D\\xe9mence\n")


def test_pictures_are_the_same_whatever_matplotlib_is_set_to(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "qt7agg")
    console.prepare()
    assert os.environ["MPLBACKEND"] == "agg"
    monkeypatch.setitem(matplotlib.rcParams, "image.origin", "lower")
    seen = []
    console.exit_status(lambda: seen.append(matplotlib.rcParams["image.origin"]), "")
    assert [*seen, matplotlib.rcParams["image.origin"]] == ["upper", "lower"]


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_memory_is_kept_for_the_next_step():
    """A large array that is made again finds pages that need no clearing."""
    program = """
import resource, numpy as np
from system import console
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def some():
    before = faults()
    for _ in range(3):
        np.ones(2**23)  # 64 MB, 16,384 pages
    return faults() - before
some()
print(some())
console.keep_memory()
some()
print(some())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent.parent, capture_output=True, check=True
    )
    before, kept = map(int, done.stdout.split())
    assert kept * 10 < before


def test_packages_that_are_too_old_are_named(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")  # which is gone after this test
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.8.0" if name == "keras" else real(name))
    with pytest.raises(SystemExit, match="error: keras 3.8.0: needs 3.15; pip install"):
        console.prepare()


def test_progress_in_a_file_is_lines(monkeypatch, capsys):
    monkeypatch.setattr(console, "SECONDS", 0)
    assert list(console.with_progress([[1, 2], [3]], 3, "samples", "slice")) == [[1, 2], [3]]
    assert capsys.readouterr().err == "samples: 2 of 3\nsamples: 3 of 3\n"
