"""The sampler draws what the textbook loop draws, and keeps its promises."""

import itertools

import keras
import numpy as np
import pytest
from conftest import CODES, SIZE, prior_inputs, randomise, small_prior

import modules
import sampling


def noise(seed, number, model):
    shape = (model.grid_size, model.grid_size, model.num_quantizers)
    return np.stack([sampling.sample_noise(seed, i, shape) for i in range(number)])


def naive(model, x, uniform, temperature=1.0, top_k=0, top_p=1.0, known=None):
    """The textbook loop: the whole network for every code."""
    codes = np.zeros(uniform.shape, "int32")
    for place in np.ndindex(uniform.shape[1:]):  # row, column, level
        at = (slice(None), *place)
        logits = model.predict_on_batch({**x, "codes": codes})[at]
        codes[at] = sampling.draw_codes(logits, uniform[at], temperature, top_k, top_p)
        if known is not None:
            codes[at] = np.where(known[at] >= 0, known[at], codes[at])
    return codes


@pytest.fixture(scope="module", params=[1, 2])
def prior(request):
    return small_prior(np.random.default_rng(0), num_quantizers=request.param)


@pytest.mark.parametrize(
    ("options", "number"),
    [({}, 1), ({"temperature": 0.7}, 5), ({"temperature": 1.3, "top_k": 6, "top_p": 0.9}, 5)],
)
def test_sampler_draws_what_the_naive_loop_draws(prior, rng, options, number):
    x = prior_inputs(rng, number)
    sampler = sampling.PixelCNNSampler(prior, **options)
    drawn = sampler.draw(x["label"], x["slice_position"], seed=3, batch_size=number)
    np.testing.assert_array_equal(drawn, naive(prior, x, noise(3, number, prior), **options))


COARSE_CODES, SIDE = 7, 4  # codes and grid of the small coarse codes; 4 does not divide 9


@pytest.fixture(scope="module", params=[1, 2])
def levels(request):
    """A prior of coarse codes and a prior that is told them, of one level or two."""
    rng = np.random.default_rng(1)
    coarse_prior = modules.PixelCNN(COARSE_CODES, 5, SIDE, 2, filters=8, num_blocks=4, attention_every=0)
    randomise(coarse_prior, rng)
    maps = {"coarse": {"num_embeddings": COARSE_CODES, "grid_size": SIDE}}
    return coarse_prior, small_prior(rng, maps=maps, num_quantizers=request.param)


def test_both_levels_draw_what_the_naive_loops_draw(levels, rng):
    coarse_prior, prior = levels
    x = prior_inputs(rng, 5)
    conditions = {name: x[name] for name in ("label", "slice_position")}
    sampler = sampling.SliceSampler(*levels, coarse_temperature=0.8, temperature=1.2, top_p=0.95)
    drawn = np.concatenate(list(sampler.sample(**conditions, seed=3, batch_size=2)))
    of_coarse = np.stack([sampling.sample_noise(3, i, (SIDE, SIDE, 1), which=1) for i in range(5)])
    coarse = naive(coarse_prior, conditions, of_coarse, 0.8)
    expected = naive(prior, {**conditions, "coarse": coarse}, noise(3, 5, prior), 1.2, top_p=0.95)
    np.testing.assert_array_equal(drawn, expected)
    assert len(np.unique(coarse)) > 2


def test_the_noises_of_a_sample_differ_by_seed_sample_and_grid():
    shape = (4, 4, 2)
    drawn = [sampling.sample_noise(*of, shape, which).ravel() for of in ((0, 0), (0, 1), (1, 0)) for which in (0, 1)]
    assert len(np.unique(np.stack(drawn), axis=0)) == 6


def test_the_textbook_loop_with_the_priors_own_distribution_draws_alike():
    """From TensorFlow Probability's random numbers, so not the same codes: their frequencies, over 1,000 grids of 3."""
    keras.utils.set_random_seed(0)
    model = modules.PixelCNN(3, 2, 3, num_quantizers=2, filters=8, num_blocks=2, attention_every=1)
    randomise(model, np.random.default_rng(2), scale=0.5)
    number = 1000
    x = {"label": np.zeros(number, "int32"), "slice_position": np.full(number, 0.5, "float32")}
    codes = np.zeros((number, 3, 3, 2), "int32")
    for seed, (r, c, level) in enumerate(np.ndindex(3, 3, 2)):
        codes[:, r, c, level] = model.distribution({**x, "codes": codes}).sample(seed=seed)[:, r, c, level]
    drawn = sampling.PixelCNNSampler(model).draw(**x, seed=0, batch_size=number)
    for code in range(3):  # five standard errors of a difference of shares
        np.testing.assert_allclose((codes == code).mean(axis=0), (drawn == code).mean(axis=0), atol=0.11)
    for pair in (  # neighbours, and the levels of a place, go together alike
        lambda some: (some[:, :, 1:] == some[:, :, :-1]).mean(),
        lambda some: (some[..., 0] == some[..., 1]).mean(),
    ):
        assert pair(codes) == pytest.approx(pair(drawn), abs=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_every": 0, "num_blocks": 8},
        {"num_labels": 0, "num_blocks": 6, "attention_every": 3, "max_dilation": 4},
    ],
)
def test_sampler_is_exact_for_other_priors_and_after_loading(tmp_path, rng, changes):
    small_prior(rng, **changes).save(tmp_path / "prior.keras")
    model = keras.saving.load_model(tmp_path / "prior.keras")
    x = prior_inputs(rng)
    if model.num_labels == 0:
        x["label"][:] = 0
    drawn = sampling.PixelCNNSampler(model).draw(x["label"], x["slice_position"], 0, batch_size=3)
    np.testing.assert_array_equal(drawn, naive(model, x, noise(0, 3, model)))


def test_sampler_is_exact_on_trained_weights(rng):
    sizes = {"num_quantizers": 2, "filters": 8, "num_blocks": 4, "max_dilation": 4, "attention_every": 2}
    model = modules.PixelCNN(CODES, 5, SIZE, 2, **sizes)
    x = prior_inputs(rng, 32, levels=2)
    x["codes"][:] = (np.arange(SIZE)[:, None] + np.arange(SIZE) + x["label"][:, None, None])[..., None] % CODES
    model.compile(optimizer=keras.optimizers.Adam(1e-2))
    history = model.fit(x, epochs=30, batch_size=8, verbose=0).history
    assert history["bits_per_code"][-1] < 1.0
    few = {name: value[:6] for name, value in x.items()}
    drawn = sampling.PixelCNNSampler(model).draw(few["label"], few["slice_position"], 1, batch_size=6)
    np.testing.assert_array_equal(drawn, naive(model, few, noise(1, 6, model)))
    assert (drawn == few["codes"]).mean() > 0.7


def test_sample_i_is_the_same_in_every_batch(prior):
    sampler = sampling.PixelCNNSampler(prior)
    labels, positions = np.arange(7) % 3, np.linspace(0, 1, 7)
    all_seven = sampler.draw(labels, positions, 5, batch_size=7)
    np.testing.assert_array_equal(sampler.draw(labels[:2], positions[:2], 5, batch_size=4), all_seven[:2])
    late = sampler.draw(labels[5:], positions[5:], 5, noise_index=[5, 6], batch_size=4)
    np.testing.assert_array_equal(late, all_seven[5:])
    shared = sampler.draw([1, 1, 1], [0.3, 0.3, 0.9], 5, noise_index=[2, 2, 2], batch_size=4)
    np.testing.assert_array_equal(shared[0], shared[1])
    assert not np.array_equal(shared[0], shared[2])


def test_known_codes_are_held_fixed(prior, rng):
    x = prior_inputs(rng, levels=prior.num_quantizers)
    known = np.where(rng.random(x["codes"].shape) < 0.4, x["codes"], -1)
    sampler = sampling.PixelCNNSampler(prior)
    drawn = sampler.draw(x["label"], x["slice_position"], 2, known=known, batch_size=3)
    np.testing.assert_array_equal(drawn[known >= 0], known[known >= 0])
    np.testing.assert_array_equal(drawn, naive(prior, x, noise(2, 3, prior), known=known))
    free = sampler.draw(x["label"], x["slice_position"], 2, batch_size=3)
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


@pytest.mark.parametrize("number", [2, 15, 16, 17, 100])
def test_a_code_is_where_the_sum_of_the_probabilities_passes_the_number(rng, number):
    logits, uniform = rng.normal(size=(2000, number)).astype("float32") * 4, rng.random(2000, "float32")
    uniform[:2] = 0, np.nextafter(np.float32(1), np.float32(0))
    reached = np.exp(logits.astype(float)).cumsum(axis=1)
    expected = (reached <= uniform[:, None] * reached[:, -1:]).sum(axis=1)
    drawn = np.asarray(sampling.draw_codes(logits, uniform, temperature=1.0))
    assert (drawn == expected).mean() > 0.999  # but for numbers at the very border
    assert drawn.max() < number
    best = np.asarray(sampling.draw_codes(logits, uniform, temperature=1.0, top_k=1))
    np.testing.assert_array_equal(best, logits.argmax(axis=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": [0, 3]}, "labels are 0 to 2, not 0 to 3"),
        ({"slice_position": [0.5, 1.5]}, "slice positions are 0 to 1, not 0.5 to 1.5"),
        ({"slice_position": [0.5]}, "2 labels, 1 slice positions, 2 noises"),
        ({"batch_size": 1}, "as many of each, 1 to 1"),
        ({"known": np.zeros((2, SIZE, SIZE - 1), int)}, "known codes have shape"),
        ({"known": np.full((2, SIZE, SIZE, 1), CODES)}, f"known codes are -1 to {CODES - 1}, not up to {CODES}"),
    ],
)
def test_sampler_refuses_what_the_prior_cannot_have(rng, changes, message):
    sampler = sampling.PixelCNNSampler(small_prior(rng))
    with pytest.raises(ValueError, match=message):
        sampler.draw(**{"label": [0, 1], "slice_position": [0.5, 0.5], "seed": 0} | changes)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_sampler_refuses_bad_arguments(prior, options):
    with pytest.raises(ValueError, match="must be"):
        sampling.PixelCNNSampler(prior, **options)


# -- Slices completed, heads slice by slice -----------------------------------------------------------------------


def tiny_levels(rng, coarse, side, scale, **more):
    """Priors of side x side coarse codes and of 3 x 3 codes of three, given those; every filling can be counted."""
    coarse_prior = modules.PixelCNN(coarse, 5, side, 0, filters=8, num_blocks=side, attention_every=0)
    maps = {"coarse": {"num_embeddings": coarse, "grid_size": side}}
    prior = modules.PixelCNN(3, 5, 3, 0, maps, filters=8, num_blocks=3, attention_every=0, **more)
    for model in (coarse_prior, prior):
        randomise(model, rng, scale)
    return coarse_prior, prior


@pytest.mark.parametrize(
    ("levels", "hidden"), [(1, ([0, 1, 1], [0, 0, 2], [0, 0, 0])), (2, ([0, 0, 1], [0, 0, 2], [0, 1, 1]))]
)
def test_completions_have_the_posterior_of_the_codes_that_are_not_known(levels, hidden):
    """Three codes unknown, one of them first: each of 27 fillings about as often as Bayes says.

    Merely forcing the known codes is far from it, so the test can tell.
    """
    coarse_prior, prior = tiny_levels(np.random.default_rng(5), 3, 3, 0.45, num_quantizers=levels)
    coarse, codes = np.zeros((3, 3, 1), "int32"), np.array([[1, 1, 0], [0, 1, 2], [1, 1, 1]], "int32")
    codes = np.stack([codes, codes.T][:levels], axis=-1)
    known = codes.copy()
    known[hidden] = -1
    fillings = np.array(list(itertools.product(range(3), repeat=3)), "int32")
    every = np.tile(codes, (27, 1, 1, 1))
    every[:, *hidden] = fillings
    told = {"label": np.zeros(27, "int32"), "slice_position": np.full(27, 0.5, "float32")}
    maps = {"coarse": np.tile(coarse, (27, 1, 1, 1))}
    bits = modules.code_lengths(prior, {**told, **maps, "codes": every}).sum(axis=(1, 2, 3))
    posterior = np.exp2(bits.min() - bits)
    posterior /= posterior.sum()

    def distance(particles, number=400):
        sampler = sampling.SliceSampler(coarse_prior, prior)
        drawn = sampler.complete(known, coarse, 0, 0.5, number, 0, particles)
        assert (drawn[:, known >= 0] == known[known >= 0]).all()
        places = (drawn[:, *hidden] @ [9, 3, 1]).astype(int)
        return np.abs(np.bincount(places, minlength=27) / number - posterior).sum() / 2

    assert distance(64) < 0.14  # 27 shares of 400 draws are off by about 0.09
    assert distance(1, 250) > 0.25


def test_a_coarse_code_that_is_not_known_is_drawn_by_what_is_known_of_the_slice():
    """One coarse code unknown; its posterior is that of all codes of the slice."""
    rng = np.random.default_rng(6)
    coarse_prior, prior = tiny_levels(rng, 4, 2, 0.35)
    coarse, codes = rng.integers(0, 4, (2, 2, 1)).astype("int32"), rng.integers(0, 3, (3, 3, 1)).astype("int32")
    known_coarse, known = coarse.copy(), codes.copy()
    known_coarse[0, 1] = known[2, 2] = -1
    fillings = list(itertools.product(range(4), range(3)))
    coarse, every = np.tile(coarse, (12, 1, 1, 1)), np.tile(codes, (12, 1, 1, 1))
    coarse[:, 0, 1, 0], every[:, 2, 2, 0] = np.transpose(fillings)
    told = {"label": np.zeros(12, "int32"), "slice_position": np.full(12, 0.5, "float32")}
    bits = modules.code_lengths(coarse_prior, {**told, "codes": coarse}).sum(axis=(1, 2, 3))
    bits += modules.code_lengths(prior, {**told, "codes": every, "coarse": coarse}).sum(axis=(1, 2, 3))
    of_code = np.exp2(bits.min() - bits).reshape(4, 3).sum(axis=0)
    of_code /= of_code.sum()
    drawn = sampling.SliceSampler(coarse_prior, prior).complete(known, known_coarse, 0, 0.5, 500, 0, 64)
    found = np.bincount(drawn[:, 2, 2, 0], minlength=3) / len(drawn)
    assert np.abs(found - of_code).sum() / 2 < 0.07


@pytest.mark.parametrize("log_weights", [[0.0, 0.0, 0.0, 0.0], [0.0, -1.0, -2.0, -9.0], [-50.0, 0.0, -50.0, -50.0]])
def test_systematic_resampling_takes_each_particle_as_often_as_its_weight_says(log_weights):
    shares = np.exp(log_weights) / np.exp(log_weights).sum()
    taken, kept = np.zeros(4), 0
    for uniform in (np.arange(500) + 0.5) / 500:
        index, weights = (np.asarray(x) for x in sampling.resample(np.array(log_weights, "float32"), uniform))
        taken += np.bincount(index, minlength=4) / 4
        kept += weights.any()
    if 1 / np.square(shares).sum() < 2:
        np.testing.assert_allclose(taken / 500, shares, atol=0.003)
        assert kept == 0
    else:  # nothing is done while the weights are alike
        np.testing.assert_array_equal(taken, [125] * 4)


LEVELS = 2  # of the codes of slices that are told of others


@pytest.fixture(scope="module")
def told_of_neighbours():
    rng = np.random.default_rng(2)
    of_coarse = {"num_embeddings": COARSE_CODES, "grid_size": SIDE}
    coarse_prior = modules.PixelCNN(
        COARSE_CODES, 5, SIDE, 2, {"below": of_coarse}, filters=8, num_blocks=4, attention_every=0
    )
    randomise(coarse_prior, rng)
    of_codes = {"num_embeddings": CODES, "grid_size": SIZE, "num_quantizers": LEVELS}
    maps = {"below": of_codes, "coarse": of_coarse}
    return coarse_prior, small_prior(rng, maps=maps, num_quantizers=LEVELS)


@pytest.mark.parametrize("compiled", [False, True])
def test_heads_are_what_the_naive_loops_draw(told_of_neighbours, compiled):
    """Slice by slice from the lowest upwards, both grids, each given the slice drawn before."""
    coarse_prior, prior = told_of_neighbours
    label, positions = np.array([1, 2, 0], "int32"), [0.0, 0.5, 1.0]
    sampler = sampling.SliceSampler(*told_of_neighbours, jit_compile=compiled)
    drawn = np.concatenate(list(sampler.sample_heads(label, positions, 3, batch_size=2)))
    assert drawn.shape == (3, 3, SIZE, SIZE, LEVELS)
    below = {}, {}
    for i in range(3):
        x = {"label": label, "slice_position": np.full(3, positions[i], "float32")}
        noises = [
            [sampling.sample_noise(3, head * 3 + i, shape, which) for head in range(3)]
            for shape, which in (((SIDE, SIDE, 1), 1), ((SIZE, SIZE, LEVELS), 0))
        ]
        coarse = naive(coarse_prior, {**x, **below[0]}, np.stack(noises[0]))
        codes = naive(prior, {**x, **below[1], "coarse": coarse}, np.stack(noises[1]))
        np.testing.assert_array_equal(drawn[:, i], codes)
        below = {"below": coarse}, {"below": codes}


def test_a_map_that_is_left_out_is_a_grid_of_unknown_codes(told_of_neighbours, rng):
    _, prior = told_of_neighbours
    coarse = rng.integers(0, COARSE_CODES, (3, SIDE, SIDE, 1)).astype("int32")
    x = prior_inputs(rng, levels=LEVELS) | {"coarse": coarse}
    unknown = np.full_like(x["codes"], -1)
    logits = [keras.ops.convert_to_numpy(prior({**x, **more})) for more in ({}, {"below": unknown})]
    np.testing.assert_array_equal(*logits)


def test_heads_need_priors_that_are_told_of_neighbours(levels):
    with pytest.raises(ValueError, match="not told the codes"):
        next(sampling.SliceSampler(*levels).sample_heads([0], [0.0, 1.0], 0))
