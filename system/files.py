"""Files that are never half written, and files of earlier calls."""

import os
import re
import socket

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


def remove_old(folder, pattern):
    """Removes the files of a folder whose whole name matches a regular expression; folders stay."""
    for path in folder.iterdir():
        if re.fullmatch(pattern, path.name) and not path.is_dir():
            path.unlink(missing_ok=True)
