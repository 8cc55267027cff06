"""Whose slice is it, in which split does he stand, and what is said of bad files."""

import hashlib

import nibabel
import numpy as np
import PIL.Image
import pytest
from conftest import blob, make_slices, write_adni, write_bids, write_image, write_oasis, write_volume

import dataset
from reading import cache, decoding
from system.console import UserError
from using import scans

FRACTIONS = {"validation_fraction": 0.1, "test_fraction": 0.15}


def people_of(slices):
    """People of each split."""
    return {split: set(of_split.subject_id) for split, of_split in slices.groupby("split")}


def assert_nobody_twice(slices):
    sides = people_of(slices)
    assert set(sides) == {"train", "validation", "test"}
    assert sum(len(people) for people in sides.values()) == slices.subject_id.nunique()


def of_person(slices, person):
    return slices[slices.subject_id == person]


# -- layouts ------------------------------------------------------------------------------------------------------


def test_oasis_keeps_its_own_split_and_leaves_label_maps_aside(tmp_path, cache_dir):
    data = dataset.load(write_oasis(tmp_path / "oasis"), cache_dir=cache_dir)
    slices, notices = dataset.split(data.slices, 0)
    assert data.layout == "oasis"
    assert len(slices) == 8 * 3
    assert {split: len(people) for split, people in people_of(slices).items()} == {
        "train": 4,
        "validation": 2,
        "test": 2,
    }
    assert slices.subject_id[0] == "case_007"  # the first path is in keras_png_slices_test
    assert notices == []
    assert_nobody_twice(slices)


def test_oasis_case_in_two_parts_is_named_and_moved_to_test(tmp_path, cache_dir):
    folder = write_oasis(tmp_path / "oasis")
    write_image(folder / "keras_png_slices_test" / "case_001_slice_9.nii.png", blob(np.random.default_rng(1), 32, 32))
    slices, notices = dataset.split(dataset.load(folder, cache_dir=cache_dir).slices, 0)
    assert set(of_person(slices, "case_001").split) == {"test"}
    assert "case_001" in notices[0]
    assert_nobody_twice(slices)


def test_adni_cuts_validation_from_train_by_person_and_label(tmp_path, cache_dir):
    data = dataset.load(write_adni(tmp_path / "adni", train=20), cache_dir=cache_dir)
    slices, _ = dataset.split(data.slices, 0)
    assert data.layout == "adni"
    assert data.images.shape[1:] == (32, 32)
    assert_nobody_twice(slices)
    assert set(slices.split[slices.path.str.contains("/test/")]) == {"test"}
    chosen = slices[slices.split == "validation"].drop_duplicates("subject_id")
    assert sorted(chosen.label) == ["AD", "AD", "NC", "NC"]
    assert set(slices.slice_position) == {0.0, 0.5, 1.0}


def test_adni_ids_on_both_sides_or_in_both_classes_are_named_and_kept_together(tmp_path, cache_dir):
    folder = write_adni(tmp_path / "adni")
    image = blob(np.random.default_rng(1), 30, 32)
    write_image(folder / "AD_NC/test/AD/1001_90.jpeg", image)
    write_image(folder / "AD_NC/train/NC/1002_90.jpeg", image)
    slices, notices = dataset.split(dataset.load(folder, cache_dir=cache_dir).slices, 0)
    assert set(of_person(slices, "1001").split) == {"test"}
    assert any("1001" in notice and "both sides" in notice for notice in notices)
    assert any("1002" in notice and "label" in notice for notice in notices)
    assert_nobody_twice(slices)


def test_bids_reads_labels_and_keeps_every_visit_of_a_person_together(tmp_path, cache_dir):
    folder = write_bids(tmp_path / "bids", people=10, sessions=2)
    data = dataset.load(folder, num_slices=8, slice_spacing_mm=4, cache_dir=cache_dir)
    slices, _ = dataset.split(data.slices, 0)
    assert data.layout == "bids"
    assert len(slices) == 10 * 2 * 8
    assert_nobody_twice(slices)
    assert set(of_person(slices, "sub-03").session) == {"ses-0", "ses-1"}
    labels = [of_person(slices, f"sub-{i:02d}").label.unique().tolist() for i in range(3)]
    assert labels == [[""], ["patient"], ["control"]]
    assert data.labels == ["control", "patient"]


def test_volume_axes_come_from_the_affine(tmp_path):
    rng = np.random.default_rng(0)
    write_volume(tmp_path / "a.nii.gz", rng)
    canonical = nibabel.load(tmp_path / "a.nii.gz")
    voxels = np.asarray(canonical.dataobj).copy()
    voxels[14:16, 20:24, 30:40] = 900  # a mark on the right, in front
    affine = np.diag([2.0, 2, 2, 1])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "ras.nii.gz")
    turned = np.zeros((4, 4))  # posterior, superior, right, as IXI's volumes lie
    turned[0, 2], turned[1, 0], turned[2, 1], turned[3, 3] = 2, -2, 2, 1
    nibabel.save(nibabel.Nifti1Image(voxels[:, ::-1].transpose(1, 2, 0), turned), tmp_path / "psr.nii.gz")
    numbers, slices = decoding.read_volume(tmp_path / "ras.nii.gz", decoding.How(num_slices=16))[:2]
    same_numbers, same_slices = decoding.read_volume(tmp_path / "psr.nii.gz", decoding.How(num_slices=16))[:2]
    assert numbers == same_numbers
    np.testing.assert_array_equal(slices, same_slices)
    brightest = np.argwhere(slices[numbers.index(35)] == 255)
    assert (brightest[:, 0] < 15).all()  # rows run from anterior
    assert (brightest[:, 1] >= 12).all()  # columns run to the right


def test_any_folder_with_a_subject_regex(tmp_path, cache_dir):
    rng = np.random.default_rng(0)
    for person in range(8):
        for k in range(6):
            suffix = ("png", "tif")[k % 2]
            write_image(tmp_path / "x" / f"{'ab'[person % 2]}/P{person}-{k}.{suffix}", blob(rng, 20, 24))
    regex = r"(?P<label>[ab])/P(?P<subject>\d)-(?P<slice>\d)"
    data = dataset.load(tmp_path / "x", subject_regex=regex, cache_dir=cache_dir)
    slices, _ = dataset.split(data.slices, 0)
    assert data.layout == "regex"
    assert len(slices) == 48
    assert set(of_person(slices, "3").label) == {"b"}
    assert_nobody_twice(slices)


def test_slices_a_voxel_apart_are_taken_although_the_voxel_is_a_rounding_error_too_large(tmp_path, cache_dir):
    for i in range(4):  # the brain's middle lies half way between two slices
        path = tmp_path / "bids" / f"sub-{i}" / "anat" / f"sub-{i}_T1w.nii.gz"
        write_volume(path, np.random.default_rng(0), shape=(24, 30, 72), affine=np.diag([2, 2, 1.0000007, 1]))
    data = dataset.load(tmp_path / "bids", num_slices=20, slice_spacing_mm=1, cache_dir=cache_dir)
    numbers = data.slices.slice_index[:20]
    assert (np.diff(numbers) == 1).all()


def test_slices_are_padded_and_not_enlarged(tmp_path, cache_dir):
    data = dataset.load(write_adni(tmp_path / "adni", height=30, width=40), cache_dir=cache_dir)
    assert data.image_size == 64
    original = np.asarray(PIL.Image.open(tmp_path / "adni" / data.slices.path[0]))
    image = data.images[data.slices.row[0]]
    np.testing.assert_array_equal(image[17:47, 12:52], original)
    assert image.sum() == original.sum()


def test_larger_slices_are_averaged_and_not_picked(tmp_path, cache_dir):
    folder = write_oasis(tmp_path / "oasis", size=64)
    stripes = np.tile(np.array([[0], [200]], "uint8"), (32, 64))
    for path in folder.glob("keras_png_slices_*/case*"):
        write_image(path, stripes)
    data = dataset.load(folder, image_size=16, cache_dir=cache_dir)
    inner = data.images[0][4:-4, 4:-4].astype(float)
    np.testing.assert_allclose(inner, 100, atol=15)


def test_pixels_of_a_volume_become_square(tmp_path):
    write_volume(tmp_path / "a.nii.gz", np.random.default_rng(0), shape=(24, 60, 70), affine=np.diag([2.0, 1, 2, 1]))
    how = decoding.How(num_slices=8, slice_spacing_mm=4)
    _, stack, _, _ = decoding.read_volume(tmp_path / "a.nii.gz", how)
    assert stack.shape == (8, 30, 24)


# -- splits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("people", [3, 7, 50, 143])
@pytest.mark.parametrize("labels", [("",), ("AD", "NC"), ("a", "b", "")])
def test_splits_are_disjoint_complete_and_of_the_asked_for_size(people, labels):
    slices, _ = dataset.split(make_slices(people, labels, sessions=("1", "2")), 5, **FRACTIONS)
    assert_nobody_twice(slices)
    sides = people_of(slices)
    assert len(sides["test"]) == max(1, round(0.15 * people))
    assert abs(len(sides["validation"]) - max(1, 0.1 * people)) <= 1


def test_splits_are_stratified():
    slices, _ = dataset.split(make_slices(200, ("AD", "NC", "NC", "NC")), 0, **FRACTIONS)
    for split in ("train", "validation", "test"):
        people = slices[slices.split == split].drop_duplicates("subject_id")
        share = (people.label == "AD").mean()
        assert share == pytest.approx(0.25, abs=0.06)


def test_splits_depend_on_the_seed_and_not_on_the_order():
    slices = make_slices(60)
    first, _ = dataset.split(slices, 0)
    assert first.equals(dataset.split(slices, 0)[0])
    assert people_of(first) == people_of(dataset.split(slices[::-1], 0)[0])
    assert people_of(first)["test"] != people_of(dataset.split(slices, 1)[0])["test"]


def test_a_person_in_two_splits_is_caught():
    torn = make_slices(2)
    torn[["split", "subject_id"]] = [["train", "p0000"], ["test", "p0000"]] * 2
    with pytest.raises(UserError, match="more than one split: p0000"):
        dataset.assert_disjoint(torn)


def test_too_few_people():
    with pytest.raises(UserError, match="2 people make .* give data of more people"):
        dataset.split(make_slices(2), 0)


# -- cache --------------------------------------------------------------------------------------------------------


def test_cache_is_used_again_and_rebuilt_when_a_file_changes(tmp_path, cache_dir):
    folder = write_oasis(tmp_path / "oasis")
    first = dataset.load(folder, cache_dir=cache_dir)
    assert isinstance(first.images, np.memmap)
    files = {path: path.stat().st_mtime_ns for path in cache_dir.iterdir()}
    assert len(files) == 2
    assert dataset.load(folder, cache_dir=cache_dir).fingerprint == first.fingerprint
    assert {path: path.stat().st_mtime_ns for path in cache_dir.iterdir()} == files

    victim = folder / first.slices.path[0]
    write_image(victim, np.full((32, 32), 200, "uint8"))
    second = dataset.load(folder, cache_dir=cache_dir)
    assert second.fingerprint != first.fingerprint
    assert (second.images[0] == 200).all()
    assert dataset.load(folder, image_size=64, cache_dir=cache_dir).images.shape[1:] == (64, 64)


def test_a_copy_of_the_data_has_the_same_fingerprint(tmp_path, cache_dir):
    a = dataset.load(write_oasis(tmp_path / "a"), cache_dir=cache_dir)
    b = dataset.load(write_oasis(tmp_path / "b"), cache_dir=cache_dir)
    assert a.fingerprint == b.fingerprint


def test_an_interrupted_build_leaves_nothing_and_starts_again(tmp_path, cache_dir, monkeypatch):
    folder = write_oasis(tmp_path / "oasis")
    bad = sorted(folder.rglob("case_*.png"))[2]
    bad.write_bytes(bad.read_bytes()[:300])
    whole = dataset.load(folder, cache_dir=tmp_path / "other", skip_bad_files=True)
    fit, decoded = decoding.fit_square, []

    def stopped(image, *sizes):
        decoded.append(image)
        if len(decoded) == 8:
            raise KeyboardInterrupt
        return fit(image, *sizes)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "fit_square", stopped)
        with pytest.raises(KeyboardInterrupt):
            dataset.load(folder, cache_dir=cache_dir, skip_bad_files=True)
    assert list(cache_dir.iterdir()) == []
    data = dataset.load(folder, cache_dir=cache_dir, skip_bad_files=True)
    assert data.fingerprint == whole.fingerprint
    assert data.slices.equals(whole.slices)
    assert [name for name, _ in data.bad_files] == [str(bad)]
    np.testing.assert_array_equal(data.images, whole.images)


def test_a_cache_without_its_manifest_is_built_again(tmp_path, cache_dir):
    folder = write_oasis(tmp_path / "oasis")
    whole = np.array(dataset.load(folder, cache_dir=cache_dir).images)
    next(cache_dir.glob("*.json")).unlink()
    next(cache_dir.glob("*.npy")).write_bytes(b"something else")
    np.testing.assert_array_equal(dataset.load(folder, cache_dir=cache_dir).images, whole)


def test_nothing_is_written_into_the_data_folder(tmp_path):
    folder = write_oasis(tmp_path / "oasis")
    with pytest.raises(UserError, match="inside the data folder"):
        dataset.load(folder, cache_dir=folder / "cache")


# -- bad input ----------------------------------------------------------------------------------------------------


def test_16_bit_and_colour_slices_are_converted_and_said(tmp_path, cache_dir):
    folder = write_oasis(tmp_path / "oasis")
    train = folder / "keras_png_slices_train"
    grey = np.asarray(PIL.Image.open(train / "case_001_slice_0.nii.png"))
    write_image(train / "case_001_slice_0.nii.png", (grey.astype("uint16") * 16))
    write_image(train / "case_001_slice_1.nii.png", np.stack([grey] * 3, axis=-1))
    data = dataset.load(folder, cache_dir=cache_dir)
    notes = " ".join(data.notices)
    assert "1 images of more than 8 bits" in notes
    assert "1 colour images" in notes
    rows = {path.split("/")[-1]: row for path, row in zip(data.slices.path, data.slices.row, strict=True)}
    np.testing.assert_array_equal(data.images[rows["case_001_slice_1.nii.png"]], grey)
    scaled = data.images[rows["case_001_slice_0.nii.png"]].astype(float)
    np.testing.assert_allclose(scaled, grey * (255 / grey.max()), atol=0.51)


@pytest.mark.parametrize(
    ("description", "title", "credit"),
    [
        (
            '{"Name": "Some brains", "Authors": ["A. N.", "B. O."], "License": "CC0"}',
            "Some brains",
            "A. N., B. O.; CC0",
        ),
        ('{"Name": "x", "Authors": "M. Z.", "License": "CC0"}', "x", "M. Z.; CC0"),
        ('{"Authors": [{"name": "A", "email": "a@b"}, {"given": "B", "family": "C"}, null, 5]}', "data", "A, B C"),
        ('{"Name": null, "Authors": 5, "License": ["CC0"]}', "data", "CC0"),
        ('{"Name": "two\\nlines \\ud800"}', "two lines ?", ""),
        ("[1, 2]", "data", ""),
        ('"text"', "data", ""),
        ("null", "data", ""),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_any_description_gives_the_credit_that_it_can(tmp_path, description, title, credit, encoding):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_description.json").write_text(description, encoding=encoding)
    assert dataset.describe(tmp_path / "data") == (title, credit, [])


@pytest.mark.parametrize("content", [b'{"Name": "Some br', b"\xff\xfe\x00", b"", b"[" * 100_000])
def test_a_description_that_is_not_json_is_a_notice(tmp_path, cache_dir, content):
    folder = write_oasis(tmp_path / "oasis", train=1, validate=0, test=0)
    (folder / "dataset_description.json").write_bytes(content)
    data = dataset.load(folder, cache_dir=cache_dir)
    assert (data.title, data.credit) == ("oasis", "")
    assert data.notices[-1].startswith("dataset_description.json names nobody to credit: it is not JSON (")


def test_the_first_slice_that_differs_is_named():
    before = make_slices(3, ("AD", "NC"))
    assert dataset.first_difference(before[::-1], before) == ""
    assert dataset.first_difference(before[:3], before) == "slice 1 of 11 is no longer there"
    assert dataset.first_difference(before, before[1:]) == "slice 0 of 00 is new"
    other = before.assign(label=["AD", "AD", "AD", "NC", "AD", "AD"])
    assert dataset.first_difference(other, before) == "slice 0 of 10 is of p0001 AD, and was of p0001 NC"


def test_each_kind_that_a_file_can_have_is_told_of_one_and_of_many():
    assert set(cache.FOUND) - set(scans.TOLD) == {"dark", "black", "copy"}  # which are told of a data set alone


# -- feeding ------------------------------------------------------------------------------------------------------


def test_every_epoch_feeds_every_slice_once_in_an_order_of_its_own(tmp_path, cache_dir):
    data = dataset.prepare(write_oasis(tmp_path / "oasis", train=7), cache_dir=cache_dir)
    batches = dataset.ChangedImages(data, 32, 4, seed=3)
    assert len(batches) == 6

    def epoch(number):
        batches.set_epoch(number)
        return np.concatenate([batches[i][0] for i in range(len(batches))])

    first, again, second = epoch(0), epoch(0), epoch(1)
    assert first.shape == (21, 32, 32, 1)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)
    expected = np.sort(data.images[data.of("train").row].sum(axis=(1, 2)))
    for images in (first, second):
        np.testing.assert_array_equal(np.sort((images * 255).round().sum(axis=(1, 2, 3))), expected)


def test_changed_slices_are_the_slices_elsewhere_and_black_at_the_edge(rng):
    images = rng.integers(1, 256, (5, 6, 6)).astype("uint8")
    changes = np.array([(0, 0, 0), (0, 2, -3), (1, -1, 1), (0, 3, 0), (1, 0, 0)])
    for image, changed, (mirrored, d, r) in zip(images, dataset.change(images, changes), changes, strict=True):
        image = image[:, ::-1] if mirrored else image
        for y in range(6):
            for x in range(6):
                inside = 0 <= y - d < 6 and 0 <= x - r < 6
                assert changed[y, x] == (image[y - d, x - r] if inside else 0)


@pytest.mark.parametrize("size", [4, 5, 12])
def test_a_shrunk_slice_is_the_mean_of_what_each_pixel_covers(rng, size):
    images = rng.integers(0, 256, (2, 12, 12)).astype("uint8")
    fine = np.kron(images, np.ones((size, size)))  # each pixel of either size is a whole number of these
    expected = fine.reshape(2, size, 12, size, 12).mean(axis=(2, 4))
    np.testing.assert_allclose(dataset.shrink(images, size), expected, rtol=1e-5)


def test_an_epoch_of_images_mirrors_half_and_moves_by_the_limit_at_most(tmp_path, cache_dir):
    data = dataset.prepare(write_oasis(tmp_path / "oasis", train=7), cache_dir=cache_dir)
    batches = dataset.ChangedImages(data, 16, 21, 3, max_shift=2, mirrored=0.5)
    batches.set_epoch(1)
    mirrored, *moved = batches.changes.T
    assert 4 <= mirrored.sum() <= 17
    assert set(np.ravel(moved)) == {-2, -1, 0, 1, 2}
    (images,) = batches[0]
    expected = dataset.shrink(dataset.change(data.images[batches.rows], batches.changes), 16) / 255
    np.testing.assert_allclose(images[..., 0], expected, atol=1e-6)


def test_the_split_has_the_fingerprint_that_it_had():
    """Of people and paths with odd names, too; the file itself has the slice positions beside."""
    slices = make_slices(3, ("AD", "", 'a "b", c'), split="train")
    text = "path,subject_id,session,slice_index,label,split\n" + "".join(
        f"{p}{k},p000{p},,{k},{label},train\n" for p, label in enumerate(("AD", "", '"a ""b"", c"')) for k in range(2)
    )
    assert dataset.splits_sha256(slices) == hashlib.sha256(text.encode()).hexdigest()


def test_a_prior_is_told_labels_from_one_on_and_zero_where_there_is_none():
    slices = make_slices(3, ("NC", "", "AD"), per_scan=1)
    inputs = dataset.prior_inputs(slices, ["AD", "NC"], codes=np.zeros((3, 2, 2), "uint16"))
    assert inputs["label"].tolist() == [2, 0, 1]
    chosen = dataset.select(inputs, np.array([True, False, True]))
    assert chosen["label"].tolist() == [2, 1]
    assert chosen["codes"].dtype == "int32"
