"""Stable Diffusion 1.x and 2.x: DDIM inversion, then guided DDIM with injected self-attention.

This is the paper's "1.3B" teacher. A step of the inversion evaluates the U-Net on the latents of its cleaner end, at
the time of its noisier end (Song et al., 2021, with t and t - 1 swapped). So evaluations of the two passes pair by
equal time. See docs/method.md, "Diffusion teachers".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ConfigError, ModelError, nearest
from gmd_ray.hashing import short_digest
from gmd_ray.images.padding import pad_to_multiple
from gmd_ray.images.tiling import tiled
from gmd_ray.teachers.catalogue.distilled import refuse_step_distilled
from gmd_ray.teachers.directory import model_directory, read_json
from gmd_ray.teachers.fingerprint import weights_digest
from gmd_ray.teachers.flux.latents import load_codec
from gmd_ray.teachers.guidance import guide
from gmd_ray.teachers.injection import injected_intervals, last_blocks
from gmd_ray.teachers.prompts import load_prompts
from gmd_ray.teachers.settings import check_teacher_tiles, device_and_dtype
from gmd_ray.teachers.text_encoders import Prompt
from gmd_ray.text import one_line

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

AttentionInputs = dict[str, torch.Tensor]
"""Block name -> input (B, tokens, dim) of its self-attention in one evaluation. At replay keys and values are projected
from it anew: the same numbers as the inversion's, in half the memory."""

GROUPS = ("all", "down", "mid", "up")
"""Groups of U-Net blocks that `teacher.injection.blocks` can name."""

FLUX_ONLY: dict[str, object] = {
    "precision": "same", "offload": "none", "compile": False, "attention_backend": None, "cache_dtype": "same",
    "host_cache_gb": None, "schedule": "auto", "step_cache": None,
}  # fmt: skip
"""Settings of FLUX that change results or need hardware, with their defaults. Other values are refused, not ignored."""


class InjectionSwitch:
    """Tells the injecting blocks of one U-Net what to do in the next forward pass."""

    def __init__(self) -> None:
        self.keep: AttentionInputs | None = None
        """Receives the blocks' inputs."""
        self.take: AttentionInputs | None = None
        """Inputs whose keys and values replace the blocks' own."""


class InjectingSelfAttention(AttnProcessor2_0):
    """Self-attention that can use the keys and values of another pass."""

    def __init__(self, name: str, switch: InjectionSwitch) -> None:
        super().__init__()
        self.name, self.switch = name, switch

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        # diffusers projects keys and values from `encoder_hidden_states`, or from `hidden_states` where these are None,
        # as in self-attention.
        if self.switch.keep is not None:
            self.switch.keep[self.name] = hidden_states
        if self.switch.take is not None:
            encoder_hidden_states = self.switch.take[self.name]
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


class DDIMTeacher:
    """`UNet2DConditionModel` and its autoencoder as a `Teacher`.

    `teacher.steps` DDIM steps divide the whole range of times, and the noisiest `1 - strength` of them are left out of
    both passes. `true_cfg` is classifier-free guidance. The cache holds attention inputs, on the device; there is no
    memory plan. Latents stay float32.

    Some settings belong to FLUX and have no effect: `guidance`, `inversion_guidance`, `cache`, `modulation`,
    `max_sequence_length`. Others are refused: a `solver` other than euler, those of `FLUX_ONLY`, a cache on the host,
    injection of values or of image tokens alone.

    Between batch shapes the result differs by rounding only: below 1e-4 in float32. In bfloat16 rounding errors grow
    from step to step: below 0.1 on the tests' random weights at `true_cfg` 3.
    """

    def __init__(self, cfg: TeacherConfig) -> None:
        """Load the model from `cfg.path`, a directory in the diffusers layout or a hub id.

        Raises:
            ModelError: the directory does not hold Stable Diffusion 1.x or 2.x, or its weights are not safetensors.
            ConfigError: settings that the model or this machine cannot meet.
        """
        from diffusers import DDIMInverseScheduler, DDIMScheduler

        path = model_directory(cfg.path)
        _refuse_flux_settings(cfg)
        refuse_step_distilled(cfg, path)
        self.device, dtype = device_and_dtype(cfg)
        self.unet = _load_unet(path / "unet", dtype, self.device)
        self.codec = load_codec(path / "vae", dtype, self.device, cfg.vae_tile_above)
        self.multiple = self.codec.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        self.cfg, self.dtype = cfg, dtype
        check_teacher_tiles(cfg, self.multiple)
        # Clipping the predicted clean image to [-1, 1] is meant for models of pixels and would break the inversion.
        config = {**read_json(path / "scheduler" / "scheduler_config.json"), "clip_sample": False}
        if config.get("timestep_spacing", "leading") not in ("leading", "trailing"):
            raise ModelError(f"{path}/scheduler: timestep_spacing={config['timestep_spacing']}; DDIM needs leading")
        self.scheduler = DDIMScheduler.from_config(config, thresholding=False)
        self.inverse = DDIMInverseScheduler.from_config(self.scheduler.config)
        for scheduler in (self.scheduler, self.inverse):
            scheduler.set_timesteps(cfg.steps)
        count = max(1, round(cfg.steps * cfg.strength))
        self.times: list[int] = self.scheduler.timesteps.tolist()[-count:]
        """Times of the U-Net's evaluations, noisy to clean."""
        self.inject_steps = injected_intervals(cfg.injection, len(self.times))
        if self.inject_steps > len(self.times):
            raise ConfigError(
                f"teacher.injection.steps={cfg.injection.steps}: at most {len(self.times)}, the steps that run"
            )
        self.blocks = select_unet_blocks(self.unet, cfg.injection.blocks) if self.inject_steps else []
        self.switch = InjectionSwitch()
        for name in self.blocks:
            self.unet.get_submodule(f"{name}.attn1").set_processor(InjectingSelfAttention(name, self.switch))
        prompts = load_prompts(cfg, path)
        (self.prompt, origin), (self.inversion_prompt, null_origin) = prompts[cfg.prompt], prompts[cfg.inversion_prompt]
        pixel_settings = {
            "steps": [cfg.steps, len(self.times)], "nudge": cfg.nudge,
            "true_cfg": [cfg.true_cfg, *cfg.true_cfg_interval], "injection": [self.blocks, self.inject_steps],
            "tile": [cfg.tile, cfg.tile_overlap], "dtype": str(dtype), "embeddings": [origin, null_origin],
        }  # fmt: skip
        # This setting is newer than the first stores. It enters the fingerprint only where it is not the default, so
        # that the fingerprints of those stores stay valid.
        if cfg.vae_tile_above != TeacherConfig.vae_tile_above:
            pixel_settings["vae_tile_above"] = cfg.vae_tile_above
        self.fingerprint = short_digest("ddim", weights_digest(path), json.dumps(pixel_settings, sort_keys=True))

    def project(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        """Project images: float32 RGB in [0, 1], (B, 3, H, W), any H and W -> the same shape, on the CPU.

        Nothing is random, so `ids` are not used.
        """
        assert len(ids) == restored.shape[0]
        images = restored.to(self.device, non_blocking=True)
        cfg = self.cfg
        return tiled(self._project_whole, images, cfg.tile, cfg.tile_overlap, batch=cfg.pool.batch_size).cpu()

    @torch.no_grad()
    def _project_whole(self, restored: torch.Tensor) -> torch.Tensor:
        """Project images or tiles (B, 3, H, W) in one piece."""
        height, width = restored.shape[-2:]
        z = self.codec.encode(pad_to_multiple(restored, self.multiple) * 2 - 1)
        pixels = self.codec.decode(self.reconstruct(*self.invert(z)))
        return ((pixels + 1) / 2).clamp(0, 1)[..., :height, :width]

    def invert(self, z: torch.Tensor) -> tuple[torch.Tensor, dict[int, AttentionInputs]]:
        """Clean latents (B, C, h, w) float32 -> noisy ones, and by time what each injected evaluation left."""
        z = z * self.cfg.nudge
        kept: dict[int, AttentionInputs] = {}
        injected = set(self.times[: self.inject_steps])
        for t in reversed(self.times):
            inputs: AttentionInputs | None = None
            if t in injected:
                inputs = kept[t] = {}
            output = self._predict(z, t, self.inversion_prompt, keep=inputs)
            z = self.inverse.step(output, t, z, return_dict=False)[0]
        return z, kept

    def reconstruct(self, z: torch.Tensor, kept: dict[int, AttentionInputs]) -> torch.Tensor:
        """Noisy latents (B, C, h, w) float32 -> clean ones; the inputs of each evaluation are freed once used."""
        low, high = self.cfg.true_cfg_interval
        for t in self.times:
            inputs = kept.pop(t, None)
            output = self._predict(z, t, self.prompt, take=inputs)
            if self.cfg.true_cfg is not None and low <= t / self.scheduler.config.num_train_timesteps <= high:
                null = self._predict(z, t, self.inversion_prompt, take=inputs)
                output = guide(null, output, self.cfg.true_cfg)
            z = self.scheduler.step(output, t, z, return_dict=False)[0]
        return z / self.cfg.nudge

    def _predict(
        self,
        z: torch.Tensor,
        t: int,
        prompt: Prompt,
        *,
        keep: AttentionInputs | None = None,
        take: AttentionInputs | None = None,
    ) -> torch.Tensor:
        """The U-Net's prediction (B, C, h, w) float32: epsilon or v, as its scheduler's config says."""
        text = prompt.embeds.to(z.device, self.dtype).expand(len(z), -1, -1)
        self.switch.keep, self.switch.take = keep, take
        try:
            return self.unet(z.to(self.dtype), t, text, return_dict=False)[0].float()
        finally:
            self.switch.keep = self.switch.take = None


def select_unet_blocks(unet: UNet2DConditionModel, spec: str | Sequence[str]) -> list[str]:
    """The module names of the transformer blocks that `teacher.injection.blocks` selects.

    Args:
        spec: all, down, mid, up, last:SHARE (a share of depth), or a list of names.

    Raises:
        ConfigError: for an unknown name, or a group that only FLUX has.
    """
    suffix = ".attn1"
    names = [name.removesuffix(suffix) for name, _ in unet.named_modules() if name.endswith(suffix)]
    # Modules are listed as down, up, mid; the forward pass runs the middle before the way up.
    in_order = sorted(names, key=lambda name: ("down_blocks", "mid_block", "up_blocks").index(name.split(".")[0]))
    if (last := last_blocks(in_order, spec)) is not None:
        return last
    if isinstance(spec, str):
        if spec not in GROUPS:
            raise ConfigError(
                f"teacher.injection.blocks={spec}: a U-Net has {', '.join(GROUPS)}, last:SHARE, or give a list of "
                "block names; teacher.preset=ddim sets what suits it"
            )
        found = [name for name in names if spec == "all" or name.startswith(f"{spec}_block")]
        if not found:
            raise ConfigError(f"teacher.injection.blocks={spec}: this U-Net has no self-attention in that group")
        return found
    for name in spec:
        if name not in names:
            raise ConfigError(f"teacher.injection.blocks: no block {name!r}; {nearest(name, names)}")
    return list(spec)


def _refuse_flux_settings(cfg: TeacherConfig) -> None:
    """Refuse settings that this method cannot follow, before anything is loaded.

    Raises:
        ConfigError: for the first such setting.
    """
    if cfg.solver != "euler":
        raise ConfigError(f"teacher.solver={cfg.solver}: DDIM has its own solver; set teacher.solver=euler")
    if cfg.injection.tensors != "kv":
        raise ConfigError(
            f"teacher.injection.tensors={cfg.injection.tensors}: DDIM injects keys and values; set it to kv"
        )
    if cfg.injection.tokens != "all":
        raise ConfigError(
            f"teacher.injection.tokens={cfg.injection.tokens}: self-attention has no text tokens; set it to all"
        )
    if cfg.cache_location == "host":
        raise ConfigError("teacher.cache_location=host: DDIM's cache stays on its device; set it to auto")
    for key, default in FLUX_ONLY.items():
        if getattr(cfg, key) not in (default, "auto"):
            left = "null" if default is None else str(default).lower()
            raise ConfigError(
                f"teacher.{key}={getattr(cfg, key)}: for FLUX only; for Stable Diffusion set it to {left}"
            )


def _load_unet(path: Path, dtype: torch.dtype, device: torch.device) -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: no config.json; teacher.method=ddim needs unet/, vae/ and scheduler/")
    config = read_json(path / "config.json")
    if config.get("_class_name") != "UNet2DConditionModel":
        raise ModelError(f"{path}: U-Net class {config.get('_class_name')!r}; this teacher needs UNet2DConditionModel")
    conditions = [key for key in ("addition_embed_type", "class_embed_type") if config.get(key)]
    if conditions or config.get("in_channels") != config.get("out_channels"):
        what = conditions[0] if conditions else f"in_channels={config.get('in_channels')}"
        raise ModelError(f"{path}: {what}; this teacher needs a text-to-image model of Stable Diffusion 1.x or 2.x")
    try:
        model = UNet2DConditionModel.from_pretrained(path, torch_dtype=dtype, use_safetensors=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: cannot load the weights ({one_line(error)})") from error
    return model.requires_grad_(False).eval().to(device)
