"""The options of train.py, predict.py and evaluate.py: each one declared once, with its default, meaning and limits.

A group of options is a dataclass, a field is a flag: `base_filters` of `VQVAE` is `--base-filters`, `epochs` of
`PriorTraining` is `--prior-epochs`. What is given on the command line wins over `--preset`, a preset over the demo's
defaults, and those over the defaults written here. Nothing heavy is imported: wrong options are refused at once.
"""

import argparse
import dataclasses
import difflib
import json
import sys
from pathlib import Path

from reading import layouts
from system.console import UserError


def option(default, meaning, choices=None, least=None, most=None, above=None, kind=None, several=False, everyday=False):
    """A field of a group: its default, what it means (with its unit), and what it may be.

    Args:
        default: None where the program finds the value by itself.
        meaning: Phrase of `--help`.
        choices: The words that it may be.
        least, most, above: Limits of a number, the last one excluded.
        kind: Type, where the default does not say it.
        several: Whether it takes more than one value; it is a list then.
        everyday: Whether `--help` shows it, or `--help-all` alone.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "meaning": meaning,
            "choices": choices,
            "least": least,
            "most": most,
            "above": above,
            "kind": kind or type(default),
            "several": several,
            "everyday": everyday,
        },
    )


def option_like(group, name, default):
    """A group's option of this name with another default, for a group that inherits the rest; not an everyday one."""
    return dataclasses.field(default=default, metadata={**group.__dataclass_fields__[name].metadata, "everyday": False})


# ----------------------------------------------------------------------------------------------------------------
# train.py
# ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Training:
    """the run"""

    data_dir: Path = option(
        None, "folder of images or volumes; without it, a demo cohort of synthetic people", kind=Path, everyday=True
    )
    run_dir: Path = option(
        None, "folder of the run (default: runs/ and the data folder's name, or runs/demo)", kind=Path, everyday=True
    )
    stage: str = option(
        "all",
        "what to train; all is the first four, sharp trains a second decoder against a discriminator",
        ("all", "vqvae", "coarse", "coarse_prior", "prior", "sharp"),
        everyday=True,
    )
    preset: str = option(
        None,
        "sizes of the VQ-VAE; 1mm is for slices of 256 x 256 at 1 mm",
        ("default", "1mm", "vqvae-2017", "three-conv"),
        kind=str,
        everyday=True,
    )
    start_from: Path = option(
        None,
        "folder of a trained run whose weights each stage starts from; with one --stage, it lends the others' models",
        kind=Path,
        everyday=True,
    )
    precision: str = option(
        "auto", "of the computation; auto is bfloat16 where the hardware has it", ("auto", "float32", "bfloat16")
    )
    devices: int = option(1, "devices that share each batch, under JAX; 0 for all", least=0)
    dry_run: bool = option(
        False, "read the data, say what they are, write splits.csv and preview.png, and stop", everyday=True
    )


@dataclasses.dataclass(frozen=True)
class Data:
    """data"""

    layout: str = option(None, "how the data folder is laid out (default: recognised)", layouts.NAMES, kind=str)
    image_size: int = option(
        None,
        "side of the square slices in pixels (default: what holds the native ones)",
        least=16,
        kind=int,
        everyday=True,
    )
    num_slices: int = option(32, "slices taken from each volume", least=1)
    slice_spacing: float = option(2.0, "distance between them in mm", above=0)
    slice_middle: float = option(
        None, "mm from the top of the head to the middle slice (default: 60, less in small heads)", above=0, kind=float
    )
    plane: str = option("axial", "plane of the slices of volumes", ("axial", "coronal", "sagittal"))
    voxel_size: float = option(
        None, "mm to which volumes are resampled, the same along all axes (default: as they are)", above=0, kind=float
    )
    background: str = option("keep", "black sets all outside the head to 0", ("keep", "black"))
    subject_regex: str = option(
        None,
        "regular expression, searched in the path of each image or volume; its group 'subject' is the person; "
        "'session', 'slice', 'label' and 'split' are optional",
        kind=str,
    )
    label_column: str = option(
        None,
        "column of participants.tsv that holds the label (default: diagnosis or group, where there is one)",
        kind=str,
        everyday=True,
    )
    skip_bad_files: bool = option(False, "list unusable files in bad_files.txt and go on without them", everyday=True)
    validation_fraction: float = option(
        0.1, "share of the people for validation, where the data have no such split", above=0, most=1
    )
    test_fraction: float = option(
        0.15, "share of the people for testing, where the data have no such split", above=0, most=1
    )
    seed: int = option(
        0, "a number from which splits, weights, order and dropout follow", least=0, most=2**32 - 1, everyday=True
    )
    cache_dir: Path = option(Path("cache"), "folder of decoded slices")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """how training slices are changed, anew in each epoch"""

    max_shift: int = option(2, "most pixels by which a slice is moved, up, down, left and right", least=0, most=64)
    mirrored: float = option(0.5, "share of the slices that are mirrored left to right", least=0, most=1)


@dataclasses.dataclass(frozen=True)
class Heads:
    """whole heads"""

    neighbours: bool = option(
        False,
        "tell both priors the codes of the slice below or above, so that predict.py can draw --volumes",
        everyday=True,
    )


@dataclasses.dataclass(frozen=True)
class VQVAE:
    """VQ-VAE (each overrides the preset)"""

    downsampling: int = option(4, "pixels per code along each side", (2, 4, 8, 16))
    base_filters: int = option(32, "channels after the first convolution; each further one doubles them", least=2)
    num_residual_blocks: int = option(2, "residual blocks on the grid of codes, in encoder and decoder each", least=0)
    activation: str = option("auto", "auto is relu up to a downsampling of 4", ("auto", "relu", "leaky_relu"))
    num_embeddings: int = option(256, "entries of the codebook", least=2, most=2**16)
    embedding_dim: int = option(16, "length of each entry", least=1)
    restart_threshold: float = option(
        0.02, "an entry used less than this share of the even use is moved; 0 never moves one", least=0
    )
    commitment_cost: float = option(0.25, "weight of the commitment term, beta", least=0)
    reconstruction_loss: str = option("l1_ssim", "what reconstructions are compared by", ("l1", "l2", "l1_ssim"))
    ssim_weight: float = option(0.3, "weight of (1 - SSIM) in l1_ssim", least=0)


@dataclasses.dataclass(frozen=True)
class Coarse:
    """coarse codes: a VQ-VAE of the slice shrunk to a few pixels, whose codes are drawn first"""

    image_size: int = option(32, "pixels along a side of the shrunk slice", least=16)
    downsampling: int = option(4, "its pixels per code along each side", (2, 4, 8, 16))
    num_embeddings: int = option(64, "entries of its codebook", least=2, most=2**16)
    embedding_dim: int = option(16, "length of each entry", least=1)


@dataclasses.dataclass(frozen=True)
class Prior:
    """prior of codes, given the coarse codes"""

    filters: int = option(64, "channels of both stacks", least=1)
    num_blocks: int = option(8, "gated blocks, layers of both stacks", least=2)
    attention_every: int = option(4, "blocks from one row attention to the next; 0 for none", least=0)
    dropout: float = option(0.0, "share of features dropped in training", least=0, most=0.99)


@dataclasses.dataclass(frozen=True)
class VQVAETraining:
    """training of the VQ-VAE: AdamW, 100 steps of warm-up, cosine decay to 0 over all epochs"""

    epochs: int = option(60, "passes over the training people's slices", least=1, everyday=True)
    batch_size: int = option(4, "slices of a step", least=1)
    learning_rate: float = option(3e-3, "highest learning rate", above=0)
    patience: int = option(15, "epochs without a better reconstruction of the validation people, then it ends", least=1)


@dataclasses.dataclass(frozen=True)
class PriorTraining:
    """training of the prior: Muon, the same schedule; an exponential average of the weights is what is kept"""

    epochs: int = option(40, "passes over the training people's slices", least=1, everyday=True)
    batch_size: int = option(8, "slices of a step", least=1)
    learning_rate: float = option(6e-3, "highest learning rate", above=0)
    patience: int = option(8, "epochs without fewer bits per code on the validation people, then it ends", least=1)
    average_over: float = option(0.05, "share of all steps that the average of the weights reaches back", above=0)


@dataclasses.dataclass(frozen=True)
class CoarsePrior(Prior):
    """prior of coarse codes"""

    attention_every: int = option_like(Prior, "attention_every", 0)
    dropout: float = option_like(Prior, "dropout", 0.1)


@dataclasses.dataclass(frozen=True)
class CoarseTraining(VQVAETraining):
    """training of the coarse codes' VQ-VAE, like that of the other"""

    epochs: int = option_like(VQVAETraining, "epochs", 30)
    batch_size: int = option_like(VQVAETraining, "batch_size", 32)


@dataclasses.dataclass(frozen=True)
class CoarsePriorTraining(PriorTraining):
    """training of the prior of coarse codes, like that of the other"""

    epochs: int = option_like(PriorTraining, "epochs", 40)
    batch_size: int = option_like(PriorTraining, "batch_size", 32)


@dataclasses.dataclass(frozen=True)
class SharpTraining:
    """training of the sharp decoder: AdamW, the same schedule; an average of the weights is what is kept"""

    epochs: int = option(12, "passes over the training people's slices", least=1)
    batch_size: int = option(16, "slices of a step", least=1)
    learning_rate: float = option(5e-4, "highest learning rate", above=0)
    patience: int = option(
        4, "epochs without a spectrum nearer to that of the validation people, then it ends", least=1
    )
    adversarial_weight: float = option(
        3.0, "pull of the discriminator on each image, as a share of the L1 loss's", above=0, most=100
    )
    lecam_weight: float = option(0.3, "weight of what keeps the discriminator from winning", least=0)
    fine_blocks: int = option(1, "residual blocks of the sharp decoder at each size finer than the code grid", least=0)


# Of the VQ-VAE, by name; anything not named is as declared above.
PRESETS = {
    "default": {},
    # For slices of 256 x 256 at 1 mm, as OASIS and ADNI have them: 32 x 32 codes instead of 64 x 64.
    "1mm": {"downsampling": 8, "num_embeddings": 512},
    # After van den Oord et al. 2017, section 4.1: two residual blocks of 256 channels, L2; 512 entries of 64.
    "vqvae-2017": {
        "num_embeddings": 512,
        "embedding_dim": 64,
        "base_filters": 128,
        "reconstruction_loss": "l2",
    },
    # Three convolutions each way and 32 entries of 128, at 256 x 256 x 1.
    "three-conv": {"num_embeddings": 32, "embedding_dim": 128, "num_residual_blocks": 0, "reconstruction_loss": "l2"},
}

# Without --data-dir: a few minutes on two cores. `downsampling` gives way to any preset.
DEMO = {
    "image_size": 128,
    "downsampling": 8,
    "vqvae_epochs": 6,
    "coarse_epochs": 14,
    "coarse_prior_epochs": 14,
    "coarse_prior_filters": 32,
    "prior_epochs": 8,
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
        A namespace: `stage`, `run_dir`, `devices`, `dry_run`, and `options`, what config.json keeps, as JSON values:
        a dictionary for each group, and `precision`, which may still be "auto".
    """
    parser, given = _read("Train a VQ-VAE on brain slices and a PixelCNN prior on its codes.", TRAIN, argv)
    demo = {} if given.get("data_dir") else DEMO
    preset = given.get("preset")
    run_dir = given.get("run_dir")
    if run_dir is None:
        run_dir = Path("runs") / (given["data_dir"].resolve().name if given.get("data_dir") else "demo")
    of_start = _of_start(parser, given, run_dir)
    values = {}
    for (prefix, place), group in TRAIN.items():
        chosen = {field.name: field.default for field in dataclasses.fields(group)}
        if place != "vqvae" or preset is None:
            chosen |= {name: demo[prefix + name] for name in chosen if prefix + name in demo}
        if place == "vqvae" and preset is not None:
            chosen |= PRESETS[preset]
        chosen |= {name: value for name, value in of_start.get(place, {}).items() if name in chosen}
        values[place] = chosen | {name: given[prefix + name] for name in chosen if prefix + name in given}
    command, data = values.pop("command"), values["data"]
    sizes = {"": (data["image_size"], values["vqvae"]), "coarse-": (values["coarse"]["image_size"], values["coarse"])}
    for which, (size, model) in sizes.items():
        if size is not None and size % model["downsampling"]:
            factor = f"--{which}downsampling {model['downsampling']}"
            parser.error(f"--{which}image-size {size}: must be a multiple of {factor}")
    data_dir = command["data_dir"]
    if data["validation_fraction"] + data["test_fraction"] >= 1:
        parser.error("--validation-fraction and --test-fraction: must be below 1 together")
    for_volumes = [
        name for name in ("plane", "voxel_size", "slice_middle", "num_slices", "slice_spacing") if name in given
    ]
    if for_volumes and not data_dir:
        parser.error(f"{_flag('', for_volumes[0])}: says how to read the volumes of --data-dir, which is not given")
    if data["slice_middle"] and data["plane"] != "axial":
        parser.error(f"--slice-middle {data['slice_middle']:g}: is for --plane axial, not {data['plane']}")
    try:
        layouts.check(data_dir, data["layout"], data["subject_regex"], data["label_column"])
    except UserError as error:
        parser.error(str(error))
    if data_dir:
        for name, path in (("run", run_dir), ("cache", data["cache_dir"])):
            if path.resolve().is_relative_to(data_dir.resolve()):
                parser.error(f"--{name}-dir {path}: lies inside the data folder {data_dir}; choose another")
    data["slice_spacing_mm"] = data.pop("slice_spacing")
    data["data_dir"] = str(data_dir.resolve()) if data_dir else None
    data["cache_dir"] = str(data["cache_dir"].resolve())
    start_from = command["start_from"]
    options = {
        **values,
        "precision": command["precision"],
        "start_from": str(start_from.resolve()) if start_from else None,
    }
    command |= {"run_dir": run_dir, "options": options}
    return argparse.Namespace(**{name: command[name] for name in ("stage", "run_dir", "devices", "dry_run", "options")})


def _of_start(parser, given, run_dir):
    """What --start-from says of each group of options: sizes of models, and all of the stages that are not trained.

    The latter are those of the run itself, once it has begun.
    """
    start = given.get("start_from")
    if not start:
        return {}
    if "preset" in given:
        parser.error(f"--preset {given['preset']}: the sizes are those of --start-from {start}; leave one of them out")
    path = start / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        options, image_size = config["options"], config["data"]["image_size"]
        groups = {place: options[place] for place in ("vqvae", "coarse", "coarse_prior", "prior")}
        if given.get("stage", "all") != "all":
            own = run_dir / "config.json"
            whose = json.loads(own.read_text(encoding="utf-8"))["options"] if own.exists() else options
            groups |= {
                f"{stage}_training": whose[f"{stage}_training"]
                for stage in (*groups, "sharp")
                if stage != given["stage"] and f"{stage}_training" in whose
            }
    except FileNotFoundError:
        parser.error(f"--start-from {start}: no run here (no config.json)")
    except (OSError, ValueError, LookupError, TypeError) as error:
        parser.error(f"--start-from {path}: damaged, or of an older version ({type(error).__name__})")
    return {**groups, "data": {"image_size": image_size}}


# ----------------------------------------------------------------------------------------------------------------
# predict.py and evaluate.py
# ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """the run"""

    run_dir: Path = option(Path("runs/demo"), "folder that train.py wrote", everyday=True)
    decoder: str = option(
        None,
        "which decoder (default: the sharp one where train.py --stage sharp has made it)",
        ("plain", "sharp"),
        kind=str,
        everyday=True,
    )
    data_dir: Path = option(None, "folder of the run's data now (default: where they were)", kind=Path, everyday=True)
    cache_dir: Path = option(None, "folder of decoded slices (default: where they were)", kind=Path)
    seed: int = option(0, "a number from which all samples follow", least=0, everyday=True)


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

    output_dir: Path = option(
        None,
        "where files and pictures go (default: in the run folder, predictions, inputs, completions or anomalies)",
        kind=Path,
        everyday=True,
    )
    num_samples: int = option(16, "how many slices to draw, or completions", least=1, everyday=True)
    volumes: int = option(
        None, "how many whole heads to draw, of a run trained with --neighbours", least=1, kind=int, everyday=True
    )
    label: str = option(
        None,
        "label of every sample (default: as often as in training; of inputs, the likeliest)",
        kind=str,
        everyday=True,
    )
    slice_position: float = option(
        None,
        "height of every sample, 0 the lowest and 1 the highest (default: as often as in training; of images, the "
        "likeliest)",
        least=0,
        most=1,
        kind=float,
        everyday=True,
    )


@dataclasses.dataclass(frozen=True)
class Inputs:
    """scans of one's own; without them, new slices are drawn"""

    input: Path = option(
        None, "images, volumes or folders of them, to be reconstructed", kind=Path, several=True, everyday=True
    )
    mask: Path = option(
        None, "image of the size of the one --input; what is bright in it is drawn anew", kind=Path, everyday=True
    )
    anomaly: bool = option(False, "map what is uncommon in the inputs; that finds no disease", everyday=True)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """what is measured"""

    output_dir: Path = option(
        None, "where figures and pictures go (default: evaluation in the run folder)", kind=Path, everyday=True
    )
    num_samples: int = option(
        1000, "slices drawn; from 100 on they are compared with the test people", least=1, most=2000, everyday=True
    )
    num_heads: int = option(
        100,
        "whole heads drawn and measured (half an hour), of a run trained with --neighbours; 0 for none",
        least=0,
        most=2000,
    )
    features: str = option(
        "texture",
        "what samples are judged by: log-Gabor energies, or InceptionV3, whose weights (84 MB) are fetched once",
        ("texture", "inception"),
        everyday=True,
    )


def predict(argv=None):
    """Reads the command line of predict.py: the fields of `TrainedRun`, `Prediction`, `Inputs` and `Truncation`."""
    groups = {("", group.__name__): group for group in (TrainedRun, Prediction, Inputs, Truncation)}
    args, parser = _of_a_run("Draw new slices from a trained run, or apply it to scans of your own.", groups, argv)
    if not args.input:
        for flag, value in (("--mask", args.mask), ("--anomaly", args.anomaly)):
            if value:
                parser.error(f"{flag}: is for a scan, which --input gives")
    if args.volumes and args.input:
        parser.error(f"--volumes {args.volumes}: draws new heads, and --input gives scans; give one of them")
    if args.mask and args.anomaly:
        parser.error("--mask and --anomaly: give one of them")
    if args.mask and (len(args.input) > 1 or args.input[0].is_dir()):
        parser.error(f"--mask {args.mask}: is for one image, and --input gives more")
    for path in [*(args.input or []), *[args.mask] * bool(args.mask)]:
        if not path.exists():
            parser.error(f"{path}: no such file or folder")
    return args


def evaluate(argv=None):
    """Reads the command line of evaluate.py: a namespace of the fields of `TrainedRun`, `Evaluation`, `Truncation`."""
    groups = {("", group.__name__): group for group in (TrainedRun, Evaluation, Truncation)}
    return _of_a_run("Measure a trained run on its test people, and its samples against them.", groups, argv)[0]


def _of_a_run(description, groups, argv):
    """The options of a command that needs a run, checked against it, and the parser, which says what is wrong."""
    parser, given = _read(description, groups, argv)
    values = {field.name: field.default for group in groups.values() for field in dataclasses.fields(group)}
    args = argparse.Namespace(**values | given)
    config = args.run_dir / "config.json"
    if not config.exists():
        parser.error(f"{args.run_dir}: no run here (no config.json); run train.py with this --run-dir first")
    if given.get("label") is not None:
        try:
            labels = json.loads(config.read_text(encoding="utf-8"))["data"]["labels"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            parser.error(f"{config}: damaged ({type(error).__name__}); train again in another folder")
        if args.label not in labels:
            parser.error(f"--label {args.label}: the run knows {', '.join(labels) or 'no labels'}")
    if args.decoder == "sharp" and not (args.run_dir / "sharp.keras").exists():
        parser.error(f"--decoder sharp: no sharp.keras in {args.run_dir}; run train.py --stage sharp first")
    return args, parser


# ----------------------------------------------------------------------------------------------------------------
# From groups to a parser
# ----------------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        print("error:", message, file=sys.stderr)
        raise SystemExit(1)


def _flag(prefix, name):
    return f"--{prefix}{name}".replace("_", "-")


def _build(description, groups, everything):
    parser = _Parser(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--help-all", action="store_true", help="show every option and exit")
    for (prefix, _), group in groups.items():
        title = parser.add_argument_group(group.__doc__)
        for field in dataclasses.fields(group):
            about = field.metadata
            if about["kind"] is bool:
                how = {"action": "store_true"}
            else:
                choices = "{" + ", ".join(map(str, about["choices"])) + "}" if about["choices"] else None
                how = {"type": about["kind"], "metavar": choices or about["kind"].__name__.upper()}
                how |= {"nargs": "+"} if about["several"] else {}
            shown = [] if field.default is None or about["kind"] is bool else [f"default: {field.default}"]
            if "data" in [place for _, place in groups] and prefix + field.name in DEMO:
                shown.append(f"demo: {DEMO[prefix + field.name]}")
            meaning = about["meaning"] + f" ({'; '.join(shown)})" * bool(shown)
            meaning = meaning if everything or about["everyday"] else argparse.SUPPRESS
            title.add_argument(_flag(prefix, field.name), dest=prefix + field.name, help=meaning, **how)
    return parser


def _read(description, groups, argv):
    """The parser, and what was given: a dictionary without defaults; ends the process where that makes no sense."""
    parser = _build(description, groups, everything=False)
    given, others = parser.parse_known_args(argv)
    given = vars(given)
    if given.pop("help_all", False):
        _build(description, groups, everything=True).print_help()
        raise SystemExit(0)
    known = {_flag(prefix, field.name): field for (prefix, _), g in groups.items() for field in dataclasses.fields(g)}
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
        wrong = None if value is None else _wrong(value, field.metadata)
        if wrong:
            parser.error(f"{flag} {value}: must be {wrong}")
    return parser, given


def _wrong(value, about):
    """What a value must be, where it is not; None where it is."""
    if about["choices"]:
        return None if value in about["choices"] else f"one of {', '.join(map(str, about['choices']))}"
    if about["kind"] not in (int, float):
        return None
    tests, words = [], []
    for name, limit, good in (
        ("above", about["above"], lambda limit: value > limit),
        ("least", about["least"], lambda limit: value >= limit),
        ("most", about["most"], lambda limit: value <= limit),
    ):
        if limit is not None:
            tests.append(good(limit))
            words.append({"above": f"above {limit}", "least": f"{limit} or more", "most": f"at most {limit}"}[name])
    finite = value == value and abs(value) != float("inf")
    return None if all(tests) and finite else " and ".join(words) or "a finite number"
