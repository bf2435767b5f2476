"""The resources that Stage 2 needs of a cluster, and the errors where they are missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from gmd_ray.errors import ConfigError
from gmd_ray.training import resources
from gmd_ray.training.driver import scaling_config
from gmd_ray.training.resources import check_resources, missing_resources, resources_wanted
from tests.training.toys import make_config


def test_what_is_wanted(tmp_path: Path) -> None:
    cfg = make_config(tmp_path, num_workers=4, cpus_per_worker=2.0)
    assert resources_wanted(cfg) == {"min_workers": 4, "max_workers": 4, "CPU": 2.0}
    cfg.training.use_gpu, cfg.training.min_workers = True, 1
    assert resources_wanted(cfg) == {"min_workers": 1, "max_workers": 4, "CPU": 2.0, "GPU": 1.0}


def test_a_worker_needs_one_node_that_has_all_it_takes(tmp_path: Path) -> None:
    cfg = make_config(tmp_path, num_workers=2, cpus_per_worker=4.0, use_gpu=True)
    whole = {"CPU": 8.0, "GPU": 1.0}
    assert missing_resources(cfg, [whole, whole]) is None
    assert missing_resources(cfg, [{"CPU": 8.0, "GPU": 2.0}]) is None
    assert missing_resources(cfg, [{"CPU": 16.0}]) == (
        "2 worker(s) x {GPU: 1, CPU: 4}: the cluster has 0 GPU, 16 CPU, room for 0"
    )
    split = [whole, {"CPU": 3.0, "GPU": 1.0}, {"CPU": 5.0}]
    said = "2 worker(s) x {GPU: 1, CPU: 4}: the cluster has 2 GPU, 16 CPU on 3 nodes, room for 1"
    assert missing_resources(cfg, split) == said
    cfg.training.min_workers = 1
    assert missing_resources(cfg, split) is None


def test_only_nodes_with_the_labels_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labelled = {"Alive": True, "Resources": {"CPU": 4.0}, "Labels": {"pool": "trainer"}}
    other = {"Alive": True, "Resources": {"CPU": 8.0}, "Labels": {"pool": "teacher"}}
    monkeypatch.setattr(ray, "nodes", lambda: [labelled, other, {**labelled, "Alive": False}])
    assert resources.cluster_nodes({"pool": "trainer"}) == [{"CPU": 4.0}]
    assert resources.cluster_nodes({}) == [{"CPU": 4.0}, {"CPU": 8.0}]
    cfg = make_config(tmp_path, num_workers=2, cpus_per_worker=4.0, labels={"pool": "trainer"})
    said = "2 worker(s) x {CPU: 4} labelled pool=trainer: the cluster has 4 CPU, room for 1"
    assert missing_resources(cfg, resources.cluster_nodes(cfg.training.labels)) == said


def test_ray_train_is_told_the_labels(tmp_path: Path) -> None:
    assert scaling_config(make_config(tmp_path)).label_selector is None
    scaling = scaling_config(make_config(tmp_path, num_workers=4, min_workers=2, labels={"pool": "trainer"}))
    assert scaling.label_selector == {"pool": "trainer"}
    assert (scaling.min_workers, scaling.max_workers) == (2, 4)


@pytest.mark.parametrize("grows", [False, True])
def test_a_cluster_that_cannot_grow_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grows: bool
) -> None:
    monkeypatch.setattr(resources, "cluster_nodes", lambda labels: [{"CPU": 8.0}])
    monkeypatch.setattr(resources, "can_grow", lambda: grows)
    check_resources(make_config(tmp_path, num_workers=4, cpus_per_worker=2.0))
    cfg = make_config(tmp_path, num_workers=2, use_gpu=True)
    if grows:
        check_resources(cfg)
        return
    with pytest.raises(ConfigError, match=r"has 0 GPU, .*training\.use_gpu=false.*training\.num_workers") as caught:
        check_resources(cfg)
    assert "\n" not in str(caught.value)
