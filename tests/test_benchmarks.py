"""The benchmarks measure what they say."""

import json

import numpy as np
import pytest
from conftest import CODES, SIZE, assert_causal, randomise

import sampling
from benchmarks import priors, ventricles
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
    model = priors.TextbookPixelCNN(CODES, SIZE, num_labels=2, filters=16, num_blocks=3)
    randomise(model, rng, scale=0.2)
    assert_causal(model, rng)
    assert model.first.count_visible() == (7 * 3 + 3) * 64 * 16 + 16
    hidden = (7 * 7 - (7 * 3 + 3)) * 64 * 16 + 3 * (9 - 5) * 8 * 8
    assert model.count_visible() == model.count_params() - hidden


def test_ventricles_are_measured():
    y, x = (np.indices((128, 128)) - 63.5) / 50
    head = (x**2 + y**2 < 1) * 0.9 - (np.hypot(x, y) > 0.8) * (x**2 + y**2 < 1) * 0.4  # white, with a grey rim
    shares = []
    for radius in (0.15, 0.25):
        image = head.copy()
        image[x**2 + y**2 < radius**2] = 0.15
        shares.append(ventricles.ventricle_share(image))
    np.testing.assert_allclose(shares, [0.15**2, 0.25**2], rtol=0.05)
