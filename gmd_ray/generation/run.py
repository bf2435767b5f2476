"""One run over one pair store: lock, subtract what is done, stream the rest, check the totals."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import ray
from pyarrow import fs
from ray.exceptions import RayError

from gmd_ray.config import Config
from gmd_ray.config.load import config_text, save_config
from gmd_ray.config.places import below
from gmd_ray.errors import GmdError
from gmd_ray.generation import suspects
from gmd_ray.generation.ledger import open_ledger
from gmd_ray.generation.outputs import STRAY_SHARE
from gmd_ray.generation.prompts import with_prompts
from gmd_ray.generation.resume import claim, complete, known_facts, refuse_other_settings, remember
from gmd_ray.generation.stream import Models, build_stream, run_stream
from gmd_ray.generation.watchdog import batch_bound
from gmd_ray.images.listing import ImageFile, list_images, open_filesystem
from gmd_ray.pairstore import manifest, run_settings
from gmd_ray.pairstore.audit.changes import changed_photos
from gmd_ray.pairstore.history import RunClock
from gmd_ray.pairstore.lock import StoreLock
from gmd_ray.pairstore.run_settings import Facts, higher_is_better
from gmd_ray.pairstore.schema import FidelityBound, accepted, fidelity_bound
from gmd_ray.pairstore.store import PairStore, store_url
from gmd_ray.pairstore.totals import Totals, check_totals
from gmd_ray.progress import NullRecorder, Progress, Recorder
from gmd_ray.ray_utils.capacity import check_capacity
from gmd_ray.ray_utils.shutdown import StopRequest
from gmd_ray.storage import put, with_retries
from gmd_ray.teachers import load_teacher
from gmd_ray.text import one_line

log = logging.getLogger("gmd_ray.generation")


def generate(
    cfg: Config,
    recorder: Recorder | None = None,
    *,
    models: Models | None = None,
    files: Sequence[ImageFile] | None = None,
) -> Totals:
    """Restore, project and score every target image that has no row yet. Ray must be initialised.

    Args:
        cfg: of it `target`, `student`, `teacher`, `scorer`, `generation` and `out`; the store is `<out>/pairs`.
        recorder: gets the settings, the counts, images/s and the manifest.
        models: other loaders for the three models.
        files: the images of `target.path`, if they have been listed before; listed here if it is None.

    Returns:
        the books of the whole store, earlier runs included.

    Raises:
        DataError: no images, or a damaged store.
        ConfigError: pools that the cluster cannot hold.
        ModelError: a model that cannot be loaded.
        ResumeMismatchError: the store was made with settings, models or photos that give other pixels or scores.
        StoreLockedError: another driver at work on the store.
        BooksError: the rows do not account for every input exactly once.
        GmdError: whatever else ends a run, in one line.
    """
    recorder, models = recorder or NullRecorder(), models or Models()
    start = time.monotonic()
    files = list_images(cfg.target.path or "", cfg.target.limit) if files is None else list(files)
    ids = {file.id for file in files}
    store = PairStore(store_url(cfg.out))
    with (
        _storage_told(store.url),
        _frugal_arrow(),
        StopRequest(cfg.generation.grace_s) as stop,
        StoreLock(store.filesystem, store.path, store.url) as lock,
    ):
        refuse_other_settings(store, cfg)  # before anything is changed or encoded for a run that may not go on
        store.remove_temp_files()
        store.drop_duplicates()
        # Asked for once, not each time that this file is used.
        saved = replace(cfg, generation=replace(cfg.generation, retry_failed=False))
        changed = changed_photos(store, files, cfg.log_interval_s)
        if models.teacher is load_teacher:  # another loader has prompts of its own, or none
            cfg = with_prompts(cfg)
        facts = claim(store, cfg, files, models, changed)
        # Not before the claim: the settings of a run that is refused are not those of this directory.
        with_retries(lambda: _save_settings(saved))
        if cfg.generation.retry_failed:
            check_capacity(cfg)  # before rows go for a run that cannot start
            store.delete(manifest.MANIFEST_FILE)
            store.delete(suspects.SUSPECTS_FILE)
            log.info("%d failed rows are tried again", store.drop_failed(ids))
        if changed:
            check_capacity(cfg)
            store.delete(manifest.MANIFEST_FILE)
            log.warning(
                "%d photos have changed since their rows were made, which are made anew: %s",
                len(changed),
                ", ".join(changed[:3]) + ", ..." * (len(changed) > 3),
            )
            store.drop(changed)
        done = set(store.index()["id"].to_pylist())
        todo = [file for file in files if file.id not in done]
        log.info("%s: %d images, %d of them have their row already", store.url, len(files), len(files) - len(todo))
        recorder.params(run_settings.relevant(cfg))
        if todo:
            facts = _work_off(cfg, todo, store, lock, facts, models, stop)
            stop.leave()
            store.delete(suspects.SUSPECTS_FILE)  # every image has its row
            facts = complete(store, cfg, facts, models)
        rows = store.index()
        totals = check_totals(
            rows,
            ids,
            resumed=len(files) - len(todo),
            threshold=cfg.scorer.threshold,
            higher_is_better=higher_is_better(facts),
            fidelity=_bound(cfg, store),
            seconds=time.monotonic() - start,
        )
        if totals.removed_inputs:
            log.info(
                "%s: %d rows of images that are no longer among the inputs, left out", store.url, totals.removed_inputs
            )
        summary = manifest.make_manifest(cfg, store, totals, facts, rows, ids)
        store.write(manifest.MANIFEST_FILE, summary)
        stop.leave()  # asked for since the stream ran dry: whoever called us goes no further
    figures = {**totals.counts(), "images_per_second": summary["images_per_second"]}
    recorder.metrics({key: float(value) for key, value in figures.items() if value is not None})
    if "://" not in store.url:
        recorder.artifact(f"{store.path}/{manifest.MANIFEST_FILE}")
    return totals


def _work_off(
    cfg: Config,
    todo: list[ImageFile],
    store: PairStore,
    lock: StoreLock,
    facts: Facts,
    models: Models,
    stop: StopRequest,
) -> Facts:
    """Stream these files into the store; returns the facts of the models that worked."""
    missing = check_capacity(cfg)
    store.delete(manifest.MANIFEST_FILE)
    patience = batch_bound(cfg.generation).of(1) or cfg.generation.no_progress_timeout_s
    notebook = suspects.Notebook(store.url, suspects.circumstances(cfg), patience)
    ledger = open_ledger(facts, notebook.save, notebook.load(todo))
    stop.closes(ledger)
    ds = build_stream(cfg, todo, store.url, lock.token, ledger, models)
    clock, told = RunClock(store, before=store.index().num_rows), False
    with (
        Progress("generate", len(todo), interval_s=cfg.log_interval_s) as progress,
        closing(run_stream(ds, ledger, cfg.generation.no_progress_timeout_s, missing)) as blocks,
    ):
        for block in blocks:
            lock.check()
            clock.count(block.num_rows)
            if not told:  # every model has spoken before the first block is through
                facts, told = ray.get(ledger.facts.remote()), True
                remember(store, facts)
            _count(progress, block, accepted(cfg.scorer.threshold, higher_is_better(facts), (), _bound(cfg, store)))
    _tell_clipped(ray.get(ledger.clipped.remote()))
    lock.check()
    clock.save()
    store.refresh()
    known_facts(store, facts)  # nobody has put rows of another model here meanwhile
    store.drop_duplicates()
    return facts


@contextmanager
def _storage_told(url: str) -> Iterator[None]:
    """What files and storage say that did not recover (no space, no permission) in one line."""
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError | RayError):  # of no file; some of Ray's are OSErrors too
            raise
        raise GmdError(
            f"{one_line(error)}; what is written to {url} stays, and the same command goes on once that is mended"
        ) from error


@contextmanager
def _frugal_arrow() -> Iterator[None]:
    """Arrow's own pool keeps what it once had: several times the index, for as long as the driver lives."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def _save_settings(cfg: Config) -> None:
    """`config.yaml` of the run directory; a local one is its owner's alone."""
    filesystem, path = open_filesystem(below(cfg.out, "config.yaml"))
    if isinstance(filesystem, fs.LocalFileSystem):
        save_config(cfg, path)
    else:
        put(filesystem, path, config_text(cfg).encode())


def _bound(cfg: Config, store: PairStore) -> FidelityBound | None:
    """Of this run: the rows are made, or were found to be made, with the metric that it asks for."""
    return fidelity_bound(cfg.scorer.fidelity_bound, cfg.scorer.fidelity, cfg.scorer.fidelity, store.url)


def _tell_clipped(images: dict[str, int]) -> None:
    for stage, count in sorted(images.items()):
        log.warning(
            "%s: %d images had more than %g %% of their values outside [0, 1], and were clipped to it",
            stage,
            count,
            100 * STRAY_SHARE,
        )


def _count(progress: Progress, block: pa.Table, view: pc.Expression) -> None:
    ok = block.filter(pc.field("status") == "ok").num_rows
    taken = block.filter(view).num_rows
    new = {"accepted": taken, "rejected": ok - taken, "failed": block.num_rows - ok}
    progress.update(block.num_rows, **{key: progress.counts.get(key, 0) + n for key, n in new.items()})
