"""The FLUX teacher: null-prompt inversion, then guided reconstruction with injected attention."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ConfigError
from gmd_ray.hashing import short_digest
from gmd_ray.images.padding import pad_to_multiple
from gmd_ray.images.tiling import tiled
from gmd_ray.teachers.acceleration.graphs import CudaRecorder, ForwardGraphs, records_forwards
from gmd_ray.teachers.acceleration.prepare import accelerate
from gmd_ray.teachers.acceleration.step_cache import StepCache
from gmd_ray.teachers.catalogue.distilled import refuse_step_distilled
from gmd_ray.teachers.cost.memory import Budget, MemoryPlan, modulation_home, plan_memory
from gmd_ray.teachers.cost.workload import TeacherFiles
from gmd_ray.teachers.directory import model_directory, read_json
from gmd_ray.teachers.fingerprint import weights_digest
from gmd_ray.teachers.flux.blocks import select_blocks
from gmd_ray.teachers.flux.families.family import check_directory
from gmd_ray.teachers.flux.families.load import load_transformer
from gmd_ray.teachers.flux.latents import load_codec, pack, unpack
from gmd_ray.teachers.flux.projection import FluxProjector, ProjectionPlan, Prompt
from gmd_ray.teachers.flux.sampler import time_grid
from gmd_ray.teachers.injection import injected_intervals
from gmd_ray.teachers.prompts import load_prompts
from gmd_ray.teachers.settings import check_teacher_tiles, device_and_dtype


class FluxTeacher:
    """A transformer of one of FLUX's families and its autoencoder as a `Teacher`.

    The result for an image depends on its pixels and the settings. Between batch shapes it differs by rounding only:
    below 1e-4 in float32. In bfloat16 rounding errors grow from one evaluation to the next: up to 0.05 on the tests'
    random weights, at 25 steps and `true_cfg` 3, and 0.02 without an inversion.
    """

    def __init__(self, cfg: TeacherConfig) -> None:
        """Load the model from `cfg.path`, a directory in the diffusers layout or a hub id.

        Raises:
            ModelError: the directory does not hold a FLUX teacher, or its weights are not safetensors.
            ConfigError: settings that the model or this machine cannot meet.
        """
        path = model_directory(cfg.path)
        self.device, dtype = device_and_dtype(cfg)
        family = check_directory(cfg, path)
        refuse_step_distilled(cfg, path)
        self._files, self._budget = TeacherFiles.read(path), Budget.of(self.device, cfg.gpus_per_replica)
        self._number_bytes = dtype.itemsize
        known = load_prompts(cfg, path)
        # Embeddings from a table beside the weights may be shorter than the settings say; the memory plan counts these.
        text = max(len(known[prompt].prompt.embeds) for prompt in (cfg.prompt, cfg.inversion_prompt))
        self._memory_cfg = replace(cfg, max_sequence_length=text)
        modulation = modulation_home(self._files, self._memory_cfg, self._budget, dtype.itemsize)
        self._memory_cfg.modulation = modulation
        self.model = load_transformer(path / "transformer", family, dtype, self.device, cfg)
        self.ranks = self.model.ranks
        self.codec = load_codec(path / "vae", dtype, self.device, cfg.vae_tile_above)
        self.scheduler = read_json(path / "scheduler" / "scheduler_config.json")
        self._schedule = family.schedule if cfg.schedule == "auto" else cfg.schedule
        self.multiple = 2 * self.codec.factor
        self.batch_multiple = 1 if cfg.tile else self.multiple
        check_teacher_tiles(cfg, self.multiple)
        injection = cfg.injection
        self.inject_steps = injected_intervals(injection, cfg.steps)
        self.blocks = select_blocks(self.model.block_names(), injection.blocks) if self.inject_steps else []
        self.prompt, self.inversion_prompt = (
            Prompt(prompt.embeds.to(self.device, dtype), prompt.pooled.to(self.device, dtype))
            for prompt in (known[cfg.prompt].prompt, known[cfg.inversion_prompt].prompt)
        )
        origin, null_origin = known[cfg.prompt].origin, known[cfg.inversion_prompt].origin
        self.cfg = cfg
        home = None
        if family.tables:
            home = self.device if modulation == "device" else torch.device("cpu")
        tables = accelerate(self.model, cfg, self.device, home)
        self.projector = FluxProjector(self.model, tables)
        self.step_cache = self.projector.step_cache = None if cfg.step_cache is None else StepCache(cfg.step_cache)
        if records_forwards(cfg, self.device):
            self.projector.graphs = ForwardGraphs(CudaRecorder(self.device))
        pixel_settings = {
            "steps": cfg.steps, "solver": cfg.solver, "strength": cfg.strength, "nudge": cfg.nudge,
            "prompt": cfg.prompt, "inversion_prompt": cfg.inversion_prompt, "guidance": cfg.guidance,
            "inversion_guidance": cfg.inversion_guidance, "true_cfg": [cfg.true_cfg, *cfg.true_cfg_interval],
            "injection": [injection.tensors, self.blocks, injection.tokens, self.inject_steps],
            "tile": [cfg.tile, cfg.tile_overlap], "dtype": str(dtype),
            "max_sequence_length": cfg.max_sequence_length, "embeddings": [origin, null_origin],
        }  # fmt: skip
        # These settings are newer than the first stores. They enter the fingerprint only where they are not the
        # default, so that the fingerprints of those stores stay valid.
        for key in ("cache_dtype", "vae_tile_above", "step_cache", "precision"):
            if getattr(cfg, key) != getattr(TeacherConfig, key):
                pixel_settings[key] = getattr(cfg, key)
        # The grid of a FLUX.1 directory is in its scheduler's config, which the digest of the weights covers.
        if self._schedule != "scheduler":
            pixel_settings["schedule"] = self._schedule
        self.fingerprint = short_digest(weights_digest(path), json.dumps(pixel_settings, sort_keys=True))

    def project(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        """Project images: float32 RGB in [0, 1], (B, 3, H, W), any H and W -> the same shape, on the CPU.

        Nothing is random, so `ids` are not used.
        """
        assert len(ids) == restored.shape[0]
        images = restored.to(self.device, non_blocking=True)
        batch = self._tiles_at_once(images)
        return tiled(self._project_whole, images, self.cfg.tile, self.cfg.tile_overlap, batch=batch).cpu()

    def take_counts(self) -> dict[str, int]:
        """See `Teacher`: evaluations of one image or tile, and those in which the step cache skipped most blocks."""
        return {} if self.step_cache is None else asdict(self.step_cache.take_count())

    def _tiles_at_once(self, images: torch.Tensor) -> int:
        """The number of tiles that one forward takes of these images, (B, 3, H, W), together: at least B.

        It is `pool.batch_size`, or fewer where so many would not fit, or would move the cache from the device. Ranks
        that share a model take one tile of each image: one that ran out of memory alone would fall out of step.
        """
        count, height, width = len(images), *images.shape[-2:]
        tile, most = self.cfg.tile, self.cfg.pool.batch_size
        if tile == 0 or max(height, width) <= tile or most < 2 * count or self.ranks > 1:
            return count
        least = self.memory(count, height, width)
        while most > count:
            try:
                plan = self.memory(most, height, width)
            except ConfigError:
                plan = None
            if plan and (plan.cache, plan.cache_location) == (least.cache, least.cache_location):
                return most
            most -= count
        return count

    def memory(self, batch: int, height: int, width: int) -> MemoryPlan:
        """The memory that a batch of images, or tiles, of that size in pixels needs, and where its cache goes.

        Raises:
            ConfigError: they cannot fit; the message has the numbers.
        """
        return plan_memory(self._files, self._memory_cfg, batch, height, width, self._budget, self._number_bytes)

    @torch.no_grad()
    def _project_whole(self, restored: torch.Tensor) -> torch.Tensor:
        """Project images or tiles (B, 3, H, W) in one piece."""
        height, width = restored.shape[-2:]
        memory = self.memory(len(restored), height, width)
        padded = pad_to_multiple(restored, self.multiple)
        z = self.codec.encode(padded * 2 - 1)  # (B, C, h, w)
        h, w = z.shape[-2:]
        tokens = self.projector(pack(z), self.model.image_ids(h, w, z.device), self._plan(h * w // 4, memory))
        pixels = self.codec.decode(unpack(tokens, h, w))
        return ((pixels + 1) / 2).clamp(0, 1)[..., :height, :width]

    def _plan(self, tokens: int, memory: MemoryPlan | None = None) -> ProjectionPlan:
        """The settings as a plan for images of that many packed tokens."""
        cfg = self.cfg
        location = memory.cache_location if memory else cfg.cache_location
        embeds_guidance = self.model.config.guidance_embeds
        return ProjectionPlan(
            times=time_grid(cfg.steps, tokens, self.scheduler, cfg.strength, self._schedule),
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
            repeated=location != "host" and (memory is None or memory.records),
        )
