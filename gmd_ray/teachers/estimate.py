"""What projecting an image of a size costs, from a teacher's config files alone; no weights are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ModelError
from gmd_ray.images.tiling import tile_spans
from gmd_ray.teachers.cost import NO_INJECTION, FluxDimensions, Injection, evaluations, forward_flops, projection_cost

_PROMPT_TABLE = "prompt_embeddings.safetensors"


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
    """The cost model for a teacher as it is set up.

    Where `true_cfg_interval` leaves evaluations out, this counts them all the same: an upper bound.
    """

    def __init__(self, cfg: TeacherConfig) -> None:
        """Read `transformer/config.json`, `vae/config.json` and the header of a prompt table.

        Raises:
            ModelError: a directory without them, or of another model.
            ConfigError: settings that the model cannot meet.
        """
        self._cfg = cfg
        transformer, vae = (_config(cfg.path, f"{part}/config.json") for part in ("transformer", "vae"))
        try:
            self._size = FluxDimensions.from_config(transformer)
            factor = vae["factor"] if "factor" in vae else 2 ** (len(vae["block_out_channels"]) - 1)
        except KeyError as error:
            raise ModelError(f"teacher.path={cfg.path}: no cost model for it ({error} is not in its config)") from error
        self._multiple = 2 * int(factor)
        self._text = _text_tokens(cfg)
        self._injection = NO_INJECTION if cfg.method == "sdedit" else Injection.from_config(cfg, self._size)
        self.image = cache(self._image)

    def _image(self, height: int, width: int) -> ImageCost:
        """The cost of an image of that many pixels."""
        cfg, multiple = self._cfg, self._multiple
        tiles = 1
        if cfg.tile and max(height, width) > cfg.tile:
            rows, columns = (tile_spans(side, cfg.tile, cfg.tile_overlap) for side in (height, width))
            tiles = len(rows) * len(columns)
            height, width = min(height, cfg.tile), min(width, cfg.tile)
        height, width = -(-height // multiple) * multiple, -(-width // multiple) * multiple
        if cfg.method == "sdedit":
            forwards = evaluations(cfg.solver, cfg.steps) * (1 if cfg.true_cfg is None else 2)
            tokens = (height // multiple) * (width // multiple)
            flops = forwards * forward_flops(self._size, 1, tokens, self._text)
        else:
            cost = projection_cost(
                self._size,
                batch=1,
                height=height,
                width=width,
                text=self._text,
                steps=cfg.steps,
                solver=cfg.solver,
                true_cfg=cfg.true_cfg is not None,
                injection=self._injection,
                multiple=multiple,
            )
            forwards, flops = cost.forwards, cost.flops
        return ImageCost(height, width, tiles, tiles * forwards, tiles * flops)


def _config(path: str | None, name: str) -> dict[str, Any]:
    file = _file(path, name)
    if file is None:
        raise ModelError(
            f"teacher.path={path}: no {name}, neither in a local directory nor at a hub in reach; "
            f"a folder with transformer/config.json and vae/config.json is enough for a plan"
        )
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
    """Of the prompt: from a table beside the weights, else as long as it is encoded."""
    table = Path(cfg.path or "") / _PROMPT_TABLE
    if table.is_file():
        from safetensors import safe_open

        with safe_open(table, framework="numpy") as tensors:  # its header; tensors are read when asked for
            key = f"{cfg.prompt}.prompt_embeds"
            if key in tensors.keys():  # noqa: SIM118 (not a dict)
                return int(tensors.get_slice(key).get_shape()[0])
    return cfg.max_sequence_length
