"""A fine-tune on a cluster of several nodes, which are lost or taken away after a notice."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from gmd_ray.config import Config
from gmd_ray.training import Finetuned, finetune, finetuned_path
from gmd_ray.training.run_files import curve_lines, read_curve
from gmd_ray.training.spec import make_spec
from tests.training.oracle import plain_training
from tests.training.toys import FileRecorder, make_config

TIMEOUT_S = 240
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


def begin(cfg: Config, recorder: FileRecorder) -> Future[Finetuned]:
    """Fine-tune in a thread. The main thread is the test's: Ray adds pretended nodes nowhere else."""
    future: Future[Finetuned] = Future()

    def run() -> None:
        try:
            future.set_result(finetune(cfg, "adapted", recorder))
        except BaseException as error:  # noqa: BLE001 -- the test raises it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def curve_of(cfg: Config) -> Path:
    return Path(finetuned_path(cfg, "adapted")).parent / "curve.jsonl"


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
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
    training = begin(cfg, recorder)
    wait_for_step(cfg, 100)
    cluster.remove_node(cluster.nodes[0], allow_graceful=False)
    finetuned = training.result(TIMEOUT_S)
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
    training = begin(cfg, recorder)
    wait_for_step(cfg, 10)
    deadline = take_away(cluster, worker_nodes()[0], 12)
    finetuned = training.result(TIMEOUT_S)
    first, second = notices(cfg)
    assert (first["waits"], second["waits"]) == (False, True)
    assert first["saved"] + 2 < second["saved"] == finetuned.resumed_from
    begun = [point for point in recorder.read() if point["at"] <= deadline]
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
    training = begin(cfg, recorder)
    wait_for_step(cfg, 10)
    assert len(worker_nodes()) == 2
    take_away(cluster, worker_nodes()[0], 10)
    last = notices(cfg)[-1]
    assert last["waits"]
    wait_for_step(cfg, last["saved"] + 20)
    assert len(worker_nodes()) == 1
    cluster.nodes.append(cluster.add_node(**NODE))
    wait_until(lambda: len(worker_nodes()) == 2)
    finetuned = training.result(TIMEOUT_S)
    assert finetuned.resumed_from is not None
    assert finetuned.resumed_from >= last["saved"] + 5  # the smaller group saves on its own
    points = read_curve(curve_of(cfg))
    assert [point["step"] for point in points] == list(range(1, 201))
    assert {point["n_source"] + point["n_target"] for point in points} == {8}
    after = torch.load(finetuned.path, weights_only=True)
    for key, value in plain_training(make_spec(cfg, "adapted", None)).items():
        # Another number of workers adds the same gradients in another order.
        torch.testing.assert_close(after[key], value, rtol=0, atol=1e-5)
