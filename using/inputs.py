"""Scans of one's own: reconstructed, told in bits, compared with what is usual for the run."""

import sys

import numpy as np
import pandas as pd

from evaluation import figures, metrics
from reading.decoding import BadFile
from running import run_folder
from system import files
from system.console import UserError
from using import scans

BITS_OF_WHITE = 16  # bits of a code that are white in bits.png


def read_scans(paths, config):
    """Yields each scan of some files and folders; one that cannot be used gets a line, and is told at the end.

    Raises:
        UserError: At the end, if any could not be used.
    """
    found, bad = scans.find(paths), 0
    for name, (source, scale) in found.items():
        try:
            yield scans.read(name, source, config, scale)
        except BadFile as error:
            bad += 1
            print(f"error: {error.path}: {error.reason}", file=sys.stderr)
    if bad:
        raise UserError(f"{bad} of {len(found)} inputs could not be used; the others are done")


def outside(found, ranges, kind):
    """Lines on what is outside the range of the run's test people: `kind` is "slices" or "people" (of volumes)."""
    lines = []
    for name, words in (("ssim_head", "SSIM inside the head"), ("bits_per_code", "bits per code")):
        low, high = ranges.get(name, {}).get(kind, (-np.inf, np.inf))
        if np.isfinite(found[name]) and not low <= found[name] <= high:
            lines.append(f"{words} {found[name]:.3f}, test people of the run {low:.3f} to {high:.3f}")
    return lines


def reconstruct(model, scan, folder, args):
    """Writes what the models make of a scan; returns its row of inputs.csv, and slices that are shown."""
    codes = model.encode(scan.images)
    outputs = model.decode(codes)
    heights = args.slice_position if scan.slice_positions is None else scan.slice_positions
    bits, coarse_bits = model.bits(scan.images, args.label, heights)
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.save(
        lambda partial: np.savez_compressed(
            partial,
            codes=codes.astype("uint16"),
            coarse=model.encode_coarse(scan.images).astype("uint16"),
            bits=bits,
            coarse_bits=coarse_bits,
            slice_numbers=scan.numbers,
        ),
        folder / "codes.npz",
    )
    by_pixel = bits.repeat(model.vqvae.downsampling, axis=1).repeat(model.vqvae.downsampling, axis=2)
    difference = outputs - scan.images
    if scan.volume:
        low, high = scan.values
        scans.write_volume(scan, low + outputs * (high - low), folder / "reconstruction.nii.gz")
        scans.write_volume(scan, difference * (high - low), folder / "difference.nii.gz")
        scans.write_volume(scan, by_pixel, folder / "bits.nii.gz", order=0)
    else:
        scans.write_image(scan, outputs[0], folder / "reconstruction.png")
        scans.write_image(scan, difference[0] / 2 + 0.5, folder / "difference.png")
        scans.write_image(scan, by_pixel[0] / BITS_OF_WHITE, folder / "bits.png", order=0)
    per_slice = metrics.batch_metrics(scan.images, outputs)
    for one, of_codes, of_coarse in zip(per_slice, bits, coarse_bits, strict=True):
        one["bits_per_code"] = float((of_codes.sum() + of_coarse.sum()) / of_codes.size)
    values = pd.DataFrame(per_slice).replace([np.inf, -np.inf], np.nan).mean().to_dict()
    strange = outside(
        values, run_folder.read_ranges(model.run_dir, model.decoder), "people" if scan.volume else "slices"
    )
    row = {"input": scan.name, "slices": len(scan.images), **values}
    row |= {"outside": "; ".join(strange), "notices": "; ".join(scan.notices)}
    shown = []
    for i in [len(scan.images) * tenth // 10 for tenth in (2, 4, 6, 8)] if scan.volume else [0]:
        title = f"{scan.name[:24]}\nhead {per_slice[i]['ssim_head']:.3f}, {bits[i].mean():.2f} bits a code"
        shown.append((scan.images[i], outputs[i], bits[i], title))
    return row, shown


def reconstruct_all(model, args, folder, footer):
    """--input: a folder for each scan, inputs.csv and inputs.png."""
    rows, shown = [], []
    ranges = run_folder.read_ranges(model.run_dir, model.decoder)
    if not ranges:
        print(f"note: to know what is usual for the run's test people: python evaluate.py --run-dir {args.run_dir}")

    def write():
        table = pd.DataFrame(rows)
        for name, limits in ranges.items():
            kinds = ["people" if number > 1 else "slices" for number in table.slices]
            table[f"{name}_of_test_people"] = ["{} to {}".format(*limits[kind]) for kind in kinds]
        files.write_text(folder / "inputs.csv", table.to_csv(index=False, float_format="%.4f", lineterminator="\n"))
        images, outputs, bits, titles = zip(*shown[:8], strict=True)
        figures.inputs(folder / "inputs.png", np.stack(images), np.stack(outputs), bits, titles, footer)

    try:
        for scan in read_scans(args.input, model.config):
            row, pictures = reconstruct(model, scan, folder / scan.name, args)
            rows.append(row)
            shown += pictures
            figures_of = f"SSIM {row['ssim']:.4f}, inside the head {row['ssim_head']:.4f}, PSNR {row['psnr_db']:.2f} dB"
            print(f"{scan.name}: {len(scan.images)} slices, {figures_of}, {row['bits_per_code']:.3f} bits per code")
            for line in scan.notices:
                print(f"note: {scan.name}: {line}")
            if row["outside"]:
                print(f"warning: {scan.name} is unlike the run's data: {row['outside']}")
    finally:
        if rows:
            write()
            print(f"written to {folder}; look at {folder / 'inputs.png'}")
