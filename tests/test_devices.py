"""Several devices, and several processes, end as one device does at the same batch."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from conftest import write_adni

import dataset
import devices
import modules
import run_folder
import train

ROOT = Path(__file__).parent.parent
SMALL = (  # 54 steps of each stage
    *("--vqvae-epochs", 2, "--prior-epochs", 2, "--base-filters", 4, "--num-embeddings", 16, "--embedding-dim", 4),
    *("--prior-filters", 8, "--prior-num-blocks", 3, "--prior-dropout", 0.1, "--prior-max-shift", 1),
    *("--vqvae-batch-size", 8, "--restart-threshold", 0.2, "--precision", "float32", "--downsampling", 8),
    *("--codebook-update", "ema"),
)
needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not here")


def start(program, place, name, number, virtual=1, **environment):
    """A process of train.py or predict.py under JAX, with that many virtual devices."""
    flags = {"KERAS_BACKEND": "jax", "XLA_FLAGS": f"--xla_force_host_platform_device_count={virtual}"}
    options = ["--run-dir", place / name, "--devices", number]
    if program == "train.py":
        options += ["--data-dir", place / "adni", "--cache-dir", place / "cache", *SMALL]
    return subprocess.Popen(
        [sys.executable, program, *map(str, options)],
        cwd=ROOT,
        env=os.environ | flags | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Waits for a process; returns its exit status and the last line of its errors."""
    _, errors = process.communicate(timeout=600)
    return process.returncode, (errors.strip().splitlines() or [""])[-1]


def start_two(place, name):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = {"KERAS_DISTRIBUTION_JOB_ADDRESSES": address, "KERAS_DISTRIBUTION_NUM_PROCESSES": "2"}
    return [start("train.py", place, name, 0, KERAS_DISTRIBUTION_PROCESS_ID=str(i), **common) for i in range(2)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data set of 216 training slices, and a run of one device."""
    folder = tmp_path_factory.mktemp("devices")
    write_adni(folder / "adni", train=20, test=4, slices=6, height=32)
    assert finish(start("train.py", folder, "one", 1))[0] == 0
    return folder


def assert_equal_runs(place, name):
    """Codebooks, weights and codes of a run and of that of one device."""
    for stage, kind in (("vqvae", modules.VQVAE), ("prior", modules.PixelCNN)):
        one, other = (run_folder.load_model(place / run / f"{stage}.keras", kind) for run in ("one", name))
        assert len(run_folder.read_history(place / name / f"{stage}_history.csv")) == 2
        for variable, a, b in zip(one.weights, one.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6 * max(1.0, np.abs(a).max()), err_msg=variable.path)
    codes = []
    for run in ("one", name):
        with np.load(place / run / "codes.npz") as file:
            codes.append(file["codes"])
    np.testing.assert_array_equal(*codes)


@needs_jax
def test_two_devices_train_and_draw_as_one(place):
    assert finish(start("train.py", place, "two", 2, virtual=2))[0] == 0
    assert_equal_runs(place, "two")
    runs = [start("predict.py", place, name, number, virtual=2) for name, number in (("one", 1), ("two", 2))]
    assert [finish(process)[0] for process in runs] == [0, 0]
    for i in range(16):
        images = [PIL.Image.open(place / run / "predictions/samples" / f"sample_{i:04d}.png") for run in ("one", "two")]
        one, two = (np.asarray(image, int) for image in images)
        assert np.abs(one - two).max() <= 1  # of 255


SPREAD = """
import devices, keras, numpy as np
devices.start(2)
batch = devices.spread({"codes": np.zeros((4, 3, 3), "int32"), "label": np.zeros(4, "int32")})
assert {shard.data.shape for shard in batch["codes"].addressable_shards} == {(2, 3, 3)}
assert len(batch["label"].sharding.device_set) == 2
"""


@needs_jax
def test_what_is_predicted_is_spread_over_the_devices():
    environment = os.environ | {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", SPREAD], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1000:]


@needs_jax
def test_two_processes_of_which_one_is_killed_end_as_one_device(place):
    first, second = start_two(place, "processes")
    history = place / "processes" / "vqvae_history.csv"
    while not (history.exists() and history.read_text().count("\n") >= 2):  # one epoch is done
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.05)
    second.kill()
    status, line = finish(first)
    assert (status, line.partition(";")[0]) == (1, "error: another process of this job has ended")
    finish(second)
    assert [finish(process)[0] for process in start_two(place, "processes")] == [0, 0]
    assert_equal_runs(place, "processes")


def test_several_devices_need_jax_and_must_be_there(tmp_path, capsys, monkeypatch):
    write_adni(tmp_path / "adni")
    command = ["--data-dir", str(tmp_path / "adni"), "--run-dir", str(tmp_path / "run"), "--devices"]
    monkeypatch.setattr(train.keras.backend, "backend", lambda: "tensorflow")
    assert train.main([*command, "2"]) == 1
    assert "--devices 2: several devices need KERAS_BACKEND=jax" in capsys.readouterr().err
    monkeypatch.setattr(train.keras.backend, "backend", lambda: "jax")
    assert train.main([*command, "99"]) == 1
    assert "--devices 99: there are" in capsys.readouterr().err
    monkeypatch.setattr(train.keras.backend, "backend", lambda: "tensorflow")
    monkeypatch.setattr(devices, "number", lambda: 3)
    assert train.main(command[:-1]) == 1
    assert "--devices 3: must divide the 32 slices" in capsys.readouterr().err
    monkeypatch.setattr(devices, "number", lambda: 8)
    assert train.main(command[:-1]) == 1
    assert "--vqvae-batch-size 4: must be a multiple of the 8 devices" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_each_batch_is_cut_in_equal_shares_and_what_is_left_is_left_out(monkeypatch):
    whole = dataset.Batches(22, lambda rows: rows, batch_size=8, seed=3)
    whole.set_epoch(1)
    everything = [whole[i][0] for i in range(len(whole))]
    assert [len(batch) for batch in everything] == [8, 8, 6]
    monkeypatch.setattr(devices, "number", lambda: 4)
    seen = []
    for process in range(2):
        says = {"process_index": process, "process_count": 2}
        monkeypatch.setattr(devices, "_jax_says", says.get)
        shared = dataset.Batches(22, lambda rows: rows, batch_size=8, seed=3)
        shared.set_epoch(1)
        seen.append([shared[i][0] for i in range(len(shared))])
    for index, batch in enumerate(everything[:2]):
        np.testing.assert_array_equal(np.concatenate([of_one[index] for of_one in seen]), batch)
    assert [len(batch) for batch in seen[0]] == [4, 4, 2]
    assert not set(np.concatenate(seen[0])) & set(np.concatenate(seen[1]))
