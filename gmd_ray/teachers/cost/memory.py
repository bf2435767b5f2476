"""The memory that a teacher needs, computed before its weights are read, and where its cache goes as a consequence.

See docs/decisions.md, "Memory and cost".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ConfigError
from gmd_ray.teachers.cost.codec import codec_activations, codec_parameters
from gmd_ray.teachers.cost.dimensions import FluxDimensions
from gmd_ray.teachers.cost.workload import TeacherFiles, Workload
from gmd_ray.teachers.flux.cache import CHUNK
from gmd_ray.teachers.flux.modulation import KEPT_ROWS

USABLE = 0.94
"""Share of the free device memory that is planned; the rest is for kernels' workspaces and the allocator's gaps."""
TRAINED_SIDE = 1024
"""Side in pixels of the images that FLUX was trained on. Choices made before any image is seen assume it."""


@dataclass(frozen=True)
class Budget:
    """Free memory of one process, in bytes."""

    device: int
    host: int
    """The share of the host's memory that this process may use."""
    shared: bool = False
    """True if device and host are one memory, as on a CPU."""

    @classmethod
    def of(cls, device: torch.device, ranks: int = 1) -> Budget:
        """Measure the memory that is free now.

        GPU memory that PyTorch holds in reserve counts as free; tensors of other models do not. Host memory is divided
        evenly among the machine's GPUs, since each may run a replica that counts on it.

        Args:
            device: where this process runs its model.
            ranks: processes that share the model. All of them get the least that any of them has: they must come to
                the same plan, or some would wait forever for the others in passes that those do not make.
        """
        host = _free_host() // max(ranks, _gpus() if device.type == "cuda" else 1)
        if device.type != "cuda":
            free = host
        else:
            # What the allocator has taken from the driver and not given to a tensor.
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            free = torch.cuda.mem_get_info(device)[0] + unused
        if ranks > 1:
            least = torch.tensor([free, host], device=device)
            dist.all_reduce(least, dist.ReduceOp.MIN)
            free, host = (int(value) for value in least)
        return cls(free, host, shared=device.type != "cuda")


@dataclass(frozen=True)
class MemoryPlan:
    """The places where a replica keeps cache and layers, and the bytes that it needs on each rank."""

    cache: str
    """kv, input or lockstep."""
    cache_location: str
    """device or host."""
    modulation: str
    """device or host."""
    resident: int
    """Evaluations whose banks stay on the device while the others wait on the host."""
    weights: int
    """Bytes of weights on the device: transformer, autoencoder, and modulation layers that are kept there."""
    tables: int
    """Bytes of the modulation tables."""
    activations: int
    """Bytes of the largest activations, of transformer or autoencoder, and of the images."""
    cached: int
    """Bytes of the cache on the device."""
    host: int
    """Bytes of the cache in pinned host memory."""
    records: bool = True
    """False where recordings of forwards (`acceleration.graphs`) would not fit."""

    @property
    def device(self) -> int:
        """All bytes on the device."""
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
    """The first arrangement that the settings allow and the memory holds.

    The cache is tried on the device, then on the host, then recomputed (lockstep); for each of these, the forwards
    recorded, where they may be, then issued by the host; and for each of these, the modulation layers on the device,
    then on the host.

    Args:
        height, width: of the images in pixels. For images larger than `teacher.tile` the size of a tile counts.
        budget: free memory.
        number_bytes: bytes of a weight and of an activation.

    Raises:
        ConfigError: no arrangement fits; the message has the numbers of the smallest.
    """
    work = Workload.from_config(files, cfg, batch, height, width, number_bytes)
    homes = [cfg.modulation] if cfg.modulation != "auto" else ["device", "host"]
    if cfg.offload == "group":
        homes = ["host"]
    if not work.size.family.tables:
        homes = ["device"]  # the modulation layers stay in the model
    if cfg.cache == "lockstep":
        places = ["lockstep"]
    elif cfg.cache_location != "auto":
        places = [cfg.cache_location]
    else:
        # Where device and host are one memory, moving the cache frees nothing.
        places = ["device", "lockstep"] if budget.shared else ["device", "host", "lockstep"]
    if not work.injected:
        places = ["device"]  # there is no cache
    # The bound of the settings is a replica's, so each rank has its part of it; half of the free memory is the default.
    device = int(budget.device * USABLE)
    host = int(budget.host / 2 if cfg.host_cache_gb is None else cfg.host_cache_gb * 1e9 / cfg.gpus_per_replica)
    tried = []
    may_record = cfg.compile is True and cfg.gpus_per_replica == 1 and cfg.step_cache is None
    for place in places:
        for recorded in (True, False) if may_record and place != "host" else (False,):
            for home in homes:
                plan = _arrange(work, cfg, place, home, device, recorded=recorded)
                if plan.device <= device and plan.host <= host:
                    return replace(plan, records=recorded or not may_record)
                tried.append(plan)
    least = min(tried, key=lambda plan: plan.device)
    parts = {"weights": least.weights, "modulation tables": least.tables, "activations": least.activations}
    parts[f"cache ({least.cache_location if least.cache != 'lockstep' else 'lockstep'})"] = least.cached
    listed = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
    wanted_host = f", {least.host / 1e9:.2f} GB of host memory (of {host / 1e9:.2f})" if least.host else ""
    raise ConfigError(
        f"teacher: {batch} x {height} x {width} pixels need at least {least.device / 1e9:.2f} GB ({listed})"
        f"{wanted_host}, usable are {device / 1e9:.2f} GB; lower teacher.tile or teacher.pool.batch_size, or set "
        "teacher.cache_location=auto, teacher.precision=fp8 or teacher.offload=group"
    )


def modulation_home(files: TeacherFiles, cfg: TeacherConfig, budget: Budget, number_bytes: int = 2) -> str:
    """Choose where the modulation layers stay: device or host.

    The layers are placed before any image is known, so an image of the tile's size, or else of FLUX's training size,
    decides.

    Raises:
        ConfigError: a tile of the set size does not fit, or without tiles not even the smallest image does.
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
    """Bytes of the transformer's weights on the device of one rank.

    Args:
        cfg: `sharding`, `offload` and `precision` count.
        number_bytes: bytes of a weight that is not in 8 bits.
        modulation: device or host, where the modulation layers stay.
    """
    double, single = size.double_parameters(), size.single_parameters()
    blocks = size.double * double + size.single * single
    # Three parts: the blocks, the modulation layers, and the embedders and the projection at the ends.
    ends = size.parameters() - size.modulation_parameters() - blocks
    if cfg.sharding == "tensor":
        # Each rank has 1 / k of the split projections, and all of the rest.
        blocks -= size.split_parameters() - size.split_parameters() // cfg.gpus_per_replica
    if cfg.offload == "group":
        # One block computes while the next is copied in.
        blocks = 2 * max(double if size.double else 0, single if size.single else 0)
    # In 8 bits a weight is one byte: biases, RMS scales and the scales of the 8-bit rows are a thousandth of a block.
    block_bytes = blocks if cfg.precision == "fp8" else blocks * number_bytes
    layers = size.modulation_parameters() * number_bytes if modulation == "device" else 0
    return ends * number_bytes + block_bytes + layers


def _arrange(work: Workload, cfg: TeacherConfig, place: str, home: str, device: int, *, recorded: bool) -> MemoryPlan:
    """The bytes of one arrangement, whether it fits or not.

    Args:
        place: where the cache goes: device, host or lockstep.
        home: where the modulation layers stay: device or host.
        device: usable bytes of the device; on the host goes what they cannot hold.
        recorded: forwards are recorded, whose activations and bank are kept beside all else.
    """
    work = replace(work, cache="lockstep" if place == "lockstep" else cfg.cache)
    ranks, size, number_bytes = cfg.gpus_per_replica, work.size, work.number_bytes
    assert work.codec is not None
    _, tall, wide = work.tiles
    # The autoencoder takes one image at a time, in tiles of its own where it is large, and never runs beside the
    # transformer, so the larger of the two counts. Three batches of images (B, 3, H, W) in float32 are counted as well.
    pixels = tall * wide if cfg.vae_tile_above is None else min(tall * wide, cfg.vae_tile_above)
    codec_peak = codec_activations(work.codec, pixels, number_bytes)
    images = work.batch * 3 * tall * wide * 4
    recordings = work.activation_bytes() + (work.bank_bytes() if work.injected else 0) if recorded else 0
    steps = work.step_cache_bytes() if cfg.step_cache is not None else 0
    # Tables keep rows of earlier time grids up to KEPT_ROWS, and always those of the grid in use.
    rows = max(KEPT_ROWS, work.modulation_rows())
    plan = MemoryPlan(
        cache=work.cache,
        cache_location="host" if place == "host" else "device",
        modulation=home,
        resident=2,
        weights=weight_bytes(size, cfg, number_bytes, home) + codec_parameters(work.codec) * number_bytes,
        tables=rows * size.modulation_columns() * number_bytes if size.family.tables else 0,
        activations=max(work.activation_bytes(), codec_peak) + 3 * images + recordings + steps,
        cached=work.cache_bytes() // ranks,
        host=0,
    )
    if place != "host":
        return plan
    # With the cache on the host, the device holds as many banks as fit beside the rest, and at least two: one is used
    # while the other is copied. An 8-bit cache also needs one bank in the model's dtype.
    kept = len(work.injected)
    bank = work.bank_bytes(fp8=work.fp8_cache) // ranks
    whole = work.bank_bytes() // ranks if work.fp8_cache else 0
    room = (device - (plan.device - plan.cached) - whole) // max(bank, 1)
    resident = min(kept, max(2, room))
    away = (kept - resident) * bank
    # Pinned memory is taken in pieces of CHUNK bytes.
    return replace(
        plan, resident=max(2, resident), cached=resident * bank + whole, host=-(-away // CHUNK) * CHUNK if away else 0
    )


def _gpus(listed: Path = Path("/proc/driver/nvidia/gpus")) -> int:
    """GPUs of the machine or container, at least 1; from the driver's list, since CUDA shows an actor its own alone."""
    return max(1, len(list(listed.iterdir()))) if listed.is_dir() else max(1, torch.cuda.device_count())


def _free_host(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that processes may still take: the less of what the machine and its container (cgroup v2 or v1) allow.

    A container counts its file cache as used. The kernel frees the inactive part on demand, so that part counts as free
    here.
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
