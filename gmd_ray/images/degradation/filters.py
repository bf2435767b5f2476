"""What degradations do to pixels: blur kernels, sharpening, resizing, JPEG. Nothing here is random.

Images are float32 RGB, shape (H, W, 3), if nothing else is said; borders are mirrored without repeating the edge.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

Resampling = Literal["area", "bilinear", "bicubic"]


def gaussian_kernel(
    size: int, sigma_u: float, sigma_v: float, angle: float = 0.0, beta: float = 1.0, plateau: bool = False
) -> np.ndarray:
    """Rotated Gaussian, generalised Gaussian or plateau kernel (Real-ESRGAN, section 3.1; its references there).

    With q the squared distance in units of the sigmas: exp(-q^beta / 2), or 1 / (1 + q^beta) for a plateau.

    Args:
        size: side in pixels, odd.
        sigma_u, sigma_v: standard deviations along the rotated axes, in pixels, above 0.
        angle: of the first axis to the image's rows, in radians.
        beta: shape, above 0; 1 is a Gaussian, more has a flatter top.

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
    """Circular low-pass filter, which leaves ringing: cutoff * J1(cutoff * r) / (2 pi r) (Real-ESRGAN, equation 6).

    Args:
        size: side in pixels, odd; 21 at most, for which the Bessel function is exact to rounding.
        cutoff: angular frequency in (0, pi].

    Returns:
        float32, (size, size), sum 1; with negative values where the kernel is wide enough to ring.
    """
    x, y = _grid(size)
    r = np.hypot(x, y)
    # J1(z) is the mean of cos(t - z sin t) over a period: even in t, and equally spaced points are exact beyond z.
    t = (np.arange(64) + 0.5) * (np.pi / 64)
    bessel = np.cos(t - cutoff * r[..., None] * np.sin(t)).mean(-1)
    kernel = np.full_like(r, cutoff**2 / (4 * np.pi))  # the limit at the centre
    np.divide(cutoff * bessel, 2 * np.pi * r, out=kernel, where=r > 0)
    return (kernel / kernel.sum()).astype(np.float32)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of a kernel's pixels, counted from its centre: float64, (size, size) each."""
    axis = np.arange(size, dtype=np.float64) - size // 2
    x, y = np.meshgrid(axis, axis)
    return x, y


def blur(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlate each channel with a kernel of odd size; the result may leave the input's range."""
    return cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def sharpen(x: np.ndarray, weight: float = 0.5, size: int = 51, threshold: float = 10.0) -> np.ndarray:
    """Unsharp masking where the detail is above a threshold (BasicSR, basicsr/utils/img_process_util.py).

    The Gaussian is applied one axis after the other: 51 + 51 products a pixel, not 51 * 51.

    Args:
        x: in [0, 1].
        weight: share of the detail that is added; 0 changes nothing.
        size: of the Gaussian, odd; its sigma follows from it as in OpenCV (8.0 pixels for 51).
        threshold: in 8-bit levels; the mask of larger details is blurred by the same Gaussian.

    Returns:
        In [0, 1], same shape.
    """
    detail = x - cv2.GaussianBlur(x, (size, size), 0)
    mask = cv2.GaussianBlur((np.abs(detail) > threshold / 255).astype(np.float32), (size, size), 0)
    return x + mask * (np.clip(x + weight * detail, 0, 1) - x)


def resize(x: np.ndarray, height: int, width: int, how: Resampling) -> np.ndarray:
    """Resize as torch's `interpolate` does between two sizes: half-pixel centres, no antialiasing.

    So `bilinear` and `bicubic` alias where they shrink, which is part of what Real-ESRGAN's students learn to undo.
    `area` is adaptive average pooling, in both directions.
    """
    if x.shape[:2] == (height, width):
        return x
    if how == "area":
        return _pool(_pool(x, height, 0), width, 1)
    return cv2.resize(x, (width, height), interpolation=cv2.INTER_LINEAR if how == "bilinear" else cv2.INTER_CUBIC)


def _pool(x: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Means over `size` bins along an axis; a bin takes every pixel that it touches."""
    n = x.shape[axis]
    index = np.arange(size)
    start, stop = index * n // size, -(-(index + 1) * n // size)
    sums = np.cumsum(x, axis, dtype=np.float64)
    sums = np.concatenate([np.zeros_like(sums.take([0], axis)), sums], axis)
    count = (stop - start).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    return ((sums.take(stop, axis) - sums.take(start, axis)) / count).astype(np.float32)


def bicubic(x: np.ndarray, scale: int) -> np.ndarray:
    """Shrink by a whole factor as MATLAB's `imresize` does, which made the bicubic sets of DIV2K and its kin.

    Keys' cubic kernel (1981) with a = -1/2, stretched by the factor so that nothing aliases; half-pixel centres; the
    border mirrored with its edge repeated.

    Args:
        x: (H, W, 3), H and W multiples of `scale`.

    Returns:
        float32, (H / scale, W / scale, 3); may leave the input's range.
    """
    return _shrink(_shrink(x, scale, 0), scale, 1).astype(np.float32)


def _shrink(x: np.ndarray, scale: int, axis: int) -> np.ndarray:
    n = x.shape[axis]
    taps = np.arange(4 * scale + 1) - 2 * scale
    # For a whole factor, every output pixel has the same phase: its centre lies at this offset from its block's start.
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
    """Round to 8 bits: uint8, values beyond [0, 1] clipped."""
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def jpeg(x: np.ndarray, quality: int) -> np.ndarray:
    """Encode and decode (H, W, 3) uint8 RGB at a quality of 0 to 100."""
    _, code = cv2.imencode(".jpg", x[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.ascontiguousarray(decoded[..., ::-1])
