"""Times four ways through both priors: the textbook loop, the cached sampler, the same compiled by XLA, one pass.

    python -m benchmarks.sampling --output results/sampling.json --naive-steps 2

A draw is 8 x 8 coarse codes and then a grid of codes, given them. The priors have random weights: how long a draw takes
does not depend on them. The textbook loop runs the whole network for every code; it is timed over its first
`--naive-steps` codes of either grid, which cost the same each. `exact` says that the codes agree, all of them: a pass
over the sampler's grids gives at every place the logits that the textbook loop would have there, from which the same
noise must draw the same code. Sums in another order round differently, so among very many draws one can lie within a
rounding error of the border between two codes: `different_codes` counts them, and `different_compiled` where the
compiled sampler draws another code than the cached one.
"""

import dataclasses
import sys
from functools import partial

from benchmarks import harness

with harness.command(
    __name__,
    __doc__,
    output=harness.OUTPUT,
    grid=(harness.number(2), [16, 32], "codes along a side"),
    batch=(harness.number(1), [1, 16, 64], "samples at a time"),
    naive_steps=(harness.number(1), 8, "codes to time the textbook loop on"),
) as command:
    import modules
import numpy as np

import sampling
from running import options

NUM_CODES, NUM_LABELS, SEED = 256, 2, 0
COARSE = {"num_embeddings": 64, "grid_size": 8}
SIZES = {"filters": 96, "num_blocks": 10}
DRAWN = ("cached_s", "compiled_s")


def build(grid):
    """The prior of coarse codes, as train.py makes it, and one of grids of so many codes a side."""
    of_coarse = dataclasses.asdict(options.CoarsePrior())
    return (
        modules.PixelCNN(COARSE["num_embeddings"], 16, COARSE["grid_size"], NUM_LABELS, **of_coarse),
        modules.PixelCNN(NUM_CODES, 64, grid, NUM_LABELS, {"coarse": COARSE}, **SIZES),
    )


def naive_loop(prior, conditions, uniform, steps):
    """The textbook loop over the first codes: a pass of the whole network for each."""
    codes = np.zeros(uniform.shape, "int32")
    for place in list(np.ndindex(uniform.shape[1:]))[:steps]:  # row, column, level
        at = (slice(None), *place)
        logits = prior.predict_on_batch({**conditions, "codes": codes})[at]
        codes[at] = sampling.draw_codes(logits, uniform[at], temperature=1.0)
    return codes


def measure(priors, batch, naive_steps):
    """One row of the table."""
    of_coarse, prior = priors
    samplers = {name: sampling.SliceSampler(*priors, jit_compile=name == "compiled_s") for name in DRAWN}
    labels, positions = np.arange(batch, dtype="int32") % (NUM_LABELS + 1), np.linspace(0, 1, batch, dtype="float32")
    conditions = {"label": labels, "slice_position": positions}

    def draw(name):
        return samplers[name].draw(labels, positions, SEED, range(batch), batch)

    codes, coarse = draw("cached_s")
    grids = (
        (of_coarse, {**conditions, "codes": coarse}, 1),
        (prior, {**conditions, "coarse": coarse, "codes": codes}, 0),
    )

    def teacher_forced():
        return [model.predict_on_batch(inputs) for model, inputs, _ in grids]

    times, calls = {}, {name: partial(draw, name) for name in DRAWN} | {"teacher_forced_s": teacher_forced}
    for name, call in calls.items():
        first = harness.timed(call)[0]  # which compiles
        times |= {"first_compiled_s": first} if name == "compiled_s" else {}
        times[name] = float(np.median([harness.timed(call)[0] for _ in range(3)]))
    times["naive_s"], different, exact = 0.0, 0, True
    for (model, inputs, which), logits in zip(grids, teacher_forced(), strict=True):
        drawn = inputs["codes"]
        number = drawn[0].size
        uniform = np.stack([sampling.sample_noise(SEED, i, drawn.shape[1:], which) for i in range(batch)])
        again = sampling.draw_codes(logits.reshape(-1, logits.shape[-1]), uniform.ravel(), temperature=1.0)
        different += int((np.reshape(again, drawn.shape) != drawn).sum())
        steps, given = min(naive_steps, number), {key: x for key, x in inputs.items() if key != "codes"}
        seconds, naive = harness.timed(lambda: naive_loop(model, given, uniform, steps))  # noqa: B023
        times["naive_s"] += seconds * number / steps
        exact &= np.array_equal(*(codes.reshape(batch, -1)[:, :steps] for codes in (naive, drawn)))
    return {
        "grid": prior.grid_size,
        "batch": batch,
        "naive_steps": naive_steps,
        **times,
        "speedup": times["naive_s"] / times["cached_s"],
        "cached_over_teacher_forced": times["cached_s"] / times["teacher_forced_s"],
        "compiled_over_teacher_forced": times["compiled_s"] / times["teacher_forced_s"],
        "exact": different == 0 and exact,
        "different_compiled": int((draw("compiled_s")[0] != codes).sum()),
        "different_codes": different,
    }


@command
def main(args):
    rows = []
    for grid in args.grid:
        priors = build(grid)
        about = {**SIZES, "parameters": priors[1].count_params(), "precision": "float32"}
        for batch in args.batch:
            rows.append(measure(priors, batch, args.naive_steps))
            harness.write(args.output, rows, prior=about)


if __name__ == "__main__":
    sys.exit(main())
