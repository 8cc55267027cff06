"""Scans of one's own: reconstructed, told in bits, compared with what is usual for the run."""

import dataclasses
import sys

import numpy as np
import pandas as pd
from scipy import stats

import dataset
from evaluation import figures, metrics
from reading.decoding import BadFile
from running import run_folder
from system import files
from system.console import UserError
from using import scans

BITS_OF_WHITE = 16  # bits of a code that are white in bits.png
MOST_SHOWN = 8  # rows of inputs.png
JUDGED = {"ssim_head": ("SSIM inside the head", -1), "bits_per_code": ("bits per code", 1)}  # and which side is bad
BEYOND = 0.001  # of new people are beyond a limit, if people are normally distributed


def read_scans(paths, config):
    """Yields each scan of some files and folders, and whether it is one of those to show, at most `MOST_SHOWN`.

    One that cannot be used gets a line, and is told at the end.

    Raises:
        UserError: At the end, if any could not be used.
    """
    found, notices = scans.find(paths)
    for line in notices:
        print(f"note: {line}")
    shown, bad = np.linspace(0, len(found) - 1, min(MOST_SHOWN, len(found))).round(), 0
    for number, (name, (source, scale)) in enumerate(found.items()):
        try:
            scan = scans.read(name, source, config, scale)
        except BadFile as error:
            bad += 1
            print(f"error: {error.path}: {error.reason}", file=sys.stderr)
        else:
            yield scan, number in shown
    if bad:
        raise UserError(f"{bad} of {len(found)} inputs could not be used; the others are done")


# ----------------------------------------------------------------------------------------------------------------
# What is usual
# ----------------------------------------------------------------------------------------------------------------


def judged(per_slice, images, about):
    """What scans are judged by: `JUDGED`, and for slices of known size how dark the rim of the head is.

    Args:
        per_slice: Dictionaries of metrics and `bits_per_code`.
        images: The slices, in order.
        about: What config.json says of the run's data.

    Returns:
        One dictionary for each slice, as `run_folder.write_ranges` takes them of the test people.
    """
    kept = [{name: values[name] for name in JUDGED} for values in per_slice]
    if about.get("pixel_mm"):
        for values, image in zip(kept, images, strict=True):
            values["dark_rim"], values["head_mm"] = scans.head_shape(image, about["pixel_mm"])
    return kept


def limit(usual, side):
    """Beyond what a value is unlike the run's data, above (`side` 1) or below (-1).

    The limit of a prediction interval: one in a thousand new people would be beyond it. No test person is.
    """
    number, quantiles = usual["people"], usual["quantiles"]
    if number < 2:
        return side * np.inf
    away = stats.t.ppf(1 - BEYOND, number - 1) * usual["sd"] * np.sqrt(1 + 1 / number)
    return max(side * usual["mean"] + away, max(side * q for q in quantiles)) * side


def compare(values, ranges, kind):
    """What is unlike the run's test people, as lines, and the percentiles among them.

    Args:
        values: What `judged` says, of a slice or as the mean of a volume's slices.
        ranges: What `run_folder.read_ranges` says.
        kind: "slices" or "people" (of volumes).
    """
    lines, percentiles = [], {}
    for name, (words, side) in JUDGED.items():
        usual = ranges.get(name, {}).get(kind)
        if usual and np.isfinite(values[name]):
            quantiles = usual["quantiles"]
            percentiles[f"{name}_percentile"] = np.interp(values[name], quantiles, np.linspace(0, 100, len(quantiles)))
            most, value = round(limit(usual, side), 3), round(values[name], 3)
            if side * value > side * most:
                where = f"{'above' if side > 0 else 'below'} the limit of {most:.3f}"
                lines.append(f"{words} {value:.3f}, {where} (test {kind} {quantiles[0]:.3f} to {quantiles[-1]:.3f})")
    usual = ranges.get("dark_rim", {}).get(kind)
    if usual and kind == "people":
        rim, least, most = values.get("dark_rim", np.nan), usual["quantiles"][0], usual["quantiles"][-1]
        if most < scans.SKULL < rim:
            lines.append(f"looks like a whole head ({values['head_mm']:.0f} mm long), and {scans.OF_BRAINS}")
        if rim < scans.SKULL < least:
            lines.append(
                "looks like a brain without skull, and the run's slices are of whole heads: give the scan as it was "
                "before, or use a run of brains"
            )
    return lines, percentiles


# ----------------------------------------------------------------------------------------------------------------
# One scan after the other
# ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Made:
    """What the models make of a scan.

    Attributes:
        codes, coarse, told: What `TrainedModel.describe` says.
        bits, coarse_bits: What `TrainedModel.bits_of` says.
        outputs: The decoded slices, shape (n, S, S).
        per_slice: A dictionary of metrics for each slice.
        row: The scan's row of inputs.csv.
    """

    codes: np.ndarray
    coarse: np.ndarray
    told: dict
    bits: np.ndarray
    coarse_bits: np.ndarray
    outputs: np.ndarray
    per_slice: list
    row: dict


def describe(model, scan, args, mask=None):
    """`Made` of a scan; prints what was done to the scan, and what is unlike the run's data.

    Args:
        model: A `predict.TrainedModel`.
        scan: A `scans.Scan`.
        args: Of the command.
        mask: Pixels of the square that do not count, bool, shape (S, S).
    """
    counted = np.ones((1, *scan.images.shape[1:]), bool) if mask is None else ~mask[None]
    heights = args.slice_position if scan.slice_positions is None else scan.slice_positions
    codes, coarse, told = model.describe(scan.images, args.label, heights)
    bits, coarse_bits = model.bits_of(codes, coarse, told)
    outputs = model.decode(codes)
    per_slice = metrics.batch_metrics(scan.images, np.where(counted, outputs, scan.images))
    share, coarse_share = (dataset.shrink(counted, grid.shape[1])[0] for grid in (codes, coarse))
    for values, of_codes, of_coarse in zip(per_slice, bits, coarse_bits, strict=True):
        values["bits_per_code"] = float(((of_codes * share).sum() + (of_coarse * coarse_share).sum()) / share.sum())
    heads = pd.DataFrame(judged(per_slice, scan.images, model.config["data"]["about"])).drop(columns=list(JUDGED))
    table = pd.concat([pd.DataFrame(per_slice), heads], axis=1)[scan.lit].replace([np.inf, -np.inf], np.nan)
    values = table.mean().to_dict() | table[heads.columns[1:]].max().to_dict()
    ranges = run_folder.read_ranges(model.run_dir, model.decoder)
    unlike, percentiles = compare(values, ranges, "people" if scan.grid else "slices")
    for line in scan.notices:
        print(f"note: {scan.name}: {line}")
    for line in unlike:
        print(f"warning: {scan.name} is unlike the run's data: {line}")
    row = {"input": scan.name, "path": scan.path, "slices": len(table), **values, **percentiles}
    row |= {"outside": "; ".join(unlike), "notices": "; ".join(scan.notices)}
    return Made(codes, coarse, told, bits, coarse_bits, outputs, per_slice, row)


def write_made(model, scan, made, folder):
    """Writes codes.npz, and as images or volumes reconstruction, difference and bits."""
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.save(
        lambda partial: np.savez_compressed(
            partial,
            codes=made.codes.astype("uint16"),
            coarse=made.coarse.astype("uint16"),
            bits=made.bits,
            coarse_bits=made.coarse_bits,
            slice_numbers=scan.numbers,
        ),
        folder / "codes.npz",
    )
    by_pixel = made.bits.repeat(model.vqvae.downsampling, axis=1).repeat(model.vqvae.downsampling, axis=2)
    if scan.grid:
        scans.write_reconstruction(scan, made.outputs, folder)
        scans.write_volume(scan, np.nan_to_num(scans.in_volume(scan, by_pixel, order=0)), folder / "bits.nii.gz")
    else:
        scans.write_image(scan, made.outputs[0], folder / "reconstruction.png")
        scans.write_image(scan, (made.outputs - scan.images)[0] / 2 + 0.5, folder / "difference.png")
        scans.write_image(scan, by_pixel[0] / BITS_OF_WHITE, folder / "bits.png", order=0)


def reconstruct_all(model, args, folder, footer):
    """--input: a folder for each scan, inputs.csv and inputs.png."""
    rows, shown = [], []
    if not run_folder.read_ranges(model.run_dir, model.decoder):
        print(f"note: to know what is usual for the run's test people: python evaluate.py --run-dir {args.run_dir}")

    def write():
        table = pd.DataFrame(rows)
        files.write_text(folder / "inputs.csv", table.to_csv(index=False, float_format="%.4f", lineterminator="\n"))
        each = max(1, min(4, MOST_SHOWN // len(shown)))  # slices of a volume
        images, outputs, bits, titles = zip(*(one for slices in shown for one in slices[:each]), strict=True)
        of = f"{len(shown)} of {len(rows)} inputs"
        figures.inputs(folder / "inputs.png", images, outputs, bits, titles, f"{of}\n{footer}")
        print(f"written to {folder}; look at {folder / 'inputs.png'}: {of}")

    try:
        for scan, is_shown in read_scans(args.input, model.config):
            made = describe(model, scan, args)
            write_made(model, scan, made, folder / scan.name)
            rows.append(made.row)
            if is_shown or not shown:
                shown.append(_to_show(scan, made))
            print(f"{scan.name}: {_in_words(made.row)}")
    finally:
        if rows:
            write()


def _to_show(scan, made):
    """Input, output, bits and title of up to four slices of a scan, the middle one first."""
    lit = np.flatnonzero(scan.lit)
    places = [lit[len(lit) * tenth // 10] for tenth in (6, 4, 2, 8)] if scan.grid else lit
    titles = [
        f"{scan.name[:24]}\nhead {made.per_slice[i]['ssim_head']:.3f}, {made.bits[i].mean():.2f} bits a code"
        for i in places
    ]
    return list(zip(scan.images[places], made.outputs[places], made.bits[places], titles, strict=True))


def _in_words(row):
    """What the screen says of a row of inputs.csv."""
    texts = [f"{row['slices']} slices", f"SSIM {row['ssim']:.4f}", f"PSNR {row['psnr_db']:.2f} dB"]
    for name, (words, _) in JUDGED.items():
        percentile = row.get(f"{name}_percentile")
        among = "" if percentile is None else f" (percentile {percentile:.0f} of the run's test people)"
        texts.append(f"{words} {row[name]:.4g}{among}")
    return ", ".join(texts)
