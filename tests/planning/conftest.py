from __future__ import annotations

import pytest

from gmd_ray.ray_utils.session import cluster_address


@pytest.fixture(autouse=True)
def no_cluster_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of the tests may have a Ray session of other tests, which a run would take for its cluster."""
    monkeypatch.setattr("gmd_ray.ready.joins_cluster", lambda cfg: cluster_address(cfg) is not None)
