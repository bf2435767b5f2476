"""GPUs and CPUs asked for and present."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmd_ray.planning import Preflight, machine
from tests.planning.conftest import config


def lines(root: Path, verb: str, *more: str, joins: bool = False, probes: bool = False) -> list[str]:
    found = Preflight(config(root, *more), verb, joins=joins, probes=probes).run()
    return [finding.message for finding in found.of("error") if finding.code in ("gpu", "cpu")]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list of one number: what this machine has."""
    count = [0]
    monkeypatch.setattr(machine, "visible_gpus", lambda: count[0])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return count


@pytest.mark.parametrize(
    ("verb", "setting"),
    [
        ("adapt", "training.use_gpu=true"),
        ("finetune", "training.use_gpu=true"),
        ("pretrain", "training.use_gpu=true"),
        ("adapt", "student.pool.num_gpus=0.5"),
        ("generate", "teacher.pool.num_gpus=1"),
        ("adapt", "scorer.pool.num_gpus=0.1"),
        ("evaluate", "evaluation.pool.num_gpus=0.25"),
        ("generate", "student.device=cuda"),
        ("adapt", "teacher.device=cuda"),
        ("generate", "scorer.device=cuda"),
        ("adapt", "evaluation.device=cuda"),
    ],
)
def test_each_setting_is_named_where_there_is_none(verb: str, setting: str, gpus: list[int], tmp_path: Path) -> None:
    [line] = lines(tmp_path, verb, setting)
    assert line.startswith(setting)
    assert "this machine has none" in line
    gpus[0] = 1
    assert lines(tmp_path, verb, setting) == []


def test_what_one_stage_takes_is_added_up(gpus: list[int], tmp_path: Path) -> None:
    gpus[0] = 2
    pools = ("student.pool.num_gpus=0.5", "teacher.pool.num_gpus=1", "teacher.pool.max=4", "scorer.pool.num_gpus=0.5")
    assert lines(tmp_path, "adapt", *pools) == []
    [line] = lines(tmp_path, "adapt", *pools, "teacher.pool.min=2")
    settings = "student.pool.num_gpus=0.5, teacher.pool.num_gpus=1 x 2 actors, scorer.pool.num_gpus=0.5"
    assert line.startswith(f"{settings}: the stream would wait for 3 GPUs, and this machine has 2")


def test_ranks_workers_and_numbers(gpus: list[int], tmp_path: Path) -> None:
    gpus[0] = 1
    [line] = lines(tmp_path, "generate", "teacher.gpus_per_replica=2", "teacher.pool.num_gpus=2")
    assert "teacher.pool.num_gpus=2 with teacher.gpus_per_replica=2" in line
    workers = ("training.use_gpu=true", "training.num_workers=4")
    [line] = lines(tmp_path, "finetune", *workers, "ray.num_cpus=4")
    assert "training.num_workers=4: the fine-tune would wait for 4 GPUs" in line
    assert lines(tmp_path, "finetune", *workers, "training.min_workers=1") == []
    [line] = lines(tmp_path, "adapt", "teacher.device=cuda:1")
    assert line.startswith("teacher.device=cuda:1: this machine has 1")


def test_a_cluster_says_itself_what_it_has(gpus: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asks = ("training.use_gpu=true", "teacher.pool.num_gpus=8", "teacher.gpus_per_replica=8", "student.device=cuda")
    assert lines(tmp_path, "adapt", *asks, joins=True) == []
    assert lines(tmp_path, "plan", *asks) == [], "the fleet is elsewhere"
    found = Preflight(config(tmp_path, *asks), "plan").run()
    assert any("GPUs asked for of the fleet: teacher.pool.num_gpus=8" in f.message for f in found.of("fact"))
    assert len(lines(tmp_path, "plan", *asks, probes=True)) == 2, "a probe runs here"


def test_joining_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gmd_ray.ready import joins_cluster

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cfg = config(tmp_path)
    cfg.ray.address = "10.0.0.1:6379"
    assert joins_cluster(cfg)
    cfg.ray.address = None
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert joins_cluster(cfg)


def test_hidden_devices_are_named(gpus: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    [line] = lines(tmp_path, "finetune", "training.use_gpu=true")
    assert "none (CUDA_VISIBLE_DEVICES='')" in line


def test_nothing_is_asked_for_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "visible_gpus", lambda: pytest.fail("torch was imported for nothing"))
    assert lines(tmp_path, "adapt") == []


def test_cpus_of_stage_2(gpus: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert lines(tmp_path, "adapt", "training.cpus_per_worker=2", "training.num_workers=2") == []
    [line] = lines(tmp_path, "adapt", "training.cpus_per_worker=3", "training.num_workers=2")
    assert "training.cpus_per_worker=3 with training.num_workers=2" in line
    assert "6 CPUs, and a private Ray session here has 4" in line
    assert lines(tmp_path, "adapt", "training.cpus_per_worker=3", "training.num_workers=2", "ray.num_cpus=6") == []
    assert lines(tmp_path, "adapt", "training.cpus_per_worker=8", joins=True) == []
