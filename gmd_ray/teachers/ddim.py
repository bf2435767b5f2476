"""Stable Diffusion 1.x and 2.x: DDIM inversion, then guided DDIM with self-attention injected (teacher.md 6).

The paper's "1.3B" teacher. At each step the inversion evaluates the U-Net at the noisier end's time, on the latents of
the cleaner end (Song et al., 2021, with t and t - 1 swapped), so evaluations of the two passes pair by equal time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from gmd_ray.config import TeacherConfig
from gmd_ray.config.validate import check_tiles
from gmd_ray.errors import ConfigError, ModelError, nearest
from gmd_ray.hashing import short_digest
from gmd_ray.images.padding import pad_to_multiple
from gmd_ray.images.tiling import tiled
from gmd_ray.teachers.directory import choose_device, choose_dtype, model_directory, read_json
from gmd_ray.teachers.fingerprint import weights_digest
from gmd_ray.teachers.flux.latents import load_codec
from gmd_ray.teachers.prompts import load_prompts
from gmd_ray.teachers.text_encoders import Prompt

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

Bank = dict[str, torch.Tensor]
"""Self-attention inputs (B, tokens, dim) by block. Keys and values are projected from them anew at replay: the same
numbers as the inversion's, in half the memory."""

GROUPS = ("all", "down", "mid", "up")
"""Of U-Net blocks, as `teacher.injection.blocks` names them."""

FLUX_ONLY: dict[str, object] = {
    "quantization": "none", "offload": "none", "compile": False, "attention_backend": None, "cache_dtype": "same",
    "host_cache_gb": None,
}  # fmt: skip
"""Settings that are refused unless they have this value, their default: to ignore them would break a promise."""


class Exchange:
    """What the injecting blocks of one U-Net are to do in the next forward."""

    def __init__(self) -> None:
        self.keep: Bank | None = None
        """Where they leave their inputs."""
        self.take: Bank | None = None
        """Whose keys and values replace their own."""


class InjectingSelfAttention(AttnProcessor2_0):
    """Self-attention over its own keys and values, or over those of another pass."""

    def __init__(self, name: str, exchange: Exchange) -> None:
        super().__init__()
        self.name, self.exchange = name, exchange

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self.exchange.keep is not None:
            self.exchange.keep[self.name] = hidden_states
        if self.exchange.take is not None:
            encoder_hidden_states = self.exchange.take[self.name]
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


class DDIMTeacher:
    """`UNet2DConditionModel` and its autoencoder as a `Teacher`.

    Of the settings, `steps` DDIM steps divide the whole range of times, and the noisiest `1 - strength` of them are
    left out of both passes; `true_cfg` is classifier-free guidance. What it keeps are attention inputs, on its device.
    Of no effect, for they are FLUX's: `guidance`, `inversion_guidance`, `cache`, `modulation`, `max_sequence_length`.
    What FLUX alone can do is refused: another `solver`, `FLUX_ONLY`, a cache on the host, injection of values or of
    image tokens alone. There is no memory plan. Latents stay float32.

    Between batch shapes the result differs by rounding only: below 1e-4 in float32; in bfloat16, where each step's
    rounding goes on into the next, below 0.1 on the tests' random weights at `true_cfg` 3.
    """

    def __init__(self, cfg: TeacherConfig) -> None:
        """Load from `cfg.path`.

        Raises:
            ModelError: a directory that is not Stable Diffusion's, or unsafe weights.
            ConfigError: settings that the model cannot meet.
        """
        from diffusers import DDIMInverseScheduler, DDIMScheduler

        path = model_directory(cfg.path)
        _check_settings(cfg)
        self.device = choose_device(cfg.device)
        dtype = choose_dtype(cfg.dtype, self.device)
        self.unet = _load_unet(path / "unet", dtype, self.device)
        self.codec = load_codec(path / "vae", dtype, self.device, cfg.vae_tile_above)
        self.multiple = self.codec.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        self.cfg, self.dtype = cfg, dtype
        check_tiles("teacher", cfg.tile, cfg.tile_overlap)
        if cfg.tile and (cfg.tile % self.multiple or cfg.tile_overlap % self.multiple):
            raise ConfigError(
                f"teacher.tile={cfg.tile}, teacher.tile_overlap={cfg.tile_overlap}: both must be multiples of "
                f"{self.multiple}"
            )
        # Clipping predicted latents to [-1, 1] is for models of pixels, and would break the inversion.
        config = {**read_json(path / "scheduler" / "scheduler_config.json"), "clip_sample": False}
        if config.get("timestep_spacing", "leading") not in ("leading", "trailing"):
            raise ModelError(f"{path}/scheduler: timestep_spacing={config['timestep_spacing']}; DDIM needs leading")
        self.scheduler = DDIMScheduler.from_config(config, thresholding=False)
        self.inverse = DDIMInverseScheduler.from_config(self.scheduler.config)
        for scheduler in (self.scheduler, self.inverse):
            scheduler.set_timesteps(cfg.steps)
        count = max(1, round(cfg.steps * cfg.strength))
        self.times: list[int] = self.scheduler.timesteps.tolist()[-count:]
        """Of the U-Net's evaluations, noisy to clean."""
        self.inject_steps = len(self.times) if cfg.injection.steps is None else cfg.injection.steps
        if self.inject_steps > len(self.times):
            raise ConfigError(f"teacher.injection.steps={cfg.injection.steps}: at most the {len(self.times)} steps run")
        self.blocks = select_blocks(self.unet, cfg.injection.blocks) if self.inject_steps else []
        self.exchange = Exchange()
        for name in self.blocks:
            self.unet.get_submodule(f"{name}.attn1").set_processor(InjectingSelfAttention(name, self.exchange))
        prompts = load_prompts(cfg, path)
        (self.prompt, origin), (self.inversion_prompt, null_origin) = prompts[cfg.prompt], prompts[cfg.inversion_prompt]
        pixel_settings = {
            "steps": [cfg.steps, len(self.times)], "nudge": cfg.nudge,
            "true_cfg": [cfg.true_cfg, *cfg.true_cfg_interval], "injection": [self.blocks, self.inject_steps],
            "tile": [cfg.tile, cfg.tile_overlap], "dtype": str(dtype), "embeddings": [origin, null_origin],
        }  # fmt: skip
        # Only where it is not the default: what was made before it counted stays valid.
        if cfg.vae_tile_above != TeacherConfig.vae_tile_above:
            pixel_settings["vae_tile_above"] = cfg.vae_tile_above
        self.fingerprint = short_digest("ddim", weights_digest(path), json.dumps(pixel_settings, sort_keys=True))

    def project(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        """float32 RGB in [0, 1], (B, 3, H, W), any H and W, -> the same shape; `ids` are not used, nothing is drawn."""
        assert len(ids) == restored.shape[0]
        images = restored.to(self.device, non_blocking=True)
        return tiled(self._project_whole, images, self.cfg.tile, self.cfg.tile_overlap).cpu()

    @torch.no_grad()
    def _project_whole(self, restored: torch.Tensor) -> torch.Tensor:
        height, width = restored.shape[-2:]
        z = self.codec.encode(pad_to_multiple(restored, self.multiple) * 2 - 1)
        pixels = self.codec.decode(self.reconstruct(*self.invert(z)))
        return ((pixels + 1) / 2).clamp(0, 1)[..., :height, :width]

    def invert(self, z: torch.Tensor) -> tuple[torch.Tensor, dict[int, Bank]]:
        """Clean latents (B, C, h, w) float32 to noisy ones, and what each injected evaluation left, by time."""
        z = z * self.cfg.nudge
        kept: dict[int, Bank] = {}
        injected = set(self.times[: self.inject_steps])
        for t in reversed(self.times):
            bank: Bank | None = None
            if t in injected:
                bank = kept[t] = {}
            output = self._predict(z, t, self.inversion_prompt, keep=bank)
            z = self.inverse.step(output, t, z, return_dict=False)[0]
        return z, kept

    def reconstruct(self, z: torch.Tensor, kept: dict[int, Bank]) -> torch.Tensor:
        """Noisy latents to clean ones; frees what each evaluation kept once used."""
        low, high = self.cfg.true_cfg_interval
        for t in self.times:
            bank = kept.pop(t, None)
            output = self._predict(z, t, self.prompt, take=bank)
            if self.cfg.true_cfg is not None and low <= t / self.scheduler.config.num_train_timesteps <= high:
                null = self._predict(z, t, self.inversion_prompt, take=bank)
                output = null + self.cfg.true_cfg * (output - null)
            z = self.scheduler.step(output, t, z, return_dict=False)[0]
        return z / self.cfg.nudge

    def _predict(
        self, z: torch.Tensor, t: int, prompt: Prompt, *, keep: Bank | None = None, take: Bank | None = None
    ) -> torch.Tensor:
        """What the U-Net predicts, epsilon or v as its scheduler says; float32."""
        text = prompt.embeds.to(z.device, self.dtype).expand(len(z), -1, -1)
        self.exchange.keep, self.exchange.take = keep, take
        try:
            return self.unet(z.to(self.dtype), t, text, return_dict=False)[0].float()
        finally:
            self.exchange.keep = self.exchange.take = None


def select_blocks(unet: UNet2DConditionModel, spec: str | Sequence[str]) -> list[str]:
    """The transformer blocks, by module name, that `teacher.injection.blocks` names.

    Args:
        spec: all, down, mid, up, or a list of names.

    Raises:
        ConfigError: for an unknown name, or a group of FLUX's.
    """
    suffix = ".attn1"
    names = [name.removesuffix(suffix) for name, _ in unet.named_modules() if name.endswith(suffix)]
    if isinstance(spec, str):
        if spec not in GROUPS:
            raise ConfigError(
                f"teacher.injection.blocks={spec}: a U-Net has {', '.join(GROUPS)}, or give a list of block names; "
                "teacher.preset=ddim sets what suits it"
            )
        found = [name for name in names if spec == "all" or name.startswith(f"{spec}_block")]
        if not found:
            raise ConfigError(f"teacher.injection.blocks={spec}: this U-Net has no self-attention there")
        return found
    for name in spec:
        if name not in names:
            raise ConfigError(f"teacher.injection.blocks: no block {name!r}; {nearest(name, names)}")
    return list(spec)


def _check_settings(cfg: TeacherConfig) -> None:
    """Refuse what this method cannot do, ahead of loading; one line for a key."""
    if cfg.solver != "euler":
        raise ConfigError(f"teacher.solver={cfg.solver}: DDIM has a solver of its own; leave it at euler")
    if cfg.injection.tensors != "kv":
        raise ConfigError(f"teacher.injection.tensors={cfg.injection.tensors}: DDIM injects both, kv")
    if cfg.injection.tokens != "all":
        raise ConfigError(f"teacher.injection.tokens={cfg.injection.tokens}: a U-Net attends to no text here; set all")
    if cfg.cache_location == "host":
        raise ConfigError("teacher.cache_location=host: DDIM's cache stays on its device; set it to auto")
    for key, default in FLUX_ONLY.items():
        if getattr(cfg, key) != default:
            left = "null" if default is None else str(default).lower()
            raise ConfigError(f"teacher.{key}={getattr(cfg, key)}: FLUX's alone; for Stable Diffusion set it to {left}")


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
        raise ModelError(f"{path}: cannot load the weights ({str(error).splitlines()[0]})") from error
    return model.requires_grad_(False).eval().to(device)
