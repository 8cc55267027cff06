"""The same commands under JAX and torch, without TensorFlow; what one backend trained, another one uses alike."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from conftest import write_adni

import modules
import predict
import run_folder

ROOT = Path(__file__).parent.parent
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not here"))
    for name in ("jax", "torch")
]
SMALL = (
    *("--vqvae-epochs", "1", "--prior-epochs", "1", "--base-filters", "4", "--num-embeddings", "16"),
    *("--restart-threshold", "0.9"),
    *("--embedding-dim", "4", "--prior-filters", "8", "--prior-num-blocks", "5", "--prior-dropout", "0.1"),
    *("--precision", "float32", "--prior-max-shift", "1"),
)
# Trains and predicts where TensorFlow cannot be imported, stopped in an epoch of either stage and left alone, and keeps
# what the models say of a few grids.
PROGRAM = """
import signal, sys
sys.modules.update(dict.fromkeys(("tensorflow", "tf_keras", "tensorboard")))  # none of them to be had
from pathlib import Path
import numpy as np
import checkpointing, modules, predict, run_folder, train
from benchmarks import kills

run, output = sys.argv[1:3]
assert train.main(["--run-dir", run + "-alone", *sys.argv[3:]]) == 0
begin, stops = checkpointing.Checkpoint.on_train_batch_begin, [3, 1]
def begin_and_stop(self, batch, logs=None):
    begin(self, batch, logs)
    if batch in stops[:1]:
        signal.raise_signal(signal.SIGTERM)
        stops.pop(0)
checkpointing.Checkpoint.on_train_batch_begin = begin_and_stop
statuses = [train.main(["--run-dir", run, *sys.argv[3:]]) for _ in range(3)]
assert statuses == [143, 143, 0], statuses
assert kills.differences(Path(run), Path(run + "-alone")) == []
assert train.main(["--run-dir", run, *sys.argv[3:], "--sharp-epochs", "1", "--stage", "sharp"]) == 0
assert predict.main(["--run-dir", run, "--output-dir", output, "--num-samples", "4"]) == 0
vqvae = run_folder.load_model(Path(run) / "vqvae.keras", modules.VQVAE)
prior = run_folder.load_prior(Path(run), vqvae)
codes = np.random.default_rng(0).integers(0, 16, (5, 8, 8)).astype("int32")
inputs = {"codes": codes, "label": np.array([0, 1, 2, 1, 2]), "slice_position": np.linspace(0, 1, 5, dtype="float32")}
np.savez(Path(output) / "said.npz", images=vqvae.decode(codes), logits=prior.predict_on_batch(inputs))
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_of_another_backend(tmp_path, backend):
    write_adni(tmp_path / "adni")
    data = ("--data-dir", tmp_path / "adni", "--cache-dir", tmp_path / "cache")
    command = [sys.executable, "-c", PROGRAM, *map(str, (tmp_path / "run", tmp_path / "there", *data, *SMALL))]
    environment = os.environ | {"KERAS_BACKEND": backend}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(run_folder.read_history(tmp_path / "run" / "prior_history.csv")) == 1

    vqvae = run_folder.load_model(tmp_path / "run" / "vqvae.keras", modules.VQVAE)
    prior = run_folder.load_prior(tmp_path / "run", vqvae)
    codes = np.random.default_rng(0).integers(0, 16, (5, 8, 8)).astype("int32")
    inputs = {
        "codes": codes,
        "label": np.array([0, 1, 2, 1, 2]),
        "slice_position": np.linspace(0, 1, 5, dtype="float32"),
    }
    with np.load(tmp_path / "there" / "said.npz") as said:
        np.testing.assert_allclose(vqvae.decode(codes), said["images"], atol=1e-4)
        np.testing.assert_allclose(prior.predict_on_batch(inputs), said["logits"], atol=1e-4)

    arguments = ["--run-dir", tmp_path / "run", "--output-dir", tmp_path / "here", "--num-samples", 4]
    assert predict.main([str(argument) for argument in arguments]) == 0
    found = [json.loads((tmp_path / where / "metrics.json").read_text()) for where in ("here", "there")]
    for metric, values in found[0]["reconstruction"].items():
        assert values["mean"] == pytest.approx(found[1]["reconstruction"][metric]["mean"], rel=1e-4)
    assert found[0]["prior"]["bits_per_code"] == pytest.approx(found[1]["prior"]["bits_per_code"], rel=1e-4)
    for i in range(4):  # the same noise is the same sample, but for rounding
        images = [PIL.Image.open(tmp_path / where / "samples" / f"sample_{i:04d}.png") for where in ("here", "there")]
        here, there = (np.asarray(image, int) for image in images)
        assert np.abs(here - there).max() <= 1


ON_THE_DEVICE = """
import sys
import jax, numpy as np
import dataset, devices

data = dataset.load(sys.argv[1], cache_dir=sys.argv[2])
slices, _ = dataset.split(data.slices, seed=0)
needed = sum(one.split == "train" for one in slices) * data.image_size**2

def batches():
    made = dataset.image_batches(data, slices, "train", 5, seed=0)
    made.set_epoch(1)
    return made

assert devices.room() == 0  # of a processor
fed = [batch[0] for batch in batches()]
assert all(isinstance(batch, np.ndarray) for batch in fed)
devices.gpus = lambda: ["gpu:0"]
class Accelerator:
    def memory_stats(self):
        return {"bytes_limit": 3 * needed, "bytes_in_use": taken}
jax.local_devices = lambda: [Accelerator()]
taken = 2 * needed
assert isinstance(batches()[0][0], np.ndarray)  # more than half of what is free
taken = 0
for ours, kept in zip(fed, batches(), strict=True):
    assert isinstance(kept[0], jax.Array) and kept[0].dtype == "float32"
    np.testing.assert_allclose(ours, kept[0], atol=1e-7)
"""


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not here")
def test_slices_stay_on_an_accelerator_that_has_room(tmp_path):
    write_adni(tmp_path / "adni")
    command = [sys.executable, "-c", ON_THE_DEVICE, str(tmp_path / "adni"), str(tmp_path / "cache")]
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


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


@pytest.mark.parametrize("backend", ["tensorflow", *BACKENDS])
def test_dead_entries_that_learn_by_gradient_restart_in_training(backend):
    environment = os.environ | {"KERAS_BACKEND": backend}
    command = [sys.executable, "-c", RESTARTS]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
