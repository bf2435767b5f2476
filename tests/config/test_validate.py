"""Ranges, choices and paths of single settings, and rules between settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmd_ray.config import Config
from gmd_ray.config.keys import PATHS, flatten
from gmd_ray.config.load import load_config
from gmd_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.source_ratio=1.01", "must lie in [0, 1]"),
        ("training.export=best", "needs validations to choose by; set training.validate_every too"),
        ("pretrain.arguments.width=8", "are those of a class; set pretrain.architecture too"),
        ("training.source_ratio=-0.1", "must lie in [0, 1]"),
        ("training.source_ratio=nan", "must lie in [0, 1]"),
        ("training.steps=0", "must lie in [1, inf)"),
        ("training.lr=0", "must lie in (0, inf)"),
        ("training.ema=1", "must lie in [0, 1)"),
        ("training.betas=[0.9,1.0]", "both must lie in [0, 1)"),
        ("teacher.strength=0", "must lie in (0, 1]"),
        ("teacher.strength=1.1", "must lie in (0, 1]"),
        ("source.limit=0", "must lie in [1, inf)"),
        ("scorer.fidelity_bound=28", "needs a metric; set scorer.fidelity to psnr, ssim, lpips or dists"),
        ("scorer.fidelity=psrn", "did you mean 'psnr'?"),
        ("scorer.tiles=-1", "must lie in [0, inf)"),
        ("scorer.threshold=inf", "must lie in (-inf, inf)"),
        ("teacher.pool.min=0", "must lie in [1, inf)"),
        ("teacher.pool.min=3", "more than teacher.pool.max=1"),
        ("teacher.tile=64", "teacher.tile_overlap=64: must be less than teacher.tile=64"),
        ("teacher.method=sdedt", "did you mean 'sdedit'?"),
        ("teacher.color_fix=adian", "did you mean 'adain'?"),
        ("evaluation.online=[basline]", "evaluation.online: no student 'basline'; did you mean 'baseline'?"),
        ("evaluation.online=[median]", "no student 'median'; known: adapted, baseline"),
        ("evaluation.metrics=[psnr,ssim,psnr]", "evaluation.metrics: 'psnr' is named twice"),
        ("controls=[median,median]", "controls: 'median' is named twice"),
        ("evaluation.online=null", "evaluation.online=None: must be true, false, or a list of students' names"),
        ("teacher.injection.blocks=null", "teacher.injection.blocks=None: known: all, single"),
        ("evaluation.online=baseline", "must be true, false, or a list of students' names"),
        ("teacher.solver=midpiont", "did you mean 'midpoint'?"),
        ("teacher.nudge=0", "must lie in (0, inf)"),
        ("teacher.true_cfg_interval=[0.6,0.4]", "must be two noise levels in [0, 1], low to high"),
        ("teacher.true_cfg_interval=[0,1.2]", "must be two noise levels in [0, 1], low to high"),
        ("teacher.injection.tensors=vk", "did you mean 'v'?"),
        ("teacher.injection.blocks=lat_single", "did you mean 'late_single'?"),
        ("teacher.injection.blocks=[1,2]", "or a list of module names"),
        ("teacher.injection.blocks=last:0", "a share of depth is last:SHARE, with a share in (0, 1], such as last:0.5"),
        ("teacher.injection.blocks=last:1.5", "a share of depth is last:SHARE, with a share in (0, 1]"),
        ("teacher.injection.blocks=last", "a share of depth is last:SHARE, with a share in (0, 1]"),
        ("teacher.injection.steps=1.0", "must be a whole number of intervals, or a share of them between 0 and 1"),
        ("teacher.injection.steps=-1", "must lie in [0, inf)"),
        ("teacher.injection.steps=nan", "or a share of them between 0 and 1"),
        ("training.optimizer=adamv", "did you mean 'adam"),
        ("training.loss=l3", "known: charbonnier, l1, l2"),
        ("training.schedule=linear", "known: constant, cosine"),
        ("teacher.dtype=float16", "did you mean 'bfloat16'?"),
        ("student.device=gpu", "known: auto, cpu, cuda, cuda:N"),
        ("controls=[sourceonly]", "did you mean 'source_only'?"),
        ("source.lq_template=x4", "must hold {} once"),
        ("tracking.gates=[{against: basline}]", "tracking.gates[0].against=basline: did you mean 'baseline'?"),
        ("tracking.gates=[{against: median}]", "tracking.gates[0].against=median: known: baseline, champion"),
        ("tracking.gates=[{dataset: targt}]", "did you mean 'target'?"),
        ("evaluation.metrics=[psnr,[x]]", "evaluation.metrics[1]=['x'] must be text"),
        ("evaluation.target_hq=s3://b/hq", "set evaluation.target_lq too"),
        ("evaluation.source_hq=s3://b/hq", "set evaluation.source_lq, or source.degradation"),
        ("teacher.gpus_per_replica=0", "must lie in [1, inf)"),
        ("teacher.gpus_per_replica=2", "set teacher.pool.num_gpus=2, or teacher.device=cpu"),
        ("teacher.pool.num_gpus=2", "one rank uses one; set teacher.gpus_per_replica too"),
    ],
)
def test_values_out_of_bounds(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([override])
    line = str(caught.value)
    assert words in line
    assert "\n" not in line
    assert any(key in line for key, _ in flatten(Config()))


@pytest.mark.parametrize(
    "override",
    [
        "training.source_ratio=0",
        "training.source_ratio=1",
        "teacher.strength=1",
        "training.ema=0",
        "student.device=cuda:3",
        "teacher.injection.blocks=[single_transformer_blocks.3]",
        "teacher.method=package.module:factory",
        "evaluation.online=[baseline]",
        "training.max_failures=-1",
    ],
)
def test_values_on_the_bound(override: str) -> None:
    load_config([override])


def test_the_gpus_of_a_replica_are_its_pools() -> None:
    load_config(["teacher.gpus_per_replica=2", "teacher.pool.num_gpus=2"])
    load_config(["teacher.gpus_per_replica=2", "teacher.device=cpu"])
    for pool, device in ((1, "auto"), (4, "cuda"), (1, "cpu"), (2, "cuda:0")):
        with pytest.raises(ConfigError, match="teacher"):
            load_config(["teacher.gpus_per_replica=2", f"teacher.pool.num_gpus={pool}", f"teacher.device={device}"])


def test_median_needs_the_restored_images() -> None:
    with pytest.raises(ConfigError, match=r"set generation\.keep_restored=true"):
        load_config(["controls=[median]", "generation.keep_restored=false"])


def test_paths_must_exist_unless_remote_or_made_by_the_run(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    for key in PATHS:
        if key.startswith("evaluation."):
            continue  # these come in twos
        with pytest.raises(ConfigError, match=f"{key}={missing}: no such file or folder"):
            load_config([f"{key}={missing}"])
    with pytest.raises(ConfigError, match=r"evaluation\.weights\.lpips=.*: no such file or folder"):
        load_config([f"evaluation.weights.lpips={missing}"])
    load_config([f"target.path={missing}"], check_paths=False)
    load_config(["target.path=s3://bucket/photos"])
    load_config([f"out={tmp_path}/run", f"target.path={tmp_path}/run/world/lq"])


@pytest.mark.parametrize("path", ["/nowhere/flux", "./nowhere", "models/flux/dev"])
def test_a_teacher_folder_must_exist(path: str) -> None:
    with pytest.raises(ConfigError, match=f"teacher.path={path}: no such file or folder"):
        load_config([f"teacher.path={path}"])


@pytest.mark.parametrize("path", ["black-forest-labs/FLUX.1-dev", "gpt2", "hf://a/b/c"])
def test_a_teacher_of_the_hub_is_not_looked_up(path: str) -> None:
    assert load_config([f"teacher.path={path}"]).teacher.path == path
