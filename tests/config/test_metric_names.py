"""Names of metrics, and promotion gates that can never hold."""

from __future__ import annotations

import pytest

from gmd_ray.config.load import load_config
from gmd_ray.config.metric_names import unmeasured_promotion_gate
from gmd_ray.config.requirements import require
from gmd_ray.config.validate import validate
from gmd_ray.errors import ConfigError
from gmd_ray.quality.catalogue import catalogue, known_metrics

METRICS = {name: catalogue()[name] for name in ("psnr", "ssim", "lpips", "nima", "niqe", "brisque", "inception_score")}


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
        validate(cfg, known_metrics=lambda: METRICS)
    assert words in str(caught.value)


def test_a_scorer_of_its_own_makes_the_metrics_name_void() -> None:
    validate(load_config(["scorer.metric=psnr", "scorer.path=s3://b/scorer"]), known_metrics=lambda: METRICS)


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
    validate(cfg, known_metrics=lambda: METRICS)


def test_a_gate_of_ones_own_asks_for_its_ground_truth() -> None:
    gates = "tracking.gates=[{metric: niqe}, {metric: psnr, dataset: target, min_gain: 1}]"
    cfg = load_config([*COMPLETE, "evaluation.target_lq=s3://b/t", gates])
    with pytest.raises(ConfigError, match=r"gates\[1\]\.metric=psnr: needs ground truth; set evaluation\.target_hq"):
        validate(cfg, known_metrics=lambda: METRICS)
    cfg.evaluation.target_hq = "s3://b/hq"
    validate(cfg, known_metrics=lambda: METRICS)


@pytest.mark.parametrize("preset", ["toy", "deblur_reds", "deblur_realblur", "sr_weak_to_strong", "sr_dped"])
def test_the_gates_of_every_preset_may_hold(preset: str) -> None:
    cfg = load_config([f"preset={preset}"], known_metrics=known_metrics)
    assert unmeasured_promotion_gate(cfg) is None
