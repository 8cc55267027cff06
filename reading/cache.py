"""Every file of a data set decoded once, into one array on disk, the cache; and what was found on the way."""

import collections
import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from reading.decoding import (
    DARKEST,
    PLANES,
    BadFile,
    fit_square,
    inspect_source,
    native_size_of,
    read_image,
    read_volume,
)
from system.console import UserError
from system.files import write_text, write_whole

AHEAD = 32 * (os.cpu_count() or 1)  # sources decoded at a time


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

    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(sources, description, leave=False, disable=None) as bar:
        for start in range(0, len(sources), AHEAD):  # no more than these are in memory
            part = sources[start : start + AHEAD]
            for source, result in zip(part, pool.map(attempt, part), strict=True):
                yield source, result
                bar.update()


# What is said of files in which something was found, "{}" being their number and the first of them.
FOUND = {
    "colour": "{} colour images are converted to grey",
    "transparent": "what is transparent in {} images is black",
    "16-bit": "{} images of more than 8 bits are scaled to 8, each scan by its own brightest value",
    "floating-point": "{} floating-point images are scaled to 8 bits, each scan by its own range",
    "NaN": "NaN in {} files is taken for background",
    "spike": "single values far above all others in {} files are cut, so that the rest keeps its range",
    "negative": "negative values in {} files are kept: the lowest of a scan becomes black",
    "unoriented": "the headers of {} volumes name no orientation: the axes are taken as left, anterior, superior, as "
    "nibabel does; look at preview.png (train.py --dry-run)",
    "disagreement": "in the headers of {} volumes pixdim or qform disagrees with the affine (sform) on the size or the "
    "axes of a voxel: the affine is taken",
    "dark": "the slices of {} scans are far darker than those of the others",
    "black": "{} slices are black",
    "copy": "{} slices are equal to one of another person: are they whose they seem to be?",
}


class Manifest:
    """What is known of the slices of a cache, row by row: `dataset.COLUMNS`, their digest, and what was found."""

    def __init__(self, sources):
        indices = [source.slice_index for source in sources if source.slice_index is not None]
        self.lowest, self.highest = (min(indices), max(indices)) if indices else (0, 0)
        self.slices, self.digest, self.ranges = [], hashlib.sha256(), []
        self.names = {kind: [] for kind in FOUND}
        self.owners, self.means = {}, collections.defaultdict(list)

    def note(self, kinds, name):
        for kind in kinds:
            self.names[kind].append(name)

    def add(self, source, name, number, order, most, image):
        """Takes down one slice: its number in its file, and its place among those taken of it, 0 to `most`."""
        if source.slice_index is not None:
            order, most = number - self.lowest, self.highest - self.lowest
        position = round(order / max(1, most), 6)
        whose = (source.subject_id, source.session, number, position, source.label, source.split)
        content = image.tobytes()
        self.digest.update(content + repr(whose).encode())
        self.slices.append((name, *whose, len(self.slices)))
        self.means[f"{source.subject_id} {source.session}".strip()].append(image.mean())
        if image.max() < DARKEST:
            self.note(["black"], name)
        elif self.owners.setdefault(hash(content), source.subject_id) != source.subject_id:
            self.note(["copy"], name)

    def notices(self):
        """A line for each kind of thing that was found."""
        means = {scan: np.mean(values) for scan, values in self.means.items()}
        typical = np.median([*means.values()])
        dark = [scan for scan, mean in means.items() if DARKEST / 10 < mean < 0.1 * typical]
        names = self.names | {"dark": dark}
        return [FOUND[kind].format(len(of)) + f" ({of[0]} the first)" for kind, of in names.items() if of]


def _refuse_nothing(data_dir, found, bad_files):
    if not found:
        first = f"{bad_files[0].path}: {bad_files[0].reason}"
        raise UserError(f"{data_dir}: none of its {len(bad_files)} files can be used; the first: {first}")


def _survey(data_dir, sources, how):
    """Sources that can be opened; what is known of each; a `BadFile` for each of the others."""
    looked = list(_each(lambda source: inspect_source(source, how), sources, how.skip_bad_files, "reading headers"))
    bad_files = [found for _, found in looked if isinstance(found, BadFile)]
    looked = [(source, found) for source, found in looked if not isinstance(found, BadFile)]
    _refuse_nothing(data_dir, looked, bad_files)
    return [source for source, _ in looked], [found for _, found in looked], bad_files


def scales_of(sources, inspected):
    """What becomes 0 and 255 in the images of more than 8 bits of each scan: (low, high) by person and session."""
    scales = {}
    for source, about in zip(sources, inspected, strict=True):
        if "scale" in about:
            low, high = scales.get((source.subject_id, source.session), about["scale"])
            scale = min(low, about["scale"][0]), max(high, about["scale"][1])
            scales[source.subject_id, source.session] = scale
    return scales


def _most_common(values):
    """Values with their numbers, the most frequent first, as a dictionary."""
    return dict(collections.Counter(values).most_common())


def build_cache(data_dir, sources, how, packed, manifest_path):
    """Decodes every source into the array `packed`, uint8 (number, image_size, image_size), and writes the manifest.

    Both appear under their names when they are whole. The manifest is JSON: slices and fingerprint as a `Manifest` has
    them; notices; bad files; what the sources were like.
    """
    started = time.monotonic()
    sources, inspected, bad_files = _survey(data_dir, sources, how)
    native_size = native_size_of(about["shape"] for about in inspected)
    image_size = how.image_size or native_size
    scales = scales_of(sources, inspected)
    manifest = Manifest(sources)

    def decode(source):
        if source.slice_index is None:
            numbers, stack, kinds, values = read_volume(source.path, how)
        else:
            scale = scales.get((source.subject_id, source.session))
            numbers, stack, kinds = [source.slice_index], read_image(source.path, scale, how)[None], []
            values = scale or (float(stack.min()), float(stack.max()))
        return numbers, [fit_square(image, native_size, image_size) for image in stack], kinds, values

    def write(partial):
        def write_header(file, number):  # of the same length whatever the number: NumPy leaves room for it
            header = {"descr": "|u1", "fortran_order": False, "shape": (number, image_size, image_size)}
            np.lib.format.write_array_header_1_0(file, header)

        with partial.open("wb") as file:
            write_header(file, 0)
            for source, result in _each(decode, sources, how.skip_bad_files, "decoding slices"):
                if isinstance(result, BadFile):
                    bad_files.append(result)
                    continue
                numbers, images, kinds, values = result
                name = source.path.relative_to(data_dir).as_posix()
                manifest.note(kinds, name)
                manifest.ranges.append(values)
                for order, (number, image) in enumerate(zip(numbers, images, strict=True)):
                    file.write(image.tobytes())
                    manifest.add(source, name, number, order, len(numbers) - 1, image)
            _refuse_nothing(data_dir, manifest.slices, bad_files)
            file.seek(0)
            write_header(file, len(manifest.slices))

    write_whole(packed, write)
    for source, about in zip(sources, inspected, strict=True):
        manifest.note(about["kinds"], source.path.relative_to(data_dir).as_posix())
    notices = manifest.notices()
    if image_size > native_size:
        notices.append(f"slices of {native_size} pixels are enlarged to {image_size}, as --image-size asks")
    voxels = _most_common(
        " x ".join(f"{size:.3g}" for size in about["voxel"]) + " mm" for about in inspected if "voxel" in about
    )
    if len(voxels) > 1 and not how.voxel_size:
        several = ", ".join(f"{size} ({number})" for size, number in list(voxels.items())[:4])
        notices.append(f"voxels differ in size: {several}; --voxel-size brings all to one")
    shapes = _most_common(f"{height} x {width}" for height, width in (about["shape"] for about in inspected))
    content = {
        "fingerprint": manifest.digest.hexdigest(),
        "notices": notices,
        "bad_files": sorted((str(bad.path), bad.reason) for bad in bad_files),
        "about": {
            "voxel_size": voxels,
            "orientation": _most_common(about["orientation"] for about in inspected if "orientation" in about),
            "native_pixels": shapes,
            "pixel_mm": _pixel_mm(sources, inspected, how, native_size / image_size),
            "plane": how.plane if voxels else None,
            "values_before": [min(low for low, _ in manifest.ranges), max(high for _, high in manifest.ranges)],
        },
        "slices": manifest.slices,
    }
    write_text(manifest_path, json.dumps(content))
    number, seconds = len(manifest.slices), time.monotonic() - started
    print(f"decoded {number} slices in {seconds:.1f} s, {number / max(seconds, 1e-3):,.0f} a second")


def _pixel_mm(sources, inspected, how, enlarged):
    """Side of a pixel in mm, where all volumes agree; None where it is not known."""
    if how.voxel_size:
        return how.voxel_size * enlarged if sources[0].slice_index is None else None
    sizes = np.array([np.delete(about["voxel"], PLANES[how.plane]).max() for about in inspected if "voxel" in about])
    if len(sizes) < len(sources) or sizes.max() > 1.01 * sizes.min():
        return None
    return float(sizes[0]) * enlarged
