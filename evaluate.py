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

import files
import options

if __name__ == "__main__":
    options.evaluate()  # --help and wrong options are answered here, before TensorFlow is imported, which takes seconds
with files.quietly():
    import keras  # noqa: F401
import numpy as np
from tqdm import tqdm

import dataset
import decoding
import predict
import runs
from evaluation import baselines, figures, heads, metrics, realism, report
from trained import TrainedModel

FEWEST_JUDGED = 100  # samples
AT_ONCE = 256  # slices
ALONE = 4  # heads whose slices are drawn alone


def without_black(data):
    """The data without black test slices, which say nothing and are easy; a line where there are some."""
    test = data.of("test")
    black = data.images[test.row].max(axis=(1, 2)) < decoding.DARKEST
    if not black.any():
        return data, []
    if black.all():
        return data, ["every test slice is black: no figure here means anything"]
    slices = data.slices.drop(index=test.index[black])
    return dataclasses.replace(data, slices=slices), [
        f"{black.sum()} of {len(test)} test slices are black and left out of every figure"
    ]


def reconstruct(vqvae, data):
    """Codes and metrics of every test slice, and the share of each ring's power that reconstructions keep.

    Args:
        vqvae: The trained `modules.VQVAE`.
        data: The `dataset.Data`.

    Returns:
        Codes, uint16 (n, grid, grid); one dictionary of metrics a slice; eight ratios (`realism.power_ratio`).
    """
    test = data.of("test")
    codes = dataset.encode(vqvae, data.images, test.row.to_numpy())
    per_slice, kept, power = [], 0.0, 0.0
    for start in tqdm(range(0, len(test), AT_ONCE), "test slices", leave=False, disable=None):
        images = data.pixels(test.iloc[start : start + AT_ONCE])
        outputs = vqvae.decode(codes[start : start + AT_ONCE])[..., 0]
        per_slice += metrics.batch_metrics(images, outputs)
        kept = kept + len(images) * realism.radial_power(outputs)
        power = power + len(images) * realism.radial_power(images)
    return codes, per_slice, realism.power_ratio(kept, power)


def code_lengths(models, data, codes):
    """Bits of the test slices under both priors: of each layout, (n,), and of each of the codes, (n, grid, grid)."""
    test = data.of("test")
    layout = dataset.encode(models.layout, data.images, test.row.to_numpy())
    of_layout = metrics.code_lengths(models.layout_prior, dataset.prior_inputs(test, data.labels, codes=layout))
    inputs = dataset.prior_inputs(test, data.labels, codes=codes, layout=layout)
    return of_layout.sum(axis=(1, 2)), metrics.code_lengths(models.prior, inputs)


def count(data):
    """People, slices, and people of each label in each split, "" for those without one."""
    found, people = dataset.count(data.slices), data.slices.drop_duplicates(["subject_id", "label"])
    if data.labels:
        for split, of_one in found.items():
            labels = people.label[people.split == split]
            of_one["labels"] = {name: int((labels == name).sum()) for name in [*data.labels, ""]}
    return found


def measure(model, data):
    """What metrics.json says of the test people's slices.

    Returns:
        The dictionary; the codes of the test slices, a dictionary of metrics for each, bits of each code.
    """
    test, vqvae, config = data.of("test"), model.vqvae, model.config
    codes, per_slice, power_ratio = reconstruct(vqvae, data)
    layout_bits, bits = code_lengths(model.models, data, codes)
    for one, of_codes, of_layout in zip(per_slice, bits, layout_bits, strict=True):
        one["bits_per_code"] = float((of_codes.sum() + of_layout) / of_codes.size)
    summary = metrics.summarise(per_slice, test.subject_id)
    per_code = summary.pop("bits_per_code")
    codebook = metrics.codebook_metrics(codes, vqvae.quantizer.num_embeddings, vqvae.downsampling**2)
    rates = codebook["bits_per_pixel"], per_code["mean"] / vqvae.downsampling**2
    result = {
        "data": config["data"]["title"],
        "decoder": model.decoder,
        "split": "test",
        "splits_sha256": config["splits_sha256"],
        "slices": len(test),
        "splits": count(data),
        "reconstruction": summary,
        "reconstruction_power_ratio": power_ratio,
        "codebook": codebook,
        "baselines": baselines.measure(data, rates[0], vqvae.downsampling / 2, rates[1]),
        "prior": {
            "bits_per_code": per_code["mean"],
            "bits_per_code_ci95": per_code["ci95"],
            "bits_per_image": per_code["mean"] * bits[0].size,
            "bits_per_pixel": rates[1],
            "layout_bits_per_image": metrics.over_people(layout_bits, test.subject_id)["mean"],
        },
        "training": {
            stage: {
                "epochs": len(rows),
                "seconds": sum(row["seconds"] for row in rows),
                "fastest_epoch_seconds": min((row["seconds"] for row in rows), default=None),
            }
            for stage, rows in runs.read_histories(model.run_dir, model.decoder).items()
        },
    }
    return result, codes, per_slice, bits


def draw_pictures(folder, model, data, found, footer):
    """Pictures of the test slices: reconstructions, the worst of them, masks, use of the codebook, bits, curves.

    Args:
        folder: Where they go.
        model: The `TrainedModel`, whose decoders are all shown; the last is measured.
        data: The data set.
        found: Codes, metrics and bits of the test slices, as `measure` returns them.
        footer: Line under each picture.
    """
    (codes, per_slice, bits), decoders = found, model.models.decoders
    test = data.of("test").reset_index(drop=True)
    shown = predict.one_of_each(test, position=0.6, most=8)
    predict.show_reconstructions(folder / "reconstructions.png", data, decoders, shown, footer)
    quality = test.assign(quality=[one["ssim_head"] for one in per_slice]).dropna(subset="quality")
    worst = quality.sort_values("quality", kind="stable").drop_duplicates("subject_id").head(5 * len(decoders))
    if len(worst):
        predict.show_reconstructions(folder / "worst.png", data, decoders, worst, footer)
    images = data.pixels(shown)
    figures.masks(folder / "masks.png", images, [metrics.head_mask(i) for i in images], shown.subject_id, footer)
    some = shown.iloc[:5]
    figures.bits(folder / "bits.png", bits.mean(axis=0), images[:5], bits[some.index], some.subject_id, footer)
    figures.codebook(folder / "codebook.png", codes, next(iter(decoders.values())).quantizer.num_embeddings, footer)
    figures.history(folder / "history.png", runs.read_histories(model.run_dir, model.decoder), footer)


def draw_samples(folder, args, model, footer):
    """Draws the samples that are judged, and pictures of them; returns them and their slice positions."""
    labels, positions = model.conditions(args.num_samples, args.seed)
    images = np.concatenate(list(predict.draw(model, labels, positions, args.seed)))
    predict.show_samples(folder / "samples.png", images, labels, positions, model.labels, footer)
    predict.show_positions(folder / "positions.png", model, args.seed, footer)
    return images, positions


def why_not_judged(data, number):
    """Why so many samples cannot be judged on these data, or nothing."""
    if number < FEWEST_JUDGED:
        return f"that takes --num-samples {FEWEST_JUDGED} or more, 1000 to hold"
    if not data.images[data.of("test").row].any():
        return "every test slice is black"
    return realism.can_judge(data.slices)


def judge(folder, args, data, vqvae, images, positions, extract, footer):
    """What metrics.json says of samples, and a picture of those nearest to training slices; None if it cannot be."""
    why_not = why_not_judged(data, len(images))
    if why_not:
        print(f"samples are not judged: {why_not}")
        return None

    def decoded(some):
        return vqvae.decode(vqvae.encode(some[..., None]))[..., 0]

    found, closest = realism.judge(images, positions, data, decoded, extract)
    figures.closest_pairs(
        folder / "closest.png",
        [images[i] for i, _, _ in closest],
        [data.images[row] / 255 for _, row, _ in closest],
        [f"MS-SSIM {likeness:.3f}" for _, _, likeness in closest],
        footer,
    )
    return found | {"features": args.features}


def judge_heads(folder, args, data, model, footer):
    """What metrics.json says of whole heads, and pictures of some; None for a run that draws none."""
    number = len(model.head_positions())
    real = heads.of_people(data, "test", number)
    if not (model.draws_heads and args.num_heads) or data.about.get("plane") not in (None, "axial"):
        return None
    if not real or len(heads.of_people(data, "train", number)) < 2:
        return None
    drawn = list(predict.heads_of(model, args.num_heads, args.seed))
    labels, _ = model.conditions(ALONE, args.seed + 1)
    positions = model.head_positions()
    alone = []
    for label in labels:  # slices that know nothing of each other
        images = np.concatenate(list(model.draw(np.full(len(positions), label), positions, args.seed + 1 + len(alone))))
        alone.append((images * 255).round().astype("uint8"))

    def decode(head):
        return (model.decode_head(model.encode(head / np.float32(255))) * 255).round().astype("uint8")

    real = next(iter(real.values()))
    shown = [*drawn[:4], alone[0], decode(real), real]
    titles = [*(f"drawn {i}" for i in range(len(drawn[:4]))), "slices alone", "real, decoded", "real"]
    views = [figures.views(head, "axial", model.voxel_mm) for head in shown]
    figures.heads(folder / "volumes.png", views, titles, model.voxel_mm[0], footer)
    return heads.judge(drawn, alone, data, decode, model.voxel_mm)


def find_faults(result):
    """What a reader must know before the figures: a line for each sign that a model has failed; none is well.

    Args:
        result: What is in metrics.json.
    """
    faults, codebook = [], result["codebook"]
    if codebook["perplexity"] < max(2, 0.02 * codebook["num_embeddings"]):
        faults.append(
            f"the codebook has collapsed: {codebook['codes_in_use']:.0%} of the codes in use, perplexity "
            f"{codebook['perplexity']:.1f}"
        )
    if "realism" in result:
        copies, samples, floor = (result["realism"][name] for name in ("copies", "samples", "floor"))
        share = max(copies["share_of_samples"], copies["share_of_samples_by_reconstructions"])
        if share > 0.05:
            faults.append(
                f"samples copy training slices: {share:.0%} are nearer to one than 99 % of test slices, or of their "
                "reconstructions, are"
            )
        alike = [one["ms_ssim_diversity"] for one in (samples, floor)]
        if None not in alike and alike[0] > alike[1] + 0.1:
            faults.append(
                f"samples are alike: MS-SSIM of two of them {alike[0]:.2f}, of two people's slices {alike[1]:.2f}"
            )
    return faults


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


def why_missing(args, model, data, result):
    """What the report lacks, and why: a dictionary of parts of it."""
    missing = {}
    if "realism" not in result:
        missing["samples"] = f"how samples stand to real slices; {why_not_judged(data, args.num_samples)}"
    if not model.draws_heads:
        missing["heads"] = "whole heads; the run was not trained with --neighbours, so that its slices belong to nobody"
    elif not args.num_heads:
        missing["heads"] = "whole heads; --num-heads 0 was given"
    elif "heads" not in result:
        missing["heads"] = "whole heads; that takes axial slices, and people who have as many slices as a drawn head"
    return missing


def write(folder, args, model, data, result, found, footer):
    """Writes the figures and the report; `found` is what `measure` returns beside the result."""
    codes, per_slice, _ = found
    test = data.of("test")
    result["missing"] = why_missing(args, model, data, result)
    files.write_text(folder / "metrics.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    people = metrics.person_by_person(test, per_slice)
    files.write_text(folder / "people.csv", people.to_csv(index=False, lineterminator="\n"))
    ratios = {"reconstructions": result["reconstruction_power_ratio"]}
    if "realism" in result:
        ratios["samples"] = result["realism"]["samples"]["power_ratio"]
        ratios["other people, the floor"] = result["realism"]["floor"]["power_ratio"]
    figures.spectrum(folder / "spectrum.png", ratios, footer)

    def show(places):
        return data.pixels(test.iloc[places]), model.vqvae.decode(codes[places])[..., 0]

    def portraits(most_bytes):
        return report.pictures_of_people(test, per_slice, show, most_bytes)

    credit = "\n".join(filter(None, (data.title, data.credit)))
    report.write(folder, model.config, result, people, credit, command(args), portraits)


def run(args):
    how = (args.layout_temperature, args.temperature, args.top_k, args.top_p)
    model = TrainedModel(args.run_dir, args.decoder, *how)
    config = model.config
    data, faults = without_black(runs.find_data(args.run_dir, config, args.data_dir, args.cache_dir))
    extract = realism.InceptionFeatures() if args.features == "inception" else realism.TextureFeatures(data.image_size)
    folder = args.output_dir or args.run_dir / f"evaluation{'_sharp' * (model.decoder == 'sharp')}"
    predict.empty(folder, report.PICTURES)
    footer = runs.footer(data.title, data.credit)
    print(f"data: {data.title}")

    result, *found = measure(model, data)
    draw_pictures(folder, model, data, found, footer)
    images, positions = draw_samples(folder, args, model, footer)
    realism_found = judge(folder, args, data, model.vqvae, images, positions, extract, footer)
    if realism_found:
        result["realism"] = realism_found
    heads_found = judge_heads(folder, args, data, model, footer)
    if heads_found:
        result["heads"] = heads_found
    unfinished = [f"unfinished run: {line}" for line in model.unfinished]
    result["faults"] = [*unfinished, *faults, *find_faults(result)]
    runs.write_ranges(args.run_dir, model.decoder, found[1], data.of("test").subject_id)
    write(folder, args, model, data, result, found, footer)

    means = {name: values["mean"] or math.nan for name, values in result["reconstruction"].items()}
    print(
        f"test SSIM {means['ssim']:.4f}, inside the head {means['ssim_head']:.4f}, PSNR {means['psnr_db']:.2f} dB, "
        f"{result['codebook']['codes_in_use']:.0%} of the codes in use, "
        f"{result['prior']['bits_per_code']:.3f} bits per code"
    )
    for fault in result["faults"]:
        print(f"warning: {fault}")
    print(f"written to {folder}; look at {folder / 'report.html'}")


def main(argv=None):
    return files.exit_status(lambda: run(options.evaluate(argv)), "stopped")


if __name__ == "__main__":
    sys.exit(main())
