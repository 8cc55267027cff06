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
    "dark": "the slices of {} scans are far darker than those of the others",
    "black": "{} slices are black",
    "copy": "{} slices are equal to one of another person: are they whose they seem to be?",
}


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

    Both appear under their names when they are whole. The manifest is JSON: the fingerprint, SHA-256 of the pixels and
    of whose they are; notices; bad files; what the sources were like; and for each slice path, subject_id, session,
    slice_index, slice_position, label, split and row.
    """
    started = time.monotonic()
    sources, inspected, bad_files = _survey(data_dir, sources, how)
    native_size = native_size_of(about["shape"] for about in inspected)
    image_size = how.image_size or native_size
    scales = scales_of(sources, inspected)
    kinds = {name: [] for name in FOUND}

    def note(found, name):
        for kind in found:
            kinds[kind].append(name)

    def decode(source):
        if source.slice_index is None:
            numbers, stack, found, values = read_volume(source.path, how)
        else:
            scale = scales.get((source.subject_id, source.session))
            numbers, stack, found = [source.slice_index], read_image(source.path, scale, how)[None], []
            values = scale or (float(stack.min()), float(stack.max()))
        return numbers, [fit_square(image, native_size, image_size) for image in stack], found, values

    indices = [source.slice_index for source in sources if source.slice_index is not None]
    lowest, highest = (min(indices), max(indices)) if indices else (0, 0)
    slices, ranges, digest, owners, means = [], [], hashlib.sha256(), {}, collections.defaultdict(list)

    def fill(file):
        per_source = how.num_slices if sources[0].slice_index is None else 1
        shape = (len(sources) * per_source, image_size, image_size)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for source, result in _each(decode, sources, how.skip_bad_files, "decoding slices"):
            if isinstance(result, BadFile):
                bad_files.append(result)
                continue
            numbers, images, found, values = result
            name = source.path.relative_to(data_dir).as_posix()
            note(found, name)
            ranges.append(values)
            for order, (number, image) in enumerate(zip(numbers, images, strict=True)):
                if source.slice_index is None:
                    position = order / max(1, how.num_slices - 1)
                else:
                    position = (number - lowest) / max(1, highest - lowest)
                whose = (source.subject_id, source.session, number, round(position, 6), source.label, source.split)
                content = image.tobytes()
                file.write(content)
                digest.update(content + repr(whose).encode())
                slices.append((name, *whose, len(slices)))
                means[source.subject_id, source.session].append(image.mean())
                if image.max() < DARKEST:
                    note(["black"], name)
                elif owners.setdefault(hash(content), source.subject_id) != source.subject_id:
                    note(["copy"], name)
        _refuse_nothing(data_dir, slices, bad_files)
        file.truncate(file.tell() + (shape[0] - len(slices)) * image_size**2)  # black rows for files that were left out

    def write(partial):
        with partial.open("wb") as file:
            fill(file)

    write_whole(packed, write)
    for source, about in zip(sources, inspected, strict=True):
        note(about["kinds"], source.path.relative_to(data_dir).as_posix())
    mean = {" ".join(scan).strip(): np.mean(values) for scan, values in means.items()}
    for scan, value in mean.items():
        if DARKEST / 10 < value < 0.1 * np.median([*mean.values()]):
            note(["dark"], scan)
    notices = [FOUND[kind].format(len(names)) + f" ({names[0]} the first)" for kind, names in kinds.items() if names]
    if image_size > native_size:
        notices.append(f"slices of {native_size} pixels are enlarged to {image_size}, as --image-size asks")
    voxels = _most_common(
        " x ".join(f"{size:.3g}" for size in about["voxel"]) + " mm" for about in inspected if "voxel" in about
    )
    if len(voxels) > 1 and not how.voxel_size:
        several = ", ".join(f"{size} ({number})" for size, number in list(voxels.items())[:4])
        notices.append(f"voxels differ in size: {several}; --voxel-size brings all to one")
    shapes = _most_common(f"{height} x {width}" for height, width in (about["shape"] for about in inspected))
    manifest = {
        "fingerprint": digest.hexdigest(),
        "notices": notices,
        "bad_files": sorted((str(bad.path), bad.reason) for bad in bad_files),
        "about": {
            "voxel_size": voxels,
            "orientation": _most_common(about["orientation"] for about in inspected if "orientation" in about),
            "native_pixels": shapes,
            "pixel_mm": _pixel_mm(sources, inspected, how, native_size / image_size),
            "plane": how.plane if voxels else None,
            "values_before": [min(low for low, _ in ranges), max(high for _, high in ranges)],
        },
        "slices": slices,
    }
    write_text(manifest_path, json.dumps(manifest))
    seconds = time.monotonic() - started
    print(f"decoded {len(slices)} slices in {seconds:.1f} s, {len(slices) / max(seconds, 1e-3):,.0f} a second")


def _pixel_mm(sources, inspected, how, enlarged):
    """Side of a pixel in mm, where all volumes agree; None where it is not known."""
    if how.voxel_size:
        return how.voxel_size * enlarged if sources[0].slice_index is None else None
    sizes = np.array([np.delete(about["voxel"], PLANES[how.plane]).max() for about in inspected if "voxel" in about])
    if len(sizes) < len(sources) or sizes.max() > 1.01 * sizes.min():
        return None
    return float(sizes[0]) * enlarged
