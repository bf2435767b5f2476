"""Any metric of pyiqa by its name, as a `Metric` and, if it needs no reference, as a `Scorer`.

pyiqa's output shapes, input checks and failures differ from metric to metric. Here every metric takes an image in
[0, 1] and returns a number, or raises an error of one line.

All files must be on this machine before a metric is built (`missing_weights`), so pyiqa has nothing to download.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import logging
import math
import os
import pickle
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gmd_ray.devices import choose_device
from gmd_ray.errors import DataError
from gmd_ray.quality.catalogue import MIN_SIDE, MetricUnavailable, metric_info
from gmd_ray.quality.inputs import crop_mask, prepare, prepare_pair
from gmd_ray.quality.missing_weights import local_weights, missing_weights
from gmd_ray.quality.weight_files import FILES, WeightFile

OF_SETS = ("fid", "sfid", "fid_dinov2", "inception_score")
"""Metrics of pyiqa that compare sets of images."""
BY_PATH = (
    *("NIQE", "ILNIQE", "BRISQUE", "NRQM", "LPIPS", "STLPIPS", "DISTS", "MUSIQ", "CNNIQA", "PieAPP", "CKDN"),
    *("PAQ2PIQ", "TReS"),
)
"""Classes that read the file of `pretrained_model_path` exactly as the one in pyiqa's cache."""
NOT_BY_PATH = ("brisque_matlab",)
"""Metrics of these classes that do not: with a path, pyiqa expects another format than that of its own file."""
LOCAL_OPTIONS: dict[str, dict[str, Any]] = {"musiq-ava": {"num_class": 10}}
"""Options that pyiqa derives from its own file names and must be given with the path of a file."""
SEED = 123
"""Seed of the random crops that some metrics look at."""

_MEASURE_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AssertionError, ArithmeticError)


class PyiqaMetric:
    """A metric of pyiqa. One object per process: pyiqa sets process-wide flags while it measures.

    Args:
        name: pyiqa's name.
        weights: weight file of the metric, or a weights directory; None takes the file from `directory`.
        directory: weights directory; None is torch's hub directory.
        device: auto, cpu, cuda or cuda:N.
        crop_border: pixels cut from each side first.
        weights_setting, device_setting: the settings keys to name in errors.

    Raises:
        MetricUnavailable: pyiqa or a weight file is missing, or the metric does not measure single images.
    """

    def __init__(
        self,
        name: str,
        *,
        weights: str | None = None,
        directory: str | None = None,
        device: str = "auto",
        crop_border: int = 0,
        weights_setting: str = "weights",
        device_setting: str = "device",
    ) -> None:
        info = metric_info(name, "metric")
        self.name = name
        self.higher_is_better = info.higher_is_better
        self.needs_reference = info.needs_reference
        self._device = choose_device(device, device_setting)
        self._crop_border = crop_border
        self._architecture = info.architecture
        self._setting = weights_setting
        if name in OF_SETS:
            raise self._unavailable("it compares sets of images and has no value for one")
        if name == "clipscore":
            raise self._unavailable("it needs a caption for each image")
        missing = missing_weights(name, weights, weights_setting, directory)
        if missing:
            hint = f" (`gmd-ray fetch {name}` downloads it)" if any(entry.file for entry in missing) else ""
            raise self._unavailable("; ".join(entry.reason for entry in missing) + hint)
        self._local, self._directory = local_weights(name, weights, directory)
        self._model = self._load()
        self.fingerprint = self._digest()

    def __call__(
        self, image: torch.Tensor, reference: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> float:
        """Measure one RGB image in [0, 1], (3, H, W), on pyiqa's scale for this metric.

        Args:
            reference: the ground truth, of the same shape; required if `needs_reference`.
            mask: bool (H, W); pixels outside of it are black in both images. None: all count.

        Raises:
            DataError: an image that this metric cannot measure.
        """
        inputs: tuple[torch.Tensor, ...]
        if self.needs_reference:
            inputs = prepare_pair(self.name, image, reference, self._device, self._crop_border)
            if mask is not None:
                counts = crop_mask(mask, self._device, self._crop_border)
                inputs = tuple(side * counts for side in inputs)
        else:
            inputs = (prepare(image, self._device, self._crop_border),)
        height, width = inputs[0].shape[-2:]
        smallest = MIN_SIDE.get(self.name, 1)
        if min(height, width) < smallest:
            raise DataError(
                f"metric {self.name!r} needs {smallest} pixels on each side; this image has {width}x{height}"
            )
        try:
            with fixed_draws(self._device):
                output = self._model(*inputs)
        except torch.OutOfMemoryError:
            raise
        except _MEASURE_ERRORS as error:
            raise DataError(f"metric {self.name!r} cannot measure a {width}x{height} image: {_line(error)}") from error
        values = torch.as_tensor(output[0] if isinstance(output, (list, tuple)) else output).reshape(-1)
        if values.numel() != 1 or not math.isfinite(values.item()):
            raise DataError(f"metric {self.name!r} has no finite value for this {width}x{height} image")
        return float(values.item())

    def score(self, images: torch.Tensor) -> torch.Tensor:
        """Score RGB images in [0, 1], (B, 3, H, W), one at a time, so that no value depends on its batch.

        Returns:
            float32 (B,) on the device of `images`.
        """
        return torch.tensor([self(image) for image in images], dtype=torch.float32, device=images.device)

    def _load(self) -> nn.Module:
        self._check_clip()
        try:
            with safe_and_quiet(), hub_directory(self._directory):
                return self._build().eval()
        except _load_errors() as error:
            raise self._unavailable(self._reason(error)) from error

    def _build(self) -> nn.Module:
        from pyiqa.models.inference_model import InferenceModel

        from gmd_ray.quality.whole_checkpoints import load_checkpoint, untrained_options

        logging.getLogger("pyiqa").setLevel(logging.WARNING)
        files = FILES.get(self.name, ())
        untrained = untrained_options(self.name)
        path = self._local
        if path is None and (untrained is not None or self._reads_by_path()):
            path = files[-1].place(self._directory)
        self._check_pyiqa_cache(files if path is None else files[:-1])
        if untrained is not None:
            assert path is not None
            model = InferenceModel(self.name, device=self._device, **untrained)
            load_checkpoint(model.net, path)
            return model
        options: dict[str, Any] = {}
        if path is not None:
            key = "backbone" if self.name == "clipiqa" else "pretrained_model_path"
            options = {key: str(path), **LOCAL_OPTIONS.get(self.name, {})}
        return InferenceModel(self.name, device=self._device, **options)

    def _reads_by_path(self) -> bool:
        return self._architecture in BY_PATH and self.name not in NOT_BY_PATH

    def _check_pyiqa_cache(self, files: Sequence[WeightFile]) -> None:
        """Refuse a metric if pyiqa would look for these files, and download them, in another cache than the directory.

        pyiqa takes torch's hub directory when it is imported and keeps it, so a process has one such cache.
        """
        from pyiqa.utils import download_util

        cache = Path(download_util.DEFAULT_CACHE_DIR)
        if cache != self._directory / "pyiqa" and any(file.folder == "pyiqa" for file in files):
            raise self._unavailable(
                f"pyiqa already uses {cache} in this process and cannot change to {self._directory / 'pyiqa'}; "
                "name one weights directory for all metrics"
            )

    def _check_clip(self) -> None:
        """Refuse a damaged CLIP model, which pyiqa and CLIP would download again."""
        for file in FILES.get(self.name, ()):
            if len(file.sha256) != 64 or (self._local is not None and not file.backbone):
                continue
            place = file.place(self._directory)
            with place.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:
                    raise self._unavailable(f"{place}: damaged (its SHA-256 is not {file.sha256[:16]}...); delete it")

    def _reason(self, error: BaseException) -> str:
        if isinstance(error, TypeError) and "pretrained_model_path" in str(error):
            return f"{self._architecture} takes no local weight file; leave out {self._setting} and fill its cache"
        where = f"{self._setting}={self._local}: " if self._local else ""
        if isinstance(error, pickle.UnpicklingError):
            return f"{where}not a weight file that holds tensors only; nothing else is loaded"
        return f"{where}{_line(error)}"

    def _unavailable(self, reason: str) -> MetricUnavailable:
        return MetricUnavailable(f"metric {self.name!r} is unavailable: {reason}")

    def _digest(self) -> str:
        """Digest the name, pyiqa's version and every tensor of the model; the files' places do not matter."""
        digest = hashlib.sha256(f"{self.name} pyiqa {importlib.metadata.version('pyiqa')} {self._crop_border}".encode())
        for label, tensor in _tensors(self._model.get_submodule("net")):
            digest.update(label.encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the state dict, and what pyiqa keeps beside it: plain tensors (NIQE, BRISQUE), models in a list (CLIP)."""
    yield from sorted(module.state_dict().items())
    for path, part in module.named_modules():
        for key, value in sorted(vars(part).items()):
            if isinstance(value, torch.Tensor):
                yield f"{path}.{key}", value
            elif isinstance(value, list):
                for item in value:
                    if isinstance(item, nn.Module):
                        yield from _tensors(item)


@contextlib.contextmanager
def fixed_draws(device: torch.device) -> Iterator[None]:
    """Give metrics that look at random crops the same crops each time; the caller's generators stay as they were."""
    before = np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(SEED)
        np.random.seed(SEED)
        try:
            yield
        finally:
            np.random.set_state(before)


@contextlib.contextmanager
def hub_directory(directory: Path) -> Iterator[None]:
    """Let torchvision, CLIP and a pyiqa that is not imported yet look for weight files below `directory`."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(directory))
    try:
        yield
    finally:
        torch.hub.set_dir(before)


@contextlib.contextmanager
def safe_and_quiet() -> Iterator[None]:
    """Load checkpoints as tensors only, though pyiqa asks for full unpickling, and print nothing to stdout.

    TORCH_FORCE_WEIGHTS_ONLY_LOAD is torch's own switch; it is read at each load.
    """
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


def _load_errors() -> tuple[type[Exception], ...]:
    """The errors that the libraries raise for weight files of another network, or damaged ones."""
    from safetensors import SafetensorError
    from scipy.io.matlab import MatReadError

    return (
        *(OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ImportError),
        *(EOFError, pickle.UnpicklingError, struct.error, zlib.error, MatReadError, SafetensorError),
    )


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
