"""Times three ways through one prior: the textbook loop, the cached sampler, one teacher-forced pass.

    python benchmarks/sampling.py --output results/sampling.json      # every size
    python benchmarks/sampling.py --output /tmp/sampling.json --grid 32 --batch 16 --naive-steps 4

The prior has 10 layers of 96 features, 256 codes and random weights: how long a draw takes does not depend on them. The
textbook loop runs the whole network for every code; it is timed over its first `--naive-steps` codes, which cost the
same each, and `naive_s` is that times the number of codes. `exact` says that the codes agree, all of them: a pass over
the sampler's grids gives at every place the logits that the textbook loop would have there, from which the same noise
must draw the same code. Sums in another order round differently, so among very many draws one can lie within a
rounding error of the border between two codes; `different_codes` counts them.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import modules
import run_folder
import sampling
from benchmarks import report

NUM_CODES, NUM_LABELS, SEED = 256, 2, 0


def parse(argv):
    parser = argparse.ArgumentParser(description="Time the cached sampler beside the textbook loop.")
    add = parser.add_argument
    add("--output", type=Path, required=True, help="a JSON file")
    add("--grid", type=int, nargs="+", default=[16, 32, 64], help="codes along a side (default: 16 32 64)")
    add("--batch", type=int, nargs="+", default=[1, 16, 64], help="samples at a time (default: 1 16 64)")
    add("--naive-steps", type=int, default=8, help="codes to time the textbook loop on (default: %(default)s)")
    return parser.parse_args(argv)


def seconds(call, repeats):
    """Median time of a call that was made before, so that nothing is compiled in it."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def naive_loop(prior, conditions, uniform, steps):
    """The textbook loop over the first codes: a pass of the whole network for each."""
    codes = np.zeros(uniform.shape, "int32")
    for row, column in list(np.ndindex(uniform.shape[1:]))[:steps]:
        logits = prior.predict_on_batch({**conditions, "codes": codes})[:, row, column]
        codes[:, row, column] = sampling.draw_codes(logits, uniform[:, row, column], temperature=1.0)
    return codes


def measure(prior, batch, naive_steps):
    """One row of the table."""
    grid = prior.grid_size
    naive_steps = min(naive_steps, grid**2)
    conditions = {
        "label": np.arange(batch, dtype="int32") % (NUM_LABELS + 1),
        "slice_position": np.linspace(0, 1, batch, dtype="float32"),
    }
    uniform = np.stack([sampling.sample_noise(SEED, i, grid) for i in range(batch)])
    sampler = sampling.PixelCNNSampler(prior)

    def cached():
        return next(sampler.sample(**conditions, seed=SEED, batch_size=batch))

    codes = cached()
    logits = prior.predict_on_batch({**conditions, "codes": codes})
    again = sampling.draw_codes(logits.reshape(-1, NUM_CODES), uniform.ravel(), temperature=1.0)
    cached_s = seconds(cached, 3)
    teacher_forced_s = seconds(lambda: prior.predict_on_batch({**conditions, "codes": codes}), 3)
    first = naive_loop(prior, conditions, uniform, naive_steps)
    naive_s = seconds(lambda: naive_loop(prior, conditions, uniform, naive_steps), 1) / naive_steps * grid**2
    different = int((np.reshape(again, codes.shape) != codes).sum())
    flat, drawn = first.reshape(batch, -1)[:, :naive_steps], codes.reshape(batch, -1)[:, :naive_steps]
    return {
        "grid": grid,
        "batch": batch,
        "naive_s": naive_s,
        "naive_steps": naive_steps,
        "cached_s": cached_s,
        "teacher_forced_s": teacher_forced_s,
        "speedup": naive_s / cached_s,
        "cached_over_teacher_forced": cached_s / teacher_forced_s,
        "exact": different == 0 and np.array_equal(flat, drawn),
        "different_codes": different,
    }


def run(args):
    for name in ("grid", "batch", "naive_steps"):
        if np.min(getattr(args, name)) < 1:
            raise run_folder.RunError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be 1 or more")
    rows = []
    for grid in args.grid:
        prior = modules.PixelCNN(NUM_CODES, 64, grid, NUM_LABELS, filters=96, num_blocks=10)
        for batch in args.batch:
            rows.append(measure(prior, batch, args.naive_steps))
            about = {"filters": 96, "num_blocks": 10, "parameters": prior.count_params(), "precision": "float32"}
            report.write(args.output, rows, prior=about)
            print(
                "{grid}x{grid}, batch {batch}: naive {naive_s:.0f} s, cached {cached_s:.2f} s ({speedup:.0f} times "
                "faster), teacher-forced {teacher_forced_s:.2f} s, exact: {exact}".format(**rows[-1]),
                flush=True,
            )


def main(argv=None):
    return run_folder.exit_status(run, parse(argv), "stopped; the rows so far are in the file")


if __name__ == "__main__":
    sys.exit(main())
