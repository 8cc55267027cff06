"""Scans of one's own go through the door of training, and come back on their own grid; errors are one line."""

import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import PIL.Image
import pytest
from conftest import write_adni, write_bids, write_image, write_oasis, write_volume

import dataset
import predict
from evaluation import figures
from reading.decoding import BadFile
from running import run_folder
from system.console import UserError
from using import inputs, scans

IXI = Path(__file__).parent.parent / "pretrained" / "ixi"


def config_of(data, data_dir, **how):
    """What config.json says of data."""
    own = {"data_dir": str(data_dir), **how}
    return {"options": {"data": own}, "data": {"about": data.about, "image_size": data.image_size}}


def read(path, config):
    ((name, (source, scale)),) = scans.find([path])[0].items()
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
    found, _ = scans.find([data_dir])
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
    scans.write_volume(scan, scans.in_volume(scan, low + scan.images * (high - low)), tmp_path / "back.nii.gz")
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
    scans.write_volume(scan, scans.in_volume(scan, scan.images), tmp_path / "back.nii.gz")
    assert nibabel.load(tmp_path / "back.nii.gz").shape == (48, 60, 140)

    inner = nibabel.load(data_dir / "sub-00/anat/sub-00_T1w.nii.gz").get_fdata()
    wide = np.zeros((90, 80, 70), "float32")
    wide[50:74, 20:50] = inner
    nibabel.save(nibabel.Nifti1Image(wide, np.diag([2.0, 2, 2, 1])), tmp_path / "wide.nii.gz")
    scan = read(tmp_path / "wide.nii.gz", config_of(data, data_dir, **how))
    assert scan.notices == ["its slices of 80 x 90 pixels are cropped to the run's 32 x 32 around the head"]
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
    scans.write_image(scan, scan.images[0], tmp_path / "back.png", {})
    back = np.asarray(PIL.Image.open(tmp_path / "back.png"), float)
    assert back.shape == (90, 120)
    assert np.abs(back - np.asarray(PIL.Image.open(tmp_path / "large.png"), float)).mean() < 12


def test_all_of_a_folder_is_done_and_what_is_left_out_is_named(tmp_path):
    for name in ("IXI059-HH-1284-T1.nii.gz", "patient_A.nii.gz", "sub/patient_B.nii", "a.bmp", "1.dcm", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"0")
    found, notices = scans.find([tmp_path])
    assert [*found] == ["IXI059-HH-1284-T1", "patient_A", "sub_patient_B"]
    assert notices == [f"{tmp_path}: files of kinds that are not read: 1 .dcm, 1 .bmp"]
    data_dir = write_oasis(tmp_path / "oasis", train=1, validate=1, test=1, slices=1)
    write_image(data_dir / "other.png", np.zeros((32, 32), "uint8"))
    found, notices = scans.find([data_dir])
    assert len(found) == 4
    assert "label maps are left out: 3 (keras_png_slices_seg_test/" in notices[0]
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.webp").write_bytes(b"0")
    with pytest.raises(UserError, match=r"no images found; looked for PNG.*not read: 1 \.webp$"):
        scans.find([tmp_path / "none"])


def test_a_head_whose_top_is_not_in_the_image_is_told(tmp_path):
    write_volume(tmp_path / "head.nii.gz", np.random.default_rng(0), (80, 100, 85))
    volume = nibabel.load(tmp_path / "head.nii.gz")
    nibabel.save(volume.slicer[:, :, :65], tmp_path / "cut.nii.gz")
    for name, told in (("head", False), ("cut", True)):
        notices = read(tmp_path / f"{name}.nii.gz", shipped("ixi")).notices
        assert any("the top of the head is not in the image" in line for line in notices) is told


# -- Masks --------------------------------------------------------------------------------------------------------


def shipped(name):
    return json.loads((IXI.parent / name / "config.json").read_text())


@pytest.mark.parametrize(
    ("run", "size", "kind"),
    [("ds002748", 224, "uint8"), ("ds002748", 256, "uint8"), ("ds002748", 300, "uint16"), ("ixi", 128, "uint8")],
)
def test_nothing_of_what_lies_under_a_mask_is_seen(tmp_path, rng, run, size, kind):
    """The same picture with a hidden square of black or white: what the models take is equal to the bit."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    image = np.where(np.hypot(x, y) < 0.4, 120 + 40 * np.sin(20 * x) + rng.normal(0, 5, x.shape), 3).astype(kind)
    mask = np.zeros(image.shape, bool)
    mask[size // 20 : size // 3, size // 3 : size // 2 + 3] = True  # over the edge of the head
    seen = []
    for hidden in (0, 255):
        image[mask] = hidden
        PIL.Image.fromarray(image).save(tmp_path / "slice.png")
        scan, square = scans.hide(read(tmp_path / "slice.png", shipped(run)), mask, shipped(run))
        seen.append(scan.images)
    np.testing.assert_array_equal(*seen)
    assert square.mean() == pytest.approx(mask.mean(), rel=0.1)


def test_every_pixel_that_a_mask_touches_is_hidden(tmp_path):
    """Lines of three pixels on an image of 1024, which is shrunk to 128; and the square's edges where it is padded."""
    mask = np.zeros((1024, 512), bool)
    mask[20::50], mask[:, 0] = True, True
    PIL.Image.fromarray(np.tile(np.arange(512) % 200, (1024, 1)).astype("uint8")).save(tmp_path / "slice.png")
    _, square = scans.hide(read(tmp_path / "slice.png", shipped("ixi")), mask, shipped("ixi"))
    assert square[np.arange(20, 1024, 50) // 8, 32:96].all()
    assert square[:, 32].all()
    assert not square[:, :32].any()
    assert not square[0, 33:].any()


def test_what_a_mask_means_is_told(tmp_path, rng):
    image = (rng.random((64, 64)) * 200 + 1).astype("uint8")
    hole = np.zeros(image.shape, bool)
    hole[10:20, 30:50] = True
    write_image(tmp_path / "slice.png", image)
    scan = read(tmp_path / "slice.png", shipped("ixi"))
    labels = np.where(hole, 1 + np.arange(64) % 3, 0).astype("uint8")
    soft = np.clip(hole * 250.0 + rng.random(hole.shape) * 60, 0, 255).astype("uint8")
    alpha = np.where(hole, 0, 255).astype("uint8")
    masks = {
        "labels": (labels, ""),
        "deep": (labels.astype("uint16") * 3000, ""),
        "one": ((hole * 1).astype("uint8"), ""),
        "painted": (np.stack([*[np.full(hole.shape, 255)] * 3, 255 - alpha], axis=2).astype("uint8"), ""),
        "soft": (soft, "many grey levels"),
        "pierced": (np.stack([image, image, image, alpha], axis=2), "what is transparent is drawn anew"),
        "black": (np.stack([0 * alpha, 0 * alpha, 0 * alpha, alpha], axis=2), "what is transparent is drawn anew"),
    }
    for name, (pixels, told) in masks.items():
        write_image(tmp_path / f"{name}.png", pixels)
        found, notices = scans.read_mask(tmp_path / f"{name}.png", scan)
        np.testing.assert_array_equal(found, hole, err_msg=name)
        assert told in " ".join(notices)
        assert bool(told) == bool(notices)
    for pixels, message in (
        (labels[:40], "a mask of 40 x 64 pixels, for an image of 64 x 64"),
        (0 * labels, "the mask covers nothing of the image: nothing to complete"),
        (0 * labels + 255, "the mask covers all of the image: nothing to complete"),
    ):
        write_image(tmp_path / "bad.png", pixels)
        with pytest.raises(UserError, match=message):
            scans.read_mask(tmp_path / "bad.png", scan)
    (tmp_path / "no.png").write_text("no image")
    with pytest.raises(UserError) as raised:
        scans.read_mask(tmp_path / "no.png", scan)
    assert "--skip-bad-files" not in str(raised.value)


@pytest.mark.parametrize("kind", ["uint16", "rgb", "float32"])
def test_outside_a_mask_an_image_keeps_its_own_values(tmp_path, rng, kind):
    image = rng.random((48, 40, 3)) * {"uint16": 4095, "rgb": 255, "float32": 1}[kind]
    image = image.astype("uint8") if kind == "rgb" else image[..., 0].astype(kind)
    mask = np.zeros((48, 40), bool)
    mask[10:20, 5:15] = True
    path = tmp_path / ("slice.tif" if kind == "float32" else "slice.png")
    write_image(path, image)
    scan, _ = scans.hide(read(path, shipped("ixi")), mask, shipped("ixi"))
    scans.write_completion(scan, np.full((128, 128), 0.5, "float32"), mask, tmp_path / f"out{path.suffix}", {})
    written = np.asarray(PIL.Image.open(tmp_path / f"out{path.suffix}"))
    assert written.dtype == image.dtype
    np.testing.assert_array_equal(written[~mask], image[~mask])
    np.testing.assert_allclose(written[mask], image[~mask].max() / 2, rtol=0.02)


# -- What is usual ------------------------------------------------------------------------------------------------


def test_new_people_of_a_cohort_are_hardly_ever_unlike_it(tmp_path):
    """Nor are those whom the limits were measured on, nor what is better than usual; what is far worse is."""
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(10), 8)
    warned = 0
    for _ in range(40):
        ssim, bits = rng.normal(0.65, 0.01, 11), rng.normal(2.7, 0.2, 11)
        own = [{"ssim_head": ssim[i], "bits_per_code": bits[i], "dark_rim": np.nan} for i in people]
        run_folder.write_ranges(tmp_path, "plain", own, people)
        ranges = run_folder.read_ranges(tmp_path, "plain")
        assert not any(inputs.compare(one, ranges, kind)[0] for one in own for kind in ("slices", "people"))
        warned += bool(inputs.compare({"ssim_head": ssim[10], "bits_per_code": bits[10]}, ranges, "people")[0])
        assert not inputs.compare({"ssim_head": 0.9, "bits_per_code": 0.5}, ranges, "people")[0]
        lines, percentiles = inputs.compare({"ssim_head": 0.5, "bits_per_code": np.median(bits[:10])}, ranges, "people")
        assert len(lines) == 1
        assert "SSIM inside the head 0.500, below the limit of 0." in lines[0]
        assert percentiles["ssim_head_percentile"] == 0
        assert percentiles["bits_per_code_percentile"] == pytest.approx(50, abs=4)
        assert "dark_rim" not in ranges  # which none of the slices has
    assert warned <= 1
    run_folder.write_ranges(tmp_path, "sharp", own[:8], people[:8])  # one person gives no limit
    ranges = run_folder.read_ranges(tmp_path, "sharp")
    assert not inputs.compare({"ssim_head": 0.0, "bits_per_code": 9.0}, ranges, "people")[0]
    (tmp_path / "ranges.json").write_text('{"plain": {"ssim": {"slices": [0.1, 0.2]}}}')
    with pytest.raises(UserError, match="run evaluate.py again"):
        run_folder.read_ranges(tmp_path, "plain")
    run_folder.write_ranges(tmp_path, "plain", own, people)


def head_like(size, pixel_mm, skull):
    """An oval slice of bright tissue, 200 mm long with scalp and skull around it, else 165 mm without."""
    y, x = (np.mgrid[:size, :size] + 0.5 - size / 2) * pixel_mm
    depth = (1 - np.hypot(x / 75, y / 100)) * 80
    lit = (depth > 15) | (skull & (depth > 0) & (depth < 5))
    return (lit * 160 + skull * (depth > 0) * 20).astype("uint8")


def test_a_head_with_skull_is_told_from_a_brain():
    rims = {skull: scans.head_shape(head_like(128, 2.0, skull), 2.0) for skull in (True, False)}
    assert rims[True] == (pytest.approx(0.8, abs=0.2), pytest.approx(200, abs=4))
    assert rims[False] == (pytest.approx(0, abs=0.1), pytest.approx(165, abs=6))
    for run, skull, expected in (
        ("ds002748", True, "looks like a whole head (200 mm long), and the run's slices are of brains without skull"),
        ("ixi", False, "looks like a brain without skull"),
        ("ds002748", False, ""),
        ("ixi", True, ""),
    ):
        values = {"ssim_head": np.nan, "bits_per_code": np.nan, "dark_rim": rims[skull][0], "head_mm": rims[skull][1]}
        lines, _ = inputs.compare(values, run_folder.read_ranges(IXI.parent / run, "sharp"), "people")
        assert " ".join(lines).startswith(expected)
        assert bool(expected) == bool(lines)


@pytest.mark.parametrize("number", [1, 2])
def test_heads_of_few_slices_are_written_and_shown(tmp_path, number):
    head = np.stack([head_like(32, 8.0, True)] * number)
    scans.write_head(head, tmp_path / "head.nii.gz", "axial", (8.0, 8.0, 5.0), "LPS")
    volume = nibabel.load(tmp_path / "head.nii.gz")
    assert volume.shape == (32, 32, number)
    assert volume.header["sform_code"] == volume.header["qform_code"] > 0
    figures.heads(tmp_path / "heads.png", [figures.views(head, "axial", (8.0, 8.0, 5.0))], ["a"], 8.0, "")
    figures.turning(tmp_path / "heads.gif", head, "axial", (8.0, 8.0, 5.0), frames=3)


def test_a_head_that_turns_is_lit_from_above(tmp_path):
    x, y, z = (np.indices((40, 40, 40)) - 19.5) / 15
    ball = 200 * (x**2 + y**2 + z**2 < 1)
    figures.turning(tmp_path / "ball.gif", ball.astype("uint8"), "axial", (2.0, 2.0, 2.0), frames=3)
    with PIL.Image.open(tmp_path / "ball.gif") as picture:
        assert picture.n_frames > 1
        grey = np.asarray(picture.convert("L"), float)
    lit = np.flatnonzero(grey.any(axis=1))
    upper, lower = grey[lit[0] : lit.mean().astype(int)], grey[lit.mean().astype(int) : lit[-1]]
    assert upper.sum() > 1.3 * lower.sum()


def test_a_head_that_is_too_large_for_a_run_of_brains_says_what_to_do(tmp_path):
    voxels = np.stack([head_like(130, 2.0, True)] * 80, axis=2)
    voxels = voxels + np.random.default_rng(0).normal(12, 5, voxels.shape)  # noise in the air is no head
    nibabel.save(nibabel.Nifti1Image(voxels.astype("float32"), np.diag([2.0, 2, 2, 1])), tmp_path / "head.nii.gz")
    with pytest.raises(BadFile, match=r"looks like a whole head \(20\d mm long\), .* \(HD-BET, SynthStrip\)"):
        read(tmp_path / "head.nii.gz", shipped("ds002748"))


# -- On the shipped weights ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return predict.TrainedModel(IXI)


@pytest.fixture(scope="module")
def drawn(model):
    """Slices that the model draws, float32 in [0, 1], shape (3, 128, 128)."""
    return model.sample(3, slice_position=0.6)


@pytest.fixture
def call(tmp_path, capsys, monkeypatch, model):
    """predict.py on the shipped run, which is loaded once: exit status, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(predict, "TrainedModel", lambda *_: model)
        common = ["--run-dir", str(IXI), "--output-dir", str(tmp_path / "out")]
        status = predict.main([*common, *map(str, arguments)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def as_told(folder, table, expected):
    """A table of what was made has that in each row, and each PNG the same in its text."""
    rows = pd.read_csv(folder / table, dtype=str, keep_default_na=False)
    assert len(rows)
    for row in rows.to_dict("records"):
        assert {name: row[name] for name in expected} == expected
        with PIL.Image.open(folder / row.pop("file")) as image:
            assert image.text == row


def as_bytes(image):
    return (image * 255).round().astype("uint8")


def test_reconstructions_codes_and_bits_of_a_volume_and_of_images(tmp_path, call, drawn, model, monkeypatch):
    """A volume of which two slices are black, and whose background is -1000, as of CT; two images of one name."""
    write_volume(tmp_path / "head.nii.gz", np.random.default_rng(0), (80, 100, 85))
    voxels = nibabel.load(tmp_path / "head.nii.gz").get_fdata() - 1000
    voxels[:, :, 40:42] = -1000
    volume = nibabel.Nifti1Image(voxels.astype("int16"), np.diag([2.0, 2, 2, 1]))
    volume.set_sform(volume.affine, 4)
    volume.set_qform(volume.affine, 3)
    nibabel.save(volume, tmp_path / "head.nii.gz")
    for folder, image in zip("ab", drawn, strict=False):
        write_image(tmp_path / folder / "T1.png", as_bytes(image))
    encoded, encode = [], model.vqvae.encode
    monkeypatch.setattr(model.vqvae, "encode", lambda images: encoded.append(len(images)) or encode(images))
    paths = [tmp_path / "head.nii.gz", tmp_path / "a" / "T1.png", tmp_path / "b" / "T1.png"]
    status, out, err = call("--input", *paths)
    assert (status, err) == (0, "")
    assert encoded == [32, 1, 1]  # once each
    assert "note: head: 2 of 32 slices are black and left out of the figures" in out
    assert "warning: head is unlike the run's data: looks like a brain without skull" in out  # an ellipsoid
    assert "3 of 3 inputs" in out
    folder = tmp_path / "out"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name, kind in (("head", "nii.gz"), ("T1", "png"), ("T1_2", "png")):
        assert {f"{name}/{of}.{kind}" for of in ("reconstruction", "difference", "bits")} <= names
        assert f"{name}/codes.npz" in names
    assert {"inputs.csv", "inputs.png", "inputs.html"} <= names
    page = (folder / "inputs.html").read_text()
    assert "Warning: head is unlike the run&#39;s data" in page
    assert re.findall(r"<td>\s*(head|T1|T1_2)</td>", page) == ["head", "T1", "T1_2"]
    with np.load(folder / "head" / "codes.npz") as file:
        assert file["codes"].shape == file["bits"].shape == (32, 32, 32, 1)
        assert file["coarse"].shape == (32, 8, 8, 1)
        on = file["slice_numbers"]
    made = {of: nibabel.load(folder / "head" / f"{of}.nii.gz") for of in ("reconstruction", "difference", "bits")}
    for of in made.values():
        assert of.shape == volume.shape
        np.testing.assert_allclose(of.affine, volume.affine)
        assert (of.header["sform_code"], of.header["qform_code"]) == (4, 3)
    reconstruction, difference = (made[of].get_fdata() for of in ("reconstruction", "difference"))
    np.testing.assert_allclose(difference[:, :, on], (reconstruction - voxels)[:, :, on], atol=0.01)
    assert np.abs(reconstruction[:3] + 1000).max() < 30  # the background
    outside = np.setdiff1d(np.arange(85), on)
    assert (reconstruction[:, :, outside] == -1000).all()
    assert (difference[:, :, outside] == 0).all()
    rows = pd.read_csv(folder / "inputs.csv", keep_default_na=False)
    assert rows.input.tolist() == ["head", "T1", "T1_2"]
    assert rows.path.tolist() == [*map(str, paths)]
    assert rows.slices.tolist() == [30, 1, 1]
    assert rows.ssim[1] > 0.98
    # A slice that the model drew is told better by its own codes than real ones are: no warning of what is better.
    assert rows.outside.tolist()[1:] == ["", ""]
    assert rows.ssim_head_percentile[1] == 100
    assert rows.bits_per_code_percentile.between(0, 100).all()


def test_completions_leave_all_else_as_it_is(tmp_path, call, drawn, model):
    image = as_bytes(drawn[0])
    mask = np.zeros_like(image)
    mask[50:80, 40:75] = 255
    write_image(tmp_path / "slice.png", image)
    write_image(tmp_path / "mask.png", mask)
    for name in ("completion_0002.png", "completion_notes.png"):
        write_image(tmp_path / "out" / name, image)
    asked = ("--input", tmp_path / "slice.png", "--mask", tmp_path / "mask.png", "--num-samples", 2)
    status, out, _ = call(*asked)
    assert status == 0
    assert "drawn anew: 1050 of 16384 pixels (6 %)" in out
    made = [np.asarray(PIL.Image.open(tmp_path / "out" / f"completion_{i:04d}.png"), int) for i in range(2)]
    for one in made:
        np.testing.assert_array_equal(one[mask == 0], image[mask == 0])
    assert (made[0] != made[1])[mask > 0].mean() > 0.2
    names = {path.name for path in (tmp_path / "out").glob("completion*")}
    drawn_too = {"completion_0000.png", "completion_0001.png", "completion_notes.png"}
    assert names == drawn_too | {"completions.png", "completions.csv"}
    as_told(tmp_path / "out", "completions.csv", {"mask": str(tmp_path / "mask.png"), "run": "ixi", "seed": "0"})
    write_volume(tmp_path / "head.nii.gz", np.random.default_rng(0), (80, 100, 85))
    status, _, err = call("--input", tmp_path / "head.nii.gz", *asked[2:])
    assert status == 1
    assert "mask.png: no volume, and the input is one" in err
    for wrong, message in ((image, "floats"), (image.astype(float), "in .0, 1."), (drawn[:2], "shape")):
        with pytest.raises(UserError, match=message):
            model.complete(wrong, mask, 1)
    for ask in (model.bits, lambda x, **how: model.complete(x[0], mask, 1, **how), model.anomaly_map):
        for position in (30, -5, np.nan):
            with pytest.raises(UserError, match="slice position"):
                ask(drawn[:1], slice_position=position)


def test_anomaly_maps_light_up_where_something_is_planted(tmp_path, call, drawn, model):
    image = as_bytes(drawn[0])
    image[60:72, 40:52] = 255
    write_image(tmp_path / "planted.png", np.stack([image.repeat(2, axis=0).repeat(2, axis=1)] * 3, axis=2))
    status, out, _ = call("--input", tmp_path / "planted.png", "--anomaly")
    assert status == 0
    assert "note: planted: a colour image, made grey" in out
    assert "note: planted: its 256 x 256 pixels are shrunk to 128 x 128" in out
    found = np.asarray(PIL.Image.open(tmp_path / "out" / "planted" / "anomaly.png"), float)[::2, ::2]
    assert found[60:72, 40:52].mean() > 3 * found[image > 0].mean()
    with PIL.Image.open(tmp_path / "out" / "anomalies.png") as picture:
        assert picture.width > 500
    as_told(tmp_path / "out", "anomalies.csv", {"input": str(tmp_path / "planted.png"), "decoder": "sharp"})
    # A slice's map is the same whatever other slices stand beside it; some processors round by its place among them.
    beside, others = (model.anomaly_map(some, 2) for some in (drawn, drawn[[-1, 1, 0]]))
    np.testing.assert_array_equal(others[1], beside[1])
    np.testing.assert_allclose(model.anomaly_map(drawn[1:2], 2)[0], beside[1], atol=1e-5)


def test_what_cannot_be_used_is_a_line_and_the_rest_is_done(tmp_path, call):
    folder = tmp_path / "bad"
    write_image(folder / "a_white.png", np.full((128, 128), 255, "uint8"))
    write_image(folder / "b_photograph.png", np.random.default_rng(0).integers(0, 255, (90, 120, 3)).astype("uint8"))
    (folder / "c_text.png").write_text("no image")
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 20, 20), "int16"), np.eye(4)), folder / "d_empty.nii.gz")
    write_volume(folder / "e_short.nii.gz", np.random.default_rng(0), (80, 100, 12))
    status, out, err = call("--input", folder)
    assert status == 1
    lines = err.strip().splitlines()
    assert [line.split(": ")[0] for line in lines] == ["error"] * 5
    assert "a_white.png: all its pixels are 255" in lines[0]
    assert "c_text.png: not a readable image" in lines[1]
    assert "d_empty.nii.gz: every value is 0" in lines[2]
    assert "e_short.nii.gz: its 12 axial slices of 2 mm do not hold 32 slices 2 mm apart" in lines[3]
    assert "--num-slices" not in lines[3]
    assert "--skip-bad-files" not in err
    assert lines[4] == "error: 4 of 5 inputs could not be used; the others are done"
    assert "note: b_photograph: a colour image, made grey" in out
    assert "warning: b_photograph is unlike the run's data: bits per code" in out
    assert "above the limit of" in out
    assert len((tmp_path / "out" / "inputs.csv").read_text().splitlines()) == 2


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
def test_wrong_arguments_are_one_line(call, monkeypatch, arguments, message):
    monkeypatch.chdir(IXI.parent.parent)
    status, _, err = call(*arguments)
    assert status == 1
    assert message in err


def test_a_folder_of_dicom_says_how_to_convert(tmp_path, call):
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "1.dcm").write_bytes(b"\0" * 128 + b"DICM")
    status, _, err = call("--input", tmp_path / "dicom")
    assert status == 1
    assert "dcm2niix" in err


def test_nothing_private_is_in_the_shipped_runs():
    for run in IXI.parent.iterdir():
        if run.is_dir():
            config = json.loads((run / "config.json").read_text())
            assert not Path(config["options"]["data"]["data_dir"] or "").is_absolute()
            assert not Path(config["options"]["data"]["cache_dir"]).is_absolute()
            assert sum(path.stat().st_size for path in run.iterdir()) < 10e6
