"""Draws new slices from a trained run, or applies it to scans of one's own.

    python predict.py                                             # new slices of the demo run
    python predict.py --run-dir pretrained/ixi --num-samples 64 --slice-position 0.6
    python predict.py --run-dir pretrained/ixi --input scan.nii.gz photos/           # reconstructions, codes, bits
    python predict.py --run-dir pretrained/ixi --input slice.png --mask mask.png     # what may be under the mask
    python predict.py --run-dir pretrained/ixi --input scan.nii.gz --anomaly         # what is uncommon
    python predict.py --run-dir pretrained/ds002748_heads --volumes 4                      # whole heads, as NIfTI

The run folder alone is needed. New slices go to --output-dir: samples/sample_0000.png and so on (8-bit grey),
samples.png, positions.png, and where the run's data are at hand reconstructions.png; docs/using.md says what is
written for scans of one's own. `evaluate.py` measures.
"""

import sys

import files
import options

if __name__ == "__main__":
    options.predict()  # --help and wrong options are answered here, before TensorFlow is imported, which takes seconds
with files.quietly():
    import keras  # noqa: F401
import numpy as np
import pandas as pd
import PIL.Image
from tqdm import tqdm

import runs
import scans
from decoding import BadFile
from evaluation import figures, metrics
from files import UserError
from trained import TrainedModel

BITS_OF_WHITE = 16  # bits of a code that are white in bits.png
UNCOMMON_OF_WHITE = 4  # intensity times bits that are white in anomaly.png

# ----------------------------------------------------------------------------------------------------------------
# New slices
# ----------------------------------------------------------------------------------------------------------------


def draw(model, labels, positions, seed, noise_index=None, description="samples"):
    """What `TrainedModel.draw` yields, with its progress."""
    return with_progress(model.draw(labels, positions, seed, noise_index), len(labels), description, "slice")


def with_progress(batches, number, description, unit):
    """Yields batches; progress goes to standard error, every ten seconds where that is no terminal."""
    pause = 0.1 if sys.stderr.isatty() else 10
    with tqdm(total=number, desc=description, unit=unit, leave=False, delay=1, mininterval=pause) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def write_samples(batches, folder):
    """Writes each image as 8-bit grey PNG as soon as it is drawn, passes it on, removes what an earlier call left."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("sample_*.png"):
        old.unlink()
    for i, image in enumerate(image for images in batches for image in images):
        picture = PIL.Image.fromarray((image * 255).round().astype("uint8"))
        files.write_whole(folder / f"sample_{i:04d}.png", picture.save)
        yield image


def show_samples(path, images, labels, positions, names, footer):
    """A picture of at most 32 samples, each under its label and slice position."""
    titles = [f"{['', *names][k]} at {p:.2f}".strip() for k, p in zip(labels[:32], positions, strict=False)]
    figures.image_grid(path, images[:32], titles, f"made by the model\n{footer}")


def show_positions(path, model, seed, footer, label=None):
    """A picture of the same noise at eight heights, a row for each label, or for one."""
    names = model.labels
    kinds = range(1, len(names) + 1) if label is None else [names.index(label) + 1]
    kinds = list(kinds) or [0]
    heights = np.tile(np.linspace(0, 1, 8, dtype="float32"), len(kinds))
    labels = np.repeat(np.array(kinds, "int32"), 8)
    drawn = draw(model, labels, heights, seed, np.zeros(len(labels), int), "positions")
    figures.image_grid(
        path,
        np.concatenate(list(drawn)),
        [f"at {p:.2f}" for p in heights],
        f"made by the model from one noise, from the lowest slice position to the highest\n{footer}",
        row_names=[["", *names][k] for k in kinds],
    )


def heads_of(model, number, seed, label=None):
    """The heads that `TrainedModel.sample_heads` yields, one by one, with their progress."""
    for heads in with_progress(model.sample_heads(number, seed, label), number, "heads", "head"):
        yield from heads


def draw_heads(model, args, folder, footer):
    """--volumes: whole heads as volumes/volume_000.nii.gz, volumes.png, and a flight through the first, volumes.gif."""
    about = model.config["data"].get("about", {})
    plane, orientation = about.get("plane") or "axial", next(iter(about.get("orientation", ())), "RAS")
    if not about.get("pixel_mm"):
        print("note: the size of the run's pixels is not known: voxels of 1 mm are written")
    (folder / "volumes").mkdir(exist_ok=True)
    for old in (folder / "volumes").glob("volume_*.nii.gz"):
        old.unlink()
    labels, _ = model.conditions(args.volumes, args.seed, args.label)
    shown = []
    for number, head in enumerate(heads_of(model, args.volumes, args.seed, args.label)):
        path = folder / "volumes" / f"volume_{number:03d}.nii.gz"
        scans.write_head(head, path, plane, model.voxel_mm, orientation)
        shown += [head] * (number < 6)
    titles = [f"volume {i} {['', *model.labels][k]}".strip() for i, k in enumerate(labels[:6])]
    views = [figures.views(head, plane, model.voxel_mm) for head in shown]
    figures.heads(folder / "volumes.png", views, titles, model.voxel_mm[0], f"made by the model\n{footer}")
    figures.flight(folder / "volumes.gif", shown[0], plane, model.voxel_mm)
    print(f"{args.volumes} new heads: {folder / 'volumes'}; look at {folder / 'volumes.png'}")


# ----------------------------------------------------------------------------------------------------------------
# Reconstructions
# ----------------------------------------------------------------------------------------------------------------


def one_of_each(slices, position, most):
    """The slice nearest to a position of each of at most `most` people, who are spread over all of them."""
    away = (slices.slice_position - position).abs()
    nearest = slices.loc[away.groupby(slices.subject_id, sort=False).idxmin()]
    return nearest.iloc[np.linspace(0, len(nearest) - 1, min(most, len(nearest))).round().astype(int)]


def show_reconstructions(path, data, decoders, slices, footer):
    """A picture of some slices, what each decoder makes of their codes, and the last one's difference.

    Args:
        path: Where it goes.
        data: The `dataset.Data`.
        decoders: VQ-VAEs by the name of their row; all have the same codes.
        slices: DataFrame of the slices.
        footer: Line under the picture.
    """
    images = data.pixels(slices)
    codes = next(iter(decoders.values())).encode(images[..., None])
    outputs = {name: vqvae.decode(codes)[..., 0] for name, vqvae in decoders.items()}
    *_, shown = outputs.values()
    found = metrics.batch_metrics(images, shown)
    titles = [
        f"{one.subject_id} {one.label}\nSSIM {of_one['ssim']:.3f}, head {of_one['ssim_head']:.3f}"
        for one, of_one in zip(slices.itertuples(), found, strict=True)
    ]
    figures.reconstructions(path, images, outputs, titles, footer)


# ----------------------------------------------------------------------------------------------------------------
# Scans of one's own
# ----------------------------------------------------------------------------------------------------------------


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
    bits, layout_bits = model.bits(scan.images, args.label, heights)
    folder.mkdir(parents=True, exist_ok=True)
    runs.save(
        lambda partial: np.savez_compressed(
            partial,
            codes=codes.astype("uint16"),
            layout=model.encode_layout(scan.images).astype("uint16"),
            bits=bits,
            layout_bits=layout_bits,
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
    for one, of_codes, of_layout in zip(per_slice, bits, layout_bits, strict=True):
        one["bits_per_code"] = float((of_codes.sum() + of_layout.sum()) / of_codes.size)
    values = pd.DataFrame(per_slice).replace([np.inf, -np.inf], np.nan).mean().to_dict()
    strange = outside(values, runs.read_ranges(model.run_dir, model.decoder), "people" if scan.volume else "slices")
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
    ranges = runs.read_ranges(model.run_dir, model.decoder)
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


def complete(model, args, folder, footer):
    """--mask: completions of one image, and a picture of them."""
    (scan,) = read_scans(args.input, model.config)
    if scan.volume:
        raise UserError(f"{args.input[0]}: a volume, and --mask is for one image")
    under, mask = scans.read_mask(args.mask, scan)
    drawn = model.complete(scan.images[0], mask, args.num_samples, args.seed, args.label, args.slice_position)
    for old in folder.glob("completion_*.png"):
        old.unlink()
    for i, image in enumerate(drawn):
        scans.write_image(scan, image, folder / f"completion_{i:04d}.png", only=under)
    figures.completions(folder / "completions.png", scan.images[0], mask, drawn[:14], footer)
    print(f"{len(drawn)} completions: {folder}; look at {folder / 'completions.png'}")


def map_anomalies(model, args, folder, footer):
    """--anomaly: a map of each scan, and a picture of them."""
    shown = []
    for scan in read_scans(args.input, model.config):
        heights = args.slice_position if scan.slice_positions is None else scan.slice_positions
        found = model.anomaly_map(scan.images, seed=args.seed, label=args.label, slice_position=heights)
        (folder / scan.name).mkdir(parents=True, exist_ok=True)
        if scan.volume:
            scans.write_volume(scan, found, folder / scan.name / "anomaly.nii.gz")
        else:
            scans.write_image(scan, found[0] / UNCOMMON_OF_WHITE, folder / scan.name / "anomaly.png")
        worst = found.max(axis=(1, 2)).argmax()
        shown.append((scan.images[worst], found[worst], scan.name[:24]))
        print(f"{scan.name}: {folder / scan.name}")
        images, maps, titles = zip(*shown[:8], strict=True)
        figures.anomalies(folder / "anomalies.png", images, maps, titles, footer)
    print(f"what is uncommon for {args.run_dir}: {folder / 'anomalies.png'}; it finds no disease")


# ----------------------------------------------------------------------------------------------------------------
# The command
# ----------------------------------------------------------------------------------------------------------------


def empty(output_dir, pictures):
    """Makes a folder; removes pictures of an earlier call, and what a killed process left while it wrote."""
    output_dir.mkdir(parents=True, exist_ok=True)
    for left in [*output_dir.glob("*.partial*"), *(output_dir / name for name in pictures)]:
        left.unlink(missing_ok=True)


def draw_new(model, args, folder, footer):
    """New slices, pictures of them, and reconstructions of test people where the run's data are at hand."""
    labels, positions = model.conditions(args.num_samples, args.seed, args.label, args.slice_position)
    drawn = draw(model, labels, positions, args.seed)
    kept = [image for i, image in enumerate(write_samples(drawn, folder / "samples")) if i < 32]
    show_samples(folder / "samples.png", kept, labels, positions, model.labels, footer)
    show_positions(folder / "positions.png", model, args.seed, footer, args.label)

    data = None
    if args.data_dir or runs.data_are_at_hand(model.config, args.cache_dir):
        try:
            data = runs.find_data(args.run_dir, model.config, args.data_dir, args.cache_dir)
        except (UserError, OSError) as error:
            if args.data_dir:
                raise
            print(f"note: no reconstructions are shown: {error}")
    if data:
        people = one_of_each(data.of("test"), position=0.6, most=8)
        show_reconstructions(folder / "reconstructions.png", data, model.models.decoders, people, footer)
    print(f"{args.num_samples} new slices: {folder / 'samples'}; look at {folder / 'samples.png'}")


def run(args):
    how = (args.layout_temperature, args.temperature, args.top_k, args.top_p)
    model = TrainedModel(args.run_dir, args.decoder, *how)
    about = model.config["data"]
    footer = runs.footer(about["title"], about["credit"])
    print(f"run: {args.run_dir}, trained on {about['title']}")
    for line in model.unfinished:
        print(f"warning: unfinished run: {line}")
    name, do, pictures = "predictions", draw_new, ["samples.png", "positions.png", "reconstructions.png"]
    if args.volumes:
        name, do, pictures = "predictions", draw_heads, ["volumes.png", "volumes.gif"]
    if args.input:
        name, do, pictures = "inputs", reconstruct_all, ["inputs.png", "inputs.csv"]
    if args.mask:
        name, do, pictures = "completions", complete, ["completions.png"]
    if args.anomaly:
        name, do, pictures = "anomalies", map_anomalies, ["anomalies.png"]
    folder = args.output_dir or args.run_dir / name
    empty(folder, pictures)
    do(model, args, folder, footer)


def main(argv=None):
    return files.exit_status(lambda: run(options.predict(argv)), "stopped")


if __name__ == "__main__":
    sys.exit(main())
