"""Samples of more than 8 bits, of the formats that Pillow would round to 8: PNG, JPEG 2000, PPM, and TIFF (`tiffs`).

How many bits there are follows from the header, never from the largest value. White is the largest value of so many
bits, and comes out as 1 exactly.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gmd_ray.errors import DataError
from gmd_ray.images.files.opening import Header
from gmd_ray.images.files.tiffs import by_opencv, tiff_bits, tiff_samples

_SYCC = 18
_PPM = re.compile(rb"P6(?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+(\d+)\s")


def sample_bits(data: bytes, header: Header) -> int:
    """Bits per sample; 8 for every format that has no more, or whose deeper samples are read as 8.

    Raises:
        DataError: for samples that cannot be read right at any depth.
    """
    image = header.image
    if header.format == "TIFF" and (image is None or image.mode != "CMYK"):
        bits = tiff_bits(header)
        return max(bits, 9) if image is None else bits  # what Pillow does not know is never for it to read
    if header.format == "PNG":
        return data[24]
    if header.format == "JPEG2000":
        return jpeg2000(data).bits
    if header.format == "PPM":
        found = _PPM.match(data)
        return 16 if (found and int(found[1]) > 255) or (image is not None and image.mode in ("I", "I;16")) else 8
    return 8


def deep_samples(data: bytes, header: Header) -> tuple[np.ndarray, np.ndarray | None]:
    """float32 (H, W, 1 or 3) in the file's own colours and straight alpha (H, W) or None, in [0, 1].

    Args:
        header: of `data`, whose image is loaded. TIFF comes upright; other formats as they are stored.
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
        key = image.info.get("transparency")  # OpenCV knows it in colour alone
        return _unit(samples[..., None]), None if key is None else (samples != key).astype(np.float32)
    alpha = _unit(samples[..., 3]) if samples.shape[2] == 4 else None
    return _unit(samples[..., : 1 if data[25] == 4 else 3]), alpha  # gray with alpha comes with its gray three times


def _ppm(data: bytes, image: Image.Image) -> np.ndarray:
    found = _PPM.match(data)
    if found is None:  # gray, which Pillow scales to 16 bits
        return _unit(np.asarray(image)[..., None])
    count = image.width * image.height * 3
    samples = np.frombuffer(data, ">u2", count, found.end()).reshape(image.height, image.width, 3)
    return np.minimum(_unit(samples, int(found[1])), 1)


def _unit(samples: np.ndarray, top: int = 65535) -> np.ndarray:
    return np.divide(samples, np.float32(top), dtype=np.float32)


@dataclass(frozen=True)
class Jpeg2000:
    """What the headers of a JPEG 2000 file tell."""

    components: list[tuple[int, bool]]
    """Bits of each, and whether it is signed."""
    start: int
    """Where the first component's bits stand in the file."""
    colors: int | None = None
    """The enumerated colour space."""
    icc: bytes | None = None

    @property
    def bits(self) -> int:
        return max(bits for bits, _ in self.components)


def jpeg2000(data: bytes) -> Jpeg2000:
    """Read a JP2 file's boxes, or a bare codestream.

    Raises:
        DataError: where they are damaged.
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
    """Kind of each box, and where its content begins and ends."""
    found: list[tuple[bytes, tuple[int, int]]] = []
    while at + 8 <= end and len(found) < 1000:
        size, kind = struct.unpack_from(">I4s", data, at)
        begin = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, begin)
            begin += 8
        stop = end if size == 0 else at + size
        if stop < begin:
            raise ValueError("a box that ends before it begins")
        found.append((kind, (begin, min(stop, end))))
        at = stop
    return found


def _jpeg2000(data: bytes, image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Pillow's rounding to 8 bits makes the brightest values black (of Pillow 13); gray it keeps at 16."""
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
    for i in range(n):  # signed or not is the same stream, less half of the range, but OpenCV reads no signed ones
        stream[header.start + 3 * i] &= 0x7F
    samples = by_opencv(bytes(stream))
    if samples is None or samples.shape != (image.height, image.width, n) or samples.dtype != np.uint16:
        raise DataError(f"JPEG 2000 of more than 8 bits that OpenCV cannot read: {instead}")
    x = np.stack([_unit(samples[..., i], (1 << bits) - 1) for i, (bits, _) in enumerate(header.components)], axis=2)
    return x[..., :3], x[..., 3] if n == 4 else None
