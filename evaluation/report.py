"""report.html: all that evaluate.py found, in one file that needs no network; report.html.jinja is its form."""

import base64
import datetime
import io
import json
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
import pandas as pd
import PIL.Image
from matplotlib import colormaps

from evaluation.metrics import percent
from system.files import write_text

ROOT = Path(__file__).parent.parent
MOST_PORTRAITS = 100  # people of whom there is a picture
HEIGHT = 0.6  # slice position of the first picture of a person, where most can be seen
NO_BREAK = "\N{NO-BREAK SPACE}"


class Picture(NamedTuple):
    """Where a picture stands, the question that it answers, how to read it, and what one would see."""

    section: str
    question: str
    caption: str
    alt: str


PICTURES = {
    "reconstructions.png": Picture(
        "reconstruction",
        "What is lost between a slice and its codes?",
        "Test people, one slice each: input, output, and their difference.",
        "Each column is a slice of a test person: the input, the reconstruction, and their difference in red and blue.",
    ),
    "worst.png": Picture(
        "reconstruction",
        "How bad can it get?",
        "The test slices of as many people whose SSIM inside the head is lowest.",
        "The slices with the lowest SSIM, the worst on the left: the input, the reconstruction, and their difference.",
    ),
    "masks.png": Picture(
        "reconstruction",
        "What counts as inside the head?",
        "The outline within which SSIM is averaged: what is brighter than half of Otsu's threshold, without gaps.",
        "A row of brain slices. An orange line follows the outline of each head.",
    ),
    "spectrum.png": Picture(
        "reconstruction",
        "How much of each size of detail survives?",
        "Power of reconstructions and samples over that of test slices, in eight rings of the frequency plane. "
        "1 is right. Below 1 is blur.",
        "Curves of power against spatial frequency, from coarse to fine. A grey line marks 1, that of test slices.",
    ),
    "codebook.png": Picture(
        "codes",
        "Are all codes at work?",
        "Use of each code on the test slices, and how many different ones appear at each place.",
        "Left: bars of the use of each code, the most used first, with a red line at even use. "
        "Right: a map of how many different codes appear at each place of the grid.",
    ),
    "bits.png": Picture(
        "codes",
        "Where do the bits go?",
        "What the codes of a slice cost under the prior, in bits: the mean over test slices, and single slices.",
        "Brain slices above maps of the bits of their codes, bright where a code was unexpected; first the mean map.",
    ),
    "samples.png": Picture(
        "samples",
        "Do samples look like brains?",
        "The first samples, not picked.",
        "A grid of brain slices that the model has drawn. Each has its label and slice position above it.",
    ),
    "positions.png": Picture(
        "samples",
        "Does the prior know where a slice lies?",
        "The same noise at eight slice positions, from the lowest to the highest.",
        "Drawn brain slices from the lowest position on the left to the highest on the right, a row for each label.",
    ),
    "closest.png": Picture(
        "samples",
        "Are samples copies of training slices?",
        "The samples most like a training slice, above that slice; MS-SSIM after a translation.",
        "Two rows of brain slices: samples above, and below each the training slice that is most like it.",
    ),
    "volumes.png": Picture(
        "heads",
        "Do the slices of a volume fit together?",
        "Drawn by the model are the columns “drawn”, volumes drawn slice by slice from the lowest upwards, and "
        "“slices alone”, a pile of slices that belong to nobody. The last column, “real”, is a test person. "
        "“real, decoded” is that person after the VQ-VAE. L and R are left and right.",
        "Columns of volumes, each in an axial, a coronal and a sagittal view. First those that the model drew, then "
        "slices drawn alone, then a real test person's after the VQ-VAE, and last that real one as it was.",
    ),
    "history.png": Picture(
        "training",
        "Has training come to its end?",
        "Curves of each stage, training and validation people.",
        "Curves of each stage of training against the epoch, grey for training people and red for validation people.",
    ),
}
NO_HEAD = "No test slice has a head, so that there is no worst one (worst.png)."

# What each figure is called, what it means, and how many digits are shown.
RECONSTRUCTION = {
    "ssim": ("SSIM of the whole image", 3),
    "ssim_head": ("SSIM inside the head", 3),
    "ms_ssim": ("MS-SSIM", 3),
    "psnr_db": ("PSNR (dB)", 2),
    "l1": ("mean absolute difference", 4),
}
PEOPLE = {
    "subject_id": ("person", None),
    "label": ("label", None),
    "slices": ("slices", 0),
    **RECONSTRUCTION,
    "bits_per_code": ("bits per code", 3),
}
REALISM = {
    "frechet_distance": ("Fréchet distance", "0 for equal sets", 2),
    "mmd": ("MMD², unbiased", "around 0 for equal sets", 4),
    "precision": ("precision", "share of samples within the real slices", 3),
    "recall": ("recall", "share of real slices within the samples", 3),
    "density": ("density", "around 1 for equal sets", 3),
    "coverage": ("coverage", "share of real slices that have a sample near", 3),
    "classifier_accuracy": ("accuracy of a classifier", "0.5 cannot tell", 3),
    "ms_ssim_diversity": ("MS-SSIM between people", "lower is more diverse", 3),
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
HEADS_OF = {
    "drawn": "drawn",
    "independent": "slices drawn alone",
    "decoded_test": "test people, decoded",
    "test": "test people",
    "decoded_floor": "training people, decoded",
    "floor": "training people",
    "real": "all people",
}
STAGES = {
    "vqvae": "VQ-VAE",
    "coarse": "VQ-VAE of coarse codes",
    "coarse_prior": "prior of coarse codes",
    "prior": "prior of codes",
    "sharp": "sharp decoder",
}


# -- Tables -------------------------------------------------------------------------------------------------------


def number(value, digits):
    """A number as text, "-" for none."""
    return "-" if value is None or pd.isna(value) else f"{value:.{digits}f}"


def with_interval(summary, digits):
    """Mean and interval of what `metrics.over_people` returns; the interval is not broken into lines."""
    mean = number(summary["mean"], digits)
    if summary["ci95"] is None:
        return mean
    low, high = (number(end, digits) for end in summary["ci95"])
    return f"{mean} ({low}{NO_BREAK}to{NO_BREAK}{high})"


def listed(counts, most=4):
    """Names with their numbers, "a (3), b (1), 5 more" of a dictionary; empty for none."""
    shown = [f"{name} ({count})" for name, count in list(counts.items())[:most]]
    return ", ".join([*shown, *[f"{len(counts) - most} more"] * (len(counts) > most)])


def table(name, head, rows):
    """A table; the first cell of a row may be a pair, a name and what it means."""
    return {"name": name, "head": head, "rows": rows}


def splits_table(splits):
    """People and slices of each split, and people of each label; `splits` as metrics.json has them."""
    counts = [item for of_one in splits.values() for item in of_one.get("labels", {}).items()]
    labels = list(dict.fromkeys(label for label, number in counts if number))
    return table(
        "splits",
        ["split, by person", "people", "slices", *(f"people: {label or 'without a label'}" for label in labels)],
        [
            [name, of_one["people"], of_one["slices"], *(of_one.get("labels", {}).get(label, 0) for label in labels)]
            for name, of_one in splits.items()
        ],
    )


def reconstruction_table(result):
    methods = {"this model": result["reconstruction"], **result["baselines"]}
    bits = {"this model": result["codebook"]["bits_per_pixel"]}
    return table(
        "reconstruction-figures",
        ["method", *(name for name, _ in RECONSTRUCTION.values()), "bits per pixel"],
        [
            [
                name,
                *(with_interval(values[key], digits) for key, (_, digits) in RECONSTRUCTION.items()),
                number(bits.get(name, values.get("bits_per_pixel")), 3),
            ]
            for name, values in methods.items()
        ],
    )


def codes_table(result):
    codes, prior = result["codebook"], result["prior"]
    per_code = {"mean": prior["bits_per_code"], "ci95": prior["bits_per_code_ci95"]}
    perplexity = " / ".join(number(one, 1) for one in codes["perplexity_by_level"])
    by_level = " / ".join(number(one, 3) for one in prior["bits_by_level"])
    dimension = number(codes["effective_dimension"], 1)
    return table(
        "codes-figures",
        ["codes and prior", ""],
        [
            ["codes in use", percent(codes["codes_in_use"])],
            [("perplexity, by level", "how many codes, evenly used, would be as hard to guess"), perplexity],
            [("effective dimension", "in how many directions the vectors of the codes vary"), dimension],
            ["bits per pixel by the codes' entropy", number(codes["entropy_bits_per_pixel"], 4)],
            ["bits per pixel under the prior", number(prior["bits_per_pixel"], 4)],
            ["bits per code under the prior", with_interval(per_code, 3)],
            ["the slice's own codes alone, by level", by_level],
            ["bits per image under the prior", number(prior["bits_per_image"], 0)],
            ["of these the coarse codes'", number(prior["coarse_bits_per_image"], 0)],
        ],
    )


def samples_tables(realism):
    """How samples stand to the test people, the anatomy in them, and whether they are copies."""
    gap, copies, sets = realism["prior_gap"], realism["copies"], ("samples", "decoded_floor", "floor")

    def rows(names, values, columns):
        """A row for each metric of `names`."""
        return [
            [(name, meaning), *(number(values[column][key], digits) for column in columns)]
            for key, (name, meaning, digits) in names.items()
        ]

    own = ("ratio of these two: the prior's own gap", "1: nothing is lost by the prior")
    samples = [
        *rows(REALISM, realism, sets),
        ["samples over decoded slices: ratio of the Fréchet distances", number(realism["ratio"], 2), "1", ""],
        ["against decoded test slices: Fréchet distance", *(number(gap[name], 2) for name in sets[:2]), ""],
        [own, number(gap["ratio"], 2), "1", ""],
    ]
    head = ["against the slices of the test people", "samples", "training people, decoded", "training people"]
    tables = {"realism": table("realism", head, samples)}
    if "anatomy" in realism:
        of_sets = rows(ANATOMY, realism["anatomy"], ANATOMY_OF)
        tables["anatomy"] = table("anatomy", ["anatomy", *ANATOMY_OF.values()], of_sets)
    tables["copies"] = table(
        "copies",
        ["copies", ""],
        [
            ["samples closer to a training slice than 99 % of test slices are", f"{copies['share_of_samples']:.1%}"],
            ["that limit, MS-SSIM", number(copies["limit_ms_ssim"], 3)],
            ["samples nearer than 99 % of reconstructions", f"{copies['share_of_samples_by_reconstructions']:.1%}"],
            ["that limit, MS-SSIM", number(copies["limit_ms_ssim_by_reconstructions"], 3)],
            ["median of test slices, MS-SSIM", number(copies["median_ms_ssim_test_slices"], 3)],
            ["median of reconstructions of test slices, MS-SSIM", number(copies["median_ms_ssim_reconstructions"], 3)],
            ["median of samples, MS-SSIM", number(copies["median_ms_ssim_samples"], 3)],
        ],
    )
    return tables


def heads_table(heads):
    """Volumes beside real ones, from what `heads.judge_heads` returns."""
    copies = heads["copies"]

    def row(name_of_row, meaning, values, digits=3):
        """`values` may be numbers, or a mean and a standard deviation each."""
        cells = []
        for name in HEADS_OF:
            value = values.get(name, "")
            if isinstance(value, dict):
                value = f"{number(value['mean'], digits)}{NO_BREAK}±{NO_BREAK}{number(value['sd'], digits)}"
            cells.append(value if isinstance(value, str) else number(value, digits))
        return [(name_of_row, meaning), *cells]

    finest = {name: (values or [None])[-1] for name, values in heads["axis_power_ratio"].items()}
    spread, equal, frechet = "ml, mean and standard deviation", "0 for equal sets, at most 1", "Fréchet distance"
    share = f"{copies['share_nearer_than_any_test_person']:.0%}"
    median, most = ({n: copies[f"{kind}_ms_ssim_{n}"] for n in ("drawn", "test")} for kind in ("median", "most"))
    return table(
        "heads-figures",
        [f"{heads['number']} volumes drawn", *HEADS_OF.values()],
        [
            row("likeness of neighbouring slices", "mean MS-SSIM", heads["neighbours"]),
            row("finest detail along the axis", "power, that of test people is 1", finest | {"test": 1.0}, 2),
            *(row(f"{plane} views against test people", frechet, heads[plane], 2) for plane in ("coronal", "sagittal")),
            row("head; brain, where no skull is shown", spread, heads["brain_ml"], 0),
            row("distance to all people", equal, {"drawn": heads["brain_ml"]["distance"]}),
            row("lateral ventricles", spread, heads["ventricles_ml"], 1),
            row("distance to all people", equal, {"drawn": heads["ventricles_ml"]["distance"]}),
            row("likeness to the nearest training person", "median MS-SSIM", median),
            row("that of the volume that is most like one", "MS-SSIM", most),
            row("volumes more like a training person than any test person is", "share", {"drawn": share}),
        ],
    )


def training_table(training):
    rows = [[STAGES[stage], of["epochs"], number(of["seconds"] / 60, 1)] for stage, of in training.items()]
    return table("training-figures", ["stage", "epochs", "minutes"], rows)


def people_table(people):
    """A row for each test person; people.csv without column names of programs, and with as many digits as count."""
    columns = [name for name in people if name != "label" or people.label.any()]
    names, digits = zip(*(PEOPLE[name] for name in columns), strict=True)
    rows = [
        [value if after is None else number(value, after) for value, after in zip(row, digits, strict=True)]
        for row in people[columns].itertuples(index=False)
    ]
    return table("people", list(names), rows)


# -- Pictures of people -------------------------------------------------------------------------------------------


def _panel(image, output):
    """Input, output and their difference side by side, red where the output is too bright: uint8, (S, 3 S, 3)."""
    difference = colormaps["RdBu_r"]((output - image) / 0.6 + 0.5)[..., :3]
    grey = np.repeat(np.concatenate([image, output], axis=1)[..., None], 3, axis=2)
    return (np.concatenate([grey, difference], axis=1).clip(0, 1) * 255).round().astype("uint8")


def _jpeg(picture):
    """A picture as JPEG, in base64."""
    file = io.BytesIO()
    PIL.Image.fromarray(picture).save(file, "JPEG", quality=90, subsampling=0)
    return base64.b64encode(file.getvalue()).decode()


def pictures_of_people(test, per_slice, show):
    """A small picture of each test person: a slice at about 0.6 of the height, and the person's worst one below.

    Args:
        test: DataFrame of the test slices.
        per_slice: A dictionary of metrics for each.
        show: Function from places in these, integers, to their images and outputs, float in [0, 1], shape (n, S, S).

    Returns:
        By name of the person, a dictionary of `jpeg` (base64) and `caption`: of at most 100 people, those whose SSIM
        inside the head is lowest, and these first.
    """
    about = test.reset_index(drop=True)[["subject_id", "slice_position"]]
    about["quality"] = [values["ssim_head"] for values in per_slice]
    about["away"] = (about.slice_position - HEIGHT).abs()
    people, chosen = about.groupby("subject_id", sort=False), {}
    for person in people.quality.mean().sort_values(kind="stable").index[:MOST_PORTRAITS]:
        mine = people.get_group(person)
        chosen[person] = list(dict.fromkeys([mine.away.idxmin(), *mine.quality.dropna().nsmallest(1).index]))
    panels, portraits = map(_panel, *show(np.concatenate(list(chosen.values())))), {}
    for person, places in chosen.items():
        words = [
            f"{row}: the slice at {about.slice_position[i]:.2f} of the height, "
            f"SSIM inside the head {number(about.quality[i], 3)}."
            for row, i in zip(("Above", "Below, the worst"), places, strict=False)
        ]
        jpeg = _jpeg(np.concatenate([next(panels) for _ in places]))
        portraits[person] = {"jpeg": jpeg, "caption": " ".join(words)}
    return portraits


# -- The report ---------------------------------------------------------------------------------------------------


def code_version():
    """What git calls the version of this code, with "-dirty" where files were changed; "unknown" without git."""
    how = ["git", "-C", str(ROOT), "--no-optional-locks", "describe", "--always", "--tags", "--dirty"]
    try:
        return subprocess.run(how, capture_output=True, text=True, timeout=20, check=True).stdout.strip() or "unknown"
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def citation():
    """The repository's CITATION.cff: `text`, and its `title` and `version` where they are; empty without the file."""
    path = ROOT / "CITATION.cff"
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    found = {name: re.search(rf"^{name}: *(.+?) *$", text, re.MULTILINE) for name in ("title", "version")}
    return {"text": text, **{name: line[1].strip("\"'") for name, line in found.items() if line}}


def facts(config, result, command):
    """The first table: what was measured, on whose data, how; pairs of a name and text, or of a name and lines."""
    data, about, versions = config["data"], config["data"]["about"], config["versions"]
    scale = f"{about['pixel_mm']:.3g} mm a pixel" if about["pixel_mm"] else "millimetres not known"
    size, regex = data["image_size"], config["options"]["data"]["subject_regex"]
    values = {
        "Data": data["title"],
        "Layout of the data": f"by --subject-regex {regex}" if data["layout"] == "regex" else data["layout"],
        "Slices": f"{about['plane'] or 'plane not known'}, {size} x {size} pixels, {scale}",
        "Voxel size of the volumes": listed(about["voxel_size"]) or "not known",
        "Orientation of the volumes": listed(about["orientation"]),
        "Native size in pixels": listed(about["native_pixels"]),
        "Labels": ", ".join(data["labels"]) or "none",
        "Notices": data["notices"] or "none",
        "Model": f"VQ-VAE with its {result['decoder']} decoder, PixelCNN prior",
        "Measured on": "the test people, who are in no other split",
        "Command": command,
        "Date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "Version of the code": code_version(),
        "Packages at training": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "SHA-256 of the split": config["splits_sha256"],
    }
    return [(name, value) for name, value in values.items() if value]


def headline(result):
    """The figures above everything: pairs of a number and its name."""
    ssim, ssim_head, psnr = (result["reconstruction"][name]["mean"] for name in ("ssim", "ssim_head", "psnr_db"))
    figures = [
        (number(ssim, 3), "SSIM of the whole image"),
        (number(ssim_head, 3), "SSIM inside the head"),
        (number(psnr, 1), "dB of PSNR"),
        (percent(result["codebook"]["codes_in_use"]), "of the codes in use"),
        (number(result["prior"]["bits_per_code"], 2), "bits per code"),
    ]
    if "realism" in result:
        figures.append((number(result["realism"]["prior_gap"]["ratio"], 2), "the prior's own gap, 1 is best"))
    return figures


def write(folder, config, result, people, credit, command, portraits):
    """Writes report.html from what is in the folder already.

    Args:
        folder: Where the pictures are, and where the report goes.
        config: The run's config.json.
        result: What is in metrics.json; `missing` says why a part is not there.
        people: DataFrame with a row for each test person.
        credit: Whom to name for the data; may be empty.
        command: What was typed, as one line.
        portraits: What `pictures_of_people` returns.
    """
    private = ("data_dir", "cache_dir")  # of no use to others
    settings = {name: dict(config[name]) for name in ("options", "models", "versions")}
    settings["options"]["data"] = {k: v for k, v in config["options"]["data"].items() if k not in private}
    tables = {
        "reconstruction": [reconstruction_table(result)],
        "codes": [codes_table(result)],
        "training": [training_table(result["training"])],
    }
    if "realism" in result:
        tables["samples"] = list(samples_tables(result["realism"]).values())
    if "heads" in result:
        tables["heads"] = [heads_table(result["heads"])]
    missing = {section: [f"{why}."] for section, why in result["missing"].items()}
    pictures = {}
    for name, picture in PICTURES.items():
        if (folder / name).exists():
            encoded = base64.b64encode((folder / name).read_bytes()).decode()
            shown = {"id": Path(name).stem, "data": encoded, **picture._asdict()}
            pictures.setdefault(picture.section, []).append(shown)
        elif name == "worst.png":
            missing.setdefault("reconstruction", []).append(NO_HEAD)
    if len(portraits) < len(people):
        missing["people"] = [f"pictures of {len(people) - len(portraits)} more people, whose SSIM is higher."]
    _write_page(
        folder / "report.html",
        title=config["data"]["title"],
        result=result,
        facts=facts(config, result, command),
        headline=headline(result),
        splits=splits_table(result["splits"]),
        tables=tables,
        pictures=pictures,
        missing=missing,
        people=people_table(people),
        portraits=portraits,
        settings=json.dumps(settings, indent=2),
        credit=credit,
        citation=citation(),
    )


COLUMNS = {  # of inputs.html: those of inputs.csv, and their digits
    "slices": ("slices", 0),
    "ssim": ("SSIM", 3),
    "ssim_head": ("SSIM inside the head", 3),
    "ssim_head_percentile": ("percentile", 0),
    "psnr_db": ("PSNR (dB)", 1),
    "bits_per_code": ("bits per code", 2),
    "bits_per_code_percentile": ("percentile", 0),
}


def write_inputs(folder, rows, about, of):
    """Writes inputs.html beside inputs.png.

    Args:
        folder: Where both are.
        rows: Those of inputs.csv, dictionaries.
        about: What `TrainedModel.about` tells of the run.
        of: How many of the inputs the picture shows.
    """
    shown = {name: column for name, column in COLUMNS.items() if any(name in row for row in rows)}
    cells = [[row["input"], *(number(row.get(n), digits) for n, (_, digits) in shown.items())] for row in rows]
    _write_page(
        folder / "inputs.html",
        title=f"{rows[0]['input'] if len(rows) == 1 else f'{len(rows)} inputs'}, seen by {about['run']}",
        warnings=[f"{row['input']} is unlike the run's data: {row['outside']}" for row in rows if row["outside"]],
        notices={row["input"]: row["notices"] for row in rows if row["notices"]},
        picture=base64.b64encode((folder / "inputs.png").read_bytes()).decode(),
        table=table("inputs", ["input", *(words for words, _ in shown.values())], cells),
        about=about,
        of=of,
    )


def _write_page(path, **values):
    """Fills the form of that name."""
    forms = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    write_text(path, forms.get_template(f"{path.name}.jinja").render(**values) + "\n")
