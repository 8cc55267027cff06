"""Draws grids of codes from a `PixelCNN`, each position computed once; slices by a layout first.

sampler = sampling.SliceSampler(layout_prior, prior)
for codes in sampler.sample(label=[0, 0], slice_position=[0.4, 0.6], seed=0):
    images = vqvae.decode(codes)
"""

import keras
import numpy as np
from keras import ops


def draw_codes(logits, uniform, temperature, top_k=0, top_p=1.0):
    """Draws one code from each row of logits by inverting its cumulative distribution.

    Args:
        logits: Shape (batch, K).
        uniform: One number in [0, 1) for each row, shape (batch,): all the randomness there is.
        temperature: Positive; divides the logits.
        top_k: Keep the k most probable codes; 0 keeps all.
        top_p: Keep the fewest codes whose probability reaches p.

    Returns:
        int32, shape (batch,).
    """
    logits = logits / temperature
    num_codes = logits.shape[-1]
    if 0 < top_k < num_codes:
        logits = ops.where(logits >= ops.top_k(logits, top_k)[0][:, -1:], logits, -1e9)
    probabilities = ops.softmax(logits)
    if top_p < 1.0:
        ranked = -ops.sort(-probabilities, axis=-1)
        kept = ops.cumsum(ranked, axis=-1) - ranked < top_p  # the most probable one always
        smallest = ops.min(ops.where(kept, ranked, 2.0), axis=-1, keepdims=True)
        probabilities = ops.where(probabilities >= smallest, probabilities, 0.0)
    cumulative = ops.cumsum(probabilities, axis=-1)
    codes = ops.sum(ops.cast(cumulative <= uniform[:, None] * cumulative[:, -1:], "int32"), axis=-1)
    return ops.minimum(codes, num_codes - 1)


def sample_noise(seed, index, grid_size, level=0):
    """The noise of one sample: float32 in [0, 1), shape (grid, grid), from the seed and the sample's index alone.

    `level` tells the noises of several grids of a sample apart: 0 is its codes, 1 its layout.
    """
    return np.random.default_rng([seed, index, *[2] * level]).random((grid_size, grid_size), "float32")


class PixelCNNSampler(keras.Model):
    """Draws whole grids of codes from a `PixelCNN`, each position computed once, in one compiled function.

    The textbook loop runs the network over the whole grid for every code. Here the vertical stack runs once a row and
    the horizontal stack once a code; each layer keeps the last inputs under its kernel, the attention its keys and
    values, and the conditioning is computed once. The layers, their weights and their maths are the prior's own.

    Args:
        prior: A `PixelCNN`, built under the float32 policy.
        temperature, top_k, top_p: See `draw_codes`.

    Call arguments:
        inputs: A dictionary: `uniform`, float32 in [0, 1), shape (batch, grid, grid); `known`, int32, same shape, a
            code where it is given and -1 where it is to be drawn; `label`, `slice_position` and maps as for the prior.

    Returns:
        Codes, int32, shape (batch, grid, grid).

    Raises:
        ValueError: For an option out of range, or a prior of another precision.
    """

    def __init__(self, prior, temperature=1.0, top_k=0, top_p=1.0, **kwargs):
        super().__init__(**kwargs)
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, not {temperature}")
        if top_k < 0 or not 0 < top_p <= 1:
            raise ValueError(f"top_k must be 0 or more and top_p in (0, 1], not {top_k} and {top_p}")
        if prior.compute_dtype != "float32":
            raise ValueError(f"samples are drawn in float32, the prior computes in {prior.compute_dtype}")
        self.prior = prior
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.built = True

    def call(self, inputs):
        prior, size = self.prior, self.prior.grid_size
        uniform, known = inputs["uniform"], inputs["known"]
        batch = ops.shape(uniform)[0]
        condition = prior.condition(inputs)
        biases = [block.conditioning(condition) for block in prior.blocks]
        place = prior.place(inputs)  # (B or 1, H, W, filters)

        def zeros(*shape):
            return ops.zeros((batch, *shape), "float32")

        rows, filters = prior.vertical_kernel[0], place.shape[-1]
        # Cached inputs of each layer: the rows above the present one, starting with the blank above the image.
        row_caches = [zeros(rows if i == 0 else rows - 1, size, filters) for i in range(len(prior.blocks))]
        attention_caches = [
            tuple(zeros(a.num_heads, size * a.row_keys, a.head_dim) for _ in ("keys", "values"))
            for a in prior.attentions.values()
        ]

        def draw_row(row, state):
            codes, row_caches, attention_caches = state
            row_caches, attention_caches = list(row_caches), list(attention_caches)
            row_place = ops.take(place, row, axis=1)  # (B or 1, W, filters)
            v, messages, attention_index = None, [], 0
            for i, block in enumerate(prior.blocks):  # the vertical stack: the whole row at once
                window = row_caches[i] if i == 0 else ops.concatenate([row_caches[i], v], axis=1)
                if i > 0:
                    row_caches[i] = window[:, 1:]
                v_bias, h_bias = biases[i]
                v, message = block.vertical(block.vertical_conv.row(window), v, v_bias[:, None, None])
                messages.append(message[:, 0] + h_bias[:, None])  # (B, W, 2 filters)
                if i == 0:
                    v = v + row_place[:, None]
                if str(i) in prior.attentions:
                    attention = prior.attentions[str(i)]
                    query, key, value = attention.queries_keys_values(v)
                    key_row = ops.repeat(ops.arange(size), attention.row_keys)
                    here = ops.equal(key_row, row)[:, None]
                    # Each row's keys and values, repeated down the grid and kept where the row is this one.
                    keys, values = (
                        ops.where(here, ops.tile(new, (1, 1, size, 1)), old)
                        for new, old in zip((key, value), attention_caches[attention_index], strict=True)
                    )
                    attention_caches[attention_index] = (keys, values)
                    attention_index += 1
                    v = attention.attend(v, query, keys, values, (key_row <= row)[None])
            messages = ops.transpose(ops.stack(messages), (2, 0, 1, 3))  # (W, blocks, B, 2 filters)
            above = ops.transpose(v[:, 0], (1, 0, 2))  # (W, B, filters)
            row_uniform = ops.transpose(ops.take(uniform, row, axis=1))  # (W, B)
            row_known = ops.transpose(ops.take(known, row, axis=1))

            def draw_code(column, state):
                row_codes, caches = state
                caches = list(caches)
                message = ops.unstack(ops.take(messages, column, axis=0), len(prior.blocks))  # each (B, 2 filters)
                h = None
                for i, block in enumerate(prior.blocks):  # the horizontal stack: one code
                    taps = [caches[i][j] for j in range(0, caches[i].shape[0], prior.dilations[i])]
                    if i > 0:
                        taps.append(h)
                        caches[i] = ops.concatenate([caches[i][1:], h[None]], axis=0)
                    h = block.horizontal(block.horizontal_conv.position(taps), h, message[i])
                    if i == 0:
                        h = h + ops.take(row_place, column, axis=1)
                logits = prior.head(ops.take(above, column, axis=0), h)
                noise = ops.take(row_uniform, column, axis=0)
                drawn = draw_codes(logits, noise, self.temperature, self.top_k, self.top_p)
                given = ops.take(row_known, column, axis=0)
                code = ops.where(given >= 0, given, drawn)
                row_codes = ops.where(ops.equal(ops.arange(size), column), code[:, None], row_codes)
                caches[0] = ops.concatenate([caches[0][1:], prior.embed(code)[None]], axis=0)
                return row_codes, tuple(caches)

            reach = [(prior.horizontal_kernel - 1) * dilation for dilation in prior.dilations]
            caches = tuple(ops.zeros((n + 1 if i == 0 else n, batch, filters), "float32") for i, n in enumerate(reach))
            row_codes, _ = ops.fori_loop(0, size, draw_code, (ops.zeros((batch, size), "int32"), caches))
            codes = ops.where(ops.equal(ops.arange(size), row)[:, None], row_codes[:, None], codes)
            row_caches[0] = ops.concatenate([row_caches[0][:, 1:], prior.embed(row_codes)[:, None]], axis=1)
            return codes, tuple(row_caches), tuple(attention_caches)

        start = (ops.zeros((batch, size, size), "int32"), tuple(row_caches), tuple(attention_caches))
        return ops.fori_loop(0, size, draw_row, start)[0]

    def sample(self, label, slice_position, seed, known=None, noise_index=None, batch_size=32, level=0, **maps):
        """Draws one grid of codes for each label and slice position.

        Sample i of a seed is always the same: its noise depends on the seed and on i alone, and every batch is filled
        up to one size, so that it is rounded in the same way however many are drawn.

        Args:
            label: Integers, shape (n,); 0 where the label is not known.
            slice_position: Numbers in [0, 1], shape (n,).
            seed: Non-negative integer.
            known: Codes that are given, int, shape (n, grid, grid), -1 where a code is to be drawn; None draws all.
            noise_index: Which noise each sample takes, integers of shape (n,); None takes 0, 1, 2 and so on. Samples
                of equal noise differ by their label and slice position alone.
            batch_size: Samples computed at a time.
            level: See `sample_noise`.
            maps: What the prior is told beforehand, by name, each of shape (n, h, h).

        Yields:
            NumPy int32 codes of at most `batch_size` samples at a time, shape (m, grid, grid).

        Raises:
            ValueError: For a label, position or known code that the prior cannot have, or lengths that differ.
        """
        size, number = self.prior.grid_size, len(label)
        label, slice_position = np.asarray(label), np.asarray(slice_position)
        noise_index = range(number) if noise_index is None else noise_index
        if not len(slice_position) == len(noise_index) == number:
            raise ValueError(f"{number} labels, {len(slice_position)} slice positions, {len(noise_index)} noises")
        if number and not 0 <= label.min() <= label.max() <= self.prior.num_labels:
            raise ValueError(f"labels are 0 to {self.prior.num_labels}, not {label.min()} to {label.max()}")
        if number and not 0 <= slice_position.min() <= slice_position.max() <= 1:
            raise ValueError(f"slice positions are 0 to 1, not {slice_position.min()} to {slice_position.max()}")
        if known is not None and known.shape != (number, size, size):
            raise ValueError(f"known codes have shape {known.shape}, not {(number, size, size)}")
        if known is not None and number and not -1 <= known.min() <= known.max() < self.prior.num_embeddings:
            raise ValueError(f"known codes are -1 to {self.prior.num_embeddings - 1}, not up to {known.max()}")
        for start in range(0, number, batch_size):
            part = slice(start, min(start + batch_size, number))
            size_of_part = part.stop - start
            fill = (0, batch_size - size_of_part)
            noise = [sample_noise(seed, i, size, level) for i in noise_index[part]]
            given = np.full((size_of_part, size, size), -1) if known is None else known[part]
            batch = {
                "uniform": np.pad(np.stack(noise), (fill, (0, 0), (0, 0))),
                "known": np.pad(given, (fill, (0, 0), (0, 0))).astype("int32"),
                "label": np.pad(label[part].astype("int32"), fill),
                "slice_position": np.pad(slice_position[part].astype("float32"), fill),
                **{name: np.pad(codes[part].astype("int32"), (fill, (0, 0), (0, 0))) for name, codes in maps.items()},
            }
            codes = self.predict_on_batch(batch)
            yield ops.convert_to_numpy(codes)[:size_of_part]


class SliceSampler:
    """Draws the layout of a slice from one prior, then the slice's codes, given the layout, from another.

    Args:
        layout_prior: A `PixelCNN` of layouts.
        prior: A `PixelCNN` whose `maps` has `layout`.
        layout_temperature: Of the layouts. Below 1 their anatomy is more common, and the texture keeps its grain.
        temperature, top_k, top_p: Of the slice's codes: see `draw_codes`.

    Raises:
        ValueError: For an option out of range, or a prior of another precision.
    """

    def __init__(self, layout_prior, prior, layout_temperature=1.0, temperature=1.0, top_k=0, top_p=1.0):
        self.layouts = PixelCNNSampler(layout_prior, layout_temperature)
        self.codes = PixelCNNSampler(prior, temperature, top_k, top_p)

    def sample(self, label, slice_position, seed, noise_index=None, batch_size=32):
        """Draws one grid of codes for each label and slice position, as `PixelCNNSampler.sample` does."""
        how = {"seed": seed, "batch_size": batch_size}
        noise_index = np.arange(len(label)) if noise_index is None else np.asarray(noise_index)
        label, slice_position = np.asarray(label), np.asarray(slice_position)
        for start in range(0, len(label), batch_size):
            part = slice(start, start + batch_size)
            conditions = (label[part], slice_position[part])
            (layout,) = self.layouts.sample(*conditions, noise_index=noise_index[part], level=1, **how)
            yield from self.codes.sample(*conditions, noise_index=noise_index[part], layout=layout, **how)
