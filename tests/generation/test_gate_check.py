"""The check of the gate in a run: warnings where the score prefers the worse images, and no harm otherwise."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from gmd_ray.config import ScorerConfig
from gmd_ray.generation import generate
from gmd_ray.generation.checks.gate import GateCheck
from gmd_ray.pairstore.audit.verify import verify
from gmd_ray.pairstore.store import PairStore
from gmd_ray.pairstore.thresholds import GATE_CHECK_FILE, read_gate
from gmd_ray.quality.calibration import orders
from gmd_ray.report.gate_page import gate_page
from tests.generation.world import World, write_photos


@dataclass
class Smoothness:
    """A scorer whose order is known: the less high-pass, the higher or, as `niqe` has it, the lower the score."""

    higher_is_better: bool = True
    likes_noise: bool = False
    fault: type[Exception] | None = None
    scored: int = 0
    fingerprint: str = "smooth"

    def score(self, images: torch.Tensor) -> torch.Tensor:
        if self.fault is not None and self.scored >= 24:
            raise self.fault("out of order\nhere")
        self.scored += len(images)
        blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        noise = (images - blurred).std((1, 2, 3))
        return noise if self.likes_noise == self.higher_is_better else -noise


@pytest.fixture
def paired(tmp_path: Path) -> World:
    world = World(tmp_path).build(20)
    write_photos(tmp_path / "source", [f"{i:02d}.png" for i in range(40)])
    world.cfg.source.hq = str(tmp_path / "source")
    world.cfg.source.degradation = "noise25"
    return world


def run(world: World, **scorer: Any) -> tuple[PairStore, list[Smoothness]]:
    """A run, its store, and the scorers that it loaded: the check's first."""
    loaded: list[Smoothness] = []

    def load(cfg: ScorerConfig) -> Smoothness:
        loaded.append(Smoothness(**scorer))
        return loaded[-1]

    generate(world.cfg, models=replace(world.models(), scorer=load))
    return PairStore(world.store), loaded


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "cannot be trusted" in record.getMessage()]


@pytest.mark.parametrize("higher", [True, False])
def test_a_score_that_likes_noise_is_told(
    higher: bool, paired: World, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    store, loaded = run(paired, higher_is_better=higher, likes_noise=True)
    [warning] = warnings(caplog)
    assert "source: BACKWARDS: a clean photo scores better than a degraded photo in 0.0 % of all combi" in warning
    assert f"`gmd-ray gate {paired.cfg.out} --calibrate` has more" in warning
    source, target = store.read(GATE_CHECK_FILE)["checks"]
    assert (source["group"], source["pairs"], source["verdict"]) == ("source", 32, "backwards")
    assert (target["group"], target["pairs"], target["verdict"]) == ("target", 20, "right"), "sharpened, as it likes it"
    assert loaded[0].scored == 2 * 32 + 20, "and no more images than these"
    view = read_gate(store, 0.0)
    for text in (view.text(), gate_page(view)):
        assert "annot be trusted: source: BACKWARDS" in text
    assert verify(store).findings == []


def test_a_score_in_order_is_not(paired: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="gmd_ray")
    store, _ = run(paired)
    assert any("gate: source: in the right order" in record.getMessage() for record in caplog.records)
    [warning] = warnings(caplog)
    assert "target: BACKWARDS: a pseudo-target scores better than a photo in" in warning, "the teacher adds edges"
    assert "either the teacher makes the photos worse, or the score takes" in warning
    assert len(read_gate(store, 0.0).warnings) == 1


def test_truths_of_held_out_photos_are_asked_too(paired: World, caplog: pytest.LogCaptureFixture) -> None:
    paired.cfg.evaluation.target_lq = paired.cfg.source.hq  # as if the sharper one were the truth
    paired.cfg.evaluation.target_hq = str(paired.root / "noisy")
    write_photos(paired.root / "noisy", [f"{i:02d}.png" for i in range(40)])
    store, _ = run(paired)
    checks = store.read(GATE_CHECK_FILE)["checks"]
    assert [(check["group"], check["verdict"]) for check in checks][1] == ("target test", "unclear")
    assert len(warnings(caplog)) == 1, "truths that equal their photos are no reason to warn"


def test_without_source_pairs_nothing_is_loaded(fresh: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="gmd_ray")
    store, loaded = run(fresh)
    assert len(loaded) == 1, "the stage's own"
    assert any("not checked: there are no source pairs" in record.getMessage() for record in caplog.records)
    assert store.read(GATE_CHECK_FILE) is None


@pytest.mark.parametrize("fault", [RuntimeError, MemoryError])
def test_a_check_that_fails_ends_nothing(
    fault: type[Exception], paired: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="gmd_ray")
    store, _ = run(paired, fault=fault)
    [line] = [record.getMessage() for record in caplog.records if "is not checked" in record.getMessage()]
    assert line == f"the gate is not checked: {fault.__name__}: out of order here"
    assert store.index().num_rows == 20


def test_a_finished_store_is_not_checked_again(paired: World) -> None:
    run(paired)
    store, loaded = run(paired)
    assert loaded == []
    assert len(store.read(GATE_CHECK_FILE)["checks"]) == 2


def test_a_metric_of_a_whole_repository_is_not_loaded_by_the_driver(
    paired: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="gmd_ray")
    paired.cfg.scorer.path, paired.cfg.scorer.metric = None, "qalign"

    def load(cfg: ScorerConfig) -> Any:
        raise AssertionError("loaded")

    check = GateCheck(paired.cfg, load)
    check.before(PairStore(paired.store), [])
    check.after(PairStore(paired.store))
    assert "qalign is too large for this process" in caplog.text


def test_large_photos_are_cut(paired: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "LARGEST", 8)
    sizes: list[tuple[int, ...]] = []

    class Sizes(Smoothness):
        def score(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(tuple(images.shape[-2:]))
            return super().score(images)

    store = PairStore(paired.store)
    GateCheck(paired.cfg, lambda _: Sizes()).before(store, [])
    assert set(sizes) == {(8, 8)}
