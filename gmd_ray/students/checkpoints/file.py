"""Reading a checkpoint file without running any code that it may contain, with one-line errors."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from gmd_ray.errors import ModelError

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".tar", ".safetensors")
"""Extensions of checkpoints. `.tar` stands for PyTorch's old custom of `.pth.tar`, which is not an archive."""

_HARMLESS: list[Any] = [
    # Types of metrics and settings that training scripts save beside the weights. Unpickling them runs no foreign code.
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),  # type: ignore[attr-defined]
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in [*"?bhilqBHILQefdgFDSUMm"]),
    argparse.Namespace,
    (pathlib.PosixPath, "pathlib.PosixPath"),
    (pathlib.PosixPath, "pathlib._local.PosixPath"),  # as named by Python 3.13
]
_HEAD = 1024
"""The number of first bytes from which the kind of a file is recognised."""


def read_checkpoint_file(path: Path) -> tuple[dict[str, Any], dict[str, str] | None]:
    """Read the content of a checkpoint file.

    Returns:
        the tree of the file, with tensors on the CPU, and the metadata of a safetensors file (None for others).

    Raises:
        ModelError: the file is missing, unreadable, damaged, truncated or not a checkpoint, or it holds pickled objects
            that could run code. The message is one line.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        raise ModelError(f"student checkpoint {path}: is a folder; set student.path to the weight file in it")
    if not path.exists():
        raise ModelError(f"student checkpoint {path} does not exist: set student.path to a weight file")
    if suffix not in SUFFIXES:
        raise ModelError(f"student checkpoint {path}: unknown ending {suffix!r}, known: {', '.join(SUFFIXES)}")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise ModelError(f"student checkpoint {path}: cannot be read ({error.strerror or error})") from error
    instead = _no_checkpoint(head, suffix)
    if instead:
        raise ModelError(f"student checkpoint {path}: {instead}")
    return _read_safetensors(path) if suffix == ".safetensors" else (_read_pickle(path, head), None)


def _no_checkpoint(head: bytes, suffix: str) -> str | None:
    """Describe a file that cannot be a checkpoint of this extension, by its first bytes; None if it may be one."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "an empty file: the copy or download was interrupted"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the weights: run `git lfs pull` in its repository, or download the file itself"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<script")):
        return "a web page, not weights: the download failed or asked for a login; download the file itself"
    if head.startswith((b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!")) or head[257:262] == b"ustar":
        return "an archive; unpack it and set student.path to the weight file in it"
    is_safetensors = head[8:9] == b"{"  # the first 8 bytes are the length of the JSON header, which begins after them
    if suffix == ".safetensors" and not is_safetensors and head.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "not a safetensors file but PyTorch's own kind: rename it to .pth"
    if suffix != ".safetensors" and is_safetensors:
        return "a safetensors file under another ending: rename it to .safetensors"
    return None


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str] | None]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118, not a dict
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError, KeyError, AttributeError) as error:
        raise ModelError(
            f"student checkpoint {path}: damaged, cut off or not a safetensors file ({_line(error)})"
        ) from error


def _read_pickle(path: Path, head: bytes) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # for damaged files, PyTorch raises nearly anything, also OSError and MemoryError
        truncated = head.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path)
        reason = "cut off: its end is missing; copy or download it again" if truncated else _reason(error)
        raise ModelError(f"student checkpoint {path}: {reason}") from error
    if isinstance(tree, torch.nn.Module) or not isinstance(tree, dict):
        raise ModelError(f"student checkpoint {path}: holds a {type(tree).__name__}, not a state dict")
    return tree


def _reason(error: Exception) -> str:
    text = str(error)
    if "TorchScript" in text:
        return (
            "a TorchScript program; save its weights instead: torch.save(torch.jit.load(f).state_dict(), 'weights.pth')"
        )
    pickled = re.search(r"GLOBAL (\S+)", text)
    extract = (
        "torch.save(torch.load(f, weights_only=False)['state_dict'], 'weights.pth'), or whatever key it has instead"
    )
    if pickled is not None and isinstance(error, pickle.UnpicklingError):
        return (
            f"holds pickled objects ({pickled[1]}), which could run code; if you trust it, extract the weights where "
            f"those are installed: {extract}"
        )
    if "Unsupported operand" in text:
        return (
            f"damaged, or written with a newer pickle protocol than can be read without running code; if you trust it, "
            f"write it again: {extract}"
        )
    return f"damaged, cut off or no checkpoint ({_line(error)})"


def _line(error: Exception) -> str:
    """Return the cause in the message of an error, without the advice that PyTorch adds around it."""
    lines = str(error).splitlines() or [""]
    cause = next((line for line in lines if "WeightsUnpickler error:" in line), lines[0])
    return cause.rpartition("WeightsUnpickler error:")[2].strip()[:120] or type(error).__name__
