"""Decoding image files of any kind that photo folders hold into sRGB arrays, or a one-line error that says why not.

Some parts of a file cannot be kept in a training pair. They are handled as follows:

* Orientation (EXIF or XMP) is applied.
* An embedded ICC profile is converted to sRGB (`profiles`). A profile that is damaged, or of another colour space than
  the samples, is ignored with a warning. CMYK without a profile is converted by Pillow's formula. PNG `gAMA` and `cHRM`
  are ignored.
* Transparent pixels are blended over white, as a viewer would show them.
* Only the first frame or page is read.

8-bit files stay on the 8-bit grid throughout. PNG, TIFF, JPEG 2000 and binary PPM of more bits keep their precision
(`deep`); AVIF of 10 and 12 bits and PPM in text form are read as 8 bits.

Decoding takes 10 to 14 bytes of memory per pixel for 8-bit RGB, 16 for float32, and 28 if the file has 16 bits.
`target.max_pixels` bounds the number of pixels.
"""

from __future__ import annotations

import numpy as np

from gmd_ray.images.files.profiles import strips
from gmd_ray.images.files.samples import read_samples
from gmd_ray.images.luma import BT601


def decode_image(data: bytes, *, gray: bool = False, max_pixels: int | None = None) -> np.ndarray:
    """Decode one image file.

    Args:
        data: content of a file of one of `opening.FORMATS`.
        gray: return luma (BT.601, the gray of the restoration literature) in all three channels.
        max_pixels: refuse larger pictures before their pixels are decoded; None for `opening.MAX_PIXELS`, which always
            applies.

    Returns:
        float32 RGB in [0, 1], shape (H, W, 3), C-contiguous.

    Raises:
        DataError: the file is empty, not an image, damaged, truncated or too large, or the range of its samples is
            unknown. The message is one line and does not name the file.
    """
    rgb = _decoded(data, gray, max_pixels)
    if rgb.dtype == np.uint8:
        rgb = rgb.astype(np.float32)
        rgb /= 255
    return rgb


def decode_8bit(data: bytes, *, gray: bool = False, max_pixels: int | None = None) -> np.ndarray:
    """Decode one image file as `decode_image` does, rounded to 8 bits and in less memory: uint8 RGB, (H, W, 3)."""
    rgb = _decoded(data, gray, max_pixels)
    return rgb if rgb.dtype == np.uint8 else to_8bit(rgb)


def to_8bit(image: np.ndarray) -> np.ndarray:
    """Clip float32 (H, W, C) to [0, 1] and convert it to uint8, rounding half to even."""
    out = np.empty(image.shape, np.uint8)
    for rows in strips(image):
        out[rows] = np.rint(np.clip(image[rows], 0, 1) * 255)
    return out


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blend colours over white.

    Args:
        rgb: uint8 or float32 (H, W, C).
        alpha: opacity (H, W), of the same type.

    Returns:
        (H, W, C) of the same type.
    """
    out = np.empty(rgb.shape, rgb.dtype)
    for rows in strips(rgb):
        x, a = rgb[rows], alpha[rows][..., None].astype(np.float32)
        out[rows] = np.rint((x * a + 255 * (255 - a)) / 255) if rgb.dtype == np.uint8 else x * a + (1 - a)
    return out


def luma(rgb: np.ndarray) -> np.ndarray:
    """Return the BT.601 luma of uint8 or float32 (H, W, 3) in all three channels, of the same type."""
    out = np.empty(rgb.shape, rgb.dtype)
    for rows in strips(rgb):
        y = rgb[rows] @ np.array(BT601, np.float32)
        out[rows] = (np.rint(y) if rgb.dtype == np.uint8 else y)[..., None]
    return out


def _decoded(data: bytes, gray: bool, max_pixels: int | None) -> np.ndarray:
    """Decode to uint8, or to float32 if the file has more than 8 bits; (H, W, 3), C-contiguous."""
    samples = read_samples(data, max_pixels)
    alpha, rgb = samples.alpha, samples.to_srgb()
    del samples
    if alpha is not None:
        rgb = over_white(rgb, alpha)
    if gray:
        rgb = luma(rgb)
    return np.ascontiguousarray(rgb)
