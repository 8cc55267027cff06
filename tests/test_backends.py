"""Under JAX and torch, without TensorFlow, on several devices and in several processes, a run ends as it does here.

The run of one device under JAX is the measure of all that follow; TensorFlow, here, uses what it left.
"""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import PIL.Image
import pytest
from conftest import command, write_adni

import dataset
import predict
import train
from evaluation import measure
from modules import code_lengths
from running import models, opening, run_folder
from running.config import read_config
from system import devices

ROOT = Path(__file__).parent.parent
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not here"))
    for name in ("jax", "torch")
]
needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not here")
# Nine steps an epoch, the codebook by moving averages.
FEW = {"vqvae_epochs": 2, "prior_epochs": 2, "sharp_epochs": 1, "downsampling": 8, "max_shift": 1}
FEW |= {"restart_threshold": 0.2, "codebook_update": "ema", "prior_batch_size": 8}

# Trains on one device, all stages, and draws; keeps what the models say; then trains on two devices, where asked.
PROGRAM = """
import sys
sys.modules.update(dict.fromkeys(("tensorflow", "tf_keras", "tensorboard")))  # none of them to be had
from pathlib import Path
import keras, numpy as np
import dataset, predict, train
from evaluation import measure
from modules import code_lengths
from running import opening
from running.config import read_config
from running.models import load_models

folder, number, *options = sys.argv[1:]
one = Path(folder) / "one"
for stage in ("all", "sharp"):
    assert train.main([*options, "--run-dir", str(one), "--stage", stage]) == 0
assert predict.main(["--run-dir", str(one), "--num-samples", "4"]) == 0
models = load_models(one)
if keras.backend.backend() == "jax":
    import jax
    assert jax.config.jax_default_matmul_precision == "float32"
vqvae = models.vqvae
data = opening.find_data(one, read_config(one))
codes, per_slice, power = measure.reconstruct(vqvae, data)
coarse = dataset.encode(models.coarse, data.images, data.of("test").row.to_numpy())
inputs = dataset.prior_inputs(data.of("test"), data.labels, codes=codes, coarse=coarse)
bits = code_lengths(models.prior, inputs)
ssim = [one["ssim"] for one in per_slice]
np.savez(one / "said.npz", codes=codes, coarse=coarse, images=vqvae.decode(codes), bits=bits, ssim=ssim, power=power)
if number == "2":
    assert train.main([*options, "--run-dir", folder + "/two", "--devices", number]) == 0
"""


def start(program, *arguments, devices=1, backend="jax", **environment):
    xla = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"  # compiles sooner
    flags = {"KERAS_BACKEND": backend, "XLA_FLAGS": xla}
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | flags | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Waits for a process; returns its exit status and its errors."""
    _, errors = process.communicate(timeout=600)
    return process.returncode, errors


def run_program(folder, backend, number):
    write_adni(folder / "adni", train=10, test=3, slices=4, height=32)
    options = command(folder, "none", **FEW)
    options = options[:2] + options[4:]  # without the run folder
    process = start(["-c", PROGRAM], folder, number, *options, devices=number, backend=backend)
    status, errors = finish(process)
    assert status == 0, errors[-2000:]
    assert "tensorflow" not in errors.lower()
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data set of 72 training slices; under JAX a run of one device, and one of two."""
    return run_program(tmp_path_factory.mktemp("jax"), "jax", 2)


def test_float32_is_not_rounded_to_ten_bits_on_a_gpu():
    import tensorflow

    tensorflow.config.experimental.enable_tensor_float_32_execution(True)
    models.set_precision("float32")
    assert not tensorflow.config.experimental.tensor_float_32_execution_enabled()


def assert_used_alike(run, tmp_path):
    """What another backend trained, this one uses to the same effect."""
    trained = models.load_models(run)
    vqvae = trained.vqvae
    data = opening.find_data(run, read_config(run))
    with np.load(run / "said.npz") as said:
        np.testing.assert_allclose(vqvae.decode(said["codes"]), said["images"], atol=1e-4)
        codes = {name: said[name] for name in ("codes", "coarse")}
        inputs = dataset.prior_inputs(data.of("test"), data.labels, **codes)
        np.testing.assert_allclose(code_lengths(trained.prior, inputs), said["bits"], atol=1e-4)
        _, per_slice, power = measure.reconstruct(vqvae, data)
        np.testing.assert_allclose([one["ssim"] for one in per_slice], said["ssim"], atol=1e-4)
        np.testing.assert_allclose(power, said["power"], rtol=1e-3)
    arguments = ["--run-dir", run, "--output-dir", tmp_path / "here", "--num-samples", 4]
    assert predict.main([str(argument) for argument in arguments]) == 0
    for i in range(4):  # the same noise is the same sample, but for rounding
        images = [
            np.asarray(PIL.Image.open(where / "samples" / f"sample_{i:04d}.png"), int)
            for where in (run / "predictions", tmp_path / "here")
        ]
        assert np.abs(images[0] - images[1]).max() <= 1


@needs_jax
def test_a_run_of_jax_is_used_alike(place, tmp_path):
    assert_used_alike(place / "one", tmp_path)


SHIPPED = """
import sys
import keras, numpy as np
from predict import TrainedModel

folder, backend = sys.argv[1:]
assert keras.backend.backend() == backend
found = {}
for name in ("ds002748", "ixi"):
    model = TrainedModel(f"pretrained/{name}")
    size = model.image_size
    y, x = np.mgrid[:size, :size] / size - 0.5
    image = ((np.hypot(y, x) < 0.35) * (0.6 + 0.2 * np.cos(40 * x) * np.cos(30 * y))).astype("float32")[None]
    codes = model.encode(image)
    bits, coarse_bits = model.bits(image, slice_position=0.6)
    found |= {f"{name}_codes": codes, f"{name}_image": model.decode(codes), f"{name}_bits": bits}
    found |= {f"{name}_coarse": model.encode_coarse(image), f"{name}_coarse_bits": coarse_bits}
np.savez(folder, **found)
"""


@needs_jax
def test_shipped_weights_say_the_same_under_tensorflow_and_jax(tmp_path):
    found = []
    for backend in ("tensorflow", "jax"):
        path = tmp_path / f"{backend}.npz"
        assert finish(start(["-c", SHIPPED], str(path), backend, backend=backend))[0] == 0
        with np.load(path) as file:
            found.append(dict(file))
    for name, values in found[0].items():
        np.testing.assert_allclose(values, found[1][name], rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_run_of_torch_is_used_alike(tmp_path, backend):
    assert_used_alike(run_program(tmp_path, backend, 1) / "one", tmp_path)


def assert_equal_runs(place, name):
    """Codebooks, weights and codes of a run and of that of one device."""
    for stage in ("vqvae", "prior"):
        one, other = (keras.saving.load_model(place / run / f"{stage}.keras", compile=False) for run in ("one", name))
        assert len(run_folder.read_history(place / name / f"{stage}_history.csv")) == 2
        for variable, a, b in zip(one.weights, one.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6 * max(1.0, np.abs(a).max()), err_msg=variable.path)
    codes = []
    for run in ("one", name):
        with np.load(place / run / "codes.npz") as file:
            codes.append(file["codes"])
    np.testing.assert_array_equal(*codes)


@needs_jax
def test_two_devices_train_as_one(place):
    assert_equal_runs(place, "two")


@needs_jax
def test_two_processes_of_which_one_is_killed_end_as_one_device(place):
    def start_two():
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        common = {"KERAS_DISTRIBUTION_JOB_ADDRESSES": address, "KERAS_DISTRIBUTION_NUM_PROCESSES": "2"}
        options = command(place, "processes", "--devices", "0", **FEW)
        return [start(["train.py"], *options, KERAS_DISTRIBUTION_PROCESS_ID=str(i), **common) for i in range(2)]

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
    assert_equal_runs(place, "processes")


def test_several_devices_need_jax_and_must_be_there(tmp_path, capsys, monkeypatch):
    write_adni(tmp_path / "adni")
    arguments = ["--data-dir", str(tmp_path / "adni"), "--run-dir", str(tmp_path / "run"), "--devices"]
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    assert train.main([*arguments, "2"]) == 1
    assert "--devices 2: needs KERAS_BACKEND=jax" in capsys.readouterr().err
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert train.main([*arguments, "99"]) == 1
    assert "--devices 99: there are" in capsys.readouterr().err
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    monkeypatch.setattr(devices, "number", lambda: 8)
    assert train.main(arguments[:-1]) == 1
    assert "--vqvae-batch-size 4: must be a multiple of 8 devices" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


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


RESTARTS = """
import keras, numpy as np
import modules, train

model = modules.VQVAE(16, base_filters=4, num_embeddings=8, embedding_dim=4, decay=0.5, restart_threshold=0.1)
far = np.arange(50, 50 + 8 * 4).reshape(8, 4).astype("float32")
far[0] = 0
model.quantizer.set_codebook(far)
model.compile(optimizer=train.vqvae_optimizer(1e-3))
images = np.random.default_rng(0).random((16, 16, 16, 1), "float32")
model.fit(images, epochs=4, batch_size=4, verbose=0)
codebook, entries = (keras.ops.convert_to_numpy(x) for x in (model.quantizer.codebook, model.quantizer.entries))
assert np.abs(codebook).max() < 10, codebook
assert not np.array_equal(entries, far)  # and the optimiser has had its say
"""


def test_dead_entries_that_learn_by_gradient_restart_in_training():
    exec(RESTARTS, {})


@pytest.mark.parametrize("backend", BACKENDS)
def test_dead_entries_restart_under_other_backends(backend):
    assert finish(start(["-c", RESTARTS], backend=backend)) == (0, "")
