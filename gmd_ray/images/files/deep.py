"""Samples of more than 8 bits in formats that Pillow would round to 8: PNG, JPEG 2000, PPM, and TIFF (`tiffs`).

The number of bits comes from the header, never from the largest value. White, the largest value of that many bits,
becomes exactly 1.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gmd_ray.errors import DataError
from gmd_ray.images.files.opening import FileHeader
from gmd_ray.images.files.tiffs import by_opencv, tiff_bits, tiff_samples

_SYCC = 18
_PPM = re.compile(rb"P6(?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+(\d+)\s")


def sample_bits(data: bytes, header: FileHeader) -> int:
    """Return the bits per sample; 8 also for formats whose deeper samples are read as 8.

    Raises:
        DataError: the samples cannot be read correctly at any depth.
    """
    image = header.image
    if header.format == "TIFF" and (image is None or image.mode != "CMYK"):
        bits = tiff_bits(header)
        return max(bits, 9) if image is None else bits  # more than 8, so that Pillow, which cannot open it, is not used
    if header.format == "PNG":
        return data[24]
    if header.format == "JPEG2000":
        return jpeg2000(data).bits
    if header.format == "PPM":
        ppm = _PPM.match(data)
        return 16 if (ppm and int(ppm[1]) > 255) or (image is not None and image.mode in ("I", "I;16")) else 8
    return 8


def deep_samples(data: bytes, header: FileHeader) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode samples of more than 8 bits.

    Args:
        data: content of the file.
        header: header of `data`, with its image loaded.

    Returns:
        colors, float32 (H, W, 1 or 3) in the file's own colour space, and straight alpha, float32 (H, W) or None; both
        in [0, 1]. TIFF is upright; other formats are oriented as stored.
    """
    if header.format == "TIFF":
        return tiff_samples(data, header)
    assert header.image is not None
    if header.format == "PNG":
        return _png(data, header.image)
    if header.format == "PPM":
        return _ppm(data, header.image), None
    return _jpeg2000(data, header.image)


def _png(data: bytes, image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    samples = by_opencv(data)
    if samples is None or samples.dtype != np.uint16:
        raise DataError("PNG of more than 8 bits that OpenCV cannot read")
    if samples.ndim == 2:
        key = image.info.get("transparency")  # OpenCV applies the transparent colour to RGB files only
        return _unit(samples[..., None]), None if key is None else (samples != key).astype(np.float32)
    alpha = _unit(samples[..., 3]) if samples.shape[2] == 4 else None
    # PNG color type 4 is gray with alpha, whose gray OpenCV repeats three times.
    return _unit(samples[..., : 1 if data[25] == 4 else 3]), alpha


def _ppm(data: bytes, image: Image.Image) -> np.ndarray:
    match = _PPM.match(data)
    if match is None:  # not binary RGB, so gray, which Pillow scales to 16 bits
        return _unit(np.asarray(image)[..., None])
    count = image.width * image.height * 3
    samples = np.frombuffer(data, ">u2", count, match.end()).reshape(image.height, image.width, 3)
    return np.minimum(_unit(samples, int(match[1])), 1)


def _unit(samples: np.ndarray, top: int = 65535) -> np.ndarray:
    return np.divide(samples, np.float32(top), dtype=np.float32)


@dataclass(frozen=True)
class Jpeg2000:
    """The headers of a JPEG 2000 file."""

    components: list[tuple[int, bool]]
    """Each component's (bits, signed)."""
    start: int
    """Offset of the byte that holds the first component's bits."""
    colors: int | None = None
    """The enumerated colour space; None if there is none."""
    icc: bytes | None = None
    """The embedded ICC profile; None if there is none."""

    @property
    def bits(self) -> int:
        """The bits of the deepest component."""
        return max(bits for bits, _ in self.components)


def jpeg2000(data: bytes) -> Jpeg2000:
    """Read the headers of a JP2 file or of a bare codestream.

    Raises:
        DataError: the headers are damaged.
    """
    colors, icc, at = None, None, 0
    try:
        if not data.startswith(b"\xff\x4f"):
            boxes = dict(reversed(_boxes(data, 0, len(data))))  # the first of each kind
            at, _ = boxes[b"jp2c"]
            for kind, (begin, end) in _boxes(data, *boxes[b"jp2h"]):
                if kind == b"colr" and colors is None and icc is None:
                    if data[begin] == 1:
                        (colors,) = struct.unpack_from(">I", data, begin + 3)
                    elif data[begin] == 2:
                        icc = data[begin + 3 : end]
        marker, _, count = struct.unpack_from(">4sH34xH", data, at)
        if marker != b"\xff\x4f\xff\x51" or not 1 <= count <= 64:
            raise ValueError("no codestream")
        start = at + 42
        depths = [data[start + 3 * i] for i in range(count)]
    except (KeyError, IndexError, ValueError, struct.error) as error:
        raise DataError("damaged JPEG 2000: its headers cannot be read") from error
    return Jpeg2000([((depth & 0x7F) + 1, depth > 0x7F) for depth in depths], start, colors, icc)


def _boxes(data: bytes, at: int, end: int) -> list[tuple[bytes, tuple[int, int]]]:
    """List (kind, (begin, end) of the content) of each box between two offsets."""
    boxes: list[tuple[bytes, tuple[int, int]]] = []
    while at + 8 <= end and len(boxes) < 1000:
        size, kind = struct.unpack_from(">I4s", data, at)
        begin = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, begin)
            begin += 8
        stop = end if size == 0 else at + size
        if stop < begin:
            raise ValueError("a box that ends before it begins")
        boxes.append((kind, (begin, min(stop, end))))
        at = stop
    return boxes


def _jpeg2000(data: bytes, image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode RGB with OpenCV, since Pillow 13 rounds it to 8 bits and turns the brightest values black."""
    header = jpeg2000(data)
    n, instead = len(header.components), "save it as 16-bit PNG"
    if header.bits > 16:
        raise DataError(f"JPEG 2000 of {header.bits} bits: {instead}")
    if n == 1:
        bits = header.bits
        return _unit(np.asarray(image)[..., None], ((1 << bits) - 1) << (16 - bits)), None
    if n == 2 or image.mode not in ("RGB", "RGBA") or header.colors == _SYCC:
        kind = "gray and alpha" if n == 2 else "luma and chroma" if header.colors == _SYCC else image.mode
        raise DataError(f"JPEG 2000 of {kind} in more than 8 bits, which is not read: {instead}")
    stream = bytearray(data)
    # A signed stream equals the unsigned one minus half of the range. OpenCV reads only unsigned ones: clear the bit.
    for i in range(n):
        stream[header.start + 3 * i] &= 0x7F
    samples = by_opencv(bytes(stream))
    if samples is None or samples.shape != (image.height, image.width, n) or samples.dtype != np.uint16:
        raise DataError(f"JPEG 2000 of more than 8 bits that OpenCV cannot read: {instead}")
    x = np.stack([_unit(samples[..., i], (1 << bits) - 1) for i, (bits, _) in enumerate(header.components)], axis=2)
    return x[..., :3], x[..., 3] if n == 4 else None
