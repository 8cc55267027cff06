"""Scans of one's own: files made into what a run's models take, and what the models make of them turned into files.

    for name, (source, scale) in scans.find([Path("scan.nii.gz")]).items():
        scan = scans.read(name, source, model.config, scale)
        outputs = model.decode(model.encode(scan.images))
        scans.write_volume(scan, outputs, Path("reconstruction.nii.gz"))

A scan goes through the door that training goes through, `decoding.py`: the same plane, slices, intensities and
background. What differs from the run's own scans is brought to them where that can be done, and told in `notices`.
`write_head` writes a new head.
"""

import contextlib
import dataclasses
import re

import nibabel
import numpy as np
import PIL.Image
from nibabel.processing import resample_from_to
from skimage.transform import resize

from reading import cache, decoding, layouts
from reading.decoding import BadFile
from system import files
from system.console import UserError

ALIKE = 0.02  # voxel sizes that differ by less are one

TOLD = {  # of one file, what `cache.FOUND` says of many
    "colour": "a colour image, made grey",
    "transparent": "what is transparent is black",
    "16-bit": "more than 8 bits, scaled by its own brightest value",
    "floating-point": "a floating-point image, scaled by its own range",
    "NaN": "NaN is taken for background",
    "spike": "single values far above all others are cut",
    "negative": "has negative values: the lowest becomes black",
    "disagreement": "its header disagrees with its affine on the size or the axes of a voxel: the affine is taken",
    "unoriented": "its header names no orientation: the axes are taken as left, anterior, superior",
}


@dataclasses.dataclass(frozen=True)
class Scan:
    """A file as a run's models take it.

    Attributes:
        name: Of the file or, in a folder, of its path below; unlike that of any other scan of a call.
        images: float32 in [0, 1], shape (n, S, S): one image, or the slices of a volume, lowest first.
        slice_positions: float32, shape (n,), from 0 to 1; None for an image, of which it is not known.
        numbers: Which slices of the volume these are, in the canonical orientation.
        notices: Lines on what differs from the run's own scans, or was done to this one.
        pixels: An image as it is in its file, uint8, shape (height, width); None for a volume.
        shape: Height and width in pixels of a slice before it was made square.
        corner: Row and column of the square's corner on it; negative where it was padded.
        native_size: Side of the square before it was resized.
        values: (low, high) of the file, what became 0 and 1.
        volume: The file's own grid, (shape, affine), and the one its slices were taken from; None for an image.
        plane: Of the slices.
    """

    name: str
    images: np.ndarray
    slice_positions: np.ndarray | None
    numbers: list[int]
    notices: list[str]
    pixels: np.ndarray | None
    shape: tuple[int, int]
    corner: tuple[int, int]
    native_size: int
    values: tuple[float, float]
    volume: tuple | None
    plane: str


# ----------------------------------------------------------------------------------------------------------------
# From files
# ----------------------------------------------------------------------------------------------------------------


def find(paths):
    """Names and sources of files, and of all images and volumes in folders: those of a known layout, else all.

    Returns:
        A dictionary by name: a `layouts.Source`, and the scale that the images of its scan share, for `read`.

    Raises:
        UserError: For a path that is not there, holds nothing, or is of a kind that is not read.
    """
    found = []
    for path in paths:
        if path.is_dir():
            names = [name for name in layouts.walk(path) if layouts.kind_of(name)]
            scales = {}
            try:
                sources = layouts.find(path)[1]
                scales = _scales(sources)
            except UserError:
                if not names:
                    raise
                sources = [_source(path / name) for name in names]
            for source in sources:
                scale = scales.get((source.subject_id, source.session))
                found.append((source.path.relative_to(path).as_posix(), source, scale))
        elif not path.exists():
            raise UserError(f"{path}: no such file or folder")
        elif not layouts.kind_of(path.name):
            endings = ", ".join((*layouts.IMAGE_SUFFIXES, *layouts.VOLUME_SUFFIXES))
            raise UserError(f"{path}: not a kind of file that is read; its name must end in {endings}")
        else:
            found.append((path.name, _source(path), None))
    named = {}
    for name, source, scale in found:
        stem = re.sub(r"[^\w.-]+", "_", name)
        endings = sorted((*layouts.IMAGE_SUFFIXES, *layouts.VOLUME_SUFFIXES), key=len, reverse=True)
        stem = stem[: -len(next(ending for ending in endings if stem.lower().endswith(ending)))]
        number = 1
        while (unlike := stem + f"_{number}" * (number > 1)) in named:
            number += 1
        named[unlike] = source, scale
    return named


def _scales(sources):
    """What becomes 0 and 255 in the images of each scan that have more than 8 bits; see `cache.scales_of`."""
    looked = []
    for source in sources:
        if source.slice_index is not None:
            with contextlib.suppress(BadFile):  # which `read` raises again
                looked.append((source, decoding.inspect_source(source, decoding.How())))
    return cache.scales_of(*zip(*looked, strict=True)) if looked else {}


def _source(path):
    return layouts.Source(path, path.name, slice_index=None if layouts.kind_of(path.name) == "volume" else 0)


def read(name, source, config, scale=None):
    """Reads a file as the run of this config.json read its own.

    Args:
        name: For `Scan.name`.
        source: A `layouts.Source`.
        config: config.json of the run.
        scale: What becomes 0 and 255 of an image of more than 8 bits; None takes the image's own range.

    Returns:
        A `Scan`.

    Raises:
        BadFile: If it cannot be used; its `reason` says why.
    """
    own, about = config["options"]["data"], config["data"].get("about", {})
    if not about.get("native_pixels"):
        raise UserError("the run is of an older version, which does not say what its files were like; train again")
    names = [field.name for field in dataclasses.fields(decoding.How)]
    how = decoding.How(**{key: value for key, value in own.items() if key in names})
    shapes = [tuple(map(int, shape.split(" x "))) for shape in about["native_pixels"]]
    square = config["data"]["image_size"], decoding.native_size_of(shapes)
    if source.slice_index is None:
        return _read_volume(name, source, how, about, *square)
    return _read_image(name, source, how, shapes, *square, scale)


def _read_image(name, source, how, shapes, image_size, native_size, scale):
    found = decoding.inspect_source(source, how)
    scale = scale or found.get("scale")
    pixels = decoding.read_image(source.path, scale, how)
    if pixels.max() < decoding.DARKEST:
        raise BadFile(source.path, "the image is black")
    notices, shape = [TOLD[kind] for kind in found["kinds"]], pixels.shape
    original = decoding.read_image(source.path, scale, dataclasses.replace(how, background="keep"))
    if shape == (image_size, image_size):  # as the run writes its own samples
        native_size = image_size
    elif max(shape) > native_size:
        smaller = tuple(max(1, round(side * native_size / max(shape))) for side in shape)
        notices.append(f"its {_by(shape)} pixels are shrunk to {_by(smaller)}: the run's slices hold {native_size}")
        pixels = (resize(pixels / 255, smaller, anti_aliasing=True) * 255).round().astype("uint8")
    elif shape not in shapes and len(shapes) < 8:
        notices.append(f"its size is {_by(shape)} pixels, that of the run's slices {_by(shapes[0])}")
    corner = tuple(-((native_size - side) // 2) for side in pixels.shape)
    image = _squared(pixels[None], corner, native_size, image_size)
    where = (original, pixels.shape, corner, native_size)
    return Scan(name, image, None, [0], notices, *where, scale or (0.0, 255.0), None, how.plane)


def _read_volume(name, source, how, about, image_size, native_size):
    path = source.path
    found = decoding.inspect_source(source, how)
    notices = [TOLD[kind] for kind in found["kinds"]]
    theirs = [tuple(map(float, size.removesuffix(" mm").split(" x "))) for size in about["voxel_size"]]
    if not theirs:
        raise BadFile(path, "a volume, and the run was trained on images: cut its slices as those were cut")
    if not how.voxel_size and not any(np.allclose(found["voxel"], size, rtol=ALIKE) for size in theirs):
        notices.append(f"voxels of {_by(found['voxel'])} mm are resampled to {_by(theirs[0])} mm, those of the run")
        how = dataclasses.replace(how, voxel_size=theirs[0])
    if found["orientation"] not in about["orientation"]:
        notices.append(f"stored as {found['orientation']}, the run's as {', '.join(about['orientation'])}: turned")
    try:
        numbers, stack, kinds, values = decoding.read_volume(path, how)
    except BadFile as error:
        raise BadFile(path, error.reason.partition("; --num-slices")[0]) from error
    notices += [TOLD[kind] for kind in kinds]
    corner = [-((native_size - side) // 2) for side in stack.shape[1:]]
    for axis, side in enumerate(stack.shape[1:]):
        if side > native_size:  # more air around the head than the run's scans have: the head is brought to the middle
            lit = np.flatnonzero((stack > decoding.DARKEST).any(axis=(0, 2 - axis)))
            if lit[-1] - lit[0] >= native_size:
                raise BadFile(path, f"its head is {lit[-1] - lit[0] + 1} pixels wide, the run's slices {native_size}")
            corner[axis] = int(np.clip((lit[0] + lit[-1] + 1 - native_size) // 2, 0, side - native_size))
            notices.append(f"{side} pixels of a slice are cropped to {native_size} around the head")
    images = _squared(stack, corner, native_size, image_size)
    positions = np.arange(len(numbers), dtype="float32") / max(1, len(numbers) - 1)
    canonical, _, _ = decoding.open_volume(path)
    grid = canonical.shape, canonical.affine
    if how.voxel_size:
        grid = nibabel.spaces.vox2out_vox(canonical, np.broadcast_to(how.voxel_size, 3))
    file = nibabel.load(path)
    volume = (file.shape[:3], file.affine), grid
    where = (None, stack.shape[1:], tuple(corner), native_size)
    return Scan(name, images, positions, numbers, notices, *where, values, volume, how.plane)


def _by(sizes):
    return " x ".join(f"{size:.3g}" for size in sizes)


def _overlaps(shape, corner, side):
    """Where a slice and its square overlap: (rows, columns) of the slice, and of the square."""
    on_slice = tuple(slice(max(0, start), min(size, start + side)) for size, start in zip(shape, corner, strict=True))
    on_square = tuple(slice(s.start - start, s.stop - start) for s, start in zip(on_slice, corner, strict=True))
    return on_slice, on_square


def _squared(stack, corner, native_size, image_size):
    """uint8 slices (n, height, width) as squares, float32 in [0, 1], (n, image_size, image_size)."""
    on_slice, on_square = _overlaps(stack.shape[1:], corner, native_size)
    padded = np.zeros((len(stack), native_size, native_size), "uint8")
    padded[:, *on_square] = stack[:, *on_slice]
    squares = np.stack([decoding.fit_square(image, native_size, image_size) for image in padded])
    return squares.astype("float32") / np.float32(255)


def read_mask(path, scan):
    """A mask image of the size of a scan's image, True where it is bright: as it is, and as a square, (S, S).

    Raises:
        BadFile: If it is not an image of that size.
    """
    source = _source(path)
    pixels = decoding.read_image(path, decoding.inspect_source(source, decoding.How()).get("scale"), decoding.How())
    pixels = pixels > pixels.max() // 2
    if pixels.shape != scan.pixels.shape:
        raise BadFile(path, f"a mask of {_by(pixels.shape)} pixels, for an image of {_by(scan.pixels.shape)}")
    on_slice = pixels if scan.shape == pixels.shape else resize(pixels, scan.shape, order=0)
    square = _squared(on_slice[None].astype("uint8") * 255, scan.corner, scan.native_size, scan.images.shape[1])
    return pixels, square[0] > 0


# ----------------------------------------------------------------------------------------------------------------
# To files
# ----------------------------------------------------------------------------------------------------------------


def slices_of(scan, squares, order=1):
    """Squares (n, S, S) on the pixels of the scan's slices, 0 where those were cropped: float32, (n, height, width)."""
    side = (scan.native_size, scan.native_size)
    whole = np.zeros((len(squares), *scan.shape), "float32")
    on_slice, on_square = _overlaps(scan.shape, scan.corner, scan.native_size)
    for one, square in zip(whole, squares, strict=True):
        one[on_slice] = resize(square.astype("float32"), side, order=order)[on_square]
    return whole


def write_image(scan, square, path, order=1, only=None):
    """Writes a square, float in [0, 1], as an 8-bit grey PNG of the size of the input; outside `only` the input."""
    pixels = resize(slices_of(scan, square[None], order)[0], scan.pixels.shape, order=order)
    pixels = (np.clip(pixels, 0, 1) * 255).round().astype("uint8")
    if only is not None:
        pixels = np.where(only, pixels, scan.pixels)
    files.write_whole(path, PIL.Image.fromarray(pixels).save)


def write_volume(scan, squares, path, order=1):
    """Writes squares of a volume's slices, (n, S, S), as NIfTI, float32, with the shape and the affine of the input.

    Voxels outside the slices are 0. Where slices were resampled, `order` 1 interpolates and 0 takes the nearest.
    """
    (own_shape, own_affine), (shape, affine) = scan.volume
    axis = decoding.PLANES[scan.plane]
    across = [size for i, size in enumerate(shape) if i != axis]
    stack = slices_of(scan, squares, order)
    if stack.shape[1:] != (across[1], across[0]):
        stack = np.stack([resize(one, (across[1], across[0]), order=order) for one in stack])
    whole = np.zeros((*across, shape[axis]), "float32")
    whole[:, :, scan.numbers] = np.rot90(stack.transpose(1, 2, 0), -1)
    volume = nibabel.Nifti1Image(np.moveaxis(whole, 2, axis), affine)
    volume = resample_from_to(volume, (own_shape, own_affine), order=order)
    volume.header["descrip"] = "made by a VQ-VAE"
    volume.header.set_xyzt_units("mm")
    files.write_whole(path, lambda partial: nibabel.save(volume, partial))


def write_head(slices, path, plane, voxel_mm, orientation):
    """Writes the slices of a new head as NIfTI: uint8, the middle of the volume at 0, 0, 0 mm.

    Args:
        slices: uint8, shape (s, S, S), as the run's slices are.
        path: Ends in .nii.gz.
        plane: Of the slices.
        voxel_mm: Pixels and distance of the slices: (across, along, between).
        orientation: Axes of the file, as "RAS".
    """
    axis = decoding.PLANES[plane]
    voxels = np.moveaxis(np.rot90(slices.transpose(1, 2, 0), -1), 2, axis)
    sizes = np.insert(np.array(voxel_mm[:2], float), axis, voxel_mm[2])
    affine = nibabel.affines.from_matvec(np.diag(sizes), -sizes * (np.array(voxels.shape) - 1) / 2)
    volume = nibabel.Nifti1Image(np.ascontiguousarray(voxels), affine)
    turned = nibabel.orientations.axcodes2ornt(orientation)
    volume = volume.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), turned))
    volume.header["descrip"] = "synthetic: made by a VQ-VAE and a PixelCNN"
    volume.header.set_xyzt_units("mm")
    files.write_whole(path, lambda partial: nibabel.save(volume, partial))
