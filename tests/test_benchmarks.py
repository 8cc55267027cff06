"""The benchmarks measure what they say."""

import dataclasses
import json
import runpy
import shutil
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import write_bids, write_oasis
from scipy import ndimage

import dataset
import modules
import sampling
from benchmarks import (
    ablation,
    anomaly,
    codes,
    completion,
    generators,
    harness,
    kills,
    leak,
    peers,
    race,
    start,
    tables,
    ventricles,
)
from benchmarks import sampling as sampling_benchmark
from predict import TrainedModel
from running import opening
from system import console
from system.console import UserError


def small_priors(coarse_grid, grid):
    """A prior of coarse codes, and one of codes that is told them."""
    sizes = {"num_labels": 2, "filters": 8, "num_blocks": 2, "attention_every": 1}
    maps = {"coarse": {"num_embeddings": 8, "grid_size": coarse_grid}}
    return modules.PixelCNN(8, 4, coarse_grid, **sizes), modules.PixelCNN(16, 4, grid, maps=maps, **sizes)


# ----------------------------------------------------------------------------------------------------------------
# The command line
# ----------------------------------------------------------------------------------------------------------------


def test_wrong_options_are_answered_before_keras_is_imported(monkeypatch, capsys):
    monkeypatch.setattr(console, "quietly", None)  # which is around that import
    monkeypatch.setattr(sys, "argv", ["kills", "--output"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(harness.ROOT / "benchmarks" / "kills.py"), run_name="__main__")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: argument --output: expected one argument\n"


@pytest.mark.parametrize(
    ("benchmark", "arguments", "message"),
    [
        (sampling_benchmark, ["--output", "a.json", "--batch", "4", "0"], "--batch: 0: must be 1 or more"),
        (ablation, ["--output", "a.json", "--variant", "none"], "--variant: invalid choice: 'none'"),
        (ablation, ["--output", "a.json", "--data-dir", "nowhere"], "nowhere: no such folder"),
        (
            codes,
            ["--cohort", "ixi", "--data-dir", "a", "--output", "a.json", "--row", "9"],
            "--row: invalid choice: '9'",
        ),
        (anomaly, ["--run-dir", "nowhere", "--output", "a.json", "--lesions", "b"], "nowhere: no run here"),
        (peers, ["--data-dir", "a", "--output-dir", "b", "--entry", "MONAI, tutorial"], "--monai: needed"),
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


@pytest.mark.parametrize("name", tables.PAGES)
def test_pages_have_the_figures_of_the_files(name):
    page = (harness.ROOT / name).read_text(encoding="utf-8")
    assert tables.rewrite(name, page) == page, "run python -m benchmarks.tables"
    with pytest.raises(UserError, match="no table begins with"):
        tables.rewrite(name, "no table")


def test_what_a_file_does_not_say_is_shown_as_nothing():
    row = tables.Row({"a": -0.5, "a_ci95": [-0.7, 0.1], "b": {"mean": 2.0, "ci95": [1, 3], "people": 4}})
    assert "{a:+.1f} | {b:.0f} | {c:.2f}{d[e][f]:,}".format_map(row) == "-0.5 (-0.7 to +0.1) | 2 (1–3) | "


# ----------------------------------------------------------------------------------------------------------------
# Models in a race
# ----------------------------------------------------------------------------------------------------------------


class Three(keras.Model):
    """Learns a number, 3."""

    def __init__(self):
        super().__init__()
        self.number = self.add_weight((), "zeros")
        self.built = True

    def call(self, x, training=False):
        return x * self.number

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(keras.ops.square(y_pred - 3.0))


def test_contestants_learn_for_the_time_asked_for():
    def enter(name, **how):
        variant = race.Variant(Three, keras.optimizers.Adam, 0.1, batch_size=8, precision="float32", **how)
        batches = dataset.Batches(40, lambda rows: np.ones(len(rows), "float32"), variant.batch_size, seed=0)
        return race.Contestant(name, variant, batches, seconds=0.3)

    contestants = [enter("scheduled"), enter("plain", scheduled=False)]
    race.race(contestants, 0.3)
    for one in contestants:
        row = one.finish()
        assert row["training_s"] == pytest.approx(0.3, abs=0.1)
        assert row["epochs"] == pytest.approx(row["steps"] * 8 / 40)
        assert row["parameters"] == 1
        assert 0.5 < float(one.model.number) < 4


def test_a_sigmoid_ends_no_value_at_0_or_1(rng, monkeypatch):
    monkeypatch.setattr(ablation, "SIZE", 32)
    model = ablation.VARIANTS["sigmoid output"].build()
    assert race.count(model) == race.count(modules.VQVAE(32, **ablation.CODES))
    outputs, _ = ablation.reconstruct(model, rng.integers(0, 256, (2, 32, 32), "uint8"))
    assert 0 < outputs.min() < outputs.max() < 1


def test_contestants_learn_only_after_the_warm_up_and_are_measured(rng, monkeypatch):
    monkeypatch.setattr(ablation, "SIZE", 32)
    images = rng.integers(0, 256, (18, 32, 32), "uint8")
    one = ablation.enter("Keras tutorial", peers.KERAS["Keras tutorial"], images, seconds=1.0)
    before = one.model.decoder.get_weights()
    one.warm_up()
    assert all(np.array_equal(a, b) for a, b in zip(before, one.model.decoder.get_weights(), strict=True))
    one.train(one.trained_s + 1e-9)
    assert not all(np.array_equal(a, b) for a, b in zip(before, one.model.decoder.get_weights(), strict=True))
    outputs, codes = ablation.reconstruct(one.model, images)
    assert outputs.shape == images.shape
    assert codes.shape == (18, 8, 8, 1)
    found = ablation.quality(images, outputs, codes, one.model.quantizer.num_embeddings, ["a", "a", "b"] * 6)
    assert found["bits_per_pixel"] == 7 / 16
    assert found["entropy_bits_per_pixel"] <= 7 / 16


def test_a_vqvae_begins_without_a_quantiser(rng, monkeypatch):
    monkeypatch.setattr(ablation, "SIZE", 32)
    images = rng.integers(0, 256, (18, 32, 32), "uint8")
    changes = {"base_filters": 4, "num_embeddings": 8, "embedding_dim": 4}
    one = ablation.enter("small", ablation.variant(changes=changes, continuous=0.5), images, seconds=1e-6)
    one.warm_up()
    encoder = one.model.encoder.get_weights()
    assert one.model.num_quantizers == 0
    assert not one.quantised
    one.step(1.0)  # of no quantiser yet
    one.steps, one.trained_s = 1, 1.0
    learned = one.model.encoder.get_weights()
    assert not np.array_equal(learned[0], encoder[0])
    one.step(0.0)
    assert one.model is one.whole
    np.testing.assert_array_equal(one.model.encoder.get_weights()[0], learned[0])
    codebooks = one.whole.codebooks
    assert one.finish()["parameters"] == race.count(one.whole)
    np.testing.assert_array_equal(one.whole.codebooks, codebooks)  # k-means is done once


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
    fakes = [SimpleNamespace(ask=lambda method, until_s, name=name: said.append((name, until_s))) for name in "ab"]
    peers.train(fakes, 25)
    assert said == [(name, until_s) for until_s in (10, 20, 25) for name in "ab"]


# ----------------------------------------------------------------------------------------------------------------
# What is measured
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [False, True])
def test_sampling_benchmark_compares_every_code(monkeypatch, fault):
    if fault:  # the very last code of the last sample is another
        draw = sampling.PixelCNNSampler.draw

        def faulty(self, *args, **kwargs):
            codes = draw(self, *args, **kwargs).copy()
            codes[-1, -1, -1] = (codes[-1, -1, -1] + 1) % 8
            return codes

        monkeypatch.setattr(sampling.PixelCNNSampler, "draw", faulty)
    row = sampling_benchmark.measure(small_priors(4, 5), batch=2, naive_steps=3)
    assert row["exact"] is not fault
    assert row["different_codes"] == 2 * int(fault)  # one in either grid
    assert row["speedup"] == pytest.approx(row["naive_s"] / row["cached_s"])
    assert row["teacher_forced_s"] > 0


@pytest.mark.parametrize("stage", kills.STAGES)
def test_runs_differ_by_the_weights_of_any_stage(tmp_path, stage):
    whole = tmp_path / "whole"
    whole.mkdir()
    np.savez(whole / "codes.npz", codes=np.arange(4))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.save(whole / f"{stage}.keras")
    (whole / f"{stage}_history.csv").write_text("epoch,seconds,loss\n1,2.5,0.5\n")
    other = shutil.copytree(whole, tmp_path / "other")
    (other / f"{stage}_history.csv").write_text("epoch,seconds,loss\n1,9.5,0.5\n")  # time is no difference
    assert kills.differences(other, whole) == []
    model.set_weights([w + 1 for w in model.get_weights()])
    model.save(other / f"{stage}.keras")
    assert kills.differences(other, whole) == [f"{stage}.keras"]
    (other / f"{stage}.keras").unlink()
    assert kills.differences(other, whole) == [f"{stage}.keras"]


def test_a_copy_is_found_in_the_training_slices(tmp_path):
    data = dataset.prepare(write_oasis(tmp_path / "oasis"), cache_dir=tmp_path / "cache")
    sizes = {"base_filters": 2, "num_residual_blocks": 0, "embedding_dim": 4}
    vqvae, coarse = (modules.VQVAE(32, downsampling=k, num_embeddings=n, **sizes) for k, n in ((8, 16), (16, 8)))
    coarse_prior, prior = small_priors(2, 4)
    models = SimpleNamespace(vqvae=vqvae, coarse=coarse, coarse_prior=coarse_prior, prior=prior)
    found = leak.measure(models, data, data.pixels(data.of("test")))
    assert found["slices"] == len(data.of("test"))
    assert found["copy_ssim_head"]["mean"] == pytest.approx(1)
    assert 0 < found["bits_per_code"]["mean"] < 8


def test_codes_are_judged_on_the_validation_people(trained_run):
    model = TrainedModel(trained_run / "run", "plain")
    data = opening.find_data(trained_run / "run", model.config)
    slices = data.slices.assign(split=data.slices.split.replace({"validation": "test", "test": ""}))
    row = codes.judge(model, dataclasses.replace(data, slices=slices), 20)
    assert len(row["bits_by_level"]) == len(row["perplexity_by_level"]) == 2
    assert row["raw_bits_per_pixel"] == 2 * 4 / 16
    assert sum(row["variance_shares"]) == pytest.approx(1)
    assert 1 <= row["effective_dimension"] <= 4
    json.dumps(row)


def test_samples_stand_beside_those_of_another_model(tmp_path, trained_run, capsys):
    program = tmp_path / "python"  # takes the place of MONAI's: what it draws are training slices
    program.write_text(f"""#!{sys.executable}
import json, sys
import numpy as np
_, script, folder, seconds, number = sys.argv
assert script.endswith("peer_diffusion.py") and float(seconds) > 0
train, test, positions = (np.load(f"{{folder}}/{{name}}.npy") for name in ("train", "test", "positions"))
made = {{"samples": train[:20] / 255, "reconstructions": test / 255, "positions": positions[:20]}}
np.savez(f"{{folder}}/diffusion.npz", **made)
print(json.dumps({{"parameters": 7, "seconds_a_sample": 1.5}}))
""")
    program.chmod(0o755)
    output, work = tmp_path / "generators.json", tmp_path / "work"
    asked = ["--run-dir", trained_run / "run", "--work-dir", work, "--output", output, "--number", "20", "--monai"]
    assert generators.main([*map(str, asked), str(program)]) == 0
    ours, theirs = json.loads(output.read_text())["rows"]
    assert [row["entry"] for row in (ours, theirs)] == ["this project", "latent diffusion"]
    assert theirs["training_s"] == ours["training_s"] > 0
    assert theirs["parameters"] == 7
    assert theirs["ssim_head"] == pytest.approx(1, abs=1e-3)
    assert theirs["copies"] == 1 > ours["copies"]
    assert output.with_suffix(".png").exists()
    program.write_text(f"#!{sys.executable}\nraise SystemExit('no memory left')\n")
    capsys.readouterr()
    assert generators.main([*map(str, asked), str(program)]) == 1
    assert "peer_diffusion.py: failed (no memory left); see" in capsys.readouterr().err


def test_ventricles_are_measured():
    y, x = (np.indices((128, 128)) - 63.5) / 50
    head = (x**2 + y**2 < 1) * 0.9 - (np.hypot(x, y) > 0.8) * (x**2 + y**2 < 1) * 0.4  # white, with a grey rim
    shares = [ventricles.ventricle_share(np.where(x**2 + y**2 < r**2, 0.15, head)) for r in (0.15, 0.25)]
    np.testing.assert_allclose(shares, [0.15**2, 0.25**2], rtol=0.05)
    assert np.isnan(ventricles.ventricle_share(np.zeros((64, 64))))


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
    expected = np.zeros((32, 32), bool)
    expected[16:20, 8:24] = True
    np.testing.assert_array_equal(completion.lower_edge(mask, 4), expected)


def test_people_are_linked_and_nothing_else(tmp_path):
    write_bids(tmp_path / "bids", people=4)
    for people in (["sub-01", "sub-03"], ["sub-02"]):
        start.link_people(tmp_path / "bids", tmp_path / "few", people)
        assert sorted(path.name for path in (tmp_path / "few").iterdir()) == people
        assert (tmp_path / "few" / people[0] / "anat").is_dir()
