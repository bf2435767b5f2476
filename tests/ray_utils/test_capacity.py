"""Pools that fit on a cluster, and those that do not."""

from __future__ import annotations

import json
import logging

import pytest

from gmd_ray.config import Config, PoolConfig
from gmd_ray.errors import ConfigError
from gmd_ray.ray_utils.capacity import Cluster, Node, check_capacity, living_nodes, read_cluster
from gmd_ray.ray_utils.ray_internals import says_it_cannot_grow


def cluster(*nodes: dict[str, float], labels: list[dict[str, str]] | None = None, can_grow: bool = False) -> Cluster:
    """A cluster of these nodes, as Ray describes it."""
    total = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in {kind for node in nodes for kind in node}}
    named = [Node(node, label) for node, label in zip(nodes, labels or [{}] * len(nodes), strict=True)]
    return Cluster(total, named, can_grow)


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        (PoolConfig(min=2, max=2, num_cpus=1.5), r"need 4\.4 CPUs \(student 2 x 1\.5.* has 4"),
        (PoolConfig(num_gpus=1), r"need 1 GPUs .* has 0"),
        (PoolConfig(resources={"lamp": 1}), r"need 1 lamps \(student 1 x 1, teacher 1 x 0, scorer 1 x 0\), .* has 0"),
        (PoolConfig(min=3, max=2), r"student\.pool\.min=3: more than student\.pool\.max=2"),
        (PoolConfig(batch_size=0), r"student\.pool\.batch_size=0"),
    ],
)
def test_pools_that_leave_no_room_to_read(pool: PoolConfig, reason: str) -> None:
    cfg = Config()
    cfg.teacher.pool = cfg.scorer.pool = PoolConfig(num_cpus=0.5)
    cfg.student.pool = PoolConfig(num_cpus=0.5)
    assert check_capacity(cfg, cluster({"CPU": 4.0})) == []
    cfg.student.pool = pool
    with pytest.raises(ConfigError, match=reason):
        check_capacity(cfg, cluster({"CPU": 4.0}))


def test_gpus_of_a_replica_are_on_one_node() -> None:
    cfg = Config()
    cfg.teacher.pool = PoolConfig(min=3, max=3, num_cpus=0, num_gpus=2)
    nodes = cluster({"GPU": 3.0, "CPU": 8.0}, {"GPU": 3.0, "CPU": 8.0})
    with pytest.raises(ConfigError, match=r"^teacher.pool: 3 x 2 GPUs, each on one node; 2 of 2 nodes .*, room for 2"):
        check_capacity(cfg, nodes)
    cfg.teacher.pool.min = 2
    check_capacity(cfg, nodes)


def test_actors_that_no_node_can_hold_are_told_at_once() -> None:
    """Ray would wait for such a node for ever, and the run for its no-progress timeout."""
    cfg = Config()
    nodes = cluster({"CPU": 8.0}, {"CPU": 8.0}, labels=[{"pool": "cpu"}, {"pool": "teacher"}])
    cfg.teacher.pool = PoolConfig(num_cpus=4, min=2, max=2, labels={"pool": "teacher"})
    check_capacity(cfg, nodes)
    cfg.teacher.pool.labels = {"pool": "techer"}
    with pytest.raises(ConfigError, match=r"^teacher.pool: 2 x 4 CPUs, each on one node labelled pool=techer; 0 of 2"):
        check_capacity(cfg, nodes)
    cfg.teacher.pool = PoolConfig(num_cpus=9)
    with pytest.raises(ConfigError, match=r"^teacher.pool: 1 x 9 CPUs, each on one node; 2 of 2 nodes .*, room for 0"):
        check_capacity(cfg, nodes)


def test_what_is_missing_is_waited_for_on_a_cluster_that_may_grow(caplog: pytest.LogCaptureFixture) -> None:
    cfg = Config()
    cfg.teacher.pool = PoolConfig(num_gpus=1)
    with pytest.raises(ConfigError, match=r"need 1 GPUs .* has 0; lower"):
        check_capacity(cfg, cluster({"CPU": 8.0}))
    with caplog.at_level(logging.WARNING):
        whole, node = check_capacity(cfg, cluster({"CPU": 8.0}, can_grow=True))
    assert "need 1 GPUs" in whole
    assert "1 GPUs, each on one node; 1 of 1 nodes may take them, room for 0" in node
    assert sum("waiting for nodes to be added" in line for line in caplog.messages) == 2


@pytest.mark.parametrize(
    ("active_nodes", "grows"),
    [
        ({"node_5911121f8b88": 1}, False),  # `ray start --head` without a cluster's configuration
        ({"head": 1, "accelerated": 2}, True),
        (None, True),  # nothing is reported, or not yet
    ],
)
def test_a_cluster_of_fixed_size_says_so(active_nodes: dict[str, int] | None, grows: bool) -> None:
    said = None if active_nodes is None else json.dumps({"autoscaler_report": {"active_nodes": active_nodes}}).encode()
    assert says_it_cannot_grow(said) is not grows


def test_without_ray_there_is_no_cluster_to_fit_on() -> None:
    cfg = Config()
    cfg.ray.enabled = False
    cfg.teacher.pool = PoolConfig(num_gpus=8)
    assert check_capacity(cfg) == []
    cfg.teacher.pool = PoolConfig(min=3, max=2)
    with pytest.raises(ConfigError, match=r"teacher\.pool\.min=3: more than teacher\.pool\.max=2"):
        check_capacity(cfg)


def test_dead_nodes_do_not_count() -> None:
    said = [{"Alive": True, "Resources": {"CPU": 8.0}}, {"Alive": False, "Resources": {}}]
    assert living_nodes([*said, {"Alive": True, "Resources": {}, "Labels": {"pool": "cpu"}}]) == [
        Node({"CPU": 8.0}),
        Node({}, {"pool": "cpu"}),
    ]


def test_what_ray_says_of_its_cluster(ray_session: None) -> None:
    """The private session of the tests: four CPUs on one node, no GPU, no autoscaler."""
    found = read_cluster()
    assert (found.resources["CPU"], found.resources.get("GPU", 0)) == (4, 0)
    [node] = found.nodes
    assert node.resources["CPU"] == 4
    assert (found.can_grow, found.started_here) == (False, True)
