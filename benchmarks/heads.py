"""Measures how whole heads are best drawn, and where they go wrong: by order, temperature, given the real slice below.

    python -m benchmarks.heads --run-dir pretrained/ds002748_heads --output results/ds002748_heads/heads.json

Each row is some heads drawn in one way, beside test people's. `bits` are those of the slices drawn, given the slice
below, in eight parts from bottom to top: if they rise from part to part while those of real slices do not, errors pile
up. The last row draws each slice given the real one below it: what is wrong there is not piled up.
"""

import sys
from pathlib import Path

import numpy as np

import dataset
from benchmarks import harness
from evaluation import heads, realism
from modules import code_lengths
from predict import TrainedModel
from running import opening
from running.config import read_config
from using.heads import decode
from using.heads import positions as positions_of

WAYS = {
    "from the lowest": {},
    "from the middle": {"first": 0.5},
    "from the lowest, coarse temperature 0.8": {"coarse_temperature": 0.8},
    "from the lowest, temperature 0.9": {"temperature": 0.9},
    "from the lowest, not smoothed": {"smoothing_mm": 0.0},
}


def bits_by_height(model, stacks, labels):
    """Bits of each code of heads' codes (n, s, grid, grid), given the slice below, in eight parts from the bottom."""
    found, positions = [], positions_of(model)
    for codes, label in zip(stacks, labels, strict=True):
        coarse = model.encode_coarse(model.decode(codes))
        inputs = {
            "codes": codes,
            "coarse": coarse,
            "label": np.full(len(codes), label, "int32"),
            "slice_position": positions,
            "below": np.concatenate([np.full_like(codes[:1], -1), codes[:-1]]),
        }
        found.append(code_lengths(model.models.prior, inputs).mean(axis=(1, 2)))
    return [float(part.mean()) for part in np.array_split(np.mean(found, axis=0), 8)]


def given_real(model, real, labels, seed=0):
    """Codes of slices each drawn given the real slice below: (n, s, grid, grid); the lowest given none."""
    made, positions = [], positions_of(model)
    for number, (head, label) in enumerate(zip(real, labels, strict=True)):
        codes = model.encode(head / np.float32(255))
        coarse = model.encode_coarse(head / np.float32(255))
        beside, of_coarse = (np.concatenate([np.full_like(x[:1], -1), x[:-1]]) for x in (codes, coarse))
        slices = []
        for start in range(0, len(codes), 32):
            part = slice(start, min(start + 32, len(codes)))
            where = np.arange(part.start, part.stop)
            how = {"seed": seed, "batch_size": 32, "noise_index": number * len(codes) + where}
            told = (np.full(len(where), label, "int32"), positions[part], None, None, how)
            slices.append(model.sampler.draw(*told, {"below": beside[part]}, {"below": of_coarse[part]})[0])
        made.append(np.concatenate(slices))
    return np.stack(made)


def run(args):
    data = opening.find_data(args.run_dir, read_config(args.run_dir))
    model = TrainedModel(args.run_dir)
    number = len(positions_of(model))
    people, test = heads.of_people(data, "train", number), list(heads.of_people(data, "test", number).values())
    labels, _ = model.conditions(args.number)
    extract, size = realism.TextureFeatures(data.image_size), data.image_size

    def features(some, plane):
        return heads.view_features(some, plane, model.voxel_mm, extract, size)

    spaces, reached = {}, {}
    for plane in ("coronal", "sagittal"):
        spaces[plane] = realism.FeatureSpace(features(list(people.values())[1::2], plane), extract.kinds)
        reached[plane] = spaces[plane](features(test, plane))

    def row(name, some, bits):
        found = {
            plane: realism.frechet_distance(spaces[plane](features(some, plane)), reached[plane]) for plane in spaces
        }
        like = heads.neighbours(some)
        by_height = [float(part.mean()) for part in np.array_split(like.mean(axis=0), 8)]
        return {
            "heads": name,
            "neighbours": float(like.mean()),
            **found,
            "neighbours_by_height": by_height,
            "bits": bits,
        }

    def decoded(stacks, smoothing_mm=None):
        how = {} if smoothing_mm is None else {"smoothing_mm": smoothing_mm}
        return [(decode(model, codes, **how) * 255).round().astype("uint8") for codes in stacks]

    real_codes = np.stack([model.encode(head / np.float32(255)) for head in test])
    of_people = [model.labels.index(label) + 1 if label else 0 for label in labels_of_test_people(data)]
    rows = [row("test people", test, bits_by_height(model, real_codes, of_people))]
    rows.append(row("test people, decoded", decoded(real_codes), rows[0]["bits"]))
    rows.append(row("test people, decoded, not smoothed", decoded(real_codes, 0.0), rows[0]["bits"]))
    for name, how in WAYS.items():
        temperatures = {key: how[key] for key in ("coarse_temperature", "temperature") if key in how}
        drawer = TrainedModel(args.run_dir, **temperatures) if temperatures else model
        first = round(how.get("first", 0.0) * (len(test[0]) - 1))
        stacks = drawer.sampler.sample_heads(labels, positions_of(model), 0, first, 16)
        stacks = np.concatenate(list(stacks))
        rows.append(row(name, decoded(stacks, how.get("smoothing_mm")), bits_by_height(model, stacks, labels)))
        harness.write(args.output, rows, data=data.title, number=args.number)
    stacks = given_real(model, test, of_people)
    rows.append(row("each slice given the real one below", decoded(stacks), bits_by_height(model, stacks, of_people)))
    harness.write(args.output, rows, data=data.title, number=args.number)


def labels_of_test_people(data):
    """Labels of the test people in the order of `heads.of_people`."""
    test = data.of("test")
    return test.groupby(dataset.scan_of(test), sort=True).label.first().tolist()


main = harness.command(
    run,
    __doc__,
    run_dir=(Path, ..., "a run trained with --neighbours, whose data are at hand"),
    output=harness.OUTPUT,
    number=(harness.number(2), 24, "heads drawn in each way"),
)

if __name__ == "__main__":
    sys.exit(main())
