"""The time that runs over a store took, whatever ended them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gmd_ray.generation import generate
from gmd_ray.generation.models import Models
from gmd_ray.generation.resume import complete
from gmd_ray.pairstore import history
from gmd_ray.pairstore.history import RunClock, images_per_second, read_runs, step_cache_counts, wall_seconds
from gmd_ray.pairstore.store import PairStore
from tests.generation.world import World, write_photo


@pytest.fixture
def store(tmp_path: Path) -> PairStore:
    return PairStore(str(tmp_path))


def test_a_killed_run_leaves_its_time(store: PairStore, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(history.time, "monotonic", lambda: now)
    assert (read_runs(store), wall_seconds([]), images_per_second([])) == ([], None, None)
    first = RunClock(store, before=0)
    for _ in range(4):
        now += 20
        first.count(16)  # saved at 140 and 180; killed then
    second = RunClock(store, before=64)
    now += 10
    second.count(5)
    second.save()
    runs = read_runs(store)
    assert [(run["before"], run["images"], run["seconds"]) for run in runs] == [(0, 64, 80.0), (64, 5, 10.0)]
    assert wall_seconds(runs) == 90.0
    assert images_per_second(runs) == 0.5
    third = RunClock(store, before=69)
    third.save()
    assert images_per_second(read_runs(store)) == 0.5, "a run that made none says nothing of the rate"


def test_rows_older_than_the_first_run_leave_the_wall_time_open(store: PairStore) -> None:
    RunClock(store, before=3)
    assert wall_seconds(read_runs(store)) is None


def test_counts_of_a_step_cache_add_up_over_runs(store: PairStore) -> None:
    assert step_cache_counts([]) is None
    for counts in ({}, {"evaluations": 50, "skipped": 20}, {"clipped": 1}, {"evaluations": 30}):
        clock = RunClock(store, before=0)
        clock.note(counts)
        clock.save()
    assert step_cache_counts(read_runs(store)) == {"evaluations": 80, "skipped": 20}
    assert step_cache_counts(read_runs(store)[:1]) is None


def test_costs_add_up_over_runs_and_a_look_costs_nothing(world: World) -> None:
    def cost() -> dict:
        manifest = json.loads(Path(world.store, "manifest.json").read_text())
        return {**manifest["cost"]["actual"], "images_per_second": manifest["images_per_second"]}

    before = cost()
    assert before["wall_hours"] > 0
    world.cfg.scorer.threshold = 1.0
    generate(world.cfg, models=world.models())
    assert cost() == before, "the threshold moved, nothing was made"
    write_photo(world.photos / "new.png")
    assert generate(world.cfg, models=world.models()).resumed == 31
    after = cost()
    assert after["images"] == before["images"] + 1
    assert after["wall_hours"] > before["wall_hours"]
    assert [run["images"] for run in read_runs(PairStore(world.store))] == [31, 1]


def test_facts_that_died_with_the_ledger_are_found_again(world: World) -> None:
    store = PairStore(world.store)
    facts = complete(store, world.cfg, {}, Models())
    row = next(row for row in world.rows().values() if row["status"] == "ok")
    assert {section: found["fingerprint"] for section, found in facts.items()} == {
        section: row[section] for section in ("student", "teacher", "scorer")
    }
    assert facts["scorer"]["higher_is_better"] is True
    assert store.read("settings.json")["models"] == facts
