"""The table of weight files, compared with the installed pyiqa: its sources, and what its constructors ask for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("pyiqa")

from gmd_ray.quality.catalogue import NOT_PER_IMAGE, catalogue
from gmd_ray.quality.weight_files import FILES, REPOSITORIES, WeightFile


def test_every_metric_is_in_the_table() -> None:
    without_value = set(NOT_PER_IMAGE) - {"fid"}
    assert set(FILES) | set(REPOSITORIES) | without_value == set(catalogue())
    assert {name for name, files in FILES.items() if not files} >= {
        name for name, info in catalogue().items() if not info.architecture
    }


def test_names_and_addresses_stand_in_the_sources_of_the_libraries() -> None:
    import facexlib
    import pyiqa
    import torchvision

    folders = [Path(str(package.__file__)).parent for package in (pyiqa, facexlib, torchvision)]
    source = "\n".join(file.read_text(encoding="utf-8") for folder in folders for file in folder.rglob("*.py"))
    for name, files in FILES.items():
        for file in files:
            word = file.name if "{hub}" in file.source else file.url
            assert word in source, (name, word)
    for name, repositories in REPOSITORIES.items():
        assert all(repository in source or repository.startswith("timm/") for repository in repositories), name


def test_digests_come_from_names_and_addresses() -> None:
    files = {file for files in FILES.values() for file in files}
    for file in files:
        if file.source.startswith("https://download.pytorch.org"):
            assert re.fullmatch(rf".*-{file.sha256}\.pth", file.name)
            assert len(file.sha256) == 8
        if "/clip/" in file.source:
            assert file.url.split("/")[-2] == file.sha256


def test_a_mirror_of_the_model_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    [file] = FILES["nima"]
    assert file.url.startswith("https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/NIMA_")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert file.url.startswith("https://mirror.example/chaofengc/")


def test_places() -> None:
    assert FILES["niqe"][0].place(Path("/w")) == Path("/w/pyiqa/niqe_modelparameters.mat")
    assert FILES["lpips"][0].place(Path("/w")) == Path("/w/checkpoints/alexnet-owt-7be5be79.pth")
    assert FILES["laion_aes"][0].place(Path("/w")) == Path.home() / ".cache/clip/ViT-L-14.pt"


@pytest.mark.parametrize(
    "name",
    ["arniqa-tid", "ckdn", "clipiqa", "dbcnn", "deepdc", "dists", "lpips", "lpips-vgg", "musiq", "musiq-ava", "niqe",
     "paq2piq", "stlpips", "tres", "unique"],
)  # fmt: skip
def test_constructors_ask_for_these_files_in_this_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyiqa's own constructor, with each of its loaders replaced by one that notes the address."""
    import torchvision
    from pyiqa.archs import clip_model
    from pyiqa.models.inference_model import InferenceModel

    asked: list[str] = []

    def note(url: str, *args: object, **kwargs: object) -> str:
        asked.append(url)
        return "/nowhere"

    class Anything(dict[str, Any]):
        def __missing__(self, key: object) -> Anything:
            return Anything()

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda url, **k: (note(url), {})[1])
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **k: (note(url), {})[1])
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *args, **kwargs: None)
    monkeypatch.setattr(clip_model, "_download", note)
    _import_architecture(name)
    for module in _architectures():
        for loader in ("load_file_from_url", "load_state_dict_from_url"):
            if hasattr(module, loader):
                result = note if loader == "load_file_from_url" else lambda url, **k: (note(url), {})[1]
                monkeypatch.setattr(module, loader, result)
        if hasattr(module, "load_pretrained_network"):
            monkeypatch.setattr(module, "load_pretrained_network", lambda network, url, *a, **k: note(url))
    try:
        InferenceModel(name, device=torch.device("cpu"))
    except (OSError, ValueError):  # a loader of this class that opens the file itself, as scipy.io.loadmat
        assert asked
    assert asked == [file.url for file in FILES[name]]


def _import_architecture(name: str) -> None:
    from pyiqa.archs import _lazy_import_arch
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    _lazy_import_arch(DEFAULT_CONFIGS[name]["metric_opts"]["type"])


def _architectures() -> list[Any]:
    import sys

    return [module for key, module in sys.modules.items() if key.startswith("pyiqa.archs.") and module is not None]


def test_files_can_be_told_apart() -> None:
    """Two files of one place are the same file."""
    places: dict[Path, WeightFile] = {}
    for files in FILES.values():
        for file in files:
            known = places.setdefault(file.place(Path("/w")), file)
            assert (known.url, known.sha256) == (file.url, file.sha256)
