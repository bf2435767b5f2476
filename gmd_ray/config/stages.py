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
    grace_s: float = 60.0
    """Seconds that a run asked to stop (SIGTERM) takes to finish and write what is in flight. `ray job stop` kills
    after RAY_JOB_STOP_WAIT_TIME_S of the cluster's head, 3 s by default: raise that with it."""
    batch_timeout_s: float | None = None
    """Seconds that a batch may take in a stage. Its worker is ended then, its images are tried alone, and one that
    hangs max_attempts times is a failed row. Left out: no_progress_timeout_s over max_attempts + 2, so that the image
    is given up before the run; for each image at least no_progress_timeout_s over rows_per_block. 0: no bound."""
    no_progress_timeout_s: int = 1800
    """A stall longer than this is an error. What moves is a whole block: set it above the loading of the models plus
    rows_per_block times the seconds of the slowest image."""


@dataclass
class TrainingConfig:
    """Stage 2: the fine-tune of the student on source pairs and accepted pairs."""

    steps: int = 20_000
    """Optimiser steps (paper)."""
    batch_size: int = 32
    """Global batch over all workers (paper)."""
    source_ratio: float = 0.9
    """rho, the share of source pairs in each global batch (paper)."""
    mixing: str = "batch"
    """batch: source_ratio is the share of slots (paper). loss: half of each batch is source, and source_ratio weighs
    the two mean losses."""
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
    """constant, cosine (to zero) or multistep."""
    milestones: list[int] = field(default_factory=list)
    """Steps at which multistep multiplies the learning rate by lr_decay."""
    lr_decay: float = 0.5
    warmup_steps: int = 500
    loss: str = "l1"
    """l1, l2 (mean squared error), charbonnier or psnr (minus PSNR in dB)."""
    perceptual: float = 0.0
    """Weight of a VGG19 feature distance beside the pixel loss; 0 leaves it out."""
    perceptual_weights: str | None = None
    """Local file of torchvision's vgg19 state dict; nothing is downloaded."""
    ema: float = 0.999
    """Decay of the exponential moving average that is evaluated and exported; 0 switches it off."""
    clip_grad_norm: float = 1.0
    """0 switches clipping off."""
    bf16: bool = True
    """Autocast where the accelerator supports it; never on CPU."""
    compile: bool = False
    """torch.compile of the student: minutes at the start, faster steps; not with strategy=fsdp."""
    accumulate: int = 1
    """Parts in which a worker takes its share of the global batch: less memory, the same gradient to rounding."""
    strategy: str = "ddp"
    """ddp, or fsdp (FSDP2: weights, gradients and optimiser state sharded) for students that do not fit a GPU."""
    channels_last: bool = False
    """Memory layout of feature maps: about 1.4 times as fast for plain CNNs on CPU; architectures that `view` feature
    maps refuse it."""
    num_workers: int = 1
    min_workers: int | None = None
    """Go on with as few workers as this where machines are lost, and grow back to num_workers; the global batches stay.
    Left out: num_workers. A cluster that can never hold them is refused; one that may grow is waited for."""
    use_gpu: bool = False
    cpus_per_worker: float = 1.0
    """Also the number of torch threads of a worker, and of threads that load data, at least 1."""
    cache_gb: float = 2.0
    """Decoded source images that each worker keeps in memory, in GB."""
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    """Last checkpoints that are kept."""
    validate_every: int = 0
    """Steps between validations: mean PSNR of the averaged weights on the first validation_images held-out source pairs
    (`evaluation.source_hq`); the best checkpoints are kept instead of the last, beside the very last. 0 switches it
    off."""
    validation_images: int = 8
    export: str = "last"
    """last, or best: the averaged weights after the last step, or those of the highest validation PSNR."""
    supervised_hq: str | None = None
    """Ground truth of the target photos, by their ids' stems: for the `supervised` control alone."""
    log_every: int = 50
    max_failures: int = 3
    """Worker groups that may die before the run gives up; a worker that takes others with it is one death."""


@dataclass
class PretrainConfig:
    """`gmd-ray pretrain`: a student on the source pairs alone, ahead of Stage 2.

    `steps`, `lr` and `schedule` of this section stand in place of those of `training`, and `training.milestones` follow
    from them; the rest is as in `training`.
    """

    architecture: str | None = None
    """Class name of a spandrel network to start anew; left out: from `student.path`."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of that class."""
    reinitialise: bool = False
    """Take the architecture and layout of `student.path`, and new weights."""
    steps: int = 500_000
    """Optimiser steps (paper)."""
    lr: float = 2e-4
    """SwinIR's own."""
    schedule: str = "multistep"
    """constant, cosine or multistep: times training.lr_decay after 1/2, 4/5, 9/10 and 19/20 of the steps."""


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
    weights_dir: str | None = None
    """Directory that `gmd-ray fetch --to` wrote, for every metric without a file of its own; null takes torch's hub
    directory."""
    crop_border: int = 0
    """Pixels cut from each side before full-reference metrics."""
    device: str = "auto"
    pool: PoolConfig = field(default_factory=PoolConfig)
    online: Any = False
    """Students whose output the teacher also projects, at test time: a list of their names, or True for all. Each
    becomes a row, `baseline+teacher`; every actor of the pool holds the teacher too."""
    allow_overlap: bool = False
    """Measure on photos that are also in `target.path`. Refused otherwise, by the bytes of the files: what is learned
    from says little of other photos."""
    report_images: int = 12
    """Rows of pictures in report.html, of each kind."""
    pairs_hq: str | None = None
    """Ground truth of the target images where it exists: for the report only, never for training."""
