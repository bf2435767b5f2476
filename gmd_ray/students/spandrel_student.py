"""Students of every architecture that spandrel loads, which are saved in the layout of their checkpoints."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gmd_ray.config import StudentConfig
from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.storage import replacing
from gmd_ray.students.checkpoints.layout import Checkpoint, Layout, map_keys, read_checkpoint
from gmd_ray.students.common import say_once
from gmd_ray.students.module_student import ModuleStudent
from gmd_ray.students.rgb_network import RgbNetwork
from gmd_ray.students.window_masks import masks_on_device
from gmd_ray.text import one_line


class SpandrelStudent(ModuleStudent):
    """A restorer read from a checkpoint, whose layout it keeps."""

    def __init__(
        self, cfg: StudentConfig, network: RgbNetwork, layout: Layout, architecture: str, loss: str = "l1"
    ) -> None:
        super().__init__(
            cfg,
            network,
            scale=network.scale,
            name=architecture,
            weights=network.network.state_dict(),
            gray=network.output_channels == 1,
            loss=loss,
        )
        self._network = network
        self._layout = layout

    def save(self, path: str | Path) -> None:
        """Write the weights in the layout of the checkpoint, each key in its own precision.

        A draft is read back and must restore a test image as this student does, before it replaces `path`. If the
        checkpoint holds averaged weights beside raw ones (`params_ema` and `params`), both are replaced.

        Raises:
            ModelError: the file extension differs from the checkpoint's, the weights have diverged, or the draft gives
                different output after reloading.
        """
        path = Path(path)
        if path.suffix.lower() != self._layout.suffix:
            raise ModelError(
                f"cannot save {path}: the student keeps the layout it came in, a {self._layout.suffix} file"
            )
        network = copy.deepcopy(self._network).cpu().eval()
        self._layout.round_(network.network.state_dict())
        # Called before the state is read: some networks fold training branches into inference weights at this call.
        expected = _test_output(network)
        if not expected.isfinite().all():
            raise ModelError(f"cannot save {path}: the weights give values that are not finite; the training diverged")
        with replacing(path, path.suffix) as draft:
            self._layout.write(draft, network.network.state_dict())
            written = RgbNetwork(_build(read_checkpoint(draft, is_known).weights, draft)).eval()
            tolerance = 1e-5 * max(1.0, expected.abs().max().item())
            if not torch.allclose(_test_output(written), expected, rtol=0, atol=tolerance):
                raise ModelError(
                    f"cannot save {path}: {self.architecture} gives different output after reloading; "
                    "the file was not kept"
                )


def load_spandrel(cfg: StudentConfig, loss: str, stochastic_depth: bool) -> SpandrelStudent:
    """Load a checkpoint of any architecture that spandrel (or spandrel_extra_arches, if installed) supports.

    The arguments and errors are those of `gmd_ray.students.load_student`.
    """
    assert cfg.path is not None
    path = Path(cfg.path)
    checkpoint = read_checkpoint(path, is_known)
    choice = checkpoint.choice()
    if choice is not None:
        say_once(f"student {path}: {choice}")
    descriptor = _build(checkpoint.weights, path)
    architecture = str(descriptor.architecture.id)
    layout = _layout(checkpoint, descriptor, path)
    if cfg.dtype == "bfloat16" and not descriptor.supports_bfloat16:
        raise ConfigError(f"student.dtype=bfloat16: {architecture} does not support it, use float32")
    if not stochastic_depth:
        for module in descriptor.model.modules():
            if type(module).__name__ == "DropPath":
                module.drop_prob = 0.0
    masks_on_device(descriptor.model)
    network = RgbNetwork(descriptor)
    if network.output_channels == 1:
        say_once(
            f"student {path}: {architecture} restores gray images; of colour photos it restores the luma and keeps the "
            "chroma"
        )
    return SpandrelStudent(cfg, network, layout, architecture, loss)


@functools.cache
def _registry() -> Any:
    from spandrel import MAIN_REGISTRY

    # The optional package of architectures under restrictive licences (Restormer, MPRNet).
    with contextlib.suppress(ImportError):
        import spandrel_extra_arches

        spandrel_extra_arches.install(ignore_duplicates=True)
    return MAIN_REGISTRY


def is_known(weights: Mapping[str, Any]) -> bool:
    """Tell whether spandrel has an architecture with such keys."""
    return any(entry.detect(weights) for entry in _registry().architectures("detection"))


def _build(weights: dict[str, Any], path: Path) -> Any:
    """Build the spandrel descriptor of weights, on the CPU in float32.

    Raises:
        ModelError: no architecture has these keys, or it is not an image restorer.
    """
    from spandrel import ImageModelDescriptor

    candidates = (entry for entry in _registry().architectures("detection") if entry.detect(weights))
    entry = next(candidates, None)
    if entry is None:
        extra = "install spandrel_extra_arches if it is Restormer, MPRNet or another of that package's; "
        raise ModelError(
            f"student checkpoint {path}: no architecture known to spandrel has its keys ({next(iter(weights))}, ...); "
            f"{'' if importlib.util.find_spec('spandrel_extra_arches') else extra}a network of your own is loaded by a "
            f"function that student.factory=package.module:function names"
        )
    name = entry.architecture.id
    try:
        descriptor = entry.architecture.load(dict(weights))
    except (RuntimeError, KeyError, ValueError, IndexError, TypeError, AttributeError, AssertionError) as error:
        reason = one_line(error, 160)
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


def _test_output(network: RgbNetwork) -> Tensor:
    image = torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    # A few networks draw noise even in evaluation, so the seed is fixed.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return network(image)
