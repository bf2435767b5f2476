"""Image files to arrays: every kind of file that a photo folder holds, as float32 RGB, or one line that says why not.

What is done with the parts of a file that a training pair cannot carry:

* orientation (EXIF, or its XMP twin) is applied;
* an embedded ICC profile is converted to sRGB with the relative colorimetric intent and black point compensation,
  as photo editors do; a profile that lcms refuses is ignored with a warning. A CMYK file without one takes Pillow's
  plain formula. PNG `gAMA` and `cHRM` are ignored, as are the profiles that call themselves sRGB;
* transparency is laid over white, as a viewer would show it;
* of several frames or pages the first is read.

8-bit files stay on the 8-bit grid throughout. 16-bit PNG and TIFF keep their precision: Pillow 13 would read them as
8 bits, so Pillow checks the file and OpenCV (for planar TIFF, tifffile) reads the samples. How many bits there are
follows from the header, never from the largest value. lcms through Pillow has no 16-bit RGB: such a picture is
converted at 8 bits, and what the rounding took away is added back, which is right to about one 8-bit level.
"""

from __future__ import annotations

import io
import logging
import struct
import zlib

import cv2
import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from gmd_ray.errors import DataError

logger = logging.getLogger(__name__)

BROKEN = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, struct.error, zlib.error)
"""What Pillow's readers raise on damaged files."""

HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")

TRANSPOSE = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}
"""EXIF orientation to the operation that makes the picture upright."""


def decode_image(data: bytes, *, gray: bool = False, max_pixels: int = 89_478_485) -> np.ndarray:
    """Decode one image file.

    Args:
        data: the file, in any format that Pillow reads.
        gray: return luma (BT.601, as the restoration literature reads gray) in all three channels.
        max_pixels: refuse a larger picture before its pixels are decoded. Pillow itself refuses more than twice
            `PIL.Image.MAX_IMAGE_PIXELS`, whatever is given here.

    Returns:
        float32 RGB in [0, 1], shape (H, W, 3), C-contiguous.

    Raises:
        DataError: with a one-line reason that names no file: empty, not an image, damaged or truncated, too large,
            or samples without a known range (float).
    """
    image = open_image(data, max_pixels)
    bits = sample_bits(image, data)
    try:
        image.load()
    except BROKEN as error:
        raise DataError(f"damaged or truncated {image.format}: {one_line(error)}") from error
    orientation = orientation_of(image)  # after load(): TIFF is turned by then, by Pillow and by OpenCV alike
    rgb, alpha = _read_deep(image, data) if bits > 8 else _read_shallow(image)
    if alpha is not None:
        rgb = over_white(rgb, alpha)
    if gray:
        rgb = luma(rgb)
    if orientation in TRANSPOSE:
        rgb = TRANSPOSE[orientation](rgb)
    if rgb.dtype == np.uint8:
        rgb = rgb.astype(np.float32) / 255
    return np.ascontiguousarray(rgb)


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise DataError("empty file")
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        kind = "HEIC" if data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS else "not an image, or one"
        raise DataError(f"{kind} that this program cannot decode: convert to PNG, TIFF or JPEG") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"too large: {one_line(error)}") from error
    except BROKEN as error:
        raise DataError(f"damaged image header: {one_line(error)}") from error
    if image.format == "TIFF" and _is_raw(image, data):
        raise DataError("a camera's raw file, whose first picture is a preview: develop it to TIFF or PNG")
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(f"too large: {width}x{height} is more than max_pixels={max_pixels}")
    return image


def _is_raw(image: Image.Image, data: bytes) -> bool:
    """Whether a file in TIFF's form is DNG, Canon's CR2, or, as Nikon's and Sony's, begins with a reduced picture."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    return 50706 in tags or data[8:10] == b"CR" or bool(tags.get(254, 0) & 1)


def sample_bits(image: Image.Image, data: bytes) -> int:
    """Bits per sample as the header states them, of the formats that Pillow would round to 8."""
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF" and image.mode != "CMYK":
        return max(image.tag_v2.get(258, (1,)))  # type: ignore[attr-defined]
    return 8


def orientation_of(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except BROKEN:  # a damaged EXIF block spoils nothing but the orientation
        return 1


def _read_shallow(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """uint8 sRGB (H, W, 3) and alpha (H, W) or None."""
    if image.mode in ("I", "I;16"):  # Pillow scales a deep PGM to 16 bits
        return _to_srgb_deep(np.asarray(image)[..., None] / np.float32(65535), image), None
    if image.mode == "F":
        raise DataError("float samples have no declared range: save as 8 or 16 bit")
    try:
        wanted = {"1": "L", "L": "L", "LA": "L", "La": "L", "CMYK": "CMYK"}.get(image.mode, "RGB")
        alpha = None
        if image.has_transparency_data:
            image = image.convert("RGBA")
            alpha = np.asarray(image.getchannel("A"))
        if image.mode != wanted:
            image = image.convert(wanted)
        return np.asarray(to_srgb(image)), alpha
    except BROKEN as error:
        raise DataError(f"cannot convert {image.format} mode {image.mode} to RGB: {one_line(error)}") from error


def _read_deep(image: Image.Image, data: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """float32 sRGB (H, W, 3) and alpha (H, W), both in [0, 1]; alpha may be None."""
    colors, alpha = deep_samples(image, data)
    return _to_srgb_deep(colors, image), alpha


def deep_samples(image: Image.Image, data: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """float32 (H, W, 1 or 3) in the file's own colours and straight alpha (H, W), both in [0, 1]; alpha may be None.

    Args:
        image: of `data`, loaded.
    """
    tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    # OpenCV reads the planes of a planar file as if they were interleaved.
    samples = _planes(data) if tags.get(284) == 2 else _interleaved(image, data)
    if samples.dtype != np.uint16:
        raise DataError(f"{samples.dtype} samples have no declared range: save as 8 or 16 bit")
    x = samples.reshape(*samples.shape[:2], -1).astype(np.float32) / 65535
    if x.shape[2] == 1:
        key = image.info.get("transparency") if image.format == "PNG" else None  # OpenCV knows it in colour alone
        alpha = None if key is None else (samples.reshape(x.shape[:2]) != key).astype(np.float32)
        return 1 - x if tags.get(262) == 0 else x, alpha  # 0: the largest value is black
    # The fourth sample of a TIFF need not be alpha; Pillow's mode says whether it is.
    alpha = x[..., 3] if x.shape[2] == 4 and (image.format == "PNG" or image.mode == "RGBA") else None
    colors = x[..., :3]
    if alpha is not None and tags.get(338) == (1,):  # associated: the colours are multiplied with it
        colors = np.where(alpha[..., None] > 0, colors / np.maximum(alpha[..., None], 1e-6), 0).clip(0, 1)
    return colors, alpha


def _interleaved(image: Image.Image, data: bytes) -> np.ndarray:
    """The samples, (H, W) or RGB(A) (H, W, C), upright where a TIFF says how it lies."""
    try:
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DataError(f"{image.format} that OpenCV cannot read: {one_line(error)}") from error
    if samples is None:
        raise DataError(f"{image.format} of more than 8 bits that OpenCV cannot read: save it as 16-bit PNG")
    if samples.ndim == 2:
        return samples
    return samples[..., [2, 1, 0, 3][: samples.shape[2]]]  # OpenCV's order is BGR(A)


def _planes(data: bytes) -> np.ndarray:
    """The samples of a planar TIFF, (H, W, C), upright."""
    import tifffile  # rare, and slow to import

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            samples = np.moveaxis(page.asarray(), 0, -1)
            tag = page.tags.get(274)
    except Exception as error:
        raise DataError(f"planar TIFF that cannot be read ({one_line(error)}): save it as 16-bit PNG") from error
    turn = TRANSPOSE.get(1 if tag is None else int(tag.value))
    return samples if turn is None else turn(samples)


def _to_srgb_deep(x: np.ndarray, image: Image.Image) -> np.ndarray:
    """float32 (H, W, 1 or 3) in the colours of `image`'s profile, to float32 sRGB (H, W, 3)."""
    if not image.info.get("icc_profile"):
        return np.repeat(x, 3, axis=2) if x.shape[2] == 1 else x
    rounded = np.rint(x * 255).astype(np.uint8)
    shallow = Image.fromarray(rounded[..., 0] if x.shape[2] == 1 else rounded)
    shallow.info["icc_profile"] = image.info["icc_profile"]
    residual = x - rounded.astype(np.float32) / 255
    return np.clip(np.asarray(to_srgb(shallow)).astype(np.float32) / 255 + residual, 0, 1)


def to_srgb(image: Image.Image) -> Image.Image:
    """An image of mode L, RGB or CMYK as RGB in sRGB, through its profile if it has one."""
    icc = image.info.get("icc_profile")
    if icc:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            space = {"GRAY": "L", "CMYK": "CMYK"}.get(profile.profile.xcolor_space.strip(), "RGB")
            if image.mode == "L" and space == "RGB":
                image = image.convert("RGB")
            # lcms's precomputed table loses up to 7 levels in gray shadows, and gray is as fast without one.
            exact = ImageCms.Flags.NOOPTIMIZE if image.mode == "L" else ImageCms.Flags.NONE
            if not ImageCms.getProfileDescription(profile).startswith("sRGB"):
                converted = ImageCms.profileToProfile(
                    image,
                    profile,
                    ImageCms.createProfile("sRGB"),
                    renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                    outputMode="RGB",
                    flags=ImageCms.Flags.BLACKPOINTCOMPENSATION | exact,
                )
                assert converted is not None
                return converted
        except (ImageCms.PyCMSError, *BROKEN) as error:
            logger.warning("colour profile not used, colours taken as sRGB: %s", one_line(error))
    return image.convert("RGB")


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    a = alpha[..., None].astype(np.float32)
    if rgb.dtype != np.uint8:
        return rgb * a + (1 - a)
    return np.rint((rgb * a + 255 * (255 - a)) / 255).astype(np.uint8)


def luma(rgb: np.ndarray) -> np.ndarray:
    y = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    if rgb.dtype == np.uint8:
        y = np.rint(y).astype(np.uint8)
    return np.repeat(y[..., None], 3, axis=2)


def one_line(error: BaseException) -> str:
    """The error's text on one line."""
    return " ".join(str(error).split()) or type(error).__name__
