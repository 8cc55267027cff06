"""Measures a trained run: reconstructions, codes and prior on the test people, and samples against them.

    python evaluate.py                                            # the demo run
    python evaluate.py --run-dir runs/ixi --output-dir results/ixi --num-samples 1000

Writes to --output-dir: report.html, which shows everything; metrics.json and people.csv, its figures; its pictures as
PNG. From 100 samples on it also says how they stand to the test people. `predict.py` draws.
"""

import dataclasses
import json
import math
import shlex
import sys

from running import options
from system import console, files
from system.console import UserError

if __name__ == "__main__":
    options.evaluate()  # --help and wrong options are answered here, before TensorFlow is imported, which takes seconds
with console.quietly():
    import keras  # noqa: F401
import numpy as np

import predict
from evaluation import figures, heads, metrics, pictures, realism, report
from evaluation.measure import find_faults, measure, without_black
from predict import TrainedModel
from running import opening, run_folder
from system import devices
from using import heads as drawn_heads
from using import inputs

FEWEST_JUDGED = 100  # samples
ALONE = 4  # volumes whose slices are drawn alone


def draw_pictures(folder, model, data, measured, footer):
    """Pictures of the test slices: reconstructions, the worst of them, masks, use of the codebook, bits, curves.

    Args:
        folder: Where they go.
        model: The `TrainedModel`, whose decoders are all shown; the last is measured.
        data: The data set.
        measured: The `Measured` of the test slices.
        footer: Line under each picture.
    """
    decoders = model.models.decoders
    test = data.of("test").reset_index(drop=True)
    shown = pictures.one_of_each(test, position=0.6, most=8)
    pictures.show_reconstructions(folder / "reconstructions.png", data, decoders, shown, footer)
    quality = test.assign(quality=[values["ssim_head"] for values in measured.metrics]).dropna(subset="quality")
    worst = quality.sort_values("quality", kind="stable").drop_duplicates("subject_id").head(5 * len(decoders))
    if len(worst):
        pictures.show_reconstructions(folder / "worst.png", data, decoders, worst, footer)
    images, some = data.pixels(shown), shown.iloc[:5]
    figures.masks(folder / "masks.png", images, [metrics.head_mask(i) for i in images], shown.subject_id, footer)
    bits = measured.bits.sum(axis=-1)  # of a place
    figures.bits(folder / "bits.png", bits.mean(axis=0), images[:5], bits[some.index], some.subject_id, footer)
    figures.codebook(folder / "codebook.png", measured.codes, model.vqvae.num_embeddings, footer)
    figures.history(folder / "history.png", run_folder.read_histories(model.run_dir, model.decoder), footer)


def draw_samples(folder, args, model, footer):
    """Draws the samples that are judged, and pictures of them; returns them and their slice positions."""
    labels, positions = model.conditions(args.num_samples, args.seed)
    images = np.concatenate(list(model.draw(labels, positions, args.seed, description="samples")))
    pictures.show_samples(folder / "samples.png", images, labels, positions, model.labels, footer)
    kinds, heights = pictures.at_heights(model)
    of_one_noise = np.concatenate(list(model.draw(kinds, heights, args.seed, np.zeros(len(kinds), int), "positions")))
    pictures.show_positions(folder / "positions.png", of_one_noise, kinds, heights, model.labels, footer)
    return images, positions


def why_not_judged(data, number):
    """Why so many samples cannot be judged on these data, or nothing."""
    if number < FEWEST_JUDGED:
        return f"that takes --num-samples {FEWEST_JUDGED} or more, 1000 to hold"
    if not data.images[data.of("test").row].any():
        return "every test slice is black"
    return realism.can_judge(data.slices)


def compare_samples(folder, data, vqvae, codes, images, positions, footer):
    """What metrics.json says of samples, and a picture of those nearest to training slices; None if it cannot be."""
    why_not = why_not_judged(data, len(images))
    if why_not:
        print(f"samples are not judged: {why_not}")
        return None
    result, closest = realism.judge_samples(images, positions, data, vqvae, codes)
    figures.closest_pairs(
        folder / "closest.png",
        [images[i] for i, _, _ in closest],
        [data.images[row] / 255 for _, row, _ in closest],
        [f"MS-SSIM {likeness:.3f}" for _, _, likeness in closest],
        footer,
    )
    return result


def why_no_heads(args, model, data):
    """Why volumes cannot be judged, or nothing."""
    if not model.draws_heads:
        return "the run was not trained with --neighbours"
    if not args.num_heads:
        return "--num-heads 0 was given"
    number = len(drawn_heads.positions(model))
    people = heads.count_people(data, number)
    if data.about["plane"] in (None, "axial") and number > 1 and people.get("train", 0) > 1 and people.get("test", 0):
        return ""
    return "that takes axial slices, two of a person or more, and people who have as many as a drawn volume"


def compare_heads(folder, args, model, data, footer):
    """What metrics.json says of volumes, and pictures of some; None where they cannot be judged."""
    if why_no_heads(args, model, data):
        return None
    stacks = drawn_heads.sample(model, args.num_heads, args.seed, description="volumes")
    drawn = [head for some in stacks for head in some]
    labels, _ = model.conditions(ALONE, args.seed + 1)
    positions = drawn_heads.positions(model)
    alone = []
    for label in labels:  # slices that know nothing of each other
        images = np.concatenate(list(model.draw(np.full(len(positions), label), positions, args.seed + 1 + len(alone))))
        alone.append((images * 255).round().astype("uint8"))

    def decode(head):
        return (drawn_heads.decode(model, model.encode(head / np.float32(255))) * 255).round().astype("uint8")

    real = next(iter(heads.of_people(data, "test", len(positions)).values()))
    shown = [*drawn[:4], alone[0], decode(real), real]
    titles = [*(f"drawn {i}" for i in range(len(drawn[:4]))), "slices alone", "real, decoded", "real"]
    views = [figures.views(head, "axial", model.voxel_mm) for head in shown]
    whose = f"drawn, slices alone: made by the model; real: a test person\n{footer}"
    figures.heads(folder / "volumes.png", views, titles, model.voxel_mm[0], whose)
    return heads.judge_heads(drawn, alone, data, decode, model.voxel_mm)


def command(args):
    """The command line behind these arguments, without what is as by default, and without where the data lie."""
    words = ["python", "evaluate.py"]
    for group in (options.TrainedRun, options.Evaluation, options.Truncation):
        for field in dataclasses.fields(group):
            value = getattr(args, field.name)
            if value != field.default:
                private = field.name in ("data_dir", "cache_dir")
                words += ["--" + field.name.replace("_", "-"), "…" if private else shlex.quote(str(value))]
    return " ".join(words)


def write_results(folder, args, model, data, result, measured, footer):
    """Writes the figures and the report."""
    test = data.of("test")
    files.write_text(folder / "metrics.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    people = metrics.person_by_person(test, measured.metrics)
    files.write_text(folder / "people.csv", people.to_csv(index=False, lineterminator="\n"))
    ratios = {"reconstructions": result["reconstruction_power_ratio"]}
    if "realism" in result:
        ratios["samples"] = result["realism"]["samples"]["power_ratio"]
        ratios["other people, the floor"] = result["realism"]["floor"]["power_ratio"]
    figures.spectrum(folder / "spectrum.png", ratios, footer)

    def show(places):
        return data.pixels(test.iloc[places]), model.vqvae.decode(measured.codes[places])[..., 0]

    portraits = report.pictures_of_people(test, measured.metrics, show)
    credit = "\n".join(filter(None, (data.title, data.credit)))
    report.write(folder, model.config, result, people, credit, command(args), portraits)


def write_ranges(folder, args, model, data, measured):
    """Keeps in the run folder what is usual for test people; in the output folder where the other cannot be written."""
    test = data.of("test")
    per_slice = inputs.judged(measured.metrics, (data.images[row] for row in test.row), data.about)
    what = (model.decoder, per_slice, test.subject_id)
    try:
        run_folder.write_ranges(args.run_dir, *what)
    except (OSError, UserError) as error:
        run_folder.write_ranges(folder, *what)
        why = error if isinstance(error, UserError) else f"{args.run_dir / 'ranges.json'}: {error.strerror}"
        print(f"note: {why}; what is usual for test people is in {folder / 'ranges.json'}: copy it there")


def run(args):
    model = TrainedModel(args.run_dir, args.decoder, args.coarse_temperature, args.temperature, args.top_k, args.top_p)
    data, faults = without_black(opening.find_data(args.run_dir, model.config, args.data_dir, args.cache_dir))
    folder = args.output_dir or args.run_dir / f"evaluation{'_sharp' * (model.decoder == 'sharp')}"
    print(f"data: {data.title}")
    with predict.output(folder, report.PICTURES, "evaluate.py"), devices.whole_float32():
        evaluate(folder, args, model, data, faults)


def evaluate(folder, args, model, data, faults):
    """Everything, in this order: measured, drawn, compared, written, told; `faults` are those of the data."""
    footer = run_folder.footer(data.title, data.credit)
    result, measured = measure(model, data)
    draw_pictures(folder, model, data, measured, footer)
    images, positions = draw_samples(folder, args, model, footer)
    of_samples = compare_samples(folder, data, model.vqvae, measured.codes, images, positions, footer)
    of_heads = compare_heads(folder, args, model, data, footer)
    result |= {name: found for name, found in (("realism", of_samples), ("heads", of_heads)) if found}
    unfinished = [f"unfinished run: {line}" for line in model.unfinished]
    result["faults"] = [*unfinished, *run_folder.blown_up(model.run_dir), *faults, *find_faults(result)]
    missing = {"samples": ("how samples stand to real slices", why_not_judged(data, args.num_samples))}
    if model.draws_heads:
        missing["heads"] = ("volumes", why_no_heads(args, model, data))
    result["missing"] = {part: f"{what}; {why}" for part, (what, why) in missing.items() if why}
    write_results(folder, args, model, data, result, measured, footer)
    write_ranges(folder, args, model, data, measured)

    means = {name: values["mean"] or math.nan for name, values in result["reconstruction"].items()}
    print(
        f"test SSIM {means['ssim']:.4f}, inside the head {means['ssim_head']:.4f}, PSNR {means['psnr_db']:.2f} dB, "
        f"{metrics.percent(result['codebook']['codes_in_use'])} of the codes in use, "
        f"{result['prior']['bits_per_code']:.3f} bits per code"
    )
    for fault in result["faults"]:
        print(f"warning: {fault}")
    print(f"written to {folder}; look at {folder / 'report.html'}")


def main(argv=None):
    return console.exit_status(lambda: run(options.evaluate(argv)), "stopped")


if __name__ == "__main__":
    sys.exit(main())
