"""Scans of one's own: reconstructed, told in bits, compared with what is usual for the run."""

import collections
import shlex
import sys

import numpy as np
import pandas as pd
from scipy import stats

import dataset
from evaluation import figures, metrics, report
from reading.decoding import BadFile
from running import run_folder
from system import files
from system.console import UserError
from using import scans

BITS_OF_WHITE = 16  # bits of a place that are white in bits.png
MOST_SHOWN = 8  # rows of inputs.png
JUDGED = {"ssim_head": ("SSIM inside the head", -1), "bits_per_code": ("bits per code", 1)}  # and which side is bad
BEYOND = 0.0003  # share of new people who are beyond a limit, if people are normally distributed

# What the models make of a scan: what `TrainedModel.describe` and `bits_of` say, the decoded slices, a dictionary of
# metrics for each, and the scan's row of inputs.csv.
Made = collections.namedtuple("Made", "described bits outputs per_slice row")


def read_scans(paths, config):
    """Yields each scan of some files and folders, and whether it is one of those to show, at most `MOST_SHOWN`.

    One that cannot be used gets a line, and is told at the end.

    Raises:
        UserError: At the end, if any could not be used.
    """
    found, notices = scans.find(paths)
    for line in notices:
        print(f"note: {line}")
    shown, bad = dataset.spread(len(found), MOST_SHOWN), 0
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


def judged(per_slice, images, about):
    """What scans are judged by: `JUDGED`, and for slices of known size `scans.head_shape`.

    Args:
        per_slice: A dictionary of metrics and `bits_per_code` for each slice.
        images: The slices, in order.
        about: What config.json says of the run's data.

    Returns:
        A dictionary for each slice, as `run_folder.write_ranges` takes them of the test people.
    """
    found = [{name: values[name] for name in JUDGED} for values in per_slice]
    if about.get("pixel_mm"):
        for values, image in zip(found, images, strict=True):
            values["dark_rim"], values["head_mm"] = scans.head_shape(image, about["pixel_mm"])
    return found


def limit(usual, side):
    """Beyond what a value is unlike the run's data, above (`side` 1) or below (-1).

    That of a prediction interval for new people (`BEYOND`), or the test person's who is farthest out.
    """
    number = usual["people"]
    away = stats.t.ppf(1 - BEYOND, number - 1) * usual["sd"] * np.sqrt(1 + 1 / number) if number > 1 else np.inf
    return side * max(side * usual["mean"] + away, *(side * q for q in usual["quantiles"]))


def compare(values, ranges, kind):
    """Lines on what is unlike the run's test people, and the percentiles among them.

    Args:
        values: What `judged` says, of a slice or as the mean of a volume's slices.
        ranges: What `run_folder.read_ranges` says.
        kind: "slices" or "people" (of volumes).
    """
    lines, percentiles = [], {}
    for name, (words, side) in JUDGED.items():
        usual, value = ranges.get(name, {}).get(kind), values[name]
        if usual and np.isfinite(value):
            quantiles, most = usual["quantiles"], limit(usual, side)
            percentiles[f"{name}_percentile"] = np.interp(value, quantiles, np.linspace(0, 100, len(quantiles)))
            if side * (value - most) > 0.001:  # of rounding
                which = f"{'above' if side > 0 else 'below'} the limit of {most:.3f}"
                lines.append(f"{words} {value:.3f}, {which} (test {kind} {quantiles[0]:.3f} to {quantiles[-1]:.3f})")
    usual, rim = ranges.get("dark_rim", {}).get(kind), values.get("dark_rim")
    if usual and rim is not None:
        least, middle, most = (usual["quantiles"][i] for i in (0, 10, -1))
        if rim > max(scans.SKULL, most) and middle < scans.SKULL:
            long = f" ({values['head_mm']:.0f} mm long)" if kind == "people" else ""
            lines.append(f"looks like a whole head{long}, and {scans.OF_BRAINS}")
        if rim < min(scans.SKULL, least) and middle > scans.SKULL:
            lines.append("looks like a brain without skull, the run's slices are of whole heads: give one")
    return lines, percentiles


def describe(model, scan, args, mask=None):
    """`Made` of a scan; prints what was done to the scan, and what is unlike the run's data.

    Args:
        model: A `predict.TrainedModel`.
        scan: A `scans.Scan`.
        args: Of the command.
        mask: Pixels of the square that do not count, bool, shape (S, S).
    """
    if scan.grid and args.slice_position is not None:
        raise UserError(f"--slice-position {args.slice_position:g}: is for images, and {scan.path} is a volume")
    counted = np.ones((1, *scan.images.shape[1:]), bool) if mask is None else ~mask[None]
    heights = args.slice_position if scan.slice_positions is None else scan.slice_positions
    described = model.describe(scan.images, args.label, heights)
    bits = model.bits_of(*described)
    outputs = model.decode(described[0])
    per_slice = metrics.batch_metrics(scan.images, np.where(counted, outputs, scan.images))
    shares = [dataset.shrink(counted, grids.shape[1])[..., None] for grids in bits]
    taken = sum((grids * share).sum(axis=(1, 2, 3)) for grids, share in zip(bits, shares, strict=True))
    for values, of_slice in zip(per_slice, taken, strict=True):
        values["bits_per_code"] = float(of_slice / shares[0].sum() / model.vqvae.num_quantizers)
    more = judged(per_slice, scan.images, model.config["data"]["about"])
    table = pd.DataFrame([{**one, **also} for one, also in zip(per_slice, more, strict=True)])[scan.lit]
    values = table.replace([np.inf, -np.inf], np.nan).mean().to_dict()
    if "head_mm" in values:
        values["head_mm"] = table.head_mm.max()
    ranges = run_folder.read_ranges(model.run_dir, model.decoder)
    unlike, percentiles = compare(values, ranges, "people" if scan.grid else "slices")
    for line in scan.notices:
        print(f"note: {scan.name}: {line}")
    for line in unlike:
        print(f"warning: {scan.name} is unlike the run's data: {line}")
    row = {"input": scan.name, "path": scan.path, "slices": len(table), **values, **percentiles}
    row |= {"outside": "; ".join(unlike), "notices": "; ".join(scan.notices)}
    return Made(described, bits, outputs, per_slice, row)


def write(model, scan, made, folder):
    """Writes codes.npz, and reconstruction, difference and bits as images or volumes."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = dict(zip(("codes", "coarse"), (codes.astype("uint16") for codes in made.described[:2]), strict=True))
    kept |= dict(zip(("bits", "coarse_bits"), made.bits, strict=True))
    run_folder.save(
        lambda partial: np.savez_compressed(partial, **kept, slice_numbers=scan.numbers), folder / "codes.npz"
    )
    side = model.vqvae.downsampling
    by_pixel = made.bits[0].sum(axis=-1).repeat(side, axis=1).repeat(side, axis=2)
    if scan.grid:
        scans.write_reconstruction(scan, made.outputs, folder)
        scans.write_volume(scan, scans.in_volume(scan, by_pixel, order=0), folder / "bits.nii.gz")
    else:
        about = {"input": str(scan.path), **model.about}
        scans.write_image(scan, made.outputs[0], folder / "reconstruction.png", about)
        scans.write_image(scan, (made.outputs - scan.images)[0] / 2 + 0.5, folder / "difference.png", about)
        scans.write_image(scan, by_pixel[0] / BITS_OF_WHITE, folder / "bits.png", about, order=0)


def reconstruct_all(model, args, folder, footer):
    """--input: a folder for each scan, inputs.csv and inputs.png."""
    rows, shown = [], []
    if not run_folder.read_ranges(model.run_dir, model.decoder):
        run_dir = shlex.quote(str(args.run_dir))
        print(f"note: to know what is usual for the run's test people: python evaluate.py --run-dir {run_dir}")
    try:
        for scan, is_shown in read_scans(args.input, model.config):
            made = describe(model, scan, args)
            write(model, scan, made, folder / scan.name)
            rows.append(made.row)
            if is_shown or not shown:
                lit = np.flatnonzero(scan.lit)
                shown.append(
                    [
                        (
                            scan.images[i],
                            made.outputs[i],
                            made.bits[0][i].sum(axis=-1),
                            f"{scan.name[:24]}\nhead {made.per_slice[i]['ssim_head']:.3f}, "
                            f"{made.bits[0][i].mean():.2f} bits a code",
                        )
                        for i in ([lit[len(lit) * tenth // 10] for tenth in (6, 4, 2, 8)] if scan.grid else lit)
                    ]
                )
            texts = [f"{scan.name}: {len(scan.images)} slices, SSIM {made.row['ssim']:.4f}"]
            for name, (words, _) in JUDGED.items():
                percentile = made.row.get(f"{name}_percentile")
                among = "" if percentile is None else f" (percentile {percentile:.0f} of the run's test people)"
                texts.append(f"{words} {made.row[name]:.4g}{among}")
            print(", ".join(texts))
    finally:
        if rows:
            table = pd.DataFrame(rows)
            files.write_text(folder / "inputs.csv", table.to_csv(index=False, float_format="%.4f", lineterminator="\n"))
            each = max(1, min(4, MOST_SHOWN // len(shown)))  # slices of a volume
            columns = zip(*(one for slices in shown for one in slices[:each]), strict=True)
            of = f"{len(shown)} of {len(rows)} inputs"
            figures.inputs(folder / "inputs.png", *columns, f"{of}\n{footer}")
            report.write_inputs(folder, rows, model.about, of)
            print(f"written to {folder}; look at {folder / 'inputs.html'}: {of}")
