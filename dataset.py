"""Brain slices: found, decoded once, split by person, fed to the models.

    data = dataset.prepare(data_dir, seed=0)                # recognises the layout, decodes into a cache, splits
    data.slices[data.slices.split == "test"]                # a pandas DataFrame, one row a slice
    batches = dataset.ChangedImages(data, data.image_size, batch_size=16, seed=0)

A slice's way: `layouts.find` names its file and its person, `cache.build_cache` makes it a square of bytes, `split`
says for what it may be used, `ChangedImages` feeds it; once it is a grid of codes, `ChangedCodes` does.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import math
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from extensions import losses
from reading import cache, decoding, layouts
from system import devices
from system.console import UserError, in_a_line

SPLITS = ("train", "validation", "test")
COLUMNS = ("path", "subject_id", "session", "slice_index", "slice_position", "label", "split", "row")
CACHE_VERSION = 3  # raise when decoding changes
SHARE_ALONE = 0.3  # of the training slices, which are told no slice below them
SHARE_WRONG = 0.05  # of the codes below, which are replaced by others, since drawn codes are not perfect
ENCODED_AT_ONCE = 256  # slices; as floats they are larger than in the cache


@dataclasses.dataclass(frozen=True)
class Data:
    """A decoded data set.

    Attributes:
        images: uint8, shape (number, image_size, image_size), memory-mapped; 0 is black, 255 the brightest tissue.
        slices: A DataFrame with a row for each slice that is used: `path`; `subject_id`; `session`; `slice_index`;
            `slice_position`, from 0, the lowest slice of the data set or volume, to 1, the highest; `label`, empty
            where it is not known; `split`, one of `SPLITS`; `row`, the slice's place in `images`.
        title: Name of the data set, for the screen and under pictures.
        credit: Whom to name, and the licence; empty where the data do not say.
        layout: Name of the layout.
        fingerprint: SHA-256 of the pixels and of whose they are.
        notices: Lines to show the user about what was converted.
        bad_files: (path, reason) of the files that were skipped.
        about: What the files were like: voxel sizes, orientations and pixels with their numbers, `pixel_mm` (None where
            it is not known), `plane`, values before.
    """

    images: np.ndarray
    slices: pd.DataFrame
    title: str
    credit: str
    layout: str
    fingerprint: str
    notices: list[str]
    bad_files: list[tuple[str, str]]
    about: dict

    @property
    def image_size(self):
        return self.images.shape[1]

    @property
    def labels(self):
        """The known labels in alphabetical order; a prior counts them from 1, and 0 is an unknown one."""
        return sorted(set(self.slices.label) - {""})

    def of(self, split):
        """The slices of one split."""
        return self.slices[self.slices.split == split]

    def pixels(self, slices):
        """Images of some slices, float32 in [0, 1], shape (n, image_size, image_size)."""
        return as_float(self.images[slices.row])[..., 0]


# ----------------------------------------------------------------------------------------------------------------
# Loading
# ----------------------------------------------------------------------------------------------------------------


def load(data_dir, layout=None, subject_regex=None, label_column=None, cache_dir="cache", **how):
    """Finds and decodes a data set, or opens the cache of an earlier call.

    The cache is one uint8 `.npy` and one manifest beside it; its name is the SHA-256 of the options and of every
    file's path, size and time of change, so that a changed file makes a new one.

    Args:
        data_dir: The data folder; nothing is written to it.
        layout, subject_regex, label_column: See `layouts.find`.
        cache_dir: Where the cache goes.
        how: Fields of `decoding.How`: `image_size`, side of the square slices in pixels, where None takes the smallest
            multiple of 32 that holds the native slices, which are then padded and not resized; and so on.

    Returns:
        A `Data`, its splits as the data set brings them along, or empty.

    Raises:
        UserError: With one line that names the file and what to do.
    """
    data_dir, cache_dir, how = Path(data_dir), Path(cache_dir), decoding.How(**how)
    if cache_dir.resolve().is_relative_to(data_dir.resolve()):
        raise UserError(f"--cache-dir {cache_dir}: lies inside the data folder {data_dir}; choose another")
    layout, sources, notices = layouts.find(data_dir, layout, subject_regex, label_column)
    if sources[0].slice_index is not None:
        for name in ("plane", "voxel_size", "slice_middle", "num_slices", "slice_spacing_mm"):
            if getattr(how, name) != getattr(decoding.How(), name):
                flag = "--" + name.removesuffix("_mm").replace("_", "-")
                raise UserError(f"{flag} {getattr(how, name)}: is for volumes, and {data_dir} holds images")
    files = []
    for source in sources:
        size_and_time = (0, 0)
        with contextlib.suppress(OSError):  # a link may point nowhere, or to itself
            size_and_time = (source.path.stat().st_size, source.path.stat().st_mtime_ns)
        identity = (source.subject_id, source.session, source.label, source.split)
        files.append((source.path.relative_to(data_dir).as_posix(), *size_and_time, *identity))
    key = hashlib.sha256(json.dumps([CACHE_VERSION, dataclasses.asdict(how), layout, files]).encode()).hexdigest()[:16]
    packed, manifest_path = cache_dir / f"{key}.npy", cache_dir / f"{key}.json"
    if not (packed.exists() and manifest_path.exists()):
        cache_dir.mkdir(parents=True, exist_ok=True)
        cache.build_cache(data_dir, sources, how, packed, manifest_path)
    try:
        images = np.load(packed, mmap_mode="r")
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        slices = pd.DataFrame(manifest["slices"], columns=COLUMNS)
        whole = images.dtype == "uint8" and images.ndim == 3 and 0 <= slices.row.max() < len(images)
        bad_files = [tuple(bad) for bad in manifest["bad_files"]]
        title, credit, more = describe(data_dir)
        notices = [*notices, *manifest["notices"], *more]
        rest = layout, manifest["fingerprint"], notices, bad_files, manifest["about"]
    except (ValueError, LookupError, TypeError, EOFError, AttributeError) as error:
        raise UserError(f"{packed}: damaged ({in_a_line(error)}); remove it and {manifest_path.name}") from error
    if not whole:
        raise UserError(f"{packed}: not what {manifest_path.name} says; remove both")
    return Data(images, slices, title, credit, *rest)


def prepare(data_dir, seed=0, validation_fraction=0.1, test_fraction=0.15, cache_dir="cache", **how):
    """Everything a run needs of its data: `load`, or the demo cohort where `data_dir` is None, then `split`.

    Returns:
        A `Data`, its notices those of both.
    """
    if data_dir is None:
        from reading import phantom  # which loads nilearn

        cohort = Path(cache_dir) / "demo" / f"v{phantom.VERSION}"
        phantom.make_cohort(cohort)
        data = load(cohort, cache_dir=cache_dir, **how)
        data = dataclasses.replace(data, title="the embedded demo cohort, no real people", credit=phantom.CREDIT)
    else:
        data = load(data_dir, cache_dir=cache_dir, **how)
    slices, notices = split(data.slices, seed, validation_fraction, test_fraction)
    return dataclasses.replace(data, slices=slices, notices=[*data.notices, *notices])


def describe(data_dir):
    """Title and credit from a BIDS dataset_description.json, as far as it gives them, and notices.

    The title is else the folder's name, the credit empty; whatever stands in that file stops nothing.
    """
    title, path = data_dir.resolve().name, data_dir / "dataset_description.json"
    if not path.is_file():
        return title, "", []
    try:
        description = json.loads(path.read_bytes())  # of UTF-8, 16 or 32, with a byte-order mark or without
    except (ValueError, RecursionError, OSError) as error:
        return title, "", [f"{path.name} names nobody to credit: it is not JSON ({in_a_line(error)})"]
    description = description if isinstance(description, dict) else {}
    name, authors, licence = (_text(description.get(key)) for key in ("Name", "Authors", "License"))
    return name or title, "; ".join(filter(None, (authors, licence))), []


def _text(value):
    """What a JSON value says in one line: a text, the texts of a list, the name in an object, else its texts."""
    if isinstance(value, list):
        return ", ".join(filter(None, map(_text, value)))
    if isinstance(value, dict):
        return _text(value.get("name")) or " ".join(filter(None, map(_text, value.values())))
    return " ".join(value.encode(errors="replace").decode().split()) if isinstance(value, str) else ""


# ----------------------------------------------------------------------------------------------------------------
# Splits
# ----------------------------------------------------------------------------------------------------------------


def split(slices, seed, validation_fraction=0.1, test_fraction=0.15):
    """Gives every slice train, validation or test, so that no person stands in two of them.

    A split that the data set brings along is kept; what it lacks is cut by person, stratified by label, in an order
    that depends on the seed and on the people's ids alone. A person who stands on both sides of the data set's own
    split goes to the test side with every slice (or to validation, if not in test), so that no figure of a model is
    made on people it was trained on.

    Args:
        slices: DataFrame with `subject_id`, `label` and `split`.
        seed: Integer.
        validation_fraction, test_fraction: Shares of the people.

    Returns:
        The DataFrame with `split` filled in, and a list of notices.

    Raises:
        UserError: If a split would be empty.
    """
    if validation_fraction + test_fraction >= 1:
        raise UserError(
            f"--validation-fraction {validation_fraction:g}, --test-fraction {test_fraction:g}: together below 1"
        )
    people = slices.groupby("subject_id", sort=False)
    sides, labels = people.split.agg(set), people.label.agg(set)
    notices = []
    torn = sorted(sides.index[sides.map(len) > 1])
    if torn:
        notices.append(
            f"{len(torn)} people stand on both sides of the data set's split, all moved to one: {', '.join(torn)}"
        )
    both = sorted(labels.index[labels.map(lambda of_one: len(of_one - {""}) > 1)])
    if both:
        notices.append(f"{len(both)} people stand under more than one label, each kept together: {', '.join(both)}")
    side_of = {
        person: next(side for side in ("test", "validation", "train", "") if side in of_one)
        for person, of_one in sides.items()
    }
    stratum = labels.map(lambda of_one: "+".join(sorted(of_one)))

    def cut(name, fraction, candidates):
        """Moves a share of the candidates to a split: each 1 / fraction-th of them, in strata, in hashed order."""
        order = sorted(
            candidates, key=lambda p: (stratum[p], hashlib.sha256(f"{seed} {name} {p}".encode()).hexdigest())
        )
        wanted = max(1, round(fraction * len(order)))
        for i, person in enumerate(order):
            if (i + 1) * wanted // len(order) > i * wanted // len(order):
                side_of[person] = name

    present = set(side_of.values())
    share = validation_fraction
    if "test" not in present:
        share = validation_fraction / (1 - test_fraction)
        cut("test", test_fraction, [p for p, side in side_of.items() if side != "validation"])
    if "validation" not in present:
        cut("validation", share, [p for p, side in side_of.items() if side != "test"])
    side_of = {person: side or "train" for person, side in side_of.items()}

    counts = collections.Counter(side_of.values())
    if any(counts[name] == 0 for name in SPLITS):
        raise UserError(
            f"{len(side_of)} people make {counts['train']} for training, {counts['validation']} for validation and "
            f"{counts['test']} for testing; each needs one at least, so give data of more people"
        )
    if len(slices) == len(side_of):
        notices.append(
            "no person has more than one slice, so that nothing says whose they are: the split may not be by person"
        )
    result = slices.assign(split=slices.subject_id.map(side_of))
    assert_disjoint(result)
    return result, notices


def assert_disjoint(slices):
    """Raises UserError if a person stands in two splits."""
    sides = slices.groupby("subject_id").split.nunique()
    torn = sorted(sides.index[sides > 1])
    if torn:
        raise UserError(f"people in more than one split: {', '.join(torn)}; a figure made so would be worth nothing")


def count(slices):
    """People and slices in each split: a dictionary of dictionaries."""
    found = slices.groupby("split").subject_id.agg(people="nunique", slices="size")
    return {name: {key: int(value) for key, value in found.loc[name].items()} for name in SPLITS}


def splits_sha256(slices):
    """SHA-256 of who is in which split: of splits.csv without its slice positions."""
    columns = ["path", "subject_id", "session", "slice_index", "label", "split"]
    return hashlib.sha256(slices[columns].to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def first_difference(slices, before):
    """The first slice that two data sets do not share, or that is of another person or label in them; "" if none is.

    Args:
        slices: DataFrame of the slices as they are.
        before: The same as they were, such as splits.csv of a run.
    """
    columns = ["path", "slice_index", "subject_id", "session", "label"]
    now, then = ({(one[0], one[1]): one[2:] for one in table[columns].values.tolist()} for table in (slices, before))
    for key in sorted(now.keys() | then.keys()):
        if now.get(key) != then.get(key):
            told = "is new" if key not in then else "is no longer there"
            if key in then and key in now:
                told = f"is of {' '.join(filter(None, now[key]))}, and was of {' '.join(filter(None, then[key]))}"
            return f"slice {key[1]} of {key[0]} {told}"
    return ""


def spread(number, most):
    """Places of at most `most` of so many things, spread evenly over all of them: integers."""
    return np.linspace(0, number - 1, min(number, most)).round().astype(int)


# ----------------------------------------------------------------------------------------------------------------
# Feeding
# ----------------------------------------------------------------------------------------------------------------


class Batches(keras.utils.PyDataset):
    """Batches of a data set, shuffled by index: the order of an epoch depends on the seed and the epoch's number alone.

    Args:
        number: Number of examples.
        fetch: Function from an array of indices to what the model is fed.
        batch_size: Examples a batch; the last one may be smaller.
        seed: Seed of the shuffling, which `set_epoch` does; None keeps the order.
    """

    def __init__(self, number, fetch, batch_size, seed=None):
        super().__init__()
        self.number = number
        self.fetch = fetch
        self.batch_size = batch_size
        self.seed = seed
        self.order = np.arange(number)

    def set_epoch(self, epoch):
        """Draws the order of one epoch; to be called when it begins."""
        if self.seed is not None:
            self.order = np.random.default_rng([self.seed, epoch]).permutation(self.number)

    def _used(self):
        """How many examples are fed: several devices leave out what they cannot share evenly."""
        return self.number - self.number % devices.number()

    def __len__(self):
        return math.ceil(self._used() / self.batch_size)

    def __getitem__(self, index):
        rows = np.sort(self.order[: self._used()][index * self.batch_size :][: self.batch_size])
        return (self.fetch(devices.share(rows)),)


def as_float(images):
    """uint8 images (n, S, S) as float32 in [0, 1], (n, S, S, 1)."""
    return images[..., None].astype("float32") / np.float32(255)


def change(images, changes):
    """Mirrors slices left to right, and moves them by whole pixels; what comes in is black.

    Args:
        images: uint8, shape (n, S, S).
        changes: Integers, shape (n, 3): whether each is mirrored, then pixels down and right.
    """
    mirrored, down, right = changes.T
    images = np.where(mirrored[:, None, None] == 1, images[:, :, ::-1], images)
    size, most = images.shape[1], int(np.abs(changes[:, 1:]).max(initial=0))
    padded = np.pad(images, ((0, 0), (most, most), (most, most)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return windows[np.arange(len(images)), most - down, most - right]


def shrink(images, size):
    """Images (n, S, S), each pixel the mean of the part of the slice that it covers: float32, (n, size, size).

    With a size of 0, as of a run without coarse codes, they have no pixels.
    """
    edges = np.arange(size + 1) * images.shape[1] / max(1, size)
    pixels = np.arange(images.shape[1])
    covered = np.clip(edges[1:, None] - pixels, 0, 1) - np.clip(edges[:-1, None] - pixels, 0, 1)  # (size, S)
    mean = (covered / covered.sum(axis=1, keepdims=True)).astype("float32")
    return mean @ images.astype("float32") @ mean.T


def encode(vqvae, images, rows, changes=None):
    """Codes of some slices, a few hundred in memory at a time; slices are shrunk to what the model takes.

    Args:
        vqvae: A `modules.VQVAE`.
        images: uint8, shape (m, S, S); may be memory-mapped.
        rows: Which of them, integers, shape (n,).
        changes: What is done to each before, integers, shape (n, 3): see `change`.

    Returns:
        uint16, shape (n, grid, grid, D).
    """
    codes = np.empty((len(rows), vqvae.grid_size, vqvae.grid_size, vqvae.num_quantizers), "uint16")
    for start in range(0, len(rows), ENCODED_AT_ONCE):
        part = slice(start, start + ENCODED_AT_ONCE)
        chosen = images[rows[part]]
        if changes is not None:
            chosen = change(chosen, changes[part])
        codes[part] = vqvae.encode(_for_model(chosen, vqvae.image_size))
    return codes


def _for_model(images, size):
    """uint8 images (n, S, S) as float32 in [0, 1] of a model's own size, (n, size, size, 1)."""
    return as_float(images if images.shape[1] == size else shrink(images, size))


def prior_inputs(slices, labels, **codes):
    """What a prior is fed for these slices: a dictionary of label (0 unknown), slice position, and grids of codes.

    Args:
        slices: DataFrame of the slices.
        labels: The labels that the prior knows, in its order.
        codes: Grids of the slices by the names that the prior has for them, each of shape (n, grid, grid, D).
    """
    number = {"": 0} | {name: i for i, name in enumerate(labels, 1)}
    return {
        **codes,
        "label": slices.label.map(number).to_numpy("int32"),
        "slice_position": slices.slice_position.to_numpy("float32"),
    }


def scan_of(slices):
    """Which scan each slice is of: its file, where that is a volume, else its person and session."""
    of_volume = slices.path.duplicated(keep=False)
    return slices.path.where(of_volume, slices.subject_id + " " + slices.session)


def places_below(slices):
    """Which slice lies below each one in the same scan.

    Args:
        slices: DataFrame of the slices.

    Returns:
        Places in the DataFrame, integers, shape (n,), -1 where there is none, or where slices are missing between.
    """
    table = slices.reset_index(drop=True)
    table = table.assign(scan=scan_of(table)).sort_values(["scan", "slice_position"], kind="stable")
    scans = table.groupby("scan", sort=False)
    gap = scans.slice_position.diff()
    next_to = (gap > 0) & (gap < 1.5 * gap.median())
    return pd.Series(table.index, table.index).shift(1).where(next_to, -1).sort_index().to_numpy(int)


def stacks(slices, size, rng=None):
    """Places in the DataFrame of neighbouring slices of one scan, the lowest first: integers, shape (number, size).

    Where slices are missing between, a scan is taken as two. A scan's first stack begins at its lowest slice, or with
    `rng` at one that is drawn; what is left over is left out.
    """
    below = places_below(slices)
    above = {other: place for place, other in enumerate(below) if other >= 0}
    found = [np.empty((0, size), int)]
    for place in np.flatnonzero(below < 0):
        scan = [place]
        while scan[-1] in above:
            scan.append(above[scan[-1]])
        spare = len(scan) % size
        first = int(rng.integers(spare + 1)) if rng else 0
        found.append(np.array(scan[first : len(scan) - spare + first], int).reshape(-1, size))
    return np.concatenate(found)


def has_stacks(data, size, options):
    """Whether a run's sharp decoder can learn from stacks: --neighbours, and scans of so many slices in both splits."""
    enough = size >= losses.WINDOW and all(len(stacks(data.of(split), size)) for split in ("train", "validation"))
    return options["heads"]["neighbours"] and enough


def codes_below(codes, places):
    """Grids of codes of the slices at some places, int32, -1 throughout where the place is -1."""
    return np.where((places >= 0)[:, None, None, None], codes[places].astype("int32"), -1).astype("int32")


def select(inputs, chosen):
    """Those of `prior_inputs` that are chosen by indices or a mask, codes as int32."""
    batch = {name: values[chosen] for name, values in inputs.items()}
    return {name: v.astype("int32") if v.dtype == "uint16" else v for name, v in batch.items()}


class ChangedSlices(Batches):
    """Batches of training slices, mirrored and moved a little, differently in each epoch, as augmentation.

    Args:
        data: A `Data`.
        batch_size, seed: As for `Batches`; the changes, too, depend on the seed and the epoch alone.
        max_shift: Most pixels they are moved, up, down, left and right.
        mirrored: Share of the slices that are mirrored.
        by_scan: Whether all slices of a scan are changed alike.
    """

    def __init__(self, data, batch_size, seed, max_shift=0, mirrored=0.0, by_scan=False):
        training = data.of("train")
        self.images, self.rows = data.images, training.row.to_numpy()
        self.alike = np.arange(len(training))  # slices of one number are changed alike
        if by_scan:
            self.alike = training.groupby(scan_of(training), sort=False).ngroup().to_numpy()
        self.max_shift, self.mirrored = max_shift, mirrored
        self.changes = np.zeros((len(self.rows), 3), int)
        super().__init__(len(self.rows), self.fetch, batch_size, seed)

    def set_epoch(self, epoch):
        """Draws the order and the changes of one epoch; to be called when it begins."""
        super().set_epoch(epoch)
        rng, number = np.random.default_rng([self.seed, epoch, 1]), self.alike.max() + 1
        self.changes[:, 0] = (rng.random(number) < self.mirrored)[self.alike]
        self.changes[:, 1:] = rng.integers(-self.max_shift, self.max_shift + 1, (number, 2))[self.alike]


class ChangedImages(ChangedSlices):
    """Batches for a VQ-VAE: float32 in [0, 1], shape (batch, size, size, 1), shrunk where its `size` is smaller."""

    def __init__(self, data, size, *how, **more):
        self.size = size
        super().__init__(data, *how, **more)

    def fetch(self, indices):
        return _for_model(change(self.images[self.rows[indices]], self.changes[indices]), self.size)


class ChangedStacks(ChangedImages):
    """Batches for a decoder of stacks: each is `batch_size` neighbouring slices of a scan, the lowest first.

    All slices of a scan are changed alike; where its first stack begins is drawn anew in each epoch.
    """

    def __init__(self, data, *how, **more):
        self.slices = data.of("train")
        super().__init__(data, *how, by_scan=True, **more)
        self.number = stacks(self.slices, self.batch_size).size

    def set_epoch(self, epoch):
        """Draws the stacks, their order and the changes of one epoch; to be called when it begins."""
        super().set_epoch(epoch)
        rng = np.random.default_rng([self.seed, epoch, 3])
        self.order = rng.permutation(stacks(self.slices, self.batch_size, rng)).ravel()

    def __getitem__(self, index):
        return (self.fetch(devices.share(self.order[index * self.batch_size :][: self.batch_size])),)


class ChangedCodes(ChangedSlices):
    """Batches for a prior: what `prior_inputs` says of the training slices, with the codes of the changed ones.

    A slice moved by a pixel has quite other codes, so that no pattern of codes can be learned by heart. What was
    changed is told (`change`), so that the prior can draw unchanged slices: distribution augmentation
    (Jun et al., ICML 2020).

    Args:
        inputs: What `prior_inputs` tells of the training slices, without codes.
        encoders: The VQ-VAE behind each grid of codes, by the name that the prior has for it.
        below: What `places_below` says of the training slices, for a prior that is told the codes of the slice below;
            then all slices of a scan are changed alike. Some are told none (`SHARE_ALONE`).
    """

    def __init__(self, inputs, encoders, *how, below=None, **more):
        super().__init__(*how, by_scan=below is not None, **more)
        grids = {
            name: np.zeros((self.number, vqvae.grid_size, vqvae.grid_size, vqvae.num_quantizers), "uint16")
            for name, vqvae in encoders.items()
        }
        self.encoders, self.below = encoders, below
        if below is not None:
            grids["below"] = np.zeros(grids["codes"].shape, "int32")
        self.inputs = {**inputs, **grids, "change": np.zeros((self.number, 3), "float32")}  # until an epoch begins

    def set_epoch(self, epoch):
        """Draws the order and the changes of one epoch, and encodes; to be called when it begins."""
        super().set_epoch(epoch)
        told = self.changes / [1, max(1, self.max_shift), max(1, self.max_shift)]
        codes = {name: encode(vqvae, self.images, self.rows, self.changes) for name, vqvae in self.encoders.items()}
        self.inputs = {**self.inputs, **codes, "change": told.astype("float32")}
        if self.below is not None:
            rng = np.random.default_rng([self.seed, epoch, 2])
            known = codes_below(codes["codes"], np.where(rng.random(self.number) < SHARE_ALONE, -1, self.below))
            wrong = (rng.random(known.shape[:3]) < SHARE_WRONG) & (known[..., 0] >= 0)
            known[wrong] = rng.choice(codes["codes"].reshape(-1, known.shape[-1]), wrong.sum())
            self.inputs["below"] = known

    def fetch(self, indices):
        return select(self.inputs, indices)


def image_batches(data, split, size, batch_size, in_stacks=False):
    """Batches of one split's images, in order and as they are: float32 in [0, 1], shape (batch, size, size, 1).

    With `in_stacks` each batch is of neighbouring slices of a scan.
    """
    slices = data.of(split)
    rows = slices.row.to_numpy()
    if in_stacks:
        rows = rows[stacks(slices, batch_size).ravel()]
    return Batches(len(rows), lambda indices: _for_model(data.images[rows[indices]], size), batch_size)
