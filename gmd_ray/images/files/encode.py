"""Conversion of image arrays to lossless 8-bit PNG and back, and to tensors and back."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from gmd_ray.errors import DataError
from gmd_ray.images.files.decode import to_8bit

if TYPE_CHECKING:
    import torch


def encode_png(image: np.ndarray, level: int = 1) -> bytes:
    """Encode one image as 8-bit RGB PNG.

    Args:
        image: RGB, shape (H, W, 3): float32, which is clipped to [0, 1] and rounded half to even, or uint8.
        level: zlib level, 0 to 9. Level 1 makes files a few per cent larger than level 6, several times faster.

    Raises:
        DataError: the image holds NaN or infinity.
    """
    assert image.shape[2:] == (3,), image.shape
    if image.dtype == np.uint8:
        pixels = image
    elif np.isfinite(image).all():
        pixels = to_8bit(image)
    else:
        raise DataError("image holds NaN or infinity: the model that made it diverged")
    _, code = cv2.imencode(".png", pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, level])
    return code.tobytes()


def decode_png(data: bytes) -> np.ndarray:
    """Decode a PNG that `encode_png` made. Use `decode_image` for any other file.

    Returns:
        float32 RGB in [0, 1], shape (H, W, 3).

    Raises:
        DataError: the bytes are not a complete PNG.
    """
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if pixels is None:
        raise DataError("not a whole PNG")
    return np.ascontiguousarray(pixels[..., ::-1]).astype(np.float32) / 255


def png_size(data: bytes) -> tuple[int, int]:
    """Read (width, height) in pixels from the header of a PNG that `encode_png` made, without decoding it."""
    return struct.unpack(">II", data[16:24])


def to_tensor(images: Sequence[np.ndarray]) -> torch.Tensor:
    """Stack images of one size, each (H, W, 3), into a float32 tensor (B, 3, H, W)."""
    import torch  # imported late: Ray tasks that only read and encode files start ten times faster without it

    return torch.from_numpy(np.stack(images).astype(np.float32, copy=False)).permute(0, 3, 1, 2).contiguous()


def to_images(t: torch.Tensor) -> list[np.ndarray]:
    """Split a tensor (B, 3, H, W) on any device into float32 images (H, W, 3), with unchanged values."""
    return list(t.detach().float().cpu().permute(0, 2, 3, 1).contiguous().numpy())
