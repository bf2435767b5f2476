"""One small real instance of every architecture that spandrel registers, for tests that run over all of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Instance:
    """The recipe of a small network, and facts about its training."""

    settings: dict[str, Any]
    cls: str | None = None
    """Name of the class; default: the architecture's id."""
    side: int = 32
    """Side of the training crop in LQ pixels."""
    idle: tuple[str, ...] = ()
    """Parts of the names of parameters that the network's own forward never uses in training."""
    routed: tuple[str, ...] = ()
    """Parts of the names of parameters that a batch may leave out: experts that no image of it is sent to."""
    package: str = "spandrel.architectures"

    def build(self, architecture: str) -> nn.Module:
        """A random instance, the same each time."""
        module = importlib.import_module(f"{self.package}.{architecture}")
        cls: Callable[..., nn.Module] = getattr(module, self.cls or architecture)
        torch.manual_seed(0)
        network = cls(**self.settings)
        with torch.no_grad():
            for parameter in network.parameters():
                # Scales that begin at zero would keep the gradient from everything behind them.
                if (parameter == parameter.flatten()[0]).all():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return network


_EXTRA = "spandrel_extra_arches.architectures"
_SWIN = {"img_size": 16, "embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 8, "upscale": 2}
_SWIN_X2 = _SWIN | {"upsampler": "pixelshuffle"}
_CODEBOOK = {"gt_resolution": 512}  # the resolution for which the networks with a codebook have the fewest channels
_EMBEDDING = ("quantize_group.0.embedding",)
_UNET = {"enc_blk_nums": [1, 1], "middle_blk_num": 1, "dec_blk_nums": [1, 1], "width": 8}

INSTANCES: dict[str, Instance] = {
    "ATD": Instance(_SWIN_X2 | {"img_size": 64, "embed_dim": 12, "num_tokens": 8}),
    "AdaCode": Instance(_CODEBOOK | {"codebook_params": [[64, 32, 32]]}, idle=_EMBEDDING, package=_EXTRA),
    "AuraSR": Instance(
        {
            "dim": 8,
            "image_size": None,
            "input_image_size": None,
            "style_network": {"dim_in": 16, "dim_out": 64, "depth": 2},
            "skip_connect_scale": 0.4,
        },
        idle=(".attend.scale",),
    ),
    "CRAFT": Instance({"embed_dim": 128, "depths": [2], "num_heads": [2], "upscale": 2}),
    "Compact": Instance({"num_feat": 8, "num_conv": 2, "upscale": 2}),
    "DAT": Instance({"embed_dim": 128, "depth": [2], "num_heads": [2], "split_size": [8, 8]}),
    "DCTLSA": Instance({"nf": 20, "upscale": 2}),
    "DITN": Instance({"dim": 12, "ITL_blocks": 1, "SAL_blocks": 1, "upscale": 2}),
    "DRCT": Instance(_SWIN_X2 | {"depths": [6], "embed_dim": 12, "gc": 8}),
    "DRUNet": Instance({"in_nc": 4, "out_nc": 3, "nc": [8, 8, 16, 16], "nb": 2}),
    "DnCNN": Instance({"in_nc": 3, "out_nc": 3, "nc": 8, "nb": 5}),
    "ESRGAN": Instance({"num_filters": 16, "num_blocks": 1, "scale": 2}),
    "FBCNN": Instance({"nc": [8, 8, 16, 512], "nb": 2}),
    "FDAT": Instance(
        {"scale": 2, "embed_dim": 16, "num_groups": 1, "depth_per_group": 1, "num_heads": 2},
        idle=(".blocks.0.inter.sg.", ".blocks.1.inter.cg."),
    ),
    "FFTformer": Instance(
        {"dim": 8, "num_blocks": [1, 1, 1], "num_refinement_blocks": 1}, idle=("reduce_chan_level2.",)
    ),
    "FeMaSR": Instance(_CODEBOOK | {"codebook_params": [[256, 32, 32]]}, idle=_EMBEDDING, package=_EXTRA),
    "GRL": Instance(
        {
            "embed_dim": 16,
            "depths": [2],
            "num_heads_window": [2],
            "num_heads_stripe": [2],
            "anchor_window_down_factor": 4,
            "stripe_shift": True,
        }
    ),
    "HAT": Instance(_SWIN_X2 | {"window_size": 16, "embed_dim": 12, "squeeze_factor": 4, "num_feat": 8}),
    "HVICIDNet": Instance({"channels": [8, 8, 16, 32]}, idle=(".I_LCA5.",)),
    "IPT": Instance({"n_feats": 8, "num_layers": 1, "patch_size": 12}),
    "KBNet": Instance(_UNET, cls="KBNet_s"),
    "M3SNet": Instance({"width": 8, "enc_blk_nums": [1] * 4}, package=_EXTRA),
    "MIRNet2": Instance({"n_feat": 16, "n_MRB": 1}, package=_EXTRA),
    "MMRealSR": Instance(
        {
            "num_in_ch": 3,
            "num_out_ch": 3,
            "num_feat": 16,
            "num_block": 1,
            "num_grow_ch": 8,
            "num_feats": [8] * 4,
            "num_blocks": [1] * 4,
        }
    ),
    "MPRNet": Instance({"n_feat": 24, "scale_unetfeats": 8, "scale_orsnetfeats": 8, "num_cab": 1}, package=_EXTRA),
    "MixDehazeNet": Instance({"embed_dims": [8, 16, 32, 16, 8], "depths": [1] * 5}),
    "MoESR": Instance({"scale": 2, "dim": 16, "n_blocks": 1, "n_block": 1}),
    "MoSR": Instance({"upscale": 2, "n_block": 1, "dim": 16}),
    "NAFNet": Instance(_UNET),
    "OmniSR": Instance({"num_feat": 16, "up_scale": 2}),
    "PLKSR": Instance({"dim": 16, "n_blocks": 2, "upscaling_factor": 2}),
    "RCAN": Instance({"scale": 2, "n_resgroups": 1, "n_resblocks": 1, "n_feats": 16}),
    "RGT": Instance({"embed_dim": 128, "depth": [2], "num_heads": [2]}),
    "RealCUGAN": Instance({}, cls="UpCunet2x"),
    "RestoreFormer": Instance(
        {"n_embed": 16, "embed_dim": 32, "ch": 32, "z_channels": 32, "num_res_blocks": 1},
        side=64,
        idle=("encoder.down.5.attn.0.norm2.", "encoder.mid.attn_1.norm2.", "quantize.embedding"),
    ),
    "Restormer": Instance({"dim": 8, "num_blocks": [1] * 4, "num_refinement_blocks": 1}, package=_EXTRA),
    "RetinexFormer": Instance({"n_feat": 8, "stage": 1}),
    "SAFMN": Instance({"dim": 8, "n_blocks": 1, "upscaling_factor": 2}),
    "SAFMNBCIE": Instance({"dim": 8, "n_blocks": 1, "num_layers": 1}),
    "SCUNet": Instance({"config": [1] * 7}),
    "SPAN": Instance({"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8, "upscale": 2}, idle=(".eval_conv.",)),
    "SRFormer": Instance(_SWIN_X2, package=_EXTRA),
    "SeemoRe": Instance(
        {"scale": 2, "num_experts": 3, "num_layers": 1, "embedding_dim": 12}, routed=(".moe_layer.experts.",)
    ),
    "Swin2SR": Instance(_SWIN_X2),
    "SwiftSRGAN": Instance(
        {"num_channels": 8, "num_blocks": 1, "upscale_factor": 2}, idle=("block2.act.", "convblock.act.")
    ),
    "SwinIR": Instance(_SWIN_X2),
    "Uformer": Instance(
        {"img_size": 128, "embed_dim": 8, "depths": [1] * 9, "num_heads": [1] * 9, "token_mlp": "leff"}
    ),
}

UNTRAINED: dict[str, str] = {
    "CodeFormer": "94 M parameters at 512x512 that no setting makes smaller, most of them frozen by its own recipe",
    "DDColor": "colours gray pictures: what it is given stays as it is, so there is nothing to restore",
    "GFPGAN": "86 M parameters at 512x512 that no setting makes smaller; loads and trains, tried by hand",
    "LaMa": "inpaints under a mask",
    "MAT": "inpaints under a mask",
}
"""Architectures without an instance, each with its reason."""
