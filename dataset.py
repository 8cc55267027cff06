"""Brain slices: finds them, says whose they are, splits them by person, decodes them once, feeds them.

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
import gzip
import hashlib
import io
import itertools
import json
import math
import os
import re
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import nibabel
import numpy as np
import PIL.Image
from skimage.filters import threshold_otsu
from skimage.transform import resize
from tqdm import tqdm

import devices
import phantom

try:
    import fcntl
except ImportError:  # on Windows two processes must not build one cache at a time
    fcntl = None

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
SPLITS = ("train", "validation", "test")
FEWEST_PIXELS, MOST_PIXELS = 16, 4096  # along a side
MOST_VOXELS = 10**8  # 0.4 GB as float32; a brain at half a millimetre has fewer
MIDDLE_BELOW_TOP_MM = 60  # from the top of the head to the middle of the brain, roughly the upper thalamus
CACHE_VERSION = 1  # raise when decoding changes
AHEAD = 4 * (os.cpu_count() or 1)  # sources decoded before they are asked for


class DataError(ValueError):
    """Data that cannot be used as they are; the message is one line that says what to do."""


class BadFile(DataError):
    """A file that cannot be used, which `skip_bad_files` leaves out."""

    def __init__(self, path, reason):
        super().__init__(f"{path}: {reason}; mend or remove it, or give --skip-bad-files")
        self.path = path
        self.reason = reason


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
class Source:
    """A file that holds one slice (slice_index is its number) or a volume (slice_index is None)."""

    path: Path
    subject_id: str
    session: str = ""
    slice_index: int | None = None
    label: str = ""
    split: str = ""


@dataclasses.dataclass(frozen=True)
class Data:
    """A decoded data set.

    Attributes:
        images: uint8, shape (number, image_size, image_size), memory-mapped; 0 is black, 255 the brightest tissue.
        slices: One `Slice` for each usable row of `images`.
        title: Name of the data set, for the screen and under pictures.
        credit: Whom to name, and the licence; empty where the data do not say.
        layout: Name of the layout.
        fingerprint: SHA-256 of the pixels and of whose they are.
        notices: Lines to show the user about what was converted.
        bad_files: (path, reason) of the files that were skipped.
    """

    images: np.ndarray
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
        raise DataError(f"{path}: not a table of UTF-8 text ({_reason(error)}); mend or remove it") from error
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
    """The sources, if each is one slice of its own (or a volume) and has a name that can be written down."""
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
# Decoding
# ----------------------------------------------------------------------------------------------------------------


def _reason(error):
    """One line of an exception of PIL, nibabel or gzip."""
    text = " ".join(str(error).split())
    return text or type(error).__name__


def _refuse_no_file(path):
    if not path.exists():
        raise BadFile(path, "a link to a file that is not there")
    if not path.is_file():
        raise BadFile(path, "not a file")
    if path.stat().st_size == 0:
        raise BadFile(path, "the file is empty")


def _open_image(path):
    _refuse_no_file(path)
    try:
        image = PIL.Image.open(path)
        (width, height), pages = image.size, getattr(image, "n_frames", 1)
    except Exception as error:  # PIL raises many kinds
        raise BadFile(path, f"not a readable image ({_reason(error)})") from error
    if min(width, height) < FEWEST_PIXELS or max(width, height) > MOST_PIXELS or pages > 1:
        image.close()
        raise BadFile(path, f"not one slice: {width} x {height} pixels, {pages} pages")
    return image


def _read_image(path, brightest):
    """A slice as uint8; 16-bit images are scaled so that `brightest` becomes 255."""
    with _open_image(path) as image:
        try:
            if image.mode.startswith("I") or image.mode == "F":
                return np.clip(np.asarray(image) * (255 / (brightest or 1)), 0, 255).round().astype("uint8")
            return np.asarray(image.convert("L"))
        except Exception as error:
            raise BadFile(path, f"truncated or damaged ({_reason(error)})") from error


def _open_volume(path):
    _refuse_no_file(path)
    try:
        volume = nibabel.load(path)
    except Exception as error:  # nibabel passes on whatever gzip, zlib and struct raise
        raise BadFile(path, f"not a readable NIfTI volume ({_reason(error)})") from error
    shape = volume.shape[:3] if volume.ndim == 4 and volume.shape[3] == 1 else volume.shape
    if len(shape) != 3:
        raise BadFile(path, f"a {len(shape)}-D image of shape {volume.shape}")
    if min(shape) < 1 or math.prod(shape) > MOST_VOXELS:
        raise BadFile(path, f"its header claims {' x '.join(map(str, shape))} voxels")
    if volume.get_data_dtype().kind not in "biuf":
        raise BadFile(path, f"its voxels are of type {volume.get_data_dtype()}, not single numbers")
    if not np.isfinite(volume.affine).all():
        raise BadFile(path, "the affine is not finite")
    if not all(0.01 <= size <= 100 for size in _volume_spacing(volume)):
        raise BadFile(path, f"its header claims voxels of {' x '.join(f'{s:g}' for s in _volume_spacing(volume))} mm")
    try:
        return nibabel.as_closest_canonical(volume.slicer[..., 0] if volume.ndim == 4 else volume)
    except Exception as error:
        raise BadFile(path, f"the affine names no axes ({_reason(error)})") from error


def _check_gzip(path, most):
    """Reads a gzip file to its end, where its checksum stands; nibabel stops where the voxels end."""
    size = 0
    with gzip.open(path) as stream:
        while part := stream.read(2**20):
            size += len(part)
            if size > most:
                raise ValueError("it unpacks to more than its header says")


def _volume_spacing(volume):
    """Voxel size in mm along right, anterior and superior."""
    return [float(z) for z in volume.header.get_zooms()[:3]]


def _read_volume(path, num_slices, slice_spacing_mm):
    """Axial slices around the brain's middle, lowest first.

    Intensity runs from the volume's 0.5th percentile (0) to the 99.5th of its foreground (255). Rows of a slice run
    from anterior to posterior, columns from the person's left to right.

    Returns:
        A list of slice numbers in the canonical volume, and uint8 of shape (num_slices, height, width).
    """
    volume = _open_volume(path)
    try:
        if path.suffix == ".gz":
            _check_gzip(path, 2**24 + 16 * math.prod(volume.shape))  # numbers of 16 bytes at most, and extensions
        voxels = np.asanyarray(volume.dataobj, dtype="float32")
    except Exception as error:
        raise BadFile(path, f"truncated or damaged ({_reason(error)})") from error
    if not np.isfinite(voxels).all():
        raise BadFile(path, "holds NaN or infinite voxels")
    if voxels.min() == voxels.max():
        raise BadFile(path, f"every voxel is {voxels.min():g}")
    foreground = voxels > threshold_otsu(voxels)
    low, high = np.percentile(voxels, 0.5), np.percentile(voxels[foreground], 99.5)

    area = foreground.mean(axis=(0, 1))
    top = int(np.flatnonzero(area > 0.1 * area.max()).max())
    x_mm, y_mm, z_mm = _volume_spacing(volume)
    offsets_mm = (np.arange(num_slices) - (num_slices - 1) / 2) * slice_spacing_mm - MIDDLE_BELOW_TOP_MM
    numbers = np.floor(top + offsets_mm / z_mm + 0.5).astype(int)
    if numbers[0] < 0 or numbers[-1] >= voxels.shape[2] or len(set(numbers)) < num_slices:
        wanted = f"{num_slices} slices {slice_spacing_mm:g} mm apart around the brain's middle"
        raise BadFile(path, f"its {voxels.shape[2]} axial slices of {z_mm:g} mm do not hold {wanted}")
    stack = np.rot90(voxels[:, :, numbers]).transpose(2, 0, 1)
    stack = np.clip((stack - low) / (high - low), 0, 1)
    if max(x_mm, y_mm) > 1.01 * min(x_mm, y_mm):  # square pixels, of the coarser of the two sizes
        shape = _volume_slice_shape(volume)
        stack = np.stack([resize(image, shape, anti_aliasing=True) for image in stack])
    return numbers.tolist(), (stack * 255).round().astype("uint8")


def _volume_slice_shape(volume):
    """Height and width in pixels of the volume's axial slices, once their pixels are square."""
    x_mm, y_mm, _ = _volume_spacing(volume)
    pixel_mm = max(x_mm, y_mm)
    return round(volume.shape[1] * y_mm / pixel_mm), round(volume.shape[0] * x_mm / pixel_mm)


def _fit_square(image, native_size, image_size):
    """Pads a uint8 slice with black to native_size x native_size, centred, then resizes it with antialiasing."""
    height, width = image.shape
    top, left = (native_size - height) // 2, (native_size - width) // 2
    image = np.pad(image, ((top, native_size - height - top), (left, native_size - width - left)))
    if native_size == image_size:
        return image
    resized = resize(image / 255.0, (image_size, image_size), anti_aliasing=image_size < native_size)
    return (np.clip(resized, 0, 1) * 255).round().astype("uint8")


def _inspect(source):
    """Height, width, kind and greatest value of a source, reading as little of it as that takes."""
    if source.slice_index is None:
        return (*_volume_slice_shape(_open_volume(source.path)), "volume", 0)
    with _open_image(source.path) as image:
        width, height = image.size
        if image.mode in ("L", "1"):
            return height, width, "grey", 0
        if image.mode.startswith("I") or image.mode == "F":
            try:
                kind, brightest = "floating-point" if image.mode == "F" else "16-bit", float(np.max(np.asarray(image)))
            except Exception as error:
                raise BadFile(source.path, f"truncated or damaged ({_reason(error)})") from error
            if not math.isfinite(brightest):
                raise BadFile(source.path, "holds NaN or infinite pixels")
            return height, width, kind, brightest
        return height, width, "colour", 0


def _map(function, items, skip_bad_files, bad_files, description):
    """Applies a function to every item in threads, a few ahead of what is asked for; yields (item, result) in order.

    A `BadFile` is raised, or collected, and its result is None.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting, ahead = collections.deque(), iter(items)
        for item in tqdm(items, description, leave=False, disable=None):
            waiting.extend(pool.submit(function, one) for one in itertools.islice(ahead, AHEAD - len(waiting)))
            try:
                result = waiting.popleft().result()
            except BadFile as error:
                if not skip_bad_files:
                    pool.shutdown(cancel_futures=True)
                    raise
                bad_files.append((str(error.path), error.reason))
                result = None
            yield item, result


class Packed:
    """The images of a cache, read when they are asked for: memory holds no more of them than that.

    Indexed by a number, a list, an array or a slice of rows, like the uint8 array (n, S, S) that the `.npy` file is.
    """

    dtype = np.dtype("uint8")

    def __init__(self, path):
        self._file = path.open("rb")
        weakref.finalize(self, self._file.close)
        np.lib.format.read_magic(self._file)
        self.shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(self._file)
        self._start = self._file.tell()
        length = path.stat().st_size - self._start
        if fortran_order or dtype != self.dtype or len(self.shape) != 3 or length != math.prod(self.shape):
            raise ValueError("not a whole array of uint8 images")

    def __len__(self):
        return self.shape[0]

    def __array__(self, dtype=None, copy=None):
        return self[:].astype(dtype or self.dtype)

    def __getitem__(self, rows):
        rows = np.arange(len(self))[rows]
        images = np.empty((*rows.shape, *self.shape[1:]), self.dtype)
        for row, image in zip(rows.ravel(), images.reshape(-1, *self.shape[1:]), strict=True):
            self._file.seek(self._start + int(row) * image.nbytes)
            self._file.readinto(image)
        return images


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
        _build_cache(data_dir, sources, image_size, num_slices, slice_spacing_mm, skip_bad_files, packed, manifest_path)
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
        raise DataError(f"{packed}: damaged ({_reason(error)}); remove it and {manifest_path.name}") from error
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
        raise DataError(f"{path}: not a BIDS description with a Name ({_reason(error)}); mend or remove it") from error


def _build_cache(data_dir, sources, image_size, num_slices, slice_spacing_mm, skip_bad_files, packed, manifest_path):
    """Decodes every source into `packed`, row by row, and writes the manifest last.

    A journal beside it says what is done, so that a build that was stopped or killed goes on. It is locked meanwhile: a
    second process waits, and finds the cache there.
    """
    bad_files, notices = [], []
    looked = [(s, found) for s, found in _map(_inspect, sources, skip_bad_files, bad_files, "reading headers") if found]
    if not looked:
        raise DataError(
            f"{data_dir}: none of its {len(sources)} files can be used; the first: {': '.join(bad_files[0])}"
        )
    sources = [source for source, _ in looked]
    native_size = math.ceil(max(max(height, width) for _, (height, width, _, _) in looked) / 32) * 32
    image_size = image_size or native_size
    if image_size > native_size:
        notices.append(f"slices of {native_size} pixels are enlarged to {image_size}, as --image-size asks")
    scaled = "scaled to 8 bits by the brightest value of all"
    for kind, done in (("colour", "converted to grey"), ("16-bit", scaled), ("floating-point", scaled)):
        of_kind = [source.path.relative_to(data_dir).as_posix() for source, (*_, k, _) in looked if k == kind]
        if of_kind:
            notices.append(f"{len(of_kind)} {kind} images {done}, {of_kind[0]} the first")
    brightest = max(value for _, (*_, value) in looked)

    def decode(source):
        if source.slice_index is None:
            numbers, stack = _read_volume(source.path, num_slices, slice_spacing_mm)
        else:
            numbers, stack = [source.slice_index], _read_image(source.path, brightest)[None]
        return numbers, [_fit_square(image, native_size, image_size) for image in stack]

    indices = [source.slice_index for source in sources if source.slice_index is not None]
    lowest, highest = (min(indices), max(indices)) if indices else (0, 0)
    per_source = num_slices if sources[0].slice_index is None else 1

    def identities(source, numbers):
        """What a journal says of the slices of a source."""
        name = source.path.relative_to(data_dir).as_posix()
        for order, number in enumerate(numbers):
            if source.slice_index is None:
                position = order / max(1, len(numbers) - 1)
            else:
                position = (number - lowest) / max(1, highest - lowest)
            yield name, source.subject_id, source.session, number, round(position, 6), source.label, source.split

    slices, digest = [], hashlib.sha256()
    partial, journal_path = packed.with_suffix(".partial.npy"), packed.with_suffix(".partial.jsonl")
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(journal_path.open("a+", encoding="utf-8"))
        if fcntl:
            fcntl.flock(journal, fcntl.LOCK_EX)
        if packed.exists() and manifest_path.exists():
            journal_path.unlink(missing_ok=True)
            return
        try:
            shape = (len(sources) * per_source, image_size, image_size)
            array, done = _resume(journal, [*shape, brightest, bad_files], partial)
            stack.enter_context(array)
            for bad, found in done:
                bad_files += [tuple(one) for one in bad]
                for identity in found:
                    digest.update(array.read(image_size**2) + repr(tuple(identity[1:])).encode())
                    slices.append((*identity, len(slices)))
            first, known_bad = len(slices), len(bad_files)
            for source, result in _map(decode, sources[len(done) :], skip_bad_files, bad_files, "decoding slices"):
                found = []
                for identity, image in zip(identities(source, result[0]), result[1], strict=True) if result else ():
                    array.write(image.tobytes())
                    digest.update(image.tobytes() + repr(identity[1:]).encode())
                    slices.append((*identity, len(slices)))
                    found.append(identity)
                array.flush()
                journal.write(json.dumps([bad_files[known_bad:], found]) + "\n")
                journal.flush()
                known_bad = len(bad_files)
            array.truncate(array.tell() + (shape[0] - len(slices)) * image_size**2)  # of files that were left out
            array.close()
            if not slices:
                raise DataError(
                    f"{data_dir}: none of its {len(sources)} files can be used; the first: {': '.join(bad_files[0])}"
                )
            manifest = {
                "image_size": image_size,
                "fingerprint": digest.hexdigest(),
                "notices": notices,
                "bad_files": sorted(bad_files),
                "slices": slices,
            }
            partial.replace(packed)
            write_text(manifest_path, json.dumps(manifest))
        except Exception:
            partial.unlink(missing_ok=True)
            journal_path.unlink(missing_ok=True)
            raise
        journal_path.unlink(missing_ok=True)
    seconds = time.monotonic() - started
    goes_on = f" after {first} of an earlier call" * (first > 0)
    print(f"decoded {len(slices) - first} slices{goes_on} in {seconds:.1f} s")


def _resume(journal, header, partial):
    """The array's file, and what the journal of a build says of the sources that are done already.

    Args:
        journal: The open file; its first line is the header.
        header: Shape of the array, and what else must be as it was.
        partial: The array's path.

    Returns:
        The array's file, open behind its header, and for each source that is done its bad files and the identities of
        its slices.
    """
    journal.seek(0)
    whole = [line for line in journal if line.endswith("\n")]  # a killed process may leave half a line
    try:
        if whole and json.loads(whole[0]) == json.loads(json.dumps(header)) and partial.stat().st_size:
            done = [json.loads(line) for line in whole[1:]]
            journal.truncate(sum(len(line.encode()) for line in whole))
            array = partial.open("r+b")
            np.lib.format.read_magic(array)
            np.lib.format.read_array_header_1_0(array)
            return array, done
    except (OSError, ValueError):
        pass  # nothing that could be gone on with
    journal.truncate(0)
    journal.write(json.dumps(header) + "\n")
    journal.flush()
    array = partial.open("w+b")
    about = {"descr": "|u1", "fortran_order": False, "shape": tuple(header[:3])}
    np.lib.format.write_array_header_1_0(array, about)
    return array, []


def write_text(path, text):
    """Writes a file under another name and renames it, so that no reader ever sees half of it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with contextlib.ExitStack() as stack:
        stack.callback(partial.unlink, missing_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


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

    def __len__(self):
        return math.ceil((self.number - self.number % devices.number()) / self.batch_size)

    def rows(self, index):
        """Indices of the examples of one batch. Several devices leave out what they cannot share evenly."""
        whole = self.order[: self.number - self.number % devices.number()]
        return np.sort(whole[index * self.batch_size : (index + 1) * self.batch_size])

    def __getitem__(self, index):
        return (self.fetch(devices.share(self.rows(index))),)


def image_batches(data, slices, split, batch_size, seed=None):
    """Batches of images of one split: float32 in [0, 1], shape (batch, image_size, image_size, 1)."""
    rows = np.array([one.row for one in slices if one.split == split])
    return Batches(len(rows), lambda i: as_float(data.images[rows[i]]), batch_size, seed)


def move(images, down, right):
    """uint8 images (n, S, S), each moved by its own whole number of pixels, (n,) and (n,); what comes in is black."""
    size, most = images.shape[1], int(max(np.abs(down).max(), np.abs(right).max()))
    padded = np.pad(images, ((0, 0), (most, most), (most, most)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return windows[np.arange(len(images)), most - down, most - right]


def as_float(images):
    """uint8 images (n, S, S) as float32 in [0, 1], (n, S, S, 1)."""
    return images[..., None].astype("float32") / np.float32(255)
