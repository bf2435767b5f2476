"""Networks of pyiqa whose checkpoint holds every weight, built without a download of their backbone first.

pyiqa asks timm for a pretrained backbone (NIMA: 220 MB) and then loads a checkpoint that overwrites all of it. Here the
backbone begins untrained, and the checkpoint is loaded strictly: one that lacks a weight is refused, so an untrained
backbone is never used.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import timm
import torch
from pyiqa.archs.arch_util import clean_state_dict
from pyiqa.archs.constants import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from pyiqa.archs.maniqa_arch import MANIQA, SaveOutput, TABlock
from pyiqa.archs.maniqa_swin import SwinTransformer
from pyiqa.default_model_configs import DEFAULT_CONFIGS
from pyiqa.utils.registry import ARCH_REGISTRY
from timm.models import is_model, register_model
from timm.models.vision_transformer import Block
from torch import nn


def untrained_options(name: str) -> dict[str, Any] | None:
    """Constructor options with which pyiqa builds the network of a metric without any weights.

    Args:
        name: pyiqa's name of the metric.

    Returns:
        None for a metric whose checkpoint does not hold every weight.
    """
    settings = DEFAULT_CONFIGS[name]["metric_opts"]
    architecture = settings["type"]
    if architecture == "MANIQA":
        return {"type": UntrainedMANIQA.__name__}
    if architecture in ("NIMA", "HyperNet"):
        return {"base_model_name": _untrained(settings.get("base_model_name", "resnet50")), "pretrained": False}
    if architecture == "CFANet" and settings["semantic_model_name"] == "resnet50":
        return {"backbone_pretrain": False, "pretrained": False}
    return None


def load_checkpoint(network: nn.Module, file: Path) -> None:
    """Load every weight of a network from a checkpoint, which may keep its state dict under `params`.

    Raises:
        RuntimeError: a checkpoint that lacks a weight, or has one that the network lacks.
        pickle.UnpicklingError: a file that holds more than tensors.
    """
    state = torch.load(file, map_location="cpu", weights_only=True)
    network.load_state_dict(clean_state_dict(state.get("params", state)), strict=True)


def _untrained(backbone: str) -> str:
    """The name of a timm model that is `backbone` with random weights, whatever `pretrained` says.

    pyiqa always passes `pretrained=True`; a model of our own name in timm's registry is free to ignore it.
    """
    name = f"gmd_ray_untrained_{backbone}"
    if not is_model(name):
        entry = functools.partial(_create_untrained, backbone)
        entry.__name__, entry.__module__ = name, __name__  # type: ignore[attr-defined]
        register_model(entry)
    return name


def _create_untrained(backbone: str, pretrained: bool = False, **options: Any) -> nn.Module:
    features_only = options.get("features_only", False)
    return timm.create_model(backbone, pretrained=False, features_only=features_only)


@ARCH_REGISTRY.register()
class UntrainedMANIQA(MANIQA):
    """MANIQA (Yang et al. 2022) with random weights; the module names are those of pyiqa's checkpoints.

    pyiqa's constructor has no option that leaves out timm's pretrained ViT, so this one builds the same modules.

    Args:
        scale: factor of the Swin blocks' residual branches; pyiqa's settings give it for each checkpoint.
    """

    def __init__(self, scale: float = 0.13, **_: Any) -> None:
        nn.Module.__init__(self)
        width, patch = 768, 8
        self.img_size, self.patch_size, self.test_sample = 224, patch, 20
        self.input_size = self.img_size // patch
        self.patches_resolution = (self.input_size, self.input_size)
        self.vit = timm.create_model("vit_base_patch8_224", pretrained=False)
        # MANIQA reads the tokens of four of the ViT's blocks, which these hooks collect.
        self.save_output = SaveOutput()
        for layer in self.vit.modules():
            if isinstance(layer, Block):
                layer.register_forward_hook(self.save_output)
        # Two stages of attention between channels, then a Swin transformer; the second has half the channels.
        tokens = self.input_size**2
        self.tablock1 = nn.ModuleList(TABlock(tokens) for _ in range(2))
        self.conv1 = nn.Conv2d(4 * width, width, 1)
        self.swintransformer1 = self._swin(width, scale)
        self.tablock2 = nn.ModuleList(TABlock(tokens) for _ in range(2))
        self.conv2 = nn.Conv2d(width, width // 2, 1)
        self.swintransformer2 = self._swin(width // 2, scale)
        # The score is a mean over patches, each with a weight of its own.
        self.fc_score = _head(width // 2, nn.ReLU())
        self.fc_weight = _head(width // 2, nn.Sigmoid())
        self.default_mean = torch.Tensor(IMAGENET_INCEPTION_MEAN).view(1, 3, 1, 1)
        self.default_std = torch.Tensor(IMAGENET_INCEPTION_STD).view(1, 3, 1, 1)

    def _swin(self, width: int, scale: float) -> nn.Module:
        return SwinTransformer(
            patches_resolution=self.patches_resolution,
            depths=[2, 2],
            num_heads=[4, 4],
            embed_dim=width,
            window_size=4,
            dim_mlp=768,
            scale=scale,
        )


def _head(width: int, last: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 1), last)
