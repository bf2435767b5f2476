"""Every setting of a run, typed, with its unit and its reason.

`paper` marks a value the paper gives; everything else is this project's choice (restoration.md 0, 1.5; teacher.md 0).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class SourceConfig:
    """Paired data of the domain the student was trained on: two folders, or HQ images and a degradation preset."""

    hq: str | None = None
    """Folder or URL of clean images, read recursively."""
    lq: str | None = None
    """Folder or URL of their degraded versions; leave out to degrade `hq` on the fly."""
    lq_template: str = "{}"
    """Relative stem of the LQ file for an HQ stem, e.g. `{}x4`."""
    degradation: str | None = None
    """Preset of `gmd_ray.images.degradations`, used where `lq` is not given."""
    degradation_args: dict[str, Any] = field(default_factory=dict)
    """Single fields of that preset to replace."""
    gray: bool = False
    """Read every image as luma, replicated to three channels."""
    limit: int | None = None
    """Use only the first n pairs, sorted by id."""


@dataclass
class TargetConfig:
    """The low-quality photos to adapt to; nothing clean is known about them."""

    path: str | None = None
    """Folder or URL, read recursively."""
    gray: bool = False
    """Read every image as luma, replicated to three channels."""
    limit: int | None = None
    """Use only the first n images, sorted by id."""
    max_pixels: int = 89_478_485
    """A larger image becomes a failed row instead of exhausting memory (Pillow's own limit)."""


@dataclass
class PoolConfig:
    """An autoscaling Ray Data actor pool."""

    min: int = 1
    max: int = 1
    num_cpus: float = 1.0
    """CPUs each actor reserves; also the number of torch threads it uses, at least 1."""
    num_gpus: float = 0.0
    batch_size: int = 8
    """Images handed to the actor at once."""


@dataclass
class StudentConfig:
    """The restorer to adapt."""

    path: str | None = None
    """Checkpoint file in any layout that spandrel loads."""
    tile: int = 0
    """Side of the tiles for large images, in LQ pixels; 0 restores whole images."""
    tile_overlap: int = 32
    dtype: str = "float32"
    """Inference precision: float32 or bfloat16 (autocast)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    pool: PoolConfig = field(default_factory=PoolConfig)


@dataclass
class InjectionConfig:
    """Which attention keys and values of the inversion replace those of the reconstruction (teacher.md 1.2, 1.4)."""

    tensors: str = "kv"
    """kv (paper) or v (RF-Solver)."""
    blocks: Any = "late_single"
    """all, single, double, late_single (single blocks 20 and up, as RF-Solver), or a list of module names."""
    tokens: str = "all"
    """all or image."""
    steps: int | None = 5
    """The first n (noisiest) reconstruction intervals; None is all of them."""


@dataclass
class TeacherConfig:
    """The frozen text-to-image flow model that pulls a restored image onto the natural-image manifold."""

    path: str | None = None
    """Local directory or hub id in the diffusers layout."""
    method: str = "inversion"
    """inversion (paper), or sdedit: noise drawn to level `strength`, then the reconstruction alone."""
    preset: str | None = None
    """An inversion by name: gmd, gmd-literal, rf-solver, kv-edit, vital or none; fills the fields below when
    settings are loaded. Fields given beside it or after it win."""
    solver: str = "euler"
    """euler (paper); midpoint (RF-Solver) and fireflow: second order, at two and one evaluations an interval."""
    steps: int = 25
    """Intervals of each of the two passes."""
    strength: float = 1.0
    """Noise level at which the inversion stops and the reconstruction starts; 1.0 is pure noise (paper)."""
    nudge: float = 1.0
    """Factor on the latents that are inverted, taken off the result again; 1.15 helps smooth images to invert."""
    prompt: str = ""
    """Prompt of the reconstruction; the empty string is the null prompt."""
    inversion_prompt: str = ""
    guidance: float = 2.0
    """Distilled guidance embedding of the reconstruction; ignored by models without one."""
    inversion_guidance: float = 1.0
    true_cfg: float | None = None
    """Weight w of v_null + w (v_prompt - v_null) in the reconstruction; None runs the prompt alone."""
    true_cfg_interval: tuple[float, float] = (0.0, 1.0)
    """Noise levels, both ends in, where `true_cfg` acts; elsewhere the prompt runs alone, at half the cost."""
    injection: InjectionConfig = field(default_factory=InjectionConfig)
    cache: str = "kv"
    """What the inversion leaves for injection: kv; input, half the memory where both are injected; lockstep, memory of
    one evaluation for as many more forward passes as are injected. Equal up to rounding."""
    max_sequence_length: int = 512
    """T5 tokens; a shorter length is encoded anew, never sliced."""
    tile: int = 0
    """Side of the tiles for images larger than it, in pixels; 0 projects whole images."""
    tile_overlap: int = 64
    dtype: str = "auto"
    """Weights and activations: auto (bfloat16 on CUDA, float32 on CPU), float32, bfloat16. Latents stay float32."""
    device: str = "auto"
    pool: PoolConfig = field(default_factory=lambda: PoolConfig(batch_size=4))


@dataclass
class ScorerConfig:
    """The no-reference gate."""

    metric: str = "nima"
    """Name of a pyiqa no-reference metric (paper: nima)."""
    path: str | None = None
    """Directory of a NIMA-form scorer (config.json, model.safetensors), used instead of `metric`."""
    weights: str | None = None
    """Local weights of `metric`, where the metric's cache must not be used."""
    threshold: float = 4.2
    """tau (paper); a pair is accepted at `score >= threshold`, or `<=` where lower is better."""
    device: str = "auto"
    pool: PoolConfig = field(default_factory=PoolConfig)


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
    report_images: int = 12
    """Rows of pictures in report.html, of each kind."""
    pairs_hq: str | None = None
    """Ground truth of the target images where it exists: for the report only, never for training."""


@dataclass
class GateConfig:
    """One promotion gate: the candidate's mean against a reference, on one test set."""

    metric: str = "psnr"
    dataset: str = "target"
    """target or source."""
    against: str = "baseline"
    """baseline, champion, or the name of a control."""
    min_gain: float = 0.0
    """Smallest improvement, in the metric's own direction; negative allows a loss."""


@dataclass
class TrackingConfig:
    """MLflow runs and the model registry."""

    uri: str | None = None
    """Server or database URI; default sqlite under `out`."""
    experiment: str = "gmd_ray"
    model: str = "gmd-student"
    """Registered model name."""
    gates: list[GateConfig] = field(
        default_factory=lambda: [
            GateConfig(),
            GateConfig(dataset="source", min_gain=-0.2),
        ]
    )
    enabled: bool = True


@dataclass
class RayConfig:
    """The Ray session of a run that finds no cluster."""

    address: str | None = None
    """auto or host:port to join a cluster; default: the job's own, else a private local one."""
    num_cpus: int | None = None
    """Of a private local cluster; default: what the machine has, or what the smallest pools need where that is more."""
    object_store_memory: int | None = None
    """Bytes, of a private local cluster."""


@dataclass
class Config:
    """A whole run."""

    out: str = "runs/default"
    """Run directory: local path or URL."""
    seed: int = 0
    log_interval_s: float = 10.0
    """Seconds between progress lines in a job log."""
    prepare: str | None = None
    """Data made before the run: `demo` draws the toy world under `<out>/world`."""
    controls: list[str] = field(default_factory=list)
    """Fine-tunes to run beside the adapted one for comparison: source_only, median (median-filtered `restored`)."""
    source: SourceConfig = field(default_factory=SourceConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)
