"""What a person sees of a command: errors in one line, the exit status, progress; no start-up talk.

Nothing heavy is imported here, so that a command can answer `--help` and wrong arguments at once.
"""

import contextlib
import logging
import os
import signal
import sys
import threading

from tqdm import tqdm


class UserError(ValueError):
    """Something that the user can mend; the message is one line that says what is wrong and what to do."""


def in_a_line(error):
    """The message of any exception, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


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
        run()
    except SystemExit as end:  # of the parser of arguments, which has said why
        return end.code
    except UserError as error:
        print("error:", in_a_line(error), file=sys.stderr)
        return 1
    except OSError as error:
        print("error:", f"{error.filename}: {error.strerror}" if error.filename else in_a_line(error), file=sys.stderr)
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
    """Yields batches; progress goes to standard error, every ten seconds where that is no terminal.

    Without a description there is none.
    """
    if description is None:
        yield from batches
        return
    pause = 0.1 if sys.stderr.isatty() else 10
    with tqdm(total=number, desc=description, unit=unit, leave=False, delay=1, mininterval=pause) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))
