"""The benchmarks measure what they say."""

import json
import sys

import keras
import numpy as np
import PIL.Image
import pytest
import run_folder
from conftest import CODES, SIZE, assert_causal, prior_inputs, randomise

import dataset
import modules
import sampling
import train
from benchmarks import ablation, large, memory, peers, priors, race, rates, tables, training, ventricles
from benchmarks import sampling as sampling_benchmark


@pytest.mark.parametrize("fault", [False, True])
def test_sampling_benchmark_compares_every_code(tmp_path, monkeypatch, fault):
    if fault:  # the very last code of the last sample is another
        sample = sampling.PixelCNNSampler.sample

        def faulty(self, *args, **kwargs):
            for codes in sample(self, *args, **kwargs):
                codes = codes.copy()
                codes[-1, -1, -1] = (codes[-1, -1, -1] + 1) % 256
                yield codes

        monkeypatch.setattr(sampling.PixelCNNSampler, "sample", faulty)
    output = tmp_path / "folder" / "sampling.json"
    arguments = ["--output", str(output), "--grid", "8", "--batch", "2", "--naive-steps", "3"]
    assert sampling_benchmark.main(arguments) == 0
    report = json.loads(output.read_text())
    (row,) = report["rows"]
    assert row["exact"] is not fault
    assert (row["grid"], row["batch"], row["naive_steps"]) == (8, 2, 3)
    assert row["speedup"] == pytest.approx(row["naive_s"] / row["cached_s"])
    assert row["teacher_forced_s"] > 0
    assert report["machine"]["cores"] >= 1


def test_sampling_benchmark_refuses_nothing_to_do(tmp_path, capsys):
    assert sampling_benchmark.main(["--output", str(tmp_path / "a.json"), "--naive-steps", "0"]) == 1
    assert "--naive-steps 0: must be 1 or more" in capsys.readouterr().err


def test_textbook_prior_is_causal_and_counts_what_its_masks_let_through(rng):
    model = priors.TextbookPixelCNN(CODES, SIZE, filters=16, num_blocks=3)
    randomise(model, rng, scale=0.2)
    assert_causal(model, rng)
    seen = {
        "embedding": CODES * 64,
        "first": (7 * 3 + 3) * 64 * 16 + 16,
        "blocks": 3 * ((16 * 8 + 8) + (5 * 8 * 8 + 8) + (8 * 16 + 16)),
        "last": (16 * 16 + 16) + (16 * CODES + CODES),
    }
    assert race.count(model) == sum(seen.values())


def test_every_variant_builds_and_the_textbook_has_as_many_parameters(rng):
    variants = priors.make_variants(rng.standard_normal((64, 8)).astype("float32"), grid_size=16, num_labels=0)
    counts = {name: race.count(variant.build()) for name, variant in variants.items()}
    assert abs(counts["textbook"] / counts["default"] - 1) < 0.1
    assert counts["no attention"] < counts["default"]
    assert counts["no position embedding"] == counts["default"] - 2 * 16 * 64
    assert counts["table alone"] == counts["default"] - 8 * 64


def test_priors_are_trained_for_the_time_asked_for(rng):
    inputs = prior_inputs(rng, 40)
    inputs["codes"][:] = 3

    def build():
        return modules.PixelCNN(CODES, 5, SIZE, 2, filters=8, num_blocks=4, attention_every=2)

    def make_batches():
        return dataset.Batches(40, lambda indices: run_folder.select(inputs, indices), 8, seed=0)

    contestants = [
        race.Contestant("scheduled", build, lambda rate: train.prior_optimizer(rate, 50), 6e-3, make_batches(), 2.0),
        race.Contestant("plain", build, keras.optimizers.Adam, 2e-2, make_batches(), 2.0, scheduled=False),
    ]
    race.race(contestants, 2.0)
    for one in contestants:
        row = one.finish()
        assert row["training_s"] == pytest.approx(2.0, abs=0.5)
        assert row["epochs"] == pytest.approx(row["steps"] * 8 / 40)
        bits = one.model.evaluate(inputs, batch_size=8, verbose=0, return_dict=True)["bits_per_code"]
        assert bits < 1.0


@pytest.mark.parametrize(
    "name", ["default", "two levels", "factor 8, four codebooks", "finite scalar quantisation", "space-to-depth, both"]
)
def test_variants_of_the_vqvae_have_equal_bits_and_whole_images(rng, name):
    model = ablation.VARIANTS[name].build()
    images = rng.integers(0, 256, (3, ablation.SIZE, ablation.SIZE), "uint8")
    outputs, codes, numbers = ablation.reconstruct(model, images)
    assert outputs.shape == images.shape
    found = ablation.quality(images, outputs, codes, numbers, ["a", "a", "b"])
    raw = sum(some[0].size * np.log2(number) for some, number in zip(codes, numbers, strict=True))
    assert found["bits_per_pixel"] == pytest.approx(raw / ablation.SIZE**2)
    assert 0.49 < found["bits_per_pixel"] <= 0.5
    assert found["entropy_bits_per_pixel"] <= found["bits_per_pixel"]
    for some, number in zip(codes, numbers, strict=True):
        assert some.min() >= 0
        assert some.max() < number


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
    quantizer = ablation.FiniteScalarQuantizer(levels)
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


def test_large_sets_are_made_of_links_and_left_alone_if_they_are_not_ours(tmp_path, capsys):
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
    assert {one.split for one in slices} == {"train", "validation", "test"}
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
    path.write_text(WORKER.format(folder=str(peers.BENCHMARKS)))
    process = peers.Process("one", [sys.executable, path], tmp_path / "one.log")
    answer = process.ask("train", 10)
    assert answer["until"] == 10
    assert answer["peak_mib"] > 1
    assert "not an answer" in (tmp_path / "one.log").read_text()
    with pytest.raises(run_folder.RunError, match="one: its process ended .ValueError: no more memory for all"):
        process.ask("fail", "all")
    process.close()


def test_contestants_alternate_and_those_ahead_wait():
    said = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def ask(self, method, until_s):
            said.append((self.name, until_s))

    trained_s = {"ahead": 15}
    peers.alternate([Fake("ahead"), Fake("new")], trained_s, 25)
    assert said == [("new", 10), ("ahead", 20), ("new", 20), ("ahead", 25), ("new", 25)]
    assert trained_s == {"ahead": 25, "new": 25}


@pytest.mark.parametrize(
    ("benchmark", "arguments", "message"),
    [
        (priors, ["--run-dir", "nowhere", "--output", "a.json"], "nowhere: no run here"),
        (priors, ["--run-dir", "nowhere", "--output", "a.json", "--minutes", "nan"], "--minutes nan: must be above 0"),
        (ventricles, ["--num-samples", "0"], "--num-samples 0 must be 2 or more"),
        (sampling_benchmark, ["--output", "a.json", "--grid", "0"], "--grid [0]: must be 1 or more"),
        (training, ["--output", "a.json", "--batch", "0"], "--batch 0: must be 1 or more"),
        (large, ["--output", "a.json", "--slices", "5"], "--slices must be 640 or more"),
        (ablation, ["--output", "a.json", "--variant", "none"], "--variant none: choose among default"),
        (peers, ["--output-dir", "out"], "give --data-dir for the VQ-VAEs"),
        (peers, ["--priors", "runs/a", "--output-dir", "out"], "--monai: needed"),
        (rates, ["--data-dir", "nowhere", "--runs-dir", "runs", "--output-dir", "out"], "--prior-epochs 2: failed"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, benchmark, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert benchmark.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_rates_are_written_with_their_pictures(tmp_path, monkeypatch):
    def measure(args, factor, number):
        run_dir = args.runs_dir / f"factor{factor}-codes{number}"
        run_dir.mkdir(parents=True)
        (run_dir / "config.json").write_text(json.dumps({"data": {"title": "made up", "credit": ""}}))
        row = {"downsampling": factor, "num_embeddings": number, "ssim_head": 0.9 - factor / 100}
        row |= {"ssim_head_ci95": None if number == 64 else [0.7, 0.95]}
        return row | {"bits_per_image": 9.0 * number, "seconds_per_sample": 0.1}, np.zeros((rates.SHOWN, 32, 32))

    monkeypatch.setattr(rates, "measure", measure)
    monkeypatch.chdir(tmp_path)
    assert rates.main(["--output-dir", "out", "--num-embeddings", "64", "512"]) == 0
    rows = json.loads((tmp_path / "out" / "rates.json").read_text())["rows"]
    assert [(row["downsampling"], row["num_embeddings"]) for row in rows] == [(4, 64), (4, 512), (8, 64), (8, 512)]
    for name in ("rates.png", "samples.png"):
        assert (tmp_path / "out" / name).stat().st_size > 5000


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
    page = (tables.ROOT / name).read_text(encoding="utf-8")
    assert tables.rewrite(name, page) == page, "run python benchmarks/tables.py"
    with pytest.raises(run_folder.RunError, match="no table begins with"):
        tables.rewrite(name, "no table")


def test_memory_benchmark_refuses_no_samples(tmp_path, capsys):
    assert memory.main(["--output", str(tmp_path / "memory.json"), "--batch", "4", "0"]) == 1
    assert "--batch [4, 0]: must be 1 or more" in capsys.readouterr().err
