"""The benchmarks measure what they say."""

import json

import numpy as np
import pytest
from conftest import CODES, SIZE, assert_causal, prior_inputs, randomise

import dataset
import modules
import run_folder
import sampling
from benchmarks import memory, priors, rates, tables, ventricles
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
    assert priors.count(model) == sum(seen.values())


def test_every_variant_builds_and_the_textbook_has_as_many_parameters(rng):
    variants = priors.make_variants(rng.standard_normal((64, 8)).astype("float32"), grid_size=16, num_labels=0)
    counts = {name: priors.count(variant.build()) for name, variant in variants.items()}
    assert abs(counts["textbook"] / counts["default"] - 1) < 0.1
    assert counts["no attention"] < counts["default"]
    assert counts["no position embedding"] == counts["default"] - 2 * 16 * 64
    assert counts["table alone"] == counts["default"] - 8 * 64


def test_priors_are_trained_for_the_time_asked_for(rng):
    inputs = prior_inputs(rng, 40)
    inputs["codes"][:] = 3

    def build():
        return modules.PixelCNN(CODES, 5, SIZE, 2, filters=8, num_blocks=4, attention_every=2)

    def make_batches(max_shift):
        assert max_shift == 0
        return dataset.Batches(40, lambda indices: run_folder.select(inputs, indices), 8, seed=0)

    variants = {
        "as the project": priors.Variant(build, max_shift=0),
        "plain": priors.Variant(build, priors.adam, learning_rate=2e-2, max_shift=0),
    }
    contestants = [priors.Contestant(name, variant, make_batches, seconds=2.0) for name, variant in variants.items()]
    priors.race(contestants, 2.0)
    for one in contestants:
        row = one.finish(inputs)
        assert row["training_s"] == pytest.approx(2.0, abs=0.5)
        assert row["epochs"] == pytest.approx(row["steps"] * 8 / 40)
        assert row["validation_bits_per_code"] < 1.0


@pytest.mark.parametrize(
    ("benchmark", "arguments", "message"),
    [
        (priors, ["--run-dir", "nowhere", "--output", "a.json"], "nowhere: no run here"),
        (priors, ["--run-dir", "nowhere", "--output", "a.json", "--minutes", "nan"], "--minutes nan: must be above 0"),
        (ventricles, ["--num-samples", "0"], "--num-samples 0 must be 2 or more"),
        (sampling_benchmark, ["--output", "a.json", "--grid", "0"], "--grid [0]: must be 1 or more"),
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


def test_the_readme_has_the_figures_of_the_files():
    page = (tables.ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.rewrite(page) == page, "run python benchmarks/tables.py"
    with pytest.raises(run_folder.RunError, match="no table begins with"):
        tables.rewrite("no table")


def test_memory_benchmark_refuses_no_samples(tmp_path, capsys):
    assert memory.main(["--output", str(tmp_path / "memory.json"), "--batch", "4", "0"]) == 1
    assert "--batch [4, 0]: must be 1 or more" in capsys.readouterr().err
