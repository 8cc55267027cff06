"""Volumes of one head or brain, drawn slice by slice, each given the one drawn before it.

for some in heads.sample(model, 4):                 # uint8, shape (m, s, S, S), the lowest slice first
    ...
"""

import contextlib
import json
import re
import warnings

import numpy as np
from scipy import ndimage

import dataset
from evaluation import figures
from running import run_folder
from system import files
from system.console import UserError
from using import scans

SMOOTHING_ALONG_MM = 0.8  # sigma along a volume's axis, of a decoder that knows one slice at a time


def are_drawn_by(model):
    """Whether a model's priors are told the codes of the slice below: train.py --neighbours."""
    return "below" in model.models.prior.maps


def positions(model):
    """Slice positions of a volume, as the run's own scans have them, from 0 to 1."""
    slices = run_folder.read_splits(model.run_dir)
    number = slices.groupby(dataset.scan_of(slices)).size().median()
    return np.linspace(0, 1, int(number), dtype="float32")


def sample(model, number, seed=0, label=None, batch_size=16, description=None):
    """Yields new volumes, some at a time: uint8, shape (m, s, S, S), the lowest slice first.

    Args:
        model: A `predict.TrainedModel`.
        number: How many.
        seed: A number from which they follow; volume i of a seed is the same however many are drawn.
        label: One of `labels`; None takes labels as often as in training.
        batch_size: Volumes drawn at a time.
        description: What is drawn, for a line of progress; None shows none.

    Raises:
        UserError: If the run was not trained with --neighbours.
    """
    if not are_drawn_by(model):
        raise UserError(f"{model.run_dir}: its slices belong to nobody; volumes need a run of train.py --neighbours")
    labels, _ = model.conditions(number, seed, label)
    heights = positions(model)
    for codes in model.head_sampler.sample_heads(labels, heights, seed, batch_size, description=description):
        yield np.stack([(decode(model, head) * 255).round().astype("uint8") for head in codes])


def decode(model, codes):
    """Slices of a volume's codes (s, grid, grid, levels): float32 in [0, 1], shape (s, S, S).

    A decoder that is told the slices beside each makes them fit. One that knows one slice at a time makes each a little
    otherwise: so the codebook's entries, z_q, are smoothed along the axis before; with that, decoded real volumes are
    nearer to the real ones.
    """
    z_q = model.vqvae.vectors(np.asarray(codes))
    if not model.vqvae.beside:
        z_q = ndimage.gaussian_filter(z_q, (SMOOTHING_ALONG_MM / model.voxel_mm[2], 0, 0, 0))
    return model.vqvae.decode_vectors(z_q, stack=True)[..., 0]


def write(model, head, path):
    """Writes a volume, uint8, (s, S, S), as NIfTI in the orientation and voxels of the run's own scans."""
    about = model.config["data"].get("about", {})
    orientation = next(iter(about.get("orientation", ())), "RAS")
    scans.write_head(head, path, about.get("plane") or "axial", model.voxel_mm, orientation)


def write_bids(model, heads, labels, seed, root):
    """Writes volumes as they come as a BIDS derivative (https://bids.neuroimaging.io), passes them on.

    Of each a NIfTI file and what it is, a JSON file beside it; of all participants.tsv, whose `group` is the label, so
    that `train.py` reads the folder. What an earlier call left is removed.
    """
    root.mkdir(exist_ok=True)
    files.remove_old(root, rf"participants\.tsv|{files.PARTIAL.pattern}")
    for anat in root.glob("sub-synth*/anat"):
        files.remove_old(anat, rf"{anat.parent.name}_desc-synthetic_T1w\.(nii\.gz|json)|{files.PARTIAL.pattern}")
        with contextlib.suppress(OSError):  # something else lies there
            anat.rmdir()
            anat.parent.rmdir()
    data, version, rows = model.config["data"], model.about["made_by"].split(";")[0].split(), []

    def write_json(path, content):
        files.write_text(path, json.dumps(content, indent=2) + "\n")

    how = f"VQ-VAE and PixelCNN of the run {model.about['run']}, trained on: {data['title']}"
    how += f" ({data['credit']})" * bool(data["credit"])
    licence = {"License": data["credit"].rpartition("; ")[2]} if "; " in data["credit"] else {}
    description = {"Name": "Synthetic brains", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}
    description["GeneratedBy"] = [{"Name": version[0], "Version": version[1], "Description": how}]
    write_json(root / "dataset_description.json", description | licence)
    files.write_text(root / "README", f"Volumes of no person, drawn by a model: {how}. Not for diagnosis.\n")
    group = {"Description": "the label that the model was told", "Levels": {name: name for name in model.labels}}
    write_json(root / "participants.json", {"group": group})
    for number, head in enumerate(heads):
        name, label = f"sub-synth{number + 1:03d}", ["", *model.labels][labels[number]]
        anat = root / name / "anat"
        anat.mkdir(parents=True, exist_ok=True)
        write(model, head, anat / f"{name}_desc-synthetic_T1w.nii.gz")
        told = {"Description": "a volume of no person", "synthetic": True, "label": label, "seed": seed}
        told |= {"number": number, **model.about}
        rims = [scans.head_shape(image / np.float32(255), model.voxel_mm[0])[0] for image in head]
        if data["about"].get("pixel_mm") and np.isfinite(rims).any():
            told["SkullStripped"] = bool(np.nanmean(rims) < scans.SKULL)
        write_json(anat / f"{name}_desc-synthetic_T1w.json", told)
        rows.append(f"{name}\t{label or 'n/a'}\n")
        files.write_text(root / "participants.tsv", "participant_id\tgroup\n" + "".join(rows))
        yield head


def write_viewer(path, page):
    """Writes a page in which the three planes of a NIfTI file are looked through, which needs no network."""
    from nilearn import plotting  # which takes a second and a half

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nilearn's, of the few values of an image of 8 bits
        view = plotting.view_img(
            str(path), bg_img=False, cmap="gray", symmetric_cmap=False, colorbar=False, title="of no person", vmin=0
        )
    files.write_text(page, re.sub(r'<link rel="icon".*?>', "", view.get_standalone(), flags=re.DOTALL))  # from afar


def write_heads(model, args, folder, footer):
    """--volumes: a BIDS folder, volumes; volumes.png; the first in a viewer, volumes.html, and turning, volumes.gif."""
    about = model.config["data"].get("about", {})
    plane = about.get("plane") or "axial"
    if not about.get("pixel_mm"):
        print("note: the size of the run's pixels is not known: voxels of 1 mm are written")
    labels, _ = model.conditions(args.volumes, args.seed, args.label)
    drawn = sample(model, args.volumes, args.seed, args.label, description="volumes")
    heads = (head for some in drawn for head in some)
    written = write_bids(model, heads, labels, args.seed, folder / "volumes")
    shown = [head for number, head in enumerate(written) if number < 6]
    write_viewer(next((folder / "volumes").glob("sub-synth001/anat/*.nii.gz")), folder / "volumes.html")
    titles = [f"sub-synth{i:03d} {['', *model.labels][k]}".strip() for i, k in enumerate(labels[:6], 1)]
    views = [figures.views(head, plane, model.voxel_mm) for head in shown]
    figures.heads(folder / "volumes.png", views, titles, model.voxel_mm[0], f"made by the model\n{footer}")
    figures.turning(folder / "volumes.gif", shown[0], plane, model.voxel_mm)
    print(f"{args.volumes} new volumes: {folder / 'volumes'}; look at {folder / 'volumes.png'}")
