"""A pool of teachers of two ranks each, on a Ray that has GPUs in name."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from gmd_ray.config import Config, InjectionConfig, PoolConfig, TeacherConfig
from gmd_ray.errors import ConfigError
from gmd_ray.images.files.encode import decode_png, to_images, to_tensor
from gmd_ray.ray_utils import capacity
from gmd_ray.teachers import load_teacher
from tests.generation.world import World
from tests.teachers.conftest import make_flux

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_a_pool_of_sharded_teachers_loses_a_rank_and_no_row(tmp_path: Path) -> None:
    flux = make_flux(tmp_path / "flux", autoencoder=False)
    world = World(tmp_path / "world").build(10)
    with tempfile.TemporaryDirectory(prefix="gmd-", dir="/tmp") as temp_dir:  # short: Ray's sockets live below it
        command = [sys.executable, "-m", "tests.generation.faults.drive_sharded", str(world.root), str(flux), temp_dir]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])

    assert (answer["ok"], answer["failed"], answer["resumed"]) == (8, 0, 10)
    assert (world.log / "killed").exists()
    assert (world.log / "together").exists(), "two replicas in a call at once, the second called up by the backlog"
    assert len(answer["replicas"]) >= 2  # the one that lost a rank, and its successor
    for replica in answer["replicas"]:
        assert len(replica["pids"]) == 2
        assert len(replica["gpus"].split(",")) == 2  # as many as ranks, of Ray's account
    rows = world.rows()
    assert rows["001.png"]["attempts"] == 2

    injection = InjectionConfig(blocks="all", steps=1)
    teacher = load_teacher(TeacherConfig(path=str(flux), steps=2, device="cpu", injection=injection))
    assert {row["teacher"] for row in rows.values()} == {teacher.fingerprint}
    for key, row in rows.items():
        [expected] = to_images(teacher.project(to_tensor([decode_png(row["restored"])]), [key]))
        found = decode_png(row["pseudo_target"])
        assert 255 * abs(found - expected).max() < 1.01  # of 8 bits


def test_gpus_of_a_replica_are_on_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = Config()
    cfg.teacher.pool = PoolConfig(min=3, max=3, num_cpus=0, num_gpus=2)
    nodes = [{"Alive": True, "Resources": {"GPU": 3.0, "CPU": 8.0}} for _ in range(2)]
    nodes.append({"Alive": False, "Resources": {}})
    monkeypatch.setattr(capacity.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(capacity.ray, "cluster_resources", lambda: {"GPU": 6.0, "CPU": 16.0})
    monkeypatch.setattr(capacity, "_can_grow", lambda: False)
    with pytest.raises(ConfigError, match=r"^teacher.pool: 3 x 2 GPUs, each on one node; 2 of 2 nodes .*, room for 2"):
        capacity.check_capacity(cfg)
    cfg.teacher.pool.min = 2
    capacity.check_capacity(cfg)


def test_actors_that_no_node_can_hold_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would wait for such a node for ever, and the run for its no-progress timeout."""
    cfg = Config()
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0}, "Labels": {"pool": pool}} for pool in ("cpu", "teacher")]
    monkeypatch.setattr(capacity.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(capacity.ray, "cluster_resources", lambda: {"CPU": 16.0})
    monkeypatch.setattr(capacity, "_can_grow", lambda: False)
    cfg.teacher.pool = PoolConfig(num_cpus=4, min=2, max=2, labels={"pool": "teacher"})
    capacity.check_capacity(cfg)
    cfg.teacher.pool.labels = {"pool": "techer"}
    with pytest.raises(ConfigError, match=r"^teacher.pool: 2 x 4 CPUs, each on one node labelled pool=techer; 0 of 2"):
        capacity.check_capacity(cfg)
    cfg.teacher.pool = PoolConfig(num_cpus=9)
    with pytest.raises(ConfigError, match=r"^teacher.pool: 1 x 9 CPUs, each on one node; 2 of 2 nodes .*, room for 0"):
        capacity.check_capacity(cfg)


@pytest.mark.parametrize(
    ("head_is_ours", "active_nodes", "grows"),
    [
        (True, {"head": 1}, False),  # of ray.init
        (False, {"node_5911121f8b88": 1}, False),  # `ray start --head` without a cluster's configuration
        (False, {"head": 1, "accelerated": 2}, True),
        (False, None, True),  # nothing is said, or not yet
    ],
)
def test_what_is_missing_is_waited_for_where_it_may_come(
    monkeypatch: pytest.MonkeyPatch, head_is_ours: bool, active_nodes: dict[str, int] | None, grows: bool
) -> None:
    said = None if active_nodes is None else json.dumps({"autoscaler_report": {"active_nodes": active_nodes}}).encode()
    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_get", lambda key: said)
    monkeypatch.setattr(ray._private.worker, "_global_node", SimpleNamespace(is_head=lambda: head_is_ours))
    monkeypatch.setattr(capacity.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])
    monkeypatch.setattr(capacity.ray, "cluster_resources", lambda: {"CPU": 8.0})
    cfg = Config()
    cfg.teacher.pool = PoolConfig(num_gpus=1)
    if not grows:
        with pytest.raises(ConfigError, match=r"need 1 GPUs .* has 0; lower"):
            capacity.check_capacity(cfg)
        return
    whole, node = capacity.check_capacity(cfg)
    assert "need 1 GPUs" in whole
    assert "1 GPUs, each on one node; 1 of 1 nodes may take them, room for 0" in node
