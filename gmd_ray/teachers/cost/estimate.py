"""The cost of projecting an image of some size, from a teacher's config files alone; no weights are read."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.teachers.cost.codec import codec_factor
from gmd_ray.teachers.cost.dimensions import Injection, dimensions_of
from gmd_ray.teachers.cost.flops import projection_cost
from gmd_ray.teachers.cost.workload import TeacherFiles, Workload
from gmd_ray.teachers.directory import TABLE, local_directory
from gmd_ray.teachers.flux.families.family import check_model
from gmd_ray.teachers.text_encoders import has_encoders


@dataclass(frozen=True)
class ImageCost:
    """The cost of projecting one image."""

    height: int
    """Height in pixels of what the teacher sees at once: the padded image, or a padded tile."""
    width: int
    """Its width in pixels."""
    tiles: int
    forwards: int
    """Evaluations of the transformer, each of one tile."""
    flops: int
    """FLOPs of transformer and autoencoder for the whole image."""


class TeacherEstimate:
    """The cost model of a FLUX teacher under its settings."""

    def __init__(self, cfg: TeacherConfig) -> None:
        """Read the config.json files and the header of a prompt table.

        Raises:
            ModelError: the directory lacks config files, or belongs to another model.
            ConfigError: settings that the model cannot meet, or a method without a cost model.
        """
        _check_method(cfg)
        transformer, vae = (_config(cfg.path, f"{part}/config.json") for part in ("transformer", "vae"))
        scheduler = _file(cfg.path, "scheduler/scheduler_config.json")
        check_model(cfg, str(cfg.path), transformer)
        try:
            size = dimensions_of(transformer)
            self._files = TeacherFiles(size, vae, _read(scheduler) if scheduler else {})
            codec_factor(vae)
        except KeyError as error:
            raise ModelError(f"teacher.path={cfg.path}: no cost model for it ({error} is not in its config)") from error
        self._cfg = replace(cfg, max_sequence_length=_text_tokens(cfg))
        if cfg.method not in ("sdedit", "kontext"):
            Injection.from_config(cfg, size)  # raises here, not for the first image, if the model lacks a block
        self.image = cache(self._image)

    @property
    def parameters(self) -> int:
        """Number of parameters of the transformer."""
        return self._files.size.parameters()

    def _image(self, height: int, width: int) -> ImageCost:
        """The cost of an image of that many pixels."""
        work = Workload.from_config(self._files, self._cfg, 1, height, width)
        cost = projection_cost(work)
        return ImageCost(*work.padded_tile, work.tiles.number, cost.forwards, cost.flops + cost.codec_flops)

    def replica_bytes(self, height: int, width: int) -> tuple[int, int]:
        """Bytes that each rank of a replica needs on its accelerator, for a batch of images of that many pixels.

        Returns:
            (bytes with everything kept on the accelerator, which is fastest; the least that the settings allow).
        """
        from gmd_ray.teachers.cost.memory import Budget, plan_memory  # imports diffusers, which takes seconds

        # Without a limit the plan keeps everything on the device; lockstep and layers on the host need the least.
        cfg, endless = self._cfg, Budget(1 << 62, 1 << 62)
        number = 4 if cfg.dtype == "float32" else 2
        least = replace(cfg, compile=False)
        if cfg.cache_location == "auto":
            home = "host" if cfg.modulation == "auto" else cfg.modulation
            least = replace(least, cache="lockstep", modulation=home)
        sizes = [
            plan_memory(self._files, settings, cfg.pool.batch_size, height, width, endless, number).device
            for settings in (cfg, least)
        ]
        return sizes[0], min(sizes)


def _check_method(cfg: TeacherConfig) -> None:
    """Refuse teachers other than FLUX: plugins, and Stable Diffusion with a unet/ and no transformer/ in its directory.

    Raises:
        ConfigError: there is no cost model for the method.
    """
    unet = cfg.method == "ddim" or (
        ":" not in cfg.method
        and _file(cfg.path, "transformer/config.json") is None
        and _file(cfg.path, "unet/config.json") is not None
    )
    if unet or ":" in cfg.method:
        what = "Stable Diffusion" if unet else "a plugin"
        raise ConfigError(f"teacher.method={cfg.method}: there is no cost model for {what}, only for FLUX's methods")


def _config(path: str | None, name: str) -> dict[str, Any]:
    file = _file(path, name)
    if file is None:
        raise ModelError(
            f"teacher.path={path}: no {name}, neither in a local directory nor at a hub in reach; "
            f"a folder with transformer/config.json and vae/config.json is enough for a plan"
        )
    return _read(file)


def _read(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file}: not the config of a model")
    return config


def _file(path: str | None, name: str) -> Path | None:
    """A file of a local directory, a URL or a hub id; None if it does not exist or cannot be reached."""
    local = local_directory(path)
    if path is None or local is not None:
        file = (local or Path()) / name
        return file if file.is_file() else None
    if "://" in path or path.count("/") != 1 or path.startswith((".", "/")):
        return None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(path, name))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
        return None


def _text_tokens(cfg: TeacherConfig) -> int:
    """Tokens of the prompt: as the settings say, or as the table beside the weights has it where no text encoder is."""
    table = (local_directory(cfg.path) or Path()) / TABLE
    if table.is_file() and not has_encoders(table.parent):
        from safetensors import safe_open

        with safe_open(table, framework="numpy") as tensors:  # reads the header alone
            key = f"{cfg.prompt}.prompt_embeds"
            if key in tensors.keys():  # noqa: SIM118 (not a dict)
                return int(tensors.get_slice(key).get_shape()[0])
    return cfg.max_sequence_length
