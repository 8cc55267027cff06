"""What is in a file: images and volumes become square uint8 slices, decoded once into one array on disk, the cache.

Everything a file can have wrong raises `BadFile`, a `UserError`, with one line that names it and what to do.
"""

import gzip
import hashlib
import json
import math
import os
import time

import nibabel
import numpy as np
import PIL.Image
from joblib import Parallel, delayed
from skimage.filters import threshold_otsu
from skimage.transform import resize
from tqdm import tqdm

from files import UserError, in_a_line, write_text, write_whole

FEWEST_PIXELS, MOST_PIXELS = 16, 4096  # along a side
MOST_VOXELS = 10**8  # of at most four bytes, 0.4 GB; a brain at half a millimetre has fewer
MIDDLE_BELOW_TOP_MM = 60  # from the top of the head to the middle of the brain, roughly the upper thalamus


class BadFile(UserError):
    """A file that cannot be used, which `skip_bad_files` leaves out."""

    def __init__(self, path, reason):
        super().__init__(f"{path}: {reason}; mend or remove it, or give --skip-bad-files")
        self.path = path
        self.reason = reason


# ----------------------------------------------------------------------------------------------------------------
# Images and volumes
# ----------------------------------------------------------------------------------------------------------------


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
    if low >= high:
        raise BadFile(path, f"nearly every voxel is {low:g}")

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
# The cache
# ----------------------------------------------------------------------------------------------------------------


def _each(function, sources, skip_bad_files, description):
    """Yields each source with what a function makes of it, in order; the function runs in threads.

    A `BadFile` is raised, or with `skip_bad_files` takes the place of the result.
    """

    def attempt(source):
        try:
            return function(source)
        except BadFile as error:
            if not skip_bad_files:
                raise
            return error

    results = Parallel(os.cpu_count(), backend="threading", return_as="generator")(map(delayed(attempt), sources))
    yield from zip(sources, tqdm(results, description, len(sources), leave=False, disable=None), strict=True)


def _survey(data_dir, sources, image_size, skip_bad_files):
    """What the headers of all sources say.

    Returns:
        The sources that can be opened; the side in pixels that holds each of their slices, and that they are to have;
        the brightest value of all; notices; a `BadFile` for each that cannot be opened.
    """
    looked = list(_each(_inspect, sources, skip_bad_files, "reading headers"))
    bad_files = [found for _, found in looked if isinstance(found, BadFile)]
    looked = [(source, found) for source, found in looked if not isinstance(found, BadFile)]
    _refuse_nothing(data_dir, looked, bad_files)
    native_size = math.ceil(max(max(height, width) for _, (height, width, _, _) in looked) / 32) * 32
    image_size = image_size or native_size
    notices = []
    if image_size > native_size:
        notices.append(f"slices of {native_size} pixels are enlarged to {image_size}, as --image-size asks")
    scaled = "scaled to 8 bits by the brightest value of all"
    for kind, done in (("colour", "converted to grey"), ("16-bit", scaled), ("floating-point", scaled)):
        of_kind = [source.path.relative_to(data_dir).as_posix() for source, (*_, k, _) in looked if k == kind]
        if of_kind:
            notices.append(f"{len(of_kind)} {kind} images {done}, {of_kind[0]} the first")
    brightest = max(value for _, (*_, value) in looked)
    return [source for source, _ in looked], native_size, image_size, brightest, notices, bad_files


def _refuse_nothing(data_dir, found, bad_files):
    if not found:
        first = f"{bad_files[0].path}: {bad_files[0].reason}"
        raise UserError(f"{data_dir}: none of its {len(bad_files)} files can be used; the first: {first}")


def build_cache(data_dir, sources, image_size, num_slices, slice_spacing_mm, skip_bad_files, packed, manifest_path):
    """Decodes every source into the array `packed`, uint8 (number, image_size, image_size), and writes the manifest.

    Both appear under their names when they are whole. The manifest is JSON: the fingerprint, SHA-256 of the pixels and
    of whose they are; notices; bad files; and for each slice path, subject_id, session, slice_index, slice_position,
    label, split and row.
    """
    started = time.monotonic()
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
    slices, digest = [], hashlib.sha256()

    def fill(file):
        per_source = num_slices if sources[0].slice_index is None else 1
        shape = (len(sources) * per_source, image_size, image_size)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for source, result in _each(decode, sources, skip_bad_files, "decoding slices"):
            if isinstance(result, BadFile):
                bad_files.append(result)
                continue
            name = source.path.relative_to(data_dir).as_posix()
            for order, (number, image) in enumerate(zip(*result, strict=True)):
                if source.slice_index is None:
                    position = order / max(1, num_slices - 1)
                else:
                    position = (number - lowest) / max(1, highest - lowest)
                whose = (source.subject_id, source.session, number, round(position, 6), source.label, source.split)
                file.write(image.tobytes())
                digest.update(image.tobytes() + repr(whose).encode())
                slices.append((name, *whose, len(slices)))
        _refuse_nothing(data_dir, slices, bad_files)
        file.truncate(file.tell() + (shape[0] - len(slices)) * image_size**2)  # black rows for files that were left out

    def write(partial):
        with partial.open("wb") as file:
            fill(file)

    write_whole(packed, write)
    manifest = {
        "fingerprint": digest.hexdigest(),
        "notices": notices,
        "bad_files": sorted((str(bad.path), bad.reason) for bad in bad_files),
        "slices": slices,
    }
    write_text(manifest_path, json.dumps(manifest))
    seconds = time.monotonic() - started
    print(f"decoded {len(slices)} slices in {seconds:.1f} s, {len(slices) / max(seconds, 1e-3):,.0f} a second")
