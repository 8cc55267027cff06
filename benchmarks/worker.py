"""A process that trains, and answers, when it is told to: what `peers.py` says to one contestant.

It imports nothing beyond the standard library, since contestants live in environments of their own.
"""

import json
import os
import resource
import sys
from pathlib import Path


def peak_mib():
    """The most memory that this process has held; `ru_maxrss` alone begins, on Linux, with that of its parent."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def serve(contestant):
    """Answers requests until standard input ends.

    A request is one line of JSON, `[method, argument]`; the answer is one line, what that method of the contestant
    returns (a dictionary) and `peak_mib`, the most memory that the process has held. Whatever else is printed goes to
    standard error.

    Args:
        contestant: Function without arguments that returns it; the first answer, when it is ready, is unasked.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    made, answer = contestant(), {}
    while True:
        print(json.dumps({**answer, "peak_mib": peak_mib()}), file=answers)
        request = sys.stdin.readline()
        if not request:
            return
        method, argument = json.loads(request)
        answer = getattr(made, method)(argument)
