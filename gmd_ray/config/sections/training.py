"""Settings of Stage 2: the fine-tune, and the pretraining of a student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gmd_ray.config.sections import checks
from gmd_ray.config.sections.setting import setting

SCHEDULES = ("constant", "cosine", "multistep")


@dataclass
class TrainingConfig:
    """Stage 2: the fine-tune of the student on source pairs and accepted pairs."""

    steps: int = setting(20_000, "Number of optimiser steps (paper).", ge=1)
    batch_size: int = setting(32, "Samples in the global batch, over all workers (paper).", ge=1)
    source_ratio: float = setting(0.9, "rho, the share of source pairs in each global batch (paper).", ge=0, le=1)
    mixing: str = setting(
        "batch",
        "batch: source_ratio is the share of the slots of a batch (paper). loss: half of each batch is source, and "
        "source_ratio weighs the two mean losses.",
        choices=("batch", "loss"),
    )
    patch: int = setting(
        128, "Side of the random training crop, in LQ pixels; smaller images are padded by reflection.", ge=1
    )
    flip: bool = setting(True, "Random horizontal flips and quarter turns, the same for both images of a pair.")
    optimizer: str = setting("adam", "Optimiser.", choices=("adam", "adamw"))
    lr: float = setting(2e-5, "Learning rate; the paper says only that it is reduced.", gt=0)
    betas: tuple[float, float] = setting(
        (0.9, 0.99), "Decay rates of the two running means of Adam and AdamW.", ge=0, lt=1
    )
    weight_decay: float = setting(0.0, "Weight decay of AdamW.", ge=0)
    schedule: str = setting(
        "constant", "Course of the learning rate after the warm-up; cosine ends at zero.", choices=SCHEDULES
    )
    milestones: list[int] = setting(
        [],
        "Steps at which the multistep schedule multiplies the learning rate by lr_decay.",
        ge=1,
        check=checks.ascending_steps,
    )
    lr_decay: float = setting(0.5, "Factor of the multistep schedule.", gt=0, le=1)
    warmup_steps: int = setting(500, "Number of steps of linear warm-up.", ge=0)
    loss: str = setting(
        "l1",
        "Pixel loss; l2 is the mean squared error, and psnr is minus the PSNR in dB.",
        choices=("l1", "l2", "charbonnier", "psnr"),
    )
    perceptual: float = setting(0.0, "Weight of a VGG19 feature distance beside the pixel loss; 0 leaves it out.", ge=0)
    perceptual_weights: str | None = setting(
        None, "Local file of torchvision's vgg19 state dict; nothing is downloaded.", path=True
    )
    ema: float = setting(
        0.999,
        "Decay of the exponential moving average that is evaluated and exported; 0 switches it off.",
        ge=0,
        lt=1,
    )
    clip_grad_norm: float = setting(1.0, "Upper bound of the gradient norm; 0 switches clipping off.", ge=0)
    bf16: bool = setting(True, "Autocast to bfloat16 if the accelerator supports it; never on a CPU.")
    compile: bool = setting(
        False,
        "torch.compile of the student: minutes at the start, then faster steps; not together with strategy=fsdp.",
    )
    accumulate: int = setting(
        1,
        "Number of parts in which a worker takes its share of the global batch: less memory, and the same gradient up "
        "to rounding.",
        ge=1,
    )
    strategy: str = setting(
        "ddp",
        "fsdp (FSDP2) shards weights, gradients and optimiser state, for students that do not fit a GPU.",
        choices=("ddp", "fsdp"),
    )
    channels_last: bool = setting(
        False,
        "Memory layout of feature maps: about 1.4 times as fast for plain CNNs on a CPU; architectures that call "
        "`view` on feature maps refuse it.",
    )
    num_workers: int = setting(1, "Number of training processes.", ge=1)
    min_workers: int | None = setting(
        None,
        "Go on with as few workers as this when machines are lost, and grow back to num_workers; the global batches "
        "stay the same. null: num_workers. A cluster that can never hold them is refused, and one that may grow is "
        "waited for.",
        ge=1,
    )
    use_gpu: bool = setting(False, "Give each worker a GPU.")
    cpus_per_worker: float = setting(
        1.0, "CPUs of a worker; also its number of torch threads, and of threads that load data, at least 1.", ge=0
    )
    labels: dict[str, str] = setting(
        {}, "Labels of the nodes on which the workers run, such as `pool: trainer` for a node group."
    )
    cache_gb: float = setting(
        2.0, "Decoded source images that each worker keeps in memory, in units of 1e9 bytes.", ge=0
    )
    checkpoint_every: int = setting(
        1000, "Number of steps between checkpoints, from which an interrupted run resumes.", ge=1
    )
    keep_checkpoints: int = setting(2, "Number of checkpoints that are kept, the last ones.", ge=1)
    validate_every: int = setting(
        0,
        "Number of steps between validations: the mean PSNR of the averaged weights on the first validation_images "
        "held-out source pairs (evaluation.source_hq). The best checkpoints are then kept instead of the last, beside "
        "the very last. 0 switches it off.",
        ge=0,
    )
    validation_images: int = setting(8, "Number of images of a validation.", ge=1)
    export: str = setting(
        "last",
        "last: the averaged weights after the last step. best: those with the highest validation PSNR.",
        choices=("last", "best"),
    )
    supervised_hq: str | None = setting(
        None,
        "Folder or URL of the ground truth of the target photos, by the stems of their ids; for the `supervised` "
        "control alone.",
        published=True,
    )
    log_every: int = setting(50, "Number of steps between logged values.", ge=1)
    max_failures: int = setting(
        3,
        "Number of worker groups that may die before the run gives up; a worker that takes others with it counts once. "
        "-1: any number.",
        ge=-1,
    )
    max_preemption_failures: int = setting(
        -1,
        "Number of times that nodes may be taken away from the workers before the run gives up; these do not count in "
        "max_failures. -1: any number.",
        ge=-1,
    )


@dataclass
class PretrainConfig:
    """`gmd-ray pretrain`: a student trained on the source pairs alone, ahead of Stage 2.

    `steps`, `lr` and `schedule` of this section replace those of `training`, and `training.milestones` follow from
    them; all else is as `training` has it.
    """

    architecture: str | None = setting(
        None,
        "Class name of a spandrel network to train from random weights, such as SwinIR; null continues from "
        "`student.path`.",
    )
    arguments: dict[str, Any] = setting({}, "Arguments of that class, by name.")
    reinitialise: bool = setting(False, "Take the architecture and file layout of `student.path`, and random weights.")
    steps: int = setting(500_000, "Number of optimiser steps (paper).", ge=1)
    lr: float = setting(2e-4, "Learning rate; SwinIR's own.", gt=0)
    schedule: str = setting(
        "multistep",
        "Course of the learning rate; multistep multiplies it by training.lr_decay after 1/2, 4/5, 9/10 and 19/20 of "
        "the steps.",
        choices=SCHEDULES,
    )
