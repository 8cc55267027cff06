"""What a stage leaves after each epoch, so that a process that is killed goes on as if it had not been."""

import math
import time

import keras
import pandas as pd

from running.run_folder import MONITORS, is_finished, read_history, save, waited
from system import devices
from system.console import UserError
from system.files import write_text


class Checkpoint(keras.callbacks.Callback):
    """Keeps the best weights, the whole state and the history of a stage after each epoch, and stops it early.

    Keras has a callback for each of these; a process killed between two of them leaves files that disagree, and after
    a resumption early stopping has forgotten what it waited for. Here the history alone says what was best, each file
    is renamed into place, and the state comes last: what it does not cover is computed again.

    Args:
        batches: The training batches, told which epoch it is.
        run_dir, stage: Files are `<stage>.keras`, `<stage>_history.csv` and `<stage>_state.weights.h5`.
        training: The stage's `epochs` and `patience`.
    """

    def __init__(self, batches, run_dir, stage, training):
        super().__init__()
        self.batches = batches
        self.best_path = run_dir / f"{stage}.keras"
        self.history_path = run_dir / f"{stage}_history.csv"
        self.state_path = run_dir / f"{stage}_state.weights.h5"
        self.stage, self.training, self.monitor = stage, training, MONITORS[stage]
        self.history = read_history(self.history_path)
        if self.history and self.monitor not in self.history[0]:
            raise UserError(f"{self.history_path}: damaged (no column {self.monitor}); remove it")

    def finished(self):
        return self.best_path.exists() and is_finished(self.stage, self.history, self.training)

    def begun(self):
        """Whether an earlier process has left what a stage goes on from: without its best model it starts again."""
        return self.state_path.exists() and self.best_path.exists()

    def restore(self):
        """Loads the state of an earlier process, where there is one; returns how many epochs it has seen."""
        if not self.begun():
            self.history = []
            return 0
        self.state_path.open("rb").close()  # raises OSError where it may not be read
        try:
            self.model.load_weights(self.state_path)
        except Exception as error:  # h5py and Keras raise many kinds
            raise UserError(
                f"{self.state_path}: cannot be read ({type(error).__name__}); remove it to start the stage again"
            ) from error
        epoch, more = divmod(int(self.model.optimizer.iterations), len(self.batches))
        if more:
            raise UserError(
                f"{self.state_path}: its epochs had not {len(self.batches)} batches; give as many --devices"
            )
        self.history = self.history[:epoch]
        return epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.monotonic()
        # An epoch's order, dropout and restarts follow from its number.
        self.batches.set_epoch(epoch)
        for variable in self.model.variables:
            if variable.name == "seed_generator_state":  # which Keras does not save
                variable.assign([int(variable[0]), epoch * 1_000_000])

    def on_test_end(self, logs=None):
        # Called inside the epoch's validation, while averaged weights are in the model.
        if logs[self.monitor.removeprefix("val_")] < min((row[self.monitor] for row in self.history), default=math.inf):
            save(self.model.save, self.best_path)

    def on_epoch_end(self, epoch, logs=None):
        for name in ("loss", self.monitor):
            if not math.isfinite(logs[name]):
                raise UserError(
                    f"{self.stage}: {name} is {logs[name]} in epoch {epoch + 1}; lower the learning rate, in another "
                    "--run-dir"
                )
        self.history.append({"epoch": epoch + 1, "seconds": round(time.monotonic() - self.started, 1), **logs})
        if devices.is_first():
            table = pd.DataFrame(self.history).to_csv(index=False, float_format="%.9g", lineterminator="\n")
            write_text(self.history_path, table)
        save(self.model.save_weights, self.state_path)
        if waited(self.stage, self.history) >= self.training["patience"]:
            self.model.stop_training = True
