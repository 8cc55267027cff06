"""Scans of one's own: read as a run read its own files; results are written as files of the same shape.

    found, notices = scans.find([Path("scan.nii.gz")])
    for name, (source, scale) in found.items():
        scan = scans.read(name, source, model.config, scale)
        outputs = model.decode(model.encode(scan.images))
        scans.write_reconstruction(scan, outputs, Path("."))

A scan goes through the door that training goes through, `reading/decoding.py`: the same plane, slices, intensities and
background. What differs from the run's own scans is brought to them where that can be done, and told in `notices`.
`write_head` writes a new head.
"""

import contextlib
import dataclasses
import re
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
from nibabel.processing import resample_from_to
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.transform import resize

from evaluation import metrics
from reading import cache, decoding, layouts
from reading.decoding import BadFile
from system import files
from system.console import UserError

ALIKE = 0.02  # voxel sizes that differ by less are one
MOST_LABELS = 16  # values of a mask whose labels are all drawn anew
RIM_MM = (8, 14)  # below the outline of a head, where its skull is dark; that of a brain is bright there
SKULL = 0.3  # share of a rim that is dark: of people's brains 0.1 to 0.25, of whole heads 0.4 to 0.8
CUT_ABOVE = 0.2  # share of the largest area of a slice that the top one has where the top of the head is not shown
SHORTEST_HEAD_MM = 200  # that slices must hold for whole heads of adults
OF_BRAINS = (
    "the run's slices are of brains without skull: strip it first (HD-BET, SynthStrip), or use a run of whole heads"
)

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
    """A file as a run's models take it."""

    name: str  # of the file or, in a folder, of its path below; unlike that of any other scan of a call
    path: Path
    images: np.ndarray  # float32 in [0, 1], shape (n, S, S): one image, or the slices of a volume, lowest first
    slice_positions: np.ndarray | None  # float32, shape (n,), from 0 to 1; None for an image, of which it is not known
    numbers: list[int]  # which slices of the volume these are, in the canonical orientation
    notices: list[str]  # what differs from the run's own scans, or was done to this one
    stored: np.ndarray | None  # an image as it is in its file, (height, width[, channels]); None for a volume
    shape: tuple[int, int]  # height and width in pixels of a slice before it was made square
    corner: tuple[int, int]  # row and column of the square's corner on it; negative where it was padded
    native_size: int  # side of the square before it was resized
    values: tuple[float, float]  # of the file, what became 0 and 1
    grid: tuple | None  # shape and affine of the canonical volume that the slices are of; None for an image
    plane: str  # of the slices

    @property
    def lit(self):
        """Which slices are not black: bool, shape (n,)."""
        return self.images.max(axis=(1, 2)) >= decoding.DARKEST / 255


# ----------------------------------------------------------------------------------------------------------------
# From files
# ----------------------------------------------------------------------------------------------------------------


def find(paths):
    """Names and sources of files, and of all images and volumes in folders.

    Returns:
        A dictionary by name: a `layouts.Source`, and the scale that the images of its scan share, for `read`; and lines
        on what is left out.

    Raises:
        UserError: For a path that is not there, holds nothing, or is of a kind that is not read.
    """
    found, named, notices = [], {}, []
    for path in paths:
        if path.is_dir():
            sources, left_out = _sources_in(path)
            scales, notices = _scales(sources), notices + left_out
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
    for name, source, scale in found:
        stem = re.sub(r"[^\w.-]+", "_", layouts.stem_of(name)).strip(".") or "scan"
        number = 1
        while (unlike := stem + f"_{number}" * (number > 1)) in named:
            number += 1
        named[unlike] = source, scale
    return named, notices


def _sources_in(folder):
    """Sources of all images and volumes in a folder, whose they are where its layout is known; what is left out."""
    everything, notices, known, aside, aside_is = layouts.walk(folder), [], {}, "", ""
    names = [name for name in everything if layouts.kind_of(name)]
    notices += [f"{folder}: {line}" for line in layouts.not_read(everything)]
    try:
        layout, sources, _ = layouts.find(folder, subject_regex=None if names else "(.+)")  # which says what is read
        known = {source.path: source for source in sources}
        if layout in layouts.LAYOUTS:
            aside, aside_is = layouts.LAYOUTS[layout].aside, layouts.LAYOUTS[layout].aside_is
    except UserError as error:
        if not names:
            raise UserError("; ".join([str(error), *notices])) from error
    left = [name for name in names if aside and re.fullmatch(aside, name) and folder / name not in known]
    if left:
        notices.append(f"{folder}: {aside_is} are left out: {len(left)} ({left[0]} the first)")
    paths = [folder / name for name in names if name not in left]
    return [known.get(path) or _source(path) for path in paths], notices


def _scales(sources):
    """What becomes 0 and 255 in the images of each scan that have more than 8 bits; see `cache.scales_of`."""
    looked = []
    for source in sources:
        if source.slice_index is not None:
            with contextlib.suppress(BadFile):  # which `read` raises again
                looked.append((source, decoding.inspect_source(source, decoding.How())))
    return cache.scales_of(*zip(*looked, strict=True)) if looked else {}


def _source(path):
    return layouts.Source(path, str(path), slice_index=None if layouts.kind_of(path.name) == "volume" else 0)


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
    pixels, stored = decoding.read_image(source.path, scale, how), _stored(source.path)
    if stored.min() == stored.max():
        raise BadFile(source.path, f"all its pixels are {stored.flat[0]:g}")
    if pixels.max() < decoding.DARKEST:
        raise BadFile(source.path, "the image is black")
    notices, shape = [TOLD[kind] for kind in found["kinds"]], pixels.shape
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
    where = (stored, pixels.shape, corner, native_size)
    return Scan(name, source.path, image, None, [0], notices, *where, scale or (0.0, 255.0), None, how.plane)


def _stored(path):
    """The values of an image's file: (height, width), or with colours, and what is transparent, as channels."""
    with PIL.Image.open(path) as image:
        if image.mode == "PA" or "transparency" in image.info:
            image = image.convert("RGBA")
        elif image.mode not in ("L", "LA", "RGB", "RGBA", "F") and not image.mode.startswith("I"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        values = np.asarray(image)
    return values.astype(values.dtype.newbyteorder("="))


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
    canonical, _, _ = decoding.open_volume(path)
    voxels = np.nan_to_num(np.asanyarray(canonical.dataobj, dtype="float32")[::2, ::2])
    area = (voxels > threshold_otsu(voxels.ravel())).mean(axis=(0, 1))
    if how.plane == "axial" and area[-1] > CUT_ABOVE * area.max():
        notices.append("the top of the head is not in the image: the slices lie lower in the head than the run's")
    corner = _corner(path, stack, native_size, (about.get("pixel_mm") or 0) * image_size / native_size)
    if max(stack.shape[1:]) > native_size:
        of = f"its slices of {_by(stack.shape[1:])} pixels"
        notices.append(f"{of} are cropped to the run's {_by([native_size] * 2)} around the head")
    images = _squared(stack, corner, native_size, image_size)
    black = int((images.max(axis=(1, 2)) < decoding.DARKEST / 255).sum())
    if black == len(images):
        raise BadFile(path, "all slices that the run would use are black")
    if black:
        notices.append(f"{black} of {len(images)} slices are black and left out of the figures")
    positions = np.arange(len(numbers), dtype="float32") / max(1, len(numbers) - 1)
    grid = canonical.shape, canonical.affine
    if how.voxel_size:
        grid = nibabel.spaces.vox2out_vox(canonical, np.broadcast_to(how.voxel_size, 3))
    where = (None, stack.shape[1:], corner, native_size)
    return Scan(name, path, images, positions, numbers, notices, *where, values, grid, how.plane)


def _corner(path, stack, native_size, pixel_mm):
    """Row and column of the run's square on the slices of a volume: in their middle, or where they are larger than it,
    since they hold more air, around the head. Raises BadFile for too large a head; `pixel_mm` is 0 if not known.
    """
    corner = [-((native_size - side) // 2) for side in stack.shape[1:]]
    if max(stack.shape[1:]) <= native_size:
        return corner
    middle = np.percentile(stack, 90, axis=0)  # of which noise in the air is no part
    inside = decoding.head(middle, max(1, native_size // 32))
    lit = [np.flatnonzero(inside.any(axis=1 - axis)) if inside.any() else [0] for axis in (0, 1)]
    longest = max(ends[-1] - ends[0] + 1 for ends in lit)
    if longest > native_size and pixel_mm:
        rim = np.nanmean([head_shape(image, pixel_mm)[0] for image in stack[:: max(1, len(stack) // 8)]])
        if rim > SKULL and native_size * pixel_mm < SHORTEST_HEAD_MM:
            raise BadFile(path, f"looks like a whole head ({longest * pixel_mm:.0f} mm long), and {OF_BRAINS}")
    if longest > native_size:
        raise BadFile(path, f"its head is {longest} pixels wide, and the run's slices hold {native_size}: crop it")
    for axis, (ends, side) in enumerate(zip(lit, stack.shape[1:], strict=True)):
        if side > native_size:
            corner[axis] = int(np.clip((ends[0] + ends[-1] + 1 - native_size) // 2, 0, side - native_size))
    return corner


def head_shape(image, pixel_mm):
    """Which share of the rim of a head is dark, as its skull is, 0 to 1, and how long the head is in mm.

    NaN and 0 where a slice has no head. The rim lies `RIM_MM` below the outline; dark is what has less than half the
    brightness of what lies deeper.
    """
    inside = metrics.head_mask(image)
    depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1] * pixel_mm
    rim, deeper = image[(depth > RIM_MM[0]) & (depth <= RIM_MM[1])], image[depth > RIM_MM[1]]
    lit = [np.flatnonzero(inside.any(axis=axis)) for axis in (0, 1)]
    longest = max(np.ptp(places) + 1 if len(places) else 0 for places in lit) * pixel_mm
    return (float((rim < np.median(deeper) / 2).mean()) if len(deeper) else np.nan), float(longest)


def _by(sizes):
    return " x ".join(f"{size:.3g}" if size < 100 else f"{size:.0f}" for size in sizes)


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
    """What of an image is to be drawn anew, by a mask image of its size: bool, shape (height, width), and notices.

    Of labels (few values) and of black and white all that is not 0; of many grey levels what is above half of the
    brightest; of an image with a hole what is transparent.

    Raises:
        UserError: If it is not an image of that size, or covers nothing, or all.
    """
    try:
        decoding.read_image(path, decoding.inspect_source(_source(path), decoding.How()).get("scale"), decoding.How())
    except BadFile as error:
        raise UserError(f"{path}: {error.reason}") from error
    stored, notices = np.atleast_3d(np.nan_to_num(_stored(path))), []
    transparent = stored[..., -1] == 0 if stored.shape[2] in (2, 4) else np.zeros(stored.shape[:2], bool)
    values = np.where(transparent, 0, stored[..., : 3 if stored.shape[2] > 2 else 1].max(axis=2))
    kinds = len(np.unique(values[~transparent]))
    if transparent.any() and (kinds > MOST_LABELS or not values.any()):
        mask = transparent
        notices.append("the mask is transparent in part: what is transparent is drawn anew")
    elif kinds > MOST_LABELS or path.suffix.lower() in (".jpg", ".jpeg"):
        mask = values > values.max() / 2
        notices.append("the mask has many grey levels: what is above half of the brightest is drawn anew")
    else:
        mask = values != 0
    if mask.shape != scan.stored.shape[:2]:
        raise UserError(f"{path}: a mask of {_by(mask.shape)} pixels, for an image of {_by(scan.stored.shape[:2])}")
    if mask.all() or not mask.any():
        covered = "all" if mask.any() else "nothing"
        raise UserError(f"{path}: the mask covers {covered} of the image: nothing to complete")
    return mask, notices


def read_volume_mask(path, scan):
    """What of a volume is to be drawn anew, by a mask volume in its grid, in which all that is not 0 is.

    Returns:
        bool in the voxels of the scan's file; and on the squares of its slices, (n, S, S), every pixel it touches.

    Raises:
        UserError: If it is no volume in that grid, or touches no slice that the run sees.
    """
    file = nibabel.load(scan.path)
    try:
        mask = nibabel.load(path)
        hidden = np.nan_to_num(np.asanyarray(mask.dataobj, dtype="float32")) != 0
    except Exception as error:  # nibabel, zlib and NumPy raise many kinds
        raise UserError(f"{path}: no volume, and the input is one: its mask is a NIfTI file in its grid") from error
    if hidden.shape != file.shape or not np.allclose(mask.affine, file.affine, atol=1e-3):
        raise UserError(f"{path}: lies in another grid than {scan.path}; resample it to that (nilearn.image)")
    hidden = hidden.reshape(hidden.shape[:3])
    voxels = nibabel.Nifti1Image(hidden.astype("float32"), file.affine)
    voxels = np.asarray(resample_from_to(voxels, scan.grid, order=1).dataobj)
    stack = decoding.to_slices(voxels, scan.plane)[scan.numbers]
    if stack.shape[1:] != scan.shape:
        stack = np.stack([resize(image, scan.shape, anti_aliasing=False) for image in stack])
    squares = _squared((stack > 1e-3).astype("uint8") * 255, scan.corner, scan.native_size, scan.images.shape[1]) > 0
    if not squares.any():
        raise UserError(f"{path}: the mask touches none of the slices that the run sees: nothing to complete")
    return hidden, squares


def hide(scan, mask, config):
    """The `Scan` of an image read again, with nothing left of what lies under a mask, bool, (height, width).

    There the values of its file become those of the nearest pixel beside the mask, before they are scaled, the
    background is made black and the image is shrunk. Also returned: which pixels of the square it touches, (S, S).
    """
    nearest = ndimage.distance_transform_edt(mask, return_distances=False, return_indices=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "filled.tif"
        PIL.Image.fromarray(scan.stored[tuple(nearest)]).save(path)
        try:
            filled = read(scan.name, _source(path), config)
        except BadFile as error:
            raise UserError(f"{scan.path}: outside of the mask {error.reason}") from error
    size, touches = scan.images.shape[1], []
    for side, on_slice, corner in zip(mask.shape, filled.shape, filled.corner, strict=True):
        edges = (np.arange(side + 1) * on_slice / side - corner) * size / filled.native_size  # of pixels, on the square
        pixels = np.arange(size)[:, None]
        overlaps = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
        touches.append((overlaps > 1e-6).astype("float32"))
    square = touches[0] @ mask.astype("float32") @ touches[1].T > 0
    return dataclasses.replace(filled, path=scan.path, stored=scan.stored), square


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


def write_image(scan, square, path, about, order=1):
    """Writes a square, float in [0, 1], as an 8-bit grey PNG of the size of the input; `about` is its text."""
    pixels = resize(slices_of(scan, square[None], order)[0], scan.stored.shape[:2], order=order)
    files.write_image(path, PIL.Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype("uint8")), about)


def write_completion(scan, square, mask, path, about):
    """Writes an image as it is in its file, but under a mask, (height, width), what a square holds there, in grey.

    `about` is the text of a PNG.
    """
    whole, (low, high) = scan.stored.copy(), scan.values
    drawn = low + resize(slices_of(scan, square[None])[0], mask.shape)[mask].clip(0, 1) * (high - low)
    drawn = drawn.round() if whole.dtype.kind in "iu" else drawn
    whole[mask] = (drawn if whole.ndim == 2 else drawn[:, None]).astype(whole.dtype)
    if whole.ndim == 3 and whole.shape[2] in (2, 4):
        whole[mask, -1] = 255  # not transparent
    files.write_image(path, PIL.Image.fromarray(whole), about)


def in_volume(scan, squares, order=1):
    """Squares (n, S, S) in the voxels of the scan's file: float32, NaN outside the slices.

    Where slices were resampled, `order` 1 interpolates and 0 takes the nearest.
    """
    file, (shape, affine) = nibabel.load(scan.path), scan.grid
    whole = np.zeros((2, *decoding.to_slices(np.broadcast_to(0, shape), scan.plane).shape), "float32")
    for number, image in zip(scan.numbers, slices_of(scan, squares, order), strict=True):
        whole[0, number], whole[1, number] = resize(image, whole.shape[2:], order=order), 1  # and where there are any
    volumes = [nibabel.Nifti1Image(decoding.to_volume(part, scan.plane), affine) for part in whole]
    values, share = (resample_from_to(one, (file.shape[:3], file.affine), order) for one in volumes)
    values, share = np.asarray(values.dataobj), np.asarray(share.dataobj)
    return np.divide(values, share, out=np.full_like(values, np.nan), where=share > 0.5 - 1e-3)


def write_volume(scan, voxels, path):
    """Writes voxels of the scan's file as NIfTI, float32, with its sform and qform; NaN becomes 0."""
    file = nibabel.load(scan.path)
    volume = nibabel.Nifti1Image(np.nan_to_num(voxels).astype("float32"), file.affine)
    if isinstance(file, nibabel.Nifti1Pair):
        volume.set_qform(file.get_qform(), int(file.header["qform_code"]))
        volume.set_sform(file.get_sform(), int(file.header["sform_code"]))
    _save(volume, path, "made by a VQ-VAE")


def write_completed_volume(scan, squares, hidden, path):
    """Writes a volume as it is in its file, float32, but under a mask, bool like it, what squares (n, S, S) hold there.

    Returns how many voxels under the mask lie in none of the slices, or where these are cropped, and stay as they are.
    """
    low, high = scan.values
    whole = np.asanyarray(nibabel.load(scan.path).dataobj, dtype="float32").reshape(hidden.shape).copy()
    drawn, whole_squares = in_volume(scan, squares), in_volume(scan, np.ones_like(squares))
    seen = hidden & (np.nan_to_num(whole_squares) > 0.5)
    whole[seen] = low + drawn[seen] * (high - low)
    write_volume(scan, whole, path)
    return int((hidden & ~seen).sum())


def _save(volume, path, description):
    volume.header["descrip"] = description
    volume.header.set_xyzt_units("mm")
    files.write_whole(path, lambda partial: nibabel.save(volume, partial))


def write_reconstruction(scan, outputs, folder):
    """Writes what a model made of a volume's slices, (n, S, S), in the file's values, and less the file's own.

    Where the run sees black, what the model makes is added to the file's own value: a background stays what it is.
    Outside the slices reconstruction.nii.gz is as the background is, and difference.nii.gz 0.
    """
    low, high = scan.values
    made, seen = in_volume(scan, outputs), in_volume(scan, scan.images)
    own = np.asanyarray(nibabel.load(scan.path).dataobj, dtype="float32").reshape(made.shape)
    own, inside, black = np.nan_to_num(own, nan=low), np.isfinite(made), seen == 0
    background = np.median(own[black]) if black.any() else low
    reconstruction = np.where(inside, np.where(black, own, low) + made * (high - low), background)
    write_volume(scan, reconstruction, folder / "reconstruction.nii.gz")
    write_volume(scan, np.where(inside, reconstruction - own, 0), folder / "difference.nii.gz")


def write_head(slices, path, plane, voxel_mm, orientation):
    """Writes the slices of a new head, uint8, (s, S, S), as NIfTI, the middle of the volume at 0, 0, 0 mm.

    `plane` and `voxel_mm`, (across, along, between), are those of the slices, `orientation` the file's, as "RAS".
    """
    voxels = decoding.to_volume(slices, plane)
    sizes = np.insert(np.array(voxel_mm[:2], float), decoding.PLANES[plane], voxel_mm[2])
    affine = nibabel.affines.from_matvec(np.diag(sizes), -sizes * (np.array(voxels.shape) - 1) / 2)
    volume = nibabel.Nifti1Image(np.ascontiguousarray(voxels), affine)
    turned = nibabel.orientations.axcodes2ornt(orientation)
    volume = volume.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), turned))
    volume.set_qform(volume.affine, int(volume.header["sform_code"]))
    _save(volume, path, "synthetic: made by a VQ-VAE and a PixelCNN")
