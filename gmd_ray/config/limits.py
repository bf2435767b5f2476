"""What single settings may be: choices, ranges, paths that must exist, and what each verb needs."""

from __future__ import annotations

CHOICES: dict[str, tuple[str, ...]] = {
    "prepare": ("demo",),
    "student.dtype": ("float32", "bfloat16"),
    "teacher.dtype": ("auto", "float32", "bfloat16"),
    "teacher.method": ("inversion", "sdedit", "kontext", "ddim"),
    "teacher.solver": ("euler", "midpoint", "fireflow"),
    "teacher.sharding": ("tensor", "ulysses"),
    "teacher.cache": ("kv", "input", "lockstep"),
    "teacher.color_fix": ("none", "wavelet", "adain"),
    "teacher.cache_location": ("auto", "device", "host"),
    "teacher.cache_dtype": ("same", "fp8"),
    "teacher.modulation": ("auto", "device", "host"),
    "teacher.offload": ("none", "group"),
    "teacher.quantization": ("none", "fp8"),
    "teacher.injection.tensors": ("kv", "v"),
    "teacher.injection.tokens": ("all", "image"),
    "scorer.fidelity": ("none", "psnr", "ssim", "lpips", "dists"),
    "training.optimizer": ("adam", "adamw"),
    "training.schedule": ("constant", "cosine", "multistep"),
    "pretrain.schedule": ("constant", "cosine", "multistep"),
    "training.loss": ("l1", "l2", "charbonnier", "psnr"),
    "training.mixing": ("batch", "loss"),
    "training.strategy": ("ddp", "fsdp"),
    "training.export": ("last", "best"),
}
CONTROLS = ("source_only", "median", "supervised")
BLOCKS = ("all", "single", "double", "late_single", "down", "mid", "up")
DATASETS = ("target", "source")

POOLS = ("student.pool", "teacher.pool", "scorer.pool", "evaluation.pool")
RANGES: dict[str, str] = {
    "log_interval_s": "(0, inf)",
    "source.limit": "[1, inf)",
    "target.limit": "[1, inf)",
    "target.max_pixels": "[1, inf)",
    "student.sampling_steps": "[1, inf)",
    "student.tile": "[0, inf)",
    "student.tile_overlap": "[0, inf)",
    "teacher.steps": "[1, inf)",
    "teacher.strength": "(0, 1]",
    "teacher.nudge": "(0, inf)",
    "teacher.guidance": "[0, inf)",
    "teacher.inversion_guidance": "[0, inf)",
    "teacher.true_cfg": "[0, inf)",
    "teacher.injection.steps": "[0, inf)",
    "teacher.max_sequence_length": "[1, 512]",
    "teacher.host_cache_gb": "[0, inf)",
    "teacher.vae_tile_above": "[1, inf)",
    "teacher.tile": "[0, inf)",
    "teacher.tile_overlap": "[0, inf)",
    "teacher.gpus_per_replica": "[1, inf)",
    "scorer.threshold": "(-inf, inf)",
    "scorer.tiles": "[0, inf)",
    "scorer.fidelity_bound": "(-inf, inf)",
    "generation.rows_per_block": "[1, inf)",
    "generation.max_attempts": "[1, inf)",
    "generation.grace_s": "[0, inf)",
    "generation.batch_timeout_s": "[0, inf)",
    "generation.no_progress_timeout_s": "[1, inf)",
    "training.steps": "[1, inf)",
    "training.batch_size": "[1, inf)",
    "training.source_ratio": "[0, 1]",
    "training.patch": "[1, inf)",
    "training.lr": "(0, inf)",
    "training.weight_decay": "[0, inf)",
    "training.lr_decay": "(0, 1]",
    "training.warmup_steps": "[0, inf)",
    "training.perceptual": "[0, inf)",
    "training.accumulate": "[1, inf)",
    "training.ema": "[0, 1)",
    "training.clip_grad_norm": "[0, inf)",
    "training.num_workers": "[1, inf)",
    "training.min_workers": "[1, inf)",
    "training.cpus_per_worker": "[0, inf)",
    "training.cache_gb": "[0, inf)",
    "training.checkpoint_every": "[1, inf)",
    "training.keep_checkpoints": "[1, inf)",
    "training.validate_every": "[0, inf)",
    "training.validation_images": "[1, inf)",
    "training.log_every": "[1, inf)",
    "training.max_failures": "[-1, inf)",  # -1: without end, as Ray Train has it
    "pretrain.steps": "[1, inf)",
    "pretrain.lr": "(0, inf)",
    "evaluation.limit": "[1, inf)",
    "evaluation.crop_border": "[0, inf)",
    "evaluation.report_images": "[0, inf)",
    "plan.accelerators": "[1, inf)",
    "plan.tflops": "(0, inf)",
    "plan.scale": "[1, inf)",
    "plan.price_per_hour": "[0, inf)",
    "plan.storage_price": "[0, inf)",
    "plan.storage_months": "[0, inf)",
    "ray.num_cpus": "[1, inf)",
    "ray.object_store_memory": "[78643200, inf)",  # Ray's own minimum, 75 MiB
    **{f"{pool}.min": "[1, inf)" for pool in POOLS},
    **{f"{pool}.max": "[1, inf)" for pool in POOLS},
    **{f"{pool}.initial": "[1, inf)" for pool in POOLS},
    **{f"{pool}.num_cpus": "[0, inf)" for pool in POOLS},
    **{f"{pool}.num_gpus": "[0, inf)" for pool in POOLS},
    **{f"{pool}.batch_size": "[1, inf)" for pool in POOLS},
}
"""key -> interval; a value that is None is not held against it."""

PATHS = (
    "data.root",
    "source.hq",
    "source.lq",
    "target.path",
    "student.path",
    "teacher.prompt_embeddings",
    "scorer.path",
    "scorer.weights",
    "training.perceptual_weights",
    "training.supervised_hq",
    "scorer.fidelity_weights",
    "evaluation.target_lq",
    "evaluation.target_hq",
    "evaluation.source_hq",
    "evaluation.source_lq",
    "evaluation.pairs_hq",
    "evaluation.weights_dir",
)
"""Local paths that must exist; `teacher.path` may be a hub id instead, see `rules`."""

SETS = (
    "source.hq",
    "source.lq",
    "target.path",
    "training.supervised_hq",
    "evaluation.target_lq",
    "evaluation.target_hq",
    "evaluation.source_hq",
    "evaluation.source_lq",
    "evaluation.pairs_hq",
)
"""Paths that may be a published set, `SET/SPLIT/SIDE@ROOT`."""

READS: dict[str, tuple[str, ...]] = {
    "generate": ("target.",),
    "finetune": ("source.", "training.", "evaluation.source_"),
    "pretrain": ("source.", "evaluation.source_"),
    "evaluate": ("evaluation.",),
    "encode-prompts": (),
}
"""Which of `SETS` a verb reads, by their beginnings; a verb that is not here reads all."""

DEVICES = ("student.device", "teacher.device", "scorer.device", "evaluation.device")
TEMPLATES = ("source.lq_template", "evaluation.target_template", "evaluation.source_template")

NEEDED: dict[str, tuple[str, ...]] = {
    "plan": ("target.path", "teacher.path"),
    "generate": ("target.path", "student.path", "teacher.path"),
    "finetune": ("student.path",),
    "pretrain": (),
    "evaluate": ("student.path",),
    "encode-prompts": ("teacher.path",),
    "adapt": ("target.path", "student.path", "teacher.path"),
}
