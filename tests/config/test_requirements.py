"""The settings that each verb needs."""

from __future__ import annotations

import pytest

from gmd_ray.config.load import load_config
from gmd_ray.config.requirements import require
from gmd_ray.errors import ConfigError


def test_each_verb_says_all_that_it_lacks() -> None:
    cfg = load_config([])
    expected = {
        "generate": "generate needs target.path=..., student.path=..., teacher.path=...",
        "finetune": "finetune needs student.path=..., source.hq=..., "
        "source.lq=... (or source.degradation=... to make it)",
        "pretrain": "pretrain needs source.hq=..., source.lq=... (or source.degradation=... to make it), "
        "student.path=... (or pretrain.architecture=... to start anew)",
        "evaluate": "evaluate needs student.path=..., evaluation.target_lq=... (or evaluation.source_hq=...)",
        "adapt": "adapt needs target.path=..., student.path=..., teacher.path=..., source.hq=..., "
        "source.lq=... (or source.degradation=... to make it), evaluation.target_lq=... (or evaluation.source_hq=...)",
    }
    for verb, line in expected.items():
        with pytest.raises(ConfigError) as caught:
            require(cfg, verb)
        assert str(caught.value) == line
        require(load_config(["preset=toy"]), verb)


def test_training_on_pseudo_pairs_alone_needs_no_source() -> None:
    cfg = load_config(["student.path=s3://b/x.pth", "training.source_ratio=0"])
    require(cfg, "finetune")
    cfg.controls = ["source_only"]
    with pytest.raises(ConfigError, match=r"finetune needs source\.hq"):
        require(cfg, "finetune")
