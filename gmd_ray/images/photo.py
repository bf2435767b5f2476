"""A photo with everything that its file carries, for whoever wants the file back: restored, and else as it was.

`decode_image` gives a model what it learns from: upright sRGB over white. Here nothing is converted that need not be:
samples stay in the colours of the file's own ICC profile, which goes along; transparency stays apart; 16 bits stay 16;
gray stays gray. Only the orientation is applied, as a network should see a photo upright. CMYK alone becomes sRGB.
"""

from __future__ import annotations

import io
import logging
import struct
import zlib
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from gmd_ray.errors import DataError
from gmd_ray.images.decode import (
    BROKEN,
    TRANSPOSE,
    deep_samples,
    luma,
    one_line,
    open_image,
    orientation_of,
    over_white,
    sample_bits,
    to_srgb,
)

logger = logging.getLogger(__name__)

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".bmp": "BMP",
}
"""Endings that can be written."""
_DEEP = ("PNG", "TIFF")
_TRANSPARENT = ("PNG", "TIFF", "WEBP")
_WITH_EXIF = ("PNG", "JPEG", "WEBP")
_ORIENTATION = 0x0112
_OPTIONS: dict[str, dict[str, object]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95, "exact": True},
    "TIFF": {"compression": "tiff_adobe_deflate"},
}


@dataclass(frozen=True)
class Photo:
    """A picture and what its file says of it."""

    rgb: np.ndarray
    """float32 (H, W, 3) in [0, 1], upright, in the colours of `icc`; gray is in all three channels."""
    alpha: np.ndarray | None
    """float32 (H, W) in [0, 1]."""
    bits: int = 8
    """Per sample: 8 or 16."""
    gray: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    """With the orientation set to upright. That of TIFF files is not carried."""


def read_photo(data: bytes, max_pixels: int) -> Photo:
    """Decode one file.

    Args:
        data: in any format that Pillow reads.
        max_pixels: refuse a larger picture before its pixels are decoded.

    Raises:
        DataError: with a one-line reason that names no file, as `decode_image`.
    """
    image = open_image(data, max_pixels)
    bits = sample_bits(image, data)
    try:
        image.load()
    except BROKEN as error:
        raise DataError(f"damaged or truncated {image.format}: {one_line(error)}") from error
    icc, turn = image.info.get("icc_profile"), TRANSPOSE.get(orientation_of(image))
    exif = _exif(image)
    try:
        if bits > 8:
            colors, alpha = deep_samples(image, data)
        else:
            colors, alpha, bits = _shallow_samples(image)
    except BROKEN as error:
        raise DataError(f"cannot convert {image.format} mode {image.mode}: {one_line(error)}") from error
    if image.mode == "CMYK" or (icc is not None and icc[16:20] not in (b"RGB ", b"GRAY")):
        icc = None
    gray = colors.shape[2] == 1
    rgb = np.repeat(colors, 3, axis=2) if gray else colors
    if turn is not None:
        rgb = turn(rgb)
        alpha = None if alpha is None else turn(alpha[..., None])[..., 0]
    return Photo(
        np.ascontiguousarray(rgb),
        None if alpha is None else np.ascontiguousarray(alpha),
        min(bits, 16),
        gray,
        icc,
        exif,
    )


def encode_photo(photo: Photo, suffix: str) -> bytes:
    """The file's content.

    PNG and TIFF keep 16 bits; all but JPEG and BMP keep transparency, which is laid over white there; all but BMP keep
    the profile; PNG, JPEG and WebP keep EXIF. JPEG and WebP are written at quality 95.

    Args:
        photo: values outside [0, 1] are clipped.
        suffix: of `FORMATS`.
    """
    kind = FORMATS[suffix.lower()]
    rgb, alpha = np.clip(photo.rgb, 0, 1), photo.alpha
    if alpha is not None and kind not in _TRANSPARENT:
        rgb, alpha = over_white(rgb, alpha), None
    channels = [luma(rgb)[..., :1] if photo.gray else rgb]
    if alpha is not None:
        channels.append(np.clip(alpha, 0, 1)[..., None])
    x = np.concatenate(channels, axis=2)
    if photo.bits > 8 and kind in _DEEP:
        pixels = np.rint(x * 65535).astype(np.uint16)
        return _deep_png(pixels, photo) if kind == "PNG" else _deep_tiff(pixels, photo)
    pixels = np.rint(x * 255).astype(np.uint8)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    options: dict[str, object] = dict(_OPTIONS.get(kind, {}))
    if photo.icc and kind != "BMP":
        options["icc_profile"] = photo.icc
    if photo.exif and kind in _WITH_EXIF and (kind != "JPEG" or len(photo.exif) < 65_000):
        options["exif"] = photo.exif
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _shallow_samples(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None, int]:
    """float32 (H, W, 1 or 3) and alpha (H, W), both in [0, 1], and the bits of a sample."""
    if image.mode in ("I", "I;16"):  # Pillow scales a deep PGM to 16 bits
        return np.asarray(image)[..., None].astype(np.float32) / 65535, None, 16
    if image.mode == "F":
        raise DataError("float samples have no declared range: save as 8 or 16 bit")
    gray = image.mode in ("1", "L", "LA", "La")
    if image.mode == "CMYK":
        image = to_srgb(image)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A")).astype(np.float32) / 255
    pixels = np.asarray(image.convert("L" if gray else "RGB")).astype(np.float32) / 255
    return pixels[..., None] if gray else pixels, alpha, 8


def _exif(image: Image.Image) -> bytes | None:
    if not image.info.get("exif"):
        return None
    try:
        exif = image.getexif()
        if _ORIENTATION in exif:
            exif[_ORIENTATION] = 1
        return exif.tobytes()
    except BROKEN as error:
        logger.warning("EXIF not kept: %s", one_line(error))
        return None


def _deep_png(pixels: np.ndarray, photo: Photo) -> bytes:
    """Pillow has no 16-bit RGB; OpenCV has, without profile and EXIF, which are chunks of their own."""
    if pixels.shape[2] == 2:
        pixels = pixels[..., [0, 0, 0, 1]]
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[2]]
    _, code = cv2.imencode(".png", pixels[..., order])
    data = code.tobytes()
    chunks = b""
    if photo.icc:
        chunks += _chunk(b"iCCP", b"icc\0\0" + zlib.compress(photo.icc))
    if photo.exif:
        chunks += _chunk(b"eXIf", photo.exif.removeprefix(b"Exif\0\0"))
    head = 8 + 25  # signature and IHDR
    return data[:head] + chunks + data[head:]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _deep_tiff(pixels: np.ndarray, photo: Photo) -> bytes:
    import tifffile  # Pillow has no 16-bit RGB, and OpenCV writes no profile

    icc = photo.icc
    if pixels.shape[2] == 2:  # 16-bit gray with alpha is a TIFF that Pillow does not open; a gray profile fits no RGB
        icc = None
        pixels = np.concatenate([pixels[..., :1]] * 3 + [pixels[..., 1:]], axis=2)
    colors = 1 if pixels.shape[2] < 3 else 3
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        pixels[..., 0] if pixels.shape[2] == 1 else pixels,
        photometric="minisblack" if colors == 1 else "rgb",
        planarconfig=None if pixels.shape[2] == 1 else "contig",
        extrasamples=["unassalpha"] if pixels.shape[2] > colors else None,
        compression="zlib",
        iccprofile=icc,
        metadata=None,
        software=False,
    )
    return buffer.getvalue()
