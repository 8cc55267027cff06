"""How fast both stages train on this machine.

    python -m benchmarks.training --output results/training.json --seconds 5

A step is what `train.py` does: one batch of random slices, or of random codes, with the defaults, at the precision that
`--precision auto` finds. Each step is waited for, which `train.py` does not do under JAX on an accelerator: there,
these are lower bounds.
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
    import keras  # noqa: F401
import numpy as np

import train
from running import models, options


def seconds_each(call, least_s):
    """Mean seconds of a call that waits for its result, over `least_s` or more, after three that do not count."""
    for _ in range(3):
        call()
    number, start = 0, time.perf_counter()
    while number < 3 or time.perf_counter() - start < least_s:
        call()
        number += 1
    return (time.perf_counter() - start) / number


def measure(image_size, batch_size, stage, precision, least_s):
    """A row: images/s of one stage."""
    how = options.train(["--image-size", str(image_size), "--preset", "default"]).options | {"precision": precision}
    batch_size = batch_size or how[f"{stage}_training"]["batch_size"]
    vqvae, prior = (models.build(name, image_size, 0, how) for name in ("vqvae", "prior"))
    rng, grid = np.random.default_rng(0), vqvae.grid_size
    if stage == "vqvae":
        model, optimizer = vqvae, train.vqvae_optimizer(1e-4)
        batch = rng.random((batch_size, image_size, image_size, 1), "float32")
    else:
        model, optimizer = prior, train.prior_optimizer(1e-4, 100)
        codes = rng.integers(0, prior.num_embeddings, (batch_size, grid, grid, 1), "int32")
        batch = {"codes": codes, "label": codes[:, 0, 0, 0] * 0, "slice_position": rng.random(batch_size, "float32")}
        batch["coarse"] = rng.integers(0, 64, (batch_size, 8, 8, 1), "int32")
    model.compile(optimizer=optimizer)
    rate = batch_size / seconds_each(lambda: model.train_on_batch(batch), least_s)
    return {
        "stage": stage,
        "image_size": image_size,
        "grid": grid,
        "batch": batch_size,
        "parameters": model.count_params(),
        "images_per_second": rate,
    }


@command
def main(args):
    precision, rows = models.resolve_precision("auto"), []
    for image_size in args.image_size:
        for stage in ("vqvae", "prior"):
            rows.append(measure(image_size, args.batch, stage, precision, args.seconds))
            harness.write(args.output, rows, precision=precision)


if __name__ == "__main__":
    sys.exit(main())
