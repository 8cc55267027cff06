"""Reconstructs the test people of a run, and makes new slices with its prior.

    python predict.py                                             # the demo run
    python predict.py --run-dir runs/ixi --num-samples 64 --slice-position 0.6

Writes to --output-dir: report.html, which shows everything; metrics.json and people.csv, its figures; its pictures as
PNG; samples/sample_0000.png and so on (8-bit grey). From 100 samples on it also says how they stand to the test people.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import PIL.Image
from tqdm import tqdm

import baselines
import dataset
import decoding
import devices
import figures
import metrics
import modules
import realism
import run_folder
import sampling
import webpage

BATCH_SIZE = 32
FEWEST_JUDGED, MOST_JUDGED = 100, 2000  # samples


def parse(argv):
    parser = argparse.ArgumentParser(description="Reconstruct the test people of a run and sample new slices.")
    add = parser.add_argument
    add("--run-dir", type=Path, default=Path("runs/demo"), help="a folder that train.py wrote (default: %(default)s)")
    add("--output-dir", type=Path, help="(default: predictions in the run folder)")
    add("--data-dir", type=Path, help="where the run's data lie now (default: where they were)")
    add("--cache-dir", type=Path, help="where decoded slices go (default: where they went)")
    decoders = "plain, or the one that train.py --stage sharp made (default: %(default)s)"
    add("--decoder", choices=("plain", "sharp"), default="plain", help=decoders)
    add("--num-samples", type=int, default=16, help="(default: %(default)s)")
    add("--label", help="label of every sample (default: drawn as often as in training)")
    add("--slice-position", type=float, help="0 lowest to 1 highest (default: drawn as often as in training)")
    add("--temperature", type=float, default=1.0, help="below 1: likelier and more alike (default: %(default)s)")
    add("--top-k", type=int, default=0, help="draw among the k likeliest codes; 0: among all (default: %(default)s)")
    add("--top-p", type=float, default=1.0, help="draw among the likeliest that make up p (default: %(default)s)")
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    add("--devices", type=int, default=1, help="that share each batch; 0: all; under JAX (default: %(default)s)")
    add(
        "--features",
        choices=("texture", "inception"),
        default="texture",
        help="what samples are judged by: log-Gabor energies, or InceptionV3, whose weights (84 MB) are fetched once "
        "(default: %(default)s)",
    )
    return parser.parse_args(argv)


def reconstruct(vqvae, data, slices):
    """Codes and metrics of every test slice, and the share of each ring's power that reconstructions keep.

    Args:
        vqvae: The trained `VQVAE`.
        data, slices: The data set and its slices with their splits.

    Returns:
        Codes, int32 (n, grid, grid); one dictionary of metrics a slice; eight ratios (`realism.radial_power`).
    """
    rows = [one.row for one in slices if one.split == "test"]
    codes, per_slice, power = [], [], np.zeros((2, metrics.BANDS))
    for start in tqdm(range(0, len(rows), BATCH_SIZE), "test slices", leave=False, disable=None):
        images = dataset.as_float(data.images[rows[start : start + BATCH_SIZE]])
        codes.append(vqvae.encode(images))
        outputs = vqvae.decode(codes[-1], BATCH_SIZE)[..., 0]
        per_slice += metrics.batch_metrics(images[..., 0], outputs)
        power += [len(images) * realism.radial_power(some) for some in (outputs, images[..., 0])]
    return np.concatenate(codes), per_slice, power[0] / power[1]


def measure_baselines(data, slices, bits_per_pixel, blur, prior_bits_per_pixel):
    """Metrics of what needs no model, on the same test slices.

    Args:
        data, slices: The data set and its slices with their splits.
        bits_per_pixel: What JPEG and PCA may take: the codes' bits as they stand.
        blur: Standard deviation of the blur in pixels.
        prior_bits_per_pixel: What a second JPEG may take: the codes' bits under the prior.

    Returns:
        For each baseline its metrics over people, and `bits_per_pixel` where it is one that compresses.
    """
    train = [one for one in slices if one.split == "train"]
    test = [one for one in slices if one.split == "test"]
    rows, positions = np.array([one.row for one in train]), np.array([one.slice_position for one in train])
    mean_slice = baselines.MeanSlice(data.images, rows, positions)
    components = baselines.PrincipalComponents(data.images, rows, bits_per_pixel)
    per_slice, bits = {}, {"PCA": [components.bits_per_pixel]}
    for start in tqdm(range(0, len(test), BATCH_SIZE), "baselines", leave=False, disable=None):
        chosen = test[start : start + BATCH_SIZE]
        images = dataset.as_float(data.images[[one.row for one in chosen]])[..., 0]
        outputs = {
            "black": np.zeros_like(images),
            "mean slice": [mean_slice(one.slice_position) for one in chosen],
            f"blur, sigma {blur:g} pixels": [baselines.blur(image, blur) for image in images],
            "PCA": [components(image) for image in images],
        }
        for name, limit in (("JPEG", bits_per_pixel), ("JPEG at the prior's bits", prior_bits_per_pixel)):
            compressed = [baselines.jpeg(image, limit) for image in images]
            outputs[name] = [image for image, _ in compressed]
            bits.setdefault(name, []).extend(taken for _, taken in compressed)
        for name, made in outputs.items():
            per_slice.setdefault(name, []).extend(metrics.batch_metrics(images, np.array(made)))
    people = [one.subject_id for one in test]
    result = {name: metrics.summarise(rows, people) for name, rows in per_slice.items()}
    for name, taken in bits.items():
        result[name]["bits_per_pixel"] = float(np.mean(taken))
    return result


def prior_bits(prior, inputs):
    """Bits that each code of the grids costs, float64, shape of inputs["codes"]."""
    bits = []
    for start in tqdm(range(0, len(inputs["label"]), BATCH_SIZE), "prior", leave=False, disable=None):
        batch = run_folder.select(inputs, slice(start, start + BATCH_SIZE))
        number = len(batch["label"])  # filled up to one size, which several devices can share
        filled = {name: np.resize(values, (BATCH_SIZE, *values.shape[1:])) for name, values in batch.items()}
        bits.append(metrics.code_bits(prior.predict_on_batch(devices.spread(filled))[:number], batch["codes"]))
    return np.concatenate(bits)


def choose_conditions(training, number, seed, label=None, slice_position=None):
    """Label and slice position of each sample: as given, or those of a training slice drawn at random.

    Sample i of a seed has the same ones however many are drawn.
    """
    labels, positions = [], []
    for i in range(number):
        one = np.random.default_rng([seed, i, 1]).integers(len(training["label"]))
        labels.append(training["label"][one] if label is None else label)
        positions.append(training["slice_position"][one] if slice_position is None else slice_position)
    return np.array(labels, "int32"), np.array(positions, "float32")


def draw(sampler, vqvae, labels, positions, seed, noise_index=None, description="samples"):
    """Yields new images a batch at a time, float32 in [0, 1], shape (m, S, S).

    The arguments are those of `PixelCNNSampler.sample`. Progress is shown on standard error, every ten seconds where
    that is not a terminal.
    """
    pause = 0.1 if sys.stderr.isatty() else 10
    with tqdm(total=len(labels), desc=description, unit="slice", leave=False, delay=1, mininterval=pause) as bar:
        for codes in sampler.sample(labels, positions, seed, noise_index=noise_index, batch_size=BATCH_SIZE):
            yield vqvae.decode(codes, BATCH_SIZE)[..., 0]
            bar.update(len(codes))


def write_samples(batches, folder, keep):
    """Writes each image as 8-bit grey PNG as soon as it is drawn, removes what an earlier call left; returns some.

    Args:
        batches: Iterable of arrays of images.
        folder: Where to write.
        keep: How many of the first images to return.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("sample_*.png"):
        old.unlink()
    kept = []
    for i, image in enumerate(image for images in batches for image in images):
        picture = PIL.Image.fromarray((image * 255).round().astype("uint8"))
        decoding.write_whole(folder / f"sample_{i:04d}.png", picture.save)
        if i < keep:
            kept.append(image)
    return kept


def one_of_each(slices, position, most):
    """Indices of the slices nearest to a position, one for each of at most `most` people, spread over all of them."""
    nearest = {}
    for i, one in enumerate(slices):
        distance = abs(one.slice_position - position)
        nearest[one.subject_id] = min(nearest.get(one.subject_id, (distance, i)), (distance, i))
    people = list(nearest)
    spread = np.linspace(0, len(people) - 1, min(most, len(people))).round().astype(int)
    return [nearest[people[p]][1] for p in spread]


def person_by_person(test, per_slice):
    """A row of the table of people for each test person: id, label, number of slices, mean of each metric."""
    rows = []
    for person in dict.fromkeys(one.subject_id for one in test):
        mine = [i for i, one in enumerate(test) if one.subject_id == person]
        means = {}
        for name in per_slice[0]:
            finite = [value for value in (per_slice[i][name] for i in mine) if math.isfinite(value)]
            means[name] = float(np.mean(finite)) if finite else None
        rows.append({"subject_id": person, "label": test[mine[0]].label, "slices": len(mine), **means})
    return rows


def draw_pictures(folder, data, models, test, codes, per_slice, bits, footer):
    """Pictures of the test slices: reconstructions, the worst of them, masks, use of the codebook, bits.

    Args:
        folder: Where they go.
        data: The data set.
        models: Each VQ-VAE whose output is shown and its name; all have the same codes, and the last is measured.
        test: The test slices.
        codes, per_slice, bits: Their codes, metrics and bits under the prior.
        footer: Line under each picture.
    """

    def pixels(chosen):
        return [data.images[test[i].row] / 255 for i in chosen]

    def outputs(chosen):
        return {name: vqvae.decode(codes[chosen], BATCH_SIZE)[..., 0] for name, vqvae in models.items()}

    def titles(chosen, metric, name):
        return [f"{test[i].subject_id} {test[i].label}\n{name} {per_slice[i][metric]:.3f}" for i in chosen]

    shown = one_of_each(test, position=0.6, most=8)
    figures.reconstructions(
        folder / "reconstructions.png", pixels(shown), outputs(shown), titles(shown, "ssim", "SSIM"), footer
    )

    def quality(i):
        return per_slice[i]["ssim_head"]

    from_the_best = sorted((i for i in range(len(test)) if math.isfinite(quality(i))), key=quality, reverse=True)
    worst = sorted({test[i].subject_id: i for i in from_the_best}.values(), key=quality)  # one of each person
    worst = worst[: 5 * len(models)]
    if worst:
        figures.reconstructions(
            folder / "worst.png", pixels(worst), outputs(worst), titles(worst, "ssim_head", "SSIM, head"), footer
        )
    found = [metrics.head_mask(image) for image in pixels(shown)]
    figures.masks(folder / "masks.png", pixels(shown), found, [test[i].subject_id for i in shown], footer)
    some = shown[:5]
    names = [test[i].subject_id for i in some]
    figures.bits(folder / "bits.png", bits.mean(axis=0), pixels(some), bits[some], names, footer)
    num_embeddings = next(iter(models.values())).quantizer.num_embeddings
    figures.codebook(folder / "codebook.png", codes, num_embeddings, footer)


def find_faults(result, conditions_drawn):
    """What a reader must know before the figures: a line for each sign that a model has failed; none is well.

    Args:
        result: What is in metrics.json.
        conditions_drawn: Whether samples have the labels and slice positions that occur, not a given one.
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
        if conditions_drawn and None not in alike and alike[0] > alike[1] + 0.1:
            faults.append(
                f"samples are alike: MS-SSIM of two of them {alike[0]:.2f}, of two people's slices {alike[1]:.2f}"
            )
    return faults


def write_json(path, result):
    decoding.write_text(path, json.dumps(result, indent=2, allow_nan=False) + "\n")


def check(args):
    """Raises RunError for a number out of range."""
    for name, good, must in (
        ("num_samples", args.num_samples >= 1, "1 or more"),
        ("temperature", args.temperature > 0, "above 0"),
        ("top_k", args.top_k >= 0, "0 or more"),
        ("top_p", 0 < args.top_p <= 1, "above 0 and at most 1"),
        ("slice_position", args.slice_position is None or 0 <= args.slice_position <= 1, "from 0 to 1"),
        ("seed", args.seed >= 0, "0 or more"),
    ):
        if not good:
            raise run_folder.RunError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be {must}")


def run(args):
    check(args)
    if devices.in_cluster():
        raise run_folder.RunError("predict.py runs in one process; unset KERAS_DISTRIBUTION_NUM_PROCESSES")
    devices.start(args.devices)
    if BATCH_SIZE % devices.number():
        raise run_folder.RunError(f"--devices {devices.number()}: must share batches of {BATCH_SIZE} evenly")
    config, data, slices = run_folder.reopen(args.run_dir, args.data_dir, args.cache_dir)
    if args.decoder == "sharp" and not (args.run_dir / "sharp.keras").exists():
        raise run_folder.RunError(
            f"--decoder sharp: no sharp.keras in {args.run_dir}; run train.py --stage sharp first"
        )
    models = {"output": run_folder.load_model(args.run_dir / "vqvae.keras", modules.VQVAE)}
    if args.decoder == "sharp":
        models = {
            "plain": models["output"],
            "sharp": run_folder.load_model(args.run_dir / "sharp.keras", modules.VQVAE),
        }
    vqvae = list(models.values())[-1]
    if vqvae.fingerprint() != next(iter(models.values())).fingerprint():
        raise run_folder.RunError(f"{args.run_dir / 'sharp.keras'}: of another VQ-VAE than vqvae.keras; remove it")
    prior = run_folder.load_prior(args.run_dir, vqvae)
    codes = run_folder.extract_codes(args.run_dir, vqvae, data, slices)
    labels = config["data"]["labels"]
    if args.label is not None and args.label not in labels:
        raise run_folder.RunError(f"--label {args.label}: the run knows {', '.join(labels) or 'no labels'}")
    label = labels.index(args.label) + 1 if args.label else None
    extract = realism.InceptionFeatures() if args.features == "inception" else realism.TextureFeatures(data.image_size)
    output_dir = args.output_dir or args.run_dir / ("predictions_sharp" if args.decoder == "sharp" else "predictions")
    output_dir.mkdir(parents=True, exist_ok=True)
    for left in output_dir.glob("*.[0-9]*.partial.*"):  # by a process that was killed while it wrote
        left.unlink()
    for name, _, _ in webpage.PICTURES:  # not every call makes every one, and an earlier call's would be shown
        (output_dir / name).unlink(missing_ok=True)
    footer = "\n".join(dict.fromkeys(filter(None, (data.title, data.credit))))
    print(f"data: {data.title}")

    # Reconstruction of every test slice, and what the prior says of its codes.
    test = [one for one in slices if one.split == "test"]
    people = [one.subject_id for one in test]
    test_codes, per_slice, power_ratio = reconstruct(vqvae, data, slices)
    bits = prior_bits(prior, run_folder.prior_inputs(test_codes, test, labels))
    for one, bits_of_slice in zip(per_slice, bits, strict=True):
        one["bits_per_code"] = float(bits_of_slice.mean())
    summary = metrics.summarise(per_slice, people)
    per_code = summary.pop("bits_per_code")
    codebook = metrics.codebook_metrics(test_codes, vqvae.quantizer.num_embeddings, vqvae.downsampling**2)
    stages = ("vqvae", "prior", "sharp") if args.decoder == "sharp" else ("vqvae", "prior")
    histories = {stage: run_folder.read_history(args.run_dir / f"{stage}_history.csv") for stage in stages}
    rates = codebook["bits_per_pixel"], per_code["mean"] / vqvae.downsampling**2
    result = {
        "data": config["data"]["title"],
        "decoder": args.decoder,
        "split": "test",
        "splits_sha256": config["splits_sha256"],
        "slices": len(test),
        "reconstruction": summary,
        "reconstruction_power_ratio": power_ratio.tolist(),
        "codebook": codebook,
        "baselines": measure_baselines(data, slices, rates[0], vqvae.downsampling / 2, rates[1]),
        "prior": {
            "bits_per_code": per_code["mean"],
            "bits_per_code_ci95": per_code["ci95"],
            "bits_per_image": per_code["mean"] * bits[0].size,
            "bits_per_pixel": rates[1],
        },
        "training": {
            stage: {
                "epochs": len(rows),
                "seconds": sum(row["seconds"] for row in rows),
                "fastest_epoch_seconds": min((row["seconds"] for row in rows), default=None),
            }
            for stage, rows in histories.items()
        },
    }
    write_json(output_dir / "metrics.json", result)
    by_person = person_by_person(test, per_slice)
    decoding.write_text(
        output_dir / "people.csv", dataset.csv_text(list(by_person[0]), [list(one.values()) for one in by_person])
    )
    draw_pictures(output_dir, data, models, test, test_codes, per_slice, bits, footer)
    figures.history(output_dir / "history.png", histories, footer)

    # New slices.
    sampler = sampling.PixelCNNSampler(prior, args.temperature, args.top_k, args.top_p)
    train = np.array([one.split == "train" for one in slices])
    training = run_folder.prior_inputs(codes[train], [one for one in slices if one.split == "train"], labels)
    sample_labels, positions = choose_conditions(training, args.num_samples, args.seed, label, args.slice_position)
    drawn = draw(sampler, vqvae, sample_labels, positions, args.seed)
    images = write_samples(drawn, output_dir / "samples", keep=MOST_JUDGED)
    names = ["", *labels]
    titles = [f"{names[k]} at {p:.2f}".strip() for k, p in zip(sample_labels, positions, strict=True)]
    figures.image_grid(output_dir / "samples.png", images[:32], titles[:32], f"made by the model\n{footer}")

    # The same noise at eight heights, for each label.
    kinds = [label] if label is not None else list(range(1, len(labels) + 1)) or [0]
    heights = np.tile(np.linspace(0, 1, 8, dtype="float32"), len(kinds))
    rows = np.repeat(np.array(kinds, "int32"), 8)
    drawn = draw(sampler, vqvae, rows, heights, args.seed, np.zeros(len(rows), int), "positions")
    figures.image_grid(
        output_dir / "positions.png",
        np.concatenate(list(drawn)),
        [f"at {p:.2f}" for p in heights],
        f"made by the model from one noise, from the lowest slice position to the highest\n{footer}",
        row_names=[names[k] for k in kinds],
    )

    # Samples against the test people.
    why_not = realism.can_judge(slices)
    if len(images) < FEWEST_JUDGED:
        why_not = f"that takes --num-samples {FEWEST_JUDGED} or more, 1000 to hold"
    if not why_not:
        result["realism"], closest = realism.judge(
            np.array(images),
            positions[: len(images)],
            data.images,
            slices,
            lambda some: vqvae.decode(vqvae.encode(some[..., None]), BATCH_SIZE)[..., 0],
            extract,
        )
        result["realism"]["features"] = args.features
        figures.closest_pairs(
            output_dir / "closest.png",
            [images[i] for i, _, _ in closest],
            [data.images[slices[k].row] / 255 for _, k, _ in closest],
            [f"MS-SSIM {likeness:.3f}" for _, _, likeness in closest],
            footer,
        )
    else:
        print(f"samples are not judged: {why_not}")

    result["faults"] = find_faults(result, args.label is None and args.slice_position is None)
    write_json(output_dir / "metrics.json", result)
    ratios = {"reconstructions": result["reconstruction_power_ratio"]}
    if "realism" in result:
        ratios["samples"] = result["realism"]["samples"]["power_ratio"]
        ratios["other people, the floor"] = result["realism"]["floor"]["power_ratio"]
    figures.spectrum(output_dir / "spectrum.png", ratios, footer)
    webpage.write(output_dir, config, result, by_person, footer)

    means = {name: values["mean"] or math.nan for name, values in result["reconstruction"].items()}
    print(
        f"test SSIM {means['ssim']:.4f}, inside the head {means['ssim_head']:.4f}, PSNR {means['psnr_db']:.2f} dB, "
        f"{result['codebook']['codes_in_use']:.0%} of the codes in use, "
        f"{result['prior']['bits_per_code']:.3f} bits per code"
    )
    for fault in result["faults"]:
        print(f"warning: {fault}")
    print(f"written to {output_dir}")


def main(argv=None):
    return run_folder.exit_status(run, parse(argv), "stopped")


if __name__ == "__main__":
    sys.exit(main())
