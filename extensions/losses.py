"""What reconstructions are compared by, differentiable under every backend: L1, L2, SSIM, MS-SSIM, power by frequency.

Images are float in [0, 1], shape (batch, height, width, 1). `evaluation` takes its MS-SSIM and its bands from here.

References
    Wang et al.: Image Quality Assessment: From Error Visibility to Structural Similarity, IEEE TIP 13(4), 2004.
    Wang et al.: Multi-scale Structural Similarity for Image Quality Assessment, Asilomar 2003.
"""

import math

import numpy as np
from keras import ops


def absolute(x):
    """|x| whose gradient at 0 is 0. That of `ops.abs` is 1 under JAX, and pulls at background that is black already."""
    return x * ops.stop_gradient(ops.sign(x))


def reconstruction_loss(images, reconstructions, kind, ssim_weight):
    """Scalar loss between images in [0, 1]: "l1", "l2", or "l1_ssim" = L1 + ssim_weight * (1 - SSIM)."""
    difference = ops.cast(images, "float32") - ops.cast(reconstructions, "float32")
    if kind == "l2":
        return ops.mean(ops.square(difference))
    loss = ops.mean(absolute(difference))
    if kind == "l1_ssim":
        loss = loss + ssim_weight * (1.0 - ops.mean(ssim(images, reconstructions)))
    return loss


# ----------------------------------------------------------------------------------------------------------------
# Structural similarity
# ----------------------------------------------------------------------------------------------------------------


WINDOW = 11  # pixels of SSIM's window along a side


def _gaussian_band(size, sigma=1.5, radius=WINDOW // 2):
    """(size - 2 radius, size) matrix whose product with an image column is its Gaussian filter, valid part only."""
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    band = np.zeros((size - 2 * radius, size), "float32")
    for row in range(len(band)):
        band[row, row : row + len(taps)] = taps
    return band


def _ssim_parts(a, b):
    """Means over the windows of the whole SSIM and of its contrast and structure part alone: twice (batch,)."""
    a, b = (ops.cast(ops.squeeze(x, -1), "float32") for x in (a, b))  # (B, H, W)
    height, width = a.shape[1:]
    left = ops.convert_to_tensor(_gaussian_band(height))
    right = ops.convert_to_tensor(_gaussian_band(width).T)
    moments = ops.stack([a, b, a * a, b * b, a * b])  # (5, B, H, W)
    mean_a, mean_b, aa, bb, ab = ops.unstack(ops.matmul(ops.matmul(left, moments), right), 5)
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * (ab - mean_a * mean_b) + c2) / (aa - mean_a**2 + bb - mean_b**2 + c2)
    return ops.mean(luminance * structure, axis=(1, 2)), ops.mean(structure, axis=(1, 2))


def ssim(a, b):
    """Structural similarity of each pair of images, differentiable.

    Gaussian window of sigma 1.5 and 11 x 11 taps, data range 1, K1 = 0.01, K2 = 0.03 (Wang et al. 2004, eq. 13),
    population covariance, averaged over the windows that lie inside the image. The filter is separable, so it is
    applied as two matrix products, which is faster on every device than a convolution of one channel.

    Args:
        a, b: float images in [0, 1], shape (batch, height, width, 1), each side at least 11 pixels.

    Returns:
        Tensor of shape (batch,), in [-1, 1].
    """
    return _ssim_parts(a, b)[0]


MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2


def ms_ssim(a, b):
    """Multi-scale SSIM of each pair of images, differentiable (Wang et al. 2003, eq. 7).

    Five scales where the smallest of them still holds the window of 11 pixels, which takes 176 pixels; four from 88 on,
    and so on, with the weights of those that are left scaled to a sum of 1.

    Args:
        a, b: float images in [0, 1], shape (batch, size, size, 1), size 11 or more.

    Returns:
        Tensor of shape (batch,), in [0, 1].
    """
    scales = min(len(MS_SSIM_WEIGHTS), 1 + int(math.log2(a.shape[1] / 11)))
    weights = np.array(MS_SSIM_WEIGHTS[:scales])
    result = 1.0
    for scale, weight in enumerate((weights / weights.sum()).tolist()):
        whole, structure = _ssim_parts(a, b)
        last = scale == scales - 1
        result = result * ops.power(ops.relu(whole if last else structure), weight)
        if not last:
            a, b = (ops.average_pool(x, 2, strides=2, data_format="channels_last") for x in (a, b))
    return result


# ----------------------------------------------------------------------------------------------------------------
# Power by spatial frequency
# ----------------------------------------------------------------------------------------------------------------

BANDS = 8


def rings(size):
    """Which of eight rings of the frequency plane each frequency is in: integers, shape (size, size).

    The rings are equally wide, from the mean to Nyquist; the mean itself and the corners beyond Nyquist are 8.
    """
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij"))
    ring = np.minimum((radius / 0.5 * BANDS).astype(int), BANDS)
    ring[0, 0] = BANDS
    return ring


def band_power(images):
    """Sum over images (B, S, S, 1) of the power in each of `rings`, float32, (8,)."""
    ring = rings(images.shape[1]).ravel()
    real = ops.cast(ops.squeeze(images, -1), "float32")
    real, imaginary = ops.fft2((real, ops.zeros_like(real)))
    power = ops.sum(ops.square(real) + ops.square(imaginary), axis=0)
    member = np.eye(BANDS, BANDS + 1, dtype="float32")[:, ring]
    return ops.matmul(ops.convert_to_tensor(member), ops.ravel(power))
