"""ICC profiles: conversion of a file's samples to sRGB.

A profile is judged by its effect on a few thousand colours, never by its name. If it moves none of them by more than
one 8-bit level, it counts as sRGB and converts nothing (common sRGB profiles differ by half a level). A profile is used
only for samples of its own colour space; gray samples may also have an RGB profile, as equal red, green and blue.

Conversions use the relative colorimetric intent with black point compensation, as photo editors do:

* Profiles of curves and a matrix (nearly all profiles in photos), and gray profiles of one curve, are computed here in
  floating point, exact to 0.05 of an 8-bit level; 8-bit samples are rounded afterwards. Pillow offers no 16-bit RGB
  conversion by LittleCMS.
* Profiles of lookup tables, and CMYK, are converted by LittleCMS, exact to one level. Deeper samples are interpolated
  between the results for the neighbouring 8-bit colours. That is exact to one level for colours inside sRGB, and to
  about five for dark colours outside, where a channel begins to be clipped between two 8-bit colours.
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
"""Profile classes that describe the colours of samples; device link, abstract and named color profiles do not."""
_TABLES = (b"A2B0", b"A2B1", b"D2B0", b"D2B1")
"""Tags of lookup tables that apply to the relative colorimetric intent, directly or as a substitute."""
_D50 = np.array([0.9642, 1.0, 0.8249])
"""XYZ of the profile connection space's white."""
_SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
"""XYZ of sRGB's red, green and blue as columns, from the most common profile (IEC 61966-2.1).

LittleCMS's own values differ in the fifth digit, which is half an 8-bit level in dark, saturated colours."""
_EXACT = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOOPTIMIZE
_STRIP = 1 << 20
"""The number of pixels converted at a time, which keeps temporary arrays small."""


@dataclass(frozen=True)
class Profile:
    """A usable profile."""

    data: bytes
    """The ICC profile itself."""
    space: str
    """Colour space of the samples, one of `CHANNELS`."""
    srgb: bool
    """True if the samples are sRGB already, to one 8-bit level."""
    curves: tuple[np.ndarray, ...] = ()
    """Linear light of each channel, arrays (65536,) with black point compensation. Empty if LittleCMS converts."""
    matrix: np.ndarray | None = None
    """Matrix (3, 3) from linear light in the profile's primaries to linear light in sRGB's; None for gray."""


def fitting(data: bytes | None, channels: int) -> Profile | None:
    """Parse the profile of samples of `channels` channels (1 gray, 3 RGB, 4 CMYK).

    Returns:
        the profile; None if there is none, or if it cannot be used, which is logged as a warning.
    """
    if not data:
        return None
    try:
        profile = _parsed(data)
    except Exception as error:  # noqa: BLE001 -- a damaged profile makes LittleCMS and the parsing raise anything
        logger.warning("colour profile not used, colours taken as sRGB: %s", one_line(error))
        return None
    if CHANNELS[profile.space] != channels and (profile.space, channels) != ("RGB", 1):
        held = {1: "gray", 3: "RGB", 4: "CMYK"}[channels]
        logger.warning("colour profile of %s samples not used for %s ones, taken as sRGB", profile.space, held)
        return None
    return profile


def to_srgb(colors: np.ndarray, profile: Profile) -> np.ndarray:
    """Convert samples to sRGB.

    Args:
        colors: (H, W, C), uint8 or float32 in [0, 1], with the number of channels given to `fitting`. CMYK is uint8 in
            Pillow's convention: 255 is full ink.
        profile: the profile from `fitting`.

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
            # The table has 65,536 steps of linear light; the steepest is 0.05 of an 8-bit level.
            light = np.clip(_light(x.astype(np.uint16) * 257, profile), 0, 1)
            out[rows] = _encoded_8bit()[np.rint(light * 65535).astype(np.uint16)]
        elif profile.curves:
            out[rows] = _encoded(_light(np.rint(np.clip(x, 0, 1) * 65535).astype(np.uint16), profile))
        else:
            out[rows] = _between(x, profile)
    return out


def strips(image: np.ndarray) -> Iterator[slice]:
    """Slice the rows of an array (H, W, ...) into strips of about a million pixels."""
    step = max(1, _STRIP // max(1, image.shape[1]))
    return (slice(top, top + step) for top in range(0, image.shape[0], step))


def _light(levels: np.ndarray, profile: Profile) -> np.ndarray:
    """Convert uint16 (H, W, C) to linear light in sRGB's primaries, float32 (H, W, 3), or (H, W, 1) for gray."""
    light = np.stack([curve[levels[..., channel]] for channel, curve in enumerate(profile.curves)], axis=2)
    return light if profile.matrix is None else light @ profile.matrix.T


@functools.cache
def _encoded_8bit() -> np.ndarray:
    return np.rint(_encoded(np.linspace(0, 1, 65536)) * 255).astype(np.uint8)


def _encoded(light: np.ndarray) -> np.ndarray:
    """Encode linear light with sRGB's curve, clipped to [0, 1]."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)


def _between(x: np.ndarray, profile: Profile) -> np.ndarray:
    """Convert float32 (H, W, C) by tetrahedral interpolation between the 8-bit colours around each sample."""
    # Start at the lower corner of each sample's cell, raise one channel after the other, largest fraction first, and
    # add up the differences, weighted by the fractions. LittleCMS converts one corner of all samples at a time.
    scaled = np.clip(x, 0, 1) * np.float32(255)
    corner = np.minimum(scaled, 254).astype(np.uint8)
    rest = scaled - corner
    order = np.argsort(-rest, axis=2)
    steps = np.take_along_axis(rest, order, axis=2)
    out = _by_lcms(corner, profile.data, profile.space).astype(np.float32)
    previous = out.copy()
    for i in range(x.shape[2]):
        channel = order[..., i : i + 1]
        np.put_along_axis(corner, channel, np.take_along_axis(corner, channel, axis=2) + 1, axis=2)
        reached = _by_lcms(corner, profile.data, profile.space).astype(np.float32)
        out += steps[..., i : i + 1] * (reached - previous)
        previous = reached
    return np.clip(out / 255, 0, 1)


def _by_lcms(colors: np.ndarray, data: bytes, space: str, exact: bool = False) -> np.ndarray:
    """Convert uint8 (H, W, C) to uint8 sRGB (H, W, 3) with LittleCMS."""
    if colors.shape[2] == 1 and space == "RGB":
        colors = np.repeat(colors, 3, axis=2)
    # LittleCMS's precomputed table is wrong by up to 7 levels in gray shadows, and gray is as fast without it.
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
    """Parse a profile, and raise any kind of error if it cannot be used."""
    space = data[16:20].decode("ascii", "replace").strip()
    if data[36:40] != b"acsp":
        raise ValueError("damaged header")
    if space not in CHANNELS or data[12:16] not in _CLASSES:
        raise ValueError(f"a profile of class {data[12:16]!r} and colour space {space!r}")
    probes = _probes(space)
    by_lcms = _by_lcms(probes, data, space, exact=True).astype(int)
    if space == "CMYK":
        return Profile(data, space, srgb=False)
    by_tables = Profile(data, space, srgb=bool(np.abs(by_lcms - probes).max() <= 1))
    try:
        with np.errstate(all="ignore"):  # odd curves may overflow; the comparison below rejects them
            curves, matrix = _curves_and_matrix(data, space)
            computed = (
                _encoded(_light(probes.astype(np.uint16) * 257, Profile(data, space, False, curves, matrix))) * 255
            )
    except (ValueError, KeyError, struct.error, ArithmeticError, np.linalg.LinAlgError):
        return by_tables
    # Half a level of rounding and half a level from the primaries may add to LittleCMS's own error.
    if not np.abs(computed - by_lcms).max() <= 1.5:
        return by_tables
    return Profile(data, space, bool(np.abs(computed - probes).max() <= 1), curves, matrix)


def _probes(space: str) -> np.ndarray:
    """Sample a colour space as uint8 (1, N, C): every gray, and a grid over the whole space."""
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    if space == "GRAY":
        return ramp[None]
    channels = CHANNELS[space]
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 17 if channels == 3 else 85)] * channels), axis=-1)
    return np.concatenate([grid.reshape(-1, channels).astype(np.uint8), np.repeat(ramp, channels, axis=1)])[None]


def _curves_and_matrix(data: bytes, space: str) -> tuple[tuple[np.ndarray, ...], np.ndarray | None]:
    """Read the curves (65536,) of each channel, and the matrix (3, 3) to sRGB's primaries (None for gray).

    Raises KeyError, ValueError or struct.error for a profile that does not consist of curves and a matrix.
    """
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
    if black > 0:  # black point compensation scales XYZ from the darkest colour, taken as neutral, to zero
        offset = np.linalg.solve(colorants, _D50 * black)
        curves = [(curve - offset[i]) / (1 - black) for i, curve in enumerate(curves)]
    matrix = np.linalg.solve(_SRGB, colorants).astype(np.float32)
    if not np.isfinite(matrix).all():
        raise ValueError("colorants that are not finite")
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
        raise ValueError("a colorant tag of the wrong type")
    return np.array(struct.unpack_from(">3i", tag, 8)) / 65536


def _curve(tag: bytes) -> Curve:
    """Make the function of a `curv` or `para` tag that maps samples in [0, 1] to linear light."""
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        if count == 0:
            return lambda x: x
        values = struct.unpack_from(f">{count}H", tag, 12)
        if count == 1:
            return lambda x: x ** (values[0] / 256)
        return lambda x: np.interp(x, np.linspace(0, 1, count), np.array(values) / 65535)
    if tag[:4] != b"para":
        raise ValueError("a curve tag of the wrong type")
    (kind,) = struct.unpack_from(">H", tag, 8)
    if kind > 4:
        raise ValueError("a curve of an unknown kind")
    g, *rest = (v / 65536 for v in struct.unpack_from(f">{(1, 3, 4, 5, 7)[kind]}i", tag, 12))
    if kind == 0:
        return lambda x: x**g
    a, b = rest[:2]
    c, d, e, f = ([*rest[2:], 0.0, 0.0, 0.0, 0.0])[:4]
    if kind < 3:  # a power function where its base is positive, and the constant c below
        return lambda x: np.maximum(a * x + b, 0) ** g + (c if kind == 2 else 0)
    return lambda x: np.where(x >= d, np.maximum(a * x + b, 0) ** g + e, c * x + f)
