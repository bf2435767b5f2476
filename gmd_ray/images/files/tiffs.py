"""Samples of TIFF files that Pillow would round to 8 bits or does not open.

Gray and RGB are read, with or without alpha, in any layout that OpenCV or tifffile decodes:

* Unsigned integers of 10, 12, 14 and 16 bits. Black is 0, and white is the largest value of that many bits.
* Floats of 16, 32 and 64 bits. Black is 0 and white is 1, in the colour space of the embedded profile, or in sRGB if
  there is none (with its curve, not linear light). Values that overshoot by up to 0.05, as resampling causes, are
  clipped. A picture that exceeds this has another range, which the file does not declare, and is refused.

Signed integers, and integers of more than 16 bits, are refused because the file does not declare their range.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np

from gmd_ray.errors import DataError
from gmd_ray.images.files.opening import FileHeader
from gmd_ray.text import one_line

TRANSPOSE = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
"""EXIF orientation -> the function that turns an array (H, W) or (H, W, C) upright."""

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # callers report failures themselves

_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_OVERSHOOT = 0.05
_INSTEAD = "save as 8 or 16 bit"


def tiff_bits(header: FileHeader) -> int:
    """Return the bits per sample.

    Raises:
        DataError: the range of the samples is unknown.
    """
    bits, kind = _bits_and_kind(header)
    if kind == _SIGNED:
        raise DataError(f"signed integer samples have no declared range: {_INSTEAD}, unsigned")
    if kind == _UNSIGNED and bits > 16:
        raise DataError(f"{bits}-bit integer samples have no declared range: {_INSTEAD}")
    return bits


def check_tiff(header: FileHeader) -> None:
    """Check from the header alone whether the samples can be read.

    Raises:
        DataError: they cannot.
    """
    image = header.image
    if image is None or (image.mode != "CMYK" and tiff_bits(header) > 8):
        _layout(header)


def tiff_samples(data: bytes, header: FileHeader) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode the samples of a TIFF of more than 8 bits.

    Returns:
        colors, float32 (H, W, 1 or 3) in the file's own colour space, and straight alpha, float32 (H, W) or None; both
        in [0, 1] and upright.

    Raises:
        DataError: the samples are of an unsupported kind or cannot be read.
    """
    layout = _layout(header)
    bits, kind, colors = layout.bits, layout.kind, layout.colors
    extra = header.tags.get(338, ())
    array = _array(data, header, layout)
    if kind == _FLOAT:
        x = _unit(array[..., : colors + 1])
    else:
        x = array.astype(np.float32)
        x /= ((1 << bits) - 1) << (16 - bits)  # OpenCV shifts 10 to 14 bits to the upper end of 16
    # An extra sample is alpha if the file declares it as such (1, 2, or 999 of old programs) or does not declare it.
    alpha = x[..., colors] if layout.samples > colors and (not extra or extra[0] in (1, 2, 999)) else None
    x = x[..., :colors]
    if layout.inverted:  # the largest value is black
        x = 1 - x
    if alpha is not None and extra and extra[0] == 1:  # associated alpha: divide the colours by it
        x = np.where(alpha[..., None] > 0, x / np.maximum(alpha[..., None], 1e-6), 0).clip(0, 1)
    return x, alpha


@dataclass(frozen=True)
class _Layout:
    bits: int
    """Bits per sample."""
    kind: int
    """Sample format: _UNSIGNED or _FLOAT."""
    samples: int
    """Samples per pixel."""
    colors: int
    """Number of samples that are colours: 1 or 3."""
    inverted: bool
    """True if the largest value is black."""


def _layout(header: FileHeader) -> _Layout:
    bits, kind = tiff_bits(header), _bits_and_kind(header)[1]
    n = _number(header.tags.get(277), 1)
    photometric = _number(header.tags.get(262), 1 if n < 3 else 2)
    colors = {0: 1, 1: 1, 2: 3}.get(photometric, 0)
    read = {_UNSIGNED: (10, 12, 14, 16), _FLOAT: (16, 32, 64)}.get(kind, ())
    if not colors or bits not in read or not colors <= n <= 8:
        name = {_UNSIGNED: "integer", _FLOAT: "float"}.get(kind, "other")
        raise DataError(
            f"TIFF of {n} {name} samples of {bits} bits (photometric {photometric}), which is not read: "
            "save it as RGB or gray of 8 or 16 bits"
        )
    return _Layout(bits, kind, n, colors, photometric == 0)


def _bits_and_kind(header: FileHeader) -> tuple[int, int]:
    bits, kinds = header.tags.get(258, (1,)), header.tags.get(339, (_UNSIGNED,))
    if isinstance(bits, int) or isinstance(kinds, int):
        bits, kinds = np.atleast_1d(bits), np.atleast_1d(kinds)
    if len(set(kinds)) > 1 or (header.image is None and len(set(bits)) > 1):
        raise DataError(f"TIFF whose samples differ in kind: {_INSTEAD}")
    return int(max(bits)), int(kinds[0])


def _number(value: object, default: int) -> int:
    return value if isinstance(value, int) else default


def _unit(x: np.ndarray) -> np.ndarray:
    low, high = x.min(), x.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"float samples that are not finite: {_INSTEAD}")
    if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
        raise DataError(f"float samples from {low:g} to {high:g}: only 0 to 1 has a meaning here; {_INSTEAD}")
    return np.clip(x, 0, 1).astype(np.float32)


def _array(data: bytes, header: FileHeader, layout: _Layout) -> np.ndarray:
    """Read the stored samples, (H, W, n), upright."""
    n, bits, kind = layout.samples, layout.bits, layout.kind
    width, height = header.size
    turn = TRANSPOSE.get(_number(header.tags.get(274), 1))
    if header.image is None and _number(header.tags.get(274), 1) > 4:
        width, height = height, width
    separate = header.tags.get(284) == 2  # a planar file, which OpenCV reads wrongly as interleaved
    wanted = np.uint16 if kind == _UNSIGNED else {32: np.float32, 64: np.float64}.get(bits)
    if not separate and n in (1, 3, 4) and wanted is not None:
        array = by_opencv(data)
        if array is not None and array.dtype == wanted and (*array.shape, 1)[:3] == (height, width, n):
            return array.reshape(height, width, n)
    if kind == _UNSIGNED and bits != 16:
        raise DataError(f"TIFF of {bits} bits that OpenCV cannot read: {_INSTEAD}")
    import tifffile  # imported late: rarely needed and slow to import

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            array = file.pages.first.asarray()
        array = np.moveaxis(array, 0, -1) if separate and n > 1 else array.reshape(*array.shape[:2], -1)
        array = array if turn is None else turn(array)
        if array.shape != (height, width, n):
            raise ValueError(f"samples of shape {array.shape}")
    except Exception as error:
        name = "planar TIFF" if separate else "TIFF"
        raise DataError(f"{name} that cannot be read ({one_line(error)}): save it as 16-bit PNG") from error
    return array


def by_opencv(data: bytes) -> np.ndarray | None:
    """Decode a file with OpenCV: gray (H, W) or RGB(A) (H, W, C), TIFF upright; None on failure."""
    try:
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if samples is None or samples.ndim == 2:
        return samples
    return samples[..., [2, 1, 0, 3][: samples.shape[2]]]  # from OpenCV's BGR(A) to RGB(A)
