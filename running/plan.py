"""How long a run would take on this machine: a few steps of each stage are made and timed, nothing is kept."""

import functools
import re
import resource
import sys
import time

import numpy as np

import dataset
import modules
from extensions import sharpening
from running import models
from running.options import PRESETS

WIDE, FITS_LARGE = 32, "1mm"  # most codes along a side with the defaults, and the preset that fits beyond


def seconds_each(call, least_s):
    """Mean seconds of a call that waits for its result, over `least_s` or more, after one that does not count."""
    call()
    number, start = 0, time.perf_counter()
    while not number or time.perf_counter() - start < least_s:
        call()
        number += 1
    return (time.perf_counter() - start) / number


def some_batch(model, batch_size, rng):
    """A batch of noise, as a VQ-VAE takes it, or a prior."""
    if isinstance(model, modules.VQVAE):
        return rng.random((batch_size, model.image_size, model.image_size, 1), "float32")

    def codes(num_embeddings, grid_size, num_quantizers=1):
        return rng.integers(0, num_embeddings, (batch_size, grid_size, grid_size, num_quantizers), "int32")

    batch = {"codes": codes(model.num_embeddings, model.grid_size, model.num_quantizers)}
    batch |= {name: codes(**sizes) for name, sizes in model.get_config()["maps"].items()}
    return batch | {"label": np.zeros(batch_size, "int32"), "slice_position": rng.random(batch_size, "float32")}


def minutes_of(stage, data, options, optimizer, least_s=1.0):
    """Minutes that a stage takes, but for compiling: its epochs, each with its validation.

    Args:
        stage: A stage of train.py.
        data: A `dataset.Data`.
        options: Of the run.
        optimizer: Of the stage.
        least_s: How long steps are timed.
    """
    training, rng = options[f"{stage}_training"], np.random.default_rng(0)

    def built(name):
        return models.build(name, data.image_size, len(data.labels), options)

    model = built("vqvae" if stage == "sharp" else stage)
    batch, fetched = some_batch(model, training["batch_size"], rng), 0.0
    if isinstance(model, modules.VQVAE):
        batches = dataset.ChangedImages(data, model.image_size, training["batch_size"], 0, **options["augmentation"])
        fetched = seconds_each(lambda: batches[0], least_s / 4)
    if stage == "sharp":
        beside = sharpening.BESIDE * dataset.has_stacks(data, training["batch_size"], options)
        model = sharpening.with_fine_blocks(model, training["fine_blocks"], beside)
        model = sharpening.Sharpener(model, stack_size=training["batch_size"])
    model.compile(optimizer=optimizer)
    step = seconds_each(lambda: model.train_on_batch(batch), least_s)
    steps, checks = (len(data.of(split)) / training["batch_size"] for split in ("train", "validation"))
    epoch = step * (steps + checks / 3) + fetched * steps  # a check has no backward pass, which is twice the work
    coarse = ["coarse"] if options["coarse"]["image_size"] else []
    for name in {"coarse_prior": coarse, "prior": [*coarse, "vqvae"]}.get(stage, ()):  # which encode the slices
        encoder, at_once = built(name), modules.VQVAE.AT_ONCE
        encode = functools.partial(encoder.encode, some_batch(encoder, at_once, rng))
        epoch += seconds_each(encode, least_s / 4) * len(data.of("train")) / at_once
    return training["epochs"] * epoch / 60


def tell(data, options, stages, optimizer_of, again):
    """Says how long stages take here and in how much memory, and the command that trains, with the preset that fits.

    Args:
        data: A `dataset.Data`.
        options: Of the run.
        stages: Of the command.
        optimizer_of: Function of a stage.
        again: The command without --dry-run.
    """
    side = data.image_size // options["vqvae"]["downsampling"]
    if side > WIDE and not re.search("--preset|--downsampling", again):
        options = options | {"vqvae": options["vqvae"] | PRESETS[FITS_LARGE]}
        again += f" --preset {FITS_LARGE}"
        print(
            f"plan: --preset {FITS_LARGE} fits these slices, {side} x {side} codes without it; so it is counted with it"
        )
    vqvae, minutes = options["vqvae"], {}
    side = data.image_size // vqvae["downsampling"]
    print(f"plan: {side} x {side} codes a slice, {vqvae['num_quantizers']} at each place, of {vqvae['num_embeddings']}")
    for stage in stages:
        minutes[stage] = minutes_of(stage, data, options, optimizer_of(stage))
        print(f"      {stage}: {options[f'{stage}_training']['epochs']} epochs, {told(minutes[stage])}")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    print(f"      in all {told(sum(minutes.values()))}, if nothing else runs here; {used:.1f} GB of memory")
    print(f"      {again}")


def told(minutes):
    """Minutes as text, in hours where there are many."""
    return f"{minutes / 60:.1f} hours" if minutes >= 120 else f"{minutes:.{0 if minutes >= 10 else 1}f} minutes"
