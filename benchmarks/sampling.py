"""Times three ways through one prior: the textbook loop, the cached sampler, one teacher-forced pass.

    python -m benchmarks.sampling --output results/sampling.json --naive-steps 2
    python -m benchmarks.sampling --memory --grid 32 --batch 64 128 256 512 --output results/sampling_memory.json

The prior has random weights: how long a draw takes does not depend on them. The textbook loop runs the whole network
for every code; it is timed over its first `--naive-steps` codes, which cost the same each. `exact` says that the codes
agree, all of them: a pass over the sampler's grids gives at every place the logits that the textbook loop would have
there, from which the same noise must draw the same code. Sums in another order round differently, so among very many
draws one can lie within a rounding error of the border between two codes; `different_codes` counts them. Memory is the
most that a process of its own has held, with nothing drawn (`before_mib`) and in all (`peak_mib`).
"""

import sys

import numpy as np

import modules
import sampling
from benchmarks import report, worker

NUM_CODES, NUM_LABELS, SEED = 256, 2, 0
SIZES = {"filters": 96, "num_blocks": 10}


def build(grid):
    return modules.PixelCNN(NUM_CODES, 64, grid, NUM_LABELS, **SIZES)


def naive_loop(prior, conditions, uniform, steps):
    """The textbook loop over the first codes: a pass of the whole network for each."""
    codes = np.zeros(uniform.shape, "int32")
    for row, column in list(np.ndindex(uniform.shape[1:]))[:steps]:
        logits = prior.predict_on_batch({**conditions, "codes": codes})[:, row, column]
        codes[:, row, column] = sampling.draw_codes(logits, uniform[:, row, column], temperature=1.0)
    return codes


def measure(prior, batch, naive_steps):
    """One row of the table."""
    grid, sampler = prior.grid_size, sampling.PixelCNNSampler(prior)
    naive_steps = min(naive_steps, grid**2)
    labels, positions = np.arange(batch, dtype="int32") % (NUM_LABELS + 1), np.linspace(0, 1, batch, dtype="float32")
    conditions = {"label": labels, "slice_position": positions}
    uniform = np.stack([sampling.sample_noise(SEED, i, grid) for i in range(batch)])
    drawn = next(sampler.sample(**conditions, seed=SEED, batch_size=batch))
    calls = {
        "cached_s": (lambda: next(sampler.sample(**conditions, seed=SEED, batch_size=batch)), 3),
        "teacher_forced_s": (lambda: prior.predict_on_batch({**conditions, "codes": drawn}), 3),
        "naive_s": (lambda: naive_loop(prior, conditions, uniform, naive_steps), 1),
    }
    first = {name: call() for name, (call, _) in calls.items()}  # which compiles
    times = {name: float(np.median([report.timed(call)[0] for _ in range(n)])) for name, (call, n) in calls.items()}
    times["naive_s"] *= grid**2 / naive_steps
    again = sampling.draw_codes(first["teacher_forced_s"].reshape(-1, NUM_CODES), uniform.ravel(), temperature=1.0)
    different = int((np.reshape(again, drawn.shape) != drawn).sum())
    naive, cached = (codes.reshape(batch, -1)[:, :naive_steps] for codes in (first["naive_s"], drawn))
    return {
        "grid": grid,
        "batch": batch,
        "naive_steps": naive_steps,
        **times,
        "speedup": times["naive_s"] / times["cached_s"],
        "cached_over_teacher_forced": times["cached_s"] / times["teacher_forced_s"],
        "exact": different == 0 and np.array_equal(naive, cached),
        "different_codes": different,
    }


def memory(grid, batch):
    """One row: draws so many samples at once."""
    sampler, before = sampling.PixelCNNSampler(build(grid)), worker.peak_mib()
    next(sampler.sample(np.zeros(batch, int), np.full(batch, 0.5), SEED, batch_size=batch))
    return {"grid": grid, "batch": batch, "before_mib": round(before), "peak_mib": round(worker.peak_mib())}


def run(args):
    rows = []
    for grid in args.grid:
        prior = build(grid)
        about = {"prior": {**SIZES, "parameters": prior.count_params(), "precision": "float32"}}
        for batch in args.batch:
            found = report.alone(memory, grid, batch) if args.memory else measure(prior, batch, args.naive_steps)
            rows.append(found)
            report.write(args.output, rows, **about if not args.memory else {})


main = report.command(
    run,
    __doc__,
    output=report.OUTPUT,
    grid=(report.number(2), [16, 32, 64], "codes along a side"),
    batch=(report.number(1), [1, 16, 64], "samples at a time"),
    naive_steps=(report.number(1), 8, "codes to time the textbook loop on"),
    memory=(bool, False, "measure memory, not time"),
)

if __name__ == "__main__":
    sys.exit(main())
