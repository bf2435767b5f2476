"""Any network that maps an image to an image, as a student."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmd_ray.config import StudentConfig
from gmd_ray.errors import ModelError
from gmd_ray.images.tiling import grid_multiple, tiled
from gmd_ray.students.common import device_of, evaluating, fingerprint, say_once, tiles_at_once
from gmd_ray.students.losses import Perceptual, crop_losses
from gmd_ray.students.receptive import overlap_for
from gmd_ray.students.rgb_network import luma

_MUCH = 2.0
"""Times that tiles compute each pixel, above which it is told."""


def chroma(rgb: Tensor, scale: int = 1) -> Tensor:
    """What is left of colours when the luma is taken off, (B, 3, H, W) -> (B, 3, H * scale, W * scale).

    Gray pixels have none: exactly 0, so that a gray image stays gray to the last digit. Added to another luma it gives
    that luma with the Cb and Cr of these colours.
    """
    difference = rgb - luma(rgb)
    difference = difference.masked_fill((rgb == rgb[:, :1]).all(1, keepdim=True), 0)
    return difference if scale == 1 else F.interpolate(difference, scale_factor=scale, mode="bicubic")


def _is_gray(rgb: Tensor) -> bool:
    return bool((rgb == rgb[:, :1]).all())


class ModuleStudent:
    """A regression network behind `gmd_ray.students.protocol.Student`.

    A team's own network becomes a student in a factory that `student.factory` names: `factory(cfg)` builds the network
    from `cfg.path` and returns `ModuleStudent(cfg, network, save=...)`.
    """

    scale: int
    module: nn.Module
    fingerprint: str
    """Of the weights as loaded and the settings that change pixels; the file's path and container do not count."""

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
        """Take a network as it is; it is moved to `cfg.device`.

        Args:
            cfg: tiling, precision and device.
            module: maps float RGB in [0, 1], (B, 3, H, W) of any size, to (B, 3, H * scale, W * scale).
            scale: output side over input side.
            save: writes the network's present weights to a path, in the layout that its own tools read.
            name: of the architecture, for the fingerprint; default: the class name.
            weights: what the fingerprint counts; default: the module's state.
            gray: the network's three output channels are one, which learns the luma of the ground truth; in colour
                images it restores the luma, and their chroma is kept.
            loss: l1, l2, charbonnier or psnr, over pixels.
        """
        self.scale, self.loss = scale, loss
        self.perceptual: tuple[float, Perceptual] | None = None
        """Weight and network of a perceptual term of `training_loss`."""
        self.module = module.to(device_of(cfg.device))
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
                f"student.tile={cfg.tile}: tiles overlap by {self._overlap}, as far as this student looks, and compute "
                f"each pixel {work:.1f} times; a larger student.tile is faster"
            )
        settings = {"architecture": self.architecture, "dtype": cfg.dtype, "tile": cfg.tile}
        if cfg.tile:
            settings |= {"tile_overlap": self._overlap, "tile_grid": self._grid}
        if gray:
            settings["chroma"] = "kept"  # rows that were made in gray alone must not be mixed with these
        self.fingerprint = fingerprint(module.state_dict() if weights is None else weights, settings)

    def restore(self, lq: Tensor, ids: Sequence[str] | None = None) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H * scale, W * scale) in [0, 1], float32, on the device of `lq`; any size from 1x1.

        A gray student restores the luma (BT.601); what the colours differ from it by stays, bicubically enlarged.
        Large images go through in tiles, `cfg.pool.batch_size` of them at once. `ids` are not needed: nothing is drawn.
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
        """Say so where the first colour image comes back gray from a network that was not declared to be."""
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
        """Mean loss over a batch, and `loss` and `psnr` (dB) to log. A gray student learns the luma of `hq`.

        Without `reduce` each crop's loss, (B,), and nothing to log. `keys` are not needed: nothing is drawn.
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
        value, decibel = torch.stack([loss.detach(), psnr]).tolist()  # one wait for the device, not two
        return loss, {"loss": value, "psnr": decibel}

    def save(self, path: str | Path) -> None:
        """Write the weights in the layout that the network's own tools read, by the `save` it was made with.

        Raises:
            ModelError: it was made without one.
        """
        if self._write is None:
            raise ModelError(f"cannot save {path}: {self.architecture} was made without save=, see ModuleStudent")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._write(Path(path))
