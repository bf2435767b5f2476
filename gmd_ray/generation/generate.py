"""One run over one pair store: lock, subtract what is done, stream the rest, close the books."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from gmd_ray.config import Config
from gmd_ray.errors import ResumeMismatchError
from gmd_ray.generation.books import Books, close_books
from gmd_ray.generation.ledger import open_ledger
from gmd_ray.generation.lock import StoreLock
from gmd_ray.generation.store import PairStore, store_url
from gmd_ray.generation.stream import Models, stream
from gmd_ray.images.listing import list_images
from gmd_ray.images.records import accepted
from gmd_ray.progress import NullRecorder, Progress, Recorder

log = logging.getLogger("gmd_ray.generation")

SETTINGS, MANIFEST = "settings.json", "manifest.json"


def generate(cfg: Config, recorder: Recorder | None = None, *, models: Models | None = None) -> Books:
    """Restore, project and score every target image that has no row yet. Ray must be initialised.

    Args:
        models: other loaders for the three models.

    Returns:
        the books of the whole store, earlier runs included.

    Raises:
        ResumeMismatchError: the store was made with settings that give other pixels or scores.
        BooksError: the rows do not account for every input exactly once.
        GmdError: whatever else ends a run, in one line.
    """
    recorder, models = recorder or NullRecorder(), models or Models()
    start = time.monotonic()
    store = PairStore(store_url(cfg.out))
    files = list_images(cfg.target.path or "", cfg.target.limit)
    with StoreLock(store.filesystem, store.path, store.url) as lock, _sigterm_unwinds():
        facts = _claim(store, cfg)
        store.sweep()
        store.repair()
        if cfg.generation.retry_failed:
            dropped = store.drop_failed({file.id for file in files})
            log.info("%d failed rows are tried again", dropped)
        rows = store.index()
        done = set(rows["id"].to_pylist())
        todo = [file for file in files if file.id not in done]
        resumed = len(files) - len(todo)
        if resumed:
            log.info("%s: %d of %d images have their row already", store.url, resumed, len(files))
        recorder.params(pixel_settings(cfg))
        seconds: Counter[str] = Counter()
        if todo:
            ledger = open_ledger(facts)
            with Progress("generate", len(todo), interval_s=cfg.log_interval_s) as progress:
                for block in stream(cfg, todo, store.url, lock.token, ledger, models):
                    lock.check()
                    if "scorer" not in facts:  # known from the first block that was scored
                        facts = ray.get(ledger.facts.remote())
                        store.write(SETTINGS, {"settings": pixel_settings(cfg), "models": facts})
                    _count(progress, seconds, block, cfg.scorer.threshold, _higher_is_better(facts))
            facts = ray.get(ledger.facts.remote())
            store.write(SETTINGS, {"settings": pixel_settings(cfg), "models": facts})
        store.repair()
        rows = store.index()
        books = close_books(
            rows,
            [file.id for file in files],
            resumed,
            cfg.scorer.threshold,
            _higher_is_better(facts),
            time.monotonic() - start,
        )
        if books.strangers:
            log.info("%s: %d rows of images that are no longer in the folder", store.url, books.strangers)
        store.write(MANIFEST, _manifest(cfg, books, facts, rows, len(todo), seconds))
    recorder.metrics({k: float(v) for k, v in books.counts().items() if not isinstance(v, bool)})
    if store.path and "://" not in store.url:
        recorder.artifact(f"{store.path}/{MANIFEST}")
    return books


def pixel_settings(cfg: Config) -> dict[str, Any]:
    """The settings that alter pixels or scores, flat. Weights count by their fingerprints, wherever they lie; pools,
    devices, batch sizes and the threshold do not count."""
    flat: dict[str, Any] = {
        "target.path": cfg.target.path,
        "target.gray": cfg.target.gray,
        "generation.keep_restored": cfg.generation.keep_restored,
        "scorer.metric": None if cfg.scorer.path else cfg.scorer.metric,
    }
    for section, node in (("student", cfg.student), ("teacher", cfg.teacher)):
        for key, value in asdict(node).items():
            if key not in ("path", "pool", "device"):
                flat.update(_flat(f"{section}.{key}", value))
    return flat


def _flat(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    return {k: v for name, inner in value.items() for k, v in _flat(f"{key}.{name}", inner).items()}


def _claim(store: PairStore, cfg: Config) -> dict[str, dict[str, Any]]:
    """Compare the settings with the store's, or leave them there; returns the facts of the models known so far."""
    mine = pixel_settings(cfg)
    saved = store.read(SETTINGS)
    if saved is None:
        store.write(SETTINGS, {"settings": mine, "models": {}})
        return {}
    theirs = saved["settings"]
    differing = [key for key in sorted({*mine, *theirs}) if mine.get(key) != theirs.get(key)]
    if differing:
        changes = "; ".join(f"{key} was {theirs.get(key)!r}, is {mine.get(key)!r}" for key in differing)
        raise ResumeMismatchError(
            f"{store.url} was made with other settings: {changes}; give another out=, or the old values"
        )
    return saved["models"]


def _higher_is_better(facts: dict[str, dict[str, Any]]) -> bool:
    return bool(facts.get("scorer", {}).get("higher_is_better", True))


def _count(progress: Progress, seconds: Counter[str], block: pa.Table, threshold: float, higher: bool) -> None:
    ok = block.filter(pc.field("status") == "ok").num_rows
    taken = block.filter(accepted(threshold, higher)).num_rows
    for stage in ("restore", "project", "score"):
        seconds[stage] += pc.sum(block[f"seconds_{stage}"]).as_py() or 0.0
    counts = progress.counts
    progress.update(
        block.num_rows,
        accepted=counts.get("accepted", 0) + taken,
        rejected=counts.get("rejected", 0) + ok - taken,
        failed=counts.get("failed", 0) + block.num_rows - ok,
    )


def _manifest(
    cfg: Config, books: Books, facts: dict[str, Any], rows: pa.Table, projected: int, seconds: Counter[str]
) -> dict[str, Any]:
    failures = Counter(
        f"{row['error_stage']}: {row['error_type']}"
        for row in rows.select(["status", "error_stage", "error_type"]).to_pylist()
        if row["status"] == "failed"
    )
    return {
        **books.counts(),
        "higher_is_better": _higher_is_better(facts),
        "failures": dict(failures),
        "models": facts,
        "settings": pixel_settings(cfg),
        "images_this_run": projected,
        "images_per_second": projected / books.seconds if projected else None,
        "seconds_by_stage": dict(seconds),
        "versions": {name: version(name) for name in ("gmd_ray", "ray", "torch", "diffusers", "spandrel")},
    }


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """`ray job stop` sends SIGTERM: unwind, so that the lock is released and the next run need not wait for it.

    A handler set before ray.init never ran (research/ray.md 4), so this is done here, after it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        log.warning("SIGTERM: stopping; the same command takes up what is missing")
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
