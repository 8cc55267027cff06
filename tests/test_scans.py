"""Scans of one's own go through the door of training, and come back on their own grid; errors are one line."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import PIL.Image
import pytest
from conftest import write_adni, write_bids, write_image, write_volume

import dataset
import predict
from reading.decoding import BadFile
from using import scans

IXI = Path(__file__).parent.parent / "pretrained" / "ixi"


def config_of(data, data_dir, **how):
    """What config.json says of data."""
    own = {"data_dir": str(data_dir), **how}
    return {"options": {"data": own}, "data": {"about": data.about, "image_size": data.image_size}}


def read(path, config):
    ((name, (source, scale)),) = scans.find([path]).items()
    return scans.read(name, source, config, scale)


@pytest.mark.parametrize(
    "how",
    [
        {"num_slices": 4, "slice_spacing_mm": 4.0},
        {"num_slices": 4, "slice_spacing_mm": 4.0, "plane": "coronal", "image_size": 48},
        {"num_slices": 4, "slice_spacing_mm": 6.0, "voxel_size": 3.0, "background": "black"},
    ],
)
def test_a_volume_is_read_as_training_reads_it(tmp_path, how):
    data_dir = write_bids(tmp_path / "bids", people=2)
    data = dataset.load(data_dir, cache_dir=tmp_path / "cache", **how)
    one = data.slices[data.slices.subject_id == "sub-01"]
    scan = read(data_dir / one.path.iloc[0], config_of(data, data_dir, **how))
    np.testing.assert_array_equal(scan.images, data.pixels(one))
    np.testing.assert_allclose(scan.slice_positions, one.slice_position, atol=1e-6)
    assert scan.numbers == one.slice_index.tolist()
    assert scan.notices == []


def test_an_image_is_read_as_training_reads_it(tmp_path):
    data_dir = write_adni(tmp_path / "adni", train=2, test=1)
    data = dataset.load(data_dir, cache_dir=tmp_path / "cache")
    config = config_of(data, data_dir)
    found = scans.find([data_dir])
    assert len(found) == len(data.slices)
    for (name, (source, scale)), (_, one) in zip(found.items(), data.slices.iterrows(), strict=True):
        scan = scans.read(name, source, config, scale)
        np.testing.assert_array_equal(scan.images, data.pixels(data.slices.loc[[one.name]]))
        assert scan.notices == []


AXES = {"RAS": np.diag([2.0, 2, 2, 1]), "LPS": np.diag([-2.0, -2, 2, 1])}


@pytest.mark.parametrize("flip", [False, True])
def test_what_is_written_lies_where_the_input_lies(tmp_path, rng, flip):
    """Slices that are written back are the input's own, in either orientation; all other voxels are 0."""
    data_dir = write_bids(tmp_path / "bids", people=1)
    how = {"num_slices": 6, "slice_spacing_mm": 4.0}
    data = dataset.load(data_dir, cache_dir=tmp_path / "cache", **how)
    path = tmp_path / "scan.nii.gz"
    volume = nibabel.load(data_dir / "sub-00/anat/sub-00_T1w.nii.gz")
    if flip:
        turned = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(volume.affine), nibabel.orientations.axcodes2ornt("PSR")
        )
        volume = volume.as_reoriented(turned)
    nibabel.save(volume, path)
    scan = read(path, config_of(data, data_dir, **how))
    low, high = scan.values
    scans.write_volume(scan, low + scan.images * (high - low), tmp_path / "back.nii.gz")
    back = nibabel.load(tmp_path / "back.nii.gz")
    assert back.shape == volume.shape
    np.testing.assert_allclose(back.affine, volume.affine)
    own, written = (nibabel.as_closest_canonical(v).get_fdata() for v in (volume, back))
    assert set(np.flatnonzero(written.any(axis=(0, 1)))) == set(scan.numbers)
    for number in scan.numbers:  # but for 8 bits and what was above the scale
        expected = np.clip(own[:, :, number], low, high)
        np.testing.assert_allclose(written[:, :, number], expected, atol=(high - low) / 255)
    assert ("turned" in " ".join(scan.notices)) is flip


def test_a_volume_of_other_voxels_and_more_air_is_brought_to_those_of_the_run(tmp_path, rng):
    data_dir = write_bids(tmp_path / "bids", people=2)
    how = {"num_slices": 4, "slice_spacing_mm": 4.0}
    data = dataset.load(data_dir, cache_dir=tmp_path / "cache", **how)
    write_volume(tmp_path / "other.nii.gz", np.random.default_rng(0), (48, 60, 140), np.diag([1.0, 1, 1, 1]))
    scan = read(tmp_path / "other.nii.gz", config_of(data, data_dir, **how))
    assert scan.notices == ["voxels of 1 x 1 x 1 mm are resampled to 2 x 2 x 2 mm, those of the run"]
    assert scan.images.shape[1:] == data.images.shape[1:]
    like = data.pixels(data.slices[data.slices.subject_id == "sub-00"])
    assert np.abs(scan.images - like).mean() < 0.1  # the same ellipsoid
    scans.write_volume(scan, scan.images, tmp_path / "back.nii.gz")
    assert nibabel.load(tmp_path / "back.nii.gz").shape == (48, 60, 140)

    inner = nibabel.load(data_dir / "sub-00/anat/sub-00_T1w.nii.gz").get_fdata()
    wide = np.zeros((90, 80, 70), "float32")
    wide[50:74, 20:50] = inner
    nibabel.save(nibabel.Nifti1Image(wide, np.diag([2.0, 2, 2, 1])), tmp_path / "wide.nii.gz")
    scan = read(tmp_path / "wide.nii.gz", config_of(data, data_dir, **how))
    assert "cropped to 32 around the head" in scan.notices[0]
    back = scans.slices_of(scan, scan.images)
    assert back.shape == (4, 80, 90)
    lit = np.nonzero(back[1] > 0.3)
    assert lit[1].min() >= 50 - 16
    assert lit[1].max() <= 74 + 16
    np.testing.assert_allclose(scan.images.sum(axis=(1, 2)), like.sum(axis=(1, 2)), rtol=0.02)


def test_a_larger_image_is_shrunk_and_written_back_at_its_size(tmp_path, rng):
    data_dir = write_adni(tmp_path / "adni", train=2, test=1)
    data = dataset.load(data_dir, cache_dir=tmp_path / "cache")
    y, x = np.mgrid[:90, :120]
    write_image(tmp_path / "large.png", ((np.hypot(y - 45, x - 60) < 30) * 200).astype("uint8"))
    scan = read(tmp_path / "large.png", config_of(data, data_dir))
    assert scan.images.shape == (1, 32, 32)
    assert scan.notices == ["its 90 x 120 pixels are shrunk to 24 x 32: the run's slices hold 32"]
    scans.write_image(scan, scan.images[0], tmp_path / "back.png")
    back = np.asarray(PIL.Image.open(tmp_path / "back.png"), float)
    assert back.shape == (90, 120)
    assert np.abs(back - np.asarray(PIL.Image.open(tmp_path / "large.png"), float)).mean() < 12
    mask = np.zeros((90, 120), "uint8")
    mask[45:, :] = 255
    write_image(tmp_path / "mask.png", mask)
    _, square = scans.read_mask(tmp_path / "mask.png", scan)
    assert square[16:28].all()
    assert not square[:16].any()
    assert not square[28:].any()
    write_image(tmp_path / "small.png", mask[:40])
    with pytest.raises(BadFile, match="a mask of 40 x 120 pixels, for an image of 90 x 120"):
        scans.read_mask(tmp_path / "small.png", scan)


# -- On the shipped weights ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A head-like volume of 2 mm, as IXI's, and slices drawn from the shipped run."""
    folder = tmp_path_factory.mktemp("scans")
    write_volume(folder / "head.nii.gz", np.random.default_rng(0), (80, 100, 85))
    drawn = ["--run-dir", str(IXI), "--num-samples", "2", "--output-dir", str(folder / "drawn")]
    assert predict.main(drawn) == 0
    return folder


def call(place, capsys, name, *arguments):
    """predict.py on the shipped run: its exit status, what it says on standard output and on standard error."""
    common = ["--run-dir", str(IXI), "--output-dir", str(place / name)]
    status = predict.main([*common, *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_reconstructions_codes_and_bits_of_a_volume_and_of_images(place, capsys):
    status, out, err = call(place, capsys, "out", "--input", place / "head.nii.gz", place / "drawn" / "samples")
    assert (status, err) == (0, "")
    assert "warning: head is unlike the run's data" in out  # an ellipsoid without a brain
    folder = place / "out"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name, kind in (("head", "nii.gz"), ("sample_0000", "png"), ("sample_0001", "png")):
        assert {f"{name}/{of}.{kind}" for of in ("reconstruction", "difference", "bits")} <= names
        assert f"{name}/codes.npz" in names
    assert {"inputs.csv", "inputs.png"} <= names
    with np.load(folder / "head" / "codes.npz") as file:
        assert file["codes"].shape == file["bits"].shape == (32, 32, 32)
        assert file["coarse"].shape == (32, 8, 8)
    volume = nibabel.load(place / "head.nii.gz")
    for of in ("reconstruction", "difference", "bits"):
        made = nibabel.load(folder / "head" / f"{of}.nii.gz")
        assert made.shape == volume.shape
        np.testing.assert_allclose(made.affine, volume.affine)
    rows = pd.read_csv(folder / "inputs.csv", keep_default_na=False)
    assert rows.input.tolist() == ["head", "sample_0000", "sample_0001"]
    assert rows.slices.tolist() == [32, 1, 1]
    assert {"psnr_db", "outside", "notices", "bits_per_code_of_test_people"} <= {*rows}
    assert rows.outside[0]
    # A slice that the model drew is as likely as real ones are, and its own codes tell it better than real ones'.
    assert rows.outside[1].startswith("SSIM inside the head")
    assert "bits" not in rows.outside[1]
    assert rows.ssim[1] > 0.98


def test_completions_leave_all_else_as_it_is(place, capsys):
    image = np.asarray(PIL.Image.open(place / "drawn" / "samples" / "sample_0000.png"))
    mask = np.zeros_like(image)
    mask[50:80, 40:75] = 255
    write_image(place / "mask.png", mask)
    asked = ("--input", place / "drawn" / "samples" / "sample_0000.png", "--mask", place / "mask.png")
    assert call(place, capsys, "completed", *asked, "--num-samples", 2)[0] == 0
    drawn = [np.asarray(PIL.Image.open(place / "completed" / f"completion_{i:04d}.png"), int) for i in range(2)]
    for one in drawn:
        np.testing.assert_array_equal(one[mask == 0], image[mask == 0])
    assert (drawn[0] != drawn[1])[mask > 0].mean() > 0.2
    assert (place / "completed" / "completions.png").exists()
    write_image(place / "all.png", np.full_like(image, 255))
    status, _, err = call(place, capsys, "completed", *asked[:3], place / "all.png")
    assert (status, err.strip()) == (1, "error: the mask covers all of the image: nothing to complete")
    write_image(place / "none.png", np.zeros_like(image))
    status, _, err = call(place, capsys, "completed", *asked[:3], place / "none.png")
    assert (status, err.strip()) == (1, "error: the mask covers nothing of the image: nothing to complete")
    status, _, err = call(place, capsys, "completed", "--input", place / "head.nii.gz", *asked[2:])
    assert status == 1
    assert "a volume, and --mask is for one image" in err


def test_anomaly_maps_light_up_where_something_is_planted(place, capsys):
    image = np.asarray(PIL.Image.open(place / "drawn" / "samples" / "sample_0000.png")).copy()
    image[60:72, 40:52] = 255
    write_image(place / "planted.png", image)
    asked = ("--input", place / "planted.png", place / "drawn" / "samples" / "sample_0001.png")
    assert call(place, capsys, "uncommon", *asked, "--anomaly")[0] == 0
    found = np.asarray(PIL.Image.open(place / "uncommon" / "planted" / "anomaly.png"), float)
    assert found[60:72, 40:52].mean() > 3 * found[image > 0].mean()
    assert (place / "uncommon" / "anomalies.png").exists()


def test_what_cannot_be_used_is_a_line_and_the_rest_is_done(place, capsys):
    folder = place / "bad"
    write_image(folder / "a_black.png", np.zeros((128, 128), "uint8"))
    write_image(folder / "b_photograph.png", np.random.default_rng(0).integers(0, 255, (90, 120, 3)).astype("uint8"))
    (folder / "c_text.png").write_text("no image")
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 20, 20), "int16"), np.eye(4)), folder / "d_empty.nii.gz")
    write_volume(folder / "e_short.nii.gz", np.random.default_rng(0), (80, 100, 12))
    status, out, err = call(place, capsys, "mended", "--input", folder)
    assert status == 1
    lines = err.strip().splitlines()
    assert [line.split(": ")[0] for line in lines] == ["error"] * 5
    assert "a_black.png: the image is black" in lines[0]
    assert "c_text.png: not a readable image" in lines[1]
    assert "d_empty.nii.gz: every value is 0" in lines[2]
    assert "e_short.nii.gz: its 12 axial slices of 2 mm do not hold 32 slices 2 mm apart" in lines[3]
    assert "--num-slices" not in lines[3]
    assert lines[4] == "error: 4 of 5 inputs could not be used; the others are done"
    assert "note: b_photograph: a colour image, made grey" in out
    assert "warning: b_photograph is unlike the run's data: " in out
    assert len((place / "mended" / "inputs.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "nowhere.png"], "nowhere.png: no such file or folder"),
        (["--mask", "mask.png"], "--mask: is for a scan, which --input gives"),
        (["--anomaly"], "--anomaly: is for a scan, which --input gives"),
        (["--input", "README.md"], "README.md: not a kind of file that is read"),
        (["--input", "README.md", "--label", "AD"], "--label AD: the run knows no labels"),
        (["--input", "README.md", "--mask", "README.md", "--anomaly"], "--mask and --anomaly: give one of them"),
    ],
)
def test_wrong_arguments_are_one_line(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(IXI.parent.parent)
    assert predict.main(["--run-dir", str(IXI), "--output-dir", str(tmp_path / "out"), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_folder_of_dicom_says_how_to_convert(tmp_path, capsys):
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "1.dcm").write_bytes(b"\0" * 128 + b"DICM")
    asked = ["--run-dir", str(IXI), "--output-dir", str(tmp_path / "out"), "--input", str(tmp_path / "dicom")]
    assert predict.main(asked) == 1
    assert "dcm2niix" in capsys.readouterr().err


def test_nothing_private_is_in_the_shipped_runs():
    for run in IXI.parent.iterdir():
        if run.is_dir():
            config = json.loads((run / "config.json").read_text())
            assert not Path(config["options"]["data"]["data_dir"]).is_absolute()
            assert not Path(config["options"]["data"]["cache_dir"]).is_absolute()
            assert sum(path.stat().st_size for path in run.iterdir()) < 10e6
