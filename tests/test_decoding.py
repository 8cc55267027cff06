"""What is in a file, each with a quirk of public bug reports: its grey values, its axes, and what is said of it."""

import functools
import re
import shlex

import keras
import nibabel
import numpy as np
import PIL.Image
import pytest
from conftest import COMPILE, blob, write_bids, write_image, write_volume

import dataset
import train
from reading import decoding
from running import plan, run_folder
from system.console import UserError

FEW = {"num_slices": 8, "slice_spacing_mm": 4.0}
NAMED = r"(?P<subject>P\d+)_(?P<slice>\d+)"


@pytest.fixture
def load(tmp_path):
    """Loads and splits the folder `data`."""
    return lambda **how: dataset.prepare(tmp_path / "data", cache_dir=tmp_path / "cache", **how)


def slices(folder, make=lambda image, person, number: image, people=8, suffix="png"):
    rng = np.random.default_rng(0)
    for person in range(people):
        for number in (45, 46):
            write_image(folder / f"P{person:02d}_{number}.{suffix}", make(blob(rng, 32, 32), person, number))


def volumes(folder, name, people=6, change=None):
    """Volumes with names from a function of the person."""
    rng = np.random.default_rng(0)
    for person in range(people):
        path = folder / name(person)
        write_volume(folder / "made.nii.gz", rng)
        image = nibabel.load(folder / "made.nii.gz")
        voxels, affine = np.asarray(image.dataobj), image.affine
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = nibabel.MGHImage if path.suffix == ".mgz" else nibabel.Nifti1Image
        if path.suffix.lower() == ".img":
            kind, voxels = nibabel.AnalyzeImage, voxels[..., None]
        made = change(voxels.astype("float32"), affine, person) if change else kind(voxels, affine)
        nibabel.save(made, path)
        (folder / "made.nii.gz").unlink()


def bids_name(person):
    return f"sub-{person:03d}/anat/sub-{person:03d}_T1w.nii.gz"


# -- intensities --------------------------------------------------------------------------------------------------


def means(data):
    """Mean of each person's slices."""
    return np.array([data.images[rows].mean() for rows in data.slices.groupby("subject_id").row.agg(list)])


def test_one_hot_voxel_changes_neither_scale_nor_height(tmp_path, load):
    def hot(voxels, affine, person):
        if person == 3:
            voxels[12, 15, 20] = voxels.max() * 1000
        return nibabel.Nifti1Image(voxels, affine)

    volumes(tmp_path / "data", bids_name, change=hot)
    data = load(**FEW)
    assert np.ptp(means(data)) < 5
    assert data.slices.groupby("subject_id").slice_index.min().nunique() == 1
    assert data.notices == [
        "single values far above all others in 1 files are cut, so that the rest keeps its range "
        "(sub-003/anat/sub-003_T1w.nii.gz the first)"
    ]


def test_nan_around_the_brain_is_background(tmp_path, load):
    volumes(
        tmp_path / "data",
        bids_name,
        change=lambda v, affine, _: nibabel.Nifti1Image(np.where(v > 0, v, np.nan).astype("float32"), affine),
    )
    data = load(**FEW)
    assert data.notices[0].startswith("NaN in 6 files is taken for background (sub-000/anat")
    assert (data.images[:, 0, 0] == 0).all()


def test_z_scores_inside_a_mask_leave_the_outside_black(tmp_path, load):
    def scored(voxels, affine, _):
        inside = voxels > 0
        scores = (voxels - voxels[inside].mean()) / voxels[inside].std() * inside
        return nibabel.Nifti1Image(scores.astype("float32"), affine)

    volumes(tmp_path / "data", bids_name, change=scored)
    data = load(**FEW)
    assert any("negative values in 6 files are kept" in notice for notice in data.notices)
    assert (data.images[:, 0, 0] == 0).all()
    assert 100 < np.median(data.images[data.images > 0]) < 200


def test_16_bit_images_of_one_scanner_do_not_darken_those_of_another(tmp_path, load):
    """Nor does one burnt pixel."""

    def make(image, person, number):
        wide = image.astype("uint16") * (2 if person % 2 else 60)
        if (person, number) == (2, 45):
            wide[0, 0] = 65535
        return wide

    slices(tmp_path / "data", make)
    data = load(subject_regex=NAMED)
    found = means(data)
    assert found.max() < 2 * found.min()  # as the heads differ; their ranges do by a hundred
    said = "\n".join(data.notices)
    assert (
        "16 images of more than 8 bits are scaled to 8, each scan by its own brightest value (P00_45.png the first)"
        in said
    )
    assert "single values far above all others in 1 files are cut" in said


def test_signed_images_keep_their_whole_range(tmp_path, load):
    slices(tmp_path / "data", lambda image, *_: (image / 127.5 - 1).astype("float32"), suffix="tif")
    data = load(subject_regex=NAMED)
    assert (data.images[:, 0, 0] == 0).all()
    assert data.images.max() == 255
    assert any("negative values in 16 files are kept" in notice for notice in data.notices)


def test_what_is_transparent_is_black(tmp_path, load):
    def make(image, *_):
        grey = np.where(image > 0, image, 255)
        return np.stack([grey, grey, grey, (image > 0) * 255], -1).astype("uint8")

    slices(tmp_path / "data", make)
    data = load(subject_regex=NAMED)
    assert (data.images[:, 0, 0] == 0).all()
    assert data.notices == ["what is transparent in 16 images is black (P00_45.png the first)"]


def test_black_and_equal_slices_are_counted(tmp_path, load):
    same = blob(np.random.default_rng(1), 32, 32)
    slices(tmp_path / "data", lambda image, person, number: {6: 0 * image, 7: same, 5: same}.get(person, image))
    notices = load(subject_regex=NAMED).notices
    assert "2 slices are black (P06_45.png the first)" in notices
    assert any(notice.startswith("2 slices are equal to one of another person: are they whose") for notice in notices)


def test_scores_as_images_leave_the_outside_black(tmp_path, load):
    def scored(image, *_):
        inside = image > 0
        return ((image - image[inside].mean()) / image[inside].std() * inside).astype("float32")

    slices(tmp_path / "data", scored, suffix="tif")
    assert (load(subject_regex=NAMED).images[:, 0, 0] == 0).all()


@pytest.mark.parametrize("place", [20, 21, 22])
def test_a_hot_slice_darkens_nothing(tmp_path, load, place):
    def hot(voxels, affine, person):
        if person == 3:
            voxels[:, :, place] *= 1000 * (np.arange(voxels.shape[1]) < 8)[None]
        return nibabel.Nifti1Image(voxels, affine)

    volumes(tmp_path / "data", bids_name, change=hot)
    assert np.ptp(means(load(**FEW))) < 10


def test_a_constant_background_far_below_takes_no_range(tmp_path, load):
    def shifted(voxels, affine, _):
        return nibabel.Nifti1Image(np.where(voxels > 0, voxels, -1024).astype("int16"), affine)

    volumes(tmp_path / "plain" / "data", bids_name)
    plain = dataset.prepare(tmp_path / "plain" / "data", cache_dir=tmp_path / "cache", **FEW)
    volumes(tmp_path / "data", bids_name, change=shifted)
    data = load(**FEW)
    assert (data.images[:, 0, 0] == 0).all()
    assert data.images[data.images > 0].std() > 1.5 * plain.images[plain.images > 0].std()


# -- geometry -----------------------------------------------------------------------------------------------------


def test_a_header_without_orientation_is_said(tmp_path, load):
    def nameless(voxels, affine, _):
        image = nibabel.Nifti1Image(voxels, affine)
        image.set_sform(None, 0)
        image.set_qform(None, 0)
        return image

    volumes(tmp_path / "data", bids_name, change=nameless)
    (notice,) = load(**FEW).notices
    assert notice.startswith(
        "the headers of 6 volumes name no orientation: the axes are taken as left, anterior, superior"
    )


def test_thick_slices_are_answered_by_options_that_fit(tmp_path, load):
    thick = np.diag([2.0, 2, 5, 1])
    volumes(
        tmp_path / "data", bids_name, change=lambda v, _, p: nibabel.Nifti1Image(v[:, :, ::3].astype("int16"), thick)
    )
    with pytest.raises(
        UserError, match=r"24 axial slices of 5 mm do not hold 32 .* --num-slices (\d+) --slice-spacing 5"
    ):
        load()
    assert len(load(num_slices=8, slice_spacing_mm=5.0).slices) == 6 * 8


def test_voxel_sizes_are_brought_together(tmp_path, load):
    def coarse(voxels, affine, person):
        if person % 2:
            return nibabel.Nifti1Image(voxels[::2, ::2, ::2], np.diag([4.0, 4, 4, 1]))
        return nibabel.Nifti1Image(voxels, affine)

    volumes(tmp_path / "data", bids_name, change=coarse)
    several = load(**FEW)
    assert (
        "voxels differ in size: 2 x 2 x 2 mm (3), 4 x 4 x 4 mm (3); --voxel-size brings all to one" in several.notices
    )
    assert several.about["pixel_mm"] is None
    data = load(**FEW, voxel_size=3.0)
    assert data.notices == []
    assert data.about["pixel_mm"] == 3.0
    areas = [(data.images[rows] > 60).sum() for rows in data.slices.groupby("subject_id").row.agg(list)]
    assert np.ptp(areas) < 0.1 * np.mean(areas)


def test_planes_lie_as_they_are_marked(tmp_path):
    voxels = np.zeros((30, 40, 60), "float32")
    voxels[5:25, 5:35, 5:55] = 100
    voxels[18:25, 26:35, 34:46] = 200  # right, anterior, above the middle
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2, 2, 1])), path)
    where = {}
    for plane in ("axial", "coronal", "sagittal"):
        how = decoding.How(plane=plane, num_slices=5, slice_spacing_mm=8.0, slice_middle=44.0)
        numbers, stack, _, _ = decoding.read_volume(path, how)
        assert numbers == sorted(numbers)
        bright = np.argwhere(stack > 200)
        canonical = np.asarray(decoding.open_volume(path)[0].dataobj)
        np.testing.assert_array_equal(decoding.to_volume(decoding.to_slices(canonical, plane), plane), canonical)
        where[plane] = [np.sign(stack.shape[axis] / 2 - bright[:, axis].mean()) for axis in (1, 2)]
    # Anterior, or superior, is up; the person's right, or anterior, is on the right of the picture.
    assert where == {"axial": [1, -1], "coronal": [1, -1], "sagittal": [1, -1]}


def test_all_slices_of_a_brain_are_taken(tmp_path, load):
    """From the lowest that shows something to the highest, of each person as many as there are."""
    path = tmp_path / "one.nii.gz"
    voxels = np.zeros((30, 40, 60), "float32")
    voxels[5:25, 5:35, 5:50] = np.arange(100, 145)
    voxels[14:16, 19:21, 50:52] = 120  # the vertex, less than a hundredth of the fullest slice
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1, 1, 1])), path)
    for spacing, numbers in ((1.0, range(5, 52)), (2.0, range(5, 52, 2))):
        how = decoding.How(num_slices=0, slice_spacing_mm=spacing)
        assert decoding.read_volume(path, how)[0] == list(numbers)

    with pytest.raises(decoding.BadFile, match="its slices are 1 mm apart, farther than --slice-spacing 0.5"):
        decoding.read_volume(path, decoding.How(num_slices=0, slice_spacing_mm=0.5))

    def of_own_height(voxels, affine, person):
        return nibabel.Nifti1Image(voxels[:, :, : 60 + person].astype("int16"), affine)

    volumes(tmp_path / "data", bids_name, change=of_own_height)
    data = load(num_slices=0, slice_spacing_mm=2.0)
    scans = data.slices.groupby("subject_id")
    assert scans.size().nunique() > 1
    assert len(data.images) == len(data.slices)
    for _, mine in scans:
        np.testing.assert_allclose(mine.slice_position, np.linspace(0, 1, len(mine)), atol=1e-6)
        assert (np.diff(mine.slice_index) == 1).all()
        assert data.images[mine.row].max(axis=(1, 2)).min() > 20


def test_options_for_volumes_are_refused_for_images(tmp_path, load):
    slices(tmp_path / "data")
    volume_options = {"plane": "coronal", "voxel_size": 2.0, "slice_middle": 50.0, "num_slices": 8}
    for how in ({name: value} for name, value in (volume_options | {"slice_spacing_mm": 1.0}).items()):
        flag = "--" + next(iter(how)).removesuffix("_mm").replace("_", "-")
        with pytest.raises(UserError, match=f"{flag} .*: is for volumes, and .* holds images"):
            load(subject_regex=NAMED, **how)


def test_a_black_background_leaves_the_head_whole(rng):
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    radius = np.hypot(x / 0.6, y / 0.8)
    image = (radius < 0.85) * 0.9 + ((radius > 0.92) & (radius < 1)) * 0.3  # a brain, dark bone, a scalp
    image[np.hypot(x, y) < 0.1] = 0.05  # a ventricle
    noise = image + 0.02 * rng.random(image.shape)
    noise[2:4, 2:4] = 0.8  # a speck
    mask = decoding.head(noise, 3)
    assert mask[radius < 0.97].mean() > 0.98
    assert (mask == (radius < 1)).mean() > 0.93
    assert not mask[2:4, 2:4].any()
    assert not decoding.head(np.zeros((32, 32)), 1).any()
    assert (decoding.head(noise - 10, 3) == mask).mean() > 0.99  # of negative values, too


def test_background_black_for_images_and_volumes(tmp_path, load):
    def noisy(voxels, affine, person):
        return nibabel.Nifti1Image(voxels + np.random.default_rng(person).random(voxels.shape) * 60, affine)

    volumes(tmp_path / "data", bids_name, change=noisy)
    kept, black = (load(**FEW, background=kind) for kind in ("keep", "black"))
    assert (black.images > 0).sum() < 0.7 * (kept.images > 0).sum()
    assert (black.images > 100).sum() > 0.95 * (kept.images > 100).sum()


def test_a_volume_of_three_slices_is_no_colour_image(tmp_path):
    write_volume(tmp_path / "a.nii.gz", np.random.default_rng(0), shape=(24, 30, 3), affine=np.diag([2.0, 2, 40, 1]))
    how = decoding.How(num_slices=1, background="black")
    assert decoding.read_volume(tmp_path / "a.nii.gz", how)[1].shape == (1, 30, 24)


def test_an_image_of_one_value_is_not_made_black(tmp_path):
    write_image(tmp_path / "white.png", np.full((32, 32), 255, "uint8"))
    assert decoding.read_image(tmp_path / "white.png", None, decoding.How(background="black")).min() == 255


def test_an_oblique_volume_is_resampled_to_the_size_that_was_surveyed(tmp_path, load):
    turned = np.eye(4)
    angle = np.radians(20)
    turned[:2, :2] = 2 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned[2, 2] = 2
    volumes(tmp_path / "data", bids_name, change=lambda v, _, p: nibabel.Nifti1Image(v, turned))
    assert len(load(**FEW, voxel_size=2.0).slices) == 48


# -- the dry run --------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_the_data_are_and_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(keras.Model, "compile", functools.partialmethod(COMPILE, run_eagerly=True))  # as `fit` does
    write_bids(tmp_path / "data", people=10, sessions=2)
    (tmp_path / "data" / "sub-01/ses-0/anat/sub-01_T2w.nii.gz").write_bytes(b"")
    command = ["--data-dir", tmp_path / "data", "--run-dir", tmp_path / "run", "--cache-dir", tmp_path / "cache"]
    command = [str(part) for part in [*command, "--num-slices", 8, "--slice-spacing", 4, "--dry-run"]]
    assert train.main(command) == 0
    said = capsys.readouterr().out
    for line in (
        "layout bids, 160 slices of 32 x 32 pixels",
        "train: 7 people, 112 slices",
        "labels, by people: patient (5), control (4), none (1)",
        "20 sessions of 10 people",
        "volumes: voxels of 2 x 2 x 2 mm (20); orientation RAS (20)",
        "axial slices, native size 30 x 24 (20), 2 mm a pixel",
        "values 0 to",
        "note: images or volumes that are not like",
        "plan: 8 x 8 codes a slice, 1 at each place, of 256",
        "in all ",
        "nothing was trained; look at",
    ):
        assert line in said, said
    for stage in ("vqvae", "coarse", "coarse_prior", "prior", "sharp"):
        assert re.search(rf"^      {stage}: \d+ epochs, [\d.]+ (minutes|hours)$", said, re.MULTILINE), said
    assert "      " + shlex.join(["python", "train.py", *command[:-1]]) + "\n" in said
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["preview.png", "splits.csv"]
    with PIL.Image.open(tmp_path / "run" / "preview.png") as picture:
        assert picture.width > 1000
        assert len(np.unique(np.asarray(picture))) > 50
    (tmp_path / "run" / "config.json").write_text("{}")  # as of a trained run, which is left alone
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert train.main([*command, "--seed", "5"]) == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_plan_counts_epochs_steps_and_what_the_priors_encode(tmp_path, load, monkeypatch):
    write_bids(tmp_path / "data", people=10)
    data = load(**FEW)
    stages = ("vqvae", "coarse", "coarse-prior", "prior")
    epochs = [part for stage in stages for part in (f"--{stage}-epochs", "3")]
    options = train.options.train(["--data-dir", str(tmp_path / "data"), "--precision", "float32", *epochs]).options
    monkeypatch.setattr(plan, "seconds_each", lambda call, least_s: 60.0)  # of a step, and of encoding 32 slices
    slices, checks = (len(data.of(split)) for split in ("train", "validation"))
    for stage, at_once, encoders in (("vqvae", 4, 0), ("coarse", 32, 0), ("coarse_prior", 32, 1), ("prior", 8, 2)):
        fetched = 0 if encoders else slices / at_once
        epoch = (slices + checks / 3) / at_once + fetched + encoders * slices / 32
        assert plan.minutes_of(stage, data, options, None) == pytest.approx(3 * epoch)


def test_a_long_licence_is_shortened_under_pictures_alone():
    title, credit = run_folder.footer("x", "A very long licence. " * 40).split("\n")
    assert title == "x"
    assert len(credit) <= 150
    assert credit.endswith(" …")
