"""Brain slices: finds them, says whose they are, has them decoded once, splits them by person, feeds them.

    data = dataset.load(data_dir, image_size=128)           # recognises the layout, decodes into one packed cache
    slices, notices = dataset.split(data.slices, seed=0)    # every slice gets train, validation or test, by person
    batches = dataset.image_batches(data, slices, "train", batch_size=16, seed=0)

Four layouts are known: OASIS as PNG, ADNI as JPEG, BIDS volumes, and any folder of images whose person a regular
expression can read from the path. Everything a user can get wrong raises `DataError` with one line that names the
file and what to do.
"""

import collections
import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import math
import re
from pathlib import Path

import keras
import numpy as np
from keras import ops

import devices
import phantom
from decoding import DataError, Packed, Source, build_cache, in_a_line

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
SPLITS = ("train", "validation", "test")
CACHE_VERSION = 1  # raise when decoding changes


@dataclasses.dataclass(frozen=True)
class Slice:
    """One axial slice and whose it is.

    `slice_position` runs from 0, the lowest slice of the data set or volume, to 1, the highest; `row` is the slice's
    row in the packed array; `split` is empty until the data set's own split or `split()` fills it.
    """

    path: str
    subject_id: str
    session: str
    slice_index: int
    slice_position: float
    label: str
    split: str
    row: int


@dataclasses.dataclass(frozen=True)
class Data:
    """A decoded data set.

    Attributes:
        images: uint8, shape (number, image_size, image_size), read on demand; 0 is black, 255 the brightest tissue.
        slices: One `Slice` for each usable row of `images`.
        title: Name of the data set, for the screen and under pictures.
        credit: Whom to name, and the licence; empty where the data do not say.
        layout: Name of the layout.
        fingerprint: SHA-256 of the pixels and of whose they are.
        notices: Lines to show the user about what was converted.
        bad_files: (path, reason) of the files that were skipped.
    """

    images: Packed
    slices: list[Slice]
    title: str
    credit: str
    layout: str
    fingerprint: str
    notices: list[str]
    bad_files: list[tuple[str, str]]

    @property
    def image_size(self):
        return self.images.shape[1]


# ----------------------------------------------------------------------------------------------------------------
# Layouts: each finder takes the data folder and returns sources, or an empty list where it is not that layout
# ----------------------------------------------------------------------------------------------------------------


def _images_in(folder):
    """Image files of a folder in the order of their names, without hidden ones."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def _match(path, pattern, example):
    found = re.fullmatch(pattern, path.name, re.DOTALL)  # a name may hold a newline
    if not found:
        raise DataError(f"{path}: the name is not like {example}; rename or remove the file, or give another --layout")
    return found


def find_oasis(data_dir):
    """OASIS as PNG: keras_png_slices_{train,validate,test}/case_NNN_slice_K.nii.png; label maps are left aside."""
    sources = []
    for folder_name, split in (("train", "train"), ("validate", "validation"), ("test", "test")):
        for base in (data_dir, data_dir / "keras_png_slices_data"):
            folder = base / f"keras_png_slices_{folder_name}"
            for path in _images_in(folder) if folder.is_dir() else ():
                found = _match(path, r"(case_\d+)_slice_(\d+)(\.nii)?\.png", "case_001_slice_0.nii.png")
                sources.append(Source(path, found[1], slice_index=int(found[2]), split=split))
    return sources


def find_adni(data_dir):
    """ADNI as JPEG: AD_NC/{train,test}/{AD,NC}/<id>_<slice>.jpeg; the validation set is cut from train."""
    base = data_dir / "AD_NC" if (data_dir / "AD_NC").is_dir() else data_dir
    sources = []
    for split in ("train", "test"):
        for label in ("AD", "NC"):
            folder = base / split / label
            for path in _images_in(folder) if folder.is_dir() else ():
                found = _match(path, r"(.+)_(\d+)\.(jpe?g|png)", "218391_78.jpeg")
                sources.append(
                    Source(
                        path, found[1], slice_index=int(found[2]), label=label, split="" if split == "train" else split
                    )
                )
    return sources


def find_bids(data_dir, label_column=None):
    """BIDS: sub-*/[ses-*/]anat/*_T1w.nii[.gz], with labels from a column of participants.tsv where there is one."""
    paths = sorted(p for p in data_dir.glob("sub-*/**/anat/*_T1w.nii*") if p.name.endswith((".nii", ".nii.gz")))
    labels = _participant_labels(data_dir / "participants.tsv", label_column) if paths else {}
    sources = []
    for path in paths:
        folders = path.relative_to(data_dir).parts
        session = next((f for f in folders if f.startswith("ses-")), "")
        sources.append(Source(path, folders[0], session, label=labels.get(folders[0], "")))
    return sources


def _participant_labels(path, column):
    if not path.is_file():
        if column:
            raise DataError(f"{path}: not found, so there is no column {column!r} to take labels from")
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t")
            columns, rows = reader.fieldnames or [], list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a table of UTF-8 text ({in_a_line(error)}); mend or remove it") from error
    column = column or next((c for c in ("diagnosis", "group") if c in columns), None)
    if column is None:
        return {}
    for needed in ("participant_id", column):
        if needed not in columns:
            raise DataError(f"{path}: no column {needed!r}; it has {', '.join(columns) or 'none'}")
    labels = {}
    for row in rows:
        if row[column] not in (None, "", "n/a") and row["participant_id"]:
            labels["sub-" + row["participant_id"].removeprefix("sub-")] = row[column]
    return labels


def find_images(data_dir, subject_regex):
    """Any folder of images: the regular expression is searched in each path relative to the folder.

    Its group `subject` (or its only group, if none has a name) is the person; groups `session`, `slice` and `label` are
    optional. Without `slice`, a person's slices are numbered in the order of their names.
    """
    try:
        pattern = re.compile(subject_regex)
    except re.error as error:
        raise DataError(f"--subject-regex {subject_regex!r} is not a regular expression: {error}") from error
    subject_group = "subject" if pattern.groupindex else 1
    if subject_group == "subject" and "subject" not in pattern.groupindex or not pattern.groups:
        raise DataError(f"--subject-regex {subject_regex!r}: give the person's part a group, like (?P<subject>P\\d+)")
    paths = sorted(p for p in data_dir.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    sources, unmatched = [], []
    numbers = collections.Counter()
    for path in paths:
        name = path.relative_to(data_dir).as_posix()
        found = pattern.search(name)
        if not found or not found[subject_group]:
            unmatched.append(path)
            continue
        groups = found.groupdict()
        subject, session = found[subject_group], groups.get("session") or ""
        index = groups.get("slice")
        if index is not None and not index.isdecimal():
            raise DataError(f"{path}: --subject-regex read the slice number {index!r}, which is not a number")
        number = int(index) if index is not None else numbers[subject, session]
        numbers[subject, session] += 1
        sources.append(Source(path, subject, session, number, groups.get("label") or ""))
    if unmatched:
        raise DataError(
            f"--subject-regex {subject_regex!r} matches {len(sources)} of {len(paths)} images, not {unmatched[0]}; "
            "widen it, or move the other images away"
        )
    return sources


def _checked(sources):
    """The sources, if each is one slice (or volume) of its own and has a name that can be written down."""
    seen = {}
    for source in sources:
        try:
            str(source.path).encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{str(source.path)!r}: the name is not UTF-8; rename it") from error
        identity = (source.subject_id, source.session, source.slice_index, source.label, source.split)
        other = seen.setdefault(identity, source.path)
        if source.slice_index is not None and other != source.path:
            raise DataError(
                f"{other} and {source.path}: both are slice {source.slice_index} of {source.subject_id}; remove one, "
                "or tell them apart by --subject-regex with a group 'session'"
            )
        if source.slice_index is None:
            name = source.path.parent / source.path.name.partition(".")[0]
            if seen.setdefault(name, source.path) != source.path:
                raise DataError(f"{seen[name]} and {source.path}: both are one volume; remove one")
    return sources


def find(data_dir, layout=None, subject_regex=None, label_column=None):
    """Recognises the layout of a folder and lists its sources.

    Args:
        data_dir: The folder.
        layout: "oasis", "adni", "bids" or "images"; None recognises it.
        subject_regex: For "images", and implies it.
        label_column: Column of participants.tsv that holds the label, for "bids".

    Returns:
        The layout's name and a list of `Source`, ordered by path.

    Raises:
        DataError: If the folder does not exist or holds nothing that the layout names.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such folder; give --data-dir the folder that holds the images")
    finders = {
        "oasis": lambda: find_oasis(data_dir),
        "adni": lambda: find_adni(data_dir),
        "bids": lambda: find_bids(data_dir, label_column),
        "images": lambda: find_images(data_dir, subject_regex) if subject_regex else [],
    }
    if label_column and layout not in (None, "bids"):
        raise DataError(f"--label-column is for BIDS participants.tsv, not for --layout {layout}")
    if layout == "images" and not subject_regex:
        raise DataError("--layout images needs --subject-regex, to read from each path whose slice it is")
    if subject_regex and layout not in (None, "images"):
        raise DataError(f"--subject-regex is for --layout images, not {layout}")
    for name in [layout] if layout else ["images"] if subject_regex else finders:
        sources = finders[name]()
        if sources:
            return name, _checked(sorted(sources, key=lambda source: source.path))
    raise DataError(
        f"{data_dir}: no images found; looked for "
        + {
            "oasis": "keras_png_slices_{train,validate,test}/case_NNN_slice_K.nii.png",
            "adni": "AD_NC/{train,test}/{AD,NC}/ID_SLICE.jpeg",
            "bids": "sub-*/[ses-*/]anat/*_T1w.nii[.gz]",
            "images": "PNG, JPEG and TIFF files",
            None: "keras_png_slices_{train,validate,test} (OASIS), AD_NC/{train,test}/{AD,NC} (ADNI) and "
            "sub-*/[ses-*/]anat/*_T1w.nii[.gz] (BIDS); for other folders of images give --subject-regex",
        }["images" if subject_regex else layout]
    )


# ----------------------------------------------------------------------------------------------------------------
# Loading
# ----------------------------------------------------------------------------------------------------------------


def load(
    data_dir,
    layout=None,
    image_size=None,
    num_slices=32,
    slice_spacing_mm=2.0,
    subject_regex=None,
    label_column=None,
    skip_bad_files=False,
    cache_dir="cache",
):
    """Finds and decodes a data set, or opens the packed cache of an earlier call.

    The cache is one uint8 `.npy` and one manifest beside it; its name is the SHA-256 of the options and of every
    file's path, size and time of change, so that a changed file makes a new one.

    Args:
        data_dir: The data folder; nothing is written to it.
        layout, subject_regex, label_column: See `find`.
        image_size: Side of the square slices in pixels; None takes the smallest multiple of 32 that holds the native
            slices, which are then padded and not resized.
        num_slices: Axial slices taken from each volume.
        slice_spacing_mm: Distance between them in mm.
        skip_bad_files: Go on without files that cannot be used, listed in `bad_files`, instead of raising.
        cache_dir: Where the cache goes.

    Returns:
        A `Data`.

    Raises:
        DataError: With one line that names the file and what to do.
    """
    if image_size is not None and image_size < 16:
        raise DataError(f"--image-size {image_size}: must be 16 or more")
    if num_slices < 1 or slice_spacing_mm <= 0:
        raise DataError(f"--num-slices {num_slices}, --slice-spacing {slice_spacing_mm:g}: both must be positive")
    data_dir, cache_dir = Path(data_dir), Path(cache_dir)
    if cache_dir.resolve().is_relative_to(data_dir.resolve()):
        raise DataError(f"--cache-dir {cache_dir}: lies inside the data folder {data_dir}; choose another")
    layout, sources = find(data_dir, layout, subject_regex, label_column)
    options = [
        CACHE_VERSION,
        layout,
        image_size,
        num_slices,
        slice_spacing_mm,
        subject_regex,
        label_column,
        skip_bad_files,
    ]
    files = []
    for source in sources:
        size_and_time = (0, 0)
        with contextlib.suppress(OSError):  # a link may point nowhere, or to itself
            size_and_time = (source.path.stat().st_size, source.path.stat().st_mtime_ns)
        identity = (source.subject_id, source.session, source.label, source.split)
        files.append((source.path.relative_to(data_dir).as_posix(), *size_and_time, *identity))
    key = hashlib.sha256(json.dumps([options, files]).encode()).hexdigest()[:16]
    packed, manifest_path = cache_dir / f"{key}.npy", cache_dir / f"{key}.json"
    if not (packed.exists() and manifest_path.exists()):
        cache_dir.mkdir(parents=True, exist_ok=True)
        build_cache(data_dir, sources, image_size, num_slices, slice_spacing_mm, skip_bad_files, packed, manifest_path)
    title, credit = _describe(data_dir)
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        data = Data(
            images=Packed(packed),
            slices=[Slice(*row) for row in manifest["slices"]],
            title=title,
            credit=credit,
            layout=layout,
            fingerprint=manifest["fingerprint"],
            notices=manifest["notices"],
            bad_files=[tuple(bad) for bad in manifest["bad_files"]],
        )
        whole = len(data.images) > data.slices[-1].row
    except (ValueError, LookupError, TypeError, EOFError) as error:
        raise DataError(f"{packed}: damaged ({in_a_line(error)}); remove it and {manifest_path.name}") from error
    if not whole:
        raise DataError(f"{packed}: not what {manifest_path.name} says; remove both")
    return data


def prepare(data_dir, seed, validation_fraction, test_fraction, cache_dir, **options):
    """Everything a run needs of its data: `load`, or the demo cohort where `data_dir` is None, then `split`.

    Returns:
        The `Data`, its slices with their splits, and all notices.
    """
    if data_dir is None:
        if options["subject_regex"] or options["layout"]:
            raise DataError("--layout and --subject-regex say how to read --data-dir, which is not given")
        cohort = Path(cache_dir) / "demo" / f"v{phantom.VERSION}"
        phantom.make_cohort(cohort)
        data = load(cohort, cache_dir=cache_dir, **options)
        data = dataclasses.replace(data, title="the embedded demo cohort, no real people", credit=phantom.CREDIT)
    else:
        data = load(data_dir, cache_dir=cache_dir, **options)
    slices, notices = split(data.slices, seed, validation_fraction, test_fraction)
    return data, slices, [*data.notices, *notices]


def _describe(data_dir):
    """Title and credit from a BIDS dataset_description.json, else the folder's name and nothing."""
    path = data_dir / "dataset_description.json"
    if not path.is_file():
        return data_dir.resolve().name, ""
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        parts = ", ".join(description.get("Authors", [])), description.get("License")
        return str(description["Name"]), "; ".join(filter(None, parts))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not a BIDS description with a Name ({in_a_line(error)}); mend or remove it"
        ) from error


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
        slices: List of `Slice`.
        seed: Integer.
        validation_fraction, test_fraction: Shares of the people.

    Returns:
        A list of `Slice` with `split` filled in, and a list of notices.

    Raises:
        DataError: If a split would be empty.
    """
    if not (0 < validation_fraction < 1 and 0 < test_fraction < 1 and validation_fraction + test_fraction < 1):
        raise DataError(
            f"--validation-fraction {validation_fraction:g}, --test-fraction {test_fraction:g}: each must be above 0, "
            "and together below 1"
        )
    people = collections.defaultdict(lambda: (set(), set()))
    for one in slices:
        people[one.subject_id][0].add(one.split)
        people[one.subject_id][1].add(one.label)
    notices = []
    torn = sorted(person for person, (sides, _) in people.items() if len(sides) > 1)
    if torn:
        notices.append(
            f"{len(torn)} people stand on both sides of the data set's split, all moved to one: {', '.join(torn)}"
        )
    both = sorted(person for person, (_, labels) in people.items() if len(labels - {""}) > 1)
    if both:
        notices.append(f"{len(both)} people stand under more than one label, each kept together: {', '.join(both)}")

    side_of = {
        person: next(s for s in ("test", "validation", "train", "") if s in sides)
        for person, (sides, _) in people.items()
    }
    stratum = {person: "+".join(sorted(labels)) for person, (_, labels) in people.items()}

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
        raise DataError(
            f"{len(people)} people make {counts['train']} for training, {counts['validation']} for validation and "
            f"{counts['test']} for testing; each needs one at least, so give data of more people"
        )
    result = [dataclasses.replace(one, split=side_of[one.subject_id]) for one in slices]
    assert_disjoint(result)
    return result, notices


def assert_disjoint(slices):
    """Raises DataError if a person stands in two splits."""
    sides = collections.defaultdict(set)
    for one in slices:
        sides[one.subject_id].add(one.split)
    torn = sorted(person for person, of in sides.items() if len(of) > 1)
    if torn:
        raise DataError(f"people in more than one split: {', '.join(torn)}; a figure made so would be worth nothing")


def splits_csv(slices):
    """The text of splits.csv: path, subject_id, session, slice_index, label, split."""
    columns = ["path", "subject_id", "session", "slice_index", "label", "split"]
    return csv_text(columns, [[getattr(one, column) for column in columns] for one in slices])


def csv_text(columns, rows):
    """The text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def splits_sha256(slices):
    """SHA-256 of splits.csv."""
    return hashlib.sha256(splits_csv(slices).encode()).hexdigest()


def label_names(slices):
    """The known labels in alphabetical order; a model counts them from 1, and 0 is an unknown one."""
    return sorted({one.label for one in slices} - {""})


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

    `first` may be set to leave out as many batches at the beginning of an epoch, which an earlier process has had.
    """

    first = 0

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

    def __len__(self):
        return math.ceil((self.number - self.number % devices.number()) / self.batch_size) - self.first

    def rows(self, index):
        """Indices of the examples of one batch. Several devices leave out what they cannot share evenly."""
        whole = self.order[: self.number - self.number % devices.number()]
        start = (self.first + index) * self.batch_size
        return np.sort(whole[start : start + self.batch_size])

    def __getitem__(self, index):
        return (self.fetch(devices.share(self.rows(index))),)


def image_batches(data, slices, split, batch_size, seed=None):
    """Batches of images of one split: float32 in [0, 1], shape (batch, image_size, image_size, 1).

    Where an accelerator has room for all of them, as bytes, they are kept there and never travel again.
    """
    rows = np.array([one.row for one in slices if one.split == split])
    if len(rows) * data.image_size**2 >= devices.room() / 2:
        return Batches(len(rows), lambda i: as_float(data.images[rows[i]]), batch_size, seed)
    parts = np.array_split(rows, math.ceil(len(rows) / 1024))  # the host's memory holds one at a time
    kept = ops.concatenate([ops.convert_to_tensor(data.images[part]) for part in parts])
    return Batches(len(rows), lambda i: ops.cast(ops.take(kept, i, 0), "float32")[..., None] / 255, batch_size, seed)


def move(images, down, right):
    """uint8 images (n, S, S), each moved by its own whole number of pixels, (n,) and (n,); what comes in is black."""
    size, most = images.shape[1], int(max(np.abs(down).max(), np.abs(right).max()))
    padded = np.pad(images, ((0, 0), (most, most), (most, most)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return windows[np.arange(len(images)), most - down, most - right]


def as_float(images):
    """uint8 images (n, S, S) as float32 in [0, 1], (n, S, S, 1)."""
    return images[..., None].astype("float32") / np.float32(255)
