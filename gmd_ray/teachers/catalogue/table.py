"""The table of `gmd-ray ls teachers`: licence, size and cost of known teachers and of directories."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ConfigError, GmdError, ModelError
from gmd_ray.teachers.catalogue.distilled import step_distilled
from gmd_ray.teachers.catalogue.known import FAMILIES, KNOWN, SUPPORTED, KnownTeacher, network_class
from gmd_ray.teachers.catalogue.licence import directory_licence
from gmd_ray.teachers.directory import local_directory, read_config
from gmd_ray.teachers.flux.families.family import FLUX2

SIDE = 512
"""Side in pixels of the image whose cost the table gives."""
TEXT = 512
"""Tokens of the prompt of a transformer; a U-Net of Stable Diffusion has 77."""
HEADER = ("teacher", "method", "family", "licence", "parameters", "TFLOP", "GB", "source and remarks")
NOTE = (
    f"TFLOP: of one forward of an image of {SIDE} x {SIDE} pixels. GB: a replica in bfloat16 under teacher.preset=gmd "
    "for that image, with the least that the settings allow, and with every cache on the GPU; >= is the weights alone."
)


@dataclass(frozen=True)
class Row:
    """One teacher of the table."""

    name: str
    method: str
    """`teacher.method` that takes it; a dash if none does."""
    family: str
    licence: str
    parameters: int | None
    """Parameters of the network and its autoencoder; None if they cannot be counted."""
    flops: int | None
    """FLOPs of one forward."""
    memory: tuple[int, int] | None
    """Bytes of a replica: least and fastest; the same for the weights alone, without a plan of the rest."""
    planned: bool
    """True if `memory` is the memory plan's."""
    remark: str

    def cells(self) -> tuple[str, ...]:
        if self.memory is None:
            memory = "-"
        else:
            least, fastest = (f"{size / 1e9:.3g}" for size in self.memory)
            memory = f">= {least}" if not self.planned else least if least == fastest else f"{least}-{fastest}"
        parameters = "-" if self.parameters is None else f"{self.parameters / 1e9:.3g} G"
        flops = "-" if self.flops is None else f"{self.flops / 1e12:.3g}"
        return (self.name, self.method, self.family, self.licence, parameters, flops, memory, self.remark)


def teacher_rows(paths: Sequence[str] = ()) -> list[Row]:
    """A row for each directory; without any, for each known teacher and for those that come with the package.

    Raises:
        ModelError: a path is no directory of a teacher.
    """
    if paths:
        return [_directory(path) for path in paths]
    own = [folder for folder in sorted(_package().glob("demo/*/weights/teacher")) if folder.is_dir()]
    return [_known(known) for known in KNOWN] + [_directory(str(folder)) for folder in own]


def teacher_table(paths: Sequence[str] = ()) -> str:
    """The rows as aligned text, with a note about the columns.

    Raises:
        ModelError: as `teacher_rows`.
    """
    cells = [HEADER, *(row.cells() for row in teacher_rows(paths))]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEADER) - 1)]
    lines = ["  ".join([*(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=False)), line[-1]]) for line in cells]
    return "\n".join([*lines, "", NOTE])


def _known(known: KnownTeacher) -> Row:
    remarks = [f"{known.licence}: {known.source}"]
    if known.why_not:
        remarks.append(known.why_not)
    if known.step_distilled:
        remarks.append("step-distilled: cannot be inverted")
    method = "-" if known.why_not or known.step_distilled else known.method
    counted = _count(known.network, known.codec)
    with tempfile.TemporaryDirectory() as folder:
        network = "unet" if known.network["_class_name"] == "UNet2DConditionModel" else "transformer"
        for part, config in ((network, known.network), ("vae", known.codec)):
            (Path(folder) / part).mkdir()
            (Path(folder) / part / "config.json").write_text(json.dumps(config))
        planned = _planned(folder) if known.network["_class_name"] in SUPPORTED else None
    return _row(known.hub_id, method, known.family, known.kind, counted, planned, "; ".join(remarks))


def _directory(path: str) -> Row:
    folder = local_directory(path)
    if folder is None:
        raise ModelError(f"{path}: no such directory; give one in the diffusers layout")
    part = "unet" if (folder / "unet" / "config.json").is_file() else "transformer"
    network, codec = read_config(folder / part / "config.json"), read_config(folder / "vae" / "config.json")
    if not network or not codec:
        raise ModelError(
            f"{path}: no {part}/config.json with a vae/config.json; give a teacher in the diffusers layout"
        )
    kind = network_class(network)
    licence = directory_licence(folder)
    remarks = [licence.source]
    if (refusal := step_distilled(TeacherConfig(path=path))) is not None:
        remarks.append(refusal.partition(": ")[2].partition(",")[0])
    if kind not in SUPPORTED:
        remarks.append(f"{kind} is not supported")
    kontext = read_config(folder / "model_index.json").get("_class_name") == "FluxKontextPipeline"
    takes = "ddim" if part == "unet" else "kontext" if kontext else "inversion"
    method = "-" if refusal is not None or kind not in SUPPORTED else takes
    counted = _count({**network, "_class_name": kind}, codec)
    planned = _planned(path) if kind in SUPPORTED else None
    return _row(
        _shown(folder, path), method, FAMILIES.get(kind, kind), licence.kind, counted, planned, "; ".join(remarks)
    )


def _row(
    name: str,
    method: str,
    family: str,
    licence: str,
    counted: tuple[int, int] | None,
    planned: tuple[int, int] | None,
    remark: str,
) -> Row:
    parameters, flops = counted if counted is not None else (None, None)
    weights = None if parameters is None else (2 * parameters, 2 * parameters)
    memory = planned or weights
    return Row(name, method, family, licence, parameters, flops, memory, planned is not None, remark)


def _planned(path: str) -> tuple[int, int] | None:
    """Bytes of a replica by the memory plan, (least, fastest); None for a model without one."""
    from gmd_ray.teachers import estimate_teacher

    # A share of depth selects blocks in a model of any depth; on FLUX.1-dev it is late_single, as `gmd` has it.
    cfg = TeacherConfig(path=path)
    if network_class(read_config(Path(path) / "transformer" / "config.json")) == FLUX2.transformer:
        cfg.prompt = "a prompt"  # klein is refused without one; its length counts alone, and that is the setting's
    cfg.injection.blocks, cfg.pool.batch_size = "last:0.316", 1
    try:
        fastest, least = estimate_teacher(cfg).replica_bytes(SIDE, SIDE)
    except ConfigError:
        return None
    return least, fastest


def _count(network: Mapping[str, Any], codec: Mapping[str, Any]) -> tuple[int, int] | None:
    """Parameters of both models and FLOPs of a forward of the network; None for a class that cannot be counted.

    FLUX's are the cost model's formulas; of another class one forward runs without memory, on the meta device.
    """
    return _counted(json.dumps(dict(network)), json.dumps(dict(codec)))


@lru_cache
def _counted(network_text: str, codec_text: str) -> tuple[int, int] | None:
    from gmd_ray.teachers.cost.dimensions import dimensions_of
    from gmd_ray.teachers.cost.flops import forward_flops

    network, codec = json.loads(network_text), json.loads(codec_text)
    try:
        factor, codec_parameters = _codec(codec)
        try:
            size = dimensions_of(network)
        except KeyError:
            parameters, flops = _on_meta(network, SIDE // factor)
        else:
            parameters = size.parameters()
            flops = forward_flops(size, 1, (SIDE // (2 * factor)) ** 2, TEXT)
    except (AttributeError, GmdError, KeyError, RuntimeError, TypeError, ValueError):
        return None
    return parameters + codec_parameters, flops


def _codec(config: Mapping[str, Any]) -> tuple[int, int]:
    """Pixels that one latent stands for along a side, and the autoencoder's parameters."""
    from gmd_ray.teachers.cost.codec import codec_factor

    if config.get("_class_name") == "SpaceToDepthCodec":
        return codec_factor(config), 0
    return codec_factor(config), sum(p.numel() for p in _empty(config).parameters())


def _empty(config: Mapping[str, Any]) -> Any:
    """The model of a config.json on the meta device, without memory."""
    import diffusers
    import torch

    with torch.device("meta"):
        return getattr(diffusers, config["_class_name"]).from_config(dict(config))


def _on_meta(config: Mapping[str, Any], side: int) -> tuple[int, int]:
    """(parameters, FLOPs) of a network whose latents have that side, counted by running the real class on meta."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = _empty(config)
    with torch.device("meta"), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**dict(_inputs(config, side)))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops()


def _inputs(config: Mapping[str, Any], side: int) -> Iterator[tuple[str, Any]]:
    """The arguments of one forward of a batch of one, on the default device."""
    import torch

    if config["_class_name"] == "UNet2DConditionModel":
        yield "sample", torch.empty(1, config["in_channels"], side, side)
        yield "timestep", torch.empty(1)
        yield "encoder_hidden_states", torch.empty(1, 77, config["cross_attention_dim"])
        if config.get("addition_embed_type") == "text_time":
            width = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
            yield "added_cond_kwargs", {"text_embeds": torch.empty(1, width), "time_ids": torch.empty(1, 6)}
        return
    tokens, axes = (side // 2) ** 2, len(config["axes_dims_rope"])
    yield "hidden_states", torch.empty(1, tokens, config["in_channels"])
    yield "encoder_hidden_states", torch.empty(1, TEXT, config["joint_attention_dim"])
    yield "timestep", torch.empty(1)
    yield "img_ids", torch.empty(tokens, axes)
    yield "txt_ids", torch.empty(TEXT, axes)
    if config.get("guidance_embeds"):
        yield "guidance", torch.empty(1)


def _package() -> Path:
    return Path(__file__).resolve().parents[2]


def _shown(folder: Path, path: str) -> str:
    """The path as it was given; of the package's own teachers the part below the package."""
    own = folder.resolve()
    return f"gmd_ray/{own.relative_to(_package())}" if own.is_relative_to(_package()) else path
