"""What contestants share that live in environments of their own, on the standard library alone; see `peers.py`."""

import json
import math
import os
import resource
import sys
import time
from pathlib import Path

WARM_UP = 0.1  # of the time


class Contestant:
    """A model in training, which can be stopped and gone on with; its clock runs only while it trains.

    A subclass has `step(share)`, a step of training at this share of the highest learning rate.

    Args:
        compiled_after: Number of first steps that compile and teach nothing.
        seconds: Time of the schedule, a warm-up and a cosine to 0; None keeps the learning rate.
    """

    def __init__(self, compiled_after, seconds):
        self.steps, self.trained_s, self.seconds = -compiled_after, 0.0, seconds

    def warm_up(self):
        """The first steps, whose time does not count."""
        while self.steps < 0:
            self._timed_step()
        self.trained_s = 0.0

    def train(self, until_s):
        """Goes on until the clock shows so many seconds."""
        while self.trained_s < until_s:
            self._timed_step()

    def _timed_step(self):
        start, share = time.perf_counter(), 1.0 if self.steps >= 0 else 0.0
        if self.seconds:
            done = min(1.0, self.trained_s / self.seconds)
            decay = 0.5 * (1 + math.cos(math.pi * max(0.0, done - WARM_UP) / (1 - WARM_UP)))
            share *= min(1.0, done / WARM_UP) * decay
        self.step(share)
        self.steps += 1
        self.trained_s += time.perf_counter() - start

    def row(self, parameters, batch_size, number):
        """What is said of the training, on batches of `number` examples: a dictionary."""
        told = {"parameters": parameters, "training_s": self.trained_s, "steps": self.steps}
        examples = self.steps * batch_size
        return told | {"epochs": examples / number, "examples_per_second": examples / self.trained_s}


def peak_mib():
    """The most memory that this process has held; `ru_maxrss` alone begins, on Linux, with that of its parent."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def serve(contestant):
    """Answers requests until standard input ends; whatever else is printed goes to standard error.

    A request is a line of JSON, `[method, argument]`; the answer is one, too: what that method of the contestant
    returns (a dictionary or None), and `peak_mib`.

    Args:
        contestant: Function without arguments that returns it; the first answer, when it is ready, is unasked.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    made, answer = contestant(), {}
    while True:
        print(json.dumps({**(answer or {}), "peak_mib": peak_mib()}), file=answers)
        request = sys.stdin.readline()
        if not request:
            return
        method, argument = json.loads(request)
        answer = getattr(made, method)(argument)
