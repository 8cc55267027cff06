"""Under JAX, without TensorFlow, on several devices and in several processes, a run ends as it does here.

The run of one device under JAX is the measure of all that follow; TensorFlow, here, uses what it left.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import fit, write_adni

import dataset
import modules
import train
from predict import TrainedModel
from running import models, opening, run_folder
from running.config import read_config
from system import devices

ROOT = Path(__file__).parent.parent
needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not here")
FEW = {"downsampling": 8, "max_shift": 1, "restart_threshold": 0.2}  # three steps an epoch
# No TensorFlow to be had.
UNDER_JAX = """
import sys
sys.modules.update(dict.fromkeys(("tensorflow", "tf_keras", "tensorboard")))
sys.path.append("tests")
import test_backends
test_backends.{}(*sys.argv[1:])
"""


def restarts():
    """Entries that are far away restart, and learn by gradient from then on."""
    model = modules.VQVAE(16, base_filters=4, num_embeddings=8, embedding_dim=4, restart_threshold=0.9)
    far = np.arange(50, 50 + 8 * 4).reshape(8, 4).astype("float32")
    far[0] = 0
    model.quantizer.set_codebook(far)
    model.compile(optimizer=train.vqvae_optimizer(1e-3))
    images = np.random.default_rng(0).random((16, 16, 16, 1), "float32")
    model.fit(images, epochs=4, batch_size=4, verbose=0)
    codebook, entries = (keras.ops.convert_to_numpy(x) for x in (model.quantizer.codebook, model.quantizer.entries))
    assert np.abs(codebook).max() < 10, codebook
    assert not np.array_equal(entries, far)


def one_epoch():
    """The codebooks and the losses of a VQ-VAE after an epoch of compiled steps, from the same weights and batches."""
    rng = np.random.default_rng(0)
    sizes = {"base_filters": 8, "num_embeddings": 16, "embedding_dim": 4, "num_quantizers": 2}
    model = modules.VQVAE(32, **sizes, restart_threshold=0.0)
    start = [rng.normal(0, 1 / np.sqrt(max(1, np.prod(w.shape[:-1]))), w.shape) for w in model.get_weights()]
    model.set_weights([new.astype(old.dtype) for new, old in zip(start, model.get_weights(), strict=True)])
    y, x = np.mgrid[:32, :32] - 15.5
    images = (np.hypot(x, y) < rng.uniform(6, 14, (192, 1, 1))) * rng.uniform(0.3, 0.9, (192, 1, 1))
    z_e = model.encoder.predict(images[..., None], verbose=0).reshape(-1, 4)
    for level in model.levels():
        level.set_codebook(z_e[:: len(z_e) // 16][:16])
    model.compile(optimizer=train.vqvae_optimizer(1e-3))
    history = model.fit(images[..., None], batch_size=8, shuffle=False, verbose=0).history
    return {
        "codebooks": model.codebooks,
        **{name: history[name] for name in ("reconstruction_loss", "commitment_loss")},
    }


def said(run, images, **how):
    """What the models of a run say of images."""
    model = TrainedModel(run)
    codes = model.encode(images)
    bits, coarse_bits = model.bits(images, **how)
    return {"codes": codes, "images": model.decode(codes), "bits": bits, "coarse_bits": coarse_bits}


def said_of_shipped(name):
    """What shipped weights say of a made-up slice."""
    size = read_config(ROOT / "pretrained" / name)["data"]["image_size"]
    y, x = np.mgrid[:size, :size] / size - 0.5
    image = ((np.hypot(y, x) < 0.35) * (0.6 + 0.2 * np.cos(40 * x) * np.cos(30 * y))).astype("float32")[None]
    return said(ROOT / "pretrained" / name, image, slice_position=0.6)


def said_of_run(run):
    data = opening.find_data(run, read_config(run))
    images = data.pixels(data.of("test"))
    return said(run, images, label="AD", slice_position=0.6) | {"drawn": TrainedModel(run).sample(4)}


def train_and_say(folder):
    """Trains on one device, all stages, and draws; keeps what the models say; then a prior on two devices."""
    folder = Path(folder)
    one = folder / "one"
    assert [fit(folder, "one", "--stage", stage, **FEW) for stage in ("all", "sharp")] == [0, 0]
    np.savez(one / "said.npz", **said_of_run(one))
    np.savez(folder / "shipped.npz", **said_of_shipped("ixi"))
    restarts()
    np.savez(folder / "epoch.npz", **one_epoch())
    for other, kept in (("two", ["coarse.*", "vqvae*"]), ("processes", ["coarse.*", "autoencoder*"])):
        (folder / other).mkdir()
        for path in (path for pattern in kept for path in one.glob(pattern)):  # a rounding error apart, k-means differs
            shutil.copy(path, folder / other)
    assert fit(folder, "two", "--devices", 2, "--stage", "prior", **FEW) == 0


def train_in_a_job(folder):
    """The first stage, on all devices of all processes."""
    devices.end(fit(Path(folder), "processes", "--devices", 0, "--stage", "vqvae", **FEW))


def start(function, folder, devices=1, **environment):
    xla = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"  # compiles sooner
    return subprocess.Popen(
        [sys.executable, "-c", UNDER_JAX.format(function), str(folder)],
        cwd=ROOT,
        env=os.environ | {"KERAS_BACKEND": "jax", "XLA_FLAGS": xla} | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Waits for a process; returns its exit status and its errors."""
    _, errors = process.communicate(timeout=600)
    return process.returncode, errors


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data set of 72 training slices; under JAX a run of one device, and one of two."""
    folder = tmp_path_factory.mktemp("jax")
    write_adni(folder / "adni", train=10, test=3, slices=4, height=32)
    status, errors = finish(start("train_and_say", folder, devices=2))
    assert status == 0, errors[-2000:]
    assert "tensorflow" not in errors.lower()
    return folder


def test_float32_is_not_rounded_to_ten_bits_on_a_gpu_until_the_models_are_done():
    from tensorflow.config import experimental

    experimental.enable_tensor_float_32_execution(True)
    with models.precision("bfloat16"):
        assert not experimental.tensor_float_32_execution_enabled()
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    assert experimental.tensor_float_32_execution_enabled()
    assert keras.config.dtype_policy().name == "float32"


@needs_jax
def test_an_epoch_teaches_alike(place):
    """Compiled steps, codebooks too: the gradients of a lookup and of |x| at 0 are not the same everywhere."""
    here = one_epoch()
    with np.load(place / "epoch.npz") as there:
        for name, values in here.items():
            np.testing.assert_allclose(values, there[name], rtol=1e-4, atol=1e-4, err_msg=name)


@needs_jax
def test_a_run_of_jax_is_used_alike(place):
    """And shipped weights; the same noise is the same sample, but for rounding."""
    for path, here in (
        (place / "one/said.npz", said_of_run(place / "one")),
        (place / "shipped.npz", said_of_shipped("ixi")),
    ):
        with np.load(path) as there:
            for name, values in here.items():
                np.testing.assert_allclose(values, there[name], rtol=1e-4, atol=1e-4, err_msg=name)


def assert_equal_runs(place, name, *stages):
    """Weights of a run and of that of one device, but for rounding, which Muon and the codebook's spread enlarge."""
    for stage in stages:
        one, other = (keras.saving.load_model(place / run / f"{stage}.keras", compile=False) for run in ("one", name))
        assert len(run_folder.read_history(place / name / f"{stage}_history.csv")) == 2
        for variable, a, b in zip(one.weights, one.get_weights(), other.get_weights(), strict=True):
            rounding = 1e-4 if variable.path.endswith("pixel_cnn/codebook") else 1e-5
            np.testing.assert_allclose(a, b, atol=rounding * max(1.0, np.abs(a).max()), err_msg=variable.path)


@needs_jax
def test_two_devices_train_as_one(place):
    assert_equal_runs(place, "two", "prior")


@needs_jax
def test_two_processes_of_which_one_is_killed_end_as_one_device(place):
    def start_two():
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        common = {"KERAS_DISTRIBUTION_JOB_ADDRESSES": address, "KERAS_DISTRIBUTION_NUM_PROCESSES": "2"}
        return [start("train_in_a_job", place, KERAS_DISTRIBUTION_PROCESS_ID=str(i), **common) for i in range(2)]

    first, second = start_two()
    while not run_folder.read_history(place / "processes" / "vqvae_history.csv"):  # until one epoch is done
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.05)
    second.kill()
    status, errors = finish(first)
    assert status == 1
    assert errors.strip().splitlines()[-1].startswith("error: another process of this job has ended; start all")
    finish(second)
    ends = [finish(process) for process in start_two()]
    assert [status for status, _ in ends] == [0, 0], ends
    assert_equal_runs(place, "processes", "vqvae")


def test_several_devices_need_jax_and_must_be_there(tmp_path, capsys, monkeypatch):
    write_adni(tmp_path / "adni")
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    assert fit(tmp_path, "run", "--devices", 2) == 1
    assert "--devices 2: needs KERAS_BACKEND=jax" in capsys.readouterr().err
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert fit(tmp_path, "run", "--devices", 99) == 1
    assert "--devices 99: there are" in capsys.readouterr().err
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    monkeypatch.setattr(devices, "number", lambda: 5)
    assert fit(tmp_path, "run") == 1
    assert "vqvae: its batches of 24 cannot be shared by 5 devices" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()
    assert fit(tmp_path, "run", "--stage", "prior", "--dry-run", prior_batch_size=10) == 0  # the only one of that stage


def test_each_batch_is_cut_in_equal_shares_and_what_is_left_is_left_out(monkeypatch):
    whole = dataset.Batches(22, lambda rows: rows, batch_size=8, seed=3)
    whole.set_epoch(1)
    everything = [whole[i][0] for i in range(len(whole))]
    assert [len(batch) for batch in everything] == [8, 8, 6]
    monkeypatch.setattr(devices, "number", lambda: 4)
    seen = []
    for process in range(2):
        monkeypatch.setattr(devices, "_process", lambda process=process: (process, 2))
        shared = dataset.Batches(22, lambda rows: rows, batch_size=8, seed=3)
        shared.set_epoch(1)
        seen.append([shared[i][0] for i in range(len(shared))])
    for index, batch in enumerate(everything[:2]):
        np.testing.assert_array_equal(np.concatenate([of_one[index] for of_one in seen]), batch)
    assert [len(batch) for batch in seen[0]] == [4, 4, 2]
    assert not set(np.concatenate(seen[0])) & set(np.concatenate(seen[1]))


def test_dead_entries_that_learn_by_gradient_restart_in_training():
    restarts()
