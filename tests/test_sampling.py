"""The sampler draws what the textbook loop draws, and keeps its promises."""

import keras
import numpy as np
import pytest
from conftest import CODES, SIZE, prior_inputs, randomise, small_prior

import modules
import sampling


def noise(seed, number):
    return np.stack([sampling.sample_noise(seed, i, SIZE) for i in range(number)])


def naive(model, x, uniform, temperature=1.0, top_k=0, top_p=1.0, known=None):
    """The textbook loop: the whole network for every code."""
    codes = np.zeros_like(x["codes"])
    for r in range(model.grid_size):
        for c in range(model.grid_size):
            logits = model.predict_on_batch({**x, "codes": codes})[:, r, c]
            codes[:, r, c] = sampling.draw_codes(logits, uniform[:, r, c], temperature, top_k, top_p)
            if known is not None:
                codes[:, r, c] = np.where(known[:, r, c] >= 0, known[:, r, c], codes[:, r, c])
    return codes


@pytest.fixture(scope="module")
def prior():
    return small_prior(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ({}, 1),
        ({}, 5),
        ({"temperature": 0.7}, 5),
        ({"top_k": 3}, 5),
        ({"top_p": 0.6}, 5),
        ({"temperature": 1.3, "top_k": 6, "top_p": 0.9}, 5),
    ],
)
def test_sampler_draws_what_the_naive_loop_draws(prior, rng, options, number):
    x = prior_inputs(rng, number)
    sampler = sampling.PixelCNNSampler(prior, **options)
    drawn = next(sampler.sample(x["label"], x["slice_position"], seed=3, batch_size=number))
    np.testing.assert_array_equal(drawn, naive(prior, x, noise(3, number), **options))


LAYOUTS, SIDE = 7, 4  # codes and grid of the small layouts; 4 does not divide 9


@pytest.fixture(scope="module")
def levels():
    """A prior of layouts and a prior that is told them."""
    rng = np.random.default_rng(1)
    layout_prior = modules.PixelCNN(LAYOUTS, 5, SIDE, 2, filters=8, num_blocks=4, attention_every=0)
    randomise(layout_prior, rng)
    maps = {"layout": {"num_embeddings": LAYOUTS, "grid_size": SIDE}}
    return layout_prior, small_prior(rng, maps=maps)


def test_both_levels_draw_what_the_naive_loops_draw(levels, rng):
    layout_prior, prior = levels
    x = prior_inputs(rng, 5)
    conditions = {name: x[name] for name in ("label", "slice_position")}
    sampler = sampling.SliceSampler(*levels, layout_temperature=0.8, temperature=1.2, top_p=0.95)
    drawn = np.concatenate(list(sampler.sample(**conditions, seed=3, batch_size=2)))
    of_layout = np.stack([sampling.sample_noise(3, i, SIDE, level=1) for i in range(5)])
    layout = naive(layout_prior, {**conditions, "codes": np.zeros((5, SIDE, SIDE), "int32")}, of_layout, 0.8)
    np.testing.assert_array_equal(drawn, naive(prior, {**x, "layout": layout}, noise(3, 5), 1.2, top_p=0.95))
    assert len(np.unique(layout)) > 2
    same_noise = next(sampler.sample([1, 1], [0.5, 0.5], seed=3, noise_index=[4, 4], batch_size=2))
    np.testing.assert_array_equal(*same_noise)


def test_the_noises_of_a_sample_differ_by_seed_sample_and_level():
    drawn = [sampling.sample_noise(*of, 4, level).ravel() for of in ((0, 0), (0, 1), (1, 0)) for level in (0, 1)]
    assert len(np.unique(np.stack(drawn), axis=0)) == 6


def test_the_textbook_loop_with_the_priors_own_distribution_draws_alike():
    """From TensorFlow Probability's random numbers, so not the same codes: their frequencies, over 1,000 grids of 3."""
    keras.utils.set_random_seed(0)
    model = modules.PixelCNN(3, 2, 3, filters=8, num_blocks=2, attention_every=1)
    randomise(model, np.random.default_rng(2), scale=0.5)
    number = 1000
    x = {"label": np.zeros(number, "int32"), "slice_position": np.full(number, 0.5, "float32")}
    codes = np.zeros((number, 3, 3), "int32")
    for r in range(3):
        for c in range(3):
            codes[:, r, c] = model.distribution({**x, "codes": codes}).sample(seed=3 * r + c)[:, r, c]
    drawn = next(sampling.PixelCNNSampler(model).sample(**x, seed=0, batch_size=number))
    for code in range(3):  # five standard errors of a difference of shares
        np.testing.assert_allclose((codes == code).mean(axis=0), (drawn == code).mean(axis=0), atol=0.11)
    pairs = [(some[:, :, 1:] == some[:, :, :-1]).mean() for some in (codes, drawn)]  # neighbours go together alike
    assert pairs[0] == pytest.approx(pairs[1], abs=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_every": 0, "num_blocks": 8},
        {"num_labels": 0},
        {"num_blocks": 6, "attention_every": 3, "max_dilation": 4},
    ],
)
def test_sampler_is_exact_for_other_priors_and_after_loading(tmp_path, rng, changes):
    small_prior(rng, **changes).save(tmp_path / "prior.keras")
    model = keras.saving.load_model(tmp_path / "prior.keras")
    x = prior_inputs(rng)
    if model.num_labels == 0:
        x["label"][:] = 0
    drawn = next(sampling.PixelCNNSampler(model).sample(x["label"], x["slice_position"], 0, batch_size=3))
    np.testing.assert_array_equal(drawn, naive(model, x, noise(0, 3)))


def test_sampler_is_exact_on_trained_weights(rng):
    model = modules.PixelCNN(CODES, 5, SIZE, 2, filters=8, num_blocks=4, max_dilation=4, attention_every=2)
    x = prior_inputs(rng, 32)
    x["codes"][:] = (np.arange(SIZE)[:, None] + np.arange(SIZE) + x["label"][:, None, None]) % CODES
    model.compile(optimizer=keras.optimizers.Adam(1e-2))
    history = model.fit(x, epochs=40, batch_size=8, verbose=0).history
    assert history["bits_per_code"][-1] < 1.0
    few = {name: value[:6] for name, value in x.items()}
    drawn = next(sampling.PixelCNNSampler(model).sample(few["label"], few["slice_position"], 1, batch_size=6))
    np.testing.assert_array_equal(drawn, naive(model, few, noise(1, 6)))
    assert (drawn == few["codes"]).mean() > 0.7


def test_sample_i_is_the_same_in_every_batch(prior):
    sampler = sampling.PixelCNNSampler(prior)
    labels, positions = np.arange(7) % 3, np.linspace(0, 1, 7)
    chunks = list(sampler.sample(labels, positions, 5, batch_size=4))
    assert [len(chunk) for chunk in chunks] == [4, 3]
    all_seven = np.concatenate(chunks)
    np.testing.assert_array_equal(next(sampler.sample(labels[:2], positions[:2], 5, batch_size=4)), all_seven[:2])
    np.testing.assert_array_equal(next(sampler.sample(labels, positions, 5, batch_size=7)), all_seven)
    late = next(sampler.sample(labels[5:], positions[5:], 5, noise_index=[5, 6], batch_size=4))
    np.testing.assert_array_equal(late, all_seven[5:])
    shared = next(sampler.sample([1, 1, 1], [0.3, 0.3, 0.9], 5, noise_index=[2, 2, 2], batch_size=4))
    np.testing.assert_array_equal(shared[0], shared[1])
    assert not np.array_equal(shared[0], shared[2])


def test_known_codes_are_held_fixed(prior, rng):
    x = prior_inputs(rng)
    known = np.where(rng.random(x["codes"].shape) < 0.4, x["codes"], -1)
    sampler = sampling.PixelCNNSampler(prior)
    drawn = next(sampler.sample(x["label"], x["slice_position"], 2, known=known, batch_size=3))
    np.testing.assert_array_equal(drawn[known >= 0], known[known >= 0])
    np.testing.assert_array_equal(drawn, naive(prior, x, noise(2, 3), known=known))
    free = next(sampler.sample(x["label"], x["slice_position"], 2, batch_size=3))
    assert not np.array_equal(drawn, free)


def test_drawn_codes_have_the_right_frequencies(rng):
    logits = np.log(np.array([0.5, 0.2, 0.15, 0.1, 0.05], "float32"))
    uniform = rng.random(20_000, "float32")
    rows = np.tile(logits, (len(uniform), 1))

    def frequencies(**options):
        drawn = np.asarray(sampling.draw_codes(rows, uniform, **{"temperature": 1.0} | options))
        return np.bincount(drawn, minlength=5) / len(uniform)

    np.testing.assert_allclose(frequencies(), np.exp(logits), atol=0.012)
    np.testing.assert_allclose(frequencies(top_k=2), [5 / 7, 2 / 7, 0, 0, 0], atol=0.012)
    np.testing.assert_allclose(frequencies(top_p=0.6), [5 / 7, 2 / 7, 0, 0, 0], atol=0.012)
    np.testing.assert_allclose(frequencies(top_p=0.4), [1, 0, 0, 0, 0])
    sharp = np.exp(2 * logits) / np.exp(2 * logits).sum()
    np.testing.assert_allclose(frequencies(temperature=0.5), sharp, atol=0.012)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": [0, 3]}, "labels are 0 to 2, not 0 to 3"),
        ({"slice_position": [0.5, 1.5]}, "slice positions are 0 to 1, not 0.5 to 1.5"),
        ({"slice_position": [0.5]}, "2 labels, 1 slice positions, 2 noises"),
        ({"known": np.zeros((2, SIZE, SIZE - 1), int)}, "known codes have shape"),
        ({"known": np.full((2, SIZE, SIZE), CODES)}, f"known codes are -1 to {CODES - 1}, not up to {CODES}"),
    ],
)
def test_sampler_refuses_what_the_prior_cannot_have(prior, changes, message):
    sampler = sampling.PixelCNNSampler(prior)
    with pytest.raises(ValueError, match=message):
        next(sampler.sample(**{"label": [0, 1], "slice_position": [0.5, 0.5], "seed": 0} | changes))


@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_sampler_refuses_bad_arguments(prior, options):
    with pytest.raises(ValueError, match="must be"):
        sampling.PixelCNNSampler(prior, **options)
