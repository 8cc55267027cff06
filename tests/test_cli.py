"""The three commands, end to end, on one small run in a temporary folder."""

import base64
import csv
import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import h5py
import keras
import numpy as np
import pandas as pd
import PIL.Image
import pytest
from conftest import asked, fit, write_image, write_oasis
from skimage.metrics import structural_similarity

import dataset
import evaluate
import modules
import predict
import train
from benchmarks import kills, ship
from evaluation import baselines, measure, progress, realism
from running import checkpoint, models, opening, options, run_folder
from running.config import read_config
from system.console import UserError

ROOT = Path(__file__).parent.parent
STAGES = (*run_folder.VQVAES, *run_folder.PRIORS, "sharp")
FILES = {
    "config.json",
    "splits.csv",
    "codes.npz",
    *(f"{name}{kind}" for name in (*run_folder.VQVAES, *run_folder.PRIORS) for kind in (".keras", "_history.csv")),
}


@pytest.fixture(scope="module")
def place(trained_run):
    return trained_run


@pytest.fixture(scope="module")
def data(place):
    """The data of the run."""
    return opening.find_data(place / "run", read_config(place / "run"))


@pytest.fixture(autouse=True)
def heeded():
    """SIGINT is as a terminal has it, also where these tests are a script's job in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def copy(place, name, *without):
    """A copy of the run without some files."""
    shutil.copytree(place / "run", place / name)
    for missing in without:
        (place / name / missing).unlink()
    return place / name


# -- train.py -----------------------------------------------------------------------------------------------------


def test_train_leaves_a_whole_run(place):
    run = place / "run"
    assert {path.name for path in run.iterdir()} >= FILES
    assert not list(run.rglob("*partial*"))
    config = json.loads((run / "config.json").read_text())
    assert config["data"]["labels"] == ["AD", "NC"]
    assert config["options"]["vqvae"]["num_embeddings"] == 16
    assert config["versions"]["keras"] == keras.__version__
    with (run / "splits.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "subject_id", "session", "slice_index", "label", "split", "slice_position"]
    sides = {}
    for row in rows:
        assert sides.setdefault(row["subject_id"], row["split"]) == row["split"]
    for stage in STAGES:
        assert len(run_folder.read_history(run / f"{stage}_history.csv")) == 2
    for beginning in run_folder.BEGINNINGS.values():
        assert len(run_folder.read_history(run / f"{beginning}_history.csv")) == 1
    with np.load(run / "codes.npz") as file:
        assert file["codes"].shape == (len(rows), 8, 8, 2)


def test_splits_csv_is_read_as_the_slices_were(place, data):
    slices = run_folder.read_splits(place / "run")
    assert slices.equals(data.slices[list(slices)])


def test_the_same_command_again_changes_nothing(place, capsys):
    before = {path: path.stat().st_mtime_ns for path in (place / "run").iterdir() if path.is_file()}
    assert fit(place, "run") == 0
    assert {path: path.stat().st_mtime_ns for path in (place / "run").iterdir() if path.is_file()} == before
    assert "already trained" in capsys.readouterr().out


def test_other_settings_are_refused_with_what_differs(place, capsys):
    assert fit(place, "run", "--commitment-cost", "0.5", "--seed", "3") == 1
    error = capsys.readouterr().err
    assert "commitment_cost was 0.25 and is now 0.5" in error
    assert "seed was 0 and is now 3" in error
    assert error.count("\n") == 1
    assert fit(place, "run", "--sharp-epochs", "9") == 1  # a phase that has begun
    assert "sharp_training.epochs was 2 and is now 9" in capsys.readouterr().err


def stop_at(monkeypatch, stage, moment):
    """Lets training end at a moment: (epochs done, "step" or the file that is to be written)."""
    epochs, what = moment
    save, write_text, epoch_now = checkpoint.save, checkpoint.write_text, []

    class Stopping(checkpoint.Checkpoint):
        def on_epoch_begin(self, epoch, logs=None):
            epoch_now[:] = [epoch]
            super().on_epoch_begin(epoch, logs)

        def on_train_batch_begin(self, batch, logs=None):
            if (self.stage, epoch_now, batch, what) == (stage, [epochs], 1, "step"):
                signal.raise_signal(signal.SIGTERM)

    def before(write, path, content):
        if epoch_now == [epochs] and path.name == f"{stage}{what}":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(checkpoint, "Checkpoint", Stopping)
    monkeypatch.setattr(checkpoint, "save", lambda content, path: before(lambda p, c: save(c, p), path, content))
    monkeypatch.setattr(checkpoint, "write_text", lambda path, content: before(write_text, path, content))


def test_stopped_in_every_stage_equals_left_alone(place, monkeypatch, capsys):
    """By SIGKILL, in a step as a scheduler does it, and before each file that the end of an epoch writes."""
    run = place / "stopped"
    program = "import sys; from pathlib import Path; from conftest import fit; fit(Path(sys.argv[1]), 'stopped')"
    how = {"env": os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}, "stdout": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-c", program, place], **how)
    while not (run / "autoencoder.keras").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    for stage, stops in (
        ("vqvae", [("vqvae", (0, ".keras"))]),
        ("coarse", [("coarse_autoencoder", (0, "step")), ("coarse", (1, "_state.weights.h5"))]),
        ("coarse_prior", [("coarse_prior", (1, "step"))]),
        ("prior", [("prior", (1, "_history.csv"))]),
        ("sharp", [("sharp", (0, ".keras"))]),
    ):
        for part, moment in stops:
            with monkeypatch.context() as patch:
                stop_at(patch, part, moment)
                assert fit(place, "stopped", "--stage", stage) == (143 if moment[1] == "step" else 130)
            assert capsys.readouterr().err == "stopped; the same command goes on\n"
        assert fit(place, "stopped", "--stage", stage) == 0
    assert kills.differences(run, place / "run") == []


def test_first_epochs_that_blew_up_are_said(tmp_path):
    table = "epoch,commitment_loss,val_reconstruction_loss\n1,{},0.3\n2,0.02,0.2\n3,0.01,0.1\n"
    (tmp_path / "vqvae_history.csv").write_text(table.format(0.15))
    (tmp_path / "coarse_history.csv").write_text(table.format(4.28))
    (line,) = run_folder.blown_up(tmp_path)
    assert line.startswith("the first epochs of coarse blew up: commitment 4.28, in the last epoch 0.01;")


def test_codebooks_start_as_means_of_what_each_level_has_to_code(place, data):
    model = models.build("vqvae", data.image_size, len(data.labels), asked(place, "run").options)
    batches = dataset.ChangedImages(data, data.image_size, 24, 0)
    train.start_codebooks(model, batches)
    images = dataset.as_float(data.images[data.of("train").row])
    z_e = model.encoder.predict(images, verbose=0)
    _, entries, _ = model.choose_entries(z_e)
    power = [np.square(z_e - z_e.mean(axis=(0, 1, 2))).mean()]
    for level in range(model.num_quantizers):
        power.append(np.square(z_e - np.asarray(entries)[..., : level + 1, :].sum(axis=-2)).mean())
    assert power[1] < 0.2 * power[0]  # 16 means of as many vectors as there are
    assert power[2] < 0.6 * power[1]


def test_entries_of_a_codebook_learn_ten_times_as_fast():
    """Adam's first step is the learning rate, whatever the gradient; Muon's is near to a matrix of equal lengths."""
    rng = np.random.default_rng(0)
    shapes = {"entries": (3, 2), "bias": (3,), "kernel": (3, 3, 4, 8)}
    weights = [keras.Variable(np.zeros(shape, "float32"), name=name) for name, shape in shapes.items()]
    optimizer = train.vqvae_optimizer(1e-3)
    optimizer.build(weights)
    gradients = [rng.normal(size=shape).astype("float32") for shape in shapes.values()]
    optimizer.apply([keras.ops.convert_to_tensor(gradient) for gradient in gradients], weights)
    entries, bias, kernel = map(keras.ops.convert_to_numpy, weights)
    np.testing.assert_allclose(bias, -0.3e-3 * np.sign(gradients[1]), rtol=1e-3)
    np.testing.assert_allclose(entries, -3e-3 * np.sign(gradients[0]), rtol=1e-3)
    left, lengths, right = np.linalg.svd(gradients[2].reshape(36, 8), full_matrices=False)
    moved = -left.T @ kernel.reshape(36, 8) @ right.T / (1e-3 * 0.2 * 6)  # 6 is the root of the longer side
    np.testing.assert_allclose(np.diag(moved), np.ones(8), atol=0.35)  # as near as five steps of Newton and Schulz come
    np.testing.assert_allclose(moved - np.diag(np.diag(moved)), np.zeros((8, 8)), atol=1e-3)


def test_a_full_disk_is_said_and_loses_nothing(place, capsys):
    """A limit on the size of files stands in for the disk: histories still fit, models do not."""
    run = copy(place, "full", "prior.keras", "prior_history.csv", "prior_state.weights.h5")
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        status = fit(place, "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert status == 1
    assert f"error: {run / 'prior.keras'}: File too large" in error
    assert error.count("\n") == 1
    assert {name: (run / name).read_bytes() for name in before} == before


def test_a_history_of_other_epochs_is_said(place, monkeypatch, capsys):
    run = copy(place, "batches", "prior.keras")
    shutil.copy(place / "run" / "prior.keras", run)
    history = (run / "prior_history.csv").read_text().splitlines(keepends=True)
    (run / "prior_history.csv").write_text("".join(history[:2]))
    monkeypatch.setattr(dataset.Batches, "__len__", lambda self: 5)
    assert fit(place, "batches") == 1
    assert "its epochs had not 5 batches" in capsys.readouterr().err


def test_the_prior_learns_codes_of_moved_slices_anew_each_epoch(place, data):
    vqvae, coarse = (models.load_vqvae(place / "run", name) for name in run_folder.VQVAES)
    of_train, rows = data.of("train"), data.of("train").row.to_numpy()
    codes = opening.all_codes(place / "run", vqvae, data)[data.slices.split == "train"]
    inputs = dataset.prior_inputs(of_train, ["AD", "NC"])

    def epoch(number, **changes):
        encoders = {"codes": vqvae, "coarse": coarse}
        batches = dataset.ChangedCodes(inputs, encoders, data, len(rows), 0, **changes)
        batches.set_epoch(number)
        (batch,) = batches[0]  # all of them, in order
        return batch

    same = epoch(0)
    np.testing.assert_array_equal(same["codes"], codes)
    assert not same["change"].any()
    how = {"max_shift": 3, "mirrored": 0.5}
    first, second, again = epoch(0, **how), epoch(1, **how), epoch(0, **how)
    for name in ("codes", "coarse", "change"):
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != second[name]).mean() > 0.05
    np.testing.assert_array_equal(first["slice_position"], inputs["slice_position"])
    place_of = int(np.flatnonzero(second["change"][:, 0])[0])  # what is told is what was done
    mirrored, down, right = second["change"][place_of] * [1, 3, 3]
    assert mirrored == 1
    image = np.pad(data.images[rows[place_of]][:, ::-1], 3)
    image = np.roll(image, (round(down), round(right)), (0, 1))[3:-3, 3:-3]
    np.testing.assert_array_equal(second["codes"][place_of], vqvae.encode(dataset.as_float(image[None]))[0])
    small = dataset.as_float(dataset.shrink(image[None], coarse.image_size))
    np.testing.assert_array_equal(second["coarse"][place_of], coarse.encode(small)[0])


def test_a_folder_in_which_another_call_writes_is_left_alone(place, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in (place / "run").iterdir() if path.is_file()}
    with run_folder.alone_in(place / "run", "train.py"):
        assert fit(place, "run") == 1
    assert "another train.py is at work here" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (place / "run").iterdir() if path.is_file()} == before
    (tmp_path / run_folder.LOCK).mkdir()  # as a folder in which no file can be made
    with run_folder.alone_in(tmp_path, "evaluate.py"):
        pass


def test_mistakes_that_show_once_the_data_are_read_are_one_line(place, capsys):
    for arguments, message in (
        (["--prior-num-blocks", "2", "--prior-attention-every", "0"], "receptive field"),
        (["--num-embeddings", "20000"], "cannot start a codebook"),
        (["--label-column", "sex"], "are in its paths (adni)"),
    ):
        run = f"bad{len(message)}"
        assert fit(place, run, *arguments) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["loss", "val_bits_per_code"])
def test_a_metric_that_is_not_a_number_ends_training(tmp_path, name):
    kept = checkpoint.Checkpoint([], tmp_path, "prior", {"epochs": 2, "patience": 2})
    with pytest.raises(UserError, match=f"prior: {name} is nan in epoch 1; lower the learning rate"):
        kept.on_epoch_end(0, {"loss": 1.0, "val_bits_per_code": 1.0, name: np.nan})


def test_skipped_files_are_listed_in_the_run_folder(tmp_path, capsys):
    folder = write_oasis(tmp_path / "adni")
    (folder / "keras_png_slices_train" / "case_002_slice_1.nii.png").write_bytes(b"")
    assert fit(tmp_path, "run", "--dry-run") == 1
    assert "case_002_slice_1.nii.png: the file is empty" in capsys.readouterr().err
    assert fit(tmp_path, "run", "--dry-run", "--skip-bad-files") == 0
    assert "case_002_slice_1.nii.png\tthe file is empty" in (tmp_path / "run" / "bad_files.txt").read_text()


@pytest.mark.parametrize(
    ("preset", "levels", "entries", "convolutions"),
    [("1mm", 2, (512, 64), 8), ("vqvae-2017", 1, (512, 64), 7), ("three-conv", 1, (32, 128), 3)],
)
def test_presets(preset, levels, entries, convolutions):
    asked = ["--preset", preset, "--base-filters", "4", "--precision", "float32"]
    vqvae, prior = (models.build(name, 64, 0, options.train(asked).options) for name in ("vqvae", "prior"))
    assert vqvae.codebooks.shape == (levels, *entries)
    assert tuple(prior.codebook.shape) == (levels * entries[0], entries[1])
    found = [layer for layer in vqvae.encoder.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len(found) == convolutions


# -- train.py --start-from ----------------------------------------------------------------------------------------


def test_a_start_from_a_shipped_run_is_not_refused():
    """Also one of a version before levels; another size is."""
    options_of = options.train(["--start-from", str(ROOT / "pretrained" / "ixi"), "--precision", "float32"]).options
    sizes = {name: models.build(name, 128, 0, options_of).get_config() for name in run_folder.VQVAES}
    sizes |= {name: models.build(name, 128, 0, options_of).get_config() for name in run_folder.PRIORS}
    opening.refuse_start(ROOT / "pretrained" / "ixi", sizes)
    sizes["vqvae"]["num_quantizers"] = 2
    with pytest.raises(UserError, match="its vqvae has num_quantizers 1, not 2"):
        opening.refuse_start(ROOT / "pretrained" / "ixi", sizes)


def test_a_vqvae_of_another_run_of_other_parts_is_finished(tmp_path):
    config = {"options": {f"{stage}_training": {"epochs": 3, "patience": 9} for stage in (*STAGES,)}}
    config["options"]["coarse"] = {"image_size": 32}
    for stage, rows in (("autoencoder", 1), ("vqvae", 2), ("coarse", 2), ("coarse_prior", 3), ("prior", 3)):
        values = "".join(f"{epoch + 1},{1 / (epoch + 1)},{1 / (epoch + 1)}\n" for epoch in range(rows))
        (tmp_path / f"{stage}_history.csv").write_text(f"epoch,val_reconstruction_loss,val_bits_per_code\n{values}")
    assert run_folder.unfinished(tmp_path, config, "plain") == ["coarse was trained for 2 of 3 epochs"]


def test_a_run_begins_as_the_one_that_it_starts_from(place, data):
    """Before its first step; also where the priors are told more."""
    run = place / "run"
    begin = asked(place, "next", "--start-from", run, "--neighbours")
    opening.open_run(begin.run_dir, begin.options, data)
    told = dataset.prior_inputs(data.of("test"), data.labels)
    for name in (*run_folder.VQVAES, *run_folder.PRIORS):
        theirs = keras.saving.load_model(run / f"{name}.keras", compile=False)
        ours = models.build(name, data.image_size, len(data.labels), begin.options)
        models.start(name, ours, begin.run_dir, run)
        if name in run_folder.VQVAES:
            for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
                np.testing.assert_array_equal(a, b)
        else:
            grid = (theirs.grid_size, theirs.grid_size, theirs.num_quantizers)
            codes = np.zeros((len(data.of("test")), *grid), "int32")
            inputs = {**told, "codes": codes, "coarse": codes[:, :4, :4, :1]}
            logits = [keras.ops.convert_to_numpy(model(inputs)) for model in (theirs, ours)]
            beside = keras.ops.convert_to_numpy(ours({**inputs, "below": codes + 1}))
            np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)
            np.testing.assert_allclose(logits[0], beside, atol=1e-5)


def test_single_stages_start_from_another_run(place, capsys):
    run = place / "parts"
    run.mkdir()
    for name in ("coarse.keras", "coarse_history.csv"):
        shutil.copy(place / "run" / name, run)
    for stage in ("vqvae", "prior"):
        changes = {"vqvae_epochs": 1, "prior_epochs": 1}
        arguments = (place, "parts", "--start-from", place / "run", "--neighbours", "--stage", stage)
        assert fit(*arguments, **changes) == 0
    for name in ("vqvae", "prior"):
        assert (run / f"{name}.keras").read_bytes() != (place / "run" / f"{name}.keras").read_bytes()
    assert (run / "coarse.keras").read_bytes() == (place / "run" / "coarse.keras").read_bytes()


def test_what_cannot_be_started_from_is_a_line_before_any_training(place, capsys):
    for more, message in (
        (["--prior-filters", "12"], "its prior has filters 8, not 12"),
        (["--prior-num-blocks", "3"], "its prior has num_blocks 2, not 3"),
        (["--num-embeddings", "17"], "its vqvae has num_embeddings 16, not 17"),
        (["--image-size", "64"], "its vqvae has image_size 32, not 64"),
    ):
        assert fit(place, "refused", "--start-from", place / "run", *more) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not list((place / "refused").iterdir())


def test_other_pixels_and_background_than_those_started_from_are_told():
    start = {"start_from": "pretrained/ixi", "data": {"background": "keep"}}
    lines = progress.unlike_start({"pixel_mm": 1.5}, start)
    assert [line.split(",")[0] for line in lines] == ["1.5 mm a pixel", "--background keep"]
    assert progress.unlike_start({"pixel_mm": 2.0}, {**start, "data": {"background": "black"}}) == []


# -- predict.py ---------------------------------------------------------------------------------------------------


def call(program, run, **changes):
    """Calls a command on a run; returns its exit status."""
    return program.main(
        [str(x) for name, value in changes.items() for x in (f"--{name.replace('_', '-')}", value)]
        + ["--run-dir", str(run)]
    )


@pytest.fixture(scope="module")
def drawn(place):
    """What predict.py wrote for the run, with five samples."""
    assert call(predict, place / "run", output_dir=place / "drawn", num_samples=5, decoder="plain") == 0
    return place / "drawn"


def test_predict_draws_and_reconstructs(drawn):
    assert {path.name for path in drawn.iterdir()} == {
        "samples",
        "samples.png",
        "samples.csv",
        "positions.png",
        "reconstructions.png",
    }
    samples = sorted((drawn / "samples").iterdir())
    assert [path.name for path in samples] == [f"sample_{i:04d}.png" for i in range(5)]
    told = pd.read_csv(drawn / "samples.csv", dtype=str, keep_default_na=False)
    assert told.file.tolist() == [f"samples/{path.name}" for path in samples]
    assert set(told.label) <= {"AD", "NC"}
    for path, row in zip(samples, told.drop(columns="file").to_dict("records"), strict=True):
        with PIL.Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (32, 32))
            assert image.text == row
    assert told.synthetic.eq("a slice of no person").all()


def test_a_script_that_draws_says_nothing(tmp_path):
    script = """
from predict import TrainedModel
model = TrainedModel.from_pretrained("ixi")
images = model.sample(1)
model.bits(model.decode(model.encode(images)))
try:
    TrainedModel.from_pretrained("oasis")
except ValueError as error:
    assert "oasis: no shipped run; there are demo, ds002748, " in str(error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_predict_draws_the_same_without_any_data(place, drawn, tmp_path):
    """From a copy of the few files that it needs, where the data folder is gone; fewer samples are the first ones."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "splits.csv", *(f"{name}.keras" for name in (*run_folder.VQVAES, *run_folder.PRIORS))):
        shutil.copy(place / "run" / name, run)
    config = json.loads((run / "config.json").read_text())
    config["options"]["data"] |= {"data_dir": "/nowhere/at/all", "cache_dir": "/nowhere/cache"}
    (run / "config.json").write_text(json.dumps(config))
    shutil.copytree(drawn, tmp_path / "out")
    assert call(predict, run, output_dir=tmp_path / "out", num_samples=2) == 0
    again = sorted((tmp_path / "out" / "samples").iterdir())
    assert [path.name for path in again] == ["sample_0000.png", "sample_0001.png"]
    for path in again:
        assert path.read_bytes() == (drawn / "samples" / path.name).read_bytes()
    assert not (tmp_path / "out" / "reconstructions.png").exists()


def test_other_data_are_refused_or_left_aside(place, tmp_path, capsys):
    shutil.copytree(place / "adni", tmp_path / "adni")
    write_image(next((tmp_path / "adni").rglob("*.jpeg")), np.zeros((30, 32), "uint8"))
    with pytest.raises(UserError, match="not the data that"):
        opening.find_data(place / "run", read_config(place / "run"), tmp_path / "adni", tmp_path / "c")
    assert call(evaluate, place / "run", data_dir=tmp_path / "adni", cache_dir=tmp_path / "c") == 1
    assert "not the data that" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": "MCI"}, "--label MCI: the run knows AD, NC"),
        ({"num_samples": "0"}, "--num-samples 0: must be 1 or more"),
        ({"temperature": "0"}, "--temperature 0.0: must be above 0"),
        ({"slice_position": "2"}, "--slice-position 2.0: must be 0 or more and at most 1"),
        ({"top_p": "0"}, "--top-p 0.0: must be above 0"),
    ],
)
def test_predict_says_what_is_wrong_in_one_line(place, capsys, arguments, message):
    assert call(predict, place / "run", **arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_models_that_do_not_belong_together_are_refused(place):
    run = copy(place, "foreign")
    config = models.load_vqvae(run).get_config()
    modules.VQVAE(**config).save(run / "vqvae.keras")
    with pytest.raises(UserError, match="was trained on the codes of VQ-VAE"):
        models.load_models(run)
    with pytest.raises(UserError, match="sharp.keras: of another VQ-VAE"):
        models.load_decoders(run, "sharp")
    modules.VQVAE(**config | {"image_size": 64}).save(run / "vqvae.keras")
    with pytest.raises(UserError, match="vqvae.keras: of another run, whose image_size differs"):
        models.load_vqvae(run)
    run = copy(place, "foreign-coarse")
    modules.VQVAE(**models.load_vqvae(run, "coarse").get_config()).save(run / "coarse.keras")
    with pytest.raises(UserError, match="coarse_prior.keras: was trained on the codes of VQ-VAE"):
        models.load_models(run)


def test_models_are_the_same_whatever_keras_is_set_to_and_leave_it_so(place, data):
    images = data.pixels(data.of("test"))[..., None]
    expected = models.load_vqvae(place / "run").encode(images)
    keras.config.set_floatx("float64")
    keras.config.set_image_data_format("channels_first")
    keras.config.set_dtype_policy("float16")
    np.testing.assert_array_equal(models.load_vqvae(place / "run").encode(images), expected)
    assert keras.config.dtype_policy().name == "float16"
    assert keras.config.image_data_format() == "channels_last"


def test_a_file_that_cannot_be_opened_says_why(place, capsys):
    run = copy(place, "closed", "prior.keras")
    (run / "prior.keras").mkdir()
    assert call(predict, run) == 1
    assert capsys.readouterr().err == f"error: {run / 'prior.keras'}: Is a directory\n"


@pytest.mark.parametrize(
    ("cache_dir", "expected"),
    [("/nowhere/at/all", "cache"), ("C:\\Users\\me\\cache", "cache"), ("cache", "cache"), ("/tmp/cache", "/tmp/cache")],
)
def test_the_cache_of_another_machine_is_not_made_here(cache_dir, expected):
    assert opening.cache_here({"options": {"data": {"cache_dir": cache_dir}}}) == expected


@pytest.mark.parametrize("name", ["vqvae.keras", "coarse.keras", "prior.keras", "config.json", "splits.csv"])
def test_a_truncated_file_of_the_run_is_named(place, capsys, name):
    run = copy(place, f"truncated-{name}")
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: 30 if name == "splits.csv" else len(content) // 2])
    assert call(predict, run) == 1
    error = capsys.readouterr().err
    assert name in error
    assert error.count("\n") == 1


def test_truncated_codes_and_histories_are_named(place, data, capsys):
    run = copy(place, "truncated")
    (run / "codes.npz").write_bytes((run / "codes.npz").read_bytes()[:100])
    with pytest.raises(UserError, match="codes.npz: cannot be read"):
        opening.all_codes(run, models.load_vqvae(run), data)
    (run / "vqvae_history.csv").write_bytes(b"epoch,seconds\n1,x\n")
    with pytest.raises(UserError, match="vqvae_history.csv: damaged"):
        run_folder.read_history(run / "vqvae_history.csv")
    (run / "vqvae_history.csv").write_bytes(b"epoch,seconds\n1,2\n")
    assert fit(place, "truncated") == 1
    assert "vqvae_history.csv: damaged (no column val_reconstruction_loss)" in capsys.readouterr().err


# -- evaluate.py --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def output(place):
    """What evaluate.py wrote for the run, with as many samples as are judged."""
    assert call(evaluate, place / "run", output_dir=place / "out", num_samples=100, decoder="plain") == 0
    return place / "out"


def test_evaluate_writes_everything(output):
    pictures = ["reconstructions", "worst", "masks", "spectrum", "codebook", "bits", "history", "samples", "positions"]
    pictures += ["closest"]
    names = {f"{name}.png" for name in pictures} | {"metrics.json", "people.csv", "report.html"}
    assert {path.name for path in output.iterdir()} == names
    found = json.loads((output / "metrics.json").read_text())
    assert found["split"] == "test"
    assert found["slices"] == 18
    assert -1 <= found["reconstruction"]["ssim"]["mean"] <= 1
    assert found["reconstruction"]["ssim"]["people"] == 6
    low, high = found["reconstruction"]["psnr_db"]["ci95"]
    assert low <= found["reconstruction"]["psnr_db"]["mean"] <= high
    assert 1 <= found["codebook"]["perplexity"] <= 16
    assert found["codebook"]["bits_per_pixel"] == 2 * 4 / 16
    assert found["prior"]["bits_per_image"] == pytest.approx(2 * 64 * found["prior"]["bits_per_code"])
    assert found["training"]["prior"]["epochs"] == 2
    judged = found["realism"]
    assert judged["samples"]["number"] == 100
    assert set(judged["samples"]) == set(judged["floor"]) == set(judged["decoded_floor"])
    distances = [judged[name]["frechet_distance"] for name in ("samples", "decoded_floor")]
    assert judged["ratio"] == pytest.approx(distances[0] / distances[1])
    assert judged["excess"] == pytest.approx(distances[0] - distances[1])
    assert set(judged["anatomy"]) == {"samples", "decoded_floor", "decoded_test_slices", "test_slices"}
    assert 0 <= judged["copies"]["share_of_samples"] <= 1
    assert len(judged["samples"]["power_ratio"]) == 8


def test_baselines_and_people_are_those_of_the_test_slices(output, data):
    found = json.loads((output / "metrics.json").read_text())
    test = data.of("test")
    grey = (data.images[test.row] / 255).mean(axis=(1, 2))
    by_person = dict(iter(test.assign(grey=grey).groupby("subject_id").grey.mean().items()))
    assert found["baselines"]["black"]["l1"]["mean"] == pytest.approx(np.mean([*by_person.values()]))
    assert set(found["baselines"]) == {
        "black",
        "mean slice",
        "blur, sigma 2 pixels",
        "PCA",
        "JPEG",
        "JPEG at the prior's bits",
    }
    assert found["baselines"]["PCA"]["bits_per_pixel"] <= found["codebook"]["bits_per_pixel"]
    with (output / "people.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["subject_id"] for row in rows] == test.subject_id.unique().tolist()
    assert np.mean([float(row["ssim"]) for row in rows]) == pytest.approx(found["reconstruction"]["ssim"]["mean"])
    assert np.mean([float(row["bits_per_code"]) for row in rows]) == pytest.approx(found["prior"]["bits_per_code"])


def test_metrics_are_those_of_scikit_image_on_the_test_people(place, output, data):
    found = json.loads((output / "metrics.json").read_text())
    model = keras.saving.load_model(place / "run" / "vqvae.keras", compile=False)
    by_person = {}
    for one in data.of("test").itertuples():
        image = data.images[one.row].astype("float32") / 255
        made = np.asarray(model(image[None, ..., None])["reconstruction"])[0, ..., 0]
        value = structural_similarity(
            image, made, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1
        )
        by_person.setdefault(one.subject_id, []).append(value)
    expected = np.mean([np.mean(values) for values in by_person.values()])
    assert found["reconstruction"]["ssim"]["mean"] == pytest.approx(expected, abs=1e-5)


def test_the_report_stands_alone(output):
    page = (output / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    for path in output.glob("*.png"):
        assert f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" in page
    found = json.loads((output / "metrics.json").read_text())
    assert found["splits_sha256"] in page
    assert f"<td>{found['reconstruction']['psnr_db']['mean']:.2f} (" in page
    assert 'id="realism"' in page
    parser = HTMLParser()
    parser.feed(page)
    parser.close()


def test_a_sharp_decoder_for_the_same_codes_and_few_samples(place, output, tmp_path, capsys):
    plain = copy(place, "plain", "sharp.keras")
    assert call(evaluate, plain, decoder="sharp") == 1
    assert "run train.py --stage sharp first" in capsys.readouterr().err
    assert call(evaluate, place / "run", output_dir=tmp_path, decoder="sharp", num_samples=2) == 0
    assert "samples are not judged" in capsys.readouterr().out
    sharp, plain = (json.loads((path / "metrics.json").read_text()) for path in (tmp_path, output))
    assert sharp["decoder"] == "sharp"
    assert "realism" not in sharp
    assert sharp["codebook"] == plain["codebook"]
    assert sharp["prior"] == plain["prior"]
    assert sharp["reconstruction"] != plain["reconstruction"]


def test_slices_without_detail_are_measured_all_the_same(data, place):
    """Equal slices: no power in any band, nothing for principal components."""
    flat = np.full_like(data.images, 100)
    even = dataclasses.replace(data, images=flat)
    codes, per_slice, ratios = measure.reconstruct(models.load_vqvae(place / "run"), even)
    assert ratios == [None] * 8
    json.dumps(ratios, allow_nan=False)
    assert len(codes) == len(per_slice) == 18
    found = baselines.measure(even, 0.5, 2, 0.1)
    assert found["PCA"]["l1"]["mean"] == pytest.approx(0, abs=1e-6)
    assert found["PCA"]["bits_per_pixel"] == 0


def test_black_test_slices_are_told_and_left_out(data):
    test = data.of("test")
    images = np.array(data.images)
    assert measure.without_black(data)[1] == []
    images[test.row[:3]] = 0
    fewer, faults = measure.without_black(dataclasses.replace(data, images=images))
    assert faults == ["3 of 18 test slices are black and left out of every figure"]
    assert fewer.of("test").row.tolist() == test.row[3:].tolist()
    images[test.row] = 0
    same, faults = measure.without_black(dataclasses.replace(data, images=images))
    assert faults == ["every test slice is black: no figure here means anything"]
    assert len(same.of("test")) == 18


@pytest.mark.parametrize("grey", [0, 100])
def test_samples_against_equal_test_slices_give_figures_and_no_traceback(data, grey, rng):
    images = np.array(data.images)
    images[data.of("test").row] = grey
    alike = dataclasses.replace(data, images=images)
    samples = rng.random((20, 32, 32)).astype("float32")
    perfect = types.SimpleNamespace(encode=np.asarray, decode=np.asarray)
    codes = alike.pixels(alike.of("test"))[..., None]
    found, _ = realism.judge_samples(samples, np.full(20, 0.5), alike, perfect, codes)
    json.dumps(found, allow_nan=False)


def test_a_collapsed_codebook_is_said(place, capsys):
    run = copy(place, "collapsed")
    vqvae = models.load_vqvae(run)
    for level in vqvae.levels():
        entries = np.full(level.codebook.shape, 1e6, "float32")  # out of reach, but for one
        entries[3] = 0
        level.set_codebook(entries)
    vqvae.save(run / "vqvae.keras")
    prior = keras.saving.load_model(run / "prior.keras", compile=False)
    whose = models.fingerprint(vqvae, models.load_vqvae(run, "coarse"))
    modules.PixelCNN(**prior.get_config() | {"vqvae_fingerprint": whose}).save(run / "prior.keras")
    assert call(evaluate, run, output_dir=run / "out", num_samples=1, decoder="plain") == 0
    said = "the codebook has collapsed: 6.2% of the codes in use, perplexity 1.0; train again with "
    said += "--restart-threshold above 0, a lower --vqvae-learning-rate or a smaller --num-embeddings"
    assert f"warning: {said}" in capsys.readouterr().out
    assert json.loads((run / "out" / "metrics.json").read_text())["faults"] == [said]
    assert said in (run / "out" / "report.html").read_text(encoding="utf-8")


def test_copies_and_samples_that_are_alike_are_said():
    healthy = {
        "codebook": {"codes_in_use": 1.0, "perplexity_by_level": [100.0, 60.0], "num_embeddings": 256},
        "realism": {
            "copies": {"share_of_samples": 0.01, "share_of_samples_by_reconstructions": 0.01},
            "samples": {"ms_ssim_diversity": 0.6},
            "floor": {"ms_ssim_diversity": 0.6},
        },
    }
    assert measure.find_faults(healthy) == []
    for part, values, said in (
        ("copies", {"share_of_samples": 0.4}, "samples copy training slices: 40%"),
        ("copies", {"share_of_samples_by_reconstructions": 0.3}, "samples copy training slices: 30%"),
        ("samples", {"ms_ssim_diversity": 0.9}, "samples are alike: MS-SSIM of two of them 0.90"),
    ):
        values = healthy["realism"][part] | values
        (fault,) = measure.find_faults(healthy | {"realism": healthy["realism"] | {part: values}})
        assert fault.startswith(said)


def test_a_copy_to_give_away_is_half_as_large_and_draws(place, tmp_path):
    copied = tmp_path / "copy"
    arguments = ["--run-dir", str(place / "run"), "--output-dir", str(copied), "--data-dir", "somewhere"]
    assert ship.main(arguments) == 0
    of_run, of_copy = (models.load_models(run, "sharp") for run in (place / "run", copied))
    for mine, other in (
        *((getattr(of_run, name), getattr(of_copy, name)) for name in ("coarse", "coarse_prior", "prior", "vqvae")),
        (of_run.decoders["plain"], of_copy.decoders["plain"]),
    ):
        for a, b in zip(mine.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(b, a.astype("float16").astype(a.dtype) if a.dtype == "float32" else a)
        assert any((a != b).any() for a, b in zip(mine.get_weights(), other.get_weights(), strict=True))
    with zipfile.ZipFile(copied / "prior.keras") as file, h5py.File(file.open("model.weights.h5")) as weights:
        kinds = set()
        weights.visititems(lambda _, item: kinds.add(str(item.dtype)) if isinstance(item, h5py.Dataset) else None)
    assert "float16" in kinds
    assert "float32" not in kinds
    assert str(place) not in (copied / "config.json").read_text()
    assert call(predict, copied, output_dir=tmp_path / "out", num_samples=2, decoder="sharp") == 0
    assert len(list((tmp_path / "out" / "samples").iterdir())) == 2


def test_a_run_without_coarse_codes_does_all_that_others_do(place, tmp_path, capsys):
    """The two models of the papers by themselves: --preset vqvae-2017."""
    assert fit(place, "alone", "--preset", "vqvae-2017") == 0
    run = place / "alone"
    assert not list(run.glob("coarse*"))
    assert fit(place, "alone", "--preset", "vqvae-2017", "--stage", "coarse") == 1
    assert "--stage coarse: this run has no coarse codes; give one of all, vqvae, prior" in capsys.readouterr().err
    assert fit(place, "alone", "--preset", "vqvae-2017", "--dry-run") == 0
    assert "prior: 2 epochs" in capsys.readouterr().out
    model = predict.TrainedModel(run)
    assert model.unfinished == []
    images = model.sample(3, label="AD")
    bits, of_coarse = model.bits(images)
    assert bits.shape == (3, 8, 8, 2)
    assert of_coarse.sum() == 0
    told = {"codes": model.encode(images), "slice_position": np.float32([0.1, 0.2, 0.3])}
    lengths = [modules.code_lengths(model.models.prior, told | {"label": np.full(3, k, "int32")}) for k in (1, 2)]
    cheapest = np.argmin([bits.sum(axis=(1, 2, 3)) for bits in lengths], axis=0) + 1
    kinds, _ = model.likeliest(told["codes"], model.encode_coarse(images), None, told["slice_position"])
    np.testing.assert_array_equal(kinds, cheapest)
    mask = np.zeros((32, 32), bool)
    mask[8:16, 8:16] = True
    completed = model.complete(images[0], mask, 2)
    np.testing.assert_array_equal(completed[:, ~mask], [images[0][~mask]] * 2)
    scan, hidden = tmp_path / "scan.png", tmp_path / "mask.png"
    write_image(scan, (images[0] * 255).astype("uint8"))
    write_image(hidden, mask.astype("uint8") * 255)
    for more in ([], ["--mask", str(hidden), "--num-samples", "1"], ["--anomaly"]):
        given = ["--run-dir", str(run), "--input", str(scan), "--output-dir", str(tmp_path / "out"), *more]
        assert predict.main(given) == 0
    assert predict.main(["--run-dir", str(run), "--coarse-temperature", "0.8"]) == 1
    assert "has no coarse codes; leave it out" in capsys.readouterr().err
    assert evaluate.main(["--run-dir", str(run), "--num-samples", "6", "--output-dir", str(tmp_path)]) == 0
    prior = json.loads((tmp_path / "metrics.json").read_text())["prior"]
    assert prior["coarse_bits_per_image"] == 0


def test_256_by_256(tmp_path):
    write_oasis(tmp_path / "adni", train=2, validate=1, test=1, slices=2, size=256)
    assert fit(tmp_path, "run", "--stage", "vqvae", vqvae_epochs=1, vqvae_batch_size=2, downsampling=8) == 0
    vqvae = models.load_vqvae(tmp_path / "run")
    assert vqvae.decode(np.zeros((1, 32, 32, 2), "int32")).shape == (1, 256, 256, 1)
