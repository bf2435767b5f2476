"""Any metric of pyiqa by its name, as a `Metric` and, where it needs no reference, as a `Scorer`.

pyiqa's shapes, input checks and failures differ from metric to metric (restoration.md 3.3); here every one takes an
image in [0, 1] and gives a number, or says in one line why it cannot.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gmd_ray.errors import DataError
from gmd_ray.quality import fetching
from gmd_ray.quality.catalogue import MIN_SIDE, MetricUnavailable, NotCached, metric_info, pyiqa_installed
from gmd_ray.quality.inputs import pick_device, prepare, prepare_pair

OF_SETS = ("fid", "sfid", "fid_dinov2", "inception_score")
OWN_BACKBONE = ("NIMA", "MANIQA", "HyperNet")
"""Classes that fetch a pretrained backbone and then overwrite it from a checkpoint loaded strictly."""
LOCAL_OPTIONS: dict[str, dict[str, Any]] = {"musiq-ava": {"num_class": 10}}
"""What pyiqa infers from its own file names and must be told for a local file."""
SEED = 123

_MEASURE_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AssertionError, ArithmeticError)


class PyiqaMetric:
    """A pyiqa metric. One object per process: pyiqa sets process-wide flags while it measures.

    Args:
        name: pyiqa's name.
        weights: local weight file; None takes pyiqa's cache, or downloads where the network answers.
        device: auto, cpu, cuda or cuda:N.
        crop_border: pixels cut from each side first.
        weights_setting, device_setting: the config keys to name in errors.

    Raises:
        MetricUnavailable: pyiqa, weights or a backbone are missing, or the metric does not measure single images.
    """

    def __init__(
        self,
        name: str,
        *,
        weights: str | None = None,
        device: str = "auto",
        crop_border: int = 0,
        weights_setting: str = "weights",
        device_setting: str = "device",
    ) -> None:
        info = metric_info(name, "metric")
        self.name = name
        self.higher_is_better = info.higher_is_better
        self.needs_reference = info.needs_reference
        self._device = pick_device(device, device_setting)
        self._crop_border = crop_border
        self._architecture = info.architecture
        self._weights = weights
        self._setting = weights_setting
        self._check()
        self._model = self._load()
        self.fingerprint = self._digest()

    def __call__(self, image: torch.Tensor, reference: torch.Tensor | None = None) -> float:
        """One image, RGB in [0, 1], (3, H, W), and its ground truth where needed; on pyiqa's scale for this metric.

        Raises:
            DataError: an image that this metric cannot measure.
        """
        inputs: tuple[torch.Tensor, ...]
        if self.needs_reference:
            inputs = prepare_pair(self.name, image, reference, self._device, self._crop_border)
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
        """RGB in [0, 1], (B, 3, H, W) -> (B,) float32, one image at a time, so that no value depends on its batch."""
        return torch.tensor([self(image) for image in images], dtype=torch.float32, device=images.device)

    def _check(self) -> None:
        if self.name in OF_SETS:
            raise self._unavailable("it compares sets of images and has no value for one")
        if self.name == "clipscore":
            raise self._unavailable("it needs a caption for each image")
        if not pyiqa_installed():
            raise self._unavailable(
                "pyiqa is not installed; pip install 'gmd_ray[metrics]' (its licence is non-commercial)"
            )
        if self._weights is not None and not Path(self._weights).is_file():
            raise self._unavailable(f"{self._setting}={self._weights}: no such file")

    def _load(self) -> nn.Module:
        """Build it with downloads refused; again with the network only where one was wanted and can be had."""
        with fetching.refused_downloads() as refused:
            try:
                return self._build()
            except fetching.load_errors() as error:
                url = fetching.wanted_url(error, refused)
                if url is None:
                    raise self._unavailable(self._reason(error)) from error
        if not fetching.reachable(url):
            raise NotCached(
                f"metric {self.name!r} is unavailable: {Path(url).name} is not cached and cannot be downloaded; "
                f"put it at {fetching.cache_place(url)}{self._or_local(url)}",
                url,
            )
        with fetching.bounded_downloads():
            try:
                return self._build()
            except fetching.load_errors() as error:
                raise self._unavailable(
                    f"{self._reason(error)}; put {Path(url).name} at {fetching.cache_place(url)}{self._or_local(url)}"
                ) from error

    def _build(self) -> nn.Module:
        options: dict[str, Any] = {}
        if self._weights is not None:
            key = "backbone" if self.name == "clipiqa" else "pretrained_model_path"
            options = {key: str(self._weights), **LOCAL_OPTIONS.get(self.name, {})}
        with contextlib.ExitStack() as conditions:
            conditions.enter_context(fetching.safe_and_quiet())
            conditions.enter_context(fetching.pkg_resources_for_clip())
            if self._architecture in OWN_BACKBONE:
                conditions.enter_context(fetching.without_timm_pretraining())
            from pyiqa.models.inference_model import InferenceModel

            logging.getLogger("pyiqa").setLevel(logging.WARNING)
            return InferenceModel(self.name, device=self._device, **options).eval()

    def _reason(self, error: BaseException) -> str:
        if isinstance(error, TypeError) and "pretrained_model_path" in str(error):
            return f"{self._architecture} takes no local weight file; leave out {self._setting} and fill its cache"
        where = f"{self._setting}={self._weights}: " if self._weights else ""
        if isinstance(error, pickle.UnpicklingError):
            return f"{where}not a weight file that holds tensors only; nothing else is loaded"
        return f"{where}{_line(error)}"

    def _or_local(self, url: str) -> str:
        """The other way to mend a missing file, where a local weight file would replace it."""
        return f", or set {self._setting}=PATH" if fetching.from_pyiqa(url) or self.name == "clipiqa" else ""

    def _unavailable(self, reason: str) -> MetricUnavailable:
        return MetricUnavailable(f"metric {self.name!r} is unavailable: {reason}")

    def _digest(self) -> str:
        """Name, pyiqa's version and every tensor of the model: the same weights from a cache or a path are the same."""
        digest = hashlib.sha256(f"{self.name} pyiqa {importlib.metadata.version('pyiqa')} {self._crop_border}".encode())
        for label, tensor in _tensors(self._model.get_submodule("net")):
            digest.update(label.encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The state dict, and what pyiqa keeps beside it: plain tensors (NIQE, BRISQUE), models in a list (CLIP)."""
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
    """Metrics that look at random crops look at the same ones each time; the caller's generators are left as found."""
    before = np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(SEED)
        np.random.seed(SEED)
        try:
            yield
        finally:
            np.random.set_state(before)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
