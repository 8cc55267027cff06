"""Files that are never half written."""

import contextlib
import os
import socket


def write_whole(path, write):
    """Calls a function that writes a file, under another name first, so that no reader ever sees half of it."""
    stem, dot, suffixes = path.name.partition(".")
    partial = path.with_name(f"{stem}.{socket.gethostname()}.{os.getpid()}.partial{dot}{suffixes}")
    with contextlib.ExitStack() as stack:
        stack.callback(partial.unlink, missing_ok=True)
        write(partial)
        partial.replace(path)


def write_text(path, text):
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
