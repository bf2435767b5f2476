"""Image files to arrays: every kind of file that a photo folder holds, as float32 RGB, or one line that says why not.

What is done with the parts of a file that a training pair cannot carry:

* orientation (EXIF, or its XMP twin) is applied;
* an embedded ICC profile is converted to sRGB (`profiles`); one that is damaged, or of another colour space than the
  samples, is ignored with a warning. A CMYK file without one takes Pillow's plain formula. PNG `gAMA` and `cHRM` are
  ignored;
* transparency is laid over white, as a viewer would show it;
* of several frames or pages the first is read.

8-bit files stay on the 8-bit grid throughout. PNG, TIFF, JPEG 2000 and PPM of more bits keep their precision (`deep`);
AVIF of 10 and 12 bits and PPM in text are read as 8.

A picture that is decoded takes 10 to 14 bytes of memory a pixel on the way to 8-bit RGB, 16 to float32, and 28 where
the file has 16 bits; `target.max_pixels` bounds it.
"""

from __future__ import annotations

import numpy as np

from gmd_ray.images.files.profiles import strips
from gmd_ray.images.files.samples import read_samples
from gmd_ray.images.luma import BT601


def decode_image(data: bytes, *, gray: bool = False, max_pixels: int | None = None) -> np.ndarray:
    """Decode one image file.

    Args:
        data: the file, of one of `formats.FORMATS`.
        gray: return luma (BT.601, as the restoration literature reads gray) in all three channels.
        max_pixels: refuse a larger picture before its pixels are decoded; None for `formats.MAX_PIXELS`, which nothing
            lifts.

    Returns:
        float32 RGB in [0, 1], shape (H, W, 3), C-contiguous.

    Raises:
        DataError: with a one-line reason that names no file: empty, not an image, damaged or truncated, too large,
            or samples without a known range.
    """
    rgb = _decoded(data, gray, max_pixels)
    if rgb.dtype == np.uint8:
        rgb = rgb.astype(np.float32)
        rgb /= 255
    return rgb


def decode_8bit(data: bytes, *, gray: bool = False, max_pixels: int | None = None) -> np.ndarray:
    """`decode_image` rounded to 8 bits, in less memory: uint8 RGB, (H, W, 3)."""
    rgb = _decoded(data, gray, max_pixels)
    return rgb if rgb.dtype == np.uint8 else to_8bit(rgb)


def to_8bit(image: np.ndarray) -> np.ndarray:
    """float32 (H, W, C), clipped to [0, 1], as uint8, rounded half to even."""
    out = np.empty(image.shape, np.uint8)
    for rows in strips(image):
        out[rows] = np.rint(np.clip(image[rows], 0, 1) * 255)
    return out


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours under their transparency, laid over white.

    Args:
        rgb: uint8 or float32 (H, W, C).
        alpha: (H, W) of the same type.
    """
    out = np.empty(rgb.shape, rgb.dtype)
    for rows in strips(rgb):
        x, a = rgb[rows], alpha[rows][..., None].astype(np.float32)
        out[rows] = np.rint((x * a + 255 * (255 - a)) / 255) if rgb.dtype == np.uint8 else x * a + (1 - a)
    return out


def luma(rgb: np.ndarray) -> np.ndarray:
    """BT.601 luma in all three channels, of the type of `rgb`."""
    out = np.empty(rgb.shape, rgb.dtype)
    for rows in strips(rgb):
        y = rgb[rows] @ np.array(BT601, np.float32)
        out[rows] = (np.rint(y) if rgb.dtype == np.uint8 else y)[..., None]
    return out


def _decoded(data: bytes, gray: bool, max_pixels: int | None) -> np.ndarray:
    """uint8, or float32 of files of more than 8 bits; (H, W, 3), C-contiguous."""
    samples = read_samples(data, max_pixels)
    alpha, rgb = samples.alpha, samples.to_srgb()
    del samples
    if alpha is not None:
        rgb = over_white(rgb, alpha)
    if gray:
        rgb = luma(rgb)
    return np.ascontiguousarray(rgb)
