"""A trained run as one object: NumPy in, NumPy out.

    model = TrainedModel("pretrained/ds002748")
    images = model.sample(4, slice_position=0.6)        # float32 in [0, 1], shape (4, 224, 224)
    codes = model.encode(images)                        # int32, shape (4, 28, 28)
    again = model.decode(codes)                         # like images
    bits, layout_bits = model.bits(images)              # what the priors take to tell them, code by code
    filled = model.complete(images[0], mask, 8)         # (8, 224, 224): what is under the mask, drawn anew

Nothing but the run folder is needed.
"""

from pathlib import Path

import keras
import numpy as np
from scipy import ndimage
from skimage.restoration import inpaint_biharmonic

import dataset
import runs
import sampling
from evaluation import metrics
from files import UserError

AT_ONCE = 32  # slices drawn
PARTICLES = 32  # of a completion
HEIGHTS = np.linspace(0, 1, 17, dtype="float32")  # slice positions that are tried where none is given
SMOOTHING_ALONG_MM = 0.8  # sigma along a head's axis
FIRST_SLICE = 0.0  # where a head is begun, as a share of its height
UNLIKELY = 0.2  # share of the codes that `restore` draws anew
SMOOTHING_MM = 4.0  # sigma of what a slice differs by from its restorations


class TrainedModel:
    """The models of a run, and what one does with them.

    Images are float32 in [0, 1], shape (n, S, S), as the run saw its own: 0 is background, 1 the brightest tissue, the
    front of the head above, the person's left on the left. `scans.py` makes them of files.

    Args:
        run_dir: Folder that train.py wrote, or one of `pretrained/`.
        decoder: "plain" or "sharp"; None takes the sharp one where the run has one.
        layout_temperature, temperature, top_k, top_p: How codes are drawn: see `sampling.SliceSampler`.

    Attributes:
        image_size, grid_size: S, and codes along each side of a slice.
        labels: Names of the labels that the priors know.
        unfinished: A line for each stage whose training stopped before its end; empty if all is well.
        config: config.json.

    Raises:
        UserError: If there is no run, or one of its files is damaged or another run's.
    """

    def __init__(self, run_dir, decoder=None, layout_temperature=1.0, temperature=1.0, top_k=0, top_p=1.0):
        self.run_dir = run_dir = Path(run_dir)
        self.config = runs.read_config(run_dir)
        self.decoder = decoder or runs.best_decoder(run_dir)
        self.models = runs.load_models(run_dir, self.decoder)
        self.vqvae = self.models.vqvae
        self.sampler = sampling.SliceSampler(
            self.models.layout_prior, self.models.prior, layout_temperature, temperature, top_k, top_p
        )
        self.image_size, self.grid_size = self.vqvae.image_size, self.vqvae.grid_size
        self.labels = self.config["data"]["labels"]
        self.unfinished = runs.unfinished(run_dir, self.config, self.decoder)

    # ------------------------------------------------------------------------------------------------------------
    # Codes
    # ------------------------------------------------------------------------------------------------------------

    def encode(self, images):
        """Codes of images: int32, shape (n, grid, grid)."""
        return self.vqvae.encode(self._checked(images))

    def encode_layout(self, images):
        """Layouts of images, the codes of what they are when shrunk: int32, shape (n, 8, 8) by default."""
        layout = self.models.layout
        return layout.encode(dataset.shrink(self._checked(images)[..., 0], layout.image_size)[..., None])

    def decode(self, codes):
        """Images of codes (n, grid, grid)."""
        return self.vqvae.decode(np.asarray(codes))[..., 0]

    def bits(self, images, label=None, slice_position=None):
        """What the priors take to tell images: many bits where something is not as it was in training.

        Args:
            images: The slices.
            label: One of `labels`; None takes the one that tells each slice's layout in the fewest bits.
            slice_position: Numbers from 0, the lowest slice of a volume, to 1, shape (n,), or one for all; None takes
                those that tell the layouts in the fewest bits.

        Returns:
            Bits of each code, given the layout and the codes before, float32, shape (n, grid, grid); and of each code
            of the layout, shape (n, 8, 8) by default.
        """
        codes, layouts, told = self._described(images, label, slice_position)
        return self._bits(codes, layouts, told)

    def _described(self, images, label, slice_position):
        """Codes and layouts of images, and what the priors are told of them beside: label and slice position."""
        layouts = self.encode_layout(images)
        kinds, heights = self._conditions(layouts, label, slice_position)
        return self.encode(images), layouts, {"label": kinds, "slice_position": heights}

    def _bits(self, codes, layouts, told):
        of_layout = metrics.code_lengths(self.models.layout_prior, {**told, "codes": layouts})
        return metrics.code_lengths(self.models.prior, {**told, "codes": codes, "layout": layouts}), of_layout

    def _conditions(self, layouts, label, slice_position, known=None):
        """Labels (n,) and slice positions (n,) as the priors count them; what is None is found by the layouts' bits.

        Where `known` is given, bool (n, h, w), only the bits of those codes count. That a label tells a slice in fewer
        bits is no diagnosis.
        """
        number = len(layouts)
        kinds = range(1, len(self.labels) + 1) if self.labels and label is None else [self._number(label)]
        heights = HEIGHTS if slice_position is None else [None]
        tried = [(kind, height) for kind in kinds for height in heights]
        given = np.broadcast_to(np.asarray(0 if slice_position is None else slice_position, "float32"), (number,))
        if len(tried) == 1:
            return np.full(number, tried[0][0], "int32"), given.copy()
        told = {
            "codes": np.repeat(layouts, len(tried), axis=0),
            "label": np.tile(np.array([kind for kind, _ in tried], "int32"), number),
            "slice_position": np.concatenate(
                [[one if height is None else height for _, height in tried] for one in given]
            ).astype("float32"),
        }
        bits = metrics.code_lengths(self.models.layout_prior, told)
        if known is not None:
            bits = bits * np.repeat(known, len(tried), axis=0)
        best = bits.sum(axis=(1, 2)).reshape(number, -1).argmin(axis=1) + len(tried) * np.arange(number)
        return told["label"][best], told["slice_position"][best]

    def _number(self, label):
        """A label as the priors count it, 0 if it is None or empty."""
        if label and label not in self.labels:
            raise UserError(f"label {label}: {self.run_dir} knows {', '.join(self.labels) or 'no labels'}")
        return self.labels.index(label) + 1 if label else 0

    def _checked(self, images):
        """Images as the models take them, (n, S, S, 1); raises UserError where they are none."""
        images, size = np.asarray(images), self.image_size
        if images.shape[1:] != (size, size) or images.dtype.kind != "f":
            raise UserError(f"images are floats of shape (n, {size}, {size}), not {images.dtype} of {images.shape}")
        if len(images) and not 0 <= images.min() <= images.max() <= 1:
            raise UserError(f"images are in [0, 1], not {images.min():g} to {images.max():g}")
        return images.astype("float32")[..., None]

    # ------------------------------------------------------------------------------------------------------------
    # New slices
    # ------------------------------------------------------------------------------------------------------------

    def conditions(self, number, seed=0, label=None, slice_position=None):
        """Label and slice position of each sample: as given, or those of a training slice drawn at random.

        Sample i of a seed has the same ones however many are drawn.

        Returns:
            Labels as the priors count them, int32, and slice positions, float32, each of shape (number,).
        """
        slices = runs.read_splits(self.run_dir)
        training = slices[slices.split == "train"]
        chosen = training.iloc[[np.random.default_rng([seed, i, 1]).integers(len(training)) for i in range(number)]]
        names = chosen.label if label is None else [label] * number
        positions = chosen.slice_position if slice_position is None else [slice_position] * number
        return np.array([self._number(name) for name in names], "int32"), np.array(positions, "float32")

    def draw(self, labels, slice_positions, seed=0, noise_index=None):
        """Yields new images, a batch at a time; the arguments are those of `SliceSampler.sample`."""
        for codes in self.sampler.sample(labels, slice_positions, seed, noise_index, AT_ONCE):
            yield self.decode(codes)

    def sample(self, number, seed=0, label=None, slice_position=None):
        """New images: float32 in [0, 1], shape (number, S, S); label and slice position as for `conditions`."""
        return np.concatenate(list(self.draw(*self.conditions(number, seed, label, slice_position), seed)))

    # ------------------------------------------------------------------------------------------------------------
    # Whole heads
    # ------------------------------------------------------------------------------------------------------------

    @property
    def draws_heads(self):
        """Whether the priors are told the codes of a slice beside: train.py --neighbours."""
        return set(runs.BESIDE) <= self.models.prior.maps.keys() & self.models.layout_prior.maps.keys()

    @property
    def voxel_mm(self):
        """Pixels and distance of a scan's slices in mm, (across, along, between); 1 where it is not known."""
        about = self.config["data"].get("about", {})
        pixel = about.get("pixel_mm") or 1.0
        between = self.config["options"]["data"]["slice_spacing_mm"] if about.get("plane") else 1.0
        return pixel, pixel, between

    def head_positions(self):
        """Slice positions of a whole head, as the run's own scans have them, from 0 to 1."""
        slices = runs.read_splits(self.run_dir)
        number = slices.groupby(dataset.scan_of(slices)).size().median()
        return np.linspace(0, 1, int(number), dtype="float32")

    def sample_heads(self, number, seed=0, label=None, first=FIRST_SLICE, batch_size=16):
        """Yields new heads, some at a time: uint8, shape (m, s, S, S), the lowest slice first.

        Args:
            number: How many.
            seed: A number from which they follow; head i of a seed is the same however many are drawn.
            label: One of `labels`; None takes labels as often as in training.
            first: Where the first slice lies, as a share of the height; the others follow upwards, then downwards.
            batch_size: Heads drawn at a time.

        Raises:
            UserError: If the run was not trained with --neighbours.
        """
        if not self.draws_heads:
            raise UserError(f"{self.run_dir}: its slices belong to nobody; heads need a run of train.py --neighbours")
        labels, _ = self.conditions(number, seed, label)
        positions = self.head_positions()
        start = round(first * (len(positions) - 1))
        for codes in self.sampler.sample_heads(labels, positions, seed, start, batch_size):
            yield np.stack([(self.decode_head(head) * 255).round().astype("uint8") for head in codes])

    def decode_head(self, codes, smoothing_mm=SMOOTHING_ALONG_MM):
        """Slices of a head's codes (s, grid, grid): float32 in [0, 1], shape (s, S, S).

        A decoder knows one slice at a time and makes each a little otherwise. So the codebook's entries, z_q, are
        smoothed along the axis before they are decoded; with that, decoded real heads are nearer to the real ones.
        """
        z_q = keras.ops.convert_to_numpy(self.vqvae.quantizer.codebook)[np.asarray(codes)]
        z_q = ndimage.gaussian_filter(z_q, (smoothing_mm / self.voxel_mm[2], 0, 0, 0))
        return self.vqvae.decode_vectors(z_q)[..., 0]

    # ------------------------------------------------------------------------------------------------------------
    # Given slices, changed
    # ------------------------------------------------------------------------------------------------------------

    def complete(self, image, mask, number, seed=0, label=None, slice_position=None, particles=PARTICLES):
        """Draws anew what lies under a mask, knowing all the rest: the codes before it and those after it.

        The image is filled smoothly under the mask before it is encoded, so that nothing of what lies there gets into
        the codes that are known. Each draw is the outcome of a particle filter of its own: see
        `sampling.SliceSampler.complete`.

        Args:
            image: One slice, shape (S, S).
            mask: bool, shape (S, S): what is drawn anew.
            number: How many draws.
            seed: A number from which they follow.
            label, slice_position: As for `bits`.
            particles: Of each draw; 1 merely forces the codes that are known.

        Returns:
            float32 in [0, 1], shape (number, S, S): the draws, outside the mask the image itself.

        Raises:
            UserError: For a mask of another shape, or one that covers nothing, or all.
        """
        mask = np.asarray(mask, bool)
        if mask.shape != np.shape(image):
            raise UserError(f"the mask is {' x '.join(map(str, mask.shape))} pixels, the image {np.shape(image)}")
        if mask.all() or not mask.any():
            raise UserError(f"the mask covers {'all' if mask.any() else 'nothing'} of the image: nothing to complete")
        filled = np.clip(inpaint_biharmonic(np.asarray(image, float), mask), 0, 1).astype("float32")[None]
        layout = self.encode_layout(filled)
        hidden, hidden_layout = (touched(mask, grid) for grid in (self.grid_size, layout.shape[1]))
        kind, height = self._conditions(layout, label, slice_position, ~hidden_layout[None])
        known = np.where(hidden, -1, self.encode(filled)[0])
        known_layout = np.where(hidden_layout, -1, layout[0])
        drawn = self.sampler.complete(known, known_layout, kind[0], height[0], number, seed, particles)
        return np.where(mask, self.decode(drawn), np.asarray(image, "float32"))

    def restore(self, images, number=8, seed=0, label=None, slice_position=None):
        """Draws the unlikeliest parts anew, several times: what the slices might be if all in them were common.

        Which parts, the bits of the codes say, averaged over neighbours: a single unlikely code is nothing.

        Args:
            images: The slices.
            number: Restorations of each.
            seed: A number from which they follow.
            label, slice_position: As for `bits`.

        Returns:
            float32 in [0, 1], shape (n, number, S, S), of the plain decoder; and the bits around each pixel, (n, S, S).
        """
        codes, layouts, told = self._described(images, label, slice_position)
        bits, layout_bits = self._bits(codes, layouts, told)
        known, known_layout = without_unlikeliest(codes, bits), without_unlikeliest(layouts, layout_bits)
        every = np.repeat(np.arange(len(codes)), number)
        drawn = self.sampler.sample(
            told["label"][every],
            told["slice_position"][every],
            seed,
            batch_size=AT_ONCE,
            known=known[every],
            known_layout=known_layout[every],
        )
        plain = next(iter(self.models.decoders.values()))
        restored = np.concatenate([plain.decode(some)[..., 0] for some in drawn])
        side = self.vqvae.downsampling
        around = ndimage.gaussian_filter(bits.repeat(side, axis=1).repeat(side, axis=2), (0, side, side))
        return restored.reshape(len(codes), number, *restored.shape[1:]), around

    def anomaly_map(self, images, number=8, seed=0, label=None, slice_position=None):
        """Where slices are not as the run's data are: shape (n, S, S), 0 or more.

        What a slice differs by from the mean of its restorations, smoothed, times the bits of the codes there: after
        Marimont & Tarroni (ISBI 2021) and Pinaya et al. (Medical Image Analysis 79, 2022). The arguments are those of
        `restore`. It shows what this model finds uncommon, which is also another scanner, a movement, a rare fold; it
        finds no disease.
        """
        images = np.asarray(images)
        restored, around = self.restore(images, number, seed, label, slice_position)
        sigma = SMOOTHING_MM / self.voxel_mm[0]
        return ndimage.gaussian_filter(np.abs(restored.mean(axis=1) - images), (0, sigma, sigma)) * around


def touched(mask, grid_size):
    """Which codes stand for a pixel under a mask: bool (S, S) -> (grid_size, grid_size)."""
    return dataset.shrink(mask[None], grid_size)[0] > 0


def without_unlikeliest(codes, bits):
    """Grids of codes (n, h, w) with -1 for the share `UNLIKELY` of each that, with their neighbours, take most bits."""
    around = ndimage.gaussian_filter(bits, (0, 1, 1)).reshape(len(bits), -1)
    order = np.argsort(-around, axis=1, kind="stable")[:, : round(UNLIKELY * around.shape[1])]
    changed = codes.reshape(len(codes), -1).copy()
    np.put_along_axis(changed, order, -1, axis=1)
    return changed.reshape(codes.shape)
