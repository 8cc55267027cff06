"""What the figures and the tables of layers in docs/ claim: sizes of the models, gradients, what a logit depends on."""

import numpy as np
import pytest
from conftest import SIZE, prior_inputs, randomise, small_prior, told

import modules
from docs import figures

PLACE = (SIZE // 2, SIZE // 2)
BEFORE = PLACE[0] * SIZE + PLACE[1]


def trainable(*models):
    return sum(int(np.prod(weight.shape)) for model in models for weight in model.trainable_weights)


@pytest.mark.parametrize("fine_blocks", [0, 1])
def test_layers_of_a_vqvae_have_all_its_parameters(fine_blocks):
    model = modules.VQVAE(32, downsampling=8, base_filters=4, num_embeddings=16, fine_blocks=fine_blocks)
    rows = figures.layers_of(model)
    assert sum(number for *_, number in rows) == trainable(model.encoder, model.quantizer, model.decoder)
    shapes = [shape for _, shape, _ in rows]
    assert shapes[0] == shapes[-1] == "32×32×1"
    assert shapes.count("4×4×16") == 6  # of two kinds in the encoder, z_e, the quantiser, and two kinds in the decoder


def test_layers_of_the_shipped_run():
    models = figures.shipped_models()
    named = {"vqvae": models.decoders["plain"], "sharp": models.decoders["sharp"], "prior": models.prior}
    for name, model in named.items():
        rows = figures.layers(name)
        assert sum(number for *_, number in rows) == trainable(model)
        assert len(rows) <= 16


def test_layers_of_a_prior_have_all_its_parameters(rng):
    model = small_prior(rng, maps={"coarse": {"num_embeddings": 4, "grid_size": 3}})
    rows = figures.layers_of(model)
    assert sum(number for *_, number in rows) == trainable(model)
    names = [name for name, *_ in rows]
    assert "map: coarse" in names
    assert "gated block, mask A" in names
    assert rows[-1][1] == "9×9×11"


def test_both_gradients_are_equal_and_not_zero(rng):
    model = modules.VQVAE(32, downsampling=8, base_filters=4, num_embeddings=16)
    randomise(model.encoder, rng)
    randomise(model.decoder, rng)
    model.quantizer.set_codebook(rng.normal(0, 1, (16, 16)).astype("float32"))
    of_z_q, of_z_e = figures.gradients(model, rng.random((32, 32), "float32"))
    assert of_z_q.shape == (4, 4, 16)
    assert np.abs(of_z_q).max() > 1e-4
    np.testing.assert_allclose(of_z_e, of_z_q, rtol=0, atol=1e-6)


def test_a_logit_depends_on_all_codes_before_it_and_on_nothing_else(rng):
    prior = small_prior(rng)
    field = figures.receptive_field(prior, prior_inputs(rng, 1) | told(prior, 1), PLACE).ravel()
    assert (field[:BEFORE] > 0).all()
    assert (field[BEFORE:] == 0).all()


def test_the_first_block_sees_its_kernels_alone(rng):
    prior = small_prior(rng)
    field = figures.receptive_field(prior, prior_inputs(rng, 1), PLACE, 1, attention=False)
    rows, columns = prior.vertical_kernel
    assert np.count_nonzero(field) == rows * columns + prior.horizontal_kernel


def test_one_stack_has_a_blind_spot():
    field = figures.one_stack_field(SIZE, PLACE, 8, filters=4)
    assert (field.ravel()[BEFORE:] == 0).all()
    assert field[PLACE[0] - 1, PLACE[1] + 1] > 0
    assert field[PLACE[0] - 1, -1] == 0


def test_a_place_sees_itself_under_mask_b_alone():
    for stack, kernel in (("vertical", (2, 3)), ("horizontal", (1, 3))):
        for mask_type in "AB":
            found = figures.seen(kernel, stack, mask_type, 1, 5, 9, (2, 4))
            assert found.sum() == np.prod(kernel)
            assert found[2, 4] == (mask_type == "B")
