"""Files are whole or not there; a command ends with a line and a status."""

import signal

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
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        files.write_whole(path, write)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"the last one"
    files.write_whole(path, picture.save)
    with PIL.Image.open(path) as written:
        assert written.size == (8, 8)


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
