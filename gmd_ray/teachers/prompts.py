"""Prompt embeddings: from the table beside the weights, from a file made once for a run, or from the text encoders.

Text encoders have no place on a teacher's GPU, nor in each of its replicas: `encode_prompts` runs them once, on a CPU,
and leaves a file that `teacher.prompt_embeddings` hands to the replicas (teacher.md 2.1).
"""

from __future__ import annotations

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


class Known(NamedTuple):
    """A prompt's embeddings, and what tells them from others in a fingerprint."""

    prompt: Prompt
    origin: str
    """Revision of the text encoders, length and text; of a table's, a digest of the values."""


def load_prompts(cfg: TeacherConfig, path: Path) -> dict[str, Known]:
    """Embeddings of the two prompts of the settings, by text.

    Text encoders are loaded, on the CPU, only for what neither the table nor `cfg.prompt_embeddings` has at the length
    of the settings. Where there are none, a row of the table will do at any length.

    Raises:
        ModelError: a prompt that is nowhere and cannot be encoded, or a file of embeddings that cannot be read or was
            made with other text encoders than those of the directory.
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
    """The settings with what `encode_prompts` left in `folder` for them; None where it has yet to run.

    They come back unchanged where nothing has to be encoded: the prompts are in the table, or in the file that
    `cfg.prompt_embeddings` names already, or the teacher is a plugin, whose prompts are its own business. A hub is not
    asked for anything.

    Raises:
        ModelError: prompts that are nowhere, and no text encoders in a local directory; a file of embeddings that
            cannot be read or was made with other text encoders.
    """
    if ":" in cfg.method:
        return cfg
    path = local_directory(cfg.path)
    if path is None:
        return cfg if _handed_to_hub_id(cfg) else None
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
    """Encode what the table beside the weights lacks, and leave it in `folder`; run it once, on a CPU, for a whole run.

    Args:
        cfg: its `path`, `prompt`, `inversion_prompt`, `max_sequence_length` and `prompt_embeddings`.
        folder: local or URL. It gets `<revision>.safetensors` with keys `<revision>:<length>:<text>.prompt_embeds`
            and, for FLUX, `.pooled`, where revision is a digest of text encoders and tokenizers. What an earlier
            call left there is kept and not encoded again.
        more: other prompts.

    Returns:
        the settings with `prompt_embeddings` naming the file; unchanged where every prompt is in the table, or in
        the file that they name already.

    Raises:
        ModelError: text encoders that are absent or cannot be loaded; a file of embeddings made with others.
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
    """What needs no encoding. A row of the table at another length than the settings' comes last, and only where
    nothing can encode that text at theirs: else two machines, with encoders and without, would not agree."""
    length, encoders = _length(cfg, path), has_encoders(path)
    found: dict[str, Known] = {}
    if cfg.prompt_embeddings:
        revision = text_revision(path) if encoders else None
        found = _by_text(_read(cfg.prompt_embeddings), length, cfg.prompt_embeddings, revision)
    found |= _table_rows(path, length)
    return found if encoders else _table(path) | found


def _handed_to_hub_id(cfg: TeacherConfig) -> bool:
    """Whether the file of the settings has their prompts, be the model FLUX, whose prompts are pooled too, or not."""
    if not cfg.prompt_embeddings:
        return False
    tensors = _read(cfg.prompt_embeddings)
    for length, pooled in ((cfg.max_sequence_length, True), (CLIP_TOKENS, False)):
        found = _by_text(tensors, length, cfg.prompt_embeddings)
        if all(text in found and (len(found[text].prompt.pooled) > 0) == pooled for text in _texts(cfg)):
            return True
    return False


def _table_rows(path: Path, length: int) -> dict[str, Known]:
    """The table at a length; CLIP's has only one."""
    any_length = has_unet(path)
    return {text: row for text, row in _table(path).items() if any_length or len(row.prompt.embeds) == length}


def _table(path: Path) -> dict[str, Known]:
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
    """What a file of embeddings has at a length, of the text encoders of that revision.

    Raises:
        ModelError: it has that length of others alone; or, where the revision is not known, of more than one.
    """
    found: dict[str, dict[str, Known]] = {}
    for key, prompt in _prompts(tensors).items():
        its_revision, its_length, text = key.split(":", 2)
        if its_length == str(length):
            found.setdefault(its_revision, {})[text] = Known(prompt, key)
    if revision is None and len(found) > 1:
        raise ModelError(
            f"{url}: embeddings of {len(found)} text encoders ({', '.join(sorted(found))}), and none in teacher.path "
            "to tell which are meant; `gmd-ray encode-prompts` makes a file for each"
        )
    if revision is not None and found and revision not in found:
        raise ModelError(
            f"{url}: embeddings of other text encoders ({', '.join(sorted(found))}) than those of teacher.path "
            f"({revision}); leave teacher.prompt_embeddings out to have them made anew"
        )
    return found.get(revision, {}) if revision is not None else next(iter(found.values()), {})


def _prompts(tensors: Mapping[str, torch.Tensor]) -> dict[str, Prompt]:
    names = [key.removesuffix(".prompt_embeds") for key in tensors if key.endswith(".prompt_embeds")]
    none = torch.zeros(0)
    return {name: Prompt(tensors[f"{name}.prompt_embeds"], tensors.get(f"{name}.pooled", none)) for name in names}


def _bytes(tensor: torch.Tensor) -> bytes:
    return save({"": tensor.contiguous()})


def _url(folder: str, revision: str) -> str:
    """Options at the end of a URL stay at its end."""
    return below(folder, f"{revision}.safetensors")


def _read(url: str, *, optional: bool = False) -> dict[str, torch.Tensor]:
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
        raise ModelError(f"{url}: not a safetensors file ({str(error).splitlines()[0]})") from error
    return tensors
