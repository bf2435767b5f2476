"""Ranges, choices, paths, and what each verb needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmd_ray.config import Config
from gmd_ray.config.judging import unmeasured_gate
from gmd_ray.config.limits import CHOICES, DEVICES, PATHS, RANGES, TEMPLATES
from gmd_ray.config.load import load_config
from gmd_ray.config.rules import check, flatten, require
from gmd_ray.errors import ConfigError
from gmd_ray.quality.catalogue import catalogue, known_metrics

METRICS = {name: catalogue()[name] for name in ("psnr", "ssim", "lpips", "nima", "niqe", "brisque", "inception_score")}


def test_every_number_has_a_range() -> None:
    def is_number(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    numbers = {key for key, value in flatten(Config()) if is_number(value)}
    assert numbers - set(RANGES) == {"seed"}


def test_every_rule_is_about_a_setting() -> None:
    known = {key for key, _ in flatten(Config())}
    assert {*RANGES, *CHOICES, *PATHS, *DEVICES, *TEMPLATES} <= known


def test_the_defaults_are_their_own_choice() -> None:
    values = dict(flatten(Config()))
    for key, choices in CHOICES.items():
        assert values[key] is None or values[key] in choices


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.source_ratio=1.01", "must lie in [0, 1]"),
        ("training.export=best", "by what? set training.validate_every too"),
        ("pretrain.arguments.width=8", "of which class? set pretrain.architecture too"),
        ("training.source_ratio=-0.1", "must lie in [0, 1]"),
        ("training.source_ratio=nan", "must lie in [0, 1]"),
        ("training.steps=0", "must lie in [1, inf)"),
        ("training.lr=0", "must lie in (0, inf)"),
        ("training.ema=1", "must lie in [0, 1)"),
        ("training.betas=[0.9,1.0]", "both must lie in [0, 1)"),
        ("teacher.strength=0", "must lie in (0, 1]"),
        ("teacher.strength=1.1", "must lie in (0, 1]"),
        ("source.limit=0", "must lie in [1, inf)"),
        ("scorer.fidelity_bound=28", "a bound on what? set scorer.fidelity too"),
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
        ("evaluation.online=baseline", "must be true, false, or a list of students' names"),
        ("teacher.solver=midpiont", "did you mean 'midpoint'?"),
        ("teacher.nudge=0", "must lie in (0, inf)"),
        ("teacher.true_cfg_interval=[0.6,0.4]", "must be two noise levels in [0, 1], low to high"),
        ("teacher.true_cfg_interval=[0,1.2]", "must be two noise levels in [0, 1], low to high"),
        ("teacher.injection.tensors=vk", "did you mean 'v'?"),
        ("teacher.injection.blocks=lat_single", "did you mean 'late_single'?"),
        ("teacher.injection.blocks=[1,2]", "or a list of module names"),
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


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("evaluation.metrics=[psnr,ssimm]", "evaluation.metrics: no metric 'ssimm'; did you mean 'ssim'?"),
        ("evaluation.metrics=[zzzzzzzz]", "`gmd-ray ls metrics` lists them"),
        ("scorer.metric=nimma", "scorer.metric: no metric 'nimma'; did you mean 'nima'?"),
        ("evaluation.weights={lpisp: s3://x}", "did you mean 'lpips'?"),
        ("evaluation.weights={psnr: s3://x}", "evaluation.weights.psnr: psnr is a formula and has no weights"),
        ("scorer.metric=psnr", "scorer.metric=psnr: needs a ground truth, which target images lack"),
        ("scorer.metric=inception_score", "has no value for a single image"),
        ("tracking.gates=[{metric: pnsr}]", "tracking.gates[0].metric: no metric 'pnsr'; did you mean 'psnr'?"),
    ],
)
def test_metrics_are_checked_by_whoever_knows_them(override: str, words: str) -> None:
    cfg = load_config([override])  # config knows no metrics of its own
    with pytest.raises(ConfigError) as caught:
        check(cfg, known_metrics=lambda: METRICS)
    assert words in str(caught.value)


def test_a_scorer_of_its_own_makes_the_metrics_name_void() -> None:
    check(load_config(["scorer.metric=psnr", "scorer.path=s3://b/scorer"]), known_metrics=lambda: METRICS)


COMPLETE = (
    "student.path=s3://b/x.pth", "teacher.path=a/b", "target.path=s3://b/lq", "source.hq=s3://b/hq",
    "source.lq=s3://b/lq", "evaluation.source_hq=s3://b/hq", "evaluation.source_lq=s3://b/lq",
)  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["tracking.gates=[{metric: musiq, dataset: source}]"], "gates[0].metric=musiq: never measured; add it to"),
        (["tracking.gates=[{min_gain: 1}]"], "gates[0].dataset=target: nothing to measure; set evaluation.target_lq"),
        (
            ["tracking.gates=[{dataset: source}]", "evaluation.source_hq=null", "evaluation.source_lq=null",
             "evaluation.target_lq=s3://b/t"],
            "gates[0].dataset=source: nothing to measure; set evaluation.source_hq",
        ),
    ],
)  # fmt: skip
def test_a_gate_that_can_never_hold_is_refused_before_the_run(settings: list[str], words: str) -> None:
    cfg = load_config([*COMPLETE, *settings])
    require(cfg, "generate")  # which asks no gate
    with pytest.raises(ConfigError) as caught:
        require(cfg, "adapt")
    assert words in str(caught.value)
    require(load_config([*COMPLETE, *settings, "tracking.enabled=false"]), "adapt")


def test_default_gates_do_not_stop_who_has_no_ground_truth() -> None:
    require(load_config(COMPLETE), "adapt")
    cfg = load_config([*COMPLETE, "evaluation.target_lq=s3://b/t"])
    require(cfg, "adapt")
    check(cfg, known_metrics=lambda: METRICS)


def test_a_gate_of_ones_own_asks_for_its_ground_truth() -> None:
    gates = "tracking.gates=[{metric: niqe}, {metric: psnr, dataset: target, min_gain: 1}]"
    cfg = load_config([*COMPLETE, "evaluation.target_lq=s3://b/t", gates])
    with pytest.raises(ConfigError, match=r"gates\[1\]\.metric=psnr: needs ground truth; set evaluation\.target_hq"):
        check(cfg, known_metrics=lambda: METRICS)
    cfg.evaluation.target_hq = "s3://b/hq"
    check(cfg, known_metrics=lambda: METRICS)


@pytest.mark.parametrize("preset", ["demo", "deblur_reds", "deblur_realblur", "sr_weak_to_strong", "sr_dped"])
def test_the_gates_of_every_preset_may_hold(preset: str) -> None:
    cfg = load_config([f"preset={preset}"], known_metrics=known_metrics)
    assert unmeasured_gate(cfg) is None


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
        require(load_config(["preset=demo"]), verb)


def test_training_on_pseudo_pairs_alone_needs_no_source() -> None:
    cfg = load_config(["student.path=s3://b/x.pth", "training.source_ratio=0"])
    require(cfg, "finetune")
    cfg.controls = ["source_only"]
    with pytest.raises(ConfigError, match=r"finetune needs source\.hq"):
        require(cfg, "finetune")
