"""How much of a codebook is used."""

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
