"""What may lie under a mask: drawn anew by particle filters, knowing all the rest.

drawn = completion.complete(model, image, mask, 8)
"""

import numpy as np
from skimage.restoration import inpaint_biharmonic

import dataset
from evaluation import figures
from system.console import UserError
from using import scans
from using.inputs import read_scans

PARTICLES = 32  # of a draw


def touched(mask, grid_size):
    """Which codes stand for a pixel under a mask: bool (S, S) -> (grid_size, grid_size)."""
    return dataset.shrink(mask[None], grid_size)[0] > 0


def complete(model, image, mask, number, seed=0, label=None, slice_position=None, particles=PARTICLES):
    """Draws anew what lies under a mask, knowing all the rest: the codes before it and those after it.

    The image is filled smoothly under the mask before it is encoded, so that nothing of what lies there gets into
    the codes that are known. Each draw is the outcome of a particle filter of its own: see
    `sampling.SliceSampler.complete`.

    Args:
        model: A `predict.TrainedModel`.
        image: One slice, shape (S, S).
        mask: bool, shape (S, S): what is drawn anew.
        number: How many draws.
        seed: A number from which they follow.
        label, slice_position: As for `TrainedModel.bits`.
        particles: Of each draw; 1 merely forces the codes that are known.

    Returns:
        float32 in [0, 1], shape (number, S, S): the draws, outside the mask the image itself.

    Raises:
        UserError: For a mask of another shape, or one that covers nothing, or all.
    """
    mask = np.asarray(mask, bool)
    if mask.shape != np.shape(image):
        raise UserError(f"the mask is {' x '.join(map(str, mask.shape))} pixels, the image {np.shape(image)}")
    if mask.all() or not mask.any():
        raise UserError(f"the mask covers {'all' if mask.any() else 'nothing'} of the image: nothing to complete")
    filled = np.clip(inpaint_biharmonic(np.asarray(image, float), mask), 0, 1).astype("float32")[None]
    coarse = model.encode_coarse(filled)
    hidden, hidden_coarse = (touched(mask, grid) for grid in (model.grid_size, coarse.shape[1]))
    kind, height = model.likeliest(coarse, label, slice_position, ~hidden_coarse[None])
    known = np.where(hidden, -1, model.encode(filled)[0])
    known_coarse = np.where(hidden_coarse, -1, coarse[0])
    drawn = model.sampler.complete(known, known_coarse, kind[0], height[0], number, seed, particles)
    return np.where(mask, model.decode(drawn), np.asarray(image, "float32"))


def complete_input(model, args, folder, footer):
    """--mask: completions of one image, and a picture of them."""
    (scan,) = read_scans(args.input, model.config)
    if scan.volume:
        raise UserError(f"{args.input[0]}: a volume, and --mask is for one image")
    under, mask = scans.read_mask(args.mask, scan)
    drawn = complete(model, scan.images[0], mask, args.num_samples, args.seed, args.label, args.slice_position)
    for old in folder.glob("completion_*.png"):
        old.unlink()
    for i, image in enumerate(drawn):
        scans.write_image(scan, image, folder / f"completion_{i:04d}.png", only=under)
    figures.completions(folder / "completions.png", scan.images[0], mask, drawn[:14], footer)
    print(f"{len(drawn)} completions: {folder}; look at {folder / 'completions.png'}")
