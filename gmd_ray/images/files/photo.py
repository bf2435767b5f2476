"""Photos with everything that their files carry, so that `restore` returns files that differ only in being restored.

`decode_image` returns what a model learns from: upright sRGB over white. Here, nothing is converted without need.
Samples stay in the colour space of the file's ICC profile, which is kept. Transparency stays separate. More than 8 bits
become 16. Gray stays gray. Only the orientation is applied, as networks expect upright photos, and CMYK becomes sRGB.

A written file has a profile that fits its samples, or it is sRGB without a profile. If the format cannot hold the
profile beside such samples, the samples are converted to sRGB.
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
"""Extensions that can be written -> Pillow's name of the format."""
LARGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
"""The longest side in pixels that a format can hold. The other formats have no bound that matters here."""
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
    """A picture and the metadata of its file."""

    rgb: np.ndarray
    """Samples, float32 (H, W, 3) in [0, 1], upright, in the colour space of `icc`; gray is in all three channels."""
    alpha: np.ndarray | None
    """Opacity, float32 (H, W) in [0, 1]; None if the file has none."""
    bits: int = 8
    """Bits per sample: 8 or 16."""
    gray: bool = False
    """True if the file holds gray samples."""
    icc: bytes | None = None
    """The ICC profile of the samples, which is one for gray if `gray` is set, else for RGB; None means sRGB."""
    exif: bytes | None = None
    """The EXIF block with the orientation set to upright; None if absent. The EXIF of TIFF files is not kept."""


def read_photo(data: bytes, max_pixels: int | None) -> Photo:
    """Decode one file.

    Args:
        data: content of a file of any format that `decode_image` reads.
        max_pixels: refuse larger pictures before their pixels are decoded.

    Raises:
        DataError: as in `decode_image`.
    """
    samples = read_samples(data, max_pixels)
    colors, alpha, profile = samples.colors, samples.alpha, samples.profile
    gray = colors.shape[2] == 1
    if colors.shape[2] == 4:
        colors, profile = samples.to_srgb(), None
    if gray and profile is not None and profile.space == "RGB":
        # A file of gray samples may not have an RGB profile. The photo becomes RGB, unless the profile is just sRGB.
        gray, profile = profile.srgb, None if profile.srgb else profile
    rgb = np.repeat(_unit(colors), 3, axis=2) if colors.shape[2] == 1 else _unit(colors)
    bits = 8 if colors.dtype == np.uint8 else 16
    icc = None if profile is None else profile.data
    return Photo(rgb, None if alpha is None else _unit(alpha), bits, gray, icc, _exif(samples.exif))


def encode_photo(photo: Photo, suffix: str) -> bytes:
    """Encode a photo as a file.

    PNG and TIFF keep 16 bits. JPEG and BMP lose transparency, which is blended over white. PNG, JPEG and WebP keep
    EXIF. JPEG and WebP are written at quality 95. BMP loses the profile, as do gray photos in WebP and 16-bit gray
    photos with transparency in TIFF; their samples are converted to sRGB.

    Args:
        photo: the photo; values outside [0, 1] are clipped.
        suffix: extension, one of `FORMATS` in any case.

    Returns:
        the content of the file.

    Raises:
        DataError: a side is longer than the format can hold (`LARGEST_SIDE`).
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
    """Tell whether a file of this kind can hold the profile and samples that fit it."""
    if kind == "BMP":
        return False
    # WebP is always RGB. 16-bit gray TIFF with transparency is written as RGB, since Pillow cannot open it as gray.
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
    except Exception as error:  # noqa: BLE001 -- a damaged EXIF block affects nothing else
        logger.warning("EXIF not kept: %s", one_line(error))
        return None


def _deep_png(pixels: np.ndarray, icc: bytes | None, exif: bytes | None) -> bytes:
    """Write a 16-bit PNG. Pillow supports no 16-bit RGB, and OpenCV no 16-bit gray with transparency.

    Args:
        pixels: uint16 (H, W, C), where C is 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha).
        icc: profile to embed.
        exif: EXIF block to embed.
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
        packed += packer.compress(b"\2" + (line - above).tobytes())  # PNG filter 2: difference to the row above
        above = line
    packed += packer.flush()
    # Several chunks, because the length of a chunk is limited to 31 bits.
    parts += [_chunk(b"IDAT", bytes(packed[i : i + (1 << 24)])) for i in range(0, len(packed), 1 << 24)]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, _chunk(b"IEND", b"")])


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _deep_tiff(pixels: np.ndarray, icc: bytes | None) -> bytes:
    import tifffile  # Pillow supports no 16-bit RGB, and OpenCV writes no profile

    if pixels.shape[2] == 2:  # as RGB, since Pillow cannot open a TIFF of 16-bit gray with alpha
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
