"""Stage 2 in the fewest words: one process, no Ray, no DDP."""

from __future__ import annotations

import torch
from torch import Tensor

from gmd_ray.students import load_student
from gmd_ray.training.data.batches import Batches
from gmd_ray.training.data.datasets import SourcePairs, TargetPairs
from gmd_ray.training.data.mixing import Mixture
from gmd_ray.training.spec import TrainingSpec
from gmd_ray.training.worker.optim import learning_rate


def batches_of(spec: TrainingSpec, rank: int = 0, world_size: int = 1) -> Batches:
    cfg = spec.cfg.training
    assert spec.target is not None
    source = SourcePairs(
        spec.cfg.source, spec.source, scale=1, patch=cfg.patch, flip=True, seed=spec.seed, cache_bytes=1 << 20
    )
    target = TargetPairs(spec.target, scale=1, patch=cfg.patch, flip=True)
    mixture = Mixture(
        cfg.batch_size, cfg.source_ratio, len(spec.source), len(spec.target.ids), spec.seed, mode=cfg.mixing
    )
    return Batches(mixture, {"source": source, "target": target}, spec.seed, rank, world_size)


def plain_training(spec: TrainingSpec) -> dict[str, Tensor]:
    """Train as the loop promises to, in as few lines as possible."""
    cfg = spec.cfg.training
    module = load_student(spec.cfg.student).module.train()
    average = {key: value.clone() for key, value in module.state_dict().items()}
    optimizer = torch.optim.Adam(module.parameters(), lr=cfg.lr, betas=cfg.betas)
    batches = batches_of(spec)
    for step in range(cfg.steps):
        lq, hq, *_ = batches(step)
        optimizer.param_groups[0]["lr"] = learning_rate(step, cfg)
        optimizer.zero_grad()
        difference = module(lq) - hq
        error = difference.abs() if cfg.loss == "l1" else difference.square()
        if cfg.mixing == "loss":  # half and half, source first; the ratio weighs the two means
            half = cfg.batch_size // 2
            loss = cfg.source_ratio * error[:half].mean() + (1 - cfg.source_ratio) * error[half:].mean()
        else:
            loss = error.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), cfg.clip_grad_norm)
        optimizer.step()
        for key, value in module.state_dict().items():
            average[key] = cfg.ema * average[key] + (1 - cfg.ema) * value
    return {key.removeprefix("network."): value for key, value in average.items()}
