"""What is in a file: images and volumes become square uint8 slices, decoded once into a packed cache.

Everything a file can have wrong raises `BadFile`, a `DataError`, with one line that names it and what to do.
"""

import collections
import contextlib
import dataclasses
import gzip
import hashlib
import itertools
import json
import math
import os
import socket
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
from skimage.filters import threshold_otsu
from skimage.transform import resize
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

FEWEST_PIXELS, MOST_PIXELS = 16, 4096  # along a side
MOST_VOXELS = 10**8  # of at most four bytes, 0.4 GB; a brain at half a millimetre has fewer
MIDDLE_BELOW_TOP_MM = 60  # from the top of the head to the middle of the brain, roughly the upper thalamus
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
class Source:
    """A file that holds one slice (slice_index is its number) or a volume (slice_index is None)."""

    path: Path
    subject_id: str
    session: str = ""
    slice_index: int | None = None
    label: str = ""
    split: str = ""


# ----------------------------------------------------------------------------------------------------------------
# Images and volumes
# ----------------------------------------------------------------------------------------------------------------


def in_a_line(error):
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
        raise BadFile(path, f"not a readable image ({in_a_line(error)})") from error
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
            raise BadFile(path, f"truncated or damaged ({in_a_line(error)})") from error


def _open_volume(path):
    _refuse_no_file(path)
    try:
        volume = nibabel.load(path)
    except Exception as error:  # nibabel passes on whatever gzip, zlib and struct raise
        raise BadFile(path, f"not a readable NIfTI volume ({in_a_line(error)})") from error
    shape = volume.shape[:3] if volume.ndim == 4 and volume.shape[3] == 1 else volume.shape
    if len(shape) != 3:
        raise BadFile(path, f"a {len(shape)}-D image of shape {volume.shape}")
    dtype = volume.get_data_dtype()
    if dtype.kind not in "biuf":
        raise BadFile(path, f"its voxels are of type {dtype}, not single numbers")
    if min(shape) < 1 or math.prod(shape) * max(4, dtype.itemsize) > 4 * MOST_VOXELS:
        raise BadFile(path, f"its header claims {' x '.join(map(str, shape))} voxels of type {dtype}")
    if not np.isfinite(volume.affine).all():
        raise BadFile(path, "the affine is not finite")
    if not all(0.01 <= size <= 100 for size in _volume_spacing(volume)):
        raise BadFile(path, f"its header claims voxels of {' x '.join(f'{s:g}' for s in _volume_spacing(volume))} mm")
    try:
        return nibabel.as_closest_canonical(volume.slicer[..., 0] if volume.ndim == 4 else volume)
    except Exception as error:
        raise BadFile(path, f"the affine names no axes ({in_a_line(error)})") from error


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
        raise BadFile(path, f"truncated or damaged ({in_a_line(error)})") from error
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
                raise BadFile(source.path, f"truncated or damaged ({in_a_line(error)})") from error
            if not math.isfinite(brightest):
                raise BadFile(source.path, "holds NaN or infinite pixels")
            return height, width, kind, brightest
        return height, width, "colour", 0


# ----------------------------------------------------------------------------------------------------------------
# The packed cache
# ----------------------------------------------------------------------------------------------------------------


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
            if self._file.readinto(image) != image.nbytes:
                raise DataError(f"{self._file.name}: ends too early; remove it")
        return images


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


def _no_file_left(data_dir, number, bad_files):
    return DataError(f"{data_dir}: none of its {number} files can be used; the first: {': '.join(bad_files[0])}")


def _survey(data_dir, sources, image_size, skip_bad_files):
    """What the headers of all sources say.

    Returns:
        The sources that can be opened; the side in pixels that holds each of their slices, and that they are to have;
        the brightest value of all; notices; the (path, reason) of those that cannot be opened.
    """
    bad_files, notices = [], []
    looked = [(s, found) for s, found in _map(_inspect, sources, skip_bad_files, bad_files, "reading headers") if found]
    if not looked:
        raise _no_file_left(data_dir, len(sources), bad_files)
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
    return [source for source, _ in looked], native_size, image_size, brightest, notices, bad_files


def build_cache(data_dir, sources, image_size, num_slices, slice_spacing_mm, skip_bad_files, packed, manifest_path):
    """Decodes every source into `packed`, row by row, and writes the manifest last.

    A journal beside it says what is done, so that a build that was stopped or killed goes on. It is locked meanwhile: a
    second process waits, and finds the cache there.
    """
    surveyed = _survey(data_dir, sources, image_size, skip_bad_files)
    sources, native_size, image_size, brightest, notices, bad_files = surveyed

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
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(_open_journal(packed.with_suffix(".partial.jsonl")))
        journal_path = Path(journal.name)
        partial = journal_path.with_suffix(".npy")
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
                raise _no_file_left(data_dir, len(sources), bad_files)
            manifest = {
                "image_size": image_size,
                "fingerprint": digest.hexdigest(),
                "notices": notices,
                "bad_files": sorted(bad_files),
                "slices": slices,
            }
            partial.replace(packed)
            write_text(manifest_path, json.dumps(manifest))
        except DataError:  # after which other files will be asked for
            partial.unlink(missing_ok=True)
            journal_path.unlink(missing_ok=True)
            raise
        journal_path.unlink(missing_ok=True)
    number, seconds = len(slices) - first, time.monotonic() - started
    goes_on = f" after {first} of an earlier call" * (first > 0)
    print(f"decoded {number} slices{goes_on} in {seconds:.1f} s, {number / max(seconds, 1e-3):,.0f} a second")


def _open_journal(path):
    """The journal of a build, open and locked; waits while another process has it.

    Where files cannot be locked, it has this process's own name: nobody waits, and what is stopped begins anew.
    """
    while True:
        journal = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(journal, fcntl.LOCK_EX)
        except (AttributeError, OSError):
            journal.close()
            path.unlink(missing_ok=True)
            return path.with_stem(f"{path.stem}.{socket.gethostname()}.{os.getpid()}").open("a+", encoding="utf-8")
        with contextlib.suppress(FileNotFoundError):  # whoever had it may have finished, and removed it
            if os.fstat(journal.fileno()).st_ino == path.stat().st_ino:
                return journal
        journal.close()


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
        if whole and json.loads(whole[0]) == json.loads(json.dumps(header)):
            done = [json.loads(line) for line in whole[1:]]
            array = partial.open("r+b")
            np.lib.format.read_magic(array)
            np.lib.format.read_array_header_1_0(array)
            rows = sum(len(found) for _, found in done)
            if partial.stat().st_size >= array.tell() + rows * math.prod(header[1:3]):
                journal.truncate(sum(len(line.encode()) for line in whole))
                return array, done
            array.close()
    except (OSError, ValueError):
        pass  # nothing that could be gone on with
    journal.truncate(0)
    journal.write(json.dumps(header) + "\n")
    journal.flush()
    array = partial.open("w+b")
    about = {"descr": "|u1", "fortran_order": False, "shape": tuple(header[:3])}
    np.lib.format.write_array_header_1_0(array, about)
    return array, []


def write_whole(path, write):
    """Calls a function that writes a file, under another name first, so that no reader ever sees half of it."""
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial{path.suffix}")
    with contextlib.ExitStack() as stack:
        stack.callback(partial.unlink, missing_ok=True)
        write(partial)
        partial.replace(path)


def write_text(path, text):
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
