"""What a stage of training goes on from, wherever it was stopped or killed."""

import contextlib
import math
import os
import signal
import threading
import time

import h5py
import keras
import numpy as np

import decoding
import devices
import run_folder

ONE_SIGNAL_S = 1.0


class Checkpoint(keras.callbacks.Callback):
    """Keeps the best weights, the whole state and the history of a stage, and stops it early.

    Keras has a callback for each of these; a process killed between two of them leaves files that disagree, and after
    a resumption early stopping has forgotten what it waited for. Here the history alone says what was best, each file
    is renamed into place, and the state comes last: what it does not cover is computed again.

    SIGINT and SIGTERM wait for the running step, and the state is that of the middle of an epoch; see `signals_wait`.

    Args:
        batches: The training batches, told which epoch it is.
        run_dir, stage: Files are `<stage>.keras`, `<stage>_history.csv` and `<stage>_state.weights.h5`.
        monitor: Metric to be small on validation.
        patience: Epochs without a better one before the stage ends.
        vqvae_fingerprint: `VQVAE.fingerprint` of the model whose codes the stage learns, or whose decoder; "" for the
            VQ-VAE itself. The middle of a first epoch, which no model of the stage speaks for yet, is kept with it.
    """

    def __init__(self, batches, run_dir, stage, monitor, patience, vqvae_fingerprint=""):
        super().__init__()
        self.batches = batches
        self.best_path = run_dir / f"{stage}.keras"
        self.history_path = run_dir / f"{stage}_history.csv"
        self.state_path = run_dir / f"{stage}_state.weights.h5"
        self.middle = None  # of the epoch in which an earlier process was stopped, until it goes on
        self.unsaved = False  # whether a step has begun that no file knows of
        self.stopped_by = None  # the signal that has come
        self.stopped_at = 0.0  # and when, by the monotonic clock
        self.vqvae_fingerprint = vqvae_fingerprint
        self.monitor = monitor
        self.patience = patience
        self.history = run_folder.read_history(self.history_path)

    def _since_best(self):
        """Epochs since the best one; 0 if that was the last."""
        try:
            values = [row[f"val_{self.monitor}"] for row in self.history]
        except KeyError as error:
            raise run_folder.RunError(f"{self.history_path}: damaged (no column {error}); remove it") from error
        return len(values) - 1 - int(np.argmin(values)) if values else 0

    def finished(self, epochs):
        return self.best_path.exists() and (len(self.history) >= epochs or self._since_best() >= self.patience)

    def restore(self):
        """Loads the state of an earlier process into the model, if there is one.

        Returns:
            How many epochs it has seen, and how many batches of the next one.
        """
        self.batches.first = 0
        if not self.state_path.exists():
            self.history = []
            return 0, 0
        try:
            middle = self._read_middle()
            in_first = middle and middle["epoch"] == 0 and middle["vqvae"] == self.vqvae_fingerprint
            if not self.best_path.exists() and not in_first:
                self.history = []  # without its best model a stage starts again
                return 0, 0
            self.middle = middle
            self.model.load_weights(self.state_path)
        except Exception as error:  # h5py and Keras raise many kinds
            raise run_folder.RunError(
                f"{self.state_path}: cannot be read ({type(error).__name__}); remove it to start the stage again"
            ) from error
        epoch, batch = divmod(int(self.model.optimizer.iterations), len(self.batches))
        belongs = self.middle["batches"] == len(self.batches) if self.middle else batch == 0
        if not belongs:
            raise run_folder.RunError(
                f"{self.state_path}: its epochs had not {len(self.batches)} batches; give as many --devices as before"
            )
        self.history = self.history[:epoch]
        return epoch, batch

    def _generators(self):
        """States of the model's random generators, which Keras does not save."""
        return [variable for variable in self.model.variables if variable.name == "seed_generator_state"]

    def _running(self):
        """What an epoch begins anew: states of generators, and sums of metrics."""
        return [*self._generators(), *self.model.metrics_variables]

    def _save_middle(self):
        """Keeps the middle of an epoch: a state, and in the same file what a state lacks."""

        def write(path):
            self.model.save_weights(path)
            with h5py.File(path, "a") as file:
                group = file.create_group("middle")
                group.attrs["epoch"] = self.epoch
                group.attrs["batches"] = self.batches.first + len(self.batches)
                group.attrs["seconds"] = time.monotonic() - self.started
                group.attrs["vqvae"] = self.vqvae_fingerprint
                for index, variable in enumerate(self._running()):
                    group[str(index)] = keras.ops.convert_to_numpy(variable)

        run_folder.save(write, self.state_path)

    def _read_middle(self):
        """What `_save_middle` has added to the state; None where it is that of a whole epoch."""
        with h5py.File(self.state_path) as file:
            if "middle" not in file:
                return None
            group = file["middle"]
            middle = {name: group.attrs[name] for name in ("epoch", "batches", "seconds", "vqvae")}
            values = [group[str(index)][()] for index in range(len(group))]
        if [value.shape for value in values] != [tuple(variable.shape) for variable in self._running()]:
            raise ValueError("the middle of an epoch of another model")
        return middle | {"values": values}

    @contextlib.contextmanager
    def signals_wait(self):
        """Inside, SIGINT and SIGTERM end the process when the running step is done and kept; a second one at once.

        Two within a second are one, which has come by two ways: `make` sends on what its whole group was sent. A signal
        that is ignored, as a script's jobs in the background ignore SIGINT, stays so.
        An epoch of which all steps are done is validated first. Processes of a cluster do not get a signal in the same
        step: they end at once, and go on from the last whole epoch.
        """
        if devices.in_cluster() or threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number, frame):
            again, since = self.stopped_by is not None, time.monotonic() - self.stopped_at
            if again and since < ONE_SIGNAL_S:
                return
            self.stopped_at = time.monotonic()
            self.stopped_by = number
            if again or not self.unsaved:
                raise KeyboardInterrupt(number)
            os.write(2, b"\nstopping after the running step; once more stops at once\n")  # print may be at work already

        heeded = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
        before = {number: signal.signal(number, stop) for number in heeded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.started = epoch, time.monotonic()
        # An epoch's order, dropout and restarts follow from its number.
        self.batches.set_epoch(epoch)
        for variable in self._generators():
            variable.assign([int(variable[0]), epoch * 1_000_000])
        if self.middle:
            self.started -= float(self.middle["seconds"])
            for variable, value in zip(self._running(), self.middle["values"], strict=True):
                variable.assign(value)
            self.middle = None

    def on_train_batch_begin(self, batch, logs=None):
        # Not when a step ends: Keras would then wait for each step's metrics, and an accelerator for the next batch.
        if self.stopped_by:
            self._save_middle()
            raise KeyboardInterrupt(self.stopped_by)
        self.unsaved = True

    def on_test_end(self, logs=None):
        # Called inside the epoch's validation, while averaged weights are in the model.
        best = min((row[f"val_{self.monitor}"] for row in self.history), default=math.inf)
        if logs[self.monitor] < best:
            run_folder.save(self.model.save, self.best_path)

    def on_epoch_end(self, epoch, logs=None):
        if not math.isfinite(logs["loss"]):
            raise run_folder.RunError(
                f"the loss is {logs['loss']} in epoch {epoch + 1}: lower the learning rate, in another --run-dir"
            )
        self.history.append({"epoch": epoch + 1, "seconds": round(time.monotonic() - self.started, 1), **logs})
        columns = list(self.history[0])
        lines = [columns, *([f"{row[c]:.9g}" for c in columns] for row in self.history)]
        if devices.is_first():
            decoding.write_text(self.history_path, "".join(",".join(line) + "\n" for line in lines))
        run_folder.save(self.model.save_weights, self.state_path)
        self.unsaved = False
        if self.stopped_by:
            raise KeyboardInterrupt(self.stopped_by)
        if self._since_best() >= self.patience:
            self.model.stop_training = True
