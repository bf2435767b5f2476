"""Facts about metrics that are known without loading anything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from gmd_ray.errors import ConfigError
from gmd_ray.quality import MetricUnavailable, known_metrics, load_metric, load_scorer
from gmd_ray.quality.catalogue import NOT_PER_IMAGE, OF_SETS, PAPER, catalogue
from tests import PATIENCE_S

OWN = {"psnr", "psnr_y", "ssim", "ssim_y"}


@pytest.fixture
def without_pyiqa(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "pyiqa", None)  # how Python itself marks a package that cannot be imported
    catalogue.cache_clear()
    yield
    catalogue.cache_clear()


def test_names_cost_no_heavy_import() -> None:
    """A config error must not wait for torch or pyiqa."""
    code = (
        "import sys; from gmd_ray.quality import known_metrics; names = known_metrics(); "
        "print(len(names), *(m for m in ('torch', 'pyiqa', 'timm', 'transformers') if m in sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    count, *heavy = out.stdout.split()
    assert heavy == []
    assert int(count) >= len(OWN) + len(PAPER)


def test_table_is_the_one_that_pyiqa_uses() -> None:
    pytest.importorskip("pyiqa")
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    assert set(known_metrics()) == set(DEFAULT_CONFIGS) | OWN | set(OF_SETS)
    for name, entry in DEFAULT_CONFIGS.items():
        info = catalogue()[name]
        assert info.higher_is_better == (not entry.get("lower_better", False))
        assert info.needs_reference == (entry["metric_mode"] == "FR" or name in OF_SETS)
        assert info.per_image == (name not in NOT_PER_IMAGE)
    for name, info in PAPER.items():
        assert catalogue()[name] == info, "the offline table contradicts pyiqa's"


def test_directions_of_the_papers_metrics() -> None:
    lower = {name for name in (*PAPER, *OWN) if not catalogue()[name].higher_is_better}
    assert lower == {"lpips", "dists", "niqe", "brisque"}


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"evaluation.metrics: no metric 'lpip'; did you mean 'lpips'"):
        load_metric("lpip")


@pytest.mark.usefixtures("without_pyiqa")
def test_without_pyiqa() -> None:
    from gmd_ray.config import ScorerConfig

    assert set(known_metrics()) == OWN | set(PAPER) | set(OF_SETS)
    assert load_metric("psnr").name == "psnr"
    with pytest.raises(MetricUnavailable, match="'nima' is unavailable: pyiqa is not installed; pip install"):
        load_metric("nima")
    with pytest.raises(MetricUnavailable, match="pyiqa is not installed"):
        load_scorer(ScorerConfig(metric="niqe"))
