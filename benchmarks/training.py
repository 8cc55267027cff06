"""How fast both stages train on this machine, and what share of its matrix-product rate they reach.

    python -m benchmarks.training --output results/training.json --seconds 5

A step is what `train.py` does: one batch of random slices, or of random codes, with the defaults, at the precision that
`--precision auto` finds. Floating-point operations are those of the forward pass, counted by the backend in its own
graph (two for each multiplication with addition), times three, since the backward pass takes twice as many. The
machine's rate is that of one large product of two square matrices at the same precision. Each step is waited for, which
`train.py` does not do under JAX on an accelerator: there, these are lower bounds.
"""

import sys
import time

from benchmarks import harness

with harness.command(
    __name__,
    __doc__,
    output=harness.OUTPUT,
    image_size=(harness.number(16), [128, 256], "pixels along a side"),
    batch=(harness.number(1), None, "slices of a step (default: that of train.py for each stage)"),
    seconds=(harness.number(0, kind=float), 20.0, "for each row"),
) as command:
    import keras
import numpy as np
from keras import ops

import train
from running import models, options
from system import devices


def seconds_each(call, least_s):
    """Mean seconds of a call that waits for its result, over `least_s` or more, after three that do not count."""
    for _ in range(3):
        call()
    number, start = 0, time.perf_counter()
    while number < 3 or time.perf_counter() - start < least_s:
        call()
        number += 1
    return (time.perf_counter() - start) / number


def forward_operations(model, batch):
    """Floating-point operations of a forward pass over a batch, counted by the backend."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        told = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), batch)
        graph = tf.function(lambda x: model(x)).get_concrete_function(told).graph
        kind = tf.compat.v1.profiler.ProfileOptionBuilder
        how = kind(kind.float_operation()).with_empty_output().build()
        return tf.compat.v1.profiler.profile(graph, options=how).total_float_ops
    import jax

    state = [[v.value for v in part] for part in (model.trainable_variables, model.non_trainable_variables)]
    run = jax.jit(lambda state, x: model.stateless_call(*state, x)[0])
    return run.lower(state, batch).compile().cost_analysis()["flops"]


def measure(image_size, batch_size, stage, precision, least_s):
    """A row: images/s of one stage, its operations, and the rate they come to."""
    how = options.train(["--image-size", str(image_size), "--preset", "default"]).options | {"precision": precision}
    batch_size = batch_size or how[f"{stage}_training"]["batch_size"]
    vqvae, prior = (models.build(name, image_size, 0, how) for name in ("vqvae", "prior"))
    rng, grid = np.random.default_rng(0), vqvae.grid_size
    if stage == "vqvae":
        model, optimizer = vqvae, train.vqvae_optimizer(1e-4)
        batch = rng.random((batch_size, image_size, image_size, 1), "float32")
    else:
        model, optimizer = prior, train.prior_optimizer(1e-4, 100)
        codes = rng.integers(0, prior.num_embeddings, (batch_size, grid, grid), "int32")
        batch = {"codes": codes, "label": codes[:, 0, 0] * 0, "slice_position": rng.random(batch_size, "float32")}
        batch["coarse"] = rng.integers(0, 64, (batch_size, 8, 8), "int32")
    operations = 3 * forward_operations(model, batch) / batch_size
    model.compile(optimizer=optimizer)
    rate = batch_size / seconds_each(lambda: model.train_on_batch(batch), least_s)
    return {
        "stage": stage,
        "image_size": image_size,
        "grid": grid,
        "batch": batch_size,
        "parameters": model.count_params(),
        "images_per_second": rate,
        "operations_per_image": operations,
        "operations_per_second": operations * rate,
    }


@command
def main(args):
    precision, size, rows = models.resolve_precision("auto"), 8192 if devices.gpus() else 2048, []
    matrix = ops.cast(np.random.default_rng(0).standard_normal((size, size)), precision)
    seconds = seconds_each(lambda: float(ops.matmul(matrix, matrix)[0, 0]), min(args.seconds, 5.0))
    matrix_rate = 2 * size**3 / seconds
    for image_size in args.image_size:
        for stage in ("vqvae", "prior"):
            row = measure(image_size, args.batch, stage, precision, args.seconds)
            rows.append({**row, "share_of_matrix_rate": row["operations_per_second"] / matrix_rate})
            harness.write(args.output, rows, precision=precision, matrix_operations_per_second=matrix_rate)


if __name__ == "__main__":
    sys.exit(main())
