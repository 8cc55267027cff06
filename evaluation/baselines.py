"""Reconstructions that need no VQ-VAE: a metric is worth what separates the VQ-VAE from them.

The mean slice knows nothing of the person; a blur says how kind a figure is to blur; JPEG and PCA are
given as many bits as the codes have.
"""

import bisect
import io

import numpy as np
import PIL.Image
from scipy import ndimage
from sklearn.decomposition import PCA
from tqdm import tqdm

import dataset
from evaluation import metrics

MOST_FITTED = 2000  # training slices that the principal components are fitted to
LEVELS = 256  # of each quantised component: 8 bits


def blur(image, sigma):
    """A Gaussian blur; `sigma` in pixels."""
    return ndimage.gaussian_filter(image, sigma)


def jpeg(image, bits_per_pixel):
    """The best JPEG of at most so many bits per pixel.

    Only the compressed pixels count, as if the decoder had the tables and the header already; where even the lowest
    quality takes more bits, that one.

    Args:
        image: float in [0, 1], shape (height, width).
        bits_per_pixel: Above 0.

    Returns:
        The image after compression, float32, and the bits per pixel it took.
    """
    grey = PIL.Image.fromarray((image * 255).round().astype("uint8"))

    def compress(quality):
        stream = io.BytesIO()
        grey.save(stream, "JPEG", quality=quality, optimize=True)
        data = stream.getvalue()
        start = data.index(b"\xff\xda") + 2  # start of scan: the length of its header follows, then the pixels
        pixels = data[start + int.from_bytes(data[start : start + 2], "big") : -2]
        return data, 8 * len(pixels) / image.size

    fitting = bisect.bisect_right(range(1, 96), bits_per_pixel, key=lambda quality: compress(quality)[1])
    data, bits = compress(max(1, fitting))
    with PIL.Image.open(io.BytesIO(data)) as decoded:
        return np.asarray(decoded, "float32") / 255, bits


class MeanSlice:
    """The mean of the training slices nearest in slice position.

    Args:
        images: uint8, shape (m, S, S).
        rows: Which of them are training slices.
        positions: Their slice positions, shape (len(rows),).
    """

    def __init__(self, images, rows, positions):
        self.bins = np.linspace(0, 1, 33)
        where = self._bin(np.asarray(positions))
        overall = self._mean(images, rows)
        self.means = [
            self._mean(images, rows[where == b]) if (where == b).any() else overall for b in range(len(self.bins))
        ]

    def _bin(self, positions):
        return np.abs(positions[..., None] - self.bins).argmin(axis=-1)

    @staticmethod
    def _mean(images, rows):
        total = np.zeros(images.shape[1:])
        for row in rows:
            total += images[row]
        return (total / len(rows) / 255).astype("float32")

    def __call__(self, slice_position):
        return self.means[int(self._bin(np.asarray(slice_position)))]


class PrincipalComponents:
    """As many principal components of the training slices as the bits allow, at 8 bits each.

    Args:
        images: uint8, shape (m, S, S).
        rows: Which of them are training slices; 2 000 at most are used.
        bits_per_pixel: What the components of a slice may take together.
    """

    def __init__(self, images, rows, bits_per_pixel):
        self.shape = images.shape[1:]
        used = rows[dataset.spread(len(rows), MOST_FITTED)]
        fitted = images[np.sort(used)].reshape(len(used), -1).astype("float32") / 255
        self.mean, self.pca, self.bits_per_pixel = fitted.mean(axis=0).reshape(self.shape), None, 0.0
        if (fitted == fitted[0]).all():  # one slice, or all alike: there is nothing to tell beyond their mean
            return
        number = max(1, min(int(bits_per_pixel * fitted.shape[1] / np.log2(LEVELS)), len(used) - 1))
        self.pca = PCA(number, svd_solver="randomized", iterated_power=2, random_state=0).fit(fitted)
        self.bits_per_pixel = number * np.log2(LEVELS) / fitted.shape[1]
        self.step = 8 * np.sqrt(np.maximum(self.pca.explained_variance_, 1e-12)) / LEVELS  # four deviations each way

    def __call__(self, image):
        if self.pca is None:
            return self.mean
        parts = self.pca.transform(image.reshape(1, -1).astype("float32"))
        kept = np.clip(np.round(parts / self.step), -LEVELS // 2, LEVELS // 2 - 1) * self.step
        return self.pca.inverse_transform(kept)[0].reshape(self.shape).clip(0, 1).astype("float32")


def measure(data, bits_per_pixel, blur_sigma, prior_bits_per_pixel):
    """Metrics of what needs no model, on the slices of the test people.

    Args:
        data: The data set, a `dataset.Data`.
        bits_per_pixel: What JPEG and PCA may take: the codes' bits as they stand.
        blur_sigma: Standard deviation of the blur in pixels.
        prior_bits_per_pixel: What a second JPEG may take: the codes' bits under the prior.

    Returns:
        For each baseline its metrics over people, and `bits_per_pixel` where it is one that compresses.
    """
    train, test = data.of("train"), data.of("test")
    mean_slice = MeanSlice(data.images, train.row.to_numpy(), train.slice_position.to_numpy())
    components = PrincipalComponents(data.images, train.row.to_numpy(), bits_per_pixel)
    per_slice, bits = {}, {"PCA": [components.bits_per_pixel]}
    for start in tqdm(range(0, len(test), 32), "baselines", leave=False, disable=None):
        chosen = test.iloc[start : start + 32]
        images = data.pixels(chosen)
        outputs = {
            "black": np.zeros_like(images),
            "mean slice": [mean_slice(position) for position in chosen.slice_position],
            f"blur, sigma {blur_sigma:g} pixels": [blur(image, blur_sigma) for image in images],
            "PCA": [components(image) for image in images],
        }
        for name, limit in (("JPEG", bits_per_pixel), ("JPEG at the prior's bits", prior_bits_per_pixel)):
            compressed = [jpeg(image, limit) for image in images]
            outputs[name] = [image for image, _ in compressed]
            bits.setdefault(name, []).extend(taken for _, taken in compressed)
        for name, made in outputs.items():
            per_slice.setdefault(name, []).extend(metrics.batch_metrics(images, np.array(made)))
    result = {name: metrics.summarise(values, test.subject_id) for name, values in per_slice.items()}
    for name, taken in bits.items():
        result[name]["bits_per_pixel"] = float(np.mean(taken))
    return result
