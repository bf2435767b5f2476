"""ICC profiles: the colours of a file's samples in sRGB.

A profile is judged by what it does to a few thousand colours, never by its name: one that moves none of them by more
than one 8-bit level is sRGB, whatever it is called, and converts nothing (profiles of sRGB differ by half a level). It
is used for samples of its own colour space alone; gray samples may also have an RGB profile, as equal red, green and
blue.

Conversions take the relative colorimetric intent with black point compensation, as photo editors do:

* Profiles of curves and a matrix (nearly all of photos), and gray ones of a curve, are computed here in floating point,
  to 0.05 of an 8-bit level; 8-bit samples are rounded after that. LittleCMS has no 16-bit RGB through Pillow.
* Profiles of lookup tables, and CMYK, go through LittleCMS, which is right to one level. A deeper sample lies between
  8-bit colours and is interpolated between what becomes of those. That is right to one level too for colours that sRGB
  has, and to about five for dark ones that it lacks, where the clipping of a channel begins between two 8-bit colours.
"""

from __future__ import annotations

import functools
import io
import logging
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

from gmd_ray.text import one_line

logger = logging.getLogger(__name__)

Curve = Callable[[np.ndarray], np.ndarray]

CHANNELS = {"GRAY": 1, "RGB": 3, "CMYK": 4}
_CLASSES = (b"scnr", b"mntr", b"prtr", b"spac")
"""Kinds of profile that say what colours samples are; device links, abstract and named ones do not."""
_TABLES = (b"A2B0", b"A2B1", b"D2B0", b"D2B1")
"""Lookup tables for the intent that is used, or in place of it."""
_D50 = np.array([0.9642, 1.0, 0.8249])
_SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
"""XYZ of sRGB's red, green and blue, one a column, as the profile that most files have gives them (IEC 61966-2.1).

LittleCMS's own differ in the fifth digit: half an 8-bit level in dark, saturated colours."""
_EXACT = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOOPTIMIZE
_STRIP = 1 << 20
"""Pixels that are converted at a time, so that what lies between is small."""


@dataclass(frozen=True)
class Profile:
    """A profile that can be used."""

    data: bytes
    space: str
    """Of `CHANNELS`."""
    srgb: bool
    """Whether the samples are sRGB already, to one 8-bit level."""
    curves: tuple[np.ndarray, ...] = ()
    """Of each channel, linear light at each of 65,536 levels, black point compensated; none: goes by lookup tables."""
    matrix: np.ndarray | None = None
    """Linear light of the profile's red, green and blue to that of sRGB's; None for gray."""


def fitting(data: bytes | None, channels: int) -> Profile | None:
    """The profile of samples of this many channels (1 gray, 3 RGB, 4 CMYK).

    None where there is none, or where it cannot be used, which is logged as a warning.
    """
    if not data:
        return None
    try:
        profile = _parsed(data)
    except Exception as error:  # noqa: BLE001 -- of LittleCMS, or of what a damaged profile makes of the reading here
        logger.warning("colour profile not used, colours taken as sRGB: %s", one_line(error))
        return None
    if CHANNELS[profile.space] != channels and (profile.space, channels) != ("RGB", 1):
        held = {1: "gray", 3: "RGB", 4: "CMYK"}[channels]
        logger.warning("colour profile of %s samples not used for %s ones, taken as sRGB", profile.space, held)
        return None
    return profile


def to_srgb(colors: np.ndarray, profile: Profile) -> np.ndarray:
    """Samples in sRGB.

    Args:
        colors: uint8, or float32 in [0, 1]; (H, W, C) of the channels that `profile` was found to fit. CMYK is uint8
            and as Pillow has it: 255 is full ink.

    Returns:
        (H, W, 3) of the same type.
    """
    if colors.shape[2] == 1 and (profile.srgb or profile.space == "RGB"):
        colors = np.repeat(colors, 3, axis=2)
    if profile.srgb:
        return colors
    if colors.dtype == np.uint8 and not profile.curves:
        return _by_lcms(colors, profile.data, profile.space)
    out = np.empty((*colors.shape[:2], 3), colors.dtype)
    for rows in strips(colors):
        x = colors[rows]
        if x.dtype == np.uint8:
            # Through a table of 65,536 steps of light, of which even the steepest is 0.05 of a level.
            light = np.clip(_light(x.astype(np.uint16) * 257, profile), 0, 1)
            out[rows] = _encoded_8bit()[np.rint(light * 65535).astype(np.uint16)]
        elif profile.curves:
            out[rows] = _encoded(_light(np.rint(np.clip(x, 0, 1) * 65535).astype(np.uint16), profile))
        else:
            out[rows] = _between(x, profile)
    return out


def strips(image: np.ndarray) -> Iterator[slice]:
    """Rows of an array (H, W, ...), about a million pixels at a time."""
    step = max(1, _STRIP // max(1, image.shape[1]))
    return (slice(top, top + step) for top in range(0, image.shape[0], step))


def _light(levels: np.ndarray, profile: Profile) -> np.ndarray:
    """uint16 (H, W, C) to linear light in sRGB's colours, float32 (H, W, 3), or of gray (H, W, 1)."""
    light = np.stack([curve[levels[..., channel]] for channel, curve in enumerate(profile.curves)], axis=2)
    return light if profile.matrix is None else light @ profile.matrix.T


@functools.cache
def _encoded_8bit() -> np.ndarray:
    return np.rint(_encoded(np.linspace(0, 1, 65536)) * 255).astype(np.uint8)


def _encoded(light: np.ndarray) -> np.ndarray:
    """Linear light as sRGB, clipped to [0, 1]."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)


def _between(x: np.ndarray, profile: Profile) -> np.ndarray:
    """Tetrahedral interpolation between the 8-bit colours around each sample: one LittleCMS pass for each corner."""
    scaled = np.clip(x, 0, 1) * np.float32(255)
    corner = np.minimum(scaled, 254).astype(np.uint8)
    rest = scaled - corner
    order = np.argsort(-rest, axis=2)
    steps = np.take_along_axis(rest, order, axis=2)
    out = _by_lcms(corner, profile.data, profile.space).astype(np.float32)
    previous = out.copy()
    for i in range(x.shape[2]):  # one channel after the other goes up, the one with the largest rest first
        channel = order[..., i : i + 1]
        np.put_along_axis(corner, channel, np.take_along_axis(corner, channel, axis=2) + 1, axis=2)
        reached = _by_lcms(corner, profile.data, profile.space).astype(np.float32)
        out += steps[..., i : i + 1] * (reached - previous)
        previous = reached
    return np.clip(out / 255, 0, 1)


def _by_lcms(colors: np.ndarray, data: bytes, space: str, exact: bool = False) -> np.ndarray:
    """uint8 (H, W, C) to uint8 sRGB (H, W, 3)."""
    if colors.shape[2] == 1 and space == "RGB":
        colors = np.repeat(colors, 3, axis=2)
    # LittleCMS's precomputed table loses up to 7 levels in gray shadows, and gray is as fast without one.
    exact = exact or space == "GRAY"
    converted = ImageCms.profileToProfile(
        Image.fromarray(np.ascontiguousarray(colors[..., 0] if colors.shape[2] == 1 else colors), _MODES[space]),
        ImageCms.ImageCmsProfile(io.BytesIO(data)),
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=_EXACT if exact else ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert converted is not None
    return np.asarray(converted)


_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}


@functools.lru_cache(maxsize=32)
def _parsed(data: bytes) -> Profile:
    """Raises errors of many kinds for what cannot be used."""
    space = data[16:20].decode("ascii", "replace").strip()
    if data[36:40] != b"acsp":
        raise ValueError("damaged header")
    if space not in CHANNELS or data[12:16] not in _CLASSES:
        raise ValueError(f"a profile of class {data[12:16]!r} and colour space {space!r}")
    probes = _probes(space)
    found = _by_lcms(probes, data, space, exact=True).astype(int)
    if space == "CMYK":
        return Profile(data, space, srgb=False)
    by_tables = Profile(data, space, srgb=bool(np.abs(found - probes).max() <= 1))
    try:
        with np.errstate(all="ignore"):  # whatever comes of odd curves is compared
            curves, matrix = _curves_and_matrix(data, space)
            computed = (
                _encoded(_light(probes.astype(np.uint16) * 257, Profile(data, space, False, curves, matrix))) * 255
            )
    except (ValueError, KeyError, struct.error, ArithmeticError, np.linalg.LinAlgError):
        return by_tables
    if not np.abs(computed - found).max() <= 1.5:  # but for rounding, and the primaries, it is what LittleCMS finds
        return by_tables
    return Profile(data, space, bool(np.abs(computed - probes).max() <= 1), curves, matrix)


def _probes(space: str) -> np.ndarray:
    """Colours through the whole space, uint8 (1, N, C): every gray, and a grid."""
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    if space == "GRAY":
        return ramp[None]
    channels = CHANNELS[space]
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 17 if channels == 3 else 85)] * channels), axis=-1)
    return np.concatenate([grid.reshape(-1, channels).astype(np.uint8), np.repeat(ramp, channels, axis=1)])[None]


def _curves_and_matrix(data: bytes, space: str) -> tuple[tuple[np.ndarray, ...], np.ndarray | None]:
    """Raises KeyError, ValueError or struct.error for a profile that is not of curves and a matrix."""
    tags = _tags(data)
    if any(name in tags for name in _TABLES):
        raise ValueError("goes by lookup tables")
    x = np.linspace(0, 1, 65536)
    if space == "GRAY":
        light = np.clip(_curve(tags[b"kTRC"])(x), 0, 1)
        if data[20:24] == b"Lab ":
            light = np.where(light > 0.08, ((light + 0.16) / 1.16) ** 3, light * 100 / 903.2963)
        return (_from_black(light, light[0]).astype(np.float32),), None
    curves = [np.clip(_curve(tags[channel + b"TRC"])(x), 0, 1) for channel in (b"r", b"g", b"b")]
    colorants = np.stack([_xyz(tags[channel + b"XYZ"]) for channel in (b"r", b"g", b"b")], axis=1)
    black = float(sum(colorants[1, i] * curve[0] for i, curve in enumerate(curves)))
    if black > 0:  # compensation scales all three of XYZ from the darkest colour, taken as neutral
        offset = np.linalg.solve(colorants, _D50 * black)
        curves = [(curve - offset[i]) / (1 - black) for i, curve in enumerate(curves)]
    matrix = np.linalg.solve(_SRGB, colorants).astype(np.float32)
    if not np.isfinite(matrix).all():
        raise ValueError("colorants that are none")
    return tuple(curve.astype(np.float32) for curve in curves), matrix


def _from_black(light: np.ndarray, black: float) -> np.ndarray:
    return (light - black) / (1 - black) if 0 < black < 1 else light


def _tags(data: bytes) -> dict[bytes, bytes]:
    (count,) = struct.unpack_from(">I", data, 128)
    if count > 1000:
        raise ValueError("damaged table of tags")
    tags = {}
    for i in range(count):
        name, offset, size = struct.unpack_from(">4sII", data, 132 + 12 * i)
        tags[name] = data[offset : offset + size]
    return tags


def _xyz(tag: bytes) -> np.ndarray:
    if tag[:4] != b"XYZ ":
        raise ValueError("a colorant that is none")
    return np.array(struct.unpack_from(">3i", tag, 8)) / 65536


def _curve(tag: bytes) -> Curve:
    """Samples in [0, 1] to linear light, of a `curv` or `para` tag."""
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        if count == 0:
            return lambda x: x
        values = struct.unpack_from(f">{count}H", tag, 12)
        if count == 1:
            return lambda x: x ** (values[0] / 256)
        return lambda x: np.interp(x, np.linspace(0, 1, count), np.array(values) / 65535)
    if tag[:4] != b"para":
        raise ValueError("a curve that is none")
    (kind,) = struct.unpack_from(">H", tag, 8)
    if kind > 4:
        raise ValueError("a curve of an unknown kind")
    g, *rest = (v / 65536 for v in struct.unpack_from(f">{(1, 3, 4, 5, 7)[kind]}i", tag, 12))
    if kind == 0:
        return lambda x: x**g
    a, b = rest[:2]
    c, d, e, f = ([*rest[2:], 0.0, 0.0, 0.0, 0.0])[:4]
    if kind < 3:  # a power from where its base is positive, and the offset c below
        return lambda x: np.maximum(a * x + b, 0) ** g + (c if kind == 2 else 0)
    return lambda x: np.where(x >= d, np.maximum(a * x + b, 0) ** g + e, c * x + f)
