"""Training on several devices, in one process or in several on as many machines.

Keras's own engine does the work: `keras.distribution.DataParallel` under the JAX backend. A step is then one
computation over the whole batch, of which every device holds its share, so that losses, gradients, the codebook's
counts and the restarts of its entries are those of one device at the same batch, but for the order of sums.

    KERAS_BACKEND=jax python train.py --devices 4

Processes find each other by Keras's own variables: KERAS_DISTRIBUTION_JOB_ADDRESSES (host and port of process 0),
KERAS_DISTRIBUTION_NUM_PROCESSES and KERAS_DISTRIBUTION_PROCESS_ID. All start the same command and see the same files;
the first of them writes.
"""

import contextlib
import math
import os
import sys

import keras
import numpy as np


class DeviceError(ValueError):
    """Devices that cannot be used, or a process that is gone; the message is one line that says what to do."""


def gpus():
    """Names of the accelerators that the backend sees; none where it has none."""
    if keras.backend.backend() == "torch":  # of which keras.distribution knows nothing
        import torch

        return [f"gpu:{index}" for index in range(torch.cuda.device_count())]
    try:
        return keras.distribution.list_devices("gpu")
    except RuntimeError:  # as JAX says that there is none
        return []


def room():
    """Bytes that are free on the one accelerator that computes; 0 where there is none, or where several do.

    Of JAX's alone: to the others Keras feeds batches from the host's memory, wherever they have been.
    """
    if keras.backend.backend() != "jax" or number() > 1 or in_cluster() or not gpus():
        return 0
    import jax

    memory = jax.local_devices()[0].memory_stats() or {}
    return memory.get("bytes_limit", 0) - memory.get("bytes_in_use", 0)


def in_cluster():
    """Whether the environment says that this process is one of several."""
    return "KERAS_DISTRIBUTION_NUM_PROCESSES" in os.environ


def start(number):
    """Joins the other processes, where the environment names them, and takes this many devices (0: all there are).

    To be called before any model is built. In a job of several processes all devices of all of them are taken.

    Raises:
        DeviceError: If there are not as many, or the backend cannot use them.
    """
    if number == 1 and not in_cluster():
        return
    if number < 0:
        raise DeviceError(f"--devices {number}: must be 0 (all) or more")
    if keras.backend.backend() != "jax":
        raise DeviceError(
            f"--devices {number}: several devices need KERAS_BACKEND=jax, and this is {keras.backend.backend()}"
        )
    if in_cluster():
        import jax

        jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of processors; GPUs have their own
        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
        try:
            keras.distribution.initialize()
        except (ValueError, RuntimeError) as error:
            raise DeviceError(f"the processes of this job do not find each other: {error}") from error
    found = keras.distribution.list_devices()
    if number > len(found):
        raise DeviceError(f"--devices {number}: there are {len(found)}")
    taken = found if in_cluster() or number == 0 else found[:number]
    if len(taken) > 1:
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=taken, auto_shard_dataset=False))


def number():
    """Devices that share each batch."""
    distribution = keras.distribution.distribution()
    return 1 if distribution is None else distribution.num_model_replicas


def _jax_says(name):
    """jax.process_index or jax.process_count, without importing JAX where one process works alone."""
    if not in_cluster() or keras.backend.backend() != "jax":
        return {"process_index": 0, "process_count": 1}[name]
    import jax

    return getattr(jax, name)()


def is_first():
    """Whether this is the process that writes."""
    return _jax_says("process_index") == 0


def share(rows):
    """The part of a batch's rows, (n,), that this process feeds; n is a multiple of the number of devices."""
    return np.split(rows, _jax_says("process_count"))[_jax_says("process_index")]


def gather(number, compute):
    """An array of so many rows, of which each process computes its share.

    Args:
        number: Rows, 1 or more.
        compute: Function of the indices of some rows that returns these rows: NumPy, shape (len(indices), ...).
    """
    count, index = _jax_says("process_count"), _jax_says("process_index")
    if count == 1:
        return compute(np.arange(number))
    from jax.experimental import multihost_utils

    each = math.ceil(number / count)
    mine = np.minimum(np.arange(index * each, (index + 1) * each), number - 1)  # all shares are of one size
    return multihost_utils.process_allgather(compute(mine), tiled=True)[:number]


def all_say(yes):
    """Whether what is asked is so in every process."""
    return bool(gather(_jax_says("process_count"), lambda indices: np.full(len(indices), yes)).all())


def wait_for_all(what):
    """Returns when every process has come here."""
    if _jax_says("process_count") > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


@contextlib.contextmanager
def alone():
    """Inside, where there are several processes, models are built and run on this one's first device alone.

    What every process needs to have, such as the codes of all slices, is computed in shares by each for itself and then
    exchanged (`gather`). One process with several devices spreads such work over them.
    """
    distribution = keras.distribution.distribution()
    apart = _jax_says("process_count") > 1
    if apart:
        keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        if apart:
            keras.distribution.set_distribution(distribution)


def spread(batch):
    """A batch of NumPy arrays for `predict_on_batch`, spread over the devices where there are several."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return batch
    return keras.tree.map_structure(
        lambda x: keras.distribution.distribute_tensor(x, distribution.get_data_layout(x.shape)), batch
    )


def local(model):
    """The model, or where there are several processes, a copy of it to be used inside `alone`."""
    if _jax_says("process_count") == 1:
        return model
    copy = type(model).from_config(model.get_config())
    copy.set_weights(model.get_weights())
    return copy


@contextlib.contextmanager
def others_may_end():
    """Inside, what the loss of another process causes becomes a `DeviceError`."""
    try:
        yield
    except Exception as error:
        lost = any(word in str(error) for word in ("Gloo", "NCCL", "UNAVAILABLE", "ABORTED", "DEADLINE", "heartbeat"))
        if _jax_says("process_count") == 1 or not lost:
            raise
        raise DeviceError(
            "another process of this job has ended; start all of them again by the same command, which goes on from "
            "the last whole epoch"
        ) from error


def end(status):
    """Ends this process with an exit status; at once after an error, where JAX would wait minutes for the others."""
    if status and _jax_says("process_count") > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
