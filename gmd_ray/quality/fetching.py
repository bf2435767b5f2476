"""The conditions under which pyiqa may build a metric: safely, quietly, and without minutes of retries offline.

pyiqa, torchvision, timm and CLIP each fetch weights their own way (restoration.md 3.2). A metric is built with every
download refused first; only where one was wanted, and its server answers at once, is it built again with the network.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import pickle
import re
import socket
import struct
import sys
import types
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PROBE_SECONDS = 3.0
READ_SECONDS = 20.0


class _Refused(urllib.request.OpenerDirector):
    """Stands in for urllib's opener, which torch.hub and CLIP download through; notes what was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.url: str | None = None

    def open(self, fullurl: Any, data: Any = None, timeout: Any = None) -> Any:
        self.url = fullurl if isinstance(fullurl, str) else fullurl.full_url
        raise urllib.error.URLError(f"download of {self.url} refused")


def load_errors() -> tuple[type[Exception], ...]:
    """What building a metric raises for missing, foreign or damaged weights, across the libraries that read them."""
    from safetensors import SafetensorError
    from scipy.io.matlab import MatReadError

    return (
        *(OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ImportError),
        *(EOFError, pickle.UnpicklingError, struct.error, zlib.error, MatReadError, SafetensorError),
    )


@contextlib.contextmanager
def refused_downloads() -> Iterator[_Refused]:
    """Every download through urllib or the model hub's client fails at once. Not for several threads."""
    from huggingface_hub import constants

    refused = _Refused()
    opener, offline = urllib.request._opener, constants.HF_HUB_OFFLINE  # type: ignore[attr-defined]
    urllib.request.install_opener(refused)
    constants.HF_HUB_OFFLINE = True
    try:
        yield refused
    finally:
        urllib.request.install_opener(opener)
        constants.HF_HUB_OFFLINE = offline


@contextlib.contextmanager
def bounded_downloads() -> Iterator[None]:
    """A connection that falls silent ends in an error."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(READ_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def wanted_url(error: BaseException, refused: _Refused) -> str | None:
    """The address whose refusal led to `error`; None where the error has another cause."""
    if refused.url is not None:
        return refused.url
    step: BaseException | None = error
    while step is not None:
        if found := re.search(r"Cannot reach (https?://\S+?):? ", str(step) + " "):
            return found.group(1)
        step = step.__cause__ or step.__context__
    return None


def reachable(url: str) -> bool:
    """Whether the server of `url` answers within seconds; False where the user asked for offline mode."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    parts = urlsplit(url)
    try:
        request = urllib.request.Request(f"{parts.scheme}://{parts.netloc}", method="HEAD")
        urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return True  # a refusal of this page is an answer
    except OSError:
        return False
    return True


def from_pyiqa(url: str) -> bool:
    """Whether a file is one of pyiqa's own, which a local weight file replaces; the others are backbones."""
    return "IQA-PyTorch" in url


def cache_place(url: str) -> str:
    """Where a file of that address is looked for, to name it in an error."""
    import torch
    from pyiqa.utils import download_util

    name = Path(urlsplit(url).path).name
    if from_pyiqa(url):
        return str(Path(download_util.DEFAULT_CACHE_DIR) / name)
    if "/resolve/" in url:
        return f"the model hub's cache (HF_HOME), as a download of {url} would"
    return str(Path(torch.hub.get_dir()) / ("clip" if "/clip/" in url else "checkpoints") / name)


@contextlib.contextmanager
def safe_and_quiet() -> Iterator[None]:
    """Checkpoints load as tensors only (pyiqa asks for full unpickling), and nothing is printed to stdout."""
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


@contextlib.contextmanager
def without_timm_pretraining() -> Iterator[None]:
    """timm builds backbones untrained: for checkpoints that bring their own (NIMA fetches 220 MB to overwrite them)."""
    import timm

    create = timm.create_model

    def untrained(*args: Any, **kwargs: Any) -> Any:
        return create(*args, **{**kwargs, "pretrained": False})

    timm.create_model = untrained
    try:
        yield
    finally:
        timm.create_model = create


@contextlib.contextmanager
def pkg_resources_for_clip() -> Iterator[None]:
    """CLIP imports `packaging` from pkg_resources, which setuptools dropped in version 82."""
    if "pkg_resources" in sys.modules or importlib.util.find_spec("pkg_resources") is not None:
        yield
        return
    import packaging.version

    shim = types.ModuleType("pkg_resources")
    shim.packaging = packaging  # type: ignore[attr-defined]
    sys.modules["pkg_resources"] = shim
    try:
        yield
    finally:
        del sys.modules["pkg_resources"]
