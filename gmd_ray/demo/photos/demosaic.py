"""Colour filter mosaics: what an RGGB sensor records of an image, and the linear interpolation that undoes it.

The filters are those of Malvar, He and Cutler, "High-quality linear interpolation for demosaicing of Bayer-patterned
color images", ICASSP 2004, figure 2.
"""

from __future__ import annotations

import cv2
import numpy as np

_GREEN = (
    np.array([[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]], np.float32) / 8
)
"""Green at a red or blue pixel."""

_ALONG_ROW = (
    np.array(
        [[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]], np.float32
    )
    / 8
)
"""Red or blue at a green pixel whose neighbours of that colour lie in its row."""

_ALONG_COLUMN = _ALONG_ROW.T.copy()
"""The same for neighbours in its column."""

_DIAGONAL = (
    np.array(
        [[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0]], np.float32
    )
    / 8
)
"""Red at a blue pixel, or blue at a red one."""

_EVEN, _ODD = slice(0, None, 2), slice(1, None, 2)


def mosaic(rgb: np.ndarray) -> np.ndarray:
    """Keep one colour a pixel, in the pattern RG over GB.

    Args:
        rgb: (H, W, 3), H and W even.

    Returns:
        (H, W) of the same type.
    """
    values = rgb[..., 1].copy()
    values[_EVEN, _EVEN] = rgb[_EVEN, _EVEN, 0]
    values[_ODD, _ODD] = rgb[_ODD, _ODD, 2]
    return values


def demosaic(values: np.ndarray) -> np.ndarray:
    """Interpolate the two missing colours of each pixel; borders are mirrored without repeating the edge.

    Args:
        values: float32, (H, W), the pattern of `mosaic`.

    Returns:
        float32 RGB, (H, W, 3), which may exceed the range of the input.
    """

    def filtered(kernel: np.ndarray) -> np.ndarray:
        return cv2.filter2D(values, cv2.CV_32F, kernel, borderType=cv2.BORDER_REFLECT_101)

    green, row, column, diagonal = (filtered(kernel) for kernel in (_GREEN, _ALONG_ROW, _ALONG_COLUMN, _DIAGONAL))
    rgb = np.stack([values] * 3, axis=-1)
    for rows, columns in ((_EVEN, _EVEN), (_ODD, _ODD)):
        rgb[rows, columns, 1] = green[rows, columns]
    for own, other, channel in ((_EVEN, _ODD, 0), (_ODD, _EVEN, 2)):
        rgb[own, other, channel] = row[own, other]
        rgb[other, own, channel] = column[other, own]
        rgb[other, other, channel] = diagonal[other, other]
    return rgb
