"""Draws new slices from a trained run, and shows what its VQ-VAE makes of a few test people.

    python predict.py                                             # the demo run
    python predict.py --run-dir runs/ixi --num-samples 64 --slice-position 0.6

Drawing needs the run folder alone. Writes to --output-dir: samples/sample_0000.png and so on (8-bit grey), samples.png,
positions.png, and where the run's data are at hand reconstructions.png. `evaluate.py` measures.
"""

import sys

import files
import options

if __name__ == "__main__":
    options.predict()  # --help and wrong options are answered here, before TensorFlow is imported, which takes seconds
with files.quietly():
    import keras  # noqa: F401
import numpy as np
import PIL.Image
from tqdm import tqdm

import runs
import sampling
from evaluation import figures, metrics

AT_ONCE = 32  # samples


# ----------------------------------------------------------------------------------------------------------------
# New slices
# ----------------------------------------------------------------------------------------------------------------


def choose_conditions(training, labels, number, seed, label=None, slice_position=None):
    """Label and slice position of each sample: as given, or those of a training slice drawn at random.

    Sample i of a seed has the same ones however many are drawn.

    Args:
        training: DataFrame of the training slices.
        labels: The labels that the prior knows, in its order.

    Returns:
        Labels as the prior counts them, int32, and slice positions, float32, each of shape (number,).
    """
    drawn = [np.random.default_rng([seed, i, 1]).integers(len(training)) for i in range(number)]
    chosen = training.iloc[drawn]
    names = chosen.label if label is None else [label] * number
    positions = chosen.slice_position if slice_position is None else [slice_position] * number
    return np.array([["", *labels].index(name) for name in names], "int32"), np.array(positions, "float32")


def draw(sampler, vqvae, labels, positions, seed, noise_index=None, description="samples"):
    """Yields new images a batch at a time, float32 in [0, 1], shape (m, S, S).

    The arguments are those of `SliceSampler.sample`. Progress is shown on standard error, every ten seconds where
    that is not a terminal.
    """
    pause = 0.1 if sys.stderr.isatty() else 10
    with tqdm(total=len(labels), desc=description, unit="slice", leave=False, delay=1, mininterval=pause) as bar:
        for codes in sampler.sample(labels, positions, seed, noise_index=noise_index, batch_size=AT_ONCE):
            yield vqvae.decode(codes)[..., 0]
            bar.update(len(codes))


def write_samples(batches, folder):
    """Writes each image as 8-bit grey PNG as soon as it is drawn, passes it on, removes what an earlier call left."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("sample_*.png"):
        old.unlink()
    for i, image in enumerate(image for images in batches for image in images):
        picture = PIL.Image.fromarray((image * 255).round().astype("uint8"))
        files.write_whole(folder / f"sample_{i:04d}.png", picture.save)
        yield image


def sampler_of(models, args):
    """The `SliceSampler` of a run at what `options.Truncation` says."""
    how = (args.layout_temperature, args.temperature, args.top_k, args.top_p)
    return sampling.SliceSampler(models.layout_prior, models.prior, *how)


def show_samples(path, images, labels, positions, names, footer):
    """A picture of at most 32 samples, each under its label and slice position."""
    titles = [f"{['', *names][k]} at {p:.2f}".strip() for k, p in zip(labels[:32], positions, strict=False)]
    figures.image_grid(path, images[:32], titles, f"made by the model\n{footer}")


def show_positions(path, sampler, vqvae, names, seed, footer, label=None):
    """A picture of the same noise at eight heights, a row for each label, or for one."""
    kinds = range(1, len(names) + 1) if label is None else [names.index(label) + 1]
    kinds = list(kinds) or [0]
    heights = np.tile(np.linspace(0, 1, 8, dtype="float32"), len(kinds))
    labels = np.repeat(np.array(kinds, "int32"), 8)
    drawn = draw(sampler, vqvae, labels, heights, seed, np.zeros(len(labels), int), "positions")
    figures.image_grid(
        path,
        np.concatenate(list(drawn)),
        [f"at {p:.2f}" for p in heights],
        f"made by the model from one noise, from the lowest slice position to the highest\n{footer}",
        row_names=[["", *names][k] for k in kinds],
    )


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
# The command
# ----------------------------------------------------------------------------------------------------------------


def empty(output_dir, pictures):
    """Makes a folder; removes pictures of an earlier call, and what a killed process left while it wrote."""
    output_dir.mkdir(parents=True, exist_ok=True)
    for left in [*output_dir.glob("*.partial*"), *(output_dir / name for name in pictures)]:
        left.unlink(missing_ok=True)


def run(args):
    config, slices = runs.read_config(args.run_dir), runs.read_splits(args.run_dir)
    models = runs.load_models(args.run_dir, args.decoder)
    names, footer = config["data"]["labels"], runs.footer(config["data"]["title"], config["data"]["credit"])
    output_dir = args.output_dir or args.run_dir / f"predictions{'_sharp' * (args.decoder == 'sharp')}"
    empty(output_dir, ["samples.png", "positions.png", "reconstructions.png"])
    print(f"run: {args.run_dir}, trained on {config['data']['title']}")

    sampler = sampler_of(models, args)
    labels, positions = choose_conditions(
        slices[slices.split == "train"], names, args.num_samples, args.seed, args.label, args.slice_position
    )
    drawn = draw(sampler, models.vqvae, labels, positions, args.seed)
    kept = [image for i, image in enumerate(write_samples(drawn, output_dir / "samples")) if i < 32]
    show_samples(output_dir / "samples.png", kept, labels, positions, names, footer)
    show_positions(output_dir / "positions.png", sampler, models.vqvae, names, args.seed, footer, args.label)

    data = None
    if args.data_dir or runs.data_are_at_hand(config, args.cache_dir):
        try:
            data = runs.find_data(args.run_dir, config, args.data_dir, args.cache_dir)
        except (files.UserError, OSError) as error:
            if args.data_dir:
                raise
            print(f"note: no reconstructions are shown: {error}")
    if data:
        people = one_of_each(data.of("test"), position=0.6, most=8)
        show_reconstructions(output_dir / "reconstructions.png", data, models.decoders, people, footer)
    print(f"{args.num_samples} new slices: {output_dir / 'samples'}; look at {output_dir / 'samples.png'}")


def main(argv=None):
    return files.exit_status(lambda: run(options.predict(argv)), "stopped")


if __name__ == "__main__":
    sys.exit(main())
