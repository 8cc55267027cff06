"""report.html: all that evaluate.py found, in one file that needs no network; report.html.jinja is its form."""

import base64
import json
from pathlib import Path

import jinja2
import pandas as pd

from files import write_text

# Each picture, the question it answers, and how to read it.
PICTURES = {
    "reconstructions.png": (
        "What is lost between a slice and its codes?",
        "Test people, one slice each: input, output, and their difference.",
    ),
    "worst.png": (
        "How bad can it get?",
        "The test slices of as many people whose SSIM inside the head is lowest.",
    ),
    "masks.png": (
        "What counts as inside the head?",
        "The outline within which SSIM is averaged: brighter than half of Otsu's threshold, gaps and holes closed, "
        "the largest part.",
    ),
    "spectrum.png": (
        "How much of each size of detail survives?",
        "Power of reconstructions and samples over that of test slices, in eight rings of the frequency plane. "
        "1 is right; below 1 is blur.",
    ),
    "codebook.png": (
        "Are all codes at work?",
        "Use of each code on the test slices, and how many different ones appear at each place.",
    ),
    "bits.png": (
        "Where do the bits go?",
        "What the codes of a slice cost under the prior, in bits: the mean over test slices, and single slices.",
    ),
    "history.png": (
        "Has training come to its end?",
        "Curves of each stage, training and validation people.",
    ),
    "samples.png": (
        "Do samples look like brains?",
        "The first samples, not picked.",
    ),
    "positions.png": (
        "Does the prior know where a slice lies?",
        "The same noise at eight slice positions, from the lowest to the highest.",
    ),
    "closest.png": (
        "Are samples copies of training slices?",
        "The samples most like a training slice, above that slice; MS-SSIM after a translation.",
    ),
}

# What each figure is called, what it means, and how many digits are shown.
RECONSTRUCTION = {
    "ssim": ("SSIM, whole image", 3),
    "ssim_head": ("SSIM, inside the head", 3),
    "ms_ssim": ("MS-SSIM", 3),
    "psnr_db": ("PSNR (dB)", 2),
    "l1": ("L1", 4),
}
REALISM = {
    "frechet_distance": ("Fréchet distance", "0 for equal sets", 2),
    "mmd": ("MMD², unbiased", "around 0 for equal sets", 4),
    "precision": ("precision", "share of samples that lie where real slices lie", 3),
    "recall": ("recall", "share of real slices that lie where samples lie", 3),
    "density": ("density", "around 1 for equal sets", 3),
    "coverage": ("coverage", "share of real slices that have a sample near", 3),
    "classifier_accuracy": ("accuracy of a classifier", "0.5 cannot tell", 3),
    "ms_ssim_diversity": ("MS-SSIM between people", "lower is more diverse", 3),
    "head_area": ("head, share of the slice", "", 3),
    "head_area_distance": ("head, distance of distributions", "0 for equal sets", 4),
    "symmetry": ("left-right symmetry", "correlation", 3),
    "symmetry_distance": ("symmetry, distance of distributions", "0 for equal sets", 4),
}
ANATOMY = {
    "both_ventricles": ("slices at 0.4 to 0.65 with both lateral ventricles", "share", 3),
    "ventricle_log_ratio": ("unevenness of the two, absolute log(left / right)", "0 for equal areas", 3),
    "ventricle_log_ratio_distance": ("unevenness, distance of distributions", "0 for equal sets", 3),
    "fold_length_median": ("length of a fold (pixels)", "short: broken folds", 1),
    "fold_length_distance": ("folds, distance of distributions (pixels)", "0 for equal sets", 2),
    "outline_pieces": ("pieces of the outline", "1 for an outline that is closed", 3),
    "outline_solidity": ("solidity of the outline", "1 for an outline without dents", 3),
    "solidity_distance": ("solidity, distance of distributions", "0 for equal sets", 4),
}
ANATOMY_OF = {
    "samples": "samples",
    "decoded_floor": "training people, decoded",
    "decoded_test_slices": "test people, decoded",
    "test_slices": "test people",
}


def number(value, digits):
    """A number as text, "-" for none."""
    return "-" if pd.isna(value) else f"{value:.{digits}f}"


def with_interval(summary, digits):
    """Mean and interval of what `metrics.over_people` returns."""
    if summary["ci95"] is None:
        return number(summary["mean"], digits)
    return f"{number(summary['mean'], digits)} ({' to '.join(number(end, digits) for end in summary['ci95'])})"


def table(name, head, rows):
    return {"name": name, "head": head, "rows": rows}


def summary_tables(result):
    """The tables of the first section, by name."""
    methods = {"this model": result["reconstruction"], **result["baselines"]}
    bits = {"this model": result["codebook"]["bits_per_pixel"]}
    reconstruction = table(
        "reconstruction",
        ["95 % intervals over people", *(name for name, _ in RECONSTRUCTION.values()), "bits per pixel"],
        [
            [
                name,
                *(with_interval(found[key], digits) for key, (_, digits) in RECONSTRUCTION.items()),
                number(bits.get(name, found.get("bits_per_pixel")), 3),
            ]
            for name, found in methods.items()
        ],
    )
    codes, prior = result["codebook"], result["prior"]
    per_code = {"mean": prior["bits_per_code"], "ci95": prior["bits_per_code_ci95"]}
    rate = table(
        "codes",
        ["codes and prior", ""],
        [
            ["codes in use", f"{codes['codes_in_use']:.0%}"],
            ["perplexity", number(codes["perplexity"], 1)],
            ["bits per pixel by the codes' entropy", number(codes["entropy_bits_per_pixel"], 4)],
            ["bits per pixel under the prior", number(prior["bits_per_pixel"], 4)],
            ["bits per code under the prior", with_interval(per_code, 3)],
            ["bits per image under the prior", number(prior["bits_per_image"], 0)],
            ["of these the layout's", number(prior["layout_bits_per_image"], 0)],
        ],
    )
    if "realism" not in result:
        return {"reconstruction": reconstruction, "codes": rate}
    realism, copies = result["realism"], result["realism"]["copies"]
    samples = table(
        "realism",
        ["against the slices of the test people", "samples", "training people, decoded", "training people", ""],
        [
            [name, *(number(realism[one][key], digits) for one in ("samples", "decoded_floor", "floor")), meaning]
            for key, (name, meaning, digits) in REALISM.items()
        ],
    )
    gap = realism["prior_gap"]
    samples["rows"] += [
        ["samples over decoded slices: ratio of the Fréchet distances", number(realism["ratio"], 2), "1", "", ""],
        ["against decoded test slices: Fréchet distance", *(number(gap[one], 2) for one in list(gap)[:2]), "", ""],
        [
            "ratio of these two: the prior's own gap",
            number(gap["ratio"], 2),
            "1",
            "",
            "1: nothing is lost by the prior",
        ],
    ]
    tables = {"reconstruction": reconstruction, "codes": rate, "realism": samples}
    if "anatomy" in realism:
        tables["anatomy"] = table(
            "anatomy",
            ["anatomy", *ANATOMY_OF.values(), ""],
            [
                [name, *(number(realism["anatomy"][one][key], digits) for one in ANATOMY_OF), meaning]
                for key, (name, meaning, digits) in ANATOMY.items()
            ],
        )
    tables["copies"] = table(
        "copies",
        ["copies", ""],
        [
            ["samples nearer to a training slice than 99 % of test slices", f"{copies['share_of_samples']:.1%}"],
            ["that limit, MS-SSIM", number(copies["limit_ms_ssim"], 3)],
            ["samples nearer than 99 % of reconstructions", f"{copies['share_of_samples_by_reconstructions']:.1%}"],
            ["that limit, MS-SSIM", number(copies["limit_ms_ssim_by_reconstructions"], 3)],
            ["median of test slices, MS-SSIM", number(copies["median_ms_ssim_test_slices"], 3)],
            ["median of reconstructions of test slices, MS-SSIM", number(copies["median_ms_ssim_reconstructions"], 3)],
            ["median of samples, MS-SSIM", number(copies["median_ms_ssim_samples"], 3)],
        ],
    )
    return tables


def write(folder, config, result, people, credit):
    """Writes report.html from what is in the folder already.

    Args:
        folder: Where the pictures are, and where the report goes.
        config: The run's config.json.
        result: What is in metrics.json.
        people: DataFrame with a row for each test person.
        credit: Whom to name for the data; may be empty.
    """
    rows = [
        [number(value, 4) if isinstance(value, float) else value for value in person]
        for person in people.itertuples(index=False)
    ]
    settings = {name: dict(config[name]) for name in ("options", "models", "versions") if name in config}
    private = ("data_dir", "cache_dir")  # of no use to others
    data = config["options"]["data"]
    settings["options"]["data"] = {name: value for name, value in data.items() if name not in private}
    pictures = [
        {"name": name, "question": question, "caption": caption, "data": base64.b64encode(path.read_bytes()).decode()}
        for name, (question, caption) in PICTURES.items()
        if (path := folder / name).exists()
    ]
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    form = jinja2.Environment(loader=loader, autoescape=True).get_template("report.html.jinja")
    page = form.render(
        title=config["data"]["title"],
        decoder=result["decoder"],
        faults=result["faults"],
        features=result.get("realism", {}).get("features"),
        tables=summary_tables(result) | {"people": table("people", list(people), rows)},
        pictures=pictures,
        splits_sha256=config["splits_sha256"],
        settings=json.dumps(settings, indent=2),
        credit=credit,
    )
    write_text(folder / "report.html", page + "\n")
