"""The families of transformers that a FLUX teacher can have, each described by what tells it from the others.

Nothing here imports torch or diffusers: a plan reads the description alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.teachers.directory import read_json


@dataclass(frozen=True)
class Family:
    """One family of transformers, as `transformer/config.json` names it by its class."""

    name: str
    transformer: str
    """The class of diffusers that a directory of this family holds."""
    ours: str
    """The class with injection that takes its place; a directory that this class saved names it."""
    schedule: str
    """The time grid of `teacher.schedule=auto`, which is the one of the family's own pipeline; see
    `sampler.time_grid`."""
    tables: bool
    """True if modulation tables (`modulation.ModulationTables`) replace the layers of the adaptive norms; where all
    blocks share three small layers there is nothing to gain from them."""
    widths: int
    """Bound on the live activations at the widest point of a block, in tensors of (tokens, width): 17.1 to 17.6 of
    FLUX.1 and 16.0 to 17.0 of FLUX.2 in eager mode (`python -m pytest tests/teachers/cost -k activations`)."""


FLUX1 = Family("FLUX.1", "FluxTransformer2DModel", "InjectingFlux", schedule="scheduler", tables=True, widths=18)
FLUX2 = Family("FLUX.2", "Flux2Transformer2DModel", "InjectingFlux2", schedule="empirical", tables=False, widths=17)
FAMILIES = (FLUX1, FLUX2)

_NOT_SUPPORTED = {
    "ChromaTransformer2DModel": "Chroma needs a text mask and a modulation network of its own, which are not built",
}


def family_of(config: Mapping[str, Any]) -> Family | None:
    """The family of a `transformer/config.json`, or None; a config without a class name is FLUX.1's."""
    name = config.get("_class_name", FLUX1.transformer)
    return next((family for family in FAMILIES if name in (family.transformer, family.ours)), None)


def check_directory(cfg: TeacherConfig, path: Path) -> Family:
    """The family of the model in a local directory, once it and the settings are known to fit each other.

    Raises:
        ModelError, ConfigError: as `check_model`; or there is no `transformer/config.json`.
    """
    if not (path / "transformer" / "config.json").is_file():
        raise ModelError(
            f"{path / 'transformer'}: no config.json; a teacher directory holds transformer/, vae/ and scheduler/"
        )
    return check_model(cfg, str(path), read_json(path / "transformer" / "config.json"))


def check_model(cfg: TeacherConfig, path: str, config: Mapping[str, Any]) -> Family:
    """The family of a model, once it and the settings are known to fit each other.

    Args:
        path: of the model, for messages.
        config: the content of `transformer/config.json`.

    Raises:
        ModelError: a transformer of no family that a FLUX teacher can have.
        ConfigError: a method that the family does not have, or prompts that would restore nothing.
    """
    family = family_of(config)
    if family is None:
        kind = config["_class_name"]
        why = _NOT_SUPPORTED.get(kind) or f"use {' or '.join(known.transformer for known in FAMILIES)}"
        raise ModelError(f"{path}/transformer: class {kind} is not supported; {why}")
    if family is not FLUX2:
        return family
    if cfg.method == "kontext":
        raise ConfigError(f"teacher.method=kontext: needs the weights of FLUX.1 Kontext, and {path} holds FLUX.2")
    if cfg.modulation == "host":
        raise ConfigError("teacher.modulation=host: is for FLUX.1; the blocks of FLUX.2 share one small modulation")
    inverts = cfg.method == "inversion"
    same = cfg.prompt == cfg.inversion_prompt
    if not config.get("guidance_embeds", True) and same and (inverts or cfg.true_cfg is not None):
        raise ConfigError(
            f"teacher.prompt={cfg.prompt!r}: is the inversion's prompt too, and without distilled guidance nothing "
            "would be restored; set teacher.preset=gmd-klein, or a prompt and teacher.true_cfg"
        )
    return family
