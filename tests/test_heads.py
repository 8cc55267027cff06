"""Slices that belong to one person: priors told of the slice beside, whole heads, and runs that start from others."""

import dataclasses
import itertools
import json
import re
from types import SimpleNamespace

import nibabel
import numpy as np
import pandas as pd
import pytest
from conftest import make_slices, randomise, write_bids, write_volume
from test_anatomy import draw

import dataset
import evaluate
import predict
from benchmarks import anomaly
from evaluation import anatomy, figures, heads
from predict import TrainedModel
from running import models, opening, options
from running.config import read_config
from system.console import UserError
from using import heads as drawn_heads
from using import scans


def test_the_slice_below_is_the_one_before_of_the_same_scan():
    slices = make_slices(3, sessions=("a", "b"), per_scan=4)
    slices["slice_position"] = slices.slice_index / 3
    slices = slices.drop(index=5).sample(frac=1, random_state=0)  # the second slice of a scan is missing
    found = dataset.places_below(slices)
    rows = list(slices[["subject_id", "session", "slice_index"]].itertuples(index=False, name=None))
    for i, (person, session, number) in enumerate(rows):
        wanted = (person, session, number - 1)
        assert found[i] == (rows.index(wanted) if wanted in rows else -1)


def test_stacks_are_neighbouring_slices_of_a_scan():
    slices = make_slices(3, sessions=("a", "b"), per_scan=30)
    slices["slice_position"] = slices.slice_index / 29
    slices = slices.sample(frac=1, random_state=0)
    scans_of, lowest = dataset.scan_of(slices).to_numpy(), set()
    for rng in (None, *(np.random.default_rng(seed) for seed in range(20))):
        found = dataset.stacks(slices, 12, rng)
        assert found.shape == (12, 12)  # two of each scan; six slices are left out
        assert len(np.unique(found)) == 144
        for stack in found:
            heights = slices.slice_index.to_numpy()[stack]
            assert (np.diff(heights) == 1).all()
            assert len(set(scans_of[stack])) == 1
            lowest.add(int(heights[0] % 12))
        if rng is None:
            assert lowest == {0}
    assert lowest == set(range(7))
    assert dataset.stacks(slices, 31).shape == (0, 31)
    missing = slices[slices.slice_index != 14]  # each scan is cut in two
    for stack in dataset.stacks(missing, 12):
        assert (np.diff(missing.slice_index.to_numpy()[stack]) == 1).all()
    assert len(dataset.stacks(missing, 12)) == 12


def test_a_decoder_learns_from_stacks_where_scans_hold_them(place, data):
    options = {"heads": {"neighbours": True}}
    assert not dataset.has_stacks(data, 16, options)  # scans of four slices
    longer = make_slices(3, per_scan=20).assign(split=np.repeat(["train", "validation", "test"], 20))
    longer["slice_position"] = longer.slice_index / 19
    longer = dataclasses.replace(data, slices=longer)
    assert dataset.has_stacks(longer, 16, options)
    assert not dataset.has_stacks(longer, 10, options)  # the window of SSIM
    assert not dataset.has_stacks(longer, 16, {"heads": {"neighbours": False}})


SIZES = {
    "vqvae": {"base_filters": 4, "num_embeddings": 16, "embedding_dim": 4, "downsampling": 8},
    "coarse": {"base_filters": 4, "num_embeddings": 8, "embedding_dim": 4},
    **dict.fromkeys(("coarse_prior", "prior"), {"filters": 8, "num_blocks": 2, "attention_every": 1}),
}


def asked(place, run, **changes):
    """Options of train.py for a small run on volumes of four slices, with other sizes where they are given."""
    paths = {"--data-dir": place / "bids", "--run-dir": place / run, "--cache-dir": place / "cache"}
    how = ["--num-slices", "4", "--slice-spacing", "6", "--neighbours", "--precision", "float32"]
    found = options.train([*(str(part) for option in paths.items() for part in option), *how]).options
    for name, sizes in SIZES.items():
        found[name] |= sizes | changes.get(name, {})
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Small volumes of ten people, and a run on them whose priors are told of neighbours; it has learned nothing."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("heads")
    write_bids(folder / "bids", people=10)
    wanted = asked(folder, "run")
    data = dataset.prepare(**wanted["data"])
    opening.open_run(folder / "run", wanted, data)
    vqvaes = {}
    for name, of in (("vqvae", ()), ("coarse", ()), ("coarse_prior", ["coarse"]), ("prior", ["vqvae", "coarse"])):
        whose = models.fingerprint(*(vqvaes[vqvae] for vqvae in of)) if of else ""
        model = models.build(name, data.image_size, len(data.labels), wanted, whose)
        randomise(model, rng, 0.3 if of else 0.1)
        if not of:
            images = dataset.as_float(dataset.shrink(data.images, model.image_size))
            z_e = model.encoder.predict(images, verbose=0).reshape(-1, model.encoder.output_shape[-1])
            model.quantizer.set_codebook(rng.permutation(z_e)[: model.num_embeddings])
            vqvaes[name] = model
        model.save(folder / "run" / f"{name}.keras")
    return folder


@pytest.fixture(scope="module")
def data(place):
    return opening.find_data(place / "run", read_config(place / "run"))


@pytest.fixture(scope="module")
def model(place):
    return TrainedModel(place / "run")


@pytest.fixture
def loaded(model, monkeypatch):
    """Commands find the run's models in memory."""
    for program in (predict, evaluate):
        monkeypatch.setattr(program, "TrainedModel", lambda *how: model)


def test_a_training_slice_is_told_the_codes_of_the_slice_below_or_none(model, data):
    """Of the same person, moved and mirrored alike; but for the few that are replaced."""
    training = data.of("train")
    below = dataset.places_below(training)
    told = dataset.prior_inputs(training, data.labels)
    batches = dataset.ChangedCodes(told, {"codes": model.vqvae}, data, 4, 0, max_shift=2, mirrored=0.5, below=below)
    alone = []
    for epoch in range(4):
        batches.set_epoch(epoch)
        for _, mine in itertools.groupby(range(len(training)), key=training.subject_id.to_numpy().__getitem__):
            assert len(np.unique(batches.changes[list(mine)], axis=0)) == 1
        codes, known = batches.inputs["codes"].astype(int), batches.inputs["below"]
        for mine, other in zip(known, below, strict=True):
            assert (mine == -1).all() or (other >= 0 and (mine == codes[other]).mean() > 0.5)
        alone.append((known == -1).all(axis=(1, 2, 3)).mean())
    assert 0.3 < np.mean(alone) < 0.7  # three tenths, and the lowest of four


def test_heads_are_volumes_that_a_viewer_reads(place, model, loaded):
    arguments = ["--run-dir", str(place / "run"), "--output-dir", str(place / "drawn"), "--volumes", "2"]
    assert predict.main(arguments) == 0
    for i in range(2):
        name = f"sub-synth{i + 1:03d}"
        path = place / "drawn" / "volumes" / name / "anat" / f"{name}_desc-synthetic_T1w.nii.gz"
        volume = nibabel.load(path)
        assert volume.header["sform_code"] == volume.header["qform_code"] > 0
        told = json.loads(path.with_name(f"{name}_desc-synthetic_T1w.json").read_text())
        assert (told["synthetic"], told["seed"], told["number"]) == (True, 0, i)
        assert volume.shape == (32, 32, 4)
        assert volume.get_data_dtype() == np.uint8
        assert nibabel.aff2axcodes(volume.affine) == ("R", "A", "S")  # as the run's own
        np.testing.assert_allclose(volume.header.get_zooms(), (2, 2, 6))
        assert b"synthetic" in volume.header["descrip"].tobytes()
        middle = nibabel.affines.apply_affine(volume.affine, (np.array(volume.shape) - 1) / 2)
        np.testing.assert_allclose(middle, 0, atol=1e-5)
    assert (place / "drawn" / "volumes.png").exists()
    assert (place / "drawn" / "volumes.gif").stat().st_size < 2e6
    people = pd.read_csv(place / "drawn" / "volumes" / "participants.tsv", sep="\t")
    assert people.participant_id.tolist() == ["sub-synth001", "sub-synth002"]
    assert set(people.group) <= {"control", "patient"}
    page = (place / "drawn" / "volumes.html").read_text()
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']https?:", page)
    drawn = [np.asarray(nibabel.load(p).dataobj) for p in sorted((place / "drawn" / "volumes").glob("*/anat/*.gz"))]
    assert predict.main([*arguments[:-1], "1"]) == 0
    assert not (place / "drawn" / "volumes" / "sub-synth002").exists()  # left by the call before
    again = next(model.sample_heads(1))
    back = np.rot90(drawn[0], 1).transpose(2, 0, 1)
    np.testing.assert_array_equal(back, again[0])  # one alone is the same as the first of two


def test_a_real_head_written_as_a_new_one_lies_as_it_lay(place, data):
    """Left is left and top is top: the written voxels are the volume's own."""
    one = data.slices[data.slices.subject_id == "sub-03"]
    path = place / "real.nii.gz"
    scans.write_head(data.images[one.row], path, "axial", (2.0, 2.0, 6.0), "LPS")
    written = nibabel.as_closest_canonical(nibabel.load(path))
    own = nibabel.as_closest_canonical(nibabel.load(place / "bids" / one.path.iloc[0]))
    found = np.asarray(written.dataobj)[4:28, 1:31]  # without the padding of 24 x 30 pixels
    expected = own.get_fdata()[:, :, one.slice_index.to_list()]
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99


def test_a_mask_of_a_volume_is_completed_slice_by_slice(place, loaded, tmp_path, capsys):
    path = place / "bids" / "sub-03" / "anat" / "sub-03_T1w.nii.gz"
    volume = nibabel.load(path)
    hidden = np.zeros(volume.shape, "uint8")
    middle = volume.shape[2] // 2
    hidden[8:16, 10:18, middle - 1 : middle + 4] = 3  # some of the slices that the run takes, and some between them
    mask = tmp_path / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(hidden, volume.affine), mask)
    arguments = ["--run-dir", str(place / "run"), "--input", str(path), "--mask", str(mask), "--num-samples", "2"]
    assert predict.main([*arguments, "--output-dir", str(tmp_path / "out")]) == 0
    assert "in 2 slices" in capsys.readouterr().out
    own = volume.get_fdata()
    for i in range(2):
        drawn = nibabel.load(tmp_path / "out" / f"completion_{i:04d}.nii.gz")
        np.testing.assert_allclose(drawn.affine, volume.affine)
        changed = drawn.get_fdata() != own
        assert changed.any()
        assert not changed[hidden == 0].any()
        assert set(np.flatnonzero(changed.any(axis=(0, 1)))) <= set(range(middle - 1, middle + 4))
    assert len(pd.read_csv(tmp_path / "out" / "completions.csv")) == 2
    config = read_config(place / "run")
    scan = scans.read("one", scans.find([path])[0]["sub-03_T1w"][0], config)
    cropped = dataclasses.replace(scan, corner=(12, scan.corner[1]))  # as of a slice that is larger than the run's
    left = scans.write_completed_volume(cropped, np.ones_like(scan.images), hidden > 0, tmp_path / "cropped.nii.gz")
    changed = nibabel.load(tmp_path / "cropped.nii.gz").get_fdata() != own
    assert 0 < changed.sum() < (hidden > 0).sum()
    assert left + changed.sum() == (hidden > 0).sum()
    for wrong, message in (
        (nibabel.Nifti1Image(hidden, np.eye(4)), "lies in another grid than"),
        (nibabel.Nifti1Image(hidden * 0, volume.affine), "touches none of the slices that the run sees"),
    ):
        nibabel.save(wrong, mask)
        assert predict.main([*arguments, "--output-dir", str(tmp_path / "out")]) == 1
        assert message in capsys.readouterr().err


def test_heads_are_measured_also_where_the_run_folder_cannot_be_written(place, loaded, capsys):
    out = place / "measured"
    (place / "run" / "ranges.json").mkdir()  # stands in for a folder without permission, which root always has
    arguments = ["--run-dir", str(place / "run"), "--output-dir", str(out), "--num-samples", "4", "--num-heads", "3"]
    assert evaluate.main(arguments) == 0
    assert f"is in {out / 'ranges.json'}" in capsys.readouterr().out
    assert "plain" in json.loads((out / "ranges.json").read_text())
    for name in ("people.csv", "report.html", "volumes.png"):
        assert (out / name).exists()
    found = json.loads((out / "metrics.json").read_text())["heads"]
    assert found["number"] == 3
    assert {"drawn", "test", "decoded_test", "independent"} == set(found["neighbours"])
    assert len(found["neighbours_by_height"]["drawn"]) == 3  # of four slices
    for plane in ("coronal", "sagittal"):
        assert set(found[plane]) == {"drawn", "independent", "decoded_test", "decoded_floor", "floor"}
        assert 0 < found[plane]["floor"] < min(found[plane]["independent"], found[plane]["decoded_test"])
    assert 20 < found["brain_ml"]["test"]["mean"] < 40  # of four slices of an ellipsoid


def test_a_run_without_neighbours_draws_no_heads_and_none_are_read():
    maps = SimpleNamespace(maps={})
    model = SimpleNamespace(run_dir="x", draws_heads=False, models=SimpleNamespace(prior=maps, coarse_prior=maps))
    with pytest.raises(UserError, match="volumes need a run of train.py --neighbours"):
        next(drawn_heads.sample(model, 1))
    data = None  # which is not looked at
    assert evaluate.compare_heads(None, SimpleNamespace(num_heads=4), model, data, "") is None


def test_two_volumes_of_a_session_are_two_scans():
    slices = make_slices(2, per_scan=6)
    slices["path"] = [f"{p}_run-{i // 3}" for p, i in zip(slices.subject_id, slices.slice_index, strict=True)]
    slices["slice_position"] = slices.slice_index % 3 / 2
    assert dataset.scan_of(slices).nunique() == 4
    assert dataset.places_below(slices).tolist() == [-1, 0, 1, -1, 3, 4, -1, 6, 7, -1, 9, 10]


# -- What is measured of heads ------------------------------------------------------------------------------------


def ball(radius, number=40, size=48):
    """A bright ball of so many voxels across, with a dark one inside, uint8."""
    z, y, x = (np.indices((number, size, size)).T - (np.array([number, size, size]) - 1) / 2).T
    away = np.sqrt(z**2 + y**2 + x**2)
    return ((away < radius) * 180).astype("uint8")


def test_neighbours_that_are_alike_and_that_are_not(rng):
    same = np.repeat(ball(15)[20:21], 6, axis=0)
    assert heads.neighbours([same])[0].shape == (5,)
    np.testing.assert_allclose(heads.neighbours([same]), 1, atol=1e-5)
    shuffled = ball(15)[rng.permutation(40)]
    assert heads.neighbours([ball(15)])[0].mean() > heads.neighbours([shuffled])[0].mean() + 0.05


def test_heads_of_several_heights_are_compared_by_height():
    values = [np.arange(16.0), np.arange(24.0)]
    np.testing.assert_allclose(heads.by_height(values), (np.arange(8) * 5 + 1.5) / 2, atol=0.26)


def test_the_power_along_the_axis_rises_where_slices_jump(rng):
    smooth = (150 + 40 * np.sin(np.arange(40) / 6)[:, None, None] + np.zeros((40, 48, 48))).astype("uint8")
    jumping = (smooth + rng.integers(-20, 20, (40, 1, 1))).astype("uint8")
    quiet, loud = heads.axis_power([smooth]), heads.axis_power([jumping])
    assert (loud[2:] > 5 * quiet[2:]).all()


def test_the_volume_of_a_ball():
    brain, _ = heads.volumes_ml(ball(15), (2.0, 2.0, 2.0))
    np.testing.assert_allclose(brain, 4 / 3 * np.pi * 15**3 * 8 / 1000, rtol=0.05)


def test_the_volume_of_ventricles_in_heads_of_few_slices():
    """Each slice between 0.3 and 0.75 of the height counts once, and every second one is looked at."""
    image = (draw() * 255).round().astype("uint8")
    area = sum(anatomy.ventricle_masks(image / 255)).sum()
    for number, counted in ((2, np.nan), (3, 1), (5, 2), (12, 6)):
        _, fluid = heads.volumes_ml(np.stack([image] * number), (2.0, 2.0, 5.0))
        np.testing.assert_allclose(fluid, counted * area * 0.02)


@pytest.mark.parametrize("number", [2, 3])
def test_heads_of_few_slices_are_judged(number):
    slices = make_slices(6, per_scan=number).assign(row=np.arange(6 * number))
    slices["slice_position"] = slices.slice_index / (number - 1)
    slices["split"] = np.repeat(["train", "train", "train", "validation", "test", "test"], number)
    people = [ball(radius, number) for radius in (12, 13, 14, 15, 16, 17)]
    data = dataset.Data(np.concatenate(people), slices, "made up", "", "regex", "", [], [], {})
    found = heads.judge_heads(people[:2], people[2:3], data, lambda head: head, (2.0, 2.0, 20.0))
    json.dumps(found, allow_nan=False)
    assert found["coronal"]["decoded_test"] == pytest.approx(0, abs=1e-3)  # nothing is lost
    assert found["coronal"]["floor"] > 0.1
    assert (
        (found["ventricles_ml"]["drawn"]["mean"] is None)
        == (found["ventricles_ml"]["distance"] is None)
        == (number == 2)
    )
    assert heads.count_people(data, number).to_dict() == {"train": 3, "validation": 1, "test": 2}
    assert heads.count_people(data, number + 1).empty


def test_the_nearest_person_is_oneself():
    people = {"a": ball(10), "b": ball(15), "c": ball(19)}
    nearest = heads.NearestPerson(people)
    np.testing.assert_allclose(nearest(people["b"]), 1, atol=1e-4)
    assert nearest(ball(12)) < 0.999


def test_views_stand_upright_and_are_of_equal_pixels():
    """A bright spot high, in front, and on the right of a head of slices 2 pixels apart."""
    head = ball(15, 20)
    head[16, 12:15, 30:33] = 255  # rows run from front to back, columns from left to right
    found = figures.views(head, "axial", (1.0, 1.0, 2.0), (30.5 / 48, 0.5, 0.5))
    assert {name: image.shape for name, image in found.items()} == {
        "axial": (48, 48),
        "coronal": (40, 48),
        "sagittal": (40, 48),
    }
    every = [figures.views(head, "axial", (1.0, 1.0, 2.0), (share,) * 3) for share in np.linspace(0, 1, 60)]
    for name, upper in (("coronal", 20), ("sagittal", 20), ("axial", 24)):
        spots = [np.argwhere(one[name] > 220) for one in every]
        row, column = max(spots, key=len).mean(axis=0)
        assert row < upper  # high, or in front
        assert column > 24  # right, or in front


def test_real_lesions_are_scored_in_the_voxels_of_their_masks(place, tmp_path, capsys):
    """What is bright in FLAIR alone is the lesion here, and scores so; a mask that is missing is said."""
    people, output = tmp_path / "ms", tmp_path / "lesions.json"
    arguments = ["--run-dir", str(place / "run"), "--lesions", str(people), "--output", str(output)]
    for number in (1, 2):
        anat = people / f"sub-{number}" / "anat"
        write_volume(anat / f"sub-{number}_T1w.nii.gz", np.random.default_rng(number))
        t1w = nibabel.load(anat / f"sub-{number}_T1w.nii.gz")
        lesion = np.zeros(t1w.shape, "uint8")
        lesion[10:14, 12:16, 30:60] = 1
        flair = nibabel.Nifti1Image(lesion * 200 + 20, t1w.affine)
        nibabel.save(flair, anat / f"sub-{number}_FLAIR.nii.gz")
        assert anomaly.main(arguments) == 1
        assert f"sub-{number}_label-lesion_mask.nii.gz: not found" in capsys.readouterr().err
        masks = people / "derivatives" / "lesions" / f"sub-{number}" / "anat"
        masks.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(lesion, t1w.affine), masks / f"sub-{number}_label-lesion_mask.nii.gz")
    assert anomaly.main(arguments) == 0
    found = json.loads(output.read_text())
    rows = {(row["map"], row["person"]): row for row in found["rows"]}
    assert {person for _, person in rows} == {"all", "sub-1", "sub-2"}
    for person in ("all", "sub-1", "sub-2"):
        assert rows["bright in FLAIR", person]["auroc"] == rows["bright in FLAIR", person]["dice"] == 1
        assert rows["dark in T1w", person]["auroc"] < 0.9
        assert 0 <= rows["this model", person]["average_precision"] <= 1
    assert 0 < found["lesion_share"][0] < 0.2
