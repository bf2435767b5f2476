"""The content of an image file before any conversion: samples, transparency, colour profile and EXIF."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gmd_ray.errors import DataError
from gmd_ray.images.files import profiles
from gmd_ray.images.files.deep import deep_samples, jpeg2000, sample_bits
from gmd_ray.images.files.opening import FileHeader, opened_bytes
from gmd_ray.images.files.tiffs import TRANSPOSE
from gmd_ray.text import one_line

logger = logging.getLogger(__name__)

ORIENTATION = 0x0112
_GRAY = ("1", "L", "LA", "La")
_ICC_TAG = 34675


@dataclass
class Samples:
    """The first frame or page of a file, upright."""

    colors: np.ndarray
    """Samples (H, W, C) in the file's own colour space, C-contiguous: uint8, or float32 in [0, 1] if the file has more
    than 8 bits.

    C is 1 for gray, 3 for RGB and 4 for CMYK, which is always uint8 with 255 for full ink."""
    alpha: np.ndarray | None
    """Straight (not premultiplied) alpha (H, W), of the type and range of `colors`; None if the file has none."""
    profile: profiles.Profile | None
    """The embedded profile; None if there is none, or if it cannot be used for these samples."""
    exif: Image.Exif | None
    """The EXIF block; None if absent, and for TIFF."""

    def to_srgb(self) -> np.ndarray:
        """Convert the colours to sRGB, (H, W, 3) of the type of `colors`.

        CMYK without a profile is converted by Pillow's formula.
        """
        if self.profile is not None:
            return profiles.to_srgb(self.colors, self.profile)
        if self.colors.shape[2] == 1:
            return np.repeat(self.colors, 3, axis=2)
        if self.colors.shape[2] == 4:
            return np.asarray(Image.fromarray(self.colors, "CMYK").convert("RGB"))
        return self.colors


def read_samples(data: bytes, max_pixels: int | None) -> Samples:
    """Decode one file.

    Args:
        data: content of a file of one of `opening.FORMATS`.
        max_pixels: refuse larger pictures before their pixels are decoded; see `opening.open_header`.

    Raises:
        DataError: `open_header` refuses the file, it is damaged or truncated, or the range or colour space of its
            samples is unknown. The message is one line and does not name the file.
    """
    header = opened_bytes(data, max_pixels)
    bits = sample_bits(data, header)
    image, turn, exif = header.image, None, None
    if image is not None:
        try:
            image.load()
        except MemoryError as error:
            raise DataError(f"not enough memory for {image.width}x{image.height} pixels") from error
        except Exception as error:  # Pillow's decoders raise anything for damaged files
            raise DataError(f"damaged or truncated {header.format}: {one_line(error)}") from error
        exif = _exif(image)
        if header.format != "TIFF":  # Pillow has turned a TIFF upright by now
            turn = TRANSPOSE.get(_orientation(image, exif))
    # Pillow converts Lab to sRGB itself, so the profile must not be applied again.
    icc = None if image is not None and image.mode == "LAB" else _icc(data, header)
    try:
        colors, alpha = deep_samples(data, header) if bits > 8 else _shallow(image, bits)
    except DataError:
        raise
    except Exception as error:
        mode = "" if image is None else f" mode {image.mode}"
        raise DataError(f"cannot convert {header.format}{mode} to RGB: {one_line(error)}") from error
    if turn is not None:
        colors, alpha = turn(colors), None if alpha is None else turn(alpha)
    colors = np.ascontiguousarray(colors)
    alpha = None if alpha is None else np.ascontiguousarray(alpha)
    return Samples(colors, alpha, profiles.fitting(icc, colors.shape[2]), exif if header.format != "TIFF" else None)


def _shallow(image: Image.Image | None, bits: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode samples of at most 8 bits: uint8 (H, W, 1, 3 or 4), and alpha, uint8 (H, W) or None."""
    assert image is not None, "sample_bits() is above 8 for files that Pillow does not open"
    if image.mode == "F":
        raise DataError("float samples have no declared range: save as 8 or 16 bit")
    if image.mode == "CMYK":
        return np.asarray(image), None
    mode = "L" if image.mode in _GRAY else "RGB"
    if not image.has_transparency_data:
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        return pixels if mode == "RGB" else pixels[..., None], None
    _scale_key(image, bits)
    pixels = np.asarray(image if image.mode == "RGBA" else image.convert("RGBA"))
    return pixels[..., :1] if mode == "L" else pixels[..., :3], pixels[..., 3]


def _scale_key(image: Image.Image, bits: int) -> None:
    """Scale the transparent colour of a PNG to the 8-bit values with which Pillow compares pixels.

    The file stores the colour in 16 bits, of which only the lowest `bits` count. Pillow widens gray pixels of 2 and 4
    bits to 8 but leaves the transparent colour as stored; for 1 bit it uses 0 and 255 for both.
    """
    key = image.info.get("transparency")
    if image.format != "PNG" or image.mode == "P":
        return
    if isinstance(key, int):
        top = (1 << bits) - 1
        image.info["transparency"] = (key & top) * (255 // top)
    elif isinstance(key, tuple):
        image.info["transparency"] = tuple(value & 255 for value in key)


def _orientation(image: Image.Image, exif: Image.Exif | None) -> int:
    try:
        return int((exif if exif is not None else image.getexif()).get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001 -- a damaged EXIF block affects nothing but the orientation
        return 1


def _exif(image: Image.Image) -> Image.Exif | None:
    if not image.info.get("exif"):
        return None
    try:
        return image.getexif()
    except Exception as error:  # noqa: BLE001 -- as above
        logger.warning("EXIF not read: %s", one_line(error))
        return None


def _icc(data: bytes, header: FileHeader) -> bytes | None:
    if header.format == "JPEG2000":
        return jpeg2000(data).icc  # Pillow does not read it
    profile = header.tags.get(_ICC_TAG) if header.image is None else header.image.info.get("icc_profile")
    if isinstance(profile, tuple):
        profile = profile[0] if profile else None
    return profile if isinstance(profile, bytes) else None
