"""A fine-tune on a cluster of several nodes, which are lost or taken away after a notice."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gmd_ray.config import Config
from gmd_ray.training import finetune, finetuned_path
from gmd_ray.training.run_files import curve_lines, read_curve
from gmd_ray.training.spec import make_spec
from tests.training.oracle import plain_training
from tests.training.toys import FileRecorder, make_config

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs, where the driver and the controller are, and two nodes of one worker each."""
    import ray
    from ray.cluster_utils import Cluster

    # The controller counts a lost node for a while, and asks for a worker group that cannot start.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    temp_dir = tempfile.mkdtemp(prefix="gmd-", dir="/tmp")
    head = {"num_cpus": 0, "object_store_memory": 80_000_000, "include_dashboard": False, "temp_dir": temp_dir}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.nodes = [cluster.add_node(**NODE) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(temp_dir, ignore_errors=True)


class TimedRecorder(FileRecorder):
    """Keeps with each step the time at which it was first reported."""

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        super().metrics({**values, "at": time.time()}, step)


class Chaos(threading.Thread):
    """Runs beside a fine-tune, and keeps what went wrong for the test."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._act = act
        self._error: Exception | None = RuntimeError("did not come to its end")

    def run(self) -> None:
        try:
            self._act()
        except Exception as error:  # noqa: BLE001 -- `check` raises it in the thread of the test
            self._error = error
        else:
            self._error = None

    def check(self) -> None:
        if self._error is not None:
            raise self._error


def curve_of(cfg: Config) -> Path:
    return Path(finetuned_path(cfg, "adapted")).parent / "curve.jsonl"


def wait_until(true: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def lines(cfg: Config) -> list[dict[str, Any]]:
    path = curve_of(cfg)
    return curve_lines(path.read_bytes()) if path.is_file() else []


def wait_for_step(cfg: Config, step: int) -> None:
    wait_until(lambda: any(line.get("step", 0) >= step for line in lines(cfg)))


def worker_nodes() -> list[str]:
    """The node of each worker of the group that runs."""
    from ray.util import placement_group_table

    groups = [group for group in placement_group_table().values() if group["state"] == "CREATED"]
    return [node for group in groups for node in group["bundles_to_node_id"].values()]


def take_away(cluster: Any, node_id: str, notice_s: int) -> float:
    """Tell Ray that a node goes, as a preStop hook does, and kill it when its time is over; return that time."""
    ray = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", cluster.address]
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    subprocess.run([*ray, "--node-id", node_id, *why, "--deadline-remaining-seconds", str(notice_s)], check=True)
    deadline = time.time() + notice_s
    time.sleep(notice_s)
    [node] = [node for node in cluster.nodes if node.node_id == node_id]
    cluster.remove_node(node, allow_graceful=False)
    return deadline


def notices(cfg: Config) -> list[dict[str, Any]]:
    return [line for line in lines(cfg) if "leaving" in line]


@pytest.mark.chaos
def test_lost_node_leaves_a_smaller_group_with_the_same_global_batches(tmp_path: Path, cluster: Any) -> None:
    import torch

    cfg = make_config(
        tmp_path, steps=400, checkpoint_every=20, log_every=10, batch_size=8, patch=16, lr=2e-5, loss="l2",
        num_workers=2, min_workers=1, cpus_per_worker=1.0,
    )  # fmt: skip
    recorder = FileRecorder(tmp_path / "metrics.jsonl")

    def lose_node() -> None:
        wait_for_step(cfg, 100)
        cluster.remove_node(cluster.nodes[0], allow_graceful=False)

    chaos = Chaos(lose_node)
    chaos.start()
    finetuned = finetune(cfg, "adapted", recorder)
    chaos.check()
    assert finetuned.resumed_from is not None
    assert finetuned.resumed_from % 20 == 0
    points = read_curve(curve_of(cfg))
    assert [point["step"] for point in points] == list(range(10, 401, 10))
    assert recorder.read() == points
    assert {point["n_source"] + point["n_target"] for point in points} == {8}
    after = torch.load(finetuned.path, weights_only=True)
    for key, value in plain_training(make_spec(cfg, "adapted", None)).items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=1e-5)


@pytest.mark.chaos
def test_a_node_that_goes_after_a_notice_costs_no_step_and_changes_no_weight(tmp_path: Path, cluster: Any) -> None:
    import torch

    # Ray Train takes reports one by one, 0.3 s apart: with one for each step, a step takes as long.
    settings = {"batch_size": 8, "patch": 16, "num_workers": 2, "cpus_per_worker": 1.0, "checkpoint_every": 1000}
    cfg = make_config(tmp_path, steps=60, log_every=100, **settings)
    undisturbed = finetune(cfg, "adapted", FileRecorder(tmp_path / "undisturbed.jsonl"))
    assert undisturbed.resumed_from is None

    cluster.nodes.append(cluster.add_node(**NODE))  # the spare node
    cluster.wait_for_nodes()
    cfg = make_config(tmp_path, steps=60, log_every=1, **settings)
    cfg.out = str(tmp_path / "disturbed")
    shutil.copytree(tmp_path / "run" / "pairs", tmp_path / "disturbed" / "pairs")
    recorder = TimedRecorder(tmp_path / "disturbed.jsonl")
    deadlines: list[float] = []

    def act() -> None:
        wait_for_step(cfg, 10)
        deadlines.append(take_away(cluster, worker_nodes()[0], 12))

    chaos = Chaos(act)
    chaos.start()
    finetuned = finetune(cfg, "adapted", recorder)
    chaos.check()
    first, second = notices(cfg)
    assert (first["waits"], second["waits"]) == (False, True)
    assert first["saved"] + 2 < second["saved"] == finetuned.resumed_from
    begun = [point for point in recorder.read() if point["at"] <= deadlines[0]]
    redone = begun[-1]["step"] - finetuned.resumed_from
    assert 0 <= redone <= 2
    assert [point["step"] for point in read_curve(curve_of(cfg))] == list(range(1, 61))
    before, after = (torch.load(done.path, weights_only=True) for done in (undisturbed, finetuned))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.chaos
def test_a_group_shrinks_when_a_node_goes_and_grows_when_one_comes(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr("gmd_ray.training.driver.RESIZE_S", 5.0)
    cfg = make_config(
        tmp_path, steps=200, checkpoint_every=1000, log_every=1, batch_size=8, patch=16, lr=2e-5, loss="l2",
        num_workers=2, min_workers=1, cpus_per_worker=1.0,
    )  # fmt: skip
    recorder = FileRecorder(tmp_path / "metrics.jsonl")
    sizes: list[int] = []

    def act() -> None:
        wait_for_step(cfg, 10)
        sizes.append(len(worker_nodes()))
        take_away(cluster, worker_nodes()[0], 10)
        wait_for_step(cfg, notices(cfg)[-1]["saved"] + 20)
        sizes.append(len(worker_nodes()))
        cluster.nodes.append(cluster.add_node(**NODE))
        wait_until(lambda: len(worker_nodes()) == 2)
        sizes.append(2)

    chaos = Chaos(act)
    chaos.start()
    finetuned = finetune(cfg, "adapted", recorder)
    chaos.check()
    assert sizes == [2, 1, 2]
    assert finetuned.resumed_from is not None
    assert finetuned.resumed_from >= notices(cfg)[-1]["saved"] + 5  # the smaller group saves on its own
    points = read_curve(curve_of(cfg))
    assert [point["step"] for point in points] == list(range(1, 201))
    assert {point["n_source"] + point["n_target"] for point in points} == {8}
    after = torch.load(finetuned.path, weights_only=True)
    for key, value in plain_training(make_spec(cfg, "adapted", None)).items():
        # Another number of workers adds the same gradients in another order.
        torch.testing.assert_close(after[key], value, rtol=0, atol=1e-5)
