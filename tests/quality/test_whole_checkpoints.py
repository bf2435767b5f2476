"""Networks built without their pretrained backbone: equal to pyiqa's own, weight for weight and score for score."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("pyiqa")

from gmd_ray.quality import MetricUnavailable, load_metric


@pytest.fixture
def pyiqas_own(monkeypatch: pytest.MonkeyPatch) -> Callable[..., torch.nn.Module]:
    """pyiqa's own class, with timm's backbone untrained: this test has no network to download it from."""
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **kw: create(*args, **{**kw, "pretrained": False}))

    def build(name: str) -> torch.nn.Module:
        from pyiqa.archs import build_network
        from pyiqa.default_model_configs import DEFAULT_CONFIGS

        torch.manual_seed(0)
        return build_network({**DEFAULT_CONFIGS[name]["metric_opts"], "pretrained": False}).eval()

    return build


@pytest.mark.parametrize("name", ["nima-vgg16-ava", "hyperiqa", "topiq_nr", "maniqa"])
@torch.no_grad()
def test_scores_are_those_of_pyiqas_own_class(
    name: str, pyiqas_own: Callable[..., Any], tmp_path: Path, empty_directory: Path
) -> None:
    own = pyiqas_own(name)
    if name == "maniqa":  # its checkpoints have no `params`
        torch.save(own.state_dict(), tmp_path / "weights.pth")
    else:
        torch.save({"params": own.state_dict()}, tmp_path / "weights.pth")
    metric = load_metric(name, weights=str(tmp_path / "weights.pth"), device="cpu")
    network = metric._model.net  # type: ignore[attr-defined]
    assert list(network.state_dict()) == list(own.state_dict())
    if name == "maniqa":
        network.test_sample = own.test_sample = 1  # of 20 crops: each takes a second
    image = torch.round(torch.rand(3, 224, 224) * 255) / 255
    torch.manual_seed(123)
    expected = own(image[None])
    assert metric(image) == pytest.approx(float(expected), rel=1e-4, abs=1e-5)


def test_a_checkpoint_without_its_backbone_is_refused(pyiqas_own: Callable[..., Any], tmp_path: Path) -> None:
    """An untrained backbone must not pass for a trained one."""
    state = pyiqas_own("nima-vgg16-ava").state_dict()
    head = {key: value for key, value in state.items() if key.startswith("classifier")}
    torch.save({"params": head}, tmp_path / "head.pth")
    with pytest.raises(MetricUnavailable, match=r"evaluation.weights.nima-vgg16-ava=.*Missing key"):
        load_metric("nima-vgg16-ava", weights=str(tmp_path / "head.pth"), device="cpu")
