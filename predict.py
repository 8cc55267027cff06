"""A trained run as one object, and the command that draws from it or applies it to scans of one's own.

    python predict.py                                             # new slices of the demo run
    python predict.py --run-dir pretrained/ixi --num-samples 64 --slice-position 0.6
    python predict.py --run-dir pretrained/ixi --input scan.nii.gz photos/           # reconstructions, codes, bits
    python predict.py --run-dir pretrained/ixi --input slice.png --mask mask.png     # what may be under the mask
    python predict.py --run-dir pretrained/ixi --input scan.nii.gz --anomaly         # what is uncommon
    python predict.py --run-dir pretrained/ds002748_heads --volumes 4                # volumes, as NIfTI

In Python, NumPy in and NumPy out:

    model = TrainedModel("pretrained/ds002748")
    images = model.sample(4, slice_position=0.6)        # float32 in [0, 1], shape (4, 224, 224)
    codes = model.encode(images)                        # int32, shape (4, 28, 28, levels)
    again = model.decode(codes)                         # like images
    bits, coarse_bits = model.bits(images)              # what the priors take to tell them, code by code
    filled = model.complete(images[0], mask, 8)         # (8, 224, 224): what is under the mask, drawn anew

The run folder alone is needed. New slices go to --output-dir: samples/sample_0000.png and so on (8-bit grey),
samples.png, positions.png, and where the run's data are at hand reconstructions.png; docs/using.md says what is
written for scans of one's own. `evaluate.py` measures.
"""

import contextlib
import functools
import itertools
import re
import sys
import tomllib
from pathlib import Path

from running import options
from system import console, files

if __name__ == "__main__":
    options.predict()  # --help and wrong options are answered here, before TensorFlow is imported, which takes seconds
with console.quietly():
    import keras  # noqa: F401
import numpy as np
import PIL.Image

import dataset
import sampling
from evaluation import pictures
from modules import code_lengths
from reading.decoding import BadFile
from running import models, opening, run_folder
from running.config import read_config
from system import devices
from system.console import UserError
from using import anomaly, completion, heads, inputs, scans

ROOT = Path(__file__).parent
HEIGHTS = np.linspace(0, 1, 17, dtype="float32")  # slice positions that are tried where none is given


def _whole(method):
    """A method within `devices.whole_float32`: codes are the same on a GPU as on a processor."""

    @functools.wraps(method)
    def within(*args, **how):
        with devices.whole_float32():
            return method(*args, **how)

    return within


class TrainedModel:
    """The models of a run, and what one does with them.

    Images are float32 in [0, 1], shape (n, S, S), as the run saw its own: 0 is background, 1 the brightest tissue, the
    front of the head above, the person's left on the left. `using.scans` makes them of files.

    Args:
        run_dir: Folder that train.py wrote, or one of `pretrained/`.
        decoder: "plain" or "sharp"; None takes the sharp one where the run has one.
        coarse_temperature, temperature, top_k, top_p: How codes are drawn: see `sampling.SliceSampler`.

    Attributes:
        image_size, grid_size: S, and codes along each side of a slice.
        labels: Names of the labels that the priors know.
        unfinished: A line for each stage whose training stopped before its end; empty if all is well.
        config: config.json.

    Raises:
        UserError: If there is no run, or one of its files is damaged or another run's.
    """

    def __init__(self, run_dir, decoder=None, coarse_temperature=1.0, temperature=1.0, top_k=0, top_p=1.0):
        self.run_dir = run_dir = Path(run_dir)
        self.config = read_config(run_dir)
        self.decoder = decoder or run_folder.best_decoder(run_dir)
        self.models = models.load_models(run_dir, self.decoder)
        self.vqvae = self.models.vqvae
        self.drawn_with = {"coarse_temperature": coarse_temperature, "temperature": temperature}
        self.drawn_with |= {"top_k": top_k, "top_p": top_p}
        self.sampler = sampling.SliceSampler(self.models.coarse_prior, self.models.prior, **self.drawn_with)
        self.image_size, self.grid_size = self.vqvae.image_size, self.vqvae.grid_size
        self.labels = self.config["data"]["labels"]
        self.unfinished = run_folder.unfinished(run_dir, self.config, self.decoder)

    @classmethod
    def from_pretrained(cls, name, **how):
        """A shipped run by its name, as "ds002748"; the further arguments are those of the class."""
        shipped = sorted(path.parent.name for path in ROOT.glob("pretrained/*/config.json"))
        if name not in shipped:
            raise UserError(f"{name}: no shipped run; there are {', '.join(shipped)}")
        return cls(ROOT / "pretrained" / name, **how)

    @functools.cached_property
    def head_sampler(self):
        """The sampler of volumes: compiling takes seconds, and a volume has many slices."""
        priors = self.models.coarse_prior, self.models.prior
        return sampling.SliceSampler(*priors, **self.drawn_with, jit_compile=True)

    @property
    def about(self):
        """What is told of all that the run makes, in tables and in the text of a PNG: a dictionary."""
        version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
        data, made_by = self.config["data"], f"brain-vqvae {version}; not for diagnosis"
        about = {"run": self.run_dir.resolve().name, "decoder": self.decoder, **self.drawn_with}
        return about | {"trained_on": data["title"], "credit": data["credit"], "made_by": made_by}

    def read(self, path):
        """A file as the models take it, with what `using.scans` says of it: a `Scan`; its `images` are (n, S, S)."""
        ((name, (source, scale)),) = scans.find([Path(path)])[0].items()
        try:
            return scans.read(name, source, self.config, scale)
        except BadFile as error:
            raise UserError(f"{error.path}: {error.reason}") from error

    # ------------------------------------------------------------------------------------------------------------
    # Codes
    # ------------------------------------------------------------------------------------------------------------

    @_whole
    def encode(self, images):
        """Codes of images: int32, shape (n, grid, grid, levels)."""
        return self.vqvae.encode(self.checked(images))

    @_whole
    def encode_coarse(self, images):
        """Coarse codes of images, those of the shrunk slices: int32, shape (n, 8, 8, 1) by default, or (n, 0, 0, 1)."""
        coarse = self.models.coarse
        if coarse is None:
            return np.zeros((len(images), 0, 0, 1), "int32")
        return coarse.encode(dataset.shrink(self.checked(images)[..., 0], coarse.image_size)[..., None])

    @_whole
    def decode(self, codes):
        """Images of codes (n, grid, grid, levels); ValueError for codes that the codebook does not have."""
        return self.vqvae.decode(np.asarray(codes))[..., 0]

    def bits(self, images, label=None, slice_position=None):
        """What the priors take to tell images: many bits where something is not as it was in training.

        Args:
            images: The slices.
            label: One of `labels`; None takes the one that tells each slice's coarse codes in the fewest bits.
            slice_position: Numbers from 0, the lowest slice of a volume, to 1, shape (n,), or one for all; None takes
                those that tell the coarse codes in the fewest bits.

        Returns:
            Bits of each code, given the coarse codes and the codes before, float32, shape (n, grid, grid, levels); and
            of each coarse code, shape (n, 8, 8, 1) by default.
        """
        return self.bits_of(*self.describe(images, label, slice_position))

    def describe(self, images, label=None, slice_position=None):
        """Codes and coarse codes of images, and what the priors are told beside: label and slice position."""
        codes, coarse = self.encode(images), self.encode_coarse(images)
        kinds, heights = self.likeliest(codes, coarse, label, slice_position)
        return codes, coarse, {"label": kinds, "slice_position": heights}

    @_whole
    def bits_of(self, codes, coarse, told):
        """As `bits`, of what `describe` returns."""
        return models.code_bits(self.models, codes, coarse, told)

    @_whole
    def likeliest(self, codes, coarse, label=None, slice_position=None, known=None):
        """Labels and slice positions as indices and numbers, each (n,); None takes what makes the codes cheapest.

        The codes that are looked at are the coarse ones, where there are any. Where `known` is given, bool like them,
        only the bits of those count. That a label tells a slice in fewer bits is no diagnosis.
        """
        number, slice_position = len(codes), self.checked_position(slice_position)
        kinds = range(1, len(self.labels) + 1) if self.labels and label is None else [self._number(label)]
        heights = HEIGHTS if slice_position is None else [None]
        tried = [(kind, height) for kind in kinds for height in heights]
        given = np.broadcast_to(np.asarray(0 if slice_position is None else slice_position, "float32"), (number,))
        if len(tried) == 1:
            return np.full(number, tried[0][0], "int32"), given.copy()
        first, prior = (coarse, self.models.coarse_prior) if coarse.size else (codes, self.models.prior)
        told = {
            "codes": np.repeat(first, len(tried), axis=0),
            "label": np.tile(np.array([kind for kind, _ in tried], "int32"), number),
            "slice_position": np.concatenate(
                [[position if height is None else height for _, height in tried] for position in given]
            ).astype("float32"),
        }
        bits = code_lengths(prior, told)
        if known is not None:
            bits = bits * np.repeat(known, len(tried), axis=0)
        best = bits.sum(axis=(1, 2, 3)).reshape(number, len(tried)).argmin(axis=1) + len(tried) * np.arange(number)
        return told["label"][best], told["slice_position"][best]

    def _number(self, label):
        """A label's index, 0 if it is None or empty."""
        if label and label not in self.labels:
            raise UserError(f"label {label}: {self.run_dir} knows {', '.join(self.labels) or 'no labels'}")
        return self.labels.index(label) + 1 if label else 0

    @staticmethod
    def checked_position(slice_position):
        """A slice position, or several; raises UserError unless None or within [0, 1]."""
        if slice_position is not None and not np.all(
            (np.asarray(slice_position) >= 0) & (np.asarray(slice_position) <= 1)
        ):
            raise UserError(f"slice position {slice_position}: from 0, the lowest, to 1, the highest")
        return slice_position

    def checked(self, images):
        """Images as the models take them, (n, S, S, 1); raises UserError where they are none."""
        images, size = np.asarray(images), self.image_size
        if images.ndim != 3 or images.shape[1:] != (size, size) or images.dtype.kind != "f":
            raise UserError(f"images are floats of shape (n, {size}, {size}), not {images.dtype} of {images.shape}")
        if len(images) and not 0 <= images.min() <= images.max() <= 1:
            raise UserError(f"images are in [0, 1], not {images.min():g} to {images.max():g}")
        return images.astype("float32")[..., None]

    # ------------------------------------------------------------------------------------------------------------
    # New slices
    # ------------------------------------------------------------------------------------------------------------

    def conditions(self, number, seed=0, label=None, slice_position=None):
        """Label and slice position of each sample: as given, or those of a training slice drawn at random.

        Sample i of a seed has the same ones however many are drawn.

        Returns:
            Labels as indices, int32, and slice positions, float32, each of shape (number,).
        """
        if number < 1:
            raise UserError(f"{number} samples: must be 1 or more")
        slices = run_folder.read_splits(self.run_dir)
        training = slices[slices.split == "train"]
        chosen = training.iloc[[np.random.default_rng([seed, i, 1]).integers(len(training)) for i in range(number)]]
        names = chosen.label if label is None else [label] * number
        positions = chosen.slice_position if slice_position is None else [slice_position] * number
        return np.array([self._number(name) for name in names], "int32"), np.array(positions, "float32")

    def draw(self, labels, slice_positions, seed=0, noise_index=None, description=None):
        """Yields new images, a batch at a time; the arguments are those of `sampling.SliceSampler.sample`."""
        for codes in self.sampler.sample(labels, slice_positions, seed, noise_index, description=description):
            yield self.decode(codes)

    def told_of(self, labels, slice_positions, seed=0):
        """What is told of each sample that `draw` makes of these: a list of dictionaries."""
        names, same = ["", *self.labels], {**self.about, "synthetic": "a slice of no person"}
        return [
            {"label": names[label], "slice_position": f"{position:.4f}", "seed": seed, "number": number, **same}
            for number, (label, position) in enumerate(zip(labels, slice_positions, strict=True))
        ]

    @_whole
    def sample(self, number, seed=0, label=None, slice_position=None):
        """New images: float32 in [0, 1], shape (number, S, S); label and slice position as for `conditions`."""
        return np.concatenate(list(self.draw(*self.conditions(number, seed, label, slice_position), seed)))

    # ------------------------------------------------------------------------------------------------------------
    # What stands in `using`
    # ------------------------------------------------------------------------------------------------------------

    @property
    def draws_heads(self):
        """Whether the priors are told the codes of the slice below: train.py --neighbours."""
        return heads.are_drawn_by(self)

    @property
    def voxel_mm(self):
        """Pixels and distance of a scan's slices in mm, (across, along, between); 1 where it is not known."""
        about = self.config["data"].get("about", {})
        pixel = about.get("pixel_mm") or 1.0
        between = self.config["options"]["data"]["slice_spacing_mm"] if about.get("plane") else 1.0
        return pixel, pixel, between

    def sample_heads(self, number, seed=0, label=None, **how):
        """Yields new volumes: see `using.heads.sample`."""
        return heads.sample(self, number, seed, label, **how)

    def write_head(self, head, path):
        """Writes a volume, uint8, (s, S, S), as NIfTI: see `using.heads.write`."""
        heads.write(self, head, Path(path))

    @_whole
    def complete(self, image, mask, number, seed=0, label=None, slice_position=None, **how):
        """Draws anew what lies under a mask: see `using.completion.complete`."""
        return completion.complete(self, image, mask, number, seed, label, slice_position, **how)

    @_whole
    def anomaly_map(self, images, number=8, seed=0, label=None, slice_position=None):
        """Where slices are not as the run's data are: see `using.anomaly.anomaly_map`."""
        return anomaly.anomaly_map(self, images, number, seed, label, slice_position)


# ----------------------------------------------------------------------------------------------------------------
# New slices
# ----------------------------------------------------------------------------------------------------------------


def write_samples(batches, told, folder):
    """Writes each image as 8-bit grey PNG as soon as it is drawn, passes it on, removes what an earlier call left.

    What `TrainedModel.told_of` tells of them stands in each PNG's text, and of all in samples.csv beside the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files.remove_old(folder, rf"sample_\d{{4,}}\.png|{files.PARTIAL.pattern}")
    rows = []
    try:
        for about, image in zip(told, (image for images in batches for image in images), strict=True):
            path = folder / f"sample_{len(rows):04d}.png"
            picture = PIL.Image.fromarray((image * 255).round().astype("uint8"))
            files.write_image(path, picture, about)
            rows.append({"file": f"{folder.name}/{path.name}", **about})
            yield image
    finally:
        if rows:
            files.write_csv(folder.parent / "samples.csv", rows)


def draw_new(model, args, folder, footer):
    """New slices, pictures of them, and reconstructions of test people where the run's data are at hand."""
    number = args.num_samples
    labels, positions = model.conditions(number, args.seed, args.label, args.slice_position)
    kinds, heights = pictures.at_heights(model, args.label)
    noises = np.append(np.arange(number), np.zeros(len(kinds), int))
    together = np.append(labels, kinds), np.append(positions, heights)  # in as few batches as they fit in
    drawn = (image for images in model.draw(*together, args.seed, noises, "slices") for image in images)
    told, samples = model.told_of(labels, positions, args.seed), itertools.islice(drawn, number)
    written = write_samples(([image] for image in samples), told, folder / "samples")
    kept = [image for i, image in enumerate(written) if i < 32]
    pictures.show_samples(folder / "samples.png", kept, labels, positions, model.labels, footer)
    pictures.show_positions(folder / "positions.png", list(drawn), kinds, heights, model.labels, footer)

    data = None
    if args.data_dir or opening.data_are_at_hand(model.config, args.cache_dir):
        try:
            data = opening.find_data(args.run_dir, model.config, args.data_dir, args.cache_dir)
        except (UserError, OSError) as error:
            if args.data_dir:
                raise
            print(f"note: no reconstructions are shown: {error}")
    if data:
        people = pictures.one_of_each(data.of("test"), position=0.6, most=8)
        pictures.show_reconstructions(folder / "reconstructions.png", data, model.models.decoders, people, footer)
    print(f"{args.num_samples} new slices: {folder / 'samples'}; look at {folder / 'samples.png'}")


# ----------------------------------------------------------------------------------------------------------------
# The command
# ----------------------------------------------------------------------------------------------------------------

# By the option that asks for it: the folder in the run's, what does it, what an earlier call may have left there.
TASKS = {
    "anomaly": ("anomalies", anomaly.map_inputs, ["anomalies.png", "anomalies.csv"]),
    "mask": ("completions", completion.complete_input, ["completions.png", "completions.csv"]),
    "input": ("inputs", inputs.reconstruct_all, ["inputs.png", "inputs.html"]),
    "volumes": ("predictions", heads.write_heads, ["volumes.png", "volumes.gif", "volumes.html"]),
    "num_samples": ("predictions", draw_new, ["samples.png", "samples.csv", "positions.png", "reconstructions.png"]),
}


@contextlib.contextmanager
def output(folder, names, program="predict.py"):
    """Makes a folder that one call at a time writes into, without those files of an earlier one."""
    with run_folder.alone_in(folder, program):
        files.remove_old(folder, files.PARTIAL)
        files.remove_old(folder, "|".join(map(re.escape, names)))
        yield


def run(args):
    model = TrainedModel(args.run_dir, args.decoder, args.coarse_temperature, args.temperature, args.top_k, args.top_p)
    about = model.config["data"]
    footer = run_folder.footer(about["title"], about["credit"])
    print(f"run: {args.run_dir}, trained on {about['title']}")
    for line in model.unfinished:
        print(f"warning: unfinished run: {line}")
    name, do, made = next(task for option, task in TASKS.items() if getattr(args, option))
    folder = args.output_dir or args.run_dir / name
    with output(folder, made), devices.whole_float32():
        do(model, args, folder, footer)


def main(argv=None):
    return console.exit_status(lambda: run(options.predict(argv)), "stopped")


if __name__ == "__main__":
    sys.exit(main())
