"""Checkpoints of untrained students: of an architecture by its name, or of an existing checkpoint's architecture."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gmd_ray.config import StudentConfig
from gmd_ray.errors import ConfigError, ModelError, nearest
from gmd_ray.storage import replacing
from gmd_ray.students.common import save_pickle
from gmd_ray.students.loading import load_student
from gmd_ray.students.rgb_network import RgbNetwork
from gmd_ray.text import one_line

_PACKAGES = ("spandrel.architectures", "spandrel_extra_arches.architectures")


def new_checkpoint(architecture: str, arguments: Mapping[str, Any], seed: int, path: Path) -> None:
    """Write the checkpoint of an untrained network: {"params": state dict}, the form of BasicSR and Real-ESRGAN.

    Args:
        architecture: class name of a network in spandrel (or spandrel_extra_arches), such as SwinIR.
        arguments: arguments of its constructor, such as {"upscale": 4, "embed_dim": 180}.
        seed: seed of torch's generator, from which the class draws its weights.
        path: a .pth file. Equal arguments and seeds give equal bytes, in any process.

    Raises:
        ConfigError: the architecture is unknown, or does not accept the arguments.
        ModelError: spandrel cannot rebuild the network from its weights, so the file would be useless.
    """
    network = _built(_find(architecture), dict(arguments), seed, f"pretrain.architecture={architecture}")
    with replacing(path, path.suffix) as draft:
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


def reinitialised(cfg: StudentConfig, seed: int, path: Path) -> None:
    """Write a copy of the checkpoint `cfg.path`, in its own layout, with newly drawn weights.

    Args:
        cfg: settings of the student; only its path is used.
        seed: seed of the weights.
        path: the file to write.

    Raises:
        ModelError: the architecture does not record the arguments of its constructor.
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
    classes: dict[str, type[nn.Module]] = {}
    for name in _PACKAGES:
        try:
            package = importlib.import_module(name)
        except ImportError:  # spandrel_extra_arches is optional
            continue
        for entry in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{name}.{entry.name}") if not entry.name.startswith("__") else None
            for key, value in vars(module).items() if module else ():
                if inspect.isclass(value) and issubclass(value, nn.Module):
                    classes[key] = value
    if architecture not in classes:
        raise ConfigError(f"pretrain.architecture={architecture}: {nearest(architecture, sorted(classes))}")
    return classes[architecture]
