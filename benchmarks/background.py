"""What `--background black` takes away: ten whole heads of a BIDS folder, with what is removed tinted red.

python -m benchmarks.background --data-dir ../shared/data/ixi --output results/background.png
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import dataset
from evaluation import figures
from reading import decoding, layouts
from system import console

HEADS, HEIGHTS = 10, (3, 11, 19, 27)


def run(args):
    _, sources, _ = layouts.find(args.data_dir)
    chosen = [sources[i] for i in np.linspace(0, len(sources) - 1, HEADS).astype(int)]
    figure = Figure(figsize=(13, 6.2), layout="constrained")
    for column, source in zip(figure.subplots(len(HEIGHTS), HEADS).T, chosen, strict=True):
        kept, black = (decoding.read_volume(source.path, decoding.How(background=b))[1] for b in ("keep", "black"))
        column[0].set_title(source.subject_id, fontsize=7)
        for axis, height in zip(column, HEIGHTS, strict=True):
            left = black[height] / 255
            removed = np.minimum(15 * (kept[height].astype(float) - black[height]), 255) / 255
            axis.imshow(np.stack([np.maximum(left, removed), left, left], -1))
            axis.set_xticks([])
            axis.set_yticks([])
    title, credit, _ = dataset.describe(args.data_dir)
    said = "red: what --background black removes, fifteen times as bright as it is"
    figures.finish(figure, args.output, f"{said}\n{title}\n{credit}")


def main(argv=None):
    parser = argparse.ArgumentParser(description="Draw what --background black takes away.")
    parser.add_argument("--data-dir", type=Path, required=True, help="BIDS volumes of whole heads")
    parser.add_argument("--output", type=Path, required=True, help="a PNG")
    return console.exit_status(lambda: run(parser.parse_args(argv)), "stopped")


if __name__ == "__main__":
    sys.exit(main())
