"""What is in a file: images and volumes become uint8 slices.

Everything a file can have wrong raises `BadFile`, a `UserError`, with one line that names it and what to do.
"""

import dataclasses
import gzip
import math

import nibabel
import numpy as np
import PIL.Image
from nibabel.processing import resample_to_output
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.transform import resize

from system.console import UserError, in_a_line

FEWEST_PIXELS, MOST_PIXELS = 16, 4096  # along a side
MOST_VOXELS = 10**8  # of at most four bytes, 0.4 GB; a brain at half a millimetre has fewer
LEAST_SHOWN = 0.005  # of the foreground of the fullest slice, in the lowest slice and the highest
MIDDLE_BELOW_TOP_MM = 60  # from the top of the head to the middle of the brain, roughly the upper thalamus
MIDDLE_OF_SMALL_HEADS = 0.45  # share of the height of what is shown, where that comes to less: infants, cropped brains
BONE_MM = 8  # gap between brain and scalp that is closed
PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}  # and the axis, of right, anterior, superior, that they stand on
DARKEST = 10  # of 255; a slice without a brighter pixel is black


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


def _pixels(image):
    """Grey values of an open image as it stores them; what is transparent is black."""
    if image.mode.startswith("I") or image.mode == "F":
        return np.asarray(image, "float32")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "black"), image)
    return np.asarray(image.convert("L"))


def read_image(path, scale, how):
    """A slice as uint8; images of more than 8 bits are scaled so that `scale`, (low, high), becomes 0 and 255."""
    with _open_image(path) as image:
        try:
            pixels = _pixels(image)
        except Exception as error:
            raise BadFile(path, f"truncated or damaged ({in_a_line(error)})") from error
    if pixels.dtype != "uint8":
        low, high = scale
        if np.nanmin(pixels) < np.nanmax(pixels):
            pixels, _ = _without_spoilers(path, pixels, far=2.5, black=low)
        pixels = np.nan_to_num((pixels - low) * (255 / ((high - low) or 1)), nan=0.0)
        pixels = np.clip(pixels, 0, 255).round().astype("uint8")
    if how.background == "black" and pixels.min() < pixels.max():  # one of a single value has no head to be kept
        pixels = np.where(head(pixels, max(1, max(pixels.shape) // 32)), pixels, 0).astype("uint8")
    return pixels


def open_volume(path):
    """A volume with axes right, anterior, superior; its orientation as stored; names of what its header lacks."""
    _refuse_no_file(path)
    try:
        volume = nibabel.load(path)
    except Exception as error:  # nibabel passes on whatever gzip, zlib and struct raise
        raise BadFile(path, f"not a readable volume ({in_a_line(error)})") from error
    shape = volume.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise BadFile(path, f"a {len(shape)}-D image of shape {volume.shape}")
    dtype = volume.get_data_dtype()
    if dtype.kind not in "biuf":
        raise BadFile(path, f"its voxels are of type {dtype}, not single numbers")
    size = max(4, dtype.itemsize)
    if min(shape) < 1 or math.prod(shape) * size > 4 * MOST_VOXELS:
        claimed, most = " x ".join(map(str, shape)), 4 * MOST_VOXELS // size
        raise BadFile(path, f"its header claims {claimed} voxels; of type {dtype}, 1 to {most:,} can be read")
    if not np.isfinite(volume.affine).all():
        raise BadFile(path, "the affine is not finite")
    if not all(0.01 <= size <= 100 for size in voxel_sizes(volume)):
        raise BadFile(path, f"its header claims voxels of {' x '.join(f'{s:g}' for s in voxel_sizes(volume))} mm")
    try:
        orientation, kinds = "".join(nibabel.aff2axcodes(volume.affine)), _kinds_of_header(volume, path)
        volume = volume.slicer[(..., *[0] * (volume.ndim - 3))] if volume.ndim > 3 else volume
        canonical = nibabel.as_closest_canonical(volume)
    except Exception as error:
        raise BadFile(path, f"the affine names no axes ({in_a_line(error)})") from error
    return canonical, orientation, kinds


def _kinds_of_header(volume, path):
    if isinstance(volume, nibabel.Nifti1Pair):
        header = volume.header
        if not header["sform_code"] and not header["qform_code"]:
            return ["unoriented"]
        agree = np.allclose(np.abs(header["pixdim"][1:4]), voxel_sizes(volume), rtol=0.01)
        if agree and header["qform_code"]:
            try:
                agree = nibabel.aff2axcodes(volume.get_qform()) == nibabel.aff2axcodes(volume.affine)
            except (ValueError, nibabel.spatialimages.HeaderDataError):  # numbers that are no rotation
                agree = False
        return [] if agree else ["disagreement"]
    if isinstance(volume, nibabel.AnalyzeImage) and not path.with_suffix(".mat").exists():
        return ["unoriented"]  # older than NIfTI; SPM keeps the affine beside it
    return []


def _check_gzip(path, most):
    """Reads a gzip file to its end, where its checksum stands; nibabel stops where the voxels end."""
    size = 0
    with gzip.open(path) as stream:
        while part := stream.read(2**20):
            size += len(part)
            if size > most:
                raise ValueError("it unpacks to more than its header says")


def voxel_sizes(volume):
    """Voxel size in mm along the three axes of the array, from the affine."""
    return [float(size) for size in nibabel.affines.voxel_sizes(volume.affine)]


def head(voxels, gap):
    """What is inside the head: bool, shape of `voxels`, a volume or a slice.

    This mask is generous: it decides what is kept of a scan. `evaluation.metrics.head_mask`, for metrics, is tight.
    The smoothed image above half of Otsu's threshold, closed over gaps of so many elements on either side (bone lies
    between brain and scalp), its largest piece, holes filled in every plane, and one more element all around.
    """
    smooth = ndimage.gaussian_filter(voxels.astype("float32"), 1.0)
    smooth -= min(0, smooth.min())  # half a threshold is half the way from black, also where that is -1000, as of CT
    if smooth.min() == smooth.max():
        return np.zeros(voxels.shape, bool)
    closed = ndimage.binary_closing(np.pad(smooth > _otsu(smooth) / 2, gap), iterations=gap)
    labels, number = ndimage.label(closed[(slice(gap, -gap),) * voxels.ndim])
    largest = labels == np.argmax(np.bincount(labels.ravel(), minlength=number + 1)[1:]) + 1
    for axis in range(3) if voxels.ndim == 3 else ():
        for plane in np.moveaxis(largest, axis, 0):  # a view: filled in place
            plane |= ndimage.binary_fill_holes(plane)
    if voxels.ndim == 2:
        largest = ndimage.binary_fill_holes(largest)
    return ndimage.binary_dilation(largest)


def _otsu(voxels):
    return threshold_otsu(voxels.ravel(order="K"))  # flat, as a volume of three slices would pass for a colour image


def to_slices(voxels, plane):
    """A volume with axes right, anterior, superior as its slices of a plane, (n, height, width); a view.

    The lowest (or most posterior, or leftmost) comes first. Rows of an axial slice run from anterior to posterior,
    columns from the person's left to right; rows of the others from superior to inferior, columns of a coronal one from
    left to right and of a sagittal one from posterior to anterior.
    """
    return np.rot90(np.moveaxis(voxels, PLANES[plane], 2)).transpose(2, 0, 1)


def to_volume(slices, plane):
    """The volume of which `to_slices` makes these slices; a view."""
    return np.moveaxis(np.rot90(slices.transpose(1, 2, 0), -1), 2, PLANES[plane])


def _without_spoilers(path, values, far, black=None):
    """Float values without what would spoil a scale, and names of what was found.

    NaN is background. Single values `far` times above all others, as a hot voxel has, are cut. Where there are negative
    values and a fifth of all are 0 to the bit, as with z-scores inside a mask, those become `black`, or the lowest.
    """
    found = []
    if not np.isfinite(values).all():
        if np.isinf(values).any():
            raise BadFile(path, "holds infinite values")
        if np.isnan(values).all():
            raise BadFile(path, "holds nothing but NaN")
        found.append("NaN")
        values = np.where(np.isnan(values), np.nanmin(values), values)
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise BadFile(path, f"every value is {low:g}")
    flat = values.ravel(order="K")  # without a copy
    some = flat[np.random.default_rng(0).integers(0, flat.size, 2**15)] if flat.size > 2**15 else flat
    rank = max(8, some.size // 100)  # a few elements, or one in a hundred, may be spoilt
    most = float(np.partition(some, -rank)[-rank]) if some.size > rank else high
    if most > low and high - low > far * (most - low):
        found.append("spike")
        values = np.minimum(values, most)
    outside = values == low
    if low < 0 and outside.mean() > 0.2:  # a constant background, far below all else
        rest = float(values[~outside].min())
        if rest - low > float(values.max()) - rest:
            values = np.where(outside, rest, values)
            low = rest
    if low < 0:
        found.append("negative")
        if (values == 0).mean() > 0.2:
            values = np.where(values == 0, low if black is None else black, values)
    return values, found


def read_volume(path, how):
    """Slices of a plane around the brain's middle, in the order and with the axes of `to_slices`.

    Intensity runs from the volume's 0.5th percentile (0) to the 99.5th of its foreground (255).

    Returns:
        A list of slice numbers in the canonical volume; uint8 of shape (n, height, width); names of what was
        found; the range of values before, (low, high).
    """
    volume = open_volume(path)[0]
    voxels, found = _without_spoilers(path, _voxels(path, volume), far=8)
    if how.voxel_size:
        volume = nibabel.Nifti1Image(voxels, volume.affine)
        low = float(voxels.min())
        volume = resample_to_output(volume, np.broadcast_to(how.voxel_size, 3), order=1, cval=low)
        voxels = np.asanyarray(volume.dataobj, dtype="float32")
    foreground, low, high = _scale(path, voxels)
    numbers = _choose(path, to_slices(foreground, how.plane), voxel_sizes(volume)[PLANES[how.plane]], how)
    if how.background == "black":
        gap = max(1, round(BONE_MM / max(voxel_sizes(volume))))
        voxels = np.where(head(voxels, gap), voxels, low)
    stack = np.clip((to_slices(voxels, how.plane)[numbers] - low) / (high - low), 0, 1)
    shape = slice_shape(volume, how)
    if stack.shape[1:] != shape:  # square pixels, of the coarser of the two sizes
        stack = np.stack([resize(image, shape, anti_aliasing=True) for image in stack])
    return numbers.tolist(), (stack * 255).round().astype("uint8"), found, (float(low), float(high))


def _voxels(path, volume):
    """Values of an open volume, float32, its file read to the end."""
    try:
        if path.suffix.lower() == ".gz":
            _check_gzip(path, 2**24 + 16 * math.prod(volume.shape))  # numbers of 16 bytes at most, and extensions
        return np.asanyarray(volume.dataobj, dtype="float32")
    except Exception as error:
        raise BadFile(path, f"truncated or damaged ({in_a_line(error)})") from error


def _scale(path, voxels):
    """Which voxels are foreground, and the values that become 0 and 255."""
    try:
        foreground = voxels > _otsu(voxels)
    except ValueError as error:  # from NumPy, where all values lie within a rounding error
        raise BadFile(path, f"its values do not differ enough ({in_a_line(error)})") from error
    low, high = np.percentile(voxels, 0.5), np.percentile(voxels[foreground], 99.5)
    if low >= high:
        raise BadFile(path, f"nearly every value is {low:g}")
    return foreground, low, high


def _choose(path, foreground, along_mm, how):
    """Numbers of the slices around the brain's middle, or of all that show something, integers, shape (n,).

    Args:
        foreground: All slices of the plane, bool, shape (n, height, width).
        along_mm: Distance of one to the next.
    """
    depth, area = len(foreground), foreground.mean(axis=(1, 2))
    if not how.num_slices:
        if along_mm > 1.01 * how.slice_spacing_mm:
            raise BadFile(
                path,
                f"its slices are {along_mm:g} mm apart, farther than --slice-spacing {how.slice_spacing_mm:g}; "
                f"--slice-spacing {along_mm:g} would fit",
            )
        shown = np.flatnonzero(area > LEAST_SHOWN * area.max())
        number = int((shown[-1] - shown[0]) * along_mm / how.slice_spacing_mm + 1e-3) + 1
        return np.floor(shown[0] + np.arange(number) * how.slice_spacing_mm / along_mm + 0.5 + 1e-3).astype(int)
    inside = np.flatnonzero(area > 0.1 * area.max())
    middle = (inside[0] + inside[-1]) / 2
    if how.plane == "axial":
        extent_mm = (inside[-1] - inside[0] + 1) * along_mm
        below_mm = how.slice_middle or min(MIDDLE_BELOW_TOP_MM, MIDDLE_OF_SMALL_HEADS * extent_mm)
        middle = inside[-1] - below_mm / along_mm
    offsets_mm = (np.arange(how.num_slices) - (how.num_slices - 1) / 2) * how.slice_spacing_mm
    # A voxel of 0.9999999 mm must not put two slices into one; 1e-3 of a slice is nothing.
    numbers = np.floor(middle + offsets_mm / along_mm + 0.5 + 1e-3).astype(int)
    if numbers[0] < 0 or numbers[-1] >= depth or len(set(numbers)) < how.num_slices:
        wanted = f"{how.num_slices} slices {how.slice_spacing_mm:g} mm apart around the brain's middle"
        spacing = max(how.slice_spacing_mm, along_mm)
        fits = int(2 * min(middle, depth - 1 - middle) * along_mm / spacing)
        raise BadFile(
            path,
            f"its {depth} {how.plane} slices of {along_mm:g} mm do not hold {wanted}; "
            f"--num-slices {max(1, fits)} --slice-spacing {spacing:g} would fit",
        )
    return numbers


def slice_shape(volume, how):
    """Height and width in pixels of a canonical volume's slices, once their pixels are square."""
    shape, sizes = volume.shape, voxel_sizes(volume)
    if how.voxel_size:
        shape, affine = nibabel.spaces.vox2out_vox(volume, np.broadcast_to(how.voxel_size, 3))
        sizes = nibabel.affines.voxel_sizes(affine)
    across, along = (one for one in range(3) if one != PLANES[how.plane])
    pixel = max(sizes[across], sizes[along])
    if pixel <= 1.01 * min(sizes[across], sizes[along]):
        return shape[along], shape[across]
    return round(shape[along] * sizes[along] / pixel), round(shape[across] * sizes[across] / pixel)


def native_size_of(shapes):
    """Side of the square that slices of these shapes, (height, width), are padded to: a multiple of 32."""
    return math.ceil(max(map(max, shapes)) / 32) * 32


def fit_square(image, native_size, image_size):
    """Pads a uint8 slice with black to native_size x native_size, centred, then resizes it with antialiasing."""
    height, width = image.shape
    top, left = (native_size - height) // 2, (native_size - width) // 2
    image = np.pad(image, ((top, native_size - height - top), (left, native_size - width - left)))
    if native_size == image_size:
        return image
    resized = resize(image / 255.0, (image_size, image_size), anti_aliasing=image_size < native_size)
    return (np.clip(resized, 0, 1) * 255).round().astype("uint8")


def inspect_source(source, how):
    """What can be known of a source without decoding it, or, of an image of more than 8 bits, only by doing so.

    Returns:
        A dictionary: `shape`, height and width of its slices; `kinds`, names of what is notable; `scale`, (low, high)
        of an image of more than 8 bits; `voxel`, sizes in mm, and `orientation` of a volume.
    """
    if source.slice_index is None:
        volume, orientation, kinds = open_volume(source.path)
        voxel = tuple(voxel_sizes(volume))
        return {"shape": slice_shape(volume, how), "kinds": kinds, "voxel": voxel, "orientation": orientation}
    with _open_image(source.path) as image:
        about = {"shape": image.size[::-1], "kinds": []}
        if image.mode.startswith("I") or image.mode == "F":
            try:
                values = np.asarray(image, "float32")
            except Exception as error:
                raise BadFile(source.path, f"truncated or damaged ({in_a_line(error)})") from error
            kind = "floating-point" if image.mode == "F" else "16-bit"
            if np.isfinite(values).all() and values.min() == values.max():  # a black slice is no bad file
                return about | {"kinds": [kind], "scale": (min(0.0, float(values.min())), float(values.max()))}
            values, found = _without_spoilers(source.path, values, far=2.5)  # their scale is their maximum
            scale = (min(0.0, float(values.min())), float(values.max()))
            return about | {"kinds": [kind, *found], "scale": scale}
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            about["kinds"] = ["transparent"]
        elif image.mode not in ("L", "1"):
            about["kinds"] = ["colour"]
        return about


# ----------------------------------------------------------------------------------------------------------------
# How slices are made
# ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class How:
    """How slices are made: see the options of train.py."""

    image_size: int | None = None
    num_slices: int = 32
    slice_spacing_mm: float = 2.0
    slice_middle: float | None = None
    plane: str = "axial"
    voxel_size: float | tuple[float, float, float] | None = None
    background: str = "keep"
    skip_bad_files: bool = False
