"""Preparation of the input images of a metric."""

from __future__ import annotations

import torch

from gmd_ray.errors import DataError


def eight_bit(image: torch.Tensor) -> torch.Tensor:
    """Clamp to [0, 1] and round to 8 bits, half to even, as a saved PNG would be; shape and dtype stay.

    Raises:
        DataError: NaN, which a clamp would keep, or infinity, which it would hide.
    """
    if not torch.isfinite(image).all():
        raise DataError("the image holds NaN or infinity; it cannot be measured")
    return torch.round(image.clamp(0, 1) * 255) / 255


def prepare(image: torch.Tensor, device: torch.device, crop_border: int = 0) -> torch.Tensor:
    """Crop one image (3, H, W) in [0, 1] to (1, 3, H - 2c, W - 2c), round it to 8 bits and move it to `device`.

    Raises:
        DataError: another shape, NaN, or a border that leaves nothing.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise DataError(f"a metric takes one RGB image of shape (3, H, W), not {tuple(image.shape)}")
    height, width = image.shape[-2:]
    if min(height, width) <= 2 * crop_border:
        raise DataError(f"crop_border={crop_border} leaves nothing of a {width}x{height} image")
    cropped = image[:, crop_border : height - crop_border, crop_border : width - crop_border]
    return eight_bit(cropped.detach().to(device)).unsqueeze(0)


def prepare_pair(
    name: str, image: torch.Tensor, reference: torch.Tensor | None, device: torch.device, crop_border: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prepare both images of a full-reference metric with `prepare`.

    Raises:
        DataError: no reference, or one of another size.
    """
    if reference is None:
        raise DataError(f"metric {name!r} needs a ground truth image")
    if image.shape != reference.shape:
        raise DataError(
            f"metric {name!r}: image {tuple(image.shape)} and reference {tuple(reference.shape)} differ in size"
        )
    return prepare(image, device, crop_border), prepare(reference, device, crop_border)


def crop_mask(mask: torch.Tensor, device: torch.device, crop_border: int = 0) -> torch.Tensor:
    """Crop a mask, bool (H, W), as `prepare` crops images, and move it to `device`.

    Raises:
        DataError: nothing is left of it.
    """
    height, width = mask.shape
    cropped = mask[crop_border : height - crop_border, crop_border : width - crop_border].to(device)
    if not cropped.any():
        raise DataError("the aligned image and its ground truth have no pixel in common")
    return cropped
