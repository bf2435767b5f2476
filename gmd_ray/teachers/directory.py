"""A teacher's directory in the diffusers layout: finding it, and reading its config files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gmd_ray.errors import ConfigError, GmdError, ModelError
from gmd_ray.network import reachable
from gmd_ray.text import one_line
from gmd_ray.weights import is_stored, node_copy

MODEL_FOLDERS = ("transformer", "unet", "vae", "scheduler")
TEXT_FOLDERS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
TABLE = "prompt_embeddings.safetensors"
"""File of prompt embeddings beside the folders, with `<prompt>.prompt_embeds` (T, D) and `<prompt>.pooled` (P,)."""

CONFIGS = ("*.json", "README.md", "LICENSE*", "LICENCE*", TABLE)
"""Patterns of the small files of a directory, which tell what it holds."""

_OTHER_FORMATS = ["*.bin", "*.ckpt", "*.msgpack", "*.onnx*"]
_OTHER_WEIGHTS = [*_OTHER_FORMATS, "*.fp16.*", "*.non_ema.*"]


def model_directory(path: str | None, folders: tuple[str, ...] = MODEL_FOLDERS) -> Path:
    """The local directory of `teacher.path`, this node's copy of a URL, or a downloaded snapshot of a hub id.

    Args:
        folders: folders to download from the URL or the hub.

    Raises:
        ConfigError: `path` is empty.
        ModelError: `path` is no local directory, and no hub id that can be downloaded or is in the hub's cache.
        GmdError: a URL that cannot be copied, see `weights.node_copy`.
    """
    if not path:
        raise ConfigError("teacher.path: give a local directory, a URL or a hub id in the diffusers layout")
    wanted = [*CONFIGS, *(f"{folder}/*" for folder in folders)]
    if is_stored(path):
        return node_copy(path, wanted, _OTHER_FORMATS)  # all that `weights_digest` sees in a local directory
    local = local_directory(path)
    if local is not None:
        return local
    if Path(path).is_absolute() or path.startswith(".") or path.count("/") != 1:
        raise ModelError(f"teacher.path={path}: no such directory")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    why = hub_out_of_reach()
    try:
        # Without a network the hub's client would retry for more than a minute, so only its cache is asked.
        return Path(
            snapshot_download(
                path, allow_patterns=wanted, ignore_patterns=_OTHER_WEIGHTS, local_files_only=why is not None
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        line = why or one_line(error)
        raise ModelError(f"teacher.path={path}: neither a local directory nor a hub id in reach ({line})") from error


def cached_snapshot(path: str) -> Path | None:
    """The snapshot of a hub id in the hub's cache on this machine, complete or not; None if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def hub_out_of_reach() -> str | None:
    """The reason why nothing can be downloaded from the model hub now, or None if it answers; takes 3 s at most."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and it is not in the hub's cache"
    if not reachable([constants.ENDPOINT])[constants.ENDPOINT]:
        return f"{constants.ENDPOINT} does not answer, and it is not in the hub's cache"
    return None


def local_directory(path: str | None) -> Path | None:
    """`path` if it is a directory on this machine, or for a URL a copy of the small files; None for a hub id.

    None too for a URL that cannot be reached.
    """
    if path and "://" in path:
        try:
            return node_copy(path, CONFIGS)
        except GmdError:
            return None
    return Path(path) if path and Path(path).is_dir() else None


def has_unet(path: Path) -> bool:
    """True for a directory of Stable Diffusion; FLUX has a `transformer/` instead of the `unet/`."""
    return (path / "unet" / "config.json").is_file()


def read_config(path: Path) -> dict[str, Any]:
    """The content of a config file; empty if it does not exist or is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_json(path: Path) -> dict:
    """Read a config file of the directory.

    Raises:
        ModelError: the file does not exist.
    """
    if not path.is_file():
        raise ModelError(f"{path}: not found; a teacher directory holds transformer/ (or unet/), vae/ and scheduler/")
    return json.loads(path.read_text())
