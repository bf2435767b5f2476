"""The cache of a node: one copy of each model, made under a lock by the first process that needs it.

    <cache>/weights/
        <identity>/NAME     the model: a file or a folder, under its own name
        <identity>.json     its listing, with the SHA-256 of every file that has been downloaded
        <identity>.lock     held by the process that downloads
        <identity>.parts/   files that have not arrived in full
        urls/<digest>       the identity that a URL had when it was last used

A model that changes in its store has another identity, and gets a copy of its own: nothing that a process may have
open is ever replaced. Old copies stay until somebody deletes them.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from gmd_ray.errors import ModelError, StorageError
from gmd_ray.storage import absolute
from gmd_ray.weights.copies import CACHE, NodeCopy, pointer_of, read_listing
from gmd_ray.weights.listing import StoredModel, list_model

log = logging.getLogger("gmd_ray")

COPY_FROM = "GMD_RAY_COPY_FROM"
"""Variable that names folders, separated by colons, whose models are copied to the cache as those of URLs are."""

_listed: dict[tuple[str, str], tuple[StoredModel, str, str]] = {}
"""(cache, URL) -> model, identity, and why its store cannot be reached (else empty): a process asks a store once, so
that all that it loads is of one version."""
_listing = threading.Lock()


def is_stored(path: str | None) -> bool:
    """Tell whether models at a path are copied to the node's cache: a URL, or a place below `GMD_RAY_COPY_FROM`."""
    if not path:
        return False
    if "://" in path:
        return True
    folders = [folder for folder in os.environ.get(COPY_FROM, "").split(":") if folder]
    return any(Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder)) for folder in folders)


def node_copy(path: str, only: Sequence[str] = ("*",), but: Sequence[str] = ()) -> Path:
    """The path of a model on this node's disk, where it is downloaded to first if it is not there in full.

    Args:
        path: a local path, which comes back as it is, or a URL.
        only, but: patterns of the files that are needed, and of those that are not, by `StoredModel.chosen`.

    Raises:
        ModelError: there is nothing at the URL, or what is there does not fit its checksums.
        StorageError: the store cannot be reached, and the cache lacks a file.
        ConfigError: the cache cannot be written, or its disk is too small.
        DataError: a scheme that is unknown, or whose driver is not installed.
    """
    if not is_stored(path):
        return Path(path)
    model, identity, away = _find(path)
    copy = NodeCopy(cache_folder(), absolute(path), model, identity)
    files = model.chosen(only, but)
    if copy.missing(files):
        try:
            copy.fetch(files, away)
        except ModelError:
            _listed.clear()  # it may have changed since it was listed
            raise
    if not away:
        copy.remember()
    return copy.place


def stored_model(path: str) -> StoredModel:
    """The listing of a model at a URL; this process asks the store once.

    Raises:
        ModelError, StorageError, DataError: as `node_copy`.
    """
    return _find(path)[0]


def is_model_folder(path: str) -> bool:
    """Tell whether a model's path or URL is a folder, without a download.

    Raises:
        ModelError, StorageError, DataError: as `node_copy`.
    """
    return stored_model(path).folder if is_stored(path) else Path(path).is_dir()


def verified_copy(url: str) -> tuple[Path, list[str]]:
    """Make a whole copy of a model in the cache and compare every file with its SHA-256.

    Returns:
        The copy's path, and the names of files that were damaged in the cache and have been downloaded again.

    Raises:
        ModelError, StorageError, ConfigError, DataError: as `node_copy`.
    """
    place = node_copy(url)
    model, identity, _ = _find(url)
    damaged = NodeCopy(cache_folder(), absolute(url), model, identity).remove_damaged()
    for name in damaged:
        log.warning("%s: %s was damaged in the cache; it is downloaded again", url, name)
    return (node_copy(url), damaged) if damaged else (place, [])


def cache_folder() -> Path:
    """The folder of the cache: `GMD_RAY_CACHE`, or by default `gmd_ray` in the user's cache folder."""
    home = os.environ.get(CACHE) or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "gmd_ray")
    return Path(os.path.expanduser(home)).absolute() / "weights"


def _find(url: str) -> tuple[StoredModel, str, str]:
    """List a model, or where its store cannot be reached take the listing of its last copy.

    Returns:
        The model, its identity, and why its store cannot be reached (else empty).
    """
    cache, url = cache_folder(), absolute(url)
    with _listing:
        key = (str(cache), url)
        if key not in _listed:
            _listed[key] = _list(url, cache)
        return _listed[key]


def _list(url: str, cache: Path) -> tuple[StoredModel, str, str]:
    try:
        model = list_model(url)
    except StorageError as error:
        try:
            identity = pointer_of(cache, url).read_text(encoding="utf-8")
            known = read_listing(cache, identity)
        except (OSError, ValueError, KeyError, TypeError):
            raise StorageError(
                f"{error}; no copy of it lies in {cache} either: `gmd-ray fetch` with this URL, on a node that reaches "
                f"the store, makes one in {CACHE}"
            ) from error
        log.warning("%s; its copy in %s is used", error, cache)
        return known, identity, str(error)
    return model, model.identity, ""
