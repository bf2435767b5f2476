"""What a teacher needs of memory, known before its weights are read; and so where its cache lives (teacher.md 3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ConfigError
from gmd_ray.teachers.cost.codec import codec_activations, codec_parameters
from gmd_ray.teachers.cost.dimensions import NO_INJECTION, FluxDimensions, Injection, image_tokens
from gmd_ray.teachers.cost.flops import cache_bytes, injected_evaluations, tile_grid
from gmd_ray.teachers.cost.projections import TeacherFiles, has_inversion, table_rows, teacher_cost
from gmd_ray.teachers.flux.cache import CHUNK
from gmd_ray.teachers.flux.modulation import KEPT_ROWS
from gmd_ray.teachers.flux.sampler import time_grid

USABLE = 0.94
"""Of the free device memory: the rest is for kernels' workspaces and the allocator's gaps."""
TRAINED_SIDE = 1024
"""Pixels; FLUX's own size, for which a choice is made where no image has been seen."""


@dataclass(frozen=True)
class Budget:
    """Free bytes of one process: the device's, and its share of the host's."""

    device: int
    host: int
    shared: bool = False
    """Device and host are one memory, as on a CPU."""

    @classmethod
    def of(cls, device: torch.device, ranks: int = 1) -> Budget:
        """What is free now; what PyTorch holds of the GPU in reserve counts as free, other models' tensors do not.

        Host memory is shared out evenly among the machine's GPUs, for each may have a replica that counts on it.

        Of several ranks, what the poorest has: all must come to the same plan, or they would wait for each other in
        passes that only some of them make.
        """
        host = _free_host() // max(ranks, _gpus() if device.type == "cuda" else 1)
        if device.type != "cuda":
            free = host
        else:
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            free = torch.cuda.mem_get_info(device)[0] + unused
        if ranks > 1:
            least = torch.tensor([free, host], device=device)
            dist.all_reduce(least, dist.ReduceOp.MIN)
            free, host = (int(value) for value in least)
        return cls(free, host, shared=device.type != "cuda")


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one replica, and what follows from them."""

    cache: str
    """kv, input or lockstep."""
    cache_location: str
    """device or host."""
    modulation: str
    """device or host."""
    resident: int
    """Evaluations whose entries are on the device."""
    weights: int
    """On the device: transformer, the modulation layers where they are there, autoencoder."""
    tables: int
    activations: int
    cached: int
    """On the device."""
    host: int
    """Pinned memory of the cache."""

    @property
    def device(self) -> int:
        return self.weights + self.tables + self.activations + self.cached


def plan_memory(
    files: TeacherFiles,
    cfg: TeacherConfig,
    batch: int,
    height: int,
    width: int,
    budget: Budget,
    number_bytes: int = 2,
) -> MemoryPlan:
    """The first of the settings' possibilities that fits, in the order device, host, recomputed.

    Args:
        height, width: of the images in pixels; of larger ones than `teacher.tile`, a tile counts.
        number_bytes: of a weight and an activation.

    Raises:
        ConfigError: with the numbers, where none fits.
    """
    homes = [cfg.modulation] if cfg.modulation != "auto" else ["device", "host"]
    if cfg.offload == "group":
        homes = ["host"]
    if cfg.cache == "lockstep":
        places = ["lockstep"]
    elif cfg.cache_location != "auto":
        places = [cfg.cache_location]
    else:
        places = ["device", "lockstep"] if budget.shared else ["device", "host", "lockstep"]
    if not _kept(files, cfg):
        places = ["device"]
    device = int(budget.device * USABLE)
    host = int(budget.host / 2 if cfg.host_cache_gb is None else cfg.host_cache_gb * 1e9 / cfg.gpus_per_replica)
    tried = []
    for place in places:
        for home in homes:
            plan = _plan(files, cfg, batch, height, width, number_bytes, place, home, device)
            if plan.device <= device and plan.host <= host:
                return plan
            tried.append(plan)
    least = min(tried, key=lambda plan: plan.device)
    parts = {"weights": least.weights, "modulation tables": least.tables, "activations": least.activations}
    parts[f"cache ({least.cache_location if least.cache != 'lockstep' else 'lockstep'})"] = least.cached
    listed = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
    wanted_host = f", {least.host / 1e9:.2f} GB of host memory (of {host / 1e9:.2f})" if least.host else ""
    raise ConfigError(
        f"teacher: {batch} x {height} x {width} pixels need at least {least.device / 1e9:.2f} GB ({listed})"
        f"{wanted_host}, usable are {device / 1e9:.2f} GB; lower teacher.tile or teacher.pool.batch_size, or set "
        "teacher.cache_location=auto, teacher.quantization=fp8 or teacher.offload=group"
    )


def modulation_home(files: TeacherFiles, cfg: TeacherConfig, budget: Budget, number_bytes: int = 2) -> str:
    """device or host, before any image is known: as an image of the tile's size, else FLUX's own, would have it.

    Raises:
        ConfigError: where not even the smallest image would fit, or no tile of the size that is set.
    """
    side, batch = cfg.tile or files.multiple, cfg.pool.batch_size if cfg.tile else 1
    least = plan_memory(files, cfg, batch, side, side, budget, number_bytes)
    if cfg.tile:
        return least.modulation
    try:
        usual = plan_memory(files, cfg, cfg.pool.batch_size, TRAINED_SIDE, TRAINED_SIDE, budget, number_bytes)
    except ConfigError:
        return "host" if cfg.modulation == "auto" else least.modulation
    return usual.modulation


def weight_bytes(size: FluxDimensions, cfg: TeacherConfig, number_bytes: int, modulation: str) -> int:
    """Of the transformer on the device: all of it or a rank's share, its blocks in 8 bits, or two blocks at a time."""
    d = size.width
    double, single = 24 * d * d + 18 * d + 4 * size.head_dim, 12 * d * d + 8 * d + 2 * size.head_dim
    blocks = size.double * double + size.single * single
    ends = size.parameters() - size.modulation_parameters() - blocks
    if cfg.sharding == "tensor":
        blocks -= size.split_parameters() - size.split_parameters() // cfg.gpus_per_replica
    if cfg.offload == "group":
        blocks = 2 * max(double if size.double else 0, single if size.single else 0)
    # Biases, RMS scales and the scales of the 8-bit rows are one part in a thousand of a FLUX block.
    block_bytes = blocks if cfg.quantization == "fp8" else blocks * number_bytes
    layers = size.modulation_parameters() * number_bytes if modulation == "device" else 0
    return ends * number_bytes + block_bytes + layers


def _kept(files: TeacherFiles, cfg: TeacherConfig) -> int:
    """Evaluations that leave something for the reconstruction."""
    if not has_inversion(cfg):
        return 0
    steps = Injection.from_config(cfg, files.size).steps
    return injected_evaluations(cfg.solver, steps) if steps else 0


def _plan(
    files: TeacherFiles, cfg: TeacherConfig, batch: int, height: int, width: int, number_bytes: int,
    place: str, home: str, device: int,
) -> MemoryPlan:  # fmt: skip
    size = files.size
    _, tall, wide = tile_grid(height, width, cfg.tile, cfg.tile_overlap)
    tokens = image_tokens(tall, wide, files.multiple)
    cache = "lockstep" if place == "lockstep" else cfg.cache
    cost = teacher_cost(files, replace(cfg, cache=cache), batch, tall, wide, number_bytes, codec=False)
    times = time_grid(cfg.steps, tokens, files.scheduler, cfg.strength)
    rows = max(KEPT_ROWS, table_rows(cfg, times))
    # The autoencoder takes one image at a time, in tiles where it is large, and never beside the transformer.
    pixels = tall * wide if cfg.vae_tile_above is None else min(tall * wide, cfg.vae_tile_above)
    images = batch * 3 * tall * wide * 4
    activations = max(cost.activation_bytes, codec_activations(files.codec, pixels, number_bytes)) + 3 * images
    plan = MemoryPlan(
        cache=cache,
        cache_location="host" if place == "host" else "device",
        modulation=home,
        resident=2,
        weights=weight_bytes(size, cfg, number_bytes, home) + codec_parameters(files.codec) * number_bytes,
        tables=rows * size.modulation_columns() * number_bytes,
        activations=activations,
        cached=cost.cache_bytes // cfg.gpus_per_replica,
        host=0,
    )
    if place != "host":
        return plan
    kept = _kept(files, cfg)
    injection = Injection.from_config(cfg, size) if kept else NO_INJECTION
    shape = (size, batch, tokens, cfg.max_sequence_length, injection, number_bytes)
    fp8 = cfg.cache_dtype == "fp8"
    bank = cache_bytes(*shape, cache=cache, fp8=fp8) // cfg.gpus_per_replica
    whole = cache_bytes(*shape, cache=cache) // cfg.gpus_per_replica if fp8 else 0
    room = (device - plan.device + plan.cached - whole) // max(bank, 1)
    resident = min(kept, max(2, room))
    away = (kept - resident) * bank
    return replace(
        plan, resident=max(2, resident), cached=resident * bank + whole, host=-(-away // CHUNK) * CHUNK if away else 0
    )


def _gpus(listed: Path = Path("/proc/driver/nvidia/gpus")) -> int:
    """Of the machine or container, at least 1; CUDA itself shows a pool's actor no more than its own."""
    return max(1, len(list(listed.iterdir()))) if listed.is_dir() else max(1, torch.cuda.device_count())


def _free_host(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that processes may still take, of the machine and of the container (cgroup v2 or v1).

    A container's file cache counts as used there, though it gives way: the part not in use is taken off again.
    """
    found = []
    for line in meminfo.read_text().splitlines() if meminfo.is_file() else ():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    for folder, most, now, cached in (
        (cgroup, "memory.max", "memory.current", "inactive_file"),
        (cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, used, stat = folder / most, folder / now, folder / "memory.stat"
        if not limit.is_file() or not used.is_file() or limit.read_text().strip() == "max":
            continue
        numbers = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
        taken = int(used.read_text()) - int(numbers.get(cached, 0))
        found.append(max(0, int(limit.read_text()) - max(0, taken)))
    return min(found, default=1 << 62)
