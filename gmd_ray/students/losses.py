"""Pixel losses and a perceptual term, with one value for each crop of a batch.

See docs/method.md, "Mixing and losses", for the settings of published restorers.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from gmd_ray.errors import ConfigError
from gmd_ray.weights import node_copy

LOSSES = ("l1", "l2", "charbonnier", "psnr")
_CHARBONNIER_EPS = 1e-9
"""Term under the root of the Charbonnier loss; the value of the SwinIR denoisers."""
_PSNR_EPS = 1e-8
"""Term added to the mean squared error in the PSNR loss; NAFNet's value."""

_FEATURES = {2: 0.1, 7: 0.1, 16: 1.0, 25: 1.0, 34: 1.0}
"""Layer index -> weight of VGG19's conv1_2, conv2_2, conv3_4, conv4_4 and conv5_4, before activation (Real-ESRGAN)."""


def crop_losses(restored: Tensor, hq: Tensor, kind: str) -> Tensor:
    """Compute one loss for each image.

    Args:
        restored: (B, C, H, W).
        hq: (B, C, H, W).
        kind: `l1`, the mean absolute error; `l2`, the mean squared error; `charbonnier`, the mean of
            sqrt(error^2 + 1e-9); or `psnr`, 10 log10(mean squared error + 1e-8), which is -PSNR in dB (NAFNet).

    Returns:
        (B,).
    """
    assert kind in LOSSES, kind
    difference = restored - hq
    if kind == "l1":
        return difference.abs().flatten(1).mean(1)
    square = difference.square()
    if kind == "charbonnier":
        return (square + _CHARBONNIER_EPS).sqrt().flatten(1).mean(1)
    mse = square.flatten(1).mean(1)
    return mse if kind == "l2" else 10 * (mse + _PSNR_EPS).log10()


class Perceptual(nn.Module):
    """The weighted L1 distance of frozen VGG19 features, with Real-ESRGAN's layers and weights.

    Args:
        weights: local file of torchvision's VGG19 (a state dict with `features.*`). Nothing is downloaded.

    Raises:
        ConfigError: the file does not exist, or does not hold VGG19.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        from torchvision.models import vgg19

        key = f"training.perceptual_weights={weights}"
        file = node_copy(str(weights))
        if not file.is_file():
            raise ConfigError(f"{key}: no such file; save torchvision's vgg19 state dict there")
        with torch.device("meta"):
            layers = vgg19(weights=None).features[: max(_FEATURES) + 1]
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            own = {name.removeprefix("features."): value for name, value in state.items()}
            layers.load_state_dict({name: own[name] for name in layers.state_dict()}, assign=True)
        except (RuntimeError, KeyError, AttributeError, EOFError, pickle.UnpicklingError) as error:
            raise ConfigError(f"{key}: not torchvision's vgg19 state dict ({type(error).__name__})") from error
        for layer in layers:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # it would overwrite the features in front of it, which are compared
        self._layers = layers.requires_grad_(False).eval()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    def forward(self, restored: Tensor, hq: Tensor) -> Tensor:
        """Compare RGB images in [0, 1], both (B, 3, H, W) with sides of at least 16 pixels; returns (B,)."""
        x, y = (restored - self.mean) / self.std, (hq - self.mean) / self.std
        total = torch.zeros(len(x), device=x.device)
        for index, layer in enumerate(self._layers):
            x = layer(x)
            with torch.no_grad():
                y = layer(y)
            if index in _FEATURES:
                total = total + _FEATURES[index] * (x - y).abs().flatten(1).mean(1)
        return total
