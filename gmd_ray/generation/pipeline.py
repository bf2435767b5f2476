"""Stages 0, 1 and 1b as one Ray Data stream, from a folder of photos to the pair store."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, Dataset
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError, RayTaskError

from gmd_ray.config import Config, ScorerConfig, StudentConfig, TeacherConfig
from gmd_ray.errors import GmdError
from gmd_ray.generation import settings
from gmd_ray.generation.books import Books, close_books
from gmd_ray.generation.cluster import TASK_CPUS, check_capacity, read_cpus
from gmd_ray.generation.ledger import open_ledger
from gmd_ray.generation.lock import StoreLock
from gmd_ray.generation.manifest import write_manifest
from gmd_ray.generation.quarantine import one_line
from gmd_ray.generation.resume import known_facts, refuse_mismatch
from gmd_ray.generation.stages import Project, Replica, Restore, Score, read_images
from gmd_ray.generation.store import PairStore, store_url
from gmd_ray.generation.writer import write_rows
from gmd_ray.images.listing import ImageFile, list_images
from gmd_ray.images.records import accepted
from gmd_ray.progress import NullRecorder, Progress, Recorder
from gmd_ray.quality import Scorer, load_scorer
from gmd_ray.students import Student, load_student
from gmd_ray.teachers import Teacher, load_teacher

log = logging.getLogger("gmd_ray.generation")


@dataclass(frozen=True)
class Models:
    """How the workers load their models; each must pickle."""

    student: Callable[[StudentConfig], Student] = load_student
    teacher: Callable[[TeacherConfig], Teacher] = load_teacher
    scorer: Callable[[ScorerConfig], Scorer] = load_scorer


def generate(cfg: Config, recorder: Recorder | None = None, *, models: Models | None = None) -> Books:
    """Turn the target photos into pairs, doing only what the store at `<out>/pairs` has no row for.

    Args:
        cfg: of it `target`, `student`, `teacher`, `scorer`, `generation`, `out`.
        recorder: gets parameters, counts, images/s and the manifest.
        models: other loaders than those of the model rooms.

    Returns:
        the books: every input accepted, rejected or failed.

    Raises:
        DataError: no images, or a damaged store.
        ConfigError: pools that the cluster cannot hold.
        ModelError: a model that cannot be loaded.
        ResumeMismatchError: a store made with other settings or models.
        StoreLockedError: another driver at work on the store.
        BooksError: rows that do not account for the inputs.
    """
    start = time.monotonic()
    recorder, models = recorder or NullRecorder(), models or Models()
    cfg = _with_absolute_paths(cfg)
    images = list_images(cfg.target.path or "", cfg.target.limit)
    check_capacity(cfg)
    store = PairStore(store_url(cfg.out))
    with _leaving_on_sigterm(), StoreLock(store.filesystem, store.path, store.url) as lock:
        store.sweep()
        store.repair()
        facts = known_facts(store)
        facts = refuse_mismatch(cfg, store, facts, images, models)
        ids = {image.id for image in images}
        if cfg.generation.retry_failed:
            log.info("%s: %d failed rows are tried again", store.url, store.drop_failed(ids))
        done = set(store.index()["id"].to_pylist())
        missing = [image for image in images if image.id not in done]
        log.info("%s: %d images, %d of them done already", store.url, len(images), len(images) - len(missing))
        if missing:
            store.forget("manifest.json")
            facts = _project(cfg, missing, store, lock, facts, models)
            lock.check()
            store.repair()
        rows = store.index()
        books = close_books(
            rows,
            ids,
            threshold=cfg.scorer.threshold,
            higher_is_better=facts["scorer"]["higher_is_better"],
            resumed=len(images) - len(missing),
            seconds=time.monotonic() - start,
        )
        write_manifest(cfg, store, rows, books, facts, recorder)
    log.info("%s: %d accepted, %d rejected, %d failed", store.url, books.accepted, books.rejected, books.failed)
    return books


def _project(
    cfg: Config,
    images: list[ImageFile],
    store: PairStore,
    lock: StoreLock,
    facts: dict[str, dict[str, Any]],
    models: Models,
) -> dict[str, dict[str, Any]]:
    """Run the stream over these images; returns the facts of the models that ran."""
    ledger = open_ledger(facts)
    stream = build_stream(cfg, images, store.url, lock.token, ledger, models)
    counts: Counter[str] = Counter(ok=0, failed=0, accepted=0)
    view: Callable[[bool], Any] = lambda better: accepted(cfg.scorer.threshold, better)  # noqa: E731
    learned = False
    try:
        with Progress("generate", len(images), interval_s=cfg.log_interval_s) as progress:
            for summary in stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                lock.check()
                if not learned:
                    facts = ray.get(ledger.facts.remote())
                    learned = "scorer" in facts
    except (RayError, ExecutionTimeoutError) as error:
        pass
    return facts


def build_stream() -> Dataset: ...
