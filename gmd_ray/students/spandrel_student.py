"""Students of every architecture that spandrel loads: restored with, fine-tuned and saved back in their own layout."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gmd_ray.config import StudentConfig
from gmd_ray.errors import ConfigError, ModelError, nearest
from gmd_ray.images.tiling import tiled
from gmd_ray.students.checkpoint_layout import Checkpoint, Layout, map_keys, read_checkpoint
from gmd_ray.students.rgb_network import RgbNetwork, luma

LOSSES = ("l1", "l2", "charbonnier")
_DTYPES = ("float32", "bfloat16")
_CHARBONNIER_EPS = 1e-9
"""Under the root; the value of the SwinIR denoisers (restoration.md 1.5)."""


class SpandrelStudent:
    """A restorer read from a checkpoint; see `gmd_ray.students.protocol.Student`."""

    scale: int
    module: nn.Module
    fingerprint: str
    """Of the weights as loaded and the settings that change pixels; the file's path and container do not count."""

    def __init__(
        self, cfg: StudentConfig, network: RgbNetwork, layout: Layout, architecture: str, loss: str = "l1"
    ) -> None:
        self.scale = network.scale
        self.module = network
        self.architecture = architecture
        self.loss = loss
        self._network = network
        self._layout = layout
        self._tile, self._overlap, self._dtype = cfg.tile, cfg.tile_overlap, cfg.dtype
        settings = {"architecture": architecture, "dtype": cfg.dtype, "tile": cfg.tile}
        if cfg.tile:
            settings["tile_overlap"] = cfg.tile_overlap
        self.fingerprint = _fingerprint(network, settings)

    def restore(self, lq: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H * scale, W * scale) in [0, 1], float32, on the device of `lq`; any size from 1x1."""
        assert lq.shape[1:-2] == (3,), f"expected (B, 3, H, W), got {tuple(lq.shape)}"
        device = next(self.module.parameters()).device
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=self._dtype == "bfloat16")
        with torch.no_grad(), _evaluating(self.module), autocast:
            restored = tiled(self.module, lq.to(device, torch.float32), self._tile, self._overlap, self.scale)
        return restored.clamp(0, 1).to(lq.device)

    def training_loss(
        self, lq: Tensor, hq: Tensor, forward: nn.Module | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Mean pixel loss over a batch, and `loss` and `psnr` (dB) to log. A gray student learns the luma of `hq`."""
        restored = (self.module if forward is None else forward)(lq).float()
        difference = restored - (luma(hq) if self._network.output_channels == 1 else hq)
        square = difference.square()
        if self.loss == "l1":
            loss = difference.abs().mean()
        elif self.loss == "l2":
            loss = square.mean()
        else:
            loss = (square + _CHARBONNIER_EPS).sqrt().mean()
        psnr = -10 * square.detach().mean().clamp_min(1e-10).log10()
        value, decibel = torch.stack([loss.detach(), psnr]).tolist()  # one wait for the device, not two
        return loss, {"loss": value, "psnr": decibel}

    def save(self, path: str | Path) -> None:
        """Write the weights in the layout the checkpoint came in, each key in its own precision.

        The file is read back before it takes its place, and must restore a test image as this student does.
        `params` and `params_ema` both get these weights.

        Raises:
            ModelError: another file ending than the checkpoint's, weights that diverged, or a file that restores
                otherwise when read back.
        """
        path = Path(path)
        if path.suffix.lower() != self._layout.suffix:
            raise ModelError(
                f"cannot save {path}: the student keeps the layout it came in, a {self._layout.suffix} file"
            )
        network = copy.deepcopy(self._network).cpu().eval()
        self._layout.round_(network.network.state_dict())
        # Before the state is taken: some networks fold their training branches into inference weights when called.
        expected = _test_output(network)
        if not expected.isfinite().all():
            raise ModelError(f"cannot save {path}: the weights give values that are not finite; the training diverged")
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
        try:
            self._layout.write(draft, network.network.state_dict())
            written = RgbNetwork(_build(read_checkpoint(draft).weights, draft)).eval()
            tolerance = 1e-5 * max(1.0, expected.abs().max().item())
            if not torch.allclose(_test_output(written), expected, rtol=0, atol=tolerance):
                raise ModelError(
                    f"cannot save {path}: {self.architecture} restores otherwise when read back; the file was not kept"
                )
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def load_student(cfg: StudentConfig, loss: str = "l1", *, stochastic_depth: bool = False) -> SpandrelStudent:
    """Load a checkpoint of any architecture that spandrel (or spandrel_extra_arches, where installed) knows.

    Args:
        cfg: path, tiling, precision and device.
        loss: of `training_loss`: l1, l2 or charbonnier.
        stochastic_depth: keep the random skipping of residual branches that some architectures train with (SwinIR:
            up to 0.1). Off by default: it regularises training from scratch and only adds noise to a short adaptation.

    Raises:
        ConfigError: a setting that does not exist.
        ModelError: a file that cannot be loaded, or whose architecture could not be saved back in its layout.
    """
    if cfg.path is None:
        raise ConfigError("student.path is not set: give the checkpoint file of the restorer to adapt")
    if cfg.dtype not in _DTYPES:
        raise ConfigError(f"student.dtype={cfg.dtype}: {nearest(cfg.dtype, _DTYPES)}")
    if loss not in LOSSES:
        raise ConfigError(f"training.loss={loss}: {nearest(loss, LOSSES)}")
    if cfg.tile < 0 or (cfg.tile > 0 and not 0 <= cfg.tile_overlap < cfg.tile):
        raise ConfigError(f"student.tile={cfg.tile} with tile_overlap={cfg.tile_overlap}: 0 <= tile_overlap < tile")
    device = _device(cfg.device)
    path = Path(cfg.path)
    checkpoint = read_checkpoint(path)
    descriptor = _build(checkpoint.weights, path)
    architecture = str(descriptor.architecture.id)
    layout = _layout(checkpoint, descriptor, path)
    if cfg.dtype == "bfloat16" and not descriptor.supports_bfloat16:
        raise ConfigError(f"student.dtype=bfloat16: {architecture} does not support it, use float32")
    if not stochastic_depth:
        for module in descriptor.model.modules():
            if type(module).__name__ == "DropPath":
                module.drop_prob = 0.0
    return SpandrelStudent(cfg, RgbNetwork(descriptor).to(device), layout, architecture, loss)


@functools.cache
def _registry() -> Any:
    from spandrel import MAIN_REGISTRY

    # Architectures under restrictive licences (Restormer, MPRNet); a package of their own that the user chooses.
    with contextlib.suppress(ImportError):
        import spandrel_extra_arches

        spandrel_extra_arches.install(ignore_duplicates=True)
    return MAIN_REGISTRY


def _build(weights: dict[str, Any], path: Path) -> Any:
    """The spandrel descriptor of these weights, on the CPU in float32."""
    from spandrel import ImageModelDescriptor

    candidates = (entry for entry in _registry().architectures("detection") if entry.detect(weights))
    found = next(candidates, None)
    if found is None:
        raise ModelError(
            f"student checkpoint {path}: no architecture known to spandrel has its keys ({next(iter(weights))}, ...); "
            f"Restormer, MPRNet and some others need the package spandrel_extra_arches"
        )
    name = found.architecture.id
    try:
        descriptor = found.architecture.load(dict(weights))
    except (RuntimeError, KeyError, ValueError, IndexError, TypeError, AttributeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"student checkpoint {path}: looks like {name} but does not load as one ({reason})") from error
    if not isinstance(descriptor, ImageModelDescriptor):
        raise ModelError(f"student checkpoint {path}: {name} inpaints under a mask; a student takes an image alone")
    if descriptor.input_channels not in (1, 3) or descriptor.output_channels not in (1, 3):
        channels = f"{descriptor.input_channels} to {descriptor.output_channels}"
        raise ModelError(f"student checkpoint {path}: this {name} maps {channels} channels, a student's are 1 or 3")
    return descriptor


def _layout(checkpoint: Checkpoint, descriptor: Any, path: Path) -> Layout:
    try:
        mapping = map_keys(checkpoint.weights, descriptor.model, lambda weights: _build(weights, path).model)
    except ModelError as error:
        name = descriptor.architecture.id
        raise ModelError(f"student checkpoint {path}: {name} could not be saved back in its layout: {error}") from error
    return Layout.of(checkpoint, mapping)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"student.device={name}: auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"student.device={name}: no CUDA device is visible here, use auto or cpu")
    return device


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards every submodule's own mode again (a trainer may have frozen some)."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _test_output(network: RgbNetwork) -> Tensor:
    image = torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    # The seed is for the few networks that draw noise even in evaluation.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return network(image)


def _fingerprint(network: RgbNetwork, settings: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for key, value in sorted(network.network.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
