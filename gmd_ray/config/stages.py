"""Settings of the stages: the stream of Stages 0 to 1b, the fine-tune, the evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gmd_ray.config.models import PoolConfig


@dataclass
class GenerationConfig:
    """Stages 0, 1 and 1b as one stream."""

    rows_per_block: int = 16
    """Images that travel, are written and are retried together."""
    keep_restored: bool = True
    """Write Stage 0's output beside the pseudo-target (the report and the controls need it)."""
    retry_failed: bool = False
    """Try rows again that an earlier run left as failed."""
    max_attempts: int = 2
    """Times a row may be begun before it is given up as one that kills its worker."""
    no_progress_timeout_s: int = 1800
    """A stall longer than this is an error; set it above model load plus the slowest batch."""


@dataclass
class TrainingConfig:
    """Stage 2: the fine-tune of the student on source pairs and accepted pairs."""

    steps: int = 20_000
    """Optimiser steps (paper)."""
    batch_size: int = 32
    """Global batch over all workers (paper)."""
    source_ratio: float = 0.9
    """rho, the share of source pairs in each global batch (paper)."""
    patch: int = 128
    """Side of the random training crop, in LQ pixels; smaller images are reflect-padded."""
    flip: bool = True
    """Random horizontal flips and quarter turns, the same for both images of a pair."""
    optimizer: str = "adam"
    """adam or adamw."""
    lr: float = 2e-5
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    schedule: str = "constant"
    """constant or cosine (to zero)."""
    warmup_steps: int = 500
    loss: str = "l1"
    """l1, l2 or charbonnier."""
    ema: float = 0.999
    """Decay of the exponential moving average that is evaluated and exported; 0 switches it off."""
    clip_grad_norm: float = 1.0
    """0 switches clipping off."""
    bf16: bool = True
    """Autocast where the accelerator supports it; never on CPU."""
    channels_last: bool = False
    """Memory layout of feature maps: about 1.4 times as fast for plain CNNs on CPU; architectures that `view` feature
    maps refuse it."""
    num_workers: int = 1
    use_gpu: bool = False
    cpus_per_worker: float = 1.0
    """Also the number of torch threads of a worker, and of threads that load data, at least 1."""
    cache_gb: float = 2.0
    """Decoded source images that each worker keeps in memory, in GB."""
    checkpoint_every: int = 1000
    log_every: int = 50
    max_failures: int = 3
    """Worker groups that may die before the run gives up."""


@dataclass
class EvaluationConfig:
    """Held-out tests: target (where ground truth exists) and source."""

    target_lq: str | None = None
    target_hq: str | None = None
    """Without ground truth, no-reference metrics alone are reported for `target_lq`."""
    target_template: str = "{}"
    source_hq: str | None = None
    source_lq: str | None = None
    """Left out: `source_hq` degraded by `source.degradation` with a fixed seed."""
    source_template: str = "{}"
    limit: int | None = None
    metrics: list[str] = field(default_factory=lambda: ["psnr", "ssim", "lpips", "nima", "niqe", "brisque"])
    weights: dict[str, str] = field(default_factory=dict)
    """Local weight file of a metric by name."""
    crop_border: int = 0
    """Pixels cut from each side before full-reference metrics."""
    device: str = "auto"
    pool: PoolConfig = field(default_factory=PoolConfig)
    online: Any = False
    """Students whose output the teacher also projects, at test time: a list of their names, or True for all. Each
    becomes a row, `baseline+teacher`; every actor of the pool holds the teacher too."""
    report_images: int = 12
    """Rows of pictures in report.html, of each kind."""
    pairs_hq: str | None = None
    """Ground truth of the target images where it exists: for the report only, never for training."""
