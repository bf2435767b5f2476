"""A teacher's directory in the diffusers layout: where it lies, what kind of model it holds, and where it runs."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.network import reachable

MODEL_FOLDERS = ("transformer", "unet", "vae", "scheduler")
TEXT_FOLDERS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
TABLE = "prompt_embeddings.safetensors"
"""Beside the folders: keys `<prompt>.prompt_embeds` (T, D) and, for FLUX, `<prompt>.pooled` (P,)."""

_OTHER_WEIGHTS = ["*.bin", "*.ckpt", "*.msgpack", "*.onnx*", "*.fp16.*", "*.non_ema.*"]


def model_directory(path: str | None, folders: tuple[str, ...] = MODEL_FOLDERS) -> Path:
    """The local directory that `teacher.path` names, or a snapshot of those folders of a hub id.

    Raises:
        ConfigError: no path is given.
        ModelError: neither a local directory nor a hub id in reach.
    """
    if not path:
        raise ConfigError("teacher.path: give a local directory or a hub id in the diffusers layout")
    local = local_directory(path)
    if local is not None:
        return local
    if Path(path).is_absolute() or path.startswith(".") or path.count("/") != 1:
        raise ModelError(f"teacher.path={path}: no such directory")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.json", TABLE, *(f"{folder}/*" for folder in folders)]
    why = hub_out_of_reach()
    try:
        # The hub's client retries for more than a minute where there is no network: it is asked for its cache alone.
        return Path(
            snapshot_download(
                path, allow_patterns=wanted, ignore_patterns=_OTHER_WEIGHTS, local_files_only=why is not None
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        line = why or str(error).splitlines()[0]
        raise ModelError(f"teacher.path={path}: neither a local directory nor a hub id in reach ({line})") from error


def cached_snapshot(path: str) -> Path | None:
    """What an earlier download of a hub id left in the hub's cache on this machine; None where there is nothing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def hub_out_of_reach() -> str | None:
    """Why nothing can be downloaded from the model hub now, found out within 3 s; None where it answers."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and it is not in the hub's cache"
    if not reachable([constants.ENDPOINT])[constants.ENDPOINT]:
        return f"{constants.ENDPOINT} does not answer, and it is not in the hub's cache"
    return None


def local_directory(path: str | None) -> Path | None:
    """The directory of that path on this machine; None for a hub id."""
    return Path(path) if path and Path(path).is_dir() else None


def has_unet(path: Path) -> bool:
    """Whether the directory is Stable Diffusion's; FLUX has a `transformer/` instead."""
    return (path / "unet" / "config.json").is_file()


def read_json(path: Path) -> dict:
    """A config file of the directory.

    Raises:
        ModelError: there is none.
    """
    if not path.is_file():
        raise ModelError(f"{path}: not found; a teacher directory holds transformer/ (or unet/), vae/ and scheduler/")
    return json.loads(path.read_text())


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is any.

    Raises:
        ConfigError: a CUDA device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"teacher.device={name}: {torch.cuda.device_count()} CUDA devices are visible here; use auto or cpu"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA, float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
