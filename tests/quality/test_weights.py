"""The files that metrics want, known by name, held against what pyiqa itself asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("pyiqa")

from gmd_ray.quality import MetricUnavailable, lacking, load_metric
from gmd_ray.quality.weights import _FILES


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    from pyiqa.utils import download_util

    hub = tmp_path / "hub"
    monkeypatch.setattr(download_util, "DEFAULT_CACHE_DIR", str(hub / "pyiqa"))
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(hub))
    yield hub
    torch.hub.set_dir(before)


@pytest.mark.parametrize("name", sorted(_FILES))
def test_the_first_file_is_what_pyiqa_wants_first_at_the_same_place(name: str, empty_cache: Path) -> None:
    with pytest.raises(MetricUnavailable) as caught:
        load_metric(name, device="cpu")
    found = lacking(name, None, f"evaluation.weights.{name}")
    assert len(found) == len(_FILES[name])
    place = found[0].reason.partition("put it at ")[2].partition(",")[0]
    assert Path(place).is_relative_to(empty_cache)
    assert f"{Path(place).name} is not cached" in str(caught.value)
    assert f"put it at {place}" in str(caught.value)
    assert ("or set evaluation.weights" in found[0].reason) == ("or set evaluation.weights" in str(caught.value))


def test_pyiqa_names_the_second_files_too() -> None:
    """Behind a backbone, which is wanted first."""
    from pyiqa.archs import dists_arch, lpips_arch

    urls = {**lpips_arch.default_model_urls, **dists_arch.default_model_urls}
    for name in ("lpips", "dists"):
        assert any(url.endswith(_FILES[name][1].name) for url in urls.values())


def test_a_local_file_replaces_all_but_a_backbone(empty_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(b"weights")
    mine = str(tmp_path / "mine.pth")
    assert lacking("nima", mine, "scorer.weights") == []
    [lack] = lacking("lpips", mine, "evaluation.weights.lpips")
    assert "alexnet" in lack.reason
    assert lack.url is not None
    assert "no such file" in lacking("nima", str(tmp_path / "gone.pth"), "scorer.weights")[0].reason


def test_a_metric_that_the_table_does_not_know_says_it_itself(empty_cache: Path) -> None:
    [lack] = lacking("ilniqe", None, "evaluation.weights.ilniqe")
    assert "ILNIQE_templateModel.mat is missing; put it at" in lack.reason
    assert lack.url is not None
    assert lacking("piqe", None, "evaluation.weights.piqe") == [], "a formula"
    assert lacking("psnr", None, "evaluation.weights.psnr") == []
    [lack] = lacking("fid", None, "evaluation.weights.fid")
    assert (lack.url, "set evaluation.weights.fid to pt_inception" in lack.reason) == (None, True)


def test_the_cache_is_found_without_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    from gmd_ray.quality.weights import _hub

    before = torch.hub.get_dir()
    monkeypatch.delitem(sys.modules, "torch")
    assert str(_hub()) == before
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    assert _hub() == tmp_path / "home" / "hub"
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert _hub() == tmp_path / "cache" / "torch" / "hub"
