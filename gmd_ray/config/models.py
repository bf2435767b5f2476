"""Settings of the student and of the scorer, and of the actor pools that every model runs in."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class PoolConfig:
    """An autoscaling Ray Data actor pool."""

    min: int = 1
    """Actors that stay up."""
    max: int = 1
    """Actors that the backlog may call up."""
    initial: int | None = None
    """Actors to start with, where the way up from `min` would waste time; None is `min`."""
    num_cpus: float = 1.0
    """CPUs each actor reserves; also the number of torch threads it uses, at least 1."""
    num_gpus: float = 0.0
    """GPUs each actor reserves; a fraction shares one."""
    resources: dict[str, float] = field(default_factory=dict)
    """Custom Ray resources each actor reserves, by name."""
    labels: dict[str, str] = field(default_factory=dict)
    """Labels of the nodes that the actors run on, e.g. a node group's `pool: teacher`."""
    batch_size: int = 8
    """Images handed to the actor at once."""


@dataclass
class StudentConfig:
    """The restorer to adapt."""

    path: str | None = None
    """Checkpoint file in any layout that spandrel loads, or a latent diffusion directory."""
    factory: str | None = None
    """A team's own student: `package.module:function`, which takes this section and loads `path` itself."""
    tile: int = 0
    """Side of the tiles for large images, in LQ pixels; 0 restores whole images."""
    tile_overlap: int | None = None
    """Pixels, a quarter of them at each cut as context alone. None: measured, four times how far the network looks; for
    latent diffusion, a quarter of the tile."""
    sampling_steps: int | None = None
    """Euler steps of a latent diffusion student, refused for others; None: as its directory says."""
    gradient_checkpointing: bool = False
    """Keep fewer activations in training and compute them again: memory against time, for latent diffusion."""
    dtype: str = "float32"
    """Inference precision: float32 or bfloat16 (autocast)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    pool: PoolConfig = field(default_factory=PoolConfig)


@dataclass
class ScorerConfig:
    """The no-reference gate."""

    metric: str = "nima"
    """Name of a pyiqa no-reference metric (paper: nima)."""
    path: str | None = None
    """Directory of a NIMA-form scorer (config.json, model.safetensors), used instead of `metric`."""
    weights: str | None = None
    """Weight file of `metric`, or a directory that `gmd-ray fetch --to` wrote; null takes torch's hub directory."""
    threshold: float = 4.2
    """tau (paper); a pair is accepted at `score >= threshold`, or `<=` where lower is better."""
    tiles: int = 0
    """0 scores the whole image (paper; NIMA sees a centre square of it). n: the mean over squares, n of them along the
    shorter side and as many as cover the longer one."""
    fidelity: str = "none"
    """Second opinion, between restored and pseudo-target, since `metric` cannot see a hallucination: none, psnr, ssim,
    lpips or dists. Its value is stored with every row."""
    fidelity_bound: float | None = None
    """A pair is accepted only with a fidelity at the bound or on its better side (psnr, ssim: above; lpips, dists:
    below). None stores the value and asks for nothing."""
    fidelity_weights: str | None = None
    """The same for `fidelity`; null takes the directory of `weights`, where that is one."""
    device: str = "auto"
    pool: PoolConfig = field(default_factory=PoolConfig)
