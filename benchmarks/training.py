"""How fast both stages train on this machine, and what share of its matrix-product rate they reach.

    python benchmarks/training.py --output results/training.json
    KERAS_BACKEND=jax python benchmarks/training.py --output results/training_gpu.json --batch 128 --image-size 256

A step is what `train.py` does: one batch of random slices, or of random codes, with the defaults, at the precision that
`--precision auto` finds. Floating-point operations are those of the forward pass, counted by the backend in its own
graph (two for each multiplication with addition), times three, since the backward pass takes twice as many. The
machine's rate is that of one large product of two square matrices at the same precision. Each step is given its batch
from the host's memory and waited for, which `train.py` does not do under JAX on an accelerator: there, these are lower
bounds.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import sys
import time
from pathlib import Path

import keras
import numpy as np
from keras import ops

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import devices
import run_folder
import train
from benchmarks import report

MATRIX = {"cpu": 2048, "gpu": 8192}


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
        options = tf.compat.v1.profiler.ProfileOptionBuilder(
            tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
        )
        return tf.compat.v1.profiler.profile(graph, options=options.with_empty_output().build()).total_float_ops
    if keras.backend.backend() == "jax":
        import jax

        state = [[v.value for v in part] for part in (model.trainable_variables, model.non_trainable_variables)]
        run = jax.jit(lambda state, x: model.stateless_call(*state, x)[0])
        return run.lower(state, batch).compile().cost_analysis()["flops"]
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(batch)
    return counter.get_total_flops()


def matrix_rate(precision, least_s):
    """Floating-point operations a second of the product of two square matrices."""
    size = MATRIX["gpu" if devices.gpus() else "cpu"]
    matrix = ops.cast(np.random.default_rng(0).standard_normal((size, size)), precision)
    seconds = seconds_each(lambda: float(ops.matmul(matrix, matrix)[0, 0]), least_s)
    return 2 * size**3 / seconds


def measure(image_size, batch_size, stage, least_s):
    """A row: images/s of one stage, its operations, and the rate they come to."""
    options = train.resolve(train.parse(["--data-dir", ".", "--image-size", str(image_size)]))
    models = dict(zip(("vqvae", "prior"), train.build_models(image_size, 0, options), strict=True))
    rng, grid = np.random.default_rng(0), models["vqvae"].grid_size
    batch = rng.random((batch_size, image_size, image_size, 1), "float32")
    optimizer = train.vqvae_optimizer(1e-4)
    if stage == "prior":
        batch = {
            "codes": rng.integers(0, models["vqvae"].quantizer.num_embeddings, (batch_size, grid, grid), "int32"),
            "label": np.zeros(batch_size, "int32"),
            "slice_position": rng.random(batch_size, "float32"),
        }
        optimizer = train.prior_optimizer(1e-4, 100)
    model = models[stage]
    operations = 3 * forward_operations(model, batch) / batch_size
    model.compile(optimizer=optimizer)
    seconds = seconds_each(lambda: model.train_on_batch(batch), least_s)
    return {
        "stage": stage,
        "image_size": image_size,
        "grid": grid,
        "batch": batch_size,
        "parameters": model.count_params(),
        "images_per_second": batch_size / seconds,
        "operations_per_image": operations,
        "operations_per_second": operations * batch_size / seconds,
    }


def parse(argv):
    parser = argparse.ArgumentParser(description="Time training steps of both stages.")
    add = parser.add_argument
    add("--output", type=Path, required=True, help="a JSON file")
    add("--image-size", type=int, nargs="+", default=[128, 256], help="(default: 128 256)")
    add("--batch", type=int, help="(default: that of train.py for each stage)")
    add("--seconds", type=float, default=20.0, help="for each row (default: %(default)s)")
    return parser.parse_args(argv)


def run(args):
    for name, smallest in (("batch", args.batch), ("image-size", min(args.image_size))):
        if smallest is not None and smallest < 1:
            raise run_folder.RunError(f"--{name} {smallest}: must be 1 or more")
    precision = train.resolve_precision("auto")
    rate = matrix_rate(precision, min(args.seconds, 5.0))
    rows = []
    for image_size in args.image_size:
        for stage in ("vqvae", "prior"):
            row = measure(image_size, args.batch or train.STAGES[stage].batch_size, stage, args.seconds)
            rows.append({**row, "share_of_matrix_rate": row["operations_per_second"] / rate})
            print(
                "{stage}, {image_size} pixels: {images_per_second:.1f} images/s, {gigaflop:.2f} GFLOP an image, "
                "{share_of_matrix_rate:.1%} of the rate of a matrix product".format(
                    **rows[-1], gigaflop=row["operations_per_image"] / 1e9
                ),
                flush=True,
            )
            report.write(args.output, rows, precision=precision, matrix_operations_per_second=rate)


def main(argv=None):
    return run_folder.exit_status(run, parse(argv), "stopped; what was measured is written")


if __name__ == "__main__":
    sys.exit(main())
