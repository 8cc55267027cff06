"""Measures where drawn volumes go wrong: in the decoder, or by what piles up from slice to slice.

    python -m benchmarks.heads --run-dir pretrained/ds002748_heads --output results/ds002748_heads/heads.json

The rows are test people's volumes, and drawn ones. `bits` are those of the slices drawn, given the slice below, in
eight parts from bottom to top: if they rise from part to part while those of real slices do not, errors pile up. The
last row draws each slice given the real one below it: what is wrong there is not piled up.
"""

import sys

from benchmarks import harness

with harness.command(__name__, __doc__, run_dir=harness.RUN, output=harness.OUTPUT) as command:
    import dataset
import numpy as np

from evaluation import heads, realism
from modules import code_lengths
from using.heads import decode
from using.heads import positions as positions_of

NUMBER = 12  # volumes drawn


def bits_by_height(model, stacks, labels):
    """Bits of each code of heads, each (s, grid, grid, D), given the slice below, in eight parts from the bottom."""
    found = []
    for codes, label in zip(stacks, labels, strict=True):
        coarse = model.encode_coarse(model.decode(codes))
        inputs = {
            "codes": codes,
            "coarse": coarse,
            "label": np.full(len(codes), label, "int32"),
            "slice_position": np.linspace(0, 1, len(codes), dtype="float32"),
            "below": np.concatenate([np.full_like(codes[:1], -1), codes[:-1]]),
        }
        found.append(code_lengths(model.models.prior, inputs).mean(axis=(1, 2, 3)))
    return heads.by_height(found)


def given_real(model, real, labels, seed=0):
    """Codes of slices each drawn given the real slice below, (s, grid, grid, D) of a head; the lowest given none."""
    made = []
    for number, (head, label) in enumerate(zip(real, labels, strict=True)):
        codes, coarse = (encode(head / np.float32(255)) for encode in (model.encode, model.encode_coarse))
        of_below = [np.concatenate([np.full_like(x[:1], -1), x[:-1]]) for x in (codes, coarse)]
        slices, positions = [], np.linspace(0, 1, len(codes), dtype="float32")
        for start in range(0, len(codes), 32):
            part = np.arange(start, min(start + 32, len(codes)))
            told = (np.full(len(part), label), positions[part], seed, number * len(codes) + part, 32)
            slices.append(model.sampler.draw(*told, below=[grids[part] for grids in of_below])[0])
        made.append(np.concatenate(slices))
    return made


@command
def main(args):
    data, model = harness.open_run(args.run_dir)
    people, test = (heads.of_people(data, split, len(positions_of(model))) for split in ("train", "test"))
    names, test = list(test), list(test.values())
    extract, size = realism.TextureFeatures(data.image_size), data.image_size
    labels, _ = model.conditions(NUMBER)

    def features(some, plane):
        return heads.view_features(some, plane, model.voxel_mm, extract, size)

    spaces, reached, rows = {}, {}, []
    for plane in ("coronal", "sagittal"):
        spaces[plane] = realism.FeatureSpace(features(list(people.values())[1::2], plane), extract.kinds)
        reached[plane] = spaces[plane](features(test, plane))

    def add(name, some, bits):
        views = {
            plane: realism.frechet_distance(spaces[plane](features(some, plane)), reached[plane]) for plane in spaces
        }
        like = heads.neighbours(some)
        row = {"heads": name, "neighbours": float(np.concatenate(like).mean()), **views}
        row["neighbours_by_height"] = heads.by_height(like)
        rows.append(row | {"bits": bits})
        harness.write(args.output, rows, data=data.title, number=NUMBER)

    def decoded(stacks, alone=False):
        images = (model.decode(codes) if alone else decode(model, codes) for codes in stacks)
        return [(some * 255).round().astype("uint8") for some in images]

    real_codes = [model.encode(head / np.float32(255)) for head in test]
    labels_of = data.of("test").groupby(dataset.scan_of(data.of("test"))).label.first()
    of_people = [model.labels.index(label) + 1 if label else 0 for label in labels_of[names]]
    real_bits = bits_by_height(model, real_codes, of_people)
    add("test people", test, real_bits)
    add("test people, decoded", decoded(real_codes), real_bits)
    add("test people, decoded alone", decoded(real_codes, alone=True), real_bits)
    stacks = np.concatenate([*model.head_sampler.sample_heads(labels, positions_of(model), 0)])
    bits = bits_by_height(model, stacks, labels)
    add("drawn", decoded(stacks), bits)
    add("drawn, decoded alone", decoded(stacks, alone=True), bits)
    stacks = given_real(model, test, of_people)
    add("each slice given the real one below", decoded(stacks), bits_by_height(model, stacks, of_people))


if __name__ == "__main__":
    sys.exit(main())
