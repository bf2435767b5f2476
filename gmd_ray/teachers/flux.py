"""The FLUX teacher: a diffusers directory, null-prompt inversion, guided reconstruction with injected attention."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.images.tiling import tiled
from gmd_ray.teachers.acceleration import accelerate
from gmd_ray.teachers.attention import InjectingFlux, select_blocks
from gmd_ray.teachers.cost import TeacherFiles
from gmd_ray.teachers.fingerprint import digest, weights_digest
from gmd_ray.teachers.latents import image_ids, load_codec, pack, unpack
from gmd_ray.teachers.memory import Budget, MemoryPlan, modulation_home, plan_memory
from gmd_ray.teachers.ode import time_grid
from gmd_ray.teachers.projection import FluxProjector, ProjectionPlan, Prompt
from gmd_ray.teachers.prompts import load_prompts


class FluxTeacher:
    """`FluxTransformer2DModel` and its codec as a `Teacher`.

    The result for an image depends on its pixels and the settings; between batch shapes it differs by rounding only,
    below 1e-4 in float32.
    """

    def __init__(self, cfg: TeacherConfig) -> None:
        """Load from `cfg.path`.

        Raises:
            ModelError: a directory that is not a FLUX teacher's, or unsafe weights.
            ConfigError: settings that the model cannot meet.
        """
        path = _directory(cfg.path)
        self.device = torch.device(_device(cfg.device))
        dtype = _dtype(cfg.dtype, self.device)
        _check_class(path / "transformer")
        self._files, self._budget = TeacherFiles.read(path), Budget.of(self.device)
        self._number_bytes = dtype.itemsize
        modulation = modulation_home(self._files, cfg, self._budget, dtype.itemsize)
        self.model = _load_transformer(path / "transformer", dtype)
        self.codec = load_codec(path / "vae", dtype, self.device, cfg.vae_tile_above)
        self.scheduler = _read_json(path / "scheduler" / "scheduler_config.json")
        self.multiple = 2 * self.codec.factor
        if cfg.tile and (cfg.tile % self.multiple or cfg.tile_overlap % self.multiple or cfg.tile_overlap >= cfg.tile):
            raise ConfigError(
                f"teacher.tile={cfg.tile}, teacher.tile_overlap={cfg.tile_overlap}: both must be multiples of "
                f"{self.multiple}, the overlap below the tile"
            )
        injection = cfg.injection
        self.inject_steps = cfg.steps if injection.steps is None else injection.steps
        self.blocks = select_blocks(self.model.block_names(), injection.blocks) if self.inject_steps else []
        if self.inject_steps > cfg.steps:
            raise ConfigError(f"teacher.injection.steps={injection.steps}: at most teacher.steps={cfg.steps}")
        prompts = load_prompts(path, [cfg.prompt, cfg.inversion_prompt], cfg.max_sequence_length)
        prompts = {
            text: Prompt(prompt.embeds.to(self.device, dtype), prompt.pooled.to(self.device, dtype))
            for text, prompt in prompts.items()
        }
        self.prompt, self.inversion_prompt = prompts[cfg.prompt], prompts[cfg.inversion_prompt]
        self.cfg = cfg
        self._memory_cfg = replace(cfg, modulation=modulation)
        home = self.device if modulation == "device" else torch.device("cpu")
        tables = accelerate(self.model, cfg, self.device, home)
        self.projector = FluxProjector(self.model, tables)
        pixel_settings = {
            "steps": cfg.steps, "solver": cfg.solver, "strength": cfg.strength, "nudge": cfg.nudge,
            "prompt": cfg.prompt, "inversion_prompt": cfg.inversion_prompt, "guidance": cfg.guidance,
            "inversion_guidance": cfg.inversion_guidance, "true_cfg": [cfg.true_cfg, *cfg.true_cfg_interval],
            "injection": [injection.tensors, self.blocks, injection.tokens, self.inject_steps],
            "tile": [cfg.tile, cfg.tile_overlap], "dtype": str(dtype),
            "max_sequence_length": cfg.max_sequence_length,
        }  # fmt: skip
        # Only where they are not the default: what was made before they existed stays valid.
        for key in ("cache_dtype", "quantization", "vae_tile_above"):
            if getattr(cfg, key) != getattr(TeacherConfig, key):
                pixel_settings[key] = getattr(cfg, key)
        self.fingerprint = digest(weights_digest(path), json.dumps(pixel_settings, sort_keys=True))

    def project(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        """float32 RGB in [0, 1], (B, 3, H, W), any H and W, -> the same shape; `ids` are not used, nothing is drawn."""
        assert len(ids) == restored.shape[0]
        images = self._filled_up(restored.to(self.device))
        return tiled(self._project_whole, images, self.cfg.tile, self.cfg.tile_overlap)[: len(ids)].cpu()

    def _filled_up(self, images: torch.Tensor) -> torch.Tensor:
        """A batch of the pool's size where blocks are compiled, by repeating its last image: one shape, one graph."""
        missing = self.cfg.pool.batch_size - len(images) if self.cfg.compile else 0
        return torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing > 0 else images

    def memory(self, batch: int, height: int, width: int) -> MemoryPlan:
        """What images, or tiles, of that size need and where their cache will wait.

        Raises:
            ConfigError: with the numbers, where they cannot fit.
        """
        return plan_memory(self._files, self._memory_cfg, batch, height, width, self._budget, self._number_bytes)

    @torch.no_grad()
    def _project_whole(self, restored: torch.Tensor) -> torch.Tensor:
        height, width = restored.shape[-2:]
        memory = self.memory(len(restored), height, width)
        padded = pad_to_multiple(restored, self.multiple)
        z = self.codec.encode(padded * 2 - 1)
        h, w = z.shape[-2:]
        tokens = self.projector(pack(z), image_ids(h, w, z.device), self._plan(h * w // 4, memory))
        pixels = self.codec.decode(unpack(tokens, h, w))
        return ((pixels + 1) / 2).clamp(0, 1)[..., :height, :width]

    def _plan(self, tokens: int, memory: MemoryPlan | None = None) -> ProjectionPlan:
        cfg = self.cfg
        location = memory.cache_location if memory else cfg.cache_location
        embeds_guidance = self.model.config.guidance_embeds
        return ProjectionPlan(
            times=time_grid(cfg.steps, tokens, self.scheduler, cfg.strength),
            inversion_prompt=self.inversion_prompt,
            prompt=self.prompt,
            inversion_guidance=cfg.inversion_guidance if embeds_guidance else None,
            guidance=cfg.guidance if embeds_guidance else None,
            true_cfg=cfg.true_cfg,
            blocks=self.blocks,
            inject_keys=cfg.injection.tensors == "kv",
            inject_text=cfg.injection.tokens == "all",
            inject_steps=self.inject_steps,
            solver=cfg.solver,
            true_cfg_interval=cfg.true_cfg_interval,
            nudge=cfg.nudge,
            cache=memory.cache if memory else cfg.cache,
            cache_location="host" if location == "host" else "device",
            resident=memory.resident if memory else 2,
            cache_dtype=cfg.cache_dtype,
        )


def _directory(path: str | None) -> Path:
    if not path:
        raise ConfigError("teacher.path: give a local directory or a hub id in the diffusers layout")
    local = Path(path)
    if local.is_dir():
        return local
    if local.is_absolute() or path.startswith(".") or path.count("/") != 1:
        raise ModelError(f"teacher.path={path}: no such directory")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*/*", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        line = str(error).splitlines()[0]
        raise ModelError(f"teacher.path={path}: neither a local directory nor a hub id in reach ({line})") from error


def _check_class(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: no config.json; a teacher directory holds transformer/, vae/ and scheduler/")
    kind = _read_json(path / "config.json").get("_class_name")
    if kind not in ("FluxTransformer2DModel", "InjectingFlux"):
        raise ModelError(f"{path}: transformer class {kind!r}; this teacher needs FluxTransformer2DModel")


def _load_transformer(path: Path, dtype: torch.dtype) -> InjectingFlux:
    try:
        model = InjectingFlux.from_pretrained(path, torch_dtype=dtype, use_safetensors=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: cannot load the weights ({str(error).splitlines()[0]})") from error
    model.use_injecting_attention()
    return model.requires_grad_(False).eval()


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise ModelError(f"{path}: not found; a teacher directory holds transformer/, vae/ and scheduler/")
    return json.loads(path.read_text())


def _device(name: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def pad_to_multiple(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Reflect on the right and below; repeat the edge where the image is too small to reflect."""
    bottom, right = -x.shape[-2] % multiple, -x.shape[-1] % multiple
    if not (bottom or right):
        return x
    mode = "reflect" if bottom < x.shape[-2] and right < x.shape[-1] else "replicate"
    return F.pad(x, (0, right, 0, bottom), mode=mode)
