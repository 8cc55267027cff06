"""The tables of layers on the method page: sizes and parameters of the models."""

import numpy as np
import pytest
from conftest import small_prior

import modules
from docs import figures


def trainable(*models):
    return sum(int(np.prod(weight.shape)) for model in models for weight in model.trainable_weights)


@pytest.mark.parametrize("fine_blocks", [0, 1])
def test_layers_of_a_vqvae_have_all_its_parameters(fine_blocks):
    model = modules.VQVAE(
        32, downsampling=8, base_filters=4, num_embeddings=16, embedding_dim=16, fine_blocks=fine_blocks
    )
    rows = figures.layers_of(model)
    assert sum(number for *_, number in rows) == trainable(model.encoder, model.quantizer, model.decoder)
    shapes = [shape for _, shape, _ in rows]
    assert shapes[0] == shapes[-1] == "32×32×1"
    assert shapes.count("4×4×16") == 6  # of two kinds in the encoder, z_e, the quantiser, and two kinds in the decoder


def test_layers_of_a_prior_have_all_its_parameters(rng):
    model = small_prior(rng, maps={"coarse": {"num_embeddings": 4, "grid_size": 3}})
    rows = figures.layers_of(model)
    assert sum(number for *_, number in rows) == trainable(model)
    names = [name for name, *_ in rows]
    assert "map: coarse" in names
    assert "gated block, mask A" in names
    assert rows[-1][1] == "9×9×11"
