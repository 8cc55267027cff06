"""Several models trained in one process for the same seconds, in turn, so that a slow moment meets all alike."""

import math
import time

import keras
from tqdm import tqdm

import run_folder

COMPILED_AFTER = 5  # steps
WARM_UP = 0.1  # of the time
TURN_S = 10.0


class Contestant:
    """A model in training, which can be stopped and gone on with; its clock runs only while it trains.

    Args:
        name: What its row is called.
        build: Function that returns the model, called after the seed is set.
        optimizer: Function of the highest learning rate.
        learning_rate: That rate.
        batches: `dataset.Batches` of its training data; an epoch's beginning counts as training.
        seconds: Time that it has in all.
        scheduled: Whether the learning rate warms up and falls to 0 by its clock, or stays as it is.
    """

    def __init__(self, name, build, optimizer, learning_rate, batches, seconds, scheduled=True):
        keras.utils.set_random_seed(0)
        self.name, self.seconds, self.batches = name, seconds, batches
        self.learning_rate, self.scheduled = learning_rate, scheduled
        self.model = build()
        self.model.compile(optimizer=optimizer(learning_rate))
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
        if self.steps < 0:  # nothing is learned while it is compiled
            self.model.optimizer.learning_rate = 0.0
        elif self.scheduled:
            done = min(1.0, self.trained_s / self.seconds)
            decay = 0.5 * (1 + math.cos(math.pi * max(0.0, done - WARM_UP) / (1 - WARM_UP)))
            self.model.optimizer.learning_rate = self.learning_rate * min(1.0, done / WARM_UP) * decay
        else:
            self.model.optimizer.learning_rate = self.learning_rate
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


def chosen(args, variants):
    """Names of the variants that `args.variant` asks for, or all, once they and `args.minutes` are seen to make sense.

    Raises:
        RunError: For a name that is none of theirs, or no time at all.
    """
    if not 0 < args.minutes < math.inf:
        raise run_folder.RunError(f"--minutes {args.minutes}: must be above 0")
    for name in args.variant or ():
        if name not in variants:
            raise run_folder.RunError(f"--variant {name}: choose among {', '.join(variants)}")
    return args.variant or list(variants)


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
