"""Folders as they lie on people's disks, each with a quirk of public bug reports, and what is said of them."""

import re

import nibabel
import numpy as np
import PIL.Image
import pytest
from conftest import blob, write_adni, write_bids, write_image, write_oasis, write_volume

import dataset
import train
from reading import decoding, layouts
from running import run_folder
from system.console import UserError

FEW = {"num_slices": 8, "slice_spacing_mm": 4.0}
NAMED = r"(?P<subject>P\d+)_(?P<slice>\d+)"


@pytest.fixture
def load(tmp_path):
    """Loads and splits the folder `data`."""
    return lambda **how: dataset.prepare(tmp_path / "data", cache_dir=tmp_path / "cache", **how)


def labels(data):
    """People of each label."""
    people = data.slices.drop_duplicates(["subject_id", "label"])
    return people.label.value_counts().to_dict()


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


# -- layouts that are known ---------------------------------------------------------------------------------------


def test_classes_may_have_any_name(tmp_path, load):
    rng = np.random.default_rng(0)
    for split in ("train", "Val", "test"):
        for label in ("AD", "CN", "MCI"):
            for person in range(4):
                write_image(tmp_path / "data" / split / label / f"{split}{label}{person}_78.jpeg", blob(rng, 32, 32))
    data = load()
    assert data.layout == "adni"
    assert labels(data) == {"AD": 12, "CN": 12, "MCI": 12}
    assert dataset.count(data.slices)["validation"]["people"] == 12


def test_classes_with_folders_of_people_and_without_a_split(tmp_path, load):
    rng = np.random.default_rng(0)
    for person in range(12):
        for scan in (1, 2):
            for number in (70, 71):
                folder = tmp_path / "data" / ("AD", "CN")[person % 2] / f"002_S_{person:04d}"
                write_image(folder / f"I{person}{scan}_{number}.png", blob(rng, 32, 32))
    data = load()
    assert data.slices.subject_id.nunique() == 12
    assert data.slices.groupby("subject_id").session.nunique().tolist() == [2] * 12
    assert labels(data) == {"AD": 6, "CN": 6}


def test_folders_of_people_are_not_taken_for_classes(tmp_path, load):
    rng = np.random.default_rng(0)
    for person in range(6):
        for number in range(3):
            write_image(tmp_path / "data" / "train" / f"person{person}" / f"slice_{number}.png", blob(rng, 32, 32))
    with pytest.raises(UserError, match="6 folders would be classes .* say so by --subject-regex"):
        load()


def test_oasis_of_kaggle(tmp_path, load):
    rng = np.random.default_rng(0)
    for person in range(12):
        label = ("Mild Dementia", "Non Demented", "Very mild Dementia")[person % 3]
        for scan in (1, 2):
            image = np.stack([blob(rng, 31, 32)] * 3, -1)
            write_image(tmp_path / "data" / "Data" / label / f"OAS1_{person:04d}_MR1_mpr-{scan}_100.jpg", image)
    data = load()
    assert data.layout == "oasis-kaggle"
    assert labels(data) == {"Mild Dementia": 4, "Non Demented": 4, "Very mild Dementia": 4}
    assert data.slices.subject_id.nunique() == 12
    assert any("24 colour images are converted to grey" in notice for notice in data.notices)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("ixi", lambda p: f"IXI{p:03d}-Guys-{828 + p:04d}-T1.nii.gz"),
        ("ixi", lambda p: f"IXI{p:03d}-HH-{828 + p:04d}-T1.NII.GZ"),
        ("adni-archive", lambda p: f"ADNI/{p:03d}_S_{p:04d}/MP-RAGE/2006-04-18_08_20_30.0/I{p}/ADNI_{p:03d}.nii"),
        ("oasis1", lambda p: f"disc1/OAS1_{p:04d}_MR1/PROCESSED/MPRAGE/T88_111/OAS1_{p:04d}_t88_masked_gfc.img"),
        ("freesurfer", lambda p: f"bert{p}/mri/T1.mgz"),
        ("bids", bids_name),
    ],
)
def test_volumes_that_need_no_options(tmp_path, load, layout, name):
    volumes(tmp_path / "data", name)
    data = load(**FEW)
    assert data.layout == layout
    assert data.slices.subject_id.nunique() == 6
    assert len(data.slices) == 6 * 8
    assert data.about["voxel_size"] == {"2 x 2 x 2 mm": 6}


def test_what_is_not_used_is_counted_and_named(tmp_path, load):
    volumes(tmp_path / "data", bids_name)
    volumes(tmp_path / "data", lambda p: bids_name(p).replace("T1w", "T2w"))
    (notice,) = load(**FEW).notices
    assert notice == (
        "images or volumes that are not like sub-*/[ses-*/]anat/*_T1w.nii[.gz] are left out: "
        "6 (sub-000/anat/sub-000_T2w.nii.gz the first)"
    )
    write_oasis(tmp_path / "oasis")
    assert layouts.find(tmp_path / "oasis")[2] == [
        "label maps are left aside: 24 (keras_png_slices_seg_test/seg_007_slice_0.nii.png the first)"
    ]


def test_a_folder_too_high_or_too_low_is_answered_by_the_right_one(tmp_path):
    adni = write_adni(tmp_path / "a" / "b" / "adni")
    for wrong, right in (
        (tmp_path / "a", adni),
        (adni / "AD_NC" / "train", adni / "AD_NC"),
        (adni / "AD_NC" / "train" / "AD", adni / "AD_NC"),
    ):
        with pytest.raises(UserError, match=f"did you mean --data-dir {right}") as caught:
            layouts.find(wrong)
        assert "found" in str(caught.value)
    slices(tmp_path / "data")
    with pytest.raises(UserError, match=r"found 16 images, such as P00_45.png, in no known layout .*--subject-regex"):
        layouts.find(tmp_path / "data")


def test_dicom_is_answered_by_the_program_that_converts_it(tmp_path):
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(UserError, match=r"holds DICOM files \(IM0001\); convert them first, for example: dcm2niix"):
        layouts.find(tmp_path)


def test_folders_that_are_links_are_followed(tmp_path, load):
    volumes(tmp_path / "real", bids_name)
    for person in range(6):
        (tmp_path / "data" / f"sub-{person:03d}").mkdir(parents=True)
        (tmp_path / "data" / f"sub-{person:03d}/ses-1").symlink_to(tmp_path / "real" / f"sub-{person:03d}")
    data = load(**FEW)
    assert data.slices.subject_id.nunique() == 6
    assert set(data.slices.session) == {"ses-1"}


def touch(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    "names",
    [
        [f"P{person:02d}.nii.gz" for person in range(20)],
        ["anna.nii", "bert.NII.GZ", "P.01.mgz"],
        ["Guys-001_T1.img", "Guys-002_T1.img", "HH-001_T1.img"],
    ],
)
def test_a_flat_folder_of_volumes_is_one_person_a_file(tmp_path, names):
    layout, sources, (notice,) = layouts.find(touch(tmp_path, names))
    assert layout == "flat"
    assert len({source.subject_id for source in sources}) == len(names)
    assert notice.startswith(f"each of {len(names)} files is taken for another person (")


@pytest.mark.parametrize(
    ("names", "people"),
    [
        (["P01_a.nii", "P01_b.nii", "P02_a.nii"], 2),
        (["sub-01_ses-1_T2w.nii.gz", "sub-01_ses-2_T2w.nii.gz", "sub-02_ses-1_T2w.nii.gz"], 2),
        (["T1_P01_a.mgz", "T1_P01_b.mgz", "T1_P02_a.mgz"], 2),
        (["scan_anna_a.nii", "scan_anna_b.nii", "scan_bert_a.nii"], 2),
    ],
)
def test_files_that_may_be_of_one_person_are_not_guessed(tmp_path, names, people):
    with pytest.raises(UserError, match=f"may be of one person, such as {names[0]} and {names[1]}; .*--layout flat if"):
        layouts.find(touch(tmp_path, names))
    assert len({source.subject_id for source in layouts.find(tmp_path, subject_regex=suggested(tmp_path))[1]}) == people
    assert len({source.subject_id for source in layouts.find(tmp_path, "flat")[1]}) == len(names)


def suggested(folder, **how):
    """The expression that an error suggests for a folder, as one would paste it."""
    with pytest.raises(UserError) as caught:
        layouts.find(folder, **how)
    return re.findall("--subject-regex '([^']*)'", str(caught.value))[-1]


@pytest.mark.parametrize(
    ("names", "people"),
    [
        (["P00_45.png", "P00_46.png", "P01_45.png"], 2),
        (["P1/slice_1.png", "P1/slice_2.png", "P2/slice_1.png"], 2),
        (["P1/a/T1.nii.gz", "P2/a/T1.nii.gz"], 2),
        (["all/P1/T1.nii.gz", "all/P2/T1.nii.gz"], 2),
        (["a.png", "P01.tif"], 2),
    ],
)
@pytest.mark.parametrize("how", [{}, {"subject_regex": r"(Q\d)"}, {"layout": "bids"}])
def test_a_suggested_expression_finds_the_people(tmp_path, names, people, how):
    pattern = suggested(touch(tmp_path, names), **how)
    sources = layouts.find(tmp_path, subject_regex=pattern)[1]
    assert len(sources) == len(names)
    assert len({source.subject_id for source in sources}) == people


# -- a regular expression -----------------------------------------------------------------------------------------


def test_volumes_by_a_regular_expression(tmp_path, load):
    volumes(tmp_path / "data", lambda p: f"HCP/{100307 + p}/T1w/T1w_acpc_dc_restore_brain.nii.gz")
    volumes(tmp_path / "data", lambda p: f"HCP/{100307 + p}/T1w/aparc.nii.gz")
    data = load(subject_regex=r"(?P<subject>\d{6})/T1w/T1w_acpc", **FEW)
    assert data.layout == "regex"
    assert sorted(data.slices.subject_id.unique()) == [str(100307 + p) for p in range(6)]
    assert any(
        notice.startswith("files that --subject-regex does not match are left out: 6 (") for notice in data.notices
    )


def test_images_and_volumes_together_are_refused(tmp_path, load):
    volumes(tmp_path / "data", lambda p: f"P{p:02d}.nii.gz")
    slices(tmp_path / "data")
    with pytest.raises(UserError, match="matches 16 images and 6 volumes; let it end in the suffix"):
        load(subject_regex=r"(?P<subject>P\d+)")


@pytest.mark.parametrize(
    ("regex", "message"),
    [
        (NAMED + "(?P<label>x)?", "its group 'label' matches in none of 16 files"),
        ("(?P<subject>Q)", "matches none of 16 files, such as P00_45.png"),
        ("(?P<subject>P)(?P<sex>.)", "group 'sex' is none of subject, session, slice, label, split"),
        (r"(?P<subject>P\d+)_(?P<split>45|46)", "split '45' is none of train, training"),
    ],
)
def test_a_group_that_matches_nobody_is_an_error(tmp_path, load, regex, message):
    slices(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        load(subject_regex=regex)


def test_without_a_number_slices_come_in_natural_order(tmp_path, load):
    for person in range(4):
        for number in range(1, 12):
            write_image(tmp_path / "data" / f"P{person}_{number}.png", np.full((16, 16), 10 * number, "uint8"))
    data = load(subject_regex=r"(?P<subject>P\d+)")
    mine = data.slices[data.slices.subject_id == "P0"].sort_values("slice_index")
    assert data.images[mine.row, 16, 16].tolist() == [10 * number for number in range(1, 12)]


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "dev", "testing")])
def test_a_split_by_folders_is_kept_and_said(tmp_path, load, names):
    rng, person = np.random.default_rng(0), 0
    for name, people in zip(names, (8, 2, 3), strict=True):
        for _ in range(people):
            person += 1
            for number in (45, 46):
                write_image(tmp_path / "data" / name / f"P{person:02d}_{number}.png", blob(rng, 32, 32))
    data = load(subject_regex=NAMED)
    assert [n["people"] for n in dataset.count(data.slices).values()] == [8, 2, 3]
    assert data.notices == ["the folders' own split into train, validation and test is kept, as their names say it"]
    asked = load(subject_regex=r"(?P<split>\w+)/" + NAMED)
    assert asked.slices.split.tolist() == data.slices.split.tolist()


def test_no_person_with_two_slices_is_warned_of(tmp_path, load):
    slices(tmp_path / "data")
    data = load(subject_regex=r"(?P<subject>P\d+_\d+)")
    assert data.notices == [
        "no person has more than one slice, so that nothing says whose they are: the split may not be by person"
    ]


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
    assert (decoding.head(noise - 10, 3) == mask).all()  # of negative values, too


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


# -- the dry run --------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_the_data_are_and_trains_nothing(tmp_path, capsys):
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
        "nothing was trained; look at",
    ):
        assert line in said, said
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["lock", "preview.png", "splits.csv"]
    with PIL.Image.open(tmp_path / "run" / "preview.png") as picture:
        assert picture.width > 1000
        assert len(np.unique(np.asarray(picture))) > 50
    (tmp_path / "run" / "config.json").write_text("{}")  # as of a trained run, which is left alone
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert train.main([*command, "--seed", "5"]) == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_long_licence_is_shortened_under_pictures_alone():
    title, credit = run_folder.footer("x", "A very long licence. " * 40).split("\n")
    assert title == "x"
    assert len(credit) <= 150
    assert credit.endswith(" …")


# -- splits, visits, masks, scores and tables of other folders ------------------------------------------------------


def test_oasis_of_kaggle_keeps_a_split_of_its_own(tmp_path, load):
    rng = np.random.default_rng(0)
    for person in range(12):
        split, label = ("train", "test")[person % 2], ("Mild Dementia", "Non Demented")[person // 2 % 2]
        for number in (100, 101):
            name = f"OAS1_{person:04d}_MR1_mpr-1_{number}.jpg"
            write_image(tmp_path / "data" / split / label / name, blob(rng, 32, 32))
    slices = load().slices
    assert set(slices.split[slices.path.str.startswith("test/")]) == {"test"}
    assert "test" not in set(slices.split[slices.path.str.startswith("train/")])


@pytest.mark.parametrize("names", [("train_set", "test_set"), ("imagesTr", "imagesTs"), ("training_data", "holdout")])
def test_spellings_of_a_split_and_files_outside_of_it(tmp_path, load, names):
    rng = np.random.default_rng(0)
    for person in range(12):
        for number in (1, 2):
            name = f"P{person:02d}_{number}.png"
            write_image(tmp_path / "data" / names[person % 3 == 0] / name, blob(rng, 32, 32))
    slices = load(subject_regex=NAMED).slices
    assert slices.subject_id[slices.split == "test"].nunique() == 4
    write_image(tmp_path / "data" / "more" / "P77_1.png", blob(rng, 32, 32))
    with pytest.raises(UserError, match="more/P77_1.png is in none; say which is which by a group 'split'"):
        load(subject_regex=NAMED)
    with pytest.raises(UserError, match="did you mean --data-dir"):
        layouts.find(tmp_path / "data" / names[0], subject_regex=NAMED)


def test_several_volumes_of_a_session_are_said_and_masks_left_out(tmp_path, load):
    for kind in ("", "_run-2", "_space-MNI", "_desc-brain_mask"):
        volumes(tmp_path / "data", lambda p, kind=kind: bids_name(p).replace("_T1w", f"{kind}_T1w"))
    data = load(**FEW)
    assert len(data.slices) == 6 * 2 * 8
    assert any(notice.startswith("6 sessions have several volumes, and all are used") for notice in data.notices)
    assert any("are left out: 12 (" in notice for notice in data.notices)


def test_freesurfers_visits_are_one_person(tmp_path, load):
    for kind in ("", ".long.base"):
        volumes(tmp_path / "data", lambda p, kind=kind: f"bert{p}{kind}/mri/T1.mgz")
    assert load(**FEW).slices.subject_id.nunique() == 6


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


def test_a_folder_that_is_reached_twice_is_read_twice_and_a_loop_once(tmp_path):
    slices(tmp_path / "data" / "pool")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data" / "pool")
    (tmp_path / "data" / "pool" / "loop").symlink_to(tmp_path / "data")
    with pytest.raises(UserError, match="both are slice 45 of P00"):
        layouts.find(tmp_path / "data", subject_regex=NAMED)


def test_kinds_that_are_not_read_are_counted(tmp_path, load):
    slices(tmp_path / "data")
    for number in range(3):
        (tmp_path / "data" / f"P99_{number}.bmp").write_bytes(b"BM")
    assert "files of kinds that are not read: 3 .bmp" in load(subject_regex=NAMED).notices


def test_an_oblique_volume_is_resampled_to_the_size_that_was_surveyed(tmp_path, load):
    turned = np.eye(4)
    angle = np.radians(20)
    turned[:2, :2] = 2 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned[2, 2] = 2
    volumes(tmp_path / "data", bids_name, change=lambda v, _, p: nibabel.Nifti1Image(v, turned))
    assert len(load(**FEW, voxel_size=2.0).slices) == 48
