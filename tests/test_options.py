"""What is asked for wins over presets, presets over the demo's defaults; wrong options are refused at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from running import options

ROOT = Path(__file__).parent.parent


def test_a_preset_wins_over_the_demo_and_the_command_line_over_both(tmp_path):
    demo = options.train([]).options
    assert (demo["vqvae"]["downsampling"], demo["data"]["image_size"]) == (8, 128)
    assert demo["prior_training"]["epochs"] == options.DEMO["prior_epochs"] != options.PriorTraining.epochs
    preset = options.train(["--preset", "three-conv"]).options
    assert (preset["vqvae"]["downsampling"], preset["vqvae"]["num_embeddings"]) == (4, 32)
    assert preset["data"]["image_size"] == 128  # no size of a VQ-VAE
    both = options.train(["--preset", "1mm", "--num-embeddings", "64", "--vqvae-epochs", "3"]).options
    assert (both["vqvae"]["downsampling"], both["vqvae"]["num_embeddings"]) == (8, 64)
    assert both["vqvae_training"]["epochs"] == 3
    data = options.train(["--data-dir", str(tmp_path)])
    assert (data.options["vqvae"]["downsampling"], data.options["data"]["image_size"]) == (4, None)
    assert data.options["vqvae_training"]["epochs"] == 20
    assert data.run_dir == Path("runs") / tmp_path.name


def test_a_command_of_its_own_process_prepares_it(monkeypatch):
    """And knows what was typed."""
    prepared = []
    monkeypatch.setattr(options.console, "prepare", lambda: prepared.append(True))
    monkeypatch.setattr(sys, "argv", ["train.py", "--vqvae-epochs", "3", "--dry-run"])
    assert options.train().again == "python train.py --vqvae-epochs 3"
    assert prepared
    options.train([])
    assert prepared == [True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reconstruction-loss", "foo"], "--reconstruction-loss foo: must be one of l1, l2, l1_ssim"),
        (["--epochs", "3"], "--epochs: no such option; did you mean --vqvae-epochs or --coarse-epochs"),
        (["--vqvae-epoch", "3"], "--vqvae-epoch: no such option; did you mean --vqvae-epochs?"),
        (["--what", "3"], "--what: no such option; see --help-all"),
        (["--vqvae-learning-rate", "nan"], "--vqvae-learning-rate nan: must be above 0"),
        (["--vqvae-learning-rate", "inf"], "--vqvae-learning-rate inf: must be above 0"),
        (["--vqvae-epochs", "many"], "argument --vqvae-epochs: invalid int value: 'many'"),
        (["--image-size", "30"], "--image-size 30: must be a multiple of --downsampling 8"),
        (["--image-size", "8"], "--image-size 8: must be 16 or more"),
        (["--prior-batch-size", "0"], "--prior-batch-size 0: must be 1 or more"),
        (["--coarse-prior-filters", "8"], "--coarse-prior-filters: no such option; did you mean"),
        (["--run-dir", ""], "argument --run-dir: an empty path; is a variable of the shell not set?"),
        (["--start-from", "nowhere"], "--start-from nowhere: no run here"),
        (["--start-from", "pretrained/ixi", "--preset", "1mm"], "--preset 1mm: the sizes are those of --start-from"),
        (["--max-shift", "-1"], "--max-shift -1: must be 0 or more and at most 64"),
        (["--downsampling", "3"], "--downsampling 3: must be one of 2, 4, 8, 16"),
        (["--seed", "-1"], "--seed -1: must be 0 or more"),
        (["--num-embeddings", "100000"], "--num-embeddings 100000: must be 2 or more and at most 65536"),
        (["--num-slices", "-1"], "--num-slices -1: must be 0 or more"),
        (["--test-fraction", "2"], "--test-fraction 2.0: must be above 0 and at most 1"),
        (["--devices", "-1"], "--devices -1: must be 0 or more"),
        (["--validation-fraction", "0.6", "--test-fraction", "0.5"], "must be below 1 together"),
        (["--plane", "coronal"], "--plane: says how to read the volumes of --data-dir, which is not given"),
        (
            ["--data-dir", "tests", "--plane", "coronal", "--slice-middle", "50"],
            "--slice-middle 50: is for --plane axial",
        ),
        (["--label-column", "sex"], "--label-column sex: says how to read --data-dir, which is not given"),
        (["--data-dir", "nowhere"], "nowhere: no such folder"),
        (["--data-dir", "tests", "--subject-regex", "(x"], "not a regular expression"),
        (["--data-dir", "tests", "--layout", "regex"], "--layout regex needs --subject-regex"),
        (["--data-dir", "tests", "--run-dir", "tests/run"], "--run-dir tests/run: lies inside the data folder tests"),
        (["--data-dir", "tests", "--cache-dir", "tests/c"], "--cache-dir tests/c: lies inside the data folder tests"),
    ],
)
def test_train_says_what_is_wrong_in_one_line(monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        options.train(arguments)
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output-dir", ""], "argument --output-dir: an empty path"),
        (["--label", "MCI"], "--label MCI: the run knows control, depr"),
        (["--decoder", "blunt"], "--decoder blunt: must be one of plain, sharp"),
        (["--volumes", "2", "--num-samples", "3"], "--num-samples: has no effect on --volumes; leave it out"),
        (["--volumes", "2", "--slice-position", "0.5"], "--slice-position: has no effect on --volumes"),
        (["--input", "README.md", "--temperature", "0.5"], "--temperature: has no effect on --input"),
        (["--input", "README.md", "--data-dir", "tests"], "--data-dir: has no effect on --input"),
        (["--input", "README.md", "--anomaly", "--num-samples", "3"], "--num-samples: has no effect on --anomaly"),
        (["--volumes", "2", "--input", "README.md"], "--volumes 2: draws new volumes, and --input gives scans"),
        (["--mask", "README.md"], "--mask: is for a scan, which --input gives"),
        (["--input", "nowhere.png"], "nowhere.png: no such file or folder"),
    ],
)
def test_predict_says_what_is_wrong_in_one_line(monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        options.predict(["--run-dir", "pretrained/ds002748", *arguments])
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_a_start_from_a_run_takes_its_options_but_for_those_given(monkeypatch):
    monkeypatch.chdir(ROOT)
    start = json.loads(Path("pretrained/ixi/config.json").read_text())["options"]
    found = options.train(["--start-from", "pretrained/ixi", "--prior-epochs", "3"]).options
    assert found["data"]["image_size"] == 128
    assert found["prior_training"] == {**start["prior_training"], "epochs": 3}
    for name in ("vqvae", "prior", "sharp_training"):
        assert {key: found[name][key] for key in start[name]} == start[name]
    assert found["vqvae_training"]["continuous"] == 0  # its codebooks are there


@pytest.mark.parametrize("read", [options.predict, options.evaluate])
def test_a_folder_without_a_run_is_said(tmp_path, capsys, read):
    with pytest.raises(SystemExit):
        read(["--run-dir", str(tmp_path)])
    assert "no run here (no config.json); run train.py" in capsys.readouterr().err


def test_every_option_says_what_it_does_and_help_shows_those_that_matter(capsys):
    for read, groups in (
        (options.train, options.TRAIN),
        (options.predict, {("", 0): options.Prediction, ("", 1): options.Inputs, ("", 2): options.Truncation}),
        (options.evaluate, {("", 0): options.TrainedRun, ("", 1): options.Evaluation, ("", 2): options.Truncation}),
    ):
        fields = options.flags(groups).values()
        shown = []
        for flag in ("--help", "--help-all"):
            with pytest.raises(SystemExit) as end:
                read([flag])
            assert end.value.code == 0
            shown.append(" ".join(capsys.readouterr().out.split()))
        for field in fields:
            assert len(field.metadata["meaning"].split()) > 1
            assert " ".join(field.metadata["meaning"].split()[:4]) in shown[1]
        everyday = [field for field in fields if field.metadata["everyday"]]
        assert 6 <= len(everyday) <= 13
        hidden = next(field for field in fields if not field.metadata["everyday"])
        assert hidden.metadata["meaning"] not in shown[0]


@pytest.mark.parametrize(
    "arguments", [["train.py", "--help"], ["train.py", "--reconstruction-loss", "foo"], ["evaluate.py", "--help"]]
)
def test_help_and_refusals_take_less_than_a_second_of_processor_time(arguments):
    program = (
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert float(done.stdout) < 1


def test_no_line_of_tensorflows_own():
    """From its import to its first operation."""
    program = "import train, keras; print(float(keras.ops.sum(keras.ops.ones((3, 3)))))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_CPP")}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("9.0\n", "")
