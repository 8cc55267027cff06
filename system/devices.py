"""Training on several devices, in one process or in several on as many machines.

    KERAS_BACKEND=jax python train.py --devices 4

Keras's `DataParallel` does the work, under JAX. A step is one computation over the whole batch, of which every device
holds its share, so that it is the step of one device, but for the order of sums. What is not a step of training, every
process computes for itself. Processes find each other by Keras's own variables: KERAS_DISTRIBUTION_JOB_ADDRESSES (host
and port of process 0), KERAS_DISTRIBUTION_NUM_PROCESSES and KERAS_DISTRIBUTION_PROCESS_ID. All start the same command
and see the same files; the first of them writes.
"""

import contextlib
import os
import sys

import keras
import numpy as np

from system.console import UserError


def gpus():
    """Names of the accelerators that the backend sees; none where it has none."""
    try:
        return keras.distribution.list_devices("gpu")
    except RuntimeError:  # as JAX says that there is none
        return []


@contextlib.contextmanager
def whole_float32():
    """Inside, GPUs multiply float32 as float32, not with the ten bits of TF32, as backends do by default.

    A code is the entry that a vector lies nearest to. Where two entries are nearly equally near, as for a black
    background, TF32 would choose another code than a processor does, and a prior trained on one would be wrong on the
    other.
    """
    if keras.backend.backend() == "jax":
        import jax

        with jax.default_matmul_precision("float32"):
            yield
        return
    from tensorflow.config import experimental

    before = experimental.tensor_float_32_execution_enabled()
    experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        experimental.enable_tensor_float_32_execution(before)


def start(number):
    """Joins the other processes, where the environment names them, and takes this many devices (0: all there are).

    To be called before any model is built. In a job of several processes all devices of all of them are taken.

    Raises:
        UserError: If there are not as many, or the backend cannot use them.
    """
    in_cluster = "KERAS_DISTRIBUTION_NUM_PROCESSES" in os.environ
    if number == 1 and not in_cluster:
        return
    if keras.backend.backend() != "jax":
        raise UserError(f"--devices {number}: needs KERAS_BACKEND=jax, and this is {keras.backend.backend()}")
    if in_cluster:
        import jax

        jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of processors; GPUs have their own
        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
        try:
            keras.distribution.initialize()
        except (ValueError, RuntimeError) as error:
            raise UserError(f"the processes of this job do not find each other: {error}") from error
    there = keras.distribution.list_devices()
    if number > len(there):
        raise UserError(f"--devices {number}: there are {len(there)}")
    taken = there if in_cluster or number == 0 else there[:number]
    if len(taken) > 1:
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=taken, auto_shard_dataset=False))


def number():
    """Devices that share each batch."""
    distribution = keras.distribution.distribution()
    return 1 if distribution is None else distribution.num_model_replicas


def _process():
    """Number of this process, and how many there are."""
    if keras.distribution.distribution() is None:
        return 0, 1
    import jax

    return jax.process_index(), jax.process_count()


def is_first():
    """Whether this is the process that writes."""
    return _process()[0] == 0


def share(rows):
    """The part of a batch's rows, (n,), that this process feeds; n is a multiple of the number of devices."""
    index, count = _process()
    return np.split(rows, count)[index]


def wait_for_all(what):
    """Returns when every process has come here."""
    if _process()[1] > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def from_first(values):
    """A NumPy array as the first process has it."""
    if _process()[1] == 1:
        return values
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(values))


@contextlib.contextmanager
def others_may_end():
    """Inside, what the loss of another process causes becomes a `UserError`."""
    try:
        yield
    except Exception as error:
        lost = any(word in str(error) for word in ("Gloo", "NCCL", "UNAVAILABLE", "ABORTED", "DEADLINE", "heartbeat"))
        if _process()[1] == 1 or not lost:
            raise
        raise UserError("another process of this job has ended; start all again by the same command") from error


def end(status):
    """Ends this process with an exit status; at once after an error, where JAX would wait minutes for the others."""
    if status and _process()[1] > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
