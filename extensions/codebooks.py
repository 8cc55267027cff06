"""A codebook's training: how much of it is used, and how fast its entries learn."""

import keras
from keras import ops


class CodebookUsage(keras.metrics.Metric):
    """Use of one level's codebook over an epoch, from one histogram of all its codes.

    `perplexity` is exp(entropy) of the histogram, between 1 and K; `codes_in_use` is the share of entries that occur.
    """

    def __init__(self, num_embeddings, level=0, **kwargs):
        self.suffix = f"_{level + 1}" if level else ""
        super().__init__(name=f"codebook_usage{self.suffix}", **kwargs)
        self.num_embeddings = num_embeddings
        self.counts = self.add_variable((num_embeddings,), initializer="zeros", name="counts")

    def update_state(self, codes, sample_weight=None):
        chosen = ops.one_hot(ops.reshape(codes, (-1,)), self.num_embeddings, dtype="float32")  # (N, K)
        self.counts.assign_add(ops.sum(chosen, axis=0))

    def result(self):
        shares = self.counts / ops.maximum(ops.sum(self.counts), 1.0)
        entropy = -ops.sum(shares * ops.log(ops.maximum(shares, 1e-12)))
        in_use = ops.mean(ops.cast(self.counts > 0, "float32"))
        return {f"perplexity{self.suffix}": ops.exp(entropy), f"codes_in_use{self.suffix}": in_use}


@keras.saving.register_keras_serializable("brain_vqvae")
class KernelMuon(keras.optimizers.Muon):
    """Muon (Liu et al. 2025, arXiv:2502.16982) for the kernels of convolutions, AdamW for all else.

    A kernel (height, width, inputs, outputs) is taken as a matrix with `outputs` columns; Keras's own Muon takes
    variables of two axes alone. Entries of a codebook learn `PACE` times as fast as all else: however far an entry is
    from its vectors, Adam moves it by the learning rate at most, and the encoder leaves it behind.
    """

    PACE = 10.0

    def _should_use_adamw(self, variable):
        return len(variable.shape) != 4

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, learning_rate * (self.PACE if "entries" in variable.name else 1.0))

    def _muon_update_step(self, gradient, variable, lr, m):
        self.assign_add(m, gradient + m * (self.momentum - 1))
        matrix = ops.reshape(gradient + self.momentum * m, (-1, variable.shape[-1]))
        update = self.lr_adjust(lr * self.zeropower_via_newtonschulz5(matrix, self.ns_steps))
        self.assign_sub(variable, ops.reshape(update, variable.shape))
