"""Stacks of slices of one head, drawn slice by slice, each given the one drawn before it.

for some in heads.sample(model, 4):                 # uint8, shape (m, s, S, S), the lowest slice first
    ...
"""

import numpy as np
from scipy import ndimage

import dataset
from evaluation import figures
from running import run_folder
from running.models import BESIDE
from system import files
from system.console import UserError
from using import scans

SMOOTHING_ALONG_MM = 0.8  # sigma along a head's axis
FIRST_SLICE = 0.0  # where a head is begun, as a share of its height


def are_drawn_by(model):
    """Whether a model's priors are told the codes of a slice beside: train.py --neighbours."""
    return set(BESIDE) <= model.models.prior.maps.keys()


def positions(model):
    """Slice positions of a whole head, as the run's own scans have them, from 0 to 1."""
    slices = run_folder.read_splits(model.run_dir)
    number = slices.groupby(dataset.scan_of(slices)).size().median()
    return np.linspace(0, 1, int(number), dtype="float32")


def sample(model, number, seed=0, label=None, first=FIRST_SLICE, batch_size=16, description=None):
    """Yields new stacks of slices, some at a time: uint8, shape (m, s, S, S), the lowest slice first.

    Args:
        model: A `predict.TrainedModel`.
        number: How many.
        seed: A number from which they follow; head i of a seed is the same however many are drawn.
        label: One of `labels`; None takes labels as often as in training.
        first: Where the first slice lies, as a share of the height; the others follow upwards, then downwards.
        batch_size: Heads drawn at a time.
        description: What is drawn, for a line of progress; None shows none.

    Raises:
        UserError: If the run was not trained with --neighbours.
    """
    if not are_drawn_by(model):
        raise UserError(f"{model.run_dir}: its slices belong to nobody; heads need a run of train.py --neighbours")
    labels, _ = model.conditions(number, seed, label)
    heights = positions(model)
    start = round(first * (len(heights) - 1))
    for codes in model.sampler.sample_heads(labels, heights, seed, start, batch_size, description=description):
        yield np.stack([(decode(model, head) * 255).round().astype("uint8") for head in codes])


def decode(model, codes, smoothing_mm=SMOOTHING_ALONG_MM):
    """Slices of a head's codes (s, grid, grid, levels): float32 in [0, 1], shape (s, S, S).

    A decoder knows one slice at a time and makes each a little otherwise. So the codebook's entries, z_q, are smoothed
    along the axis before they are decoded; with that, decoded real heads are nearer to the real ones.
    """
    z_q = ndimage.gaussian_filter(model.vqvae.vectors(np.asarray(codes)), (smoothing_mm / model.voxel_mm[2], 0, 0, 0))
    return model.vqvae.decode_vectors(z_q)[..., 0]


def write(model, head, path):
    """Writes a stack of slices, uint8, (s, S, S), as NIfTI in the orientation and voxels of the run's own scans."""
    about = model.config["data"].get("about", {})
    orientation = next(iter(about.get("orientation", ())), "RAS")
    scans.write_head(head, path, about.get("plane") or "axial", model.voxel_mm, orientation)


def write_heads(model, args, folder, footer):
    """--volumes: stacks as volumes/volume_000.nii.gz, volumes.png, and a flight through the first, volumes.gif."""
    about = model.config["data"].get("about", {})
    plane = about.get("plane") or "axial"
    if not about.get("pixel_mm"):
        print("note: the size of the run's pixels is not known: voxels of 1 mm are written")
    (folder / "volumes").mkdir(exist_ok=True)
    files.remove_old(folder / "volumes", r"volume_\d{3,}\.nii\.gz")
    labels, _ = model.conditions(args.volumes, args.seed, args.label)
    shown = []
    drawn = sample(model, args.volumes, args.seed, args.label, description="heads")
    for number, head in enumerate(head for some in drawn for head in some):
        write(model, head, folder / "volumes" / f"volume_{number:03d}.nii.gz")
        shown += [head] * (number < 6)
    titles = [f"volume {i} {['', *model.labels][k]}".strip() for i, k in enumerate(labels[:6])]
    views = [figures.views(head, plane, model.voxel_mm) for head in shown]
    figures.heads(folder / "volumes.png", views, titles, model.voxel_mm[0], f"made by the model\n{footer}")
    figures.flight(folder / "volumes.gif", shown[0], plane, model.voxel_mm)
    print(f"{args.volumes} new stacks of slices: {folder / 'volumes'}; look at {folder / 'volumes.png'}")
