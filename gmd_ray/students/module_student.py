"""A student made of any network that maps an image to an image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmd_ray.config import StudentConfig
from gmd_ray.devices import choose_device
from gmd_ray.errors import ModelError
from gmd_ray.images.tiling import grid_multiple, tiled
from gmd_ray.students.common import evaluating, fingerprint, say_once, tiles_at_once
from gmd_ray.students.losses import Perceptual, crop_losses
from gmd_ray.students.receptive import overlap_for
from gmd_ray.students.rgb_network import luma

_MUCH = 2.0
"""The number of times that overlapping tiles may compute each pixel before the log suggests larger tiles."""


def chroma(rgb: Tensor, scale: int = 1) -> Tensor:
    """Return RGB minus its luma, bicubically enlarged: (B, 3, H, W) -> (B, 3, H * scale, W * scale).

    Adding the result to another luma gives that luma with the Cb and Cr of these colours. For gray pixels the result is
    exactly 0, so gray images stay gray.
    """
    difference = rgb - luma(rgb)
    difference = difference.masked_fill((rgb == rgb[:, :1]).all(1, keepdim=True), 0)
    return difference if scale == 1 else F.interpolate(difference, scale_factor=scale, mode="bicubic")


def _is_gray(rgb: Tensor) -> bool:
    return bool((rgb == rgb[:, :1]).all())


class ModuleStudent:
    """A regression network as a `gmd_ray.students.protocol.Student`.

    To use your own network, set `student.factory` to a function: `factory(cfg)` builds the network from `cfg.path` and
    returns `ModuleStudent(cfg, network, save=...)`.
    """

    scale: int
    """Output side divided by input side."""
    module: nn.Module
    """The network."""
    fingerprint: str
    """Digest of the loaded weights and the settings that affect pixels, independent of the file's path and format."""

    def __init__(
        self,
        cfg: StudentConfig,
        module: nn.Module,
        *,
        scale: int = 1,
        save: Callable[[Path], None] | None = None,
        name: str | None = None,
        weights: Mapping[str, Tensor] | None = None,
        gray: bool = False,
        loss: str = "l1",
    ) -> None:
        """Wrap a network and move it to `cfg.device`.

        Args:
            cfg: settings of tiling, precision and device.
            module: network that maps float RGB in [0, 1], (B, 3, H, W) of any size, to (B, 3, H * scale, W * scale).
            scale: output side divided by input side.
            save: function that writes the network's present weights to a path, in the layout of its own tools.
            name: name of the architecture, for the fingerprint; default: the class name.
            weights: weights that the fingerprint covers; default: the module's state.
            gray: True if the three output channels are equal. Such a network learns the luma of the ground truth; of
                colour images it restores the luma, and their chroma is kept.
            loss: pixel loss: l1, l2, charbonnier or psnr.
        """
        self.scale, self.loss = scale, loss
        self.perceptual: tuple[float, Perceptual] | None = None
        """Weight and network of the perceptual term in `training_loss`; None without one."""
        self.module = module.to(choose_device(cfg.device, "student.device"))
        self.architecture = type(module).__name__ if name is None else name
        self._write, self._gray, self._color_seen = save, gray, False
        self._tile, self._overlap, self._dtype = cfg.tile, cfg.tile_overlap or 0, cfg.dtype
        self._batch = tiles_at_once(cfg, next(self.module.parameters()).device)
        if cfg.tile and cfg.tile_overlap is None:
            self._overlap = overlap_for(self.module, scale, cfg.tile)
        self._grid = grid_multiple(cfg.tile, self._overlap)
        work = (cfg.tile / (cfg.tile - self._overlap)) ** 2 if cfg.tile else 1.0
        if work > _MUCH and cfg.tile_overlap is None:
            say_once(
                f"student.tile={cfg.tile}: tiles overlap by {self._overlap} pixels, as this student's receptive field "
                f"needs, so each pixel is computed {work:.1f} times; a larger student.tile is faster"
            )
        settings = {"architecture": self.architecture, "dtype": cfg.dtype, "tile": cfg.tile}
        if cfg.tile:
            settings |= {"tile_overlap": self._overlap, "tile_grid": self._grid}
        if gray:
            settings["chroma"] = "kept"  # a store must not mix these results with gray ones of the same weights
        self.fingerprint = fingerprint(module.state_dict() if weights is None else weights, settings)

    def restore(self, lq: Tensor, ids: Sequence[str] | None = None) -> Tensor:
        """Restore a batch of images of any size from 1x1, in tiles if `student.tile` is set.

        A gray student restores the BT.601 luma and keeps the chroma, bicubically enlarged.

        Args:
            lq: (B, 3, H, W) in [0, 1], on any device.
            ids: ignored, as nothing is drawn.

        Returns:
            (B, 3, H * scale, W * scale), float32 in [0, 1], on the device of `lq`.
        """
        assert lq.shape[1:-2] == (3,), f"expected (B, 3, H, W), got {tuple(lq.shape)}"
        device = next(self.module.parameters()).device
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=self._dtype == "bfloat16")
        image = lq.to(device, torch.float32)
        with torch.no_grad(), evaluating(self.module):
            with autocast:
                restored = tiled(self.module, image, self._tile, self._overlap, self.scale, self._grid, self._batch)
            restored = restored.float().clamp(0, 1)
            if self._gray:
                restored = (restored + chroma(image, self.scale)).clamp(0, 1)
            elif not self._color_seen:
                self._look_at_color(image, restored)
        return restored.to(lq.device)

    def _look_at_color(self, image: Tensor, restored: Tensor) -> None:
        """Warn if the first colour image comes back gray from a network that was not declared as gray."""
        self._color_seen = not _is_gray(image)
        if self._color_seen and _is_gray(restored):
            say_once(
                f"{self.architecture} makes gray images of colour ones; ModuleStudent(..., gray=True) keeps colour",
                logging.WARNING,
            )

    def training_loss(
        self,
        lq: Tensor,
        hq: Tensor,
        forward: nn.Module | None = None,
        *,
        reduce: bool = True,
        keys: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """Compute the loss of a batch of crops; see `Student.training_loss`.

        A gray student learns the luma of `hq`. `keys` are ignored, as nothing is drawn.

        Returns:
            the mean loss, and `loss` and `psnr` (dB) to log. Without `reduce`, the loss of each crop, (B,), and {}.
        """
        restored = (self.module if forward is None else forward)(lq).float()
        truth = luma(hq) if self._gray else hq
        losses = crop_losses(restored, truth.expand_as(restored), self.loss)
        if self.perceptual is not None:
            weight, network = self.perceptual
            losses = losses + weight * network.to(hq.device)(restored, truth.expand_as(restored))
        if not reduce:
            return losses, {}
        loss = losses.mean()
        psnr = -10 * (restored - truth).detach().square().mean().clamp_min(1e-10).log10()
        value, decibel = torch.stack([loss.detach(), psnr]).tolist()  # a single synchronisation with the device
        return loss, {"loss": value, "psnr": decibel}

    def save(self, path: str | Path) -> None:
        """Write the weights with the `save` function given at construction.

        Raises:
            ModelError: the student was made without one.
        """
        if self._write is None:
            raise ModelError(f"cannot save {path}: {self.architecture} was made without save=, see ModuleStudent")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._write(Path(path))
