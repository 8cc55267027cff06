"""The options of train.py, predict.py and evaluate.py: each one declared once, with its default, meaning and limits.

A group of options is a dataclass. A field that is an `option` is a flag: `base_filters` of `VQVAE` is
`--base-filters`, `epochs` of `PriorTraining` is `--prior-epochs`; the other fields are values that config.json keeps.
What is given on the command line wins over the run of `--start-from`, that over `--preset`, a preset over the demo's
defaults, and those over the defaults written here. Nothing heavy is imported: wrong options are refused at once.
"""

import argparse
import dataclasses
import difflib
import functools
import math
import operator
import shlex
import sys
import unicodedata
from pathlib import Path

from reading import layouts
from running.config import read_config
from system import console
from system.console import UserError


def option(default, meaning, choices=None, least=None, most=None, above=None, several=False, everyday=False):
    """A field of a group: its default, what it means (with its unit), and what it may be; its type is its annotation.

    Args:
        default: None where the program finds the value by itself.
        meaning: Phrase of `--help`.
        choices: The words that it may be.
        least, most, above: Limits of a number, the last one excluded.
        several: Whether it takes more than one value; it is a list then.
        everyday: Whether `--help` shows it, or `--help-all` alone.
    """
    limits = {"above": above, "least": least, "most": most}
    about = {"meaning": meaning, "choices": choices, "limits": limits, "several": several, "everyday": everyday}
    return dataclasses.field(default=default, metadata=about)


everyday = functools.partial(option, everyday=True)


# ----------------------------------------------------------------------------------------------------------------
# train.py
# ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Training:
    """the run"""

    data_dir: Path = everyday(None, "folder of images or volumes; without it, a demo cohort of synthetic people")
    run_dir: Path = everyday(None, "folder of the run (default: runs/ and the data folder's name, or runs/demo)")
    stage: str = everyday(
        "all",
        "what to train; all is everything but sharp, which trains a second decoder against a discriminator",
        ("all", "vqvae", "coarse", "coarse_prior", "prior", "sharp"),
    )
    preset: str = everyday(
        None,
        "sizes of the models; 1mm is for slices of 256 x 256 at 1 mm, vqvae-2017 is without coarse codes",
        ("default", "1mm", "vqvae-2017", "three-conv"),
    )
    start_from: Path = everyday(
        None,
        "folder of a trained run: all stages but sharp start from its weights, with its options where none are given",
    )
    precision: str = option(
        "auto", "of the computation; auto is bfloat16 where the hardware has it", ("auto", "float32", "bfloat16")
    )
    devices: int = option(1, "devices that share each batch, under JAX; 0 for all", least=0)
    dry_run: bool = everyday(
        False, "say what the data are and how long training would take, write splits.csv and preview.png, and stop"
    )


@dataclasses.dataclass(frozen=True)
class Data:
    """data"""

    layout: str = option(None, "how the data folder is laid out (default: recognised)", layouts.NAMES)
    image_size: int = everyday(
        None, "side of the square slices in pixels (default: what holds the native ones)", least=16
    )
    num_slices: int = option(32, "slices taken from each volume; 0: all that show something of the head", least=0)
    slice_spacing: float = option(2.0, "distance between them in mm", above=0)
    slice_middle: float = option(
        None, "mm from the top of the head to the middle slice (default: 60, less in small heads)", above=0
    )
    plane: str = option("axial", "plane of the slices of volumes", ("axial", "coronal", "sagittal"))
    voxel_size: float = option(
        None, "mm to which volumes are resampled, the same along all axes (default: as they are)", above=0
    )
    background: str = option("keep", "black sets all outside the head to 0", ("keep", "black"))
    subject_regex: str = option(
        None,
        "regular expression, searched in the path of each image or volume; its group 'subject' is the person; "
        "'session', 'slice', 'label' and 'split' are optional",
    )
    label_column: str = everyday(
        None, "column of participants.tsv that holds the label (default: diagnosis or group, where there is one)"
    )
    skip_bad_files: bool = everyday(False, "list unusable files in bad_files.txt and go on without them")
    validation_fraction: float = option(
        0.1, "share of the people for validation, where the data have no such split", above=0, most=1
    )
    test_fraction: float = option(
        0.15, "share of the people for testing, where the data have no such split", above=0, most=1
    )
    seed: int = everyday(0, "seed of splits, weights, order and dropout", least=0, most=2**32 - 1)
    cache_dir: Path = option(Path("cache"), "folder of decoded slices")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """how training slices are changed, anew in each epoch"""

    max_shift: int = option(2, "most pixels by which a slice is moved, up, down, left and right", least=0, most=64)
    mirrored: float = option(0.5, "share of the slices that are mirrored left to right", least=0, most=1)


@dataclasses.dataclass(frozen=True)
class Heads:
    """volumes"""

    neighbours: bool = everyday(
        False, "tell both priors the codes of the slice below, so that predict.py can draw --volumes"
    )


@dataclasses.dataclass(frozen=True)
class VQVAE:
    """VQ-VAE (each overrides the preset)"""

    downsampling: int = option(4, "pixels per code along each side", (2, 4, 8, 16))
    base_filters: int = option(32, "channels after the first convolution; each further one doubles them", least=2)
    num_residual_blocks: int = option(2, "residual blocks on the grid of codes, in encoder and decoder each", least=0)
    activation: str = option("auto", "auto is relu up to a downsampling of 4", ("auto", "relu", "leaky_relu"))
    num_embeddings: int = option(256, "entries of the codebook", least=2, most=2**16)
    embedding_dim: int = option(64, "length of each entry", least=1)
    num_quantizers: int = option(1, "codes of each place: levels, each of which codes what those before left", least=1)
    restart_threshold: float = option(
        0.02, "an entry used less than this share of the even use is moved; 0 never moves one", least=0
    )
    commitment_cost: float = option(0.25, "weight of the commitment term, beta", least=0)
    reconstruction_loss: str = option("l1_ssim", "what reconstructions are compared by", ("l1", "l2", "l1_ssim"))
    ssim_weight: float = option(0.3, "weight of (1 - SSIM) in l1_ssim", least=0)


@dataclasses.dataclass(frozen=True)
class Coarse:
    """coarse codes: a VQ-VAE of the slice shrunk to a few pixels, whose codes are drawn first"""

    image_size: int = 32  # pixels along a side of the shrunk slice; 0: no coarse codes, and the prior is told none
    downsampling: int = 4
    num_embeddings: int = 64
    embedding_dim: int = 16
    num_quantizers: int = 1


@dataclasses.dataclass(frozen=True)
class Prior:
    """prior of codes, given the coarse codes"""

    filters: int = option(64, "channels of both stacks", least=1)
    num_blocks: int = option(8, "gated blocks, layers of both stacks", least=2)
    attention_every: int = option(4, "blocks from one row attention to the next; 0 for none", least=0)
    dropout: float = option(0.0, "share of features dropped in training", least=0, most=0.99)


@dataclasses.dataclass(frozen=True)
class VQVAETraining:
    """training of the VQ-VAE: Muon, 30 % of the epochs without a quantiser; in each part warm-up and cosine decay"""

    epochs: int = everyday(20, "passes over the training people's slices", least=1)
    batch_size: int = option(4, "slices of a step", least=1)
    learning_rate: float = option(1e-2, "highest learning rate", above=0)
    patience: int = option(15, "epochs without a better reconstruction of the validation people, then it ends", least=1)
    continuous: float = 0.3  # share of the epochs that train encoder and decoder without a quantiser, before the others


@dataclasses.dataclass(frozen=True)
class PriorTraining:
    """training of the prior: Muon, the same schedule; an exponential average of the weights is what is kept"""

    epochs: int = everyday(40, "passes over the training people's slices", least=1)
    batch_size: int = option(8, "slices of a step", least=1)
    learning_rate: float = option(6e-3, "highest learning rate", above=0)
    patience: int = option(8, "epochs without fewer bits per code on the validation people, then it ends", least=1)
    average_over: float = 0.05  # share of all steps that the average of the weights reaches back


@dataclasses.dataclass(frozen=True)
class CoarsePrior:
    """prior of coarse codes"""

    filters: int = 64
    num_blocks: int = 8
    attention_every: int = 0
    dropout: float = 0.1


@dataclasses.dataclass(frozen=True)
class CoarseTraining:
    """training of the coarse codes' VQ-VAE, like that of the other"""

    epochs: int = option(30, "passes over the training people's slices", least=1)
    batch_size: int = 32
    learning_rate: float = 1e-2
    patience: int = 15
    continuous: float = 0.3


@dataclasses.dataclass(frozen=True)
class CoarsePriorTraining:
    """training of the prior of coarse codes, like that of the other"""

    epochs: int = option(40, "passes over the training people's slices", least=1)
    batch_size: int = 32
    learning_rate: float = 6e-3
    patience: int = 8
    average_over: float = 0.05


@dataclasses.dataclass(frozen=True)
class SharpTraining:
    """training of the sharp decoder: AdamW, the same schedule; an average of the weights is what is kept"""

    epochs: int = option(12, "passes over the training people's slices", least=1)
    batch_size: int = option(16, "slices of a step", least=1)
    patience: int = option(
        4, "epochs without a spectrum nearer to that of the validation people, then it ends", least=1
    )
    learning_rate: float = 5e-4
    adversarial_weight: float = 3.0  # pull of the discriminator on each image, as a share of the L1 loss's
    lecam_weight: float = 0.3  # of what keeps the discriminator from winning
    fine_blocks: int = 1  # residual blocks of the sharp decoder at each size finer than the code grid


# Sizes by name; anything not named is as declared above.
PRESETS = {
    "default": {},
    # For slices of 256 x 256 at 1 mm, as OASIS and ADNI have them: 32 x 32 codes instead of 64 x 64.
    "1mm": {"downsampling": 8, "num_embeddings": 512, "num_quantizers": 2},
    # After van den Oord et al. 2017, section 4.1: two residual blocks of 256 channels, L2; 512 entries of 64.
    "vqvae-2017": {
        "num_embeddings": 512,
        "embedding_dim": 64,
        "base_filters": 128,
        "reconstruction_loss": "l2",
        "coarse_image_size": 0,
    },
    # Three convolutions each way and 32 entries of 128, at 256 x 256 x 1.
    "three-conv": {"num_embeddings": 32, "embedding_dim": 128, "num_residual_blocks": 0, "reconstruction_loss": "l2"},
}

# Without --data-dir: a few minutes on two cores. Sizes of the VQ-VAE give way to any preset.
DEMO = {
    "image_size": 128,
    "downsampling": 8,
    "num_quantizers": 2,
    "vqvae_epochs": 4,
    "coarse_epochs": 5,
    "coarse_prior_epochs": 10,
    "coarse_prior_filters": 32,
    "prior_epochs": 6,
    "prior_filters": 32,
}

TRAIN = {  # each group by the beginning of its flags and its place in config.json
    ("", "command"): Training,
    ("", "data"): Data,
    ("", "augmentation"): Augmentation,
    ("", "heads"): Heads,
    ("", "vqvae"): VQVAE,
    ("coarse_", "coarse"): Coarse,
    ("coarse_prior_", "coarse_prior"): CoarsePrior,
    ("prior_", "prior"): Prior,
    ("vqvae_", "vqvae_training"): VQVAETraining,
    ("coarse_", "coarse_training"): CoarseTraining,
    ("coarse_prior_", "coarse_prior_training"): CoarsePriorTraining,
    ("prior_", "prior_training"): PriorTraining,
    ("sharp_", "sharp_training"): SharpTraining,
}


def train(argv=None):
    """Reads the command line of train.py.

    Returns:
        A namespace: `stage`, `run_dir`, `devices`, `dry_run`, `again` (the command without the last), and `options`,
        what config.json keeps, as JSON values: a dictionary for each group, and `precision`, which may still be "auto".
    """
    command = _read("Train a VQ-VAE on brain slices and a PixelCNN prior on its codes.", TRAIN, argv, _to_train)
    given = sys.argv[1:] if argv is None else argv
    command.again = shlex.join(["python", "train.py", *(part for part in given if part != "--dry-run")])
    return command


def _to_train(given):
    """The namespace of `train`; raises UserError where what is given makes no sense."""
    values = _values(given)
    command, data = values.pop("command"), values["data"]
    data_dir, start_from = command["data_dir"], command["start_from"]
    run_dir = command["run_dir"] or Path("runs") / (data_dir.resolve().name if data_dir else "demo")
    _refuse(given, data_dir, run_dir, data, values["vqvae"]["downsampling"])
    if values["heads"]["neighbours"] and not values["coarse"]["image_size"]:
        raise UserError("--neighbours: such priors need coarse codes, and this run has none; leave it out")
    data["slice_spacing_mm"] = data.pop("slice_spacing")
    data["data_dir"] = str(data_dir.resolve()) if data_dir else None
    data["cache_dir"] = str(data["cache_dir"].resolve())
    start_from = str(start_from.resolve()) if start_from else None
    options = {**values, "precision": command["precision"], "start_from": start_from}
    kept = {name: command[name] for name in ("stage", "devices", "dry_run")}
    return argparse.Namespace(**kept, run_dir=run_dir, options=options)


def _values(given):
    """The value of each field, by the group's place in config.json."""
    demo, preset, of_start = {} if "data_dir" in given else DEMO, given.get("preset"), _of_start(given)
    values = {}
    for (prefix, place), group in TRAIN.items():
        chosen = {field.name: field.default for field in dataclasses.fields(group)}
        others = demo if place != "vqvae" or not (preset or of_start) else {}
        others = others | PRESETS.get(preset, {})
        chosen |= {name: others[prefix + name] for name in chosen if prefix + name in others}
        chosen |= {name: value for name, value in of_start.get(place, {}).items() if name in chosen}
        if of_start and "continuous" in chosen:  # it has its codebooks
            chosen["continuous"] = 0.0
        values[place] = chosen | {name: given[prefix + name] for name in chosen if prefix + name in given}
    return values


def _of_start(given):
    """What the run of --start-from was trained with, by group, in place of defaults; of its data, the size alone."""
    start = given.get("start_from")
    if not start:
        return {}
    if "preset" in given:
        raise UserError(
            f"--preset {given['preset']}: the sizes are those of --start-from {start}; leave one of them out"
        )
    try:
        config = read_config(start)
    except UserError as error:
        raise UserError(f"--start-from {error}") from error
    groups = {place: config["options"].get(place, {}) for _, place in TRAIN if place not in ("command", "heads")}
    return groups | {"data": {"image_size": config["data"]["image_size"]}}


def _refuse(given, data_dir, run_dir, data, downsampling):
    """Raises UserError if what is asked for of the data makes no sense."""
    size = data["image_size"]
    if size is not None and size % downsampling:
        raise UserError(f"--image-size {size}: must be a multiple of --downsampling {downsampling}")
    if data["validation_fraction"] + data["test_fraction"] >= 1:
        raise UserError("--validation-fraction and --test-fraction: must be below 1 together")
    for name in ("plane", "voxel_size", "slice_middle", "num_slices", "slice_spacing"):
        if name in given and not data_dir:
            raise UserError(f"{_flag('', name)}: says how to read the volumes of --data-dir, which is not given")
    if data["slice_middle"] and not data["num_slices"]:
        raise UserError(f"--slice-middle {data['slice_middle']:g}: has no effect on --num-slices 0; leave it out")
    if data["slice_middle"] and data["plane"] != "axial":
        raise UserError(f"--slice-middle {data['slice_middle']:g}: is for --plane axial, not {data['plane']}")
    layouts.check(data_dir, data["layout"], data["subject_regex"], data["label_column"])
    for name, path in (("run", run_dir), ("cache", data["cache_dir"])):
        if data_dir and path.resolve().is_relative_to(data_dir.resolve()):
            raise UserError(f"--{name}-dir {path}: lies inside the data folder {data_dir}; choose another")


# ----------------------------------------------------------------------------------------------------------------
# predict.py and evaluate.py
# ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """the run"""

    run_dir: Path = everyday(Path("runs/demo"), "folder that train.py wrote")
    decoder: str = everyday(
        None, "which decoder (default: the sharp one where train.py --stage sharp has made it)", ("plain", "sharp")
    )
    data_dir: Path = everyday(None, "folder of the run's data now (default: where they were)")
    cache_dir: Path = option(None, "folder of decoded slices (default: where they were)")
    seed: int = everyday(0, "seed of all samples", least=0)


@dataclasses.dataclass(frozen=True)
class Truncation:
    """how codes are drawn"""

    coarse_temperature: float = option(1.0, "of the coarse codes; below 1: likelier and more alike", above=0)
    temperature: float = option(1.0, "of the codes, given the coarse codes", above=0)
    top_k: int = option(0, "draw among the k likeliest codes; 0 for all", least=0)
    top_p: float = option(1.0, "draw among the likeliest codes that make up this probability", above=0, most=1)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """what is drawn"""

    output_dir: Path = everyday(
        None, "where files and pictures go (default: in the run folder, predictions, inputs, completions or anomalies)"
    )
    num_samples: int = everyday(16, "how many slices to draw, or completions", least=1)
    volumes: int = everyday(None, "how many volumes to draw, of a run trained with --neighbours", least=1)
    label: str = everyday(None, "label of every sample (default: as often as in training; of inputs, the likeliest)")
    slice_position: float = everyday(
        None,
        "height of every sample, 0 the lowest and 1 the highest (default: as often as in training; of images, the "
        "likeliest)",
        least=0,
        most=1,
    )


@dataclasses.dataclass(frozen=True)
class Inputs:
    """scans of one's own; without them, new slices are drawn"""

    input: Path = everyday(None, "images, volumes or folders of them, to be reconstructed", several=True)
    mask: Path = everyday(None, "image of the size of the one --input; what is not 0 in it is drawn anew")
    anomaly: bool = everyday(False, "map what is uncommon in the inputs; that finds no disease")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """what is measured"""

    output_dir: Path = everyday(None, "where figures and pictures go (default: evaluation in the run folder)")
    num_samples: int = everyday(
        1000, "slices drawn; from 100 on they are compared with the test people", least=1, most=2000
    )
    num_heads: int = option(
        100,
        "volumes drawn and measured (half an hour), of a run trained with --neighbours; 0 for none",
        least=0,
        most=2000,
    )


# What predict.py is asked for, and the options that have no effect on it.
WITHOUT_EFFECT = {
    "anomaly": ("num_samples", "data_dir", "cache_dir"),
    "mask": ("data_dir", "cache_dir"),
    "input": (
        "num_samples",
        "data_dir",
        "cache_dir",
        "seed",
        *(field.name for field in dataclasses.fields(Truncation)),
    ),
    "volumes": ("num_samples", "slice_position", "data_dir", "cache_dir"),
}


def predict(argv=None):
    """Reads the command line of predict.py: the fields of `TrainedRun`, `Prediction`, `Inputs` and `Truncation`."""
    groups = {("", group.__name__): group for group in (TrainedRun, Prediction, Inputs, Truncation)}
    return _read(
        "Draw new slices from a trained run, or apply it to scans of your own.",
        groups,
        argv,
        lambda given: _to_predict(_of_a_run(groups, given), given),
    )


def _to_predict(args, given):
    """The arguments; raises UserError where they do not go together."""
    for flag, value in (("--mask", args.mask), ("--anomaly", args.anomaly)):
        if value and not args.input:
            raise UserError(f"{flag}: is for a scan, which --input gives")
    if args.volumes and args.input:
        raise UserError(f"--volumes {args.volumes}: draws new volumes, and --input gives scans; give one of them")
    if args.mask and args.anomaly:
        raise UserError("--mask and --anomaly: give one of them")
    if args.mask and (len(args.input) > 1 or args.input[0].is_dir()):
        raise UserError(f"--mask {args.mask}: is for one image or volume, and --input gives more")
    task = next((task for task in WITHOUT_EFFECT if given.get(task)), None)
    for name in WITHOUT_EFFECT.get(task, ()):
        if name in given:
            raise UserError(f"{_flag('', name)}: has no effect on {_flag('', task)}; leave it out")
    for path in [*(args.input or []), *[args.mask] * bool(args.mask)]:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
    return args


def evaluate(argv=None):
    """Reads the command line of evaluate.py: a namespace of the fields of `TrainedRun`, `Evaluation`, `Truncation`."""
    groups = {("", group.__name__): group for group in (TrainedRun, Evaluation, Truncation)}
    about = "Measure a trained run on its test people, and its samples against them."
    return _read(about, groups, argv, lambda given: _of_a_run(groups, given))


def _of_a_run(groups, given):
    """The options of a command that needs a run, as a namespace; raises UserError where they do not fit the run."""
    values = {field.name: field.default for group in groups.values() for field in dataclasses.fields(group)}
    args = argparse.Namespace(**values | given)
    config = read_config(args.run_dir)
    labels = config["data"]["labels"]
    if given.get("label") is not None:
        spelled = {unicodedata.normalize("NFC", label): label for label in labels}
        if unicodedata.normalize("NFC", args.label) not in spelled:
            raise UserError(f"--label {args.label}: the run knows {', '.join(labels) or 'no labels'}")
        args.label = spelled[unicodedata.normalize("NFC", args.label)]
    if "coarse_temperature" in given and not config["options"]["coarse"]["image_size"]:
        raise UserError(f"--coarse-temperature: {args.run_dir} has no coarse codes; leave it out")
    if args.decoder == "sharp" and not (args.run_dir / "sharp.keras").exists():
        raise UserError(f"--decoder sharp: no sharp.keras in {args.run_dir}; run train.py --stage sharp first")
    return args


# ----------------------------------------------------------------------------------------------------------------
# From groups to a parser
# ----------------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        print("error:", message, file=sys.stderr)
        raise SystemExit(1)


def _flag(prefix, name):
    return f"--{prefix}{name}".replace("_", "-")


def flags(groups):
    """The fields of some groups that are flags, each by its flag."""
    return {
        _flag(prefix, field.name): field
        for (prefix, _), group in groups.items()
        for field in dataclasses.fields(group)
        if field.metadata
    }


def _path(text):
    if not text:
        raise argparse.ArgumentTypeError("an empty path; is a variable of the shell not set?")
    return Path(text)


def _build(description, groups, everything):
    parser = _Parser(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--help-all", action="store_true", help="show every option and exit")
    for (prefix, place), group in groups.items():
        title = parser.add_argument_group(group.__doc__)
        for flag, field in flags({(prefix, place): group}).items():
            about = field.metadata
            if field.type is bool:
                how = {"action": "store_true"}
            else:
                choices = "{" + ", ".join(map(str, about["choices"])) + "}" if about["choices"] else None
                how = {
                    "type": {Path: _path}.get(field.type, field.type),
                    "metavar": choices or field.type.__name__.upper(),
                }
                how |= {"nargs": "+"} if about["several"] else {}
            shown = [] if field.default is None or field.type is bool else [f"default: {field.default}"]
            if "data" in [place for _, place in groups] and prefix + field.name in DEMO:
                shown.append(f"demo: {DEMO[prefix + field.name]}")
            meaning = about["meaning"] + f" ({'; '.join(shown)})" * bool(shown)
            meaning = meaning if everything or about["everyday"] else argparse.SUPPRESS
            title.add_argument(flag, dest=prefix + field.name, help=meaning, **how)
    return parser


def _read(description, groups, argv, check):
    """What `check` makes of what is given, a dictionary without defaults; ends the process where that is wrong."""
    if argv is None:  # the process is the command's own
        console.prepare()
    parser = _build(description, groups, everything=False)
    given, others = parser.parse_known_args(argv)
    given = vars(given)
    if given.pop("help_all", False):
        _build(description, groups, everything=True).print_help()
        raise SystemExit(0)
    known = flags(groups)
    if others:
        unknown = others[0].partition("=")[0]
        alike = [flag for flag in known if flag.endswith(f"-{unknown.lstrip('-')}")]
        alike = sorted(alike, key=lambda flag: "vqvae" not in flag) or difflib.get_close_matches(
            unknown, known, 1, cutoff=0.7
        )
        parser.error(
            f"{unknown}: no such option; " + (f"did you mean {' or '.join(alike)}?" if alike else "see --help-all")
        )
    for flag, field in known.items():
        value = given.get(flag.lstrip("-").replace("-", "_"))
        wrong = None if value is None else _wrong(value, field)
        if wrong:
            parser.error(f"{flag} {value}: must be {wrong}")
    try:
        return check(given)
    except UserError as error:
        return parser.error(str(error))


def _wrong(value, field):
    """What a value must be, where it is not; None where it is."""
    choices, limits = field.metadata["choices"], field.metadata["limits"]
    if choices:
        return None if value in choices else f"one of {', '.join(map(str, choices))}"
    if field.type not in (int, float):
        return None
    kept = {"above": operator.gt, "least": operator.ge, "most": operator.le}
    words = {"above": "above {}", "least": "{} or more", "most": "at most {}"}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    if math.isfinite(value) and all(kept[name](value, limit) for name, limit in limits.items()):
        return None
    return " and ".join(words[name].format(limit) for name, limit in limits.items()) or "a finite number"
