"""Several models trained in one process for the same seconds, in turn, so that a slow moment meets all alike."""

import dataclasses
import math
from collections.abc import Callable

import keras
from tqdm import tqdm

from benchmarks import harness, worker
from running import models
from system.console import UserError

COMPILED_AFTER, TURN_S = 5, 10.0  # steps, seconds


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model, which `build` returns, and how it is trained; `optimizer` is a function of the highest learning rate.

    That rate warms up and falls to 0 by the contestant's clock, or is not scheduled and stays. `continuous` is the
    share of the time without a quantiser, None for a model that is no `modules.VQVAE`. The rest is train.py's.
    """

    build: Callable
    optimizer: Callable
    learning_rate: float
    batch_size: int
    scheduled: bool = True
    continuous: float | None = None
    precision: str = "auto"
    max_shift: int = 0
    mirrored: float = 0.0


class Contestant(worker.Contestant):
    """A variant in training for so many seconds.

    Args:
        name, variant: What its row is called, and its `Variant`.
        batches: `dataset.Batches` of its training data; an epoch's beginning counts as training.
    """

    def __init__(self, name, variant, batches, seconds):
        super().__init__(COMPILED_AFTER, seconds if variant.scheduled else None)
        self.name, self.variant, self.batches, self.all_seconds = name, variant, batches, seconds
        keras.utils.set_random_seed(0)
        self.model = self.compiled()

    def compiled(self, **changes):
        """The variant's model with other arguments, ready to be trained."""
        with models.precision(models.resolve_precision(self.variant.precision)):
            model = self.variant.build(**changes)
        model.compile(optimizer=self.variant.optimizer(self.variant.learning_rate))
        return model

    def warm_up(self):
        """The first steps. Only when all are built: seeding throws away what is compiled."""
        super().warm_up()
        # Once more, as compiled: the first epoch's beginning counts, like any other's.
        self.trained_s, _ = harness.timed(lambda: self.batches.set_epoch(0))

    def step(self, share):
        epoch, index = divmod(self.steps + COMPILED_AFTER, len(self.batches))
        if index == 0:
            self.batches.set_epoch(epoch)
        self.model.optimizer.learning_rate = self.variant.learning_rate * share
        self.model.train_on_batch(self.batches[index][0])

    def finish(self):
        """Takes the averaged weights, where there are any; what the row says of the training."""
        self.model.optimizer.finalize_variable_values(self.model.trainable_variables)
        return self.row(count(self.model), self.batches.batch_size, self.batches.number)


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


def chosen(option, given, known):
    """The names that an option was given, or all that are known; raises UserError for others."""
    for name in given:
        if name not in known:
            raise UserError(f"{option}: invalid choice: {name!r} (choose from {', '.join(known)})")
    return given or list(known)


def run(args, names, enter, measure, **about):
    """Trains variants, measures each and writes its row, by the options of `harness.RACE`.

    Args:
        names: Of the variants.
        enter: Function of a name and the seconds, which makes a `Contestant`.
        measure: Function of a contestant and the row of its training, which returns what else is in the row.
        about: What the file is about.
    """
    rows = []
    contestants = [enter(name, 60 * args.minutes) for name in tqdm(names, "models", leave=False, disable=None)]
    race(contestants, 60 * args.minutes)
    for one in contestants:
        if one.steps < 1:
            raise UserError(f"--minutes {args.minutes}: too short for a step of {one.name}")
        row = {"variant": one.name, **one.finish()}
        rows.append(row | measure(one, row))
        harness.write(args.output, rows, minutes=args.minutes, **about)
