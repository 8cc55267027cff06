"""What metrics.json says of a run's test people: their slices, codes and bits."""

import dataclasses
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import dataset
from evaluation import baselines, metrics, realism
from reading.decoding import DARKEST
from running import run_folder
from running.models import code_bits

DECODED_AT_ONCE = 256  # slices; as floats they are larger than in the cache


class Measured(NamedTuple):
    """What `measure` finds of each test slice, in the order of `data.of("test")`."""

    codes: np.ndarray  # uint16 (n, grid, grid, levels)
    metrics: list  # a dictionary of each
    bits: np.ndarray  # of each code, float32 (n, grid, grid, levels)


def without_black(data):
    """The data without black test slices, which say nothing and are easy; a line where there are some."""
    test = data.of("test")
    black = data.images[test.row].max(axis=(1, 2)) < DARKEST
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
        Codes, uint16 (n, grid, grid, levels); one dictionary of metrics a slice; eight ratios (`realism.power_ratio`).
    """
    test = data.of("test")
    codes = dataset.encode(vqvae, data.images, test.row.to_numpy())
    per_slice, kept, power = [], 0.0, 0.0
    for start in tqdm(range(0, len(test), DECODED_AT_ONCE), "test slices", leave=False, disable=None):
        images = data.pixels(test.iloc[start : start + DECODED_AT_ONCE])
        outputs = vqvae.decode(codes[start : start + DECODED_AT_ONCE])[..., 0]
        per_slice += metrics.batch_metrics(images, outputs)
        kept = kept + len(images) * realism.radial_power(outputs)
        power = power + len(images) * realism.radial_power(images)
    return codes, per_slice, realism.power_ratio(kept, power)


def bits_of_test_slices(models, data, codes):
    """Bits of the test slices: of the coarse codes of each, (n,), and of each of the codes, (n, grid, grid, levels)."""
    test = data.of("test")
    coarse = np.zeros((len(test), 0, 0, 1), "int32")
    if models.coarse is not None:
        coarse = dataset.encode(models.coarse, data.images, test.row.to_numpy())
    bits, of_coarse = code_bits(models, codes, coarse, dataset.prior_inputs(test, data.labels))
    return of_coarse.sum(axis=(1, 2, 3)), bits


def count(data):
    """People, slices, and people of each label in each split, "" for those without one."""
    splits, people = dataset.count(data.slices), data.slices.drop_duplicates(["subject_id", "label"])
    if data.labels:
        for split, numbers in splits.items():
            labels = people.label[people.split == split]
            numbers["labels"] = {name: int((labels == name).sum()) for name in [*data.labels, ""]}
    return splits


def measure(model, data):
    """What metrics.json says of the test people's slices.

    Returns:
        The dictionary, and a `Measured`.
    """
    test, vqvae, config = data.of("test"), model.vqvae, model.config
    codes, per_slice, power_ratio = reconstruct(vqvae, data)
    coarse_bits, bits = bits_of_test_slices(model.models, data, codes)
    for values, of_codes, of_coarse in zip(per_slice, bits, coarse_bits, strict=True):
        values["bits_per_code"] = float((of_codes.sum() + of_coarse) / of_codes.size)
    summary = metrics.summarise(per_slice, test.subject_id)
    per_code = summary.pop("bits_per_code")
    codebook = metrics.codebook_metrics(codes, vqvae.num_embeddings, vqvae.downsampling**2)
    some = vqvae.vectors(codes[dataset.spread(len(codes), DECODED_AT_ONCE)])
    # Of each vector once: background is always the same.
    codebook["effective_dimension"] = metrics.effective_dimension(np.unique(some.reshape(-1, some.shape[-1]), axis=0))
    rates = codebook["bits_per_pixel"], per_code["mean"] * bits[0].size / vqvae.image_size**2
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
            "bits_by_level": bits.mean(axis=(0, 1, 2)).astype(float).tolist(),
            "bits_per_image": per_code["mean"] * bits[0].size,
            "bits_per_pixel": rates[1],
            "coarse_bits_per_image": metrics.over_people(coarse_bits, test.subject_id)["mean"],
        },
        "training": {
            stage: {
                "epochs": len(rows),
                "seconds": sum(row["seconds"] for row in rows),
                "fastest_epoch_seconds": min(row["seconds"] for row in rows),
            }
            for stage, rows in run_folder.read_histories(model.run_dir, model.decoder).items()
            if rows  # a run may be without coarse codes
        },
    }
    return result, Measured(codes, per_slice, bits)


def find_faults(result):
    """What a reader must know before the figures: a line for each sign that a model has failed; empty if none.

    Args:
        result: What is in metrics.json.
    """
    faults, codebook = [], result["codebook"]
    perplexity = min(codebook["perplexity_by_level"])
    if perplexity < max(2, 0.02 * codebook["num_embeddings"]):
        faults.append(
            f"the codebook has collapsed: {metrics.percent(codebook['codes_in_use'])} of the codes in use, perplexity "
            f"{perplexity:.1f}; train again with --restart-threshold above 0, a lower "
            "--vqvae-learning-rate or a smaller --num-embeddings"
        )
    if "realism" in result:
        copies, samples, floor = (result["realism"][name] for name in ("copies", "samples", "floor"))
        share = max(copies["share_of_samples"], copies["share_of_samples_by_reconstructions"])
        if share > 0.05:
            faults.append(
                f"samples copy training slices: {share:.0%} are nearer to one than 99 % of test slices, or of their "
                "reconstructions, are"
            )
        alike = [images["ms_ssim_diversity"] for images in (samples, floor)]
        if None not in alike and alike[0] > alike[1] + 0.1:
            faults.append(
                f"samples are alike: MS-SSIM of two of them {alike[0]:.2f}, of two people's slices {alike[1]:.2f}"
            )
    return faults
