"""Draws grids of codes from a `PixelCNN`, each position computed once; slices by coarse codes first.

    sampler = sampling.SliceSampler(coarse_prior, prior)
    for codes in sampler.sample(label=[0, 0], slice_position=[0.4, 0.6], seed=0):
        images = vqvae.decode(codes)

`SliceSampler.complete` draws the rest of a slice of which some codes are known, those after the rest included.
"""

import keras
import numpy as np
from keras import ops

from system.console import with_progress


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
    # First in which sixteen codes the drawn one is, then which of them: a sum over all, code by code, takes long.
    parts = ops.reshape(ops.pad(probabilities, ((0, 0), (0, -num_codes % 16))), (-1, -(-num_codes // 16), 16))
    reached = ops.cumsum(ops.sum(parts, axis=-1), axis=-1)
    target = uniform[:, None] * reached[:, -1:]
    part = ops.sum(ops.cast(reached <= target, "int32"), axis=-1, keepdims=True)  # (batch, 1)
    before = ops.sum(ops.where(ops.arange(reached.shape[1]) == part - 1, reached, 0.0), axis=-1, keepdims=True)
    within = ops.cumsum(ops.take_along_axis(parts, part[..., None], axis=1)[:, 0], axis=-1)  # (batch, 16)
    target = ops.minimum(target - before, within[:, -1:] * (1 - 1e-6))  # where sums in two orders differ in rounding
    code = 16 * part[:, 0] + ops.sum(ops.cast(within <= target, "int32"), axis=-1)
    return ops.minimum(code, num_codes - 1)


def resample(log_weights, uniform):
    """Which particles go on, and their log weights, by systematic resampling; all do while their weights are alike.

    Systematic resampling takes each particle about as often as its share of the weight says (Douc, Cappé & Moulines
    2005). It is done where the effective number of particles, 1 / sum of squared shares, is below half.

    Args:
        log_weights: Shape (particles,).
        uniform: A number in [0, 1).

    Returns:
        Indices, int32, and log weights, each of shape (particles,).
    """
    number = ops.shape(log_weights)[0]
    count = ops.cast(number, "float32")
    shares = ops.exp(log_weights - ops.logsumexp(log_weights))
    points = (ops.cast(ops.arange(number), "float32") + uniform) / count
    taken = ops.sum(ops.cast(ops.cumsum(shares)[None] <= points[:, None], "int32"), axis=1)
    too_few = 1 / ops.sum(ops.square(shares)) < count / 2
    index = ops.where(too_few, ops.minimum(taken, number - 1), ops.arange(number))
    return index, ops.where(too_few, ops.zeros_like(log_weights), log_weights)


def sample_noise(seed, index, shape, which=0):
    """The noise of one sample's grid: float32 in [0, 1), shape (grid, grid, D), from the seed and the index alone.

    `which` tells the noises of a sample's grids apart: 0 is its codes, 1 its coarse codes.
    """
    return np.random.default_rng([seed, index, *[2] * which]).random(shape, "float32")


class PixelCNNSampler(keras.Model):
    """Draws whole grids of codes from a `PixelCNN`, each position computed once, in one compiled function.

    The textbook loop runs the network over the whole grid for every code. Here the vertical stack runs once a row and
    the horizontal stack once a code; each layer keeps the last inputs under its kernel, the attention its keys and
    values, and the conditioning is computed once. The layers, their weights and their maths are the prior's own.

    Codes that are given are kept; codes drawn before them do not depend on them. With `particles` they do: the grids of
    a batch are particles of one draw, weighted by the probability of each given code and resampled after each row
    (sequential importance resampling; Gordon, Salmond & Smith 1993), so that those go on in which the given codes are
    likely.

    Args:
        prior: A `PixelCNN`, built under the float32 policy.
        temperature, top_k, top_p: See `draw_codes`.
        particles: Whether the grids of a batch are particles of one draw.
        jit_compile: Whether TensorFlow compiles by XLA: some seconds more at the first draw, half the time at each.

    Call arguments:
        inputs: A dictionary: `uniform`, float32 in [0, 1), shape (batch, grid, grid, D); `known`, int32, same shape, a
            code where it is given and -1 where it is to be drawn; `label`, `slice_position` and maps as for the prior;
            with `particles`, `resampling`, float32 in [0, 1), shape (grid,).

    Returns:
        Codes, int32, shape (batch, grid, grid, D); with `particles`, also the logarithms of their weights, (batch,).

    Raises:
        ValueError: For an option out of range, or a prior of another precision.
    """

    def __init__(self, prior, temperature=1.0, top_k=0, top_p=1.0, particles=False, jit_compile=False, **kwargs):
        super().__init__(dtype="float32", autocast=False, **kwargs)
        if jit_compile:
            self.jit_compile = True
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
        self.particles = particles
        self.built = True

    def call(self, inputs):
        prior, size = self.prior, self.prior.grid_size
        batch = ops.shape(inputs["uniform"])[0]
        condition = prior.condition(inputs)
        biases = [block.conditioning(condition) for block in prior.blocks]
        places = prior.place_features(inputs)  # (B or 1, H, W, filters)

        def zeros(*shape):
            return ops.zeros((batch, *shape), "float32")

        rows = prior.vertical_kernel[0]
        state = {
            "codes": ops.zeros((batch, size, size, prior.num_quantizers), "int32"),
            # Cached inputs of each block: the rows above the present one, starting with the blank above the image.
            "above": tuple(zeros(rows - (i > 0), size, prior.filters) for i in range(len(prior.blocks))),
            "attended": tuple(  # keys and values of each attention
                (zeros(a.num_heads, size * a.row_keys, a.head_dim), zeros(a.num_heads, size * a.row_keys, a.head_dim))
                for a in prior.attentions
                if a
            ),
        }
        if self.particles:  # each has its own map of coarse codes, and a weight
            state |= {"places": ops.broadcast_to(places, (batch, *places.shape[1:])), "weights": zeros()}

        def draw_row(row, state):
            around = ops.take(state.get("places", places), row, axis=1)  # (B or 1, W, filters)
            v, messages, state = self._vertical(row, state, biases, around)
            drawn = self._horizontal(row, v, messages, around, inputs, state.get("weights"))
            newest = ops.concatenate([state["above"][0][:, 1:], prior.embed(drawn["codes"])[:, None]], axis=1)
            here = ops.equal(ops.arange(size), row)[:, None, None]
            state |= {"codes": ops.where(here, drawn["codes"][:, None], state["codes"])}
            state |= {"above": (newest, *state["above"][1:])}
            if self.particles:
                going_on, weights = resample(drawn["weights"], ops.take(inputs["resampling"], row))
                state = keras.tree.map_structure(lambda x: ops.take(x, going_on, axis=0), state)
                state |= {"weights": weights}
            return state

        end = ops.fori_loop(0, size, draw_row, state)
        return (end["codes"], end["weights"]) if self.particles else end["codes"]

    def _vertical(self, row, state, biases, around):
        """The vertical stack, a whole row at once.

        Returns:
            Its features, (B, W, filters); messages to the horizontal stack with its biases, (blocks, B, W, 2 filters);
            the state with this row in the caches.
        """
        prior, above, attended = self.prior, list(state["above"]), list(state["attended"])
        v, messages, place = None, [], 0
        for i, (block, attention) in enumerate(zip(prior.blocks, prior.attentions, strict=True)):
            window = above[i] if i == 0 else ops.concatenate([above[i], v], axis=1)
            if i > 0:
                above[i] = window[:, 1:]
            v_bias, h_bias = biases[i]
            v, message = block.vertical(block.vertical_conv.row(window), v, v_bias[:, None, None])
            messages.append(message[:, 0] + h_bias[:, None])
            if i == 0:
                v = v + around[:, None]
            if attention:
                query, *new = attention.queries_keys_values(v)
                key_row = ops.repeat(ops.arange(prior.grid_size), attention.row_keys)
                here = ops.equal(key_row, row)[:, None]
                # Each row's keys and values, repeated down the grid and kept where the row is this one.
                attended[place] = tuple(
                    ops.where(here, ops.tile(one, (1, 1, prior.grid_size, 1)), old)
                    for one, old in zip(new, attended[place], strict=True)
                )
                v = attention.attend(v, query, *attended[place], (key_row <= row)[None])
                place += 1
        return v[:, 0], ops.stack(messages), state | {"above": tuple(above), "attended": tuple(attended)}

    def _horizontal(self, row, v, messages, around, inputs, weights):
        """The horizontal stack, place by place: the row's `codes`, (B, W, D), and with particles `weights`, (B,)."""
        prior, size, batch = self.prior, self.prior.grid_size, ops.shape(v)[0]
        by_column = ops.transpose(messages, (2, 0, 1, 3))  # (W, blocks, B, 2 filters)
        noise, known = (ops.take(inputs[name], row, axis=1) for name in ("uniform", "known"))  # (B, W, D)
        reach = [(prior.horizontal_kernel - 1) * dilation for dilation in prior.dilations]

        def draw_place(column, state):
            left = list(state["left"])
            message = ops.unstack(ops.take(by_column, column, axis=0), len(prior.blocks))  # each (B, 2 filters)
            h = None
            for i, block in enumerate(prior.blocks):
                taps = [*left[i][:: prior.dilations[i]], *[h] * (i > 0)]
                if i > 0:
                    left[i] = (*left[i][1:], h)
                h = block.horizontal(block.horizontal_conv.position(taps), h, message[i])
                if i == 0:
                    h = h + ops.take(around, column, axis=1)
            features, logits = prior.to_logits(ops.take(v, column, axis=1), h)
            numbers, given = (ops.take(x, column, axis=1) for x in (noise, known))  # (B, D)
            drawn, gain = self._draw_levels(features, logits, numbers, given)
            left[0] = (*left[0][1:], prior.embed(drawn))
            codes = ops.where(ops.equal(ops.arange(size), column)[:, None], drawn[:, None], state["codes"])
            after = {"codes": codes, "left": tuple(left)}
            if self.particles:
                after["weights"] = state["weights"] + gain
            return after

        blank = ops.zeros((batch, prior.filters), "float32")
        state = {
            "codes": ops.zeros((batch, size, prior.num_quantizers), "int32"),
            # What is under each block's kernel, code by code: shifted without a copy.
            "left": tuple((blank,) * (n + (i == 0)) for i, n in enumerate(reach)),
        }
        if self.particles:
            state["weights"] = weights
        return ops.fori_loop(0, size, draw_place, state)

    def _draw_levels(self, features, logits, uniform, given):
        """The codes of one place, level by level.

        Args:
            features, logits: What `PixelCNN.to_logits` returns.
            uniform, given: The noise, and a code or -1, each of shape (B, D).

        Returns:
            Codes, int32, (B, D); and the log probability of those of them that are given, (B,).
        """
        codes, gain, known = [], 0.0, 0.0
        for level, codebook in enumerate(ops.split(self.prior.codebook, self.prior.num_quantizers, axis=0)):
            if level:
                logits = self.prior.depth_heads[level - 1](features, known)
            drawn = draw_codes(logits, uniform[:, level], self.temperature, self.top_k, self.top_p)
            code = ops.where(given[:, level] >= 0, given[:, level], drawn)
            if self.particles:
                chances = ops.take_along_axis(ops.log_softmax(logits / self.temperature), code[:, None], axis=1)
                gain = gain + ops.where(given[:, level] >= 0, chances[:, 0], 0.0)
            known = known + ops.take(codebook, code, axis=0)
            codes.append(code)
        return ops.stack(codes, axis=-1), gain

    def draw(self, label, slice_position, seed, noise_index=None, known=None, batch_size=32, which=0, **maps):
        """Draws one grid of codes for each label and slice position, in one batch.

        Sample i of a seed is always the same: its noise depends on the seed and on i alone, and every batch is filled
        up to one size, so that it is rounded in the same way however many are drawn.

        Args:
            label: Integers, shape (n,); 0 where the label is not known.
            slice_position: Numbers in [0, 1], shape (n,).
            seed: Non-negative integer.
            noise_index: Which noise each sample takes, integers of shape (n,); None takes 0, 1, 2 and so on. Samples
                of equal noise differ by their label and slice position alone.
            known: Codes that are given, int, shape (n, grid, grid, D), -1 where one is to be drawn; None draws all.
            batch_size: What the batch is filled up to, n or more.
            which: See `sample_noise`.
            maps: What the prior is told beforehand, by name, each of shape (n, h, h, D).

        Returns:
            NumPy int32, shape (n, grid, grid, D).

        Raises:
            ValueError: For a label, position or known code that the prior cannot have, or lengths that do not fit.
        """
        number, prior = len(label), self.prior
        grid = (prior.grid_size, prior.grid_size, prior.num_quantizers)
        label, slice_position = np.asarray(label), np.asarray(slice_position)
        noise_index = range(number) if noise_index is None else noise_index
        if not 1 <= len(slice_position) == len(noise_index) == number <= batch_size:
            lengths = f"{number} labels, {len(slice_position)} slice positions, {len(noise_index)} noises"
            raise ValueError(f"{lengths}: as many of each, 1 to {batch_size}")
        if not 0 <= label.min() <= label.max() <= prior.num_labels:
            raise ValueError(f"labels are 0 to {prior.num_labels}, not {label.min()} to {label.max()}")
        if not 0 <= slice_position.min() <= slice_position.max() <= 1:
            raise ValueError(f"slice positions are 0 to 1, not {slice_position.min()} to {slice_position.max()}")
        known = np.full((number, *grid), -1) if known is None else known
        if known.shape != (number, *grid):
            raise ValueError(f"known codes have shape {known.shape}, not {(number, *grid)}")
        if not -1 <= known.min() <= known.max() < prior.num_embeddings:
            raise ValueError(f"known codes are -1 to {prior.num_embeddings - 1}, not up to {known.max()}")
        batch = {
            "uniform": np.stack([sample_noise(seed, i, grid, which) for i in noise_index]),
            "known": known.astype("int32"),
            "label": label.astype("int32"),
            "slice_position": slice_position.astype("float32"),
            **{name: codes.astype("int32") for name, codes in maps.items()},
        }
        fill = (0, batch_size - number)
        filled = {name: np.pad(x, (fill, *[(0, 0)] * (x.ndim - 1))) for name, x in batch.items()}
        return ops.convert_to_numpy(self.predict_on_batch(filled))[:number]


class SliceSampler:
    """Draws the coarse codes of a slice from one prior, then the slice's codes, given those, from another.

    Args:
        coarse_prior: A `PixelCNN` of coarse codes; None where there are none.
        prior: A `PixelCNN` whose `maps` has `coarse`, then.
        coarse_temperature: Of the coarse codes. Below 1 anatomy is more common, and the texture keeps its grain.
        temperature, top_k, top_p: Of the slice's codes: see `draw_codes`.
        jit_compile: See `PixelCNNSampler`.

    Raises:
        ValueError: For an option out of range, or a prior of another precision.
    """

    def __init__(
        self, coarse_prior, prior, coarse_temperature=1.0, temperature=1.0, top_k=0, top_p=1.0, jit_compile=False
    ):
        self.coarse = self.coarse_filter = None
        if coarse_prior:
            self.coarse = PixelCNNSampler(coarse_prior, coarse_temperature, jit_compile=jit_compile)
            self.coarse_filter = PixelCNNSampler(coarse_prior, coarse_temperature, particles=True)
        self.codes = PixelCNNSampler(prior, temperature, top_k, top_p, jit_compile=jit_compile)
        self.code_filter = PixelCNNSampler(prior, temperature, top_k, top_p, particles=True)

    def draw(self, label, slice_position, seed, noise_index, batch_size, given=None, below=None):
        """Codes and coarse codes of one batch, as `PixelCNNSampler.draw` has them; None where there are none.

        `given` are known codes of the slices and of their coarse codes, `below` those of the slices below them.
        """
        told = (label, slice_position, seed, noise_index)
        known, known_coarse = given or (None, None)
        maps, coarse_maps = ({"below": codes} for codes in below) if below else ({}, {})
        if not self.coarse:
            return self.codes.draw(*told, known, batch_size, **maps), None
        coarse = self.coarse.draw(*told, known_coarse, batch_size, which=1, **coarse_maps)
        return self.codes.draw(*told, known, batch_size, coarse=coarse, **maps), coarse

    def sample(
        self,
        label,
        slice_position,
        seed,
        noise_index=None,
        batch_size=32,
        known=None,
        known_coarse=None,
        description=None,
    ):
        """Draws one grid of codes for each label and slice position, a batch at a time.

        Args:
            label, slice_position, seed, noise_index: As for `PixelCNNSampler.draw`, of any length.
            batch_size: Samples computed at a time.
            known, known_coarse: Codes that are given, of the slices and of their coarse codes.
            description: What is drawn, for a line of progress; None shows none.

        Yields:
            NumPy int32 codes of at most `batch_size` samples at a time, shape (m, grid, grid, D).
        """
        noise_index = np.arange(len(label)) if noise_index is None else np.asarray(noise_index)
        label, slice_position = np.asarray(label), np.asarray(slice_position)

        def batches():
            for start in range(0, len(label), batch_size):
                part = slice(start, start + batch_size)
                given = [None if codes is None else codes[part] for codes in (known, known_coarse)]
                yield self.draw(label[part], slice_position[part], seed, noise_index[part], batch_size, given)[0]

        return with_progress(batches(), len(label), description, "slice")

    def sample_heads(self, label, slice_positions, seed, batch_size=16, noise_index=None, description=None):
        """Draws all slices of some heads from the lowest upwards, each given the one below; for priors told that.

        Args:
            label: Integers, shape (n,): of the heads.
            slice_positions: Of the slices of every head, rising, shape (s,).
            seed: Non-negative integer.
            batch_size: Heads drawn at a time.
            noise_index: Which noise each head takes; None takes 0, 1, 2 and so on.
            description: As for `sample`.

        Yields:
            NumPy int32 codes of at most `batch_size` heads at a time, shape (m, s, grid, grid, D).

        Raises:
            ValueError: If the priors are not told the codes of the slice below.
        """
        if "below" not in self.codes.prior.maps:
            raise ValueError("the priors are not told the codes of the slice below")
        number, label = len(slice_positions), np.asarray(label)
        noise_index = np.arange(len(label)) if noise_index is None else np.asarray(noise_index)

        def unknown(sampler, heads):
            return sampler and np.full((heads, *sampler.prior.maps["below"].codes_shape), -1)

        def batches():
            for start in range(0, len(label), batch_size):
                part = slice(start, start + batch_size)
                drawn = [[unknown(sampler, len(label[part])) for sampler in (self.codes, self.coarse)]]
                for i, height in enumerate(slice_positions):
                    position = np.full(len(label[part]), height, "float32")
                    noises = noise_index[part] * number + i
                    drawn.append(self.draw(label[part], position, seed, noises, batch_size, below=drawn[-1]))
                yield np.stack([codes for codes, _ in drawn[1:]], axis=1)

        return with_progress(batches(), len(label), description, "head")

    def complete(self, known, known_coarse, label, slice_position, number, seed, particles=32):
        """Draws the rest of a slice of which some codes are known, wherever they are.

        Each draw has a particle filter of its own (`PixelCNNSampler`). It runs over the coarse codes, then, each
        with its own, over the slice's codes; one particle is drawn from the last by its weight. The more particles, the
        nearer the draw is to one from p(unknown codes | known codes).

        Args:
            known, known_coarse: Codes of the slice (grid, grid, D) and its coarse codes (h, h, 1), -1 where not known.
            label, slice_position: Those of the slice, one number each.
            number: How many draws.
            seed: Non-negative integer; draw i of a seed is the same however many are drawn.
            particles: Grids of each filter; with 1 the known codes are merely forced.

        Returns:
            NumPy int32, shape (number, grid, grid, D).
        """
        told = {
            "label": np.full(particles, label, "int32"),
            "slice_position": np.full(particles, slice_position, "float32"),
        }

        def run(sampler, rng, known, **maps):
            """Codes of a filter's particles, (particles, grid, grid, D), and their shares of the weight."""
            batch = {
                **told,
                **maps,
                "known": np.tile(known.astype("int32"), (particles, 1, 1, 1)),
                "uniform": rng.random((particles, *known.shape), "float32"),
                "resampling": rng.random(len(known), "float32"),
            }
            codes, weights = (ops.convert_to_numpy(x) for x in sampler.predict_on_batch(batch))
            shares = np.exp(weights.astype(float) - weights.max())
            return codes, shares / shares.sum()

        drawn = []
        for index in range(number):
            rng = np.random.default_rng([seed, index, 3])
            maps = {}
            if self.coarse:
                coarse, shares = run(self.coarse_filter, rng, known_coarse)
                maps["coarse"] = coarse[rng.choice(particles, particles, p=shares)]
            codes, shares = run(self.code_filter, rng, known, **maps)
            drawn.append(codes[rng.choice(particles, p=shares)])
        return np.stack(drawn)
