"""The benchmarks measure what they say."""

import json
import sys

import keras
import numpy as np
import PIL.Image
import pytest
from conftest import CODES, SIZE, assert_causal, prior_inputs, randomise, write_bids
from scipy import ndimage

import dataset
import modules
import sampling
from benchmarks import (
    ablation,
    anomaly,
    completion,
    harness,
    large,
    peers,
    priors,
    race,
    start,
    tables,
    training,
    ventricles,
)
from benchmarks import sampling as sampling_benchmark
from system.console import UserError
from using.completion import touched


@pytest.mark.parametrize("fault", [False, True])
def test_sampling_benchmark_compares_every_code(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(sampling_benchmark, "SIZES", {"filters": 8, "num_blocks": 3, "attention_every": 2})
    if fault:  # the very last code of the last sample is another
        sample = sampling.PixelCNNSampler.sample

        def faulty(self, *args, **kwargs):
            for codes in sample(self, *args, **kwargs):
                codes = codes.copy()
                codes[-1, -1, -1] = (codes[-1, -1, -1] + 1) % 256
                yield codes

        monkeypatch.setattr(sampling.PixelCNNSampler, "sample", faulty)
    output = tmp_path / "folder" / "sampling.json"
    arguments = ["--output", str(output), "--grid", "5", "--batch", "2", "--naive-steps", "3"]
    assert sampling_benchmark.main(arguments) == 0
    written = json.loads(output.read_text())
    (row,) = written["rows"]
    assert row["exact"] is not fault
    assert row["different_codes"] == 2 * int(fault)  # one in either grid
    assert (row["grid"], row["batch"], row["naive_steps"]) == (5, 2, 3)
    assert row["speedup"] == pytest.approx(row["naive_s"] / row["cached_s"])
    assert row["teacher_forced_s"] > 0
    assert written["machine"]["cores"] >= 1


def test_textbook_prior_is_causal_and_stores_what_its_masks_let_through(rng):
    model = priors.TextbookPixelCNN(CODES, SIZE, filters=16, num_blocks=2)
    randomise(model, rng, scale=0.2)
    assert_causal(model, rng)
    seen = {
        "embedding": CODES * 64,
        "first": (7 * 3 + 3) * 64 * 16 + 16,
        "blocks": 2 * ((16 * 8 + 8) + (5 * 8 * 8 + 8) + (8 * 16 + 16)),
        "last": (16 * 16 + 16) + (16 * CODES + CODES),
    }
    assert race.count(model) == sum(seen.values())


def test_variants_of_the_prior_differ_in_what_they_say(rng):
    variants = priors.make_variants(rng.standard_normal((64, 8)).astype("float32"), grid_size=16, num_labels=0)
    names = ("default", "textbook", "no attention", "no position embedding", "table alone")
    counts = {name: race.count(variants[name].build()) for name in names}
    assert abs(counts["textbook"] / counts["default"] - 1) < 0.1
    assert counts["no attention"] < counts["default"]
    assert counts["no position embedding"] == counts["default"] - 2 * 16 * 64
    assert counts["table alone"] == counts["default"] - 8 * 64


def test_contestants_learn_for_the_time_asked_for(rng):
    inputs = prior_inputs(rng, 40)
    inputs["codes"][:] = 3

    def build():
        return modules.PixelCNN(CODES, 5, SIZE, 2, filters=4, num_blocks=2, attention_every=1)

    def enter(name, **how):
        variant = race.Variant(build, keras.optimizers.Adam, 2e-2, batch_size=8, precision="float32", **how)
        batches = dataset.Batches(40, lambda rows: dataset.select(inputs, rows), variant.batch_size, seed=0)
        return race.Contestant(name, variant, batches, seconds=0.3)

    contestants = [enter("scheduled"), enter("plain", scheduled=False)]
    race.race(contestants, 0.3)
    for one in contestants:
        row = one.finish()
        assert row["training_s"] == pytest.approx(0.3, abs=0.1)
        assert row["epochs"] == pytest.approx(row["steps"] * 8 / 40)
        bits = one.model.evaluate(inputs, batch_size=8, verbose=0, return_dict=True)["bits_per_code"]
        assert bits < 2.0 < np.log2(CODES)


@pytest.fixture
def small(monkeypatch):
    """VQ-VAEs of few filters on slices of 32 x 32: two levels then have a quarter of the codes at the top as ever."""
    monkeypatch.setattr(ablation, "SIZE", 32)
    monkeypatch.setattr(ablation, "GRID", 8)
    monkeypatch.setattr(ablation, "FILTERS", 8)


@pytest.mark.parametrize(
    "name", ["default", "two levels", "factor 8, four codebooks", "finite scalar quantisation", "space-to-depth, both"]
)
def test_variants_of_the_vqvae_have_equal_bits_and_whole_images(rng, small, name):
    model = ablation.VARIANTS[name].build()
    images = rng.integers(0, 256, (18, 32, 32), "uint8")
    model.initialise(dataset.as_float(images))
    outputs, codes, numbers = ablation.reconstruct(model, images)
    assert outputs.shape == images.shape
    found = ablation.quality(images, outputs, codes, numbers, ["a", "a", "b"] * 6)
    raw = sum(some[0].size * np.log2(number) for some, number in zip(codes, numbers, strict=True))
    assert found["bits_per_pixel"] == pytest.approx(raw / 32**2)
    assert 0.49 < found["bits_per_pixel"] <= 0.5
    assert found["entropy_bits_per_pixel"] <= found["bits_per_pixel"]
    for some, number in zip(codes, numbers, strict=True):
        assert some.min() >= 0
        assert some.max() < number


def test_variants_of_the_vqvae_are_trained(rng, small):
    images = rng.integers(0, 256, (18, 32, 32), "uint8")
    for name in ("two levels",):
        one = ablation.enter(name, ablation.VARIANTS[name], images, seconds=1.0)
        before = one.model.decoder.get_weights()
        one.warm_up()  # nothing is learned
        for a, b in zip(before, one.model.decoder.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        one.train(one.trained_s + 1e-9)
        one.train(one.trained_s + 1e-9)  # the first step has a rate of 0, or almost
        assert not all(np.array_equal(a, b) for a, b in zip(before, one.model.decoder.get_weights(), strict=True))
        assert all(np.isfinite(value).all() for value in one.model.get_weights())


def test_the_ablation_begins_from_the_default(rng):
    default = modules.VQVAE(ablation.SIZE)
    assembled = ablation.VARIANTS["default"].build()
    assembled.set_weights(default.get_weights())
    images = rng.random((2, ablation.SIZE, ablation.SIZE, 1), "float32")
    losses, outputs = [], []
    for model in (default, assembled):
        outputs.append(model(images))
        losses.append(float(model.compute_loss(x=images, y_pred=outputs[-1])))
    assert losses[0] == losses[1]
    np.testing.assert_array_equal(*(one["reconstruction"] for one in outputs))


def test_finite_scalar_quantiser_numbers_every_level_once():
    levels = (8, 6, 5)
    quantizer = ablation.FiniteScalarQuantizer(levels=levels)
    grid = np.stack(np.meshgrid(*[np.linspace(-3, 3, 41)] * 3, indexing="ij"), -1).reshape(1, -1, 1, 3)
    values, _, codes = (keras.ops.convert_to_numpy(x) for x in quantizer(grid.astype("float32")))
    assert set(codes.ravel()) == set(range(240))
    for axis, number in enumerate(levels):
        assert len(np.unique(values[..., axis].round(4))) == number
    distinct = {(code, *vector) for code, vector in zip(codes.ravel(), values.reshape(-1, 3).round(4), strict=True)}
    assert len(distinct) == 240  # a code stands for one vector, and a vector for one code


def test_rotating_quantizer_gives_the_nearest_entry_and_turns_gradients(rng):
    quantizer = ablation.RotatingQuantizer(16, 4)
    z_e = rng.standard_normal((2, 3, 3, 4)).astype("float32")
    quantizer.build(z_e.shape)
    quantizer.initialise(rng.standard_normal((64, 4)).astype("float32"))
    through, z_q, _ = (keras.ops.convert_to_numpy(x) for x in quantizer(z_e))
    np.testing.assert_allclose(through, z_q, atol=1e-5)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        x = tf.Variable(z_e)
        upstream = rng.standard_normal(z_e.shape).astype("float32")
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(quantizer(x)[0] * upstream)
        gradient = tape.gradient(loss, x).numpy()
        stretch = np.linalg.norm(z_q, axis=-1) / np.linalg.norm(z_e, axis=-1)
        np.testing.assert_allclose(
            np.linalg.norm(gradient, axis=-1), np.linalg.norm(upstream, axis=-1) * stretch, rtol=1e-3
        )
        # What is along z_q before is along z_e after.
        cosine = (upstream * z_q).sum(-1) / np.linalg.norm(z_q, axis=-1)
        turned = (gradient * z_e).sum(-1) / np.linalg.norm(z_e, axis=-1)
        np.testing.assert_allclose(turned, cosine * stretch, rtol=1e-3, atol=1e-4)


def test_operations_of_a_forward_pass_are_counted():
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, padding="valid")])
    products = 2 * 6 * 6 * 9 * 3 * 4  # two for each multiplication with addition
    for batch in (1, 5):
        found = training.forward_operations(model, np.zeros((batch, 8, 8, 3), "float32"))
        assert batch * products <= found <= batch * (products + 2 * 6 * 6 * 4)  # and the biases


def test_large_sets_are_made_of_links_and_folders_of_others_left_alone(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    assert large.main(["--output", str(tmp_path / "a.json"), "--work-dir", str(tmp_path / "mine")]) == 1
    assert "holds something else" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").exists()
    originals = tmp_path / "originals"
    originals.mkdir()
    for index in range(3):
        PIL.Image.fromarray(np.full((32, 32), 40 * index, "uint8")).save(originals / f"{index}.png")
    large.make(tmp_path / "set", 20 * large.PER_PERSON)
    slices, _ = dataset.split(dataset.load(tmp_path / "set", cache_dir=tmp_path / "cache").slices, seed=0)
    assert len(slices) == 20 * large.PER_PERSON
    assert set(slices.split) == {"train", "validation", "test"}
    dataset.assert_disjoint(slices)


WORKER = """
import sys
sys.path.insert(0, {folder!r})
import worker

class Made:
    def train(self, until_s):
        print("not an answer")
        return {{"until": until_s}}

    def fail(self, argument):
        raise ValueError("no more memory for " + argument)

worker.serve(Made)
"""


def test_contestants_answer_in_turn_and_say_why_they_end(tmp_path):
    path = tmp_path / "contestant.py"
    path.write_text(WORKER.format(folder=str(harness.ROOT / "benchmarks")))
    process = peers.Process("one", [sys.executable, path], tmp_path / "one.log")
    answer = process.ask("train", 10)
    assert answer["until"] == 10
    assert answer["peak_mib"] > 1
    assert "not an answer" in (tmp_path / "one.log").read_text()
    with pytest.raises(UserError, match="one: its process ended .ValueError: no more memory for all"):
        process.ask("fail", "all")
    process.close()


def test_contestants_alternate():
    said = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def ask(self, method, until_s):
            said.append((self.name, method, until_s))

    peers.train([Fake("a"), Fake("b")], 25)
    assert said == [(name, "train", until_s) for until_s in (10, 20, 25) for name in "ab"]


@pytest.mark.parametrize(
    ("benchmark", "arguments", "message"),
    [
        (priors, ["--run-dir", "nowhere", "--output", "a.json"], "nowhere: no run here"),
        (priors, ["--run-dir", "nowhere", "--output", "a.json", "--minutes", "nan"], "--minutes: nan: must be 0.001"),
        (priors, ["--run-dir", "nowhere"], "the following arguments are required: --output"),
        (ventricles, ["--num-samples", "0"], "--num-samples: 0: must be 2 or more"),
        (ventricles, ["--slice-position", "2"], "--slice-position: 2: must be 0 to 1"),
        (sampling_benchmark, ["--output", "a.json", "--grid", "0"], "--grid: 0: must be 2 or more"),
        (sampling_benchmark, ["--output", "a.json", "--memory", "--batch", "4", "0"], "--batch: 0: must be 1 or more"),
        (training, ["--output", "a.json", "--batch", "0"], "--batch: 0: must be 1 or more"),
        (large, ["--output", "a.json", "--slices", "5"], "--slices: 5: must be 640 or more"),
        (ablation, ["--output", "a.json", "--variant", "none"], "--variant: invalid choice: 'none'"),
        (ablation, ["--output", "a.json", "--data-dir", "nowhere"], "nowhere: no such folder"),
        (peers, ["--output-dir", "out"], "give --data-dir for the VQ-VAEs"),
        (peers, ["--priors", "runs/a", "--output-dir", "out"], "--monai: needed"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, benchmark, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert benchmark.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


def test_a_run_that_fails_is_named(tmp_path, capfd):
    with pytest.raises(UserError, match="train.py --run-dir .* --prior-epochs 0: failed"):
        harness.train(tmp_path / "run", data_dir=None, prior_epochs=0)
    assert "--prior-epochs 0: must be 1 or more" in capfd.readouterr().err


def test_ventricles_are_measured():
    y, x = (np.indices((128, 128)) - 63.5) / 50
    head = (x**2 + y**2 < 1) * 0.9 - (np.hypot(x, y) > 0.8) * (x**2 + y**2 < 1) * 0.4  # white, with a grey rim
    shares = []
    for radius in (0.15, 0.25):
        image = head.copy()
        image[x**2 + y**2 < radius**2] = 0.15
        shares.append(ventricles.ventricle_share(image))
    np.testing.assert_allclose(shares, [0.15**2, 0.25**2], rtol=0.05)
    assert np.isnan(ventricles.ventricle_share(np.zeros((64, 64))))


@pytest.mark.parametrize("name", tables.PAGES)
def test_pages_have_the_figures_of_the_files(name):
    page = (harness.ROOT / name).read_text(encoding="utf-8")
    assert tables.rewrite(name, page) == page, "run python -m benchmarks.tables"
    with pytest.raises(UserError, match="no table begins with"):
        tables.rewrite(name, "no table")


def test_a_planted_lesion_is_where_it_is_said_and_nowhere_else(rng):
    y, x = (np.indices((96, 96)) - 47.5) / 40
    head = x**2 + y**2 < 1
    image = (head * (0.5 + 0.2 * rng.random((96, 96)))).astype("float32")
    for kind in anomaly.KINDS:
        changed, lesion = anomaly.plant(image, head, kind, 16.0, np.random.default_rng(3), pixel_mm=1.0)
        assert not lesion[~head].any()
        assert 8 < 2 * np.sqrt(lesion.sum() / np.pi) < 24  # mm
        away = np.abs(changed - image)
        assert away[lesion].mean() > 10 * away[~lesion & head].mean()
        if kind == "texture":  # intensities say nothing
            inside = ndimage.binary_erosion(lesion, iterations=3)
            assert abs(changed[inside].mean() - image[inside].mean()) < 0.05
        else:
            assert (changed[lesion].mean() < image[lesion].mean()) == (kind == "dark")


def test_scores_of_maps_of_which_the_answer_is_known(rng):
    heads, lesions = np.ones((6, 20, 20), bool), np.zeros((6, 20, 20), bool)
    lesions[:, 5:9, 5:9] = True
    people = np.repeat(["a", "b", "c"], 2)
    perfect = anomaly.score_all(lesions.astype(float), heads, lesions, people)
    assert [perfect[name]["mean"] for name in ("auroc", "average_precision", "dice")] == [1, 1, 1]
    noise = anomaly.score_all(rng.random(lesions.shape), heads, lesions, people)
    assert abs(noise["auroc"]["mean"] - 0.5) < 0.1
    assert noise["average_precision"]["mean"] < 0.15
    half = anomaly.score_all(lesions * (np.arange(20) < 7), heads, lesions, people)
    np.testing.assert_allclose(half["dice"]["mean"], 2 / 3)


def test_the_lower_edge_of_a_hidden_square():
    mask = np.zeros((32, 32), bool)
    mask[4:20, 8:24] = True
    edge = completion.lower_edge(mask, 4)
    assert edge.sum() == 4 * 16
    assert np.flatnonzero(edge.any(axis=1)).tolist() == [16, 17, 18, 19]
    assert touched(mask, 8).sum() == 16
    mask[20, 8] = True  # a pixel touches one more code
    assert touched(mask, 8).sum() == 17


def test_people_are_linked_and_nothing_else(tmp_path):
    write_bids(tmp_path / "bids", people=4)
    start.link_people(tmp_path / "bids", tmp_path / "few", ["sub-01", "sub-03"])
    data = dataset.load(tmp_path / "few", cache_dir=tmp_path / "cache", num_slices=2)
    assert sorted(data.slices.subject_id.unique()) == ["sub-01", "sub-03"]
    start.link_people(tmp_path / "bids", tmp_path / "few", ["sub-02"])
    assert [path.name for path in (tmp_path / "few").iterdir()] == ["sub-02"]
