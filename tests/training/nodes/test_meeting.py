"""On a cluster of this machine alone, the workers of a fine-tune open no port to others.

That they train so, and what listens meanwhile, is seen in tests/safety/test_planted_secrets.py.
"""

from __future__ import annotations

import logging
import sys

import pytest
import ray
from ray.train.torch import TorchConfig

from gmd_ray.training.loopback import LoopbackConfig
from gmd_ray.training.meeting import torch_config


@pytest.mark.parametrize(
    ("nodes", "kind"),
    [
        ([("127.0.0.1", True)], LoopbackConfig),
        ([("127.0.0.1", True), ("127.0.0.1", True)], LoopbackConfig),  # pretended nodes
        ([("::1", True)], LoopbackConfig),
        ([("10.0.0.3", True)], TorchConfig),
        ([("127.0.0.1", True), ("10.0.0.3", True)], TorchConfig),
        ([("127.0.0.1", True), ("10.0.0.3", False)], LoopbackConfig),  # one that has gone
    ],
)
def test_a_file_where_all_nodes_are_on_loopback(
    nodes: list[tuple[str, bool]], kind: type[TorchConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeManagerAddress": at, "Alive": lives} for at, lives in nodes])
    assert type(torch_config()) is kind


def test_another_version_of_ray_trains_all_the_same_and_says_what_is_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeManagerAddress": "127.0.0.1", "Alive": True}])
    monkeypatch.setitem(sys.modules, "gmd_ray.training.loopback", None)
    with caplog.at_level(logging.WARNING):
        assert type(torch_config()) is TorchConfig
    assert "listen on all interfaces" in caplog.text
