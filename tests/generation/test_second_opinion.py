"""The fidelity column, and the bound on it: stored by the run, applied by every reader."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from gmd_ray.errors import DataError, ResumeMismatchError
from gmd_ray.evaluation.store import open_store
from gmd_ray.generation import generate
from gmd_ray.generation.attempts.log import AttemptLog
from gmd_ray.generation.loading import Replica
from gmd_ray.generation.stages import Score
from gmd_ray.images.files.encode import decode_png, to_tensor
from gmd_ray.pairstore.export import export_pairs
from gmd_ray.pairstore.schema import PAIR_SCHEMA
from gmd_ray.pairstore.totals import Totals
from gmd_ray.quality import load_metric, load_scorer
from gmd_ray.training.data.targets import accepted_pairs
from tests.generation.shelf import ok_row, png
from tests.generation.world import World

Finished = tuple[World, Totals]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Totals]:
    world = World(tmp_path_factory.mktemp("measured")).build(8)
    world.cfg.scorer.fidelity = "psnr"
    world.cfg.scorer.threshold = 0.0
    return world, generate(world.cfg, models=world.models())


def psnr(row: dict) -> float:
    a, b = (to_tensor([decode_png(row[name])])[0] for name in ("pseudo_target", "restored"))
    return -10 * float(torch.log10(((a - b) ** 2).mean()))


def test_every_row_holds_its_fidelity(measured: Finished) -> None:
    world, books = measured
    assert books.accepted == 8, "a value without a bound rejects nothing"
    for row in world.rows().values():
        assert row["fidelity"] == pytest.approx(psnr(row), abs=1e-3)
    assert load_metric("psnr").higher_is_better


def test_moving_the_bound_costs_nothing_and_every_reader_follows(measured: Finished, tmp_path: Path) -> None:
    world = measured[0].copy(tmp_path)
    cfg = world.cfg
    cfg.scorer.fidelity, cfg.scorer.threshold = "psnr", 0.0
    values = sorted(float(row["fidelity"]) for row in world.rows().values())  # type: ignore[arg-type]
    cfg.scorer.fidelity_bound = values[5]
    books = generate(cfg, models=world.models())
    assert not world.projected()
    assert (books.accepted, books.rejected, books.fidelity_bound) == (3, 5, values[5])
    assert f"and fidelity bound {values[5]:g}" in str(books)
    assert json.loads(Path(world.store, "manifest.json").read_text())["accepted"] == 3
    count = export_pairs(world.store, str(tmp_path / "pairs"), 0.0, fidelity="psnr", bound=values[5])
    assert count == 3
    plan = accepted_pairs(cfg, "adapted")
    assert len(plan.ids) == 3
    store = open_store(cfg)
    assert store is not None
    assert {key for key, _ in store.accepted} == set(plan.ids)
    assert len(store.rejected) == 5


def test_another_fidelity_on_a_store_is_refused(measured: Finished, finished: Finished, tmp_path: Path) -> None:
    world = measured[0].copy(tmp_path / "a")
    world.cfg.scorer.fidelity = "ssim"
    with pytest.raises(ResumeMismatchError, match=r"scorer\.fidelity: 'psnr' -> 'ssim'"):
        generate(world.cfg, models=world.models())
    with pytest.raises(DataError, match=r"its rows were made with scorer\.fidelity=none"):
        export_pairs(finished[0].store, str(tmp_path / "x"), 0.0, fidelity="psnr", bound=20.0)


def test_an_image_too_small_to_compare_is_its_own_failed_row(tmp_path: Path) -> None:
    cfg = World(tmp_path).build(0).cfg.scorer
    cfg.fidelity = "ssim"
    stage = Score(Replica(load_scorer, cfg, AttemptLog({}), 2))
    sizes = {"a.png": (16, 16), "tiny.png": (8, 8), "b.png": (16, 16)}
    block = [{**ok_row(key, 0.0), "score": None, "scorer": None} for key in sizes]
    for row in block:
        row["restored"] = row["pseudo_target"] = png(*sizes[row["id"]], seed=row["id"])
    made = {row["id"]: row for row in stage(pa.Table.from_pylist(block, schema=PAIR_SCHEMA)).to_pylist()}
    assert {key: row["status"] for key, row in made.items()} == {"a.png": "ok", "tiny.png": "failed", "b.png": "ok"}
    assert made["a.png"]["fidelity"] == pytest.approx(1.0)
    row = made["tiny.png"]
    assert (row["error_stage"], row["error_type"]) == ("score", "DataError")
    assert "SSIM needs at least 11x11" in str(row["error"])
