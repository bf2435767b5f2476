"""A fine-tune on a cluster of several nodes, one of which is lost."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gmd_ray.training import finetune, finetuned_path
from gmd_ray.training.run_files import read_curve
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


@pytest.mark.chaos
def test_lost_node_leaves_a_smaller_group_with_the_same_global_batches(tmp_path: Path, cluster: Any) -> None:
    import torch

    cfg = make_config(
        tmp_path, steps=400, checkpoint_every=20, log_every=10, batch_size=8, patch=16, lr=2e-5, loss="l2",
        num_workers=2, min_workers=1, cpus_per_worker=1.0,
    )  # fmt: skip
    recorder = FileRecorder(tmp_path / "metrics.jsonl")
    curve = Path(finetuned_path(cfg, "adapted")).parent / "curve.jsonl"
    lost = threading.Event()

    def lose_node() -> None:
        while not (curve.is_file() and len(curve.read_text().splitlines()) >= 10):
            time.sleep(0.05)
        cluster.remove_node(cluster.nodes[0], allow_graceful=False)
        lost.set()

    threading.Thread(target=lose_node, daemon=True).start()
    finetuned = finetune(cfg, "adapted", recorder)
    assert lost.is_set()
    assert finetuned.resumed_from is not None
    assert finetuned.resumed_from % 20 == 0
    points = read_curve(curve)
    assert [point["step"] for point in points] == list(range(10, 401, 10))
    assert recorder.read() == points
    assert {point["n_source"] + point["n_target"] for point in points} == {8}
    after = torch.load(finetuned.path, weights_only=True)
    for key, value in plain_training(make_spec(cfg, "adapted", None)).items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=1e-5)
