"""What may lie under a mask: drawn anew by particle filters, knowing all the rest.

drawn = completion.complete(model, image, mask, 8)
"""

import numpy as np
from skimage.restoration import inpaint_biharmonic

import dataset
from evaluation import figures
from system import files
from system.console import UserError, with_progress
from using import scans
from using.inputs import describe, read_scans

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
        UserError: For an image that the model does not take; for a mask of another shape, or one that covers nothing,
            or all.
    """
    image, mask = model.checked(np.asarray(image)[None])[0, ..., 0], np.asarray(mask, bool)
    if mask.shape != image.shape:
        raise UserError(f"the mask is of shape {mask.shape}, the image of {image.shape}")
    if mask.all() or not mask.any():
        raise UserError(f"the mask covers {'all' if mask.any() else 'nothing'} of the image: nothing to complete")
    if number < 1:
        raise UserError(f"number {number}: at least one completion is drawn")
    filled = np.clip(inpaint_biharmonic(image.astype(float), mask), 0, 1).astype("float32")[None]
    codes, coarse = model.encode(filled), model.encode_coarse(filled)
    hidden, hidden_coarse = (touched(mask, some.shape[1])[None, ..., None] for some in (codes, coarse))
    known = ~(hidden_coarse if coarse.size else hidden)
    kind, height = model.likeliest(codes, coarse, label, slice_position, known)
    known, known_coarse = np.where(hidden, -1, codes)[0], np.where(hidden_coarse, -1, coarse)[0]
    drawn = model.sampler.complete(known, known_coarse, kind[0], height[0], number, seed, particles)
    return np.where(mask, model.decode(drawn), image)


def complete_volume(model, scan, args, folder, footer):
    """Completions of the slices of a volume that a mask touches, each slice for itself, and a picture of one."""
    hidden, squares = scans.read_volume_mask(args.mask, scan)
    touched_slices = np.flatnonzero(squares.any(axis=(1, 2)))
    print(f"drawn anew: {hidden.sum()} voxels ({100 * hidden.mean():.2g} %) in {len(touched_slices)} slices")

    def draws():
        for i in touched_slices:
            position = scan.slice_positions[i]
            one = complete(model, scan.images[i], squares[i], args.num_samples, args.seed, args.label, position)
            yield one[None]

    drawn = np.repeat(scan.images[None], args.num_samples, axis=0)  # (number, n, S, S)
    progress = with_progress(draws(), len(touched_slices), "completions", "slice")
    drawn[:, touched_slices] = np.concatenate(list(progress)).swapaxes(0, 1)
    files.remove_old(folder, r"completion_\d{4,}\.nii\.gz")
    told, rows = {"input": str(scan.path), "mask": str(args.mask), "label": args.label or "", "seed": args.seed}, []
    for i, stack in enumerate(drawn):
        rows.append({"file": f"completion_{i:04d}.nii.gz", **told, "number": i, **model.about})
        left = scans.write_completed_volume(scan, stack, hidden, folder / rows[-1]["file"])
    files.write_csv(folder / "completions.csv", rows)
    if left:
        print(f"note: {left} voxels under the mask lie where the run sees no slice, and stay as they are")
    fullest = squares.sum(axis=(1, 2)).argmax()
    picture = folder / "completions.png"
    figures.completions(picture, scan.images[fullest], squares[fullest], drawn[:14, fullest], footer)
    print(f"{len(drawn)} completions: {folder}; look at {picture}")


def complete_input(model, args, folder, footer):
    """--mask: completions of one image or volume, and a picture of them."""
    found = [scan for scan, _ in read_scans(args.input, model.config)]
    if len(found) != 1:
        raise UserError(f"{args.input[0]}: {len(found)} scans, and --mask is for one")
    if found[0].grid:
        complete_volume(model, found[0], args, folder, footer)
        return
    mask, notices = scans.read_mask(args.mask, found[0])
    scan, square = scans.hide(found[0], mask, model.config)
    if scan.stored.ndim == 3:
        notices.append("what is drawn is grey; outside of the mask the colours stay")
    scan.notices.extend(notices)
    of_known = describe(model, scan, args, square).described[-1]
    print(f"drawn anew: {mask.sum()} of {mask.size} pixels ({100 * mask.mean():.0f} %)")
    drawn = complete(model, scan.images[0], square, args.num_samples, args.seed, args.label, args.slice_position)
    files.remove_old(folder, r"completion_\d{4,}\.(png|tif)")
    told = {
        "input": str(scan.path),
        "mask": str(args.mask),
        "label": ["", *model.labels][of_known["label"][0]],
        "slice_position": f"{of_known['slice_position'][0]:.4f}",
        "seed": args.seed,
    }
    rows, suffix = [], "png" if scan.stored.dtype in ("uint8", "uint16") else "tif"
    for i, image in enumerate(drawn):
        about = {**told, "number": i, **model.about}
        rows.append({"file": f"completion_{i:04d}.{suffix}", **about})
        scans.write_completion(scan, image, mask, folder / rows[-1]["file"], about)
    files.write_csv(folder / "completions.csv", rows)
    figures.completions(folder / "completions.png", found[0].images[0], square, drawn[:14], footer)
    print(f"{len(drawn)} completions: {folder}; look at {folder / 'completions.png'}")
