"""Alignment of an output to its ground truth before full-reference metrics, as RealBlur's figures are measured.

A camera rig's two pictures of one scene differ by a small movement and by their brightness, and a restorer may move its
image too. The published evaluation of RealBlur (Rim et al. 2020) scales the output by one factor of brightness, finds a
homography by the enhanced correlation coefficient (Evangelidis and Psarakis 2008), and counts the pixels that the moved
output covers.
"""

from __future__ import annotations

import cv2
import numpy as np

from gmd_ray.errors import DataError

ITERATIONS = 100
BLUR = 5
"""Side in pixels of the Gaussian window that smooths both images while the movement is found."""


def align_to(image: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move an image onto its ground truth.

    Args:
        image, truth: float32 RGB in [0, 1], (H, W, 3), of one size.

    Returns:
        (the moved image, float32 (H, W, 3) in [0, 1]; True (H, W) for the pixels that it covers).

    Raises:
        DataError: sizes that differ, or images of which no movement leads to the other.
    """
    if image.shape != truth.shape:
        raise DataError(f"alignment: the output is {_size(image)}, the ground truth {_size(truth)}")
    energy = float(np.sum(image.astype(np.float64) ** 2))
    scaled = image * np.float32(np.sum(truth.astype(np.float64) * image) / energy) if energy else image
    warp = np.eye(3, dtype=np.float32)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, ITERATIONS, 0)
    gray = [cv2.cvtColor(side.astype(np.float32), cv2.COLOR_RGB2GRAY) for side in (truth, scaled)]
    everywhere = np.ones(image.shape[:2], np.uint8)
    try:
        _, found = cv2.findTransformECC(gray[0], gray[1], warp, cv2.MOTION_HOMOGRAPHY, stop, everywhere, BLUR)
    except cv2.error as error:
        raise DataError("alignment: no movement leads from the output to the ground truth") from error
    size, back = (image.shape[1], image.shape[0]), cv2.WARP_INVERSE_MAP
    moved = cv2.warpPerspective(scaled, found, size, flags=cv2.INTER_CUBIC | back, borderMode=cv2.BORDER_REFLECT)
    flags = cv2.INTER_NEAREST | back
    covered = np.asarray(cv2.warpPerspective(everywhere, found, size, flags=flags, borderMode=cv2.BORDER_CONSTANT))
    if not covered.any():
        raise DataError("alignment: the moved output covers no pixel of the ground truth")
    return np.clip(moved, 0, 1).astype(np.float32), covered.astype(bool)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
