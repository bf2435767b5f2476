"""Weight files that the metrics lack on this machine, and the place of each; nothing is built or downloaded."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gmd_ray.config import ScorerConfig
from gmd_ray.errors import GmdError
from gmd_ray.quality.catalogue import metric_info, pyiqa_installed
from gmd_ray.quality.weight_files import FILES, REPOSITORIES, WeightFile
from gmd_ray.weights import is_model_folder, is_stored, node_copy

NO_PYIQA = "pyiqa is not installed; pip install 'gmd_ray[metrics]' (its licence is non-commercial)"
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class MissingWeights:
    """One reason why a metric cannot be loaded here."""

    metric: str
    setting: str
    """Key of the settings that names the metric's weight file."""
    reason: str
    """The missing files and the place of each."""
    file: WeightFile | None = None
    """The file that `gmd-ray fetch` would download; None where a download does not help."""
    place: Path | None = None
    """Where that file goes."""


def missing_weights(
    metric: str, weights: str | None, setting: str, directory: str | None = None
) -> list[MissingWeights]:
    """Every weight file that a metric lacks on this machine; empty if it can be loaded.

    Args:
        weights: the metric's weight file, or a weights directory, local or a URL; None for neither. Of a URL, the
            metric's files are copied to this node.
        setting: the key that holds `weights`, for the messages.
        directory: weights directory that holds the other files; None is torch's hub directory.

    Raises:
        ConfigError: no such metric.
    """

    def missing(reason: str, file: WeightFile | None = None, place: Path | None = None) -> MissingWeights:
        return MissingWeights(metric, setting, reason, file, place)

    info = metric_info(metric, setting)
    if not info.architecture:
        return []
    if not pyiqa_installed():
        return [missing(NO_PYIQA)]
    try:
        local, root = local_weights(metric, weights, directory)
    except GmdError as error:
        return [missing(f"{setting}={weights or directory}: {error}")]
    if local is not None and (fault := file_fault(local)) is not None:
        return [missing(f"{setting}={weights}: {fault}")]
    if metric not in FILES and metric not in REPOSITORIES:
        return [missing("the files that it loads are not known to gmd_ray, so that they cannot be fetched ahead")]
    found = []
    for file in FILES.get(metric, ()):
        place = file.place(root)
        if (local is not None and not file.backbone) or (fault := file_fault(place)) is None:
            continue
        if not file.folder.startswith("~") and (url := _url_of_directory(weights, directory)) is not None:
            found.append(missing(f"no {file.folder}/{file.name} in {url}; `gmd-ray fetch {metric} --to {url}` adds it"))
            continue
        what = f"no {file.name}" if fault == "no such file" else f"{place}: {fault}"
        other_way = "" if file.backbone else f", or set {setting}=FILE"
        found.append(missing(f"{what}; put it at {place}{other_way}", file, place))
    return found + [missing(reason) for reason in _missing_repositories(metric)]


def missing_scorer_weights(cfg: ScorerConfig) -> list[MissingWeights]:
    """Every file that the scorer and its fidelity metric lack on this machine.

    Raises:
        ModelError: `scorer.path` is not a scorer of the NIMA form. It is small, so it is loaded to find out.
    """
    found: list[MissingWeights] = []
    if cfg.path is None:
        found += missing_weights(cfg.metric, cfg.weights, "scorer.weights")
    else:
        from gmd_ray.quality.nima import NimaScorer

        NimaScorer.from_pretrained(cfg.path)
    if cfg.fidelity != "none":
        directory = fidelity_directory(cfg)
        found += missing_weights(cfg.fidelity, cfg.fidelity_weights, "scorer.fidelity_weights", directory)
    return found


def fidelity_directory(cfg: ScorerConfig) -> str | None:
    """The weights directory of the fidelity metric: that of the scorer, unless `fidelity_weights` names another."""
    return cfg.weights if cfg.weights is not None and is_model_folder(cfg.weights) else None


def local_weights(metric: str, weights: str | None, directory: str | None = None) -> tuple[Path | None, Path]:
    """Sort out what a setting names: a weight file (or None), and the weights directory that holds all other files.

    The metric's files of a URL are copied to this node.

    Raises:
        GmdError: a URL that cannot be copied, see `weights.node_copy`.
    """
    files = [f"{file.folder}/{file.name}" for file in FILES.get(metric, ())]
    if weights is not None and is_model_folder(weights):
        return None, node_copy(weights, files).absolute()
    local = None if weights is None else node_copy(weights)
    return local, default_directory() if directory is None else node_copy(directory, files).absolute()


def _url_of_directory(weights: str | None, directory: str | None) -> str | None:
    """The URL of the weights directory; None where it is a local one, into which a file may be downloaded."""
    folder = weights if weights is not None and is_model_folder(weights) else directory
    return folder if folder is not None and is_stored(folder) else None


def default_directory() -> Path:
    """torch.hub.get_dir(), found without the import of torch, which takes seconds."""
    if "torch" in sys.modules:
        return Path(sys.modules["torch"].hub.get_dir())
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    return Path(os.path.expanduser(home), "hub")


def fetch_command(missing: Sequence[MissingWeights]) -> str | None:
    """The command line that downloads these files on a connected machine; None where none of them has an address."""
    metrics = sorted({entry.metric for entry in missing if entry.file is not None})
    return f"gmd-ray fetch {' '.join(metrics)} --to DIR" if metrics else None


def file_fault(file: Path) -> str | None:
    """Why this cannot be a weight file, judged by its first bytes and, for a zip archive, by the index at its end."""
    if not file.is_file():
        return "no such file"
    with file.open("rb") as stream:
        head = stream.read(len(_LFS_POINTER))
    if not head:
        return "an empty file"
    if head.startswith(_LFS_POINTER):
        return "a Git LFS pointer, not the weights; run `git lfs pull` there"
    if head.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(file):
        return "breaks off; download it again"
    if head.lstrip()[:1] == b"<":
        return "a web page, not the weights; download the file itself"
    return None


def _missing_repositories(metric: str) -> list[str]:
    """Model hub repositories that are not in the hub's cache, or could change it because the hub is not offline."""
    if metric not in REPOSITORIES:
        return []
    from huggingface_hub import constants, try_to_load_from_cache

    absent = [name for name in REPOSITORIES[metric] if not isinstance(try_to_load_from_cache(name, "config.json"), str)]
    if absent:
        return [f"no {name} in the model hub's cache; run `hf download {name}`" for name in absent]
    if not constants.HF_HUB_OFFLINE:
        return [
            "it loads from the model hub, and a run never downloads; set HF_HUB_OFFLINE=1 to take it from the cache"
        ]
    return []
