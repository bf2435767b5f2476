"""The deterministic operations of degradations: blur kernels, sharpening, resizing, JPEG.

Unless stated otherwise, images are float32 RGB of shape (H, W, 3), and borders are mirrored without repeating the edge.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

Resampling = Literal["area", "bilinear", "bicubic"]


def gaussian_kernel(
    size: int, sigma_u: float, sigma_v: float, angle: float = 0.0, beta: float = 1.0, plateau: bool = False
) -> np.ndarray:
    """Make a rotated Gaussian, generalised Gaussian or plateau kernel (Real-ESRGAN, section 3.1).

    With q the squared distance in units of the sigmas: exp(-q^beta / 2), or 1 / (1 + q^beta) for a plateau.

    Args:
        size: side in pixels, odd.
        sigma_u, sigma_v: standard deviations along the rotated axes, in pixels, above 0.
        angle: angle between the first axis and the image's rows, in radians.
        beta: shape, above 0; 1 is a Gaussian, larger values have a flatter top.
        plateau: make a plateau kernel instead of a generalised Gaussian.

    Returns:
        float32, (size, size), sum 1.
    """
    x, y = _grid(size)
    q = ((np.cos(angle) * x + np.sin(angle) * y) / sigma_u) ** 2 + (
        (np.cos(angle) * y - np.sin(angle) * x) / sigma_v
    ) ** 2
    kernel = 1 / (1 + q**beta) if plateau else np.exp(-0.5 * q**beta)
    return (kernel / kernel.sum()).astype(np.float32)


def sinc_kernel(size: int, cutoff: float) -> np.ndarray:
    """Make a circular low-pass filter, which causes ringing: cutoff * J1(cutoff * r) / (2 pi r).

    See Real-ESRGAN, equation 6.

    Args:
        size: side in pixels, odd, at most 21 (the Bessel function is exact to rounding up to there).
        cutoff: angular frequency in (0, pi].

    Returns:
        float32, (size, size), sum 1. Kernels that are wide enough to ring have negative values.
    """
    x, y = _grid(size)
    r = np.hypot(x, y)
    # J1(z) is the mean of cos(t - z sin t) over a period. The integrand is even in t, so half a period suffices, and
    # the mean over n equally spaced points is exact to rounding if n is well above z.
    t = (np.arange(64) + 0.5) * (np.pi / 64)
    bessel = np.cos(t - cutoff * r[..., None] * np.sin(t)).mean(-1)
    kernel = np.full_like(r, cutoff**2 / (4 * np.pi))  # the limit at the centre
    np.divide(cutoff * bessel, 2 * np.pi * r, out=kernel, where=r > 0)
    return (kernel / kernel.sum()).astype(np.float32)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the column and row of each pixel relative to the centre of a kernel: float64, (size, size) each."""
    axis = np.arange(size, dtype=np.float64) - size // 2
    x, y = np.meshgrid(axis, axis)
    return x, y


def blur(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlate each channel with a kernel of odd size. The result may exceed the input's range."""
    return cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def sharpen(x: np.ndarray, weight: float = 0.5, size: int = 51, threshold: float = 10.0) -> np.ndarray:
    """Apply unsharp masking where the detail exceeds a threshold (BasicSR, basicsr/utils/img_process_util.py).

    The Gaussian is separable, which takes 51 + 51 products per pixel instead of 51 * 51.

    Args:
        x: image in [0, 1].
        weight: share of the detail that is added; 0 changes nothing.
        size: side of the Gaussian, odd; OpenCV derives its sigma (8.0 pixels for 51).
        threshold: least detail in 8-bit levels; the mask of larger details is blurred by the same Gaussian.

    Returns:
        an image in [0, 1] of the same shape.
    """
    detail = x - cv2.GaussianBlur(x, (size, size), 0)
    mask = cv2.GaussianBlur((np.abs(detail) > threshold / 255).astype(np.float32), (size, size), 0)
    return x + mask * (np.clip(x + weight * detail, 0, 1) - x)


def resize(x: np.ndarray, height: int, width: int, how: Resampling) -> np.ndarray:
    """Resize as torch's `interpolate` does: half-pixel centres, no antialiasing.

    `bilinear` and `bicubic` therefore alias when they shrink an image, which Real-ESRGAN's students learn to undo.
    `area` is adaptive average pooling, for shrinking and for enlarging.
    """
    if x.shape[:2] == (height, width):
        return x
    if how == "area":
        return _pool(_pool(x, height, 0), width, 1)
    return cv2.resize(x, (width, height), interpolation=cv2.INTER_LINEAR if how == "bilinear" else cv2.INTER_CUBIC)


def _pool(x: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Average over `size` bins along an axis. A bin includes every pixel that it touches."""
    n = x.shape[axis]
    index = np.arange(size)
    start, stop = index * n // size, -(-(index + 1) * n // size)
    sums = np.cumsum(x, axis, dtype=np.float64)
    sums = np.concatenate([np.zeros_like(sums.take([0], axis)), sums], axis)
    count = (stop - start).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    return ((sums.take(stop, axis) - sums.take(start, axis)) / count).astype(np.float32)


def bicubic(x: np.ndarray, scale: int) -> np.ndarray:
    """Shrink by an integer factor as MATLAB's `imresize` does, which made DIV2K's bicubic sets and similar ones.

    Keys' cubic kernel (1981) with a = -1/2 is stretched by the factor to prevent aliasing. Centres are at half pixels,
    and the border is mirrored with its edge repeated.

    Args:
        x: (H, W, 3), H and W multiples of `scale`.

    Returns:
        float32, (H / scale, W / scale, 3); may exceed the input's range.
    """
    return _shrink(_shrink(x, scale, 0), scale, 1).astype(np.float32)


def _shrink(x: np.ndarray, scale: int, axis: int) -> np.ndarray:
    n = x.shape[axis]
    taps = np.arange(4 * scale + 1) - 2 * scale
    # For an integer factor, every output pixel has the same phase: its centre has this offset from its block's start.
    offset = (scale - 1) / 2
    at = np.floor(offset) + taps
    r = np.abs(at - offset) / scale
    kernel = np.where(r <= 1, 1.5 * r**3 - 2.5 * r**2 + 1, np.where(r < 2, -0.5 * r**3 + 2.5 * r**2 - 4 * r + 2, 0))
    index = (np.arange(n // scale)[:, None] * scale + at[None]).astype(int) % (2 * n)
    index = np.where(index < n, index, 2 * n - 1 - index)
    out = np.zeros((*x.shape[:axis], n // scale, *x.shape[axis + 1 :]))
    for weight, rows in zip(kernel / kernel.sum(), index.T, strict=True):
        out += weight * x.take(rows, axis)
    return out


def to_levels(x: np.ndarray) -> np.ndarray:
    """Clip to [0, 1] and round to uint8."""
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def jpeg(x: np.ndarray, quality: int) -> np.ndarray:
    """Encode and decode (H, W, 3) uint8 RGB at a quality of 0 to 100."""
    _, code = cv2.imencode(".jpg", x[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.ascontiguousarray(decoded[..., ::-1])
