"""Which files the metrics want that are not on this machine, and where each of them goes; nothing is downloaded.

The files of the metrics that are used most are known by name: importing pyiqa and building a metric takes seconds each.
Any other metric is built, with every download refused, and says itself what it lacks.
"""

from __future__ import annotations

import os
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from gmd_ray.config import ScorerConfig
from gmd_ray.errors import GmdError
from gmd_ray.quality.catalogue import MetricUnavailable, NotCached, metric_info, pyiqa_installed

_TORCHVISION = "https://download.pytorch.org/models"
_CLIP = "https://openaipublic.azureedge.net/clip"
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Lacking:
    """Why a metric would have no value here."""

    metric: str
    setting: str
    """The key that its weight file is given by."""
    reason: str
    """What is missing and where it goes."""
    url: str | None
    """An address on the server that has the missing file; None where no download would help."""


@dataclass(frozen=True)
class _File:
    name: str
    folder: str
    """Below torch's hub directory."""
    local: bool = True
    """Whether a file that the settings name replaces it; a backbone is wanted beside it."""


_FILES: dict[str, tuple[_File, ...]] = {
    "nima": (_File("NIMA_InceptionV2_ava-b0c77c00.pth", "pyiqa"),),
    "musiq": (_File("musiq_koniq_ckpt-e95806b9.pth", "pyiqa"),),
    "niqe": (_File("niqe_modelparameters.mat", "pyiqa"),),
    "brisque": (_File("brisque_svm_weights.pth", "pyiqa"),),
    "maniqa": (_File("ckpt_koniq10k.pt", "pyiqa"),),
    "clipiqa": (_File("RN50.pt", "clip"),),
    "lpips": (
        _File("alexnet-owt-7be5be79.pth", "checkpoints", local=False),
        _File("LPIPS_v0.1_alex-df73285e.pth", "pyiqa"),
    ),
    "dists": (_File("vgg16-397923af.pth", "checkpoints", local=False), _File("DISTS_weights-f5e65c96.pth", "pyiqa")),
}
"""pyiqa 0.1.16; see tests/quality/test_weights.py, which holds them against what pyiqa asks for."""


def lacking(metric: str, weights: str | None, setting: str) -> list[Lacking]:
    """What a metric would lack on this machine, each file apart; empty where it can be had.

    Args:
        weights: local weight file that the settings name.
        setting: the key that does, or would.
    """

    def lack(reason: str, url: str | None = None) -> Lacking:
        return Lacking(metric, setting, reason, url)

    info = metric_info(metric, setting)
    if not info.architecture:
        return []
    if not pyiqa_installed():
        return [lack("pyiqa is not installed; pip install 'gmd_ray[metrics]' (its licence is non-commercial)")]
    if weights is not None and (damage := _damage(Path(weights))) is not None:
        return [lack(f"{setting}={weights}: {damage}")]
    if metric == "fid":
        name = "pt_inception-2015-12-05-6726825d.pth"
        return [] if weights else [lack(f"no weights; set {setting} to {name} of pytorch-fid")]
    if metric not in _FILES:
        return _by_building(metric, weights, setting)
    wanted = [file for file in _FILES[metric] if not (file.local and weights is not None)]
    missing = [(file, path) for file in wanted if not (path := _hub() / file.folder / file.name).is_file()]
    return [
        lack(f"no {file.name}; put it at {path}" + (f", or set {setting}=FILE" if file.local else ""), _address(file))
        for file, path in missing
    ]


def scorer_lacks(cfg: ScorerConfig) -> list[Lacking]:
    """What the gate and its second opinion would lack on this machine, as `lacking` says it.

    Raises:
        ModelError: `scorer.path` is no scorer of the NIMA form; it is small, and loaded.
    """
    found: list[Lacking] = []
    if cfg.path is None:
        found += lacking(cfg.metric, cfg.weights, "scorer.weights")
    else:
        from gmd_ray.quality.nima import NimaScorer

        NimaScorer.from_pretrained(cfg.path)
    if cfg.fidelity != "none":
        found += lacking(cfg.fidelity, cfg.fidelity_weights, "scorer.fidelity_weights")
    return found


def _by_building(metric: str, weights: str | None, setting: str) -> list[Lacking]:
    from huggingface_hub import constants

    from gmd_ray.quality.pyiqa_metrics import PyiqaMetric

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True  # so that `fetching.reachable` says no
    try:
        PyiqaMetric(metric, weights=weights, device="cpu", weights_setting=setting)
    except NotCached as error:
        return [
            Lacking(
                metric,
                setting,
                _reason(error).replace(" is not cached and cannot be downloaded", " is missing"),
                error.url,
            )
        ]
    except (MetricUnavailable, GmdError) as error:
        return [Lacking(metric, setting, _reason(error), None)]
    finally:
        constants.HF_HUB_OFFLINE = before
    return []


def _reason(error: GmdError) -> str:
    return str(error).partition(" is unavailable: ")[2] or str(error)


def _hub() -> Path:
    """torch.hub.get_dir(), without importing torch."""
    if "torch" in sys.modules:
        return Path(sys.modules["torch"].hub.get_dir())
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    return Path(os.path.expanduser(home), "hub")


def _address(file: _File) -> str:
    if file.folder == "pyiqa":
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/chaofengc/IQA-PyTorch-Weights/resolve/main/{file.name}"
    return f"{_CLIP if file.folder == 'clip' else _TORCHVISION}/{file.name}"


def _damage(file: Path) -> str | None:
    """What a weight file cannot be, by its first bytes and the directory at its end."""
    if not file.is_file():
        return "no such file"
    with file.open("rb") as stream:
        head = stream.read(len(_POINTER))
    if not head:
        return "an empty file"
    if head.startswith(_POINTER):
        return "a Git LFS pointer, not the weights; run `git lfs pull` there"
    if head.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(file):
        return "breaks off; download it again"
    if head.lstrip()[:1] == b"<":
        return "a web page, not the weights; download the file itself"
    return None
