"""Layers of the prior that are of neither paper: attention over the rows above, maps of known codes, finer levels.

References
    Chen et al.: PixelSNAIL: An Improved Autoregressive Generative Model, ICML 2018, arXiv:1712.09763.
    Lee et al.: Autoregressive Image Generation using Residual Quantization, CVPR 2022, arXiv:2203.01941.
"""

import math

import numpy as np
from keras import layers, ops


class RowAttention(layers.Layer):
    """Self-attention of the vertical stack over all rows above: what convolutions cannot carry across a whole head.

    Causal attention as in PixelSNAIL (Chen et al. 2018), with two changes that make it cheap. The mask goes by rows
    instead of by codes: the vertical features of row r know only codes of rows above r, so they may look at the
    vertical features of every row up to r, and a sampler computes it once a row instead of once a code. And keys and
    values are averages of neighbouring columns, a few in each row.

    Args:
        width, filters: Columns and channels of the features.
        num_heads: Number of heads.
        head_dim: Length of each head's queries, keys and values.
        keys_per_row: Keys in each row, at most: the row is cut into parts of equal length.

    Call arguments:
        v: Vertical features, shape (batch, height, width, channels).

    Returns:
        v plus what it attended to, same shape.
    """

    def __init__(self, width, filters, num_heads=2, head_dim=32, keys_per_row=8, **kwargs):
        super().__init__(**kwargs)
        self.num_heads, self.head_dim = num_heads, head_dim
        self.row_keys = max(n for n in range(1, keys_per_row + 1) if width % n == 0)
        self.pool = layers.AveragePooling2D((1, width // self.row_keys))
        self.norm = layers.LayerNormalization()
        self.query = layers.Dense(num_heads * head_dim, use_bias=False)
        self.key_value = layers.Dense(2 * num_heads * head_dim, use_bias=False)
        self.out = layers.Dense(filters)
        self.built = True  # its layers are, when they are first called

    def queries_keys_values(self, v):
        """(B, rows, W, C) -> (B, heads, rows * W, head_dim) and twice (B, heads, rows * row_keys, head_dim)."""
        x = self.norm(v)
        key, value = ops.split(self.key_value(self.pool(x)), 2, axis=-1)  # (B, rows, row_keys, heads * head_dim)

        def heads(y):
            y = ops.reshape(y, (-1, y.shape[1] * y.shape[2], self.num_heads, self.head_dim))
            return ops.transpose(y, (0, 2, 1, 3))  # (B, heads, places, head_dim)

        return heads(self.query(x)), heads(key), heads(value)

    def attend(self, v, query, key, value, visible):
        """Adds to v (B, rows, W, C) what its queries find among the visible keys; visible: (queries or 1, keys)."""
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) / math.sqrt(self.head_dim)
        scores = ops.where(visible, scores, ops.cast(-1e4, scores.dtype))  # (B, heads, queries, keys)
        attended = ops.matmul(ops.softmax(scores), value)  # (B, heads, rows * W, head_dim)
        attended = ops.transpose(attended, (0, 2, 1, 3))  # (B, rows * W, heads, head_dim)
        attended = ops.reshape(attended, (-1, *v.shape[1:3], self.num_heads * self.head_dim))
        return v + self.out(attended)  # (B, rows, W, C)

    def call(self, v):
        height, width = v.shape[1:3]
        query_row = np.repeat(np.arange(height), width)  # (H W,)
        key_row = np.repeat(np.arange(height), self.row_keys)  # (H row_keys,)
        return self.attend(v, *self.queries_keys_values(v), visible=key_row <= query_row[:, None])


class CodeMap(layers.Layer):
    """Features for each place of a grid, from another grid of codes that is known as a whole beforehand.

    Conditioning on a spatial map, after van den Oord et al. 2016, section 2.3: nothing here is masked, since the known
    codes come before all that are to be drawn. The two grids need not be of one size.

    Args:
        num_embeddings: Number of the known codes of a level.
        grid_size: Codes along each side of the known grid.
        output_size: Places along each side of the grid that is told of it.
        filters: Channels.
        num_quantizers: Levels of the known codes, D; each has its own table, and their rows are added.

    Call arguments:
        codes: int32, shape (batch, grid_size, grid_size, D); -1 where a code is not known.

    Returns:
        Features, shape (batch, output_size, output_size, filters).
    """

    def __init__(self, num_embeddings, grid_size, output_size, filters, num_quantizers=1, **kwargs):
        super().__init__(**kwargs)
        self.codes_shape = (grid_size, grid_size, num_quantizers)
        self.first_rows = 1 + (num_embeddings + 1) * np.arange(num_quantizers)  # above each, the one of: not known
        self.embedding = layers.Embedding(num_quantizers * (num_embeddings + 1), filters)
        self.convolutions = [layers.Conv2D(filters, 3, padding="same") for _ in range(4)]
        self.out = layers.Conv2D(filters, 3, padding="same")
        self.built = True
        self.nearest = np.arange(output_size) * grid_size // output_size  # row of the known grid under each row

    def call(self, codes):
        x = ops.sum(self.embedding(codes + self.first_rows), axis=-2)  # (B, h, w, D) -> (B, h, w, F)
        for first, second in zip(self.convolutions[::2], self.convolutions[1::2], strict=True):
            x = x + second(ops.relu(first(ops.relu(x))))
        x = ops.take(ops.take(x, self.nearest, axis=1), self.nearest, axis=2)  # (B, H, W, F)
        return self.out(ops.relu(x))


class DepthHead(layers.Layer):
    """The logits of a residual level at each place, given the levels before it there: a network of one hidden layer.

    After the depth transformer of Lee et al. 2022 (section 3.2), which is also told the sum of the entries so far.

    Args:
        num_embeddings: Number of codes of the level, K.
        hidden: Size of the hidden layer.

    Call arguments:
        features: What the prior knows of each place, shape (..., filters).
        known: Sum of the entries of the levels before, shape (..., E).

    Returns:
        Logits, float32, shape (..., K).
    """

    def __init__(self, num_embeddings, hidden, **kwargs):
        super().__init__(**kwargs)
        self.from_features, self.from_known = layers.Dense(hidden), layers.Dense(hidden, use_bias=False)
        self.logits = layers.Dense(num_embeddings, dtype="float32", name="logits")
        self.built = True

    def call(self, features, known):
        return self.logits(ops.relu(self.from_features(features) + self.from_known(known)))
