"""A photo with everything that its file carries, for whoever wants the file back: restored, and else as it was.

`decode_image` gives a model what it learns from: upright sRGB over white. Here nothing is converted that need not be:
samples stay in the colours of the file's own ICC profile, which goes along; transparency stays apart; more than 8 bits
become 16; gray stays gray. Only the orientation is applied, as a network should see a photo upright. CMYK becomes sRGB.

What is written has a profile that fits its samples, or is sRGB and has none. Where a format, or what it makes of gray,
leaves no place for the profile, the samples are converted to sRGB with it.
"""

from __future__ import annotations

import io
import logging
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gmd_ray.errors import DataError
from gmd_ray.images.files import profiles
from gmd_ray.images.files.decode import luma, over_white, to_8bit
from gmd_ray.images.files.samples import ORIENTATION, read_samples
from gmd_ray.text import one_line

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
LARGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
"""Pixels of the longer side that a format can hold; others hold whatever is made here."""
_DEEP = ("PNG", "TIFF")
_TRANSPARENT = ("PNG", "TIFF", "WEBP")
_WITH_EXIF = ("PNG", "JPEG", "WEBP")
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
    """The profile of the samples: of gray where `gray`, else of RGB. None is sRGB."""
    exif: bytes | None = None
    """With the orientation set to upright. That of TIFF files is not carried."""


def read_photo(data: bytes, max_pixels: int | None) -> Photo:
    """Decode one file.

    Args:
        data: in any format that `decode_image` reads.
        max_pixels: refuse a larger picture before its pixels are decoded.

    Raises:
        DataError: with a one-line reason that names no file, as `decode_image`.
    """
    samples = read_samples(data, max_pixels)
    colors, alpha, profile = samples.colors, samples.alpha, samples.profile
    gray = colors.shape[2] == 1
    if colors.shape[2] == 4:
        colors, profile = samples.to_srgb(), None
    if gray and profile is not None and profile.space == "RGB":
        # No file of gray samples may carry it: gray goes on as RGB, unless its profile says nothing.
        gray, profile = profile.srgb, None if profile.srgb else profile
    rgb = np.repeat(_unit(colors), 3, axis=2) if colors.shape[2] == 1 else _unit(colors)
    bits = 8 if colors.dtype == np.uint8 else 16
    icc = None if profile is None else profile.data
    return Photo(rgb, None if alpha is None else _unit(alpha), bits, gray, icc, _exif(samples.exif))


def encode_photo(photo: Photo, suffix: str) -> bytes:
    """The file's content.

    PNG and TIFF keep 16 bits; all but JPEG and BMP keep transparency, which is laid over white there; PNG, JPEG and
    WebP keep EXIF. JPEG and WebP are written at quality 95. The profile is kept by all but BMP, of gray by PNG, JPEG
    and TIFF (without transparency, where it has 16 bits); else the samples become sRGB.

    Args:
        photo: values outside [0, 1] are clipped.
        suffix: of `FORMATS`.

    Raises:
        DataError: where a side is longer than the format can hold (`LARGEST_SIDE`).
    """
    kind = FORMATS[suffix.lower()]
    height, width = photo.rgb.shape[:2]
    if max(height, width) > LARGEST_SIDE.get(kind, max(height, width)):
        raise DataError(f"{width}x{height} does not fit {kind}, whose sides end at {LARGEST_SIDE[kind]}: write PNG")
    rgb, alpha, icc = np.clip(photo.rgb, 0, 1), photo.alpha, photo.icc
    deep = photo.bits > 8 and kind in _DEEP
    if icc is not None and not _carries(kind, photo.gray, deep and alpha is not None):
        profile = profiles.fitting(icc, 1 if photo.gray else 3)
        if profile is not None:
            rgb = profiles.to_srgb(luma(rgb)[..., :1] if photo.gray else rgb, profile)
        icc = None
    if alpha is not None and kind not in _TRANSPARENT:
        rgb, alpha = over_white(rgb, np.clip(alpha, 0, 1)), None
    channels = [luma(rgb)[..., :1] if photo.gray else rgb]
    if alpha is not None:
        channels.append(np.clip(alpha, 0, 1)[..., None])
    x = np.concatenate(channels, axis=2)
    if deep:
        pixels = np.rint(x * 65535).astype(np.uint16)
        return _deep_png(pixels, icc, photo.exif) if kind == "PNG" else _deep_tiff(pixels, icc)
    pixels = to_8bit(x)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    options: dict[str, object] = dict(_OPTIONS.get(kind, {}))
    if icc:
        options["icc_profile"] = icc
    if photo.exif and kind in _WITH_EXIF and (kind != "JPEG" or len(photo.exif) < 65_000):
        options["exif"] = photo.exif
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _carries(kind: str, gray: bool, deep_alpha: bool) -> bool:
    """Whether a file of this kind has a place for the profile beside samples that it fits."""
    if kind == "BMP":
        return False
    # WebP is RGB always; TIFF of 16-bit gray with transparency is written as RGB, for Pillow opens no other.
    return not gray or not (kind == "WEBP" or (kind == "TIFF" and deep_alpha))


def _unit(x: np.ndarray) -> np.ndarray:
    if x.dtype != np.uint8:
        return x
    x = x.astype(np.float32)
    x /= 255
    return x


def _exif(exif: Image.Exif | None) -> bytes | None:
    if exif is None:
        return None
    try:
        if ORIENTATION in exif:
            exif[ORIENTATION] = 1
        return exif.tobytes()
    except Exception as error:  # noqa: BLE001 -- a damaged EXIF block spoils nothing else
        logger.warning("EXIF not kept: %s", one_line(error))
        return None


def _deep_png(pixels: np.ndarray, icc: bytes | None, exif: bytes | None) -> bytes:
    """Pillow has no 16-bit RGB, and OpenCV no 16-bit gray with transparency.

    Args:
        pixels: uint16 (H, W, C): gray, gray and alpha, RGB, or RGB and alpha.
    """
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = [_chunk(b"IHDR", header)]
    if icc:
        parts.append(_chunk(b"iCCP", b"icc\0\0" + zlib.compress(icc)))
    if exif:
        parts.append(_chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")))
    packer = zlib.compressobj(3)
    above = np.zeros(width * channels * 2, np.uint8)
    packed = bytearray()
    for row in pixels:
        line = row.astype(">u2").reshape(-1).view(np.uint8)
        packed += packer.compress(b"\2" + (line - above).tobytes())  # filter 2: less the row above
        above = line
    packed += packer.flush()
    # One chunk would do but for its length, of 31 bits.
    parts += [_chunk(b"IDAT", bytes(packed[i : i + (1 << 24)])) for i in range(0, len(packed), 1 << 24)]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, _chunk(b"IEND", b"")])


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _deep_tiff(pixels: np.ndarray, icc: bytes | None) -> bytes:
    import tifffile  # Pillow has no 16-bit RGB, and OpenCV writes no profile

    if pixels.shape[2] == 2:  # 16-bit gray with alpha is a TIFF that Pillow does not open
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
