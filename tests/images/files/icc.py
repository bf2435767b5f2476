"""ICC profiles small enough to write down, whose effect is known in closed form."""

from __future__ import annotations

import struct

import numpy as np

Colorants = tuple[tuple[float, float, float], ...]
SRGB: Colorants = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
"""XYZ of red, green and blue, for the white D50."""
ADOBE: Colorants = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
P3: Colorants = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
LINEAR = b"curv" + bytes(4) + struct.pack(">I", 0)
"""The identity as a `curv` tag."""


def gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))


def table(values: np.ndarray) -> bytes:
    """A curve given at equal steps."""
    return b"curv" + bytes(4) + struct.pack(">I", len(values)) + np.rint(values * 65535).astype(">u2").tobytes()


def parametric(kind: int, *parameters: float) -> bytes:
    return (
        b"para"
        + bytes(4)
        + struct.pack(">Hxx", kind)
        + b"".join(struct.pack(">i", round(p * 65536)) for p in parameters)
    )


def srgb_parametric() -> bytes:
    return parametric(3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def rgb(curve: bytes, colorants: Colorants = SRGB, name: str = "test profile", version: int = 2) -> bytes:
    """Make a profile of curves and a matrix."""
    tags = {key: _xyz(*value) for key, value in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colorants, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    return profile(b"mntr", b"RGB ", b"XYZ ", tags, name, version)


def gray(curve: bytes, pcs: bytes = b"XYZ ", name: str = "test profile") -> bytes:
    return profile(b"mntr", b"GRAY", pcs, {b"kTRC": curve}, name)


def linear_rgb() -> bytes:
    """Make a profile of sRGB's primaries without a tone curve, whose conversion to sRGB is sRGB's curve alone."""
    return rgb(LINEAR)


def linear_gray() -> bytes:
    """Gray without a tone curve."""
    return gray(LINEAR)


def linear_rgb_tables(name: str = "test profile") -> bytes:
    """`linear_rgb` as a lookup table: two points for each channel, between which XYZ goes straight."""
    corners = [np.array([r, g, b]) @ np.array(SRGB) for r in (0, 1) for g in (0, 1) for b in (0, 1)]
    return profile(b"scnr", b"RGB ", b"XYZ ", {b"A2B0": _straight(corners, 3)}, name)


def linear_gray_tables() -> bytes:
    """`linear_gray` as a lookup table."""
    return profile(b"scnr", b"GRAY", b"XYZ ", {b"A2B0": _straight([np.zeros(3), np.array([0.9642, 1, 0.8249])], 1)})


def constant_cmyk(lightness: float) -> bytes:
    """Every ink comes out as the one neutral of this CIE L*."""
    lab = bytes([round(lightness / 100 * 255), 128, 128])
    identity = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + _identity()
    lut += identity * 4 + lab * 2**4 + identity * 3
    return profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut})


def lab() -> bytes:
    """Make a profile of CIE Lab samples."""
    identity = bytes(range(256))
    cells = b"".join(bytes([l, a, b]) for l in (0, 255) for a in (0, 255) for b in (0, 255))  # noqa: E741
    lut = b"mft1" + bytes(4) + bytes([3, 3, 2, 0]) + _identity() + identity * 3 + cells + identity * 3
    return profile(b"spac", b"Lab ", b"Lab ", {b"A2B0": lut})


def srgb_encode(linear: np.ndarray) -> np.ndarray:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


def srgb_decode(encoded: np.ndarray) -> np.ndarray:
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def to_srgb(light: np.ndarray, colorants: Colorants) -> np.ndarray:
    """Linear light of these primaries, (..., 3), as sRGB."""
    matrix = np.linalg.inv(np.array(SRGB).T) @ np.array(colorants).T
    return srgb_encode(np.clip(light @ matrix.T, 0, 1))


def profile(
    kind: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes], name: str = "test profile", version: int = 2
) -> bytes:
    text = name.encode() + b"\0"
    tags = tags | {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": _xyz(0.9642, 1.0, 0.8249),
    }
    offset, entries, body = 132 + 12 * len(tags), b"", b""
    for key, data in tags.items():
        entries += key + struct.pack(">II", offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    date = struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    release = {2: 0x02400000, 4: 0x04300000}[version]
    head = struct.pack(">I4sI4s4s4s", offset + len(body), b"lcms", release, kind, space, pcs) + date + b"acsp"
    head += bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + entries + body


def _xyz(x: float, y: float, z: float) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(v * 65536)) for v in (x, y, z))


def _straight(corners: list[np.ndarray], channels: int) -> bytes:
    """A table of two points for each channel, with the XYZ of each corner."""
    cells = np.rint(np.clip(np.concatenate(corners), 0, 1.99) * 32768).astype(">u2").tobytes()
    lut = b"mft2" + bytes(4) + bytes([channels, 3, 2, 0]) + _identity() + struct.pack(">HH", 2, 2)
    return lut + struct.pack(">HH", 0, 65535) * channels + cells + struct.pack(">HH", 0, 65535) * 3


def _identity() -> bytes:
    """The matrix of a lookup table, which does nothing."""
    return b"".join(struct.pack(">i", v << 16) for v in (1, 0, 0, 0, 1, 0, 0, 0, 1))
