"""Files that are never half written, and files of earlier calls."""

import csv
import io
import os
import re
import socket

from PIL.PngImagePlugin import PngInfo

from system.console import in_a_line

# What `write_whole` leaves of a process of this machine that was killed; nothing else has such a name.
PARTIAL = re.compile(rf"[^.]+\.{re.escape(socket.gethostname())}\.\d+\.partial(\..+)?")


def write_whole(path, write):
    """Calls a function that writes a file, under another name first, so that no reader ever sees half of it.

    Raises:
        OSError: If it cannot be written; it names the file.
    """
    stem, dot, suffixes = path.name.partition(".")
    partial = path.with_name(f"{stem}.{socket.gethostname()}.{os.getpid()}.partial{dot}{suffixes}")
    try:
        write(partial)
        partial.replace(path)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else in_a_line(error)
        raise OSError(error.errno, why, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path, text):
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_csv(path, rows):
    """Writes dictionaries of the same keys as a table, their keys above; an empty one for None."""
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, table.getvalue())


def write_image(path, picture, about):
    """Writes a PIL image; in a PNG stands what it is, a dictionary, as text by name."""
    text = PngInfo()
    for name, value in about.items():
        text.add_text(name, str(value))
    more = {"pnginfo": text} if path.suffix == ".png" else {}
    write_whole(path, lambda partial: picture.save(partial, **more))


def remove_old(folder, pattern):
    """Removes the files of a folder whose whole name matches a regular expression; folders stay."""
    for path in folder.iterdir():
        if re.fullmatch(pattern, path.name) and not path.is_dir():
            path.unlink(missing_ok=True)
