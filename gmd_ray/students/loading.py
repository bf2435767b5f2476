"""Loading the student of the settings: by a factory, from a latent diffusion directory, or from a checkpoint file."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gmd_ray.config import StudentConfig
from gmd_ray.config.validate import check_tiles
from gmd_ray.errors import ConfigError, GmdError, ModelError, nearest
from gmd_ray.students.common import refuse_not_finite
from gmd_ray.students.losses import LOSSES, Perceptual
from gmd_ray.students.module_student import ModuleStudent
from gmd_ray.students.protocol import Student
from gmd_ray.text import one_line
from gmd_ray.weights import node_copy

_DTYPES = ("float32", "bfloat16")


def load_student(
    cfg: StudentConfig,
    loss: str = "l1",
    *,
    stochastic_depth: bool = False,
    perceptual: float = 0.0,
    perceptual_weights: str | None = None,
) -> Student:
    """Load a student.

    Args:
        cfg: settings of the student. With `factory`, that function makes the student. Otherwise `path` is a latent
            diffusion directory, or a checkpoint of any architecture that spandrel (or spandrel_extra_arches, if
            installed) supports. Of a URL, this node's copy is loaded.
        loss: pixel loss of `training_loss`: l1, l2, charbonnier or psnr. A latent diffusion student ignores it and
            learns its velocity; a student from a factory may have a loss of its own.
        stochastic_depth: keep the random skipping of residual branches that some architectures use in training (SwinIR:
            up to 0.1). It regularises training from scratch but only adds noise to a short adaptation.
        perceptual: weight of a VGG19 feature distance that is added to the pixel loss; 0 for none.
        perceptual_weights: local file of torchvision's VGG19; see `gmd_ray.students.losses.Perceptual`.

    Raises:
        ConfigError: a setting is invalid, or does not apply to this kind of student.
        ModelError: a file cannot be loaded, or could not be saved back in its layout.
        StorageError: a URL cannot be reached, and this node has no copy.
    """
    if cfg.path is None:
        raise ConfigError("student.path is not set: give the checkpoint file of the restorer to adapt")
    if cfg.dtype not in _DTYPES:
        raise ConfigError(f"student.dtype={cfg.dtype}: {nearest(cfg.dtype, _DTYPES)}")
    if loss not in LOSSES:
        raise ConfigError(f"training.loss={loss}: {nearest(loss, LOSSES)}")
    check_tiles("student", cfg.tile, cfg.tile_overlap)
    cfg = replace(cfg, path=str(node_copy(cfg.path)))
    student = _load(cfg, loss, stochastic_depth)
    if perceptual:
        if not isinstance(student, ModuleStudent):
            raise ConfigError(f"training.perceptual={perceptual:g}: {cfg.path} is trained on latents; set it to 0")
        if perceptual_weights is None:
            raise ConfigError("training.perceptual: set training.perceptual_weights to a file of torchvision's vgg19")
        student.perceptual = (perceptual, Perceptual(perceptual_weights))
    return student


def _load(cfg: StudentConfig, loss: str, stochastic_depth: bool) -> Student:
    assert cfg.path is not None
    if cfg.factory is not None:
        return _made_by_factory(cfg, loss)
    if Path(cfg.path).is_dir():
        from gmd_ray.students.latent.student import load_latent

        latent = load_latent(cfg)
        refuse_not_finite(latent.module, f"student {cfg.path}")
        return latent
    for key in ("sampling_steps", "gradient_checkpointing"):
        if value := getattr(cfg, key):
            raise ConfigError(
                f"student.{key}={value}: for latent diffusion students only, and {cfg.path} is not one; remove it"
            )
    from gmd_ray.students.spandrel_student import load_spandrel

    return load_spandrel(cfg, loss, stochastic_depth)


def _made_by_factory(cfg: StudentConfig, loss: str) -> Student:
    where = f"student.factory={cfg.factory}"
    try:
        student = _factory(str(cfg.factory))(cfg)
    except GmdError:
        raise
    except Exception as error:  # the factory is the user's code and may raise anything
        reason = one_line(error, 200)
        raise ModelError(f"{where}: cannot load {cfg.path}: {type(error).__name__}: {reason}") from error
    if not isinstance(student, Student):
        raise ModelError(f"{where}: gave a {type(student).__name__}, not a student; see gmd_ray.students.ModuleStudent")
    refuse_not_finite(student.module, f"student {cfg.path}")
    if isinstance(student, ModuleStudent):
        student.loss = loss
    return student


@functools.cache
def _factory(name: str) -> Callable[[StudentConfig], Any]:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ConfigError(f"student.factory={name}: give package.module:function")
    try:
        home: Any = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"student.factory={name}: cannot be imported ({error}); install the package, set PYTHONPATH, or start the "
            f"command in the folder that holds it"
        ) from error
    except Exception as error:  # importing runs the user's code, which may raise anything
        reason = one_line(error, 200)
        raise ConfigError(
            f"student.factory={name}: {module} breaks when imported: {type(error).__name__}: {reason}"
        ) from error
    factory = home
    for part in attribute.split("."):
        if not hasattr(factory, part):
            names = [key for key, value in vars(home).items() if callable(value) and not key.startswith("_")]
            raise ConfigError(f"student.factory={name}: {module} has no attribute {part!r}; {nearest(part, names)}")
        factory = getattr(factory, part)
    if not callable(factory):
        raise ConfigError(f"student.factory={name}: not callable; name a function that takes the student's settings")
    return factory
