"""Several models trained in one process for the same seconds, in turn, so that a slow moment meets all alike."""

import dataclasses
import math
import time
from collections.abc import Callable

import keras
from tqdm import tqdm

import runs
from benchmarks import report

COMPILED_AFTER = 5  # steps
WARM_UP = 0.1  # of the time
TURN_S = 10.0


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model and how it is trained.

    Attributes:
        build: Function that returns the model.
        optimizer: Function of the highest learning rate.
        scheduled: Whether that rate warms up and falls to 0 by the contestant's clock, or stays as it is.
        precision, max_shift: As for train.py.
    """

    build: Callable
    optimizer: Callable
    learning_rate: float
    batch_size: int
    scheduled: bool = True
    precision: str = "auto"
    max_shift: int = 0


class Contestant:
    """A model in training, which can be stopped and gone on with; its clock runs only while it trains.

    Args:
        name, variant: What its row is called, and its `Variant`.
        batches: `dataset.Batches` of its training data; an epoch's beginning counts as training.
        seconds: Time that it has in all.
    """

    def __init__(self, name, variant, batches, seconds):
        runs.set_precision(runs.resolve_precision(variant.precision))
        keras.utils.set_random_seed(0)
        self.name, self.variant, self.batches, self.seconds = name, variant, batches, seconds
        self.model = variant.build()
        self.model.compile(optimizer=variant.optimizer(variant.learning_rate))
        self.steps, self.trained_s = -COMPILED_AFTER, 0.0

    def warm_up(self):
        """The first steps, whose time does not count. Only when all are built: seeding throws away what is compiled."""
        while self.steps < 0:
            self._step()
        start = time.perf_counter()
        self.batches.set_epoch(0)  # once more, as compiled: the first epoch's beginning counts, like any other's
        self.trained_s = time.perf_counter() - start

    def train(self, until_s):
        """Goes on until its clock shows so many seconds."""
        while self.trained_s < until_s:
            self._step()

    def _step(self):
        start = time.perf_counter()
        epoch, index = divmod(self.steps + COMPILED_AFTER, len(self.batches))
        if index == 0:
            self.batches.set_epoch(epoch)
        rate = self.variant.learning_rate if self.steps >= 0 else 0.0  # nothing is learned while it is compiled
        if self.variant.scheduled:
            done = min(1.0, self.trained_s / self.seconds)
            decay = 0.5 * (1 + math.cos(math.pi * max(0.0, done - WARM_UP) / (1 - WARM_UP)))
            rate *= min(1.0, done / WARM_UP) * decay
        self.model.optimizer.learning_rate = rate
        self.model.train_on_batch(self.batches[index][0])
        self.steps += 1
        self.trained_s += time.perf_counter() - start

    def finish(self):
        """Takes the averaged weights, where there are any; what the row says of the training."""
        self.model.optimizer.finalize_variable_values(self.model.trainable_variables)
        examples = self.steps * self.batches.batch_size
        return {
            "parameters": count(self.model),
            "training_s": self.trained_s,
            "steps": self.steps,
            "epochs": examples / self.batches.number,
            "examples_per_second": examples / self.trained_s,
        }


def count(model):
    """Trained parameters."""
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


def race(contestants, seconds):
    """Trains all of them for so many seconds each, ten seconds at a time in turn."""
    for one in contestants:
        one.warm_up()
    turns = math.ceil(seconds / TURN_S)
    for turn in tqdm(range(1, turns + 1), "turns", leave=False, disable=None):
        for one in contestants:
            one.train(seconds * turn / turns)


def flags(variants):
    """The options that `compare` needs, for `report.command`."""
    return {
        "output": report.OUTPUT,
        "minutes": (report.at_least(0.001, float), 1.5, "training time of each"),
        "variant": (report.one_of(variants), [], "which (default: all)"),
    }


def compare(args, variants, enter, measure, **about):
    """Trains the variants that were asked for, measures each and writes its row.

    Args:
        args: The options of `flags`.
        enter: Function of a name, a variant and the seconds; returns its `Contestant`.
        measure: Function of a contestant and the row of its training; returns what else is in the row.
    """
    seconds, rows = 60 * args.minutes, []
    names = tqdm(args.variant or variants, "models", leave=False, disable=None)
    contestants = [enter(name, variants[name], seconds) for name in names]
    race(contestants, seconds)
    for one in contestants:
        row = {"variant": one.name, **one.finish()}
        rows.append(row | measure(one, row))
        report.write(args.output, rows, minutes=args.minutes, **about)
