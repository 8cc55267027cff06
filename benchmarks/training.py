"""How fast both stages train on this machine.

    python -m benchmarks.training --output results/training.json --seconds 5

A step is what `train.py` does: one batch of random slices, or of random codes, at the precision that `--precision auto`
finds. Sizes of models are the defaults for 128 pixels, from 192 on those of `--preset 1mm` (factor 8, two levels), and
from 384 on the same at factor 16, so that the grid of codes stays small. Each step is waited for, which `train.py` does
not do under JAX on an accelerator: there, these are lower bounds.
"""

import sys

from benchmarks import harness

with harness.command(
    __name__,
    __doc__,
    output=harness.OUTPUT,
    image_size=(harness.number(16), [128, 256, 512], "pixels along a side"),
    batch=(harness.number(1), None, "slices of a step (default: that of train.py for each stage)"),
    seconds=(harness.number(0, kind=float), 20.0, "for each row"),
) as command:
    import keras  # noqa: F401
import numpy as np

import train
from running import models, options, plan


def measure(image_size, batch_size, stage, precision, least_s):
    """A row: images/s of one stage."""
    fits = ["--preset", "1mm" if image_size >= 192 else "default", *["--downsampling", "16"] * (image_size >= 384)]
    how = options.train(["--image-size", str(image_size), *fits]).options | {"precision": precision}
    batch_size = batch_size or how[f"{stage}_training"]["batch_size"]
    vqvae, prior = (models.build(name, image_size, 0, how) for name in ("vqvae", "prior"))
    model, grid = vqvae if stage == "vqvae" else prior, vqvae.grid_size
    batch = plan.some_batch(model, batch_size, np.random.default_rng(0))
    model.compile(optimizer=train.optimizer_of(stage))
    rate = batch_size / plan.seconds_each(lambda: model.train_on_batch(batch), least_s)
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
