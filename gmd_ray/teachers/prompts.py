"""Prompt embeddings: from the table beside the weights, from a file made once for a run, or from the text encoders.

Text encoders take much memory and are needed for a few prompts only. So `encode_prompts` runs them once, on a CPU, and
writes a file that the replicas read through `teacher.prompt_embeddings`. See docs/method.md, "Prompts".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save

from gmd_ray.config import TeacherConfig
from gmd_ray.config.places import below
from gmd_ray.errors import DataError, ModelError
from gmd_ray.hashing import content_digest
from gmd_ray.images.listing import read_file
from gmd_ray.storage import write_bytes
from gmd_ray.teachers.directory import MODEL_FOLDERS, TABLE, TEXT_FOLDERS, has_unet, local_directory, model_directory
from gmd_ray.teachers.fingerprint import text_revision
from gmd_ray.teachers.text_encoders import CLIP_TOKENS, Prompt, check_encoders, encode, has_encoders
from gmd_ray.text import one_line
from gmd_ray.weights import stored_model


class Known(NamedTuple):
    """The embeddings of a prompt, with an identifier for fingerprints."""

    prompt: Prompt
    origin: str
    """`<revision of the text encoders>:<length>:<text>`, or for a row of the table a digest of its values."""


def load_prompts(cfg: TeacherConfig, path: Path) -> dict[str, Known]:
    """Text -> embeddings, for the two prompts of the settings.

    Text encoders are loaded, on the CPU, only for prompts that neither the table nor `cfg.prompt_embeddings` has at the
    length of the settings. In a directory without text encoders, a row of the table counts at any length.

    Args:
        path: the model's directory.

    Raises:
        ModelError: a prompt is in no file and cannot be encoded; or the file of embeddings cannot be read, or was made
            with other text encoders than those of the directory.
    """
    texts, length = _texts(cfg), _length(cfg, path)
    found = _ready(cfg, path)
    missing = [text for text in texts if text not in found]
    if missing:
        path = model_directory(cfg.path, MODEL_FOLDERS + TEXT_FOLDERS)
        encoded = encode(path, missing, length)
        revision = text_revision(path)
        found |= {text: Known(prompt, _key(revision, length, text)) for text, prompt in encoded.items()}
    return {text: found[text] for text in texts}


def find_prompts(cfg: TeacherConfig, folder: str) -> TeacherConfig | None:
    """The settings with the file that `encode_prompts` wrote to `folder` for them, or None if it has yet to run.

    The settings come back unchanged if nothing has to be encoded: the prompts are in the table, or in the file that
    `cfg.prompt_embeddings` names already, or the teacher is a plugin, which encodes its own prompts. Nothing but the
    small files of a URL is downloaded.

    Raises:
        ModelError: a prompt is in no file and the local directory has no text encoders; or the file of embeddings
            cannot be read, or was made with other text encoders.
    """
    if ":" in cfg.method:
        return cfg
    path = local_directory(cfg.path)
    if path is None:
        return cfg if _handed_to_hub_id(cfg) else None
    if _leaves_encoders(cfg.path, path):
        in_table = _table_rows(path, _length(cfg, path))
        known = all(text in in_table for text in _texts(cfg))
        return cfg if known or _handed_to_hub_id(cfg) else None
    ready = _ready(cfg, path)
    missing = [text for text in _texts(cfg) if text not in ready]
    if not missing:
        return cfg
    check_encoders(path, missing[0])
    revision = text_revision(path)
    url = _url(folder, revision)
    has = _by_text(_read(url, optional=True), _length(cfg, path), url, revision)
    return replace(cfg, prompt_embeddings=url) if all(text in has for text in missing) else None


def encode_prompts(cfg: TeacherConfig, folder: str, more: Sequence[str] = ()) -> TeacherConfig:
    """Encode the prompts that the table beside the weights lacks, and write them to a file in `folder`.

    One call, on a CPU, serves a whole run.

    Args:
        cfg: `path`, `prompt`, `inversion_prompt`, `max_sequence_length` and `prompt_embeddings` count.
        folder: local or URL. The file is `<revision>.safetensors` with keys `<revision>:<length>:<text>.prompt_embeds`
            and, for FLUX.1, `.pooled`, where revision is a digest of text encoders and tokenizers. Prompts that an
            earlier call wrote there are kept and not encoded again.
        more: further prompts.

    Returns:
        the settings with `prompt_embeddings` naming the file; unchanged if every prompt is in the table, or in the file
        that they name already.

    Raises:
        ModelError: the text encoders are missing or cannot be loaded; or the file that `cfg.prompt_embeddings` names
            was made with others.
    """
    path = model_directory(cfg.path, TEXT_FOLDERS)
    wanted, length = list(dict.fromkeys([*_texts(cfg), *more])), _length(cfg, path)
    ready = _ready(cfg, path)
    if all(text in ready for text in wanted):
        return cfg
    texts = [text for text in wanted if text not in _table_rows(path, length)]
    check_encoders(path, texts[0])
    revision = text_revision(path)
    url = _url(folder, revision)
    tensors = _read(url, optional=True)
    known = _by_text(tensors, length, url, revision)
    missing = [text for text in texts if text not in known]
    if missing:
        for text, prompt in encode(path, missing, length).items():
            key = _key(revision, length, text)
            tensors = {**tensors, f"{key}.prompt_embeds": prompt.embeds.contiguous()}
            if len(prompt.pooled):
                tensors[f"{key}.pooled"] = prompt.pooled.contiguous()
        write_bytes(url, save(dict(tensors)))
    return replace(cfg, prompt_embeddings=url)


def _texts(cfg: TeacherConfig) -> list[str]:
    return sorted({cfg.prompt, cfg.inversion_prompt})


def _length(cfg: TeacherConfig, path: Path) -> int:
    return CLIP_TOKENS if has_unet(path) else cfg.max_sequence_length


def _key(revision: str, length: int, text: str) -> str:
    return f"{revision}:{length}:{text}"


def _ready(cfg: TeacherConfig, path: Path) -> dict[str, Known]:
    """Text -> embeddings, for all prompts that need not be encoded.

    A row of the table with another length than the settings' comes last, and counts only in a directory without text
    encoders. Where there are encoders they make the right length, so that two machines come to the same fingerprint.
    """
    length, encoders = _length(cfg, path), has_encoders(path)
    found: dict[str, Known] = {}
    if cfg.prompt_embeddings:
        revision = text_revision(path) if encoders else None
        found = _by_text(_read(cfg.prompt_embeddings), length, cfg.prompt_embeddings, revision)
    found |= _table_rows(path, length)
    return found if encoders else _table(path) | found


def _leaves_encoders(path: str | None, local: Path) -> bool:
    """True if a URL has text encoders that this node's copy of it lacks."""
    if not path or "://" not in path or has_encoders(local):
        return False
    return any(re.fullmatch(r"text_encoder/[^/]*\.safetensors", file.name) for file in stored_model(path).files)


def _handed_to_hub_id(cfg: TeacherConfig) -> bool:
    """True if `cfg.prompt_embeddings` has both prompts of a model that is not on this machine.

    The model may be FLUX, whose prompts have the settings' length, those of FLUX.1 with a pooled vector; or Stable
    Diffusion.
    """
    if not cfg.prompt_embeddings:
        return False
    tensors = _read(cfg.prompt_embeddings)
    for length, pooled in ((cfg.max_sequence_length, True), (cfg.max_sequence_length, False), (CLIP_TOKENS, False)):
        found = _by_text(tensors, length, cfg.prompt_embeddings)
        if all(text in found and (len(found[text].prompt.pooled) > 0) == pooled for text in _texts(cfg)):
            return True
    return False


def _table_rows(path: Path, length: int) -> dict[str, Known]:
    """The rows of the table with that length; for Stable Diffusion all rows, since CLIP has one length."""
    any_length = has_unet(path)
    return {text: row for text, row in _table(path).items() if any_length or len(row.prompt.embeds) == length}


def _table(path: Path) -> dict[str, Known]:
    """Text -> embeddings, all rows of the table beside the weights."""
    file = path / TABLE
    if not file.is_file():
        return {}
    tensors = load_file(file)
    return {
        text: Known(prompt, content_digest(_bytes(prompt.embeds) + _bytes(prompt.pooled))[:16])
        for text, prompt in _prompts(tensors).items()
    }


def _by_text(
    tensors: Mapping[str, torch.Tensor], length: int, url: str, revision: str | None = None
) -> dict[str, Known]:
    """Text -> embeddings, for the prompts in a file of embeddings with that length and that revision.

    Args:
        tensors: content of the file.
        url: of the file, for messages.
        revision: of the text encoders; None if it is not known.

    Raises:
        ModelError: the file has that length from other text encoders only; or the revision is not known and the file
            has more than one.
    """
    found: dict[str, dict[str, Known]] = {}
    for key, prompt in _prompts(tensors).items():
        its_revision, its_length, text = key.split(":", 2)
        if its_length == str(length):
            found.setdefault(its_revision, {})[text] = Known(prompt, key)
    if revision is None and len(found) > 1:
        raise ModelError(
            f"{url}: embeddings of {len(found)} text encoders ({', '.join(sorted(found))}), and teacher.path has "
            "none to choose among them by; use a file of one, as `gmd-ray encode-prompts` makes it"
        )
    if revision is not None and found and revision not in found:
        raise ModelError(
            f"{url}: embeddings of other text encoders ({', '.join(sorted(found))}) than those of teacher.path "
            f"({revision}); remove teacher.prompt_embeddings to encode them again"
        )
    return found.get(revision, {}) if revision is not None else next(iter(found.values()), {})


def _prompts(tensors: Mapping[str, torch.Tensor]) -> dict[str, Prompt]:
    """Key without suffix -> prompt; a missing `.pooled` is a vector of length 0."""
    names = [key.removesuffix(".prompt_embeds") for key in tensors if key.endswith(".prompt_embeds")]
    none = torch.zeros(0)
    return {name: Prompt(tensors[f"{name}.prompt_embeds"], tensors.get(f"{name}.pooled", none)) for name in names}


def _bytes(tensor: torch.Tensor) -> bytes:
    return save({"": tensor.contiguous()})


def _url(folder: str, revision: str) -> str:
    """URL of the file of embeddings in a folder; options at the end of the folder's URL stay at its end."""
    return below(folder, f"{revision}.safetensors")


def _read(url: str, *, optional: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of a file of embeddings; with `optional` none if the file does not exist."""
    try:
        data = read_file(url)
    except DataError as error:
        if optional:
            return {}
        raise ModelError(f"teacher.prompt_embeddings={url}: no such file; `gmd-ray encode-prompts` makes it") from error
    try:
        tensors = load(data)
        if not all(key.count(":") >= 2 for key in tensors):
            raise ModelError(f"{url}: its keys are not `<revision>:<length>:<text>`; `gmd-ray encode-prompts` makes it")
    except SafetensorError as error:
        raise ModelError(f"{url}: not a safetensors file ({one_line(error)})") from error
    return tensors
