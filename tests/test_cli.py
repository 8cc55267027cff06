"""Both command lines, end to end, in a temporary folder."""

import base64
import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import keras
import numpy as np
import PIL.Image
import pytest
from conftest import write_adni, write_image, write_oasis

import checkpointing
import dataset
import decoding
import devices
import modules
import predict
import run_folder
import train
from benchmarks import kills

ROOT = Path(__file__).parent.parent
SMALL = {
    "--vqvae-epochs": 3,
    "--prior-epochs": 4,
    "--sharp-epochs": 4,
    "--sharp-batch-size": 4,
    "--vqvae-batch-size": 8,
    "--base-filters": 4,
    "--num-embeddings": 16,
    "--embedding-dim": 4,
    "--prior-filters": 8,
    "--prior-num-blocks": 5,
    "--prior-average-over": 0.5,
    "--prior-dropout": 0.1,
    "--restart-threshold": 0.9,
    "--precision": "float32",
}
EXECUTE = "os.execv(sys.argv[1], sys.argv[1:])"
FILES = {
    "config.json",
    "splits.csv",
    "vqvae.keras",
    "codes.npz",
    "prior.keras",
    "vqvae_history.csv",
    "prior_history.csv",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders of one small ADNI data set and one run on it."""
    folder = tmp_path_factory.mktemp("cli")
    write_adni(folder / "adni")
    assert train.main(command(folder, "run")) == 0
    return folder


@pytest.fixture(autouse=True)
def heeded():
    """SIGINT is as a terminal has it, also where these tests are a script's job in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def command(folder, run, *more):
    paths = {"--data-dir": folder / "adni", "--run-dir": folder / run, "--cache-dir": folder / "cache"}
    return [*(str(part) for option in (paths | SMALL).items() for part in option), *more]


def history(path):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in run_folder.read_history(path)]


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
    assert list(rows[0]) == ["path", "subject_id", "session", "slice_index", "label", "split"]
    sides = {}
    for row in rows:
        assert sides.setdefault(row["subject_id"], row["split"]) == row["split"]
    assert (len(history(run / "vqvae_history.csv")), len(history(run / "prior_history.csv"))) == (3, 4)
    with np.load(run / "codes.npz") as file:
        assert file["codes"].shape == (len(rows), 8, 8)


def test_the_same_command_again_changes_nothing(place, capsys):
    before = {path: path.stat().st_mtime_ns for path in (place / "run").iterdir() if path.is_file()}
    assert train.main(command(place, "run")) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "already trained" in capsys.readouterr().out


def test_other_settings_are_refused_with_what_differs(place, capsys):
    assert train.main(command(place, "run", "--commitment-cost", "0.5", "--seed", "3")) == 1
    error = capsys.readouterr().err
    assert "commitment_cost was 0.25 and is now 0.5" in error
    assert "seed was 0 and is now 3" in error
    assert error.count("\n") == 1


def test_killed_three_times_equals_left_alone(place, capsys):
    """In an epoch of either stage, and between two files of one moment; once stopped as a scheduler does it."""
    run = place / "killed"

    def rows(stage):
        path = run / f"{stage}_history.csv"
        return max(0, path.read_text().count("\n") - 1) if path.exists() else 0

    def kill(when, pause, number=signal.SIGKILL):
        """Starts training, waits for a moment and sends a signal; returns the exit status and the last line."""
        program = [sys.executable, "train.py", *command(place, "killed")]
        process = subprocess.Popen(program, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        while not when():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        time.sleep(pause)
        process.send_signal(number)
        errors = process.communicate()[1]
        return process.returncode, (errors.splitlines() or [""])[-1]

    assert kill(lambda: rows("vqvae") >= 1, 0.1)[0] == -signal.SIGKILL
    assert kill(lambda: rows("vqvae") >= 2, 0, signal.SIGTERM) == (143, "stopped; the same command goes on")
    assert kill(lambda: rows("prior") >= 1, 0)[0] == -signal.SIGKILL  # its state is not yet written
    assert kill(lambda: rows("prior") >= 2, 0)[0] == -signal.SIGKILL
    capsys.readouterr()
    assert train.main(command(place, "killed")) == 0
    assert re.search("prior: from epoch [234]", capsys.readouterr().out)  # from a state, not from the beginning
    assert kills.differences(run, place / "run") == []


@pytest.fixture(scope="module")
def sharpened(place):
    """A run of all three stages, left alone."""
    shutil.copytree(place / "run", place / "alone")
    assert train.main(command(place, "alone", "--stage", "sharp")) == 0
    return place / "alone"


def signals(monkeypatch, moments):
    """Sends a signal, when a step has begun, at each of `moments`: (epochs in the history, batch, signal); in turn."""
    as_it_is = checkpointing.Checkpoint.on_train_batch_begin

    def with_signal(self, batch, logs=None):
        as_it_is(self, batch, logs)
        if moments and moments[0][:2] == (len(self.history), batch):
            signal.raise_signal(moments[0][2])
            signal.raise_signal(moments.pop(0)[2])  # by two ways at once

    monkeypatch.setattr(checkpointing.Checkpoint, "on_train_batch_begin", with_signal)


def test_stopped_in_the_middle_of_an_epoch_equals_left_alone(place, sharpened, monkeypatch, capsys):
    """Ctrl-C and SIGTERM, in the first epoch and in later ones, twice in one, in its last step: that step is kept."""
    run, moments = place / "stopped", []
    signals(monkeypatch, moments)
    with (sharpened / "splits.csv").open() as file:
        slices = sum(row["split"] == "train" for row in csv.DictReader(file))
    last = -(-slices // SMALL["--sharp-batch-size"]) - 1
    for stage, stops in {
        "vqvae": [(0, 0, signal.SIGINT, "1, batch 2; ")],
        "prior": [(0, 1, signal.SIGINT, "1, batch 3; "), (2, 0, signal.SIGTERM, "3, batch 2; ")],
        "sharp": [
            (1, 1, signal.SIGTERM, "2, batch 3; "),
            (1, 0, signal.SIGTERM, "2, batch 4; "),
            (2, last, signal.SIGINT, "4\n"),
        ],
    }.items():
        arguments, goes_on = command(place, "stopped", "--stage", stage), ""
        for *moment, then in stops:
            moments.append(tuple(moment))
            assert train.main(arguments) == 128 + moment[2]
            said = capsys.readouterr()
            assert said.err.endswith("stopped; the same command goes on\n")
            assert goes_on in said.out
            goes_on = f"{stage}: from epoch {then}"
        assert train.main(arguments) == 0
        assert goes_on in capsys.readouterr().out
        assert history(run / f"{stage}_history.csv") == history(sharpened / f"{stage}_history.csv")
    assert kills.differences(run, sharpened) == []


def test_a_second_signal_stops_at_once(place, monkeypatch, capsys):
    def with_signals(self, batch, logs=None):
        self.unsaved = True
        if batch == 1:
            signal.raise_signal(signal.SIGINT)
            self.stopped_at -= 2 * checkpointing.ONE_SIGNAL_S
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(checkpointing.Checkpoint, "on_train_batch_begin", with_signals)
        assert train.main(command(place, "twice")) == 143
    assert not (place / "twice" / "vqvae_state.weights.h5").exists()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        signals(monkeypatch, [(0, 1, signal.SIGINT)])
        assert train.main(command(place, "twice", "--stage", "vqvae")) == 0  # as a script's job in the background
    finally:
        signal.signal(signal.SIGINT, before)
    assert "vqvae: from epoch" not in capsys.readouterr().out


def test_a_stage_stopped_in_its_first_epoch_starts_again_on_another_vqvae(place, sharpened, monkeypatch, capsys):
    """Both later stages were begun on a VQ-VAE that then went on learning."""
    run, moments = place / "early", []
    signals(monkeypatch, moments)
    for stage, moment in (("vqvae", (1, 2)), ("prior", (0, 2)), ("sharp", (0, 2))):
        moments.append((*moment, signal.SIGTERM))
        assert train.main(command(place, "early", "--stage", stage)) == 143
        assert (run / f"{stage}_state.weights.h5").exists()
    capsys.readouterr()
    assert train.main(command(place, "early")) == train.main(command(place, "early", "--stage", "sharp")) == 0
    assert "vqvae: from epoch 2, batch 4" in (said := capsys.readouterr().out)
    assert "prior: from" not in said
    assert "sharp: from" not in said
    assert kills.differences(run, sharpened) == []


def test_a_signal_between_two_epochs_stops_at_once(place, monkeypatch, capsys):
    as_it_is, times = train.MovedCodes.set_epoch, []

    def with_signal(self, epoch):
        times.append(epoch)
        if len(times) == 2:
            signal.raise_signal(signal.SIGTERM)
        as_it_is(self, epoch)

    run = place / "between"
    shutil.copytree(place / "run", run)
    for name in ("prior.keras", "prior_history.csv", "prior_state.weights.h5"):
        (run / name).unlink()
    monkeypatch.setattr(train.MovedCodes, "set_epoch", with_signal)
    assert train.main(command(place, "between")) == 143
    assert times == [0, 1]
    assert len(history(run / "prior_history.csv")) == 1
    assert train.main(command(place, "between")) == 0
    assert kills.differences(run, place / "run") == []


def test_a_stopped_epoch_whose_state_cannot_be_written_goes_on_from_the_one_before(place, monkeypatch, capsys):
    run, as_it_is, times = place / "half", run_folder.save, []
    begin = checkpointing.Checkpoint.on_train_batch_begin

    def with_signal(self, batch, logs=None):
        begin(self, batch, logs)
        signal.raise_signal(signal.SIGTERM)

    def save(write, path):
        times.append(path.name)
        if len(times) == 2:
            raise OSError(28, "No space left on device", str(path))
        as_it_is(write, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpointing.Checkpoint, "on_train_batch_begin", with_signal)
        patch.setattr(run_folder, "save", save)
        assert train.main(command(place, "half")) == 143
        before = (run / "vqvae_state.weights.h5").read_bytes()
        assert train.main(command(place, "half")) == 1
        assert "vqvae_state.weights.h5: No space left on device" in capsys.readouterr().err
    assert times == 2 * ["vqvae_state.weights.h5"]
    assert (run / "vqvae_state.weights.h5").read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr(dataset.Batches, "__len__", lambda self: 3)
        assert train.main(command(place, "half")) == 1
        assert "its epochs had not 3 batches" in capsys.readouterr().err
    assert train.main(command(place, "half")) == 0
    assert "vqvae: from epoch 1, batch 2; " in capsys.readouterr().out
    assert kills.differences(run, place / "run") == []


def test_a_full_disk_is_said_and_loses_nothing(place):
    """A limit on the size of files stands in for the disk: histories still fit, models do not."""
    run = place / "full"
    shutil.copytree(place / "run", run)
    for name in ("prior.keras", "prior_history.csv", "prior_state.weights.h5"):
        (run / name).unlink()
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    program = [sys.executable, "train.py", *command(place, "full")]
    limit = f"import resource, os, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)); {EXECUTE}"
    done = subprocess.run(
        [sys.executable, "-c", limit, *program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "File too large" in errors[0]
    assert "Traceback" not in done.stderr
    assert {name: (run / name).read_bytes() for name in before} == before
    assert train.main(command(place, "full")) == 0
    assert kills.differences(run, place / "run") == []


def test_the_prior_learns_codes_of_moved_slices_anew_each_epoch(place):
    _, data, slices = run_folder.reopen(place / "run")
    vqvae = run_folder.load_model(place / "run" / "vqvae.keras", modules.VQVAE)
    codes = run_folder.extract_codes(place / "run", vqvae, data, slices)
    train_rows = np.flatnonzero([one.split == "train" for one in slices])
    inputs = run_folder.select(run_folder.prior_inputs(codes, slices, ["AD", "NC"]), train_rows)

    def epoch(number, max_shift):
        images = [slices[i].row for i in train_rows]
        batches = train.MovedCodes(inputs, data.images, np.array(images), vqvae, max_shift, len(images), seed=0)
        batches.set_epoch(number)
        (batch,) = batches[0]  # all of them, in order
        return batch

    for name, values in epoch(0, 0).items():
        np.testing.assert_array_equal(values, inputs[name])
    first, second, again = epoch(0, 3), epoch(1, 3), epoch(0, 3)
    np.testing.assert_array_equal(first["codes"], again["codes"])
    assert (first["codes"] != second["codes"]).mean() > 0.05
    np.testing.assert_array_equal(first["slice_position"], inputs["slice_position"])
    np.testing.assert_array_equal(inputs["codes"], codes[train_rows])  # others may share them
    down, right = np.random.default_rng([0, 1]).integers(-3, 4, (2, len(train_rows)))
    moved = np.roll(np.pad(data.images[slices[train_rows[2]].row], 3), (down[2], right[2]), (0, 1))[3:-3, 3:-3]
    np.testing.assert_array_equal(second["codes"][2], vqvae.encode(dataset.as_float(moved[None]))[0])


@pytest.fixture(scope="module")
def output(place):
    """What predict.py wrote for the run, with five samples."""
    assert (
        predict.main(["--run-dir", str(place / "run"), "--output-dir", str(place / "out"), "--num-samples", "5"]) == 0
    )
    return place / "out"


def test_predict_writes_everything(output):
    pictures = ["reconstructions", "worst", "masks", "spectrum", "codebook", "bits", "history", "samples", "positions"]
    names = {f"{name}.png" for name in pictures} | {"metrics.json", "people.csv", "report.html", "samples"}
    assert {path.name for path in output.iterdir()} == names
    samples = sorted((output / "samples").iterdir())
    assert [path.name for path in samples] == [f"sample_{i:04d}.png" for i in range(5)]
    with PIL.Image.open(samples[0]) as image:
        assert (image.mode, image.size) == ("L", (32, 32))
    found = json.loads((output / "metrics.json").read_text())
    assert found["split"] == "test"
    assert found["slices"] == 18
    assert -1 <= found["reconstruction"]["ssim"]["mean"] <= 1
    assert found["reconstruction"]["ssim"]["people"] == 6
    low, high = found["reconstruction"]["psnr_db"]["ci95"]
    assert low <= found["reconstruction"]["psnr_db"]["mean"] <= high
    assert 1 <= found["codebook"]["perplexity"] <= 16
    assert found["codebook"]["bits_per_pixel"] == 4 / 16
    assert found["prior"]["bits_per_image"] == pytest.approx(64 * found["prior"]["bits_per_code"])


def test_baselines_and_people_are_those_of_the_test_slices(place, output):
    found = json.loads((output / "metrics.json").read_text())
    _, data, slices = run_folder.reopen(place / "run")
    test = [one for one in slices if one.split == "test"]
    by_person = {}
    for one in test:
        by_person.setdefault(one.subject_id, []).append((data.images[one.row] / 255.0).mean())
    assert found["baselines"]["black"]["l1"]["mean"] == pytest.approx(np.mean([*map(np.mean, by_person.values())]))
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
    assert [row["subject_id"] for row in rows] == list(by_person)
    assert np.mean([float(row["ssim"]) for row in rows]) == pytest.approx(found["reconstruction"]["ssim"]["mean"])
    assert np.mean([float(row["bits_per_code"]) for row in rows]) == pytest.approx(found["prior"]["bits_per_code"])


def test_the_report_stands_alone(output):
    page = (output / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    for name in (
        "reconstructions",
        "worst",
        "masks",
        "spectrum",
        "codebook",
        "bits",
        "history",
        "samples",
        "positions",
    ):
        data = base64.b64encode((output / f"{name}.png").read_bytes()).decode()
        assert f"data:image/png;base64,{data}" in page
    found = json.loads((output / "metrics.json").read_text())
    assert found["splits_sha256"] in page
    assert f"<td>{found['reconstruction']['psnr_db']['mean']:.2f} (" in page
    parser = HTMLParser()
    parser.feed(page)
    parser.close()


def test_many_samples_are_judged(place, tmp_path, capsys):
    arguments = ["--run-dir", place / "run", "--output-dir", tmp_path, "--num-samples", 100]
    assert predict.main([str(argument) for argument in arguments]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())["realism"]
    assert found["samples"]["number"] == 100
    assert set(found["samples"]) == set(found["floor"]) == set(found["decoded_floor"])
    assert 0 <= found["copies"]["share_of_samples"] <= 1
    assert len(found["samples"]["power_ratio"]) == 8
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="realism"' in page
    assert (tmp_path / "closest.png").exists()
    assert "not judged" not in capsys.readouterr().out


def test_a_sharp_decoder_for_the_same_codes(place, tmp_path, capsys):
    arguments = ["--run-dir", str(place / "run"), "--output-dir", str(tmp_path / "sharp"), "--decoder", "sharp"]
    assert predict.main(arguments) == 1
    assert "run train.py --stage sharp first" in capsys.readouterr().err
    run = damaged(place, "sharpened")
    sharpen = [*command(place, "sharpened"), "--stage", "sharp"]
    assert train.main([*sharpen, "--sharp-epochs", "3"]) == 0  # set when the phase begins, and not the run
    assert train.main(sharpen) == 1
    assert "sharp_training.epochs was 3 and is now 4" in capsys.readouterr().err
    models = [run_folder.load_model(run / name, modules.VQVAE) for name in ("vqvae.keras", "sharp.keras")]
    assert models[0].fingerprint() == models[1].fingerprint()
    arguments[1] = str(run)
    assert predict.main([*arguments, "--num-samples", "2"]) == 0
    assert json.loads((tmp_path / "sharp" / "metrics.json").read_text())["decoder"] == "sharp"


def test_fewer_samples_are_the_first_ones(place, output, tmp_path):
    shutil.copytree(output, tmp_path / "out")
    arguments = ["--run-dir", place / "run", "--output-dir", tmp_path / "out", "--num-samples", 2]
    assert predict.main([str(argument) for argument in arguments]) == 0
    again = sorted((tmp_path / "out" / "samples").iterdir())
    assert [path.name for path in again] == ["sample_0000.png", "sample_0001.png"]
    for path in again:
        assert path.read_bytes() == (output / "samples" / path.name).read_bytes()


def test_metrics_are_those_of_scikit_image_on_the_test_people(place, output):
    from skimage.metrics import structural_similarity

    found = json.loads((output / "metrics.json").read_text())
    _, data, slices = run_folder.reopen(place / "run")
    model = keras.saving.load_model(place / "run" / "vqvae.keras", compile=False)
    by_person = {}
    for one in slices:
        if one.split == "test":
            image = data.images[one.row].astype("float32") / 255
            output = np.asarray(model(image[None, ..., None])["reconstruction"])[0, ..., 0]
            value = structural_similarity(
                image, output, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1
            )
            by_person.setdefault(one.subject_id, []).append(value)
    expected = np.mean([np.mean(values) for values in by_person.values()])
    assert found["reconstruction"]["ssim"]["mean"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run-dir", "nowhere"], "no run here"),
        (["--label", "MCI"], "--label MCI: the run knows AD, NC"),
        (["--num-samples", "0"], "--num-samples 0: must be 1 or more"),
        (["--temperature", "0"], "--temperature 0.0: must be above 0"),
        (["--slice-position", "2"], "--slice-position 2.0: must be from 0 to 1"),
        (["--top-p", "0"], "--top-p 0.0: must be above 0"),
    ],
)
def test_predict_says_what_is_wrong_in_one_line(place, capsys, arguments, message):
    assert predict.main(["--run-dir", str(place / "run"), *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def damaged(place, name):
    """A copy of the run to damage."""
    run = place / name
    shutil.copytree(place / "run", run)
    return run


def test_a_prior_of_another_vqvae_is_refused(place, capsys):
    run = damaged(place, "foreign")
    config = run_folder.load_model(run / "vqvae.keras", modules.VQVAE).get_config()
    modules.VQVAE(**config).save(run / "vqvae.keras")
    assert predict.main(["--run-dir", str(run)]) == 1
    assert "was trained on the codes of VQ-VAE" in capsys.readouterr().err
    modules.VQVAE(**config | {"image_size": 64}).save(run / "vqvae.keras")
    assert predict.main(["--run-dir", str(run)]) == 1
    assert "vqvae.keras: of another run, whose image_size differs" in capsys.readouterr().err


def test_a_run_folder_in_which_another_process_trains_is_left_alone(place, capsys):
    before = {path: path.stat().st_mtime_ns for path in (place / "run").iterdir() if path.is_file()}
    program = (
        "import pathlib, run_folder, sys\n"
        "with run_folder.alone_in(pathlib.Path(sys.argv[1])):\n"
        "    print(flush=True)\n"
        "    input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(place / "run")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    other.stdout.readline()  # it has the folder
    assert train.main(command(place, "run")) == 1
    assert "another train.py is at work here" in capsys.readouterr().err
    other.communicate(b"\n")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert train.main(command(place, "run")) == 0


def test_a_file_that_cannot_be_saved_leaves_nothing_behind(tmp_path):
    path = tmp_path / "model.weights.h5"
    path.write_bytes(b"the last one")

    def write(partial):
        assert partial.stat().st_size == len("the last one")
        partial.write_bytes(b"half of the next")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        run_folder.save(write, path)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"the last one"


def test_half_a_picture_never_stands_under_its_name(tmp_path):
    path = tmp_path / "samples.png"
    path.write_bytes(b"the last one")
    picture = PIL.Image.new("L", (8, 8))

    def write(partial):
        picture.save(partial)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        decoding.write_whole(path, write)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"the last one"
    decoding.write_whole(path, picture.save)
    with PIL.Image.open(path) as written:
        assert written.size == (8, 8)


def test_every_test_slice_is_measured_on_any_number_of_devices(place, monkeypatch):
    _, data, slices = run_folder.reopen(place / "run")
    vqvae = run_folder.load_model(place / "run" / "vqvae.keras", modules.VQVAE)
    monkeypatch.setattr(devices, "number", lambda: 4)
    codes, per_slice, _ = predict.reconstruct(vqvae, data, slices)
    assert len(codes) == len(per_slice) == sum(one.split == "test" for one in slices) == 18


def test_a_collapsed_codebook_is_said(place, capsys):
    run = damaged(place, "collapsed")
    vqvae = run_folder.load_model(run / "vqvae.keras", modules.VQVAE)
    entries = np.full(vqvae.quantizer.codebook.shape, 1e6, "float32")  # out of reach, but for one
    entries[3] = 0
    vqvae.quantizer.set_codebook(entries)
    vqvae.save(run / "vqvae.keras")
    prior = run_folder.load_model(run / "prior.keras", modules.PixelCNN)
    modules.PixelCNN(**prior.get_config() | {"vqvae_fingerprint": vqvae.fingerprint()}).save(run / "prior.keras")
    output = run / "out"
    assert predict.main(["--run-dir", str(run), "--output-dir", str(output), "--num-samples", "1"]) == 0
    said = "the codebook has collapsed: 6% of the codes in use, perplexity 1.0"
    assert f"warning: {said}" in capsys.readouterr().out
    assert json.loads((output / "metrics.json").read_text())["faults"] == [said]
    assert said in (output / "report.html").read_text(encoding="utf-8")


def test_copies_and_samples_that_are_alike_are_said():
    healthy = {
        "codebook": {"codes_in_use": 1.0, "perplexity": 100.0, "num_embeddings": 256},
        "realism": {
            "copies": {"share_of_samples": 0.01, "share_of_samples_by_reconstructions": 0.01},
            "samples": {"ms_ssim_diversity": 0.6},
            "floor": {"ms_ssim_diversity": 0.6},
        },
    }
    assert predict.find_faults(healthy, conditions_drawn=True) == []
    for part, values, said in (
        ("copies", {"share_of_samples": 0.4}, "samples copy training slices: 40%"),
        ("copies", {"share_of_samples_by_reconstructions": 0.3}, "samples copy training slices: 30%"),
        ("samples", {"ms_ssim_diversity": 0.9}, "samples are alike: MS-SSIM of two of them 0.90"),
    ):
        values = healthy["realism"][part] | values
        (fault,) = predict.find_faults(healthy | {"realism": healthy["realism"] | {part: values}}, True)
        assert fault.startswith(said)


@pytest.mark.parametrize("name", ["vqvae.keras", "prior.keras", "config.json", "codes.npz"])
def test_a_truncated_file_of_the_run_is_named(place, capsys, name):
    run = damaged(place, f"truncated-{name}")
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: len(content) // 2])
    assert predict.main(["--run-dir", str(run)]) == 1
    error = capsys.readouterr().err
    assert name in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["vqvae", "prior"])
def test_a_model_that_was_removed_is_trained_again(place, name):
    run = damaged(place, f"removed-{name}")
    (run / f"{name}.keras").unlink()
    assert train.main(command(place, run.name, "--stage", name)) == 0
    models = [keras.saving.load_model(folder / f"{name}.keras") for folder in (run, place / "run")]
    for again, first in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_array_equal(again, first)


def test_changed_data_are_refused(place, tmp_path, capsys):
    shutil.copytree(place / "adni", tmp_path / "adni")
    write_image(next((tmp_path / "adni").rglob("*.jpeg")), np.zeros((30, 32), "uint8"))
    arguments = [
        "--run-dir",
        str(place / "run"),
        "--data-dir",
        str(tmp_path / "adni"),
        "--cache-dir",
        str(tmp_path / "c"),
    ]
    assert predict.main(arguments) == 1
    assert "not the data that" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image-size", "30"], "must be a multiple of --downsampling 4"),
        (["--prior-batch-size", "0"], "--prior-batch-size 0: must be above 0"),
        (["--prior-max-shift", "-1"], "--prior-max-shift -1: must be from 0 to 64"),
        (["--downsampling", "3"], "downsampling must be 2, 4, 8 or 16"),
        (["--downsampling", "0", "--image-size", "32"], "must be a multiple of --downsampling 0"),
        (["--seed", "-1"], "--seed -1: must be from 0"),
        (["--prior-num-blocks", "2"], "receptive field"),
        (["--loss", "l3"], 'loss must be "l1", "l2" or "l1_ssim"'),
        (["--subject-regex", "(x"], "not a regular expression"),
        (["--num-embeddings", "20000"], "cannot initialise a codebook"),
        (["--num-embeddings", "100000"], "must be 65536 or fewer"),
        (["--test-fraction", "2"], "--test-fraction 2"),
    ],
)
def test_train_says_what_is_wrong_in_one_line(place, capsys, arguments, message):
    run = f"bad{abs(hash(tuple(arguments)))}"
    assert train.main(command(place, run, *arguments)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_skipped_files_are_listed_in_the_run_folder(tmp_path, capsys):
    folder = write_oasis(tmp_path / "adni")
    (folder / "keras_png_slices_train" / "case_002_slice_1.nii.png").write_bytes(b"")
    assert train.main(command(tmp_path, "run", "--stage", "vqvae")) == 1
    assert "case_002_slice_1.nii.png: the file is empty" in capsys.readouterr().err
    assert train.main(command(tmp_path, "run", "--stage", "vqvae", "--skip-bad-files")) == 0
    assert "case_002_slice_1.nii.png\tthe file is empty" in (tmp_path / "run" / "bad_files.txt").read_text()


def test_256_by_256(tmp_path):
    write_oasis(tmp_path / "adni", train=2, validate=1, test=1, slices=2, size=256)
    few = ["--vqvae-epochs", "1", "--prior-epochs", "1", "--vqvae-batch-size", "2", "--prior-filters", "8"]
    assert train.main([*command(tmp_path, "run"), *few]) == 0
    assert predict.main(["--run-dir", str(tmp_path / "run"), "--num-samples", "1"]) == 0
    with PIL.Image.open(tmp_path / "run" / "predictions" / "samples" / "sample_0000.png") as image:
        assert image.size == (256, 256)


@pytest.mark.parametrize("preset", ["1mm", "vqvae-2017", "three-conv"])
def test_presets(tmp_path, preset):
    write_oasis(tmp_path / "adni", train=12)
    small = ["--base-filters", "4", "--vqvae-epochs", "1", "--stage", "vqvae"]
    arguments = ["--data-dir", tmp_path / "adni", "--run-dir", tmp_path / "run", "--cache-dir", tmp_path / "cache"]
    assert train.main([*map(str, arguments), "--preset", preset, *small]) == 0
    model = keras.saving.load_model(tmp_path / "run" / "vqvae.keras")
    entries = {"1mm": (512, 16), "vqvae-2017": (512, 64), "three-conv": (32, 128)}[preset]
    assert tuple(model.quantizer.codebook.shape) == entries
    convolutions = [layer for layer in model.encoder.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len(convolutions) == {"1mm": 8, "vqvae-2017": 7, "three-conv": 3}[preset]
