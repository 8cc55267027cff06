"""Small data sets in each layout, written as image files of synthetic blobs, small priors, small runs; seeded."""

import functools
import os
import shutil
from unittest import mock

from system import console

# The workers share the cores; programs that tests start compute as the tests do.
os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
with console.quietly():
    import keras
import nibabel
import numpy as np
import pandas as pd
import PIL.Image
import pytest

import dataset
import modules
import train
from running import options


def blob(rng, height, width):
    """A grey disc with a dark middle on black, uint8."""
    y, x = np.mgrid[:height, :width]
    radius = np.hypot(y - height / 2 + rng.normal(0, 1), x - width / 2 + rng.normal(0, 1))
    inside = radius < min(height, width) * rng.uniform(0.3, 0.4)
    return ((inside * 0.7 - (radius < 4) * 0.4 + inside * rng.normal(0, 0.03, inside.shape)).clip(0, 1) * 255).astype(
        "uint8"
    )


def write_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(image).save(path)


def write_oasis(folder, train=4, validate=2, test=2, slices=3, size=32):
    rng = np.random.default_rng(0)
    case = 0
    for name, people in (("train", train), ("validate", validate), ("test", test)):
        for _ in range(people):
            case += 1
            for k in range(slices):
                image = blob(rng, size, size)
                write_image(folder / f"keras_png_slices_{name}" / f"case_{case:03d}_slice_{k}.nii.png", image)
                seg = folder / f"keras_png_slices_seg_{name}" / f"seg_{case:03d}_slice_{k}.nii.png"
                write_image(seg, (image > 0).astype("uint8"))
    return folder


def write_adni(folder, train=8, test=3, slices=3, height=30, width=32):
    """`train` and `test` people of each label."""
    rng = np.random.default_rng(0)
    person = 1000
    for part, people in (("train", train), ("test", test)):
        for label in ("AD", "NC"):
            for _ in range(people):
                person += 1
                for k in range(78, 78 + slices):
                    write_image(folder / "AD_NC" / part / label / f"{person}_{k}.jpeg", blob(rng, height, width))
    return folder


def write_volume(path, rng, shape=(24, 30, 70), affine=None):
    """A bright ellipsoid in right, anterior, superior axes of 2 mm, or reoriented by another affine."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    head = ((x / 0.7) ** 2 + (y / 0.8) ** 2 + (z / 0.9) ** 2 < 1) * (600 + 50 * rng.standard_normal(shape))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(head.astype("int16"), np.diag([2, 2, 2, 1]) if affine is None else affine), path)


def write_bids(folder, people=8, sessions=1):
    rng = np.random.default_rng(0)
    rows = ["participant_id\tage\tgroup"]
    for person in range(people):
        name = f"sub-{person:02d}"
        rows.append(f"{name}\t{50 + person}\t{('control', 'patient')[person % 2] if person else 'n/a'}")
        for session in range(sessions):
            visit = f"ses-{session}/" if sessions > 1 else ""
            write_volume(folder / f"{name}/{visit}anat/{name}_T1w.nii.gz", rng)
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
    return folder


def make_slices(people, labels=("",), split="", sessions=("",), per_scan=2):
    """A DataFrame of slices without images: person i has label labels[i % len(labels)]."""
    rows = [
        (f"{person}{session}{k}", f"p{person:04d}", session, k, 0.0, labels[person % len(labels)], split, 0)
        for person in range(people)
        for session in sessions
        for k in range(per_scan)
    ]
    return pd.DataFrame(rows, columns=dataset.COLUMNS)


SIZE, CODES = 9, 11  # grid and codebook of the small priors: rows dilate, and the attention averages 3 columns


def randomise(model, rng, scale=0.3):
    """Gives every weight of a model a random value, zeros and biases too, so that nothing is trivially unused."""
    model.set_weights(
        [rng.normal(0, scale, w.shape).astype(w.dtype) if w.dtype == "float32" else w for w in model.get_weights()]
    )


def small_prior(rng, kind=modules.PixelCNN, **changes):
    options = {"num_labels": 2, "filters": 8, "num_blocks": 4, "attention_every": 2, "dropout": 0.1} | changes
    model = kind(CODES, 5, SIZE, **options)
    randomise(model, rng)
    return model


def prior_inputs(rng, number=3, levels=1):
    return {
        "codes": rng.integers(0, CODES, (number, SIZE, SIZE, levels)).astype("int32"),
        "label": (np.arange(number) % 3).astype("int32"),
        "slice_position": np.linspace(0, 1, number, dtype="float32"),
    }


def told(model, number):
    """Codes for each of a prior's maps, the same in every slice, some of them not known."""
    rng = np.random.default_rng(0)
    return {
        name: np.repeat(
            rng.integers(-1, m.embedding.input_dim // len(m.first_rows) - 1, (1, *m.codes_shape)), number, 0
        )
        for name, m in getattr(model, "maps", {}).items()
    }


def logits_after_each_change(model, rng):
    """Logits of a grid, and with each of its G codes changed in turn, both (G, G, K).

    G counts the codes in the order in which they are drawn: places in raster order, and at each its levels. The grid as
    it is stands G times in a batch of its own: some processors round a row of a product by its place in the batch.
    """
    shape = (model.grid_size, model.grid_size, model.num_quantizers)
    length = np.prod(shape)
    codes = rng.integers(0, CODES, length)
    grids = np.tile(codes, (length, 1))
    changed = grids.copy()
    np.fill_diagonal(changed, (codes + 1) % CODES)
    x = {"label": np.ones(length, "int32"), "slice_position": np.full(length, 0.4, "float32")} | told(model, length)
    return tuple(
        np.asarray(model({**x, "codes": some.reshape(length, *shape).astype("int32")})).reshape(length, length, CODES)
        for some in (grids, changed)
    )


def assert_causal(model, rng):
    """Changing one code moves no logit up to its own, and some logit after it."""
    for place, (before, after) in enumerate(zip(*logits_after_each_change(model, rng), strict=True)):
        np.testing.assert_array_equal(after[: place + 1], before[: place + 1])
        assert place + 1 == len(after) or np.abs(after[place + 1 :] - before[place + 1 :]).max() > 1e-6


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / "cache"


# A run of a few seconds: options of train.py, and what else its config.json says.
SMALL_RUN = {
    "--vqvae-epochs": 3,  # the first without a quantiser
    "--coarse-epochs": 3,
    "--coarse-prior-epochs": 2,
    "--prior-epochs": 2,
    "--sharp-epochs": 2,
    "--sharp-batch-size": 24,
    "--vqvae-batch-size": 24,  # two steps an epoch
    "--prior-batch-size": 24,
    "--base-filters": 4,
    "--num-residual-blocks": 0,
    "--num-embeddings": 16,
    "--embedding-dim": 4,
    "--num-quantizers": 2,
    "--prior-filters": 8,
    "--prior-num-blocks": 2,
    "--prior-attention-every": 1,
    "--prior-dropout": 0.1,
    "--restart-threshold": 0.9,
    "--precision": "float32",
}
SMALL_MODELS = {
    "coarse": {"image_size": 16, "base_filters": 4, "num_residual_blocks": 0, "num_embeddings": 8, "embedding_dim": 4},
    "coarse_prior": {"filters": 8, "num_blocks": 2, "attention_every": 1},
    "coarse_training": {"batch_size": 24},
    "coarse_prior_training": {"batch_size": 24, "average_over": 0.5},
    "prior_training": {"average_over": 0.5},
}


COMPILE, STOPPED = keras.Model.compile, "stopped; the same command goes on"


def command(folder, run, *more, data="adni", **changes):
    """The command line of a small run on a data set in a folder."""
    paths = {"--data-dir": folder / data, "--run-dir": folder / run, "--cache-dir": folder / "cache"}
    changes = {"--" + name.replace("_", "-"): value for name, value in changes.items()}
    return [*(str(part) for option in (paths | SMALL_RUN | changes).items() for part in option), *map(str, more)]


def asked(*arguments, **changes):
    """What train.py is asked for by `command`, with `SMALL_MODELS`."""
    command_line = options.train(command(*arguments, **changes))
    of_size = {} if command_line.options["coarse"]["image_size"] else {"image_size": 0}  # a preset without coarse codes
    for group, values in SMALL_MODELS.items():
        command_line.options[group] |= values | (of_size if group == "coarse" else {})
    return command_line


def fit(*arguments, **changes):
    """Trains a small run; the arguments are those of `command`. Returns the exit status.

    Steps are not compiled under TensorFlow: that takes ten times as long as the few of them.
    """
    if keras.backend.backend() == "tensorflow":
        compiled = functools.partialmethod(COMPILE, run_eagerly=True)
        with mock.patch.object(keras.Model, "compile", compiled):
            return console.exit_status(lambda: train.run(asked(*arguments, **changes)), STOPPED)
    return console.exit_status(lambda: train.run(asked(*arguments, **changes)), STOPPED)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    """A folder with a small data set, adni, and a run on it, run: all stages; to be read and copied, not changed."""
    folder = tmp_path_factory.mktemp("trained")
    write_adni(folder / "adni")
    assert [fit(folder, "run", "--stage", stage) for stage in ("all", "sharp")] == [0, 0]
    return folder


@pytest.fixture(scope="module")
def chromium():
    """A browser that is on the machine, where there is one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright, of requirements-dev.txt")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("needs Chromium, for example: apt install chromium")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
