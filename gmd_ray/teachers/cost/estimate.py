"""What projecting an image of a size costs, from a teacher's config files alone; no weights are read."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.teachers.cost.codec import codec_factor
from gmd_ray.teachers.cost.dimensions import FluxDimensions, Injection
from gmd_ray.teachers.cost.flops import tile_grid
from gmd_ray.teachers.cost.projections import TeacherFiles, has_inversion, teacher_cost
from gmd_ray.teachers.directory import TABLE
from gmd_ray.teachers.text_encoders import has_encoders


@dataclass(frozen=True)
class ImageCost:
    """Of one image."""

    height: int
    width: int
    """Of what the teacher sees, padded; of a tile where it sees tiles."""
    tiles: int
    forwards: int
    """Model evaluations, of one tile each."""
    flops: int


class TeacherEstimate:
    """The cost model for a teacher as it is set up."""

    def __init__(self, cfg: TeacherConfig) -> None:
        """Read the config.json files and the header of a prompt table.

        Raises:
            ModelError: a directory without them, or of another model.
            ConfigError: settings that the model cannot meet, or a method that there is no cost model for.
        """
        _check_method(cfg)
        transformer, vae = (_config(cfg.path, f"{part}/config.json") for part in ("transformer", "vae"))
        scheduler = _file(cfg.path, "scheduler/scheduler_config.json")
        try:
            size = FluxDimensions.from_config(transformer)
            self._files = TeacherFiles(size, vae, _read(scheduler) if scheduler else {})
            codec_factor(vae)
        except KeyError as error:
            raise ModelError(f"teacher.path={cfg.path}: no cost model for it ({error} is not in its config)") from error
        self._cfg = replace(cfg, max_sequence_length=_text_tokens(cfg))
        if has_inversion(cfg):
            Injection.from_config(cfg, size)  # raises where the blocks are not the model's
        self.image = cache(self._image)

    def _image(self, height: int, width: int) -> ImageCost:
        """The cost of an image of that many pixels."""
        cfg, files = self._cfg, self._files
        cost = teacher_cost(files, cfg, 1, height, width)
        tiles, tall, wide = tile_grid(height, width, cfg.tile, cfg.tile_overlap)
        tall, wide = (side + -side % files.multiple for side in (tall, wide))
        return ImageCost(tall, wide, tiles, cost.forwards, cost.flops + cost.codec_flops)

    def replica_bytes(self, height: int, width: int) -> tuple[int, int]:
        """Bytes on the accelerator(s) of one replica for a batch of images of that many pixels.

        Returns:
            (with everything kept there, which is fastest; the least that the settings allow), of each rank.
        """
        from gmd_ray.teachers.cost.memory import Budget, plan_memory  # torch: a second that the FLOPs alone do not cost

        cfg, endless = self._cfg, Budget(1 << 62, 1 << 62)
        number = 4 if cfg.dtype == "float32" else 2
        least = replace(cfg, cache="lockstep", modulation="host" if cfg.modulation == "auto" else cfg.modulation)
        sizes = [
            plan_memory(self._files, settings, cfg.pool.batch_size, height, width, endless, number).device
            for settings in (cfg, least if cfg.cache_location == "auto" else cfg)
        ]
        return sizes[0], min(sizes)


def _check_method(cfg: TeacherConfig) -> None:
    """Refuse what is no FLUX teacher; a U-Net counts as one only where no transformer lies beside it."""
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
        raise ModelError(f"{file}: not a model's config")
    return config


def _file(path: str | None, name: str) -> Path | None:
    """A file of a local directory, or of a hub id; None where it is not to be had."""
    if path is None or Path(path).is_dir():
        file = Path(path or "") / name
        return file if file.is_file() else None
    if path.count("/") != 1 or path.startswith((".", "/")):
        return None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(path, name))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
        return None


def _text_tokens(cfg: TeacherConfig) -> int:
    """Of the prompt: of the table beside the weights where nothing can encode it anew, else as the settings say."""
    table = Path(cfg.path or "") / TABLE
    if table.is_file() and not has_encoders(table.parent):
        from safetensors import safe_open

        with safe_open(table, framework="numpy") as tensors:  # its header; tensors are read when asked for
            key = f"{cfg.prompt}.prompt_embeds"
            if key in tensors.keys():  # noqa: SIM118 (not a dict)
                return int(tensors.get_slice(key).get_shape()[0])
    return cfg.max_sequence_length
