"""Students that have learnt nothing yet: an architecture by its name, or a checkpoint's with new weights."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gmd_ray.config import StudentConfig
from gmd_ray.errors import ConfigError, ModelError, nearest
from gmd_ray.students.common import save_pickle
from gmd_ray.students.loading import load_student
from gmd_ray.students.rgb_network import RgbNetwork
from gmd_ray.text import one_line

_PACKAGES = ("spandrel.architectures", "spandrel_extra_arches.architectures")


def new_checkpoint(architecture: str, arguments: Mapping[str, Any], seed: int, path: Path) -> None:
    """Write a new student's checkpoint: {"params": state dict}, the form of BasicSR, SwinIR and Real-ESRGAN.

    Args:
        architecture: class name of a network in spandrel (or spandrel_extra_arches), e.g. SwinIR.
        arguments: of its constructor, e.g. {"upscale": 4, "embed_dim": 180}.
        seed: of the weights, which the class draws as it always does.
        path: a .pth file; the same arguments and seed give the same bytes, in any process.

    Raises:
        ConfigError: no such architecture, or arguments that it does not take.
        ModelError: spandrel cannot tell from the weights how to build the network again: the file would be of no use.
    """
    network = _built(_find(architecture), dict(arguments), seed, f"pretrain.architecture={architecture}")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        save_pickle({"params": network.state_dict()}, draft)
        try:
            read_back = load_student(StudentConfig(path=str(draft), device="cpu"))
        except ModelError as error:
            raise ModelError(
                f"pretrain.architecture={architecture}: spandrel does not load it back: {error}"
            ) from error
        wrapper = read_back.module.eval()
        assert isinstance(wrapper, RgbNetwork)
        image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = wrapper(image)
            wrapper.network = network.eval()
            same = torch.allclose(wrapper(image), expected, atol=1e-5)
        if not same:
            raise ModelError(
                f"pretrain.architecture={architecture}: spandrel builds another network from its weights than "
                f"pretrain.arguments={dict(arguments)} do; leave such arguments at their defaults"
            )
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def reinitialised(cfg: StudentConfig, seed: int, path: Path) -> None:
    """Write the checkpoint `cfg.path` in its own layout with the weights of a network that is newly made.

    Raises:
        ModelError: the architecture does not tell the arguments that it was made with.
    """
    student = load_student(StudentConfig(path=cfg.path, device="cpu"))
    network = getattr(student.module, "network", None)
    arguments = getattr(network, "hyperparameters", None)
    if network is None or arguments is None:
        raise ModelError(f"pretrain.reinitialise: {cfg.path} is no spandrel network; start from it, or from its class")
    fresh = _built(type(network), dict(arguments), seed, f"pretrain.reinitialise of {cfg.path}")
    network.load_state_dict(fresh.state_dict())
    student.save(path)


def _built(cls: type[nn.Module], arguments: dict[str, Any], seed: int, what: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return cls(**arguments)
        except (TypeError, ValueError, AssertionError, RuntimeError, KeyError, NotImplementedError) as error:
            reason = one_line(error, 200)
            raise ConfigError(f"{what}: cannot be made with {arguments} ({type(error).__name__}: {reason})") from error


def _find(architecture: str) -> type[nn.Module]:
    found: dict[str, type[nn.Module]] = {}
    for name in _PACKAGES:
        try:
            package = importlib.import_module(name)
        except ImportError:  # the extra package is the user's choice
            continue
        for entry in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{name}.{entry.name}") if not entry.name.startswith("__") else None
            for key, value in vars(module).items() if module else ():
                if inspect.isclass(value) and issubclass(value, nn.Module):
                    found[key] = value
    if architecture not in found:
        raise ConfigError(f"pretrain.architecture={architecture}: {nearest(architecture, sorted(found))}")
    return found[architecture]
