"""One run over one pair store: lock it, subtract what is done, stream the rest, check the totals."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from gmd_ray.config import Config
from gmd_ray.config.load import save_config
from gmd_ray.config.places import below
from gmd_ray.errors import GmdError
from gmd_ray.generation import suspects
from gmd_ray.generation.attempts.log import AttemptLog
from gmd_ray.generation.attempts.remote import AnyAttemptLog, start_attempt_log
from gmd_ray.generation.checks.gate import GateCheck
from gmd_ray.generation.models import Models
from gmd_ray.generation.outputs import say_counts
from gmd_ray.generation.prompts import with_prompts
from gmd_ray.generation.resume import check_resume, complete, known_facts, refuse_other_settings, remember
from gmd_ray.generation.watchdog import batch_bound
from gmd_ray.images.listing import ImageFile
from gmd_ray.images.sets.run_inputs import RunInputs
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
from gmd_ray.ray_utils.metrics import record_rows, run_label
from gmd_ray.ray_utils.remote_errors import is_ray_error
from gmd_ray.ray_utils.shutdown import StopRequest
from gmd_ray.storage import with_retries
from gmd_ray.teachers import compilation_of_run
from gmd_ray.text import one_line, some

log = logging.getLogger("gmd_ray.generation")


def generate(
    cfg: Config,
    recorder: Recorder | None = None,
    *,
    models: Models | None = None,
    inputs: RunInputs | None = None,
) -> Totals:
    """Restore, project and score every target image that has no row yet.

    Ray must be initialised, unless `ray.enabled=false`: then the stages run in this process, one block after another.

    Args:
        cfg: the settings. `target`, `student`, `teacher`, `scorer`, `generation`, `ray.enabled` and `out` are used; the
            store is `<out>/pairs`.
        recorder: gets the settings, the counts, images/s and the manifest.
        models: other loaders for the three models.
        inputs: the folders, if the caller has listed them already (`ready`). Default: they are listed.

    Returns:
        the totals of the whole store, earlier runs included.

    Raises:
        DataError: no images, or a damaged store.
        ConfigError: pools that the cluster cannot hold.
        ModelError: a model that cannot be loaded.
        ResumeMismatchError: the store was made with settings, models or photos that give other pixels or scores.
        StoreLockedError: another driver is at work on the store.
        BooksError: the rows do not account for every input exactly once.
        GmdError: whatever else ends a run, in one line.
    """
    run = GenerationRun(cfg, recorder or NullRecorder(), models or Models(), inputs or RunInputs())
    with run.locked():
        run.open()
        run.claim()
        run.stream()
        run.close()
    return run.report()


class GenerationRun:
    """One run over the pair store of a run directory.

    The steps must follow each other in this order, and all but the last while the store is `locked`:

    1. `open` refuses other settings, removes what a crash left, and completes the settings.
    2. `claim` compares models and photos with the store's rows, leaves the settings of this run in the store, drops the
       rows that are to be made anew, and finds the images without a row.
    3. `stream` makes the missing rows.
    4. `close` checks the totals and writes the manifest.
    5. `report` tells the recorder, and returns the totals.
    """

    def __init__(self, cfg: Config, recorder: Recorder, models: Models, inputs: RunInputs) -> None:
        self._start = time.monotonic()
        self.cfg, self.recorder, self.models = cfg, recorder, models
        self.gate = GateCheck(cfg, models.scorer, inputs)
        self.files = inputs.images(cfg.target.path or "", cfg.target.limit)
        self.ids = {file.id for file in self.files}
        self.store = PairStore(store_url(cfg.out))
        self.facts: Facts = {}
        self.changed: list[str] = []
        """Ids of photos that are not the ones their rows were made of."""
        self.todo: list[ImageFile] = []
        """Images without a row."""
        self._missing: list[str] | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store's lock, and turn SIGTERM into an orderly end of the run."""
        with (
            _storage_errors_as_gmd_errors(self.store.url),
            _system_memory_pool(),
            StopRequest(self.cfg.generation.grace_s) as self._stop,
            StoreLock(self.store.filesystem, self.store.path, self.store.url) as self._lock,
        ):
            yield

    def open(self) -> None:
        """Refuse other settings, remove what a crash left, find changed photos, and encode the teacher's prompts."""
        refuse_other_settings(self.store, self.cfg)  # before anything is changed or encoded for a refused run
        self.store.remove_temp_files()
        self.store.drop_duplicates()
        self.changed = changed_photos(self.store, self.files, self.cfg.log_interval_s)
        # The file of settings asks for no retry: it was asked for once, not each time that the file is used.
        self._to_save = replace(self.cfg, generation=replace(self.cfg.generation, retry_failed=False))
        if self.models.needs_prompts:
            self.cfg = with_prompts(self.cfg)

    def claim(self) -> None:
        """Take over the store: see that its rows are of the same models and photos, and drop those to be made anew."""
        cfg, store = self.cfg, self.store
        self.facts = check_resume(store, cfg, self.files, self.models, self.changed, self.check_room)
        # Not before: the settings of a run that is refused are not those of this directory.
        with_retries(lambda: save_config(self._to_save, below(cfg.out, "config.yaml")))
        if cfg.generation.retry_failed:
            self.check_room()  # before rows are dropped for a run that cannot start
            store.delete(manifest.MANIFEST_FILE)
            store.delete(suspects.SUSPECTS_FILE)
            log.info("%d failed rows are tried again", store.drop_failed(self.ids))
        if self.changed:
            self.check_room()
            store.delete(manifest.MANIFEST_FILE)
            log.warning(
                "%d photos have changed since their rows were made, which are made anew: %s",
                len(self.changed),
                some(self.changed),
            )
            store.drop(self.changed)
        done = set(store.index()["id"].to_pylist())
        self.todo = [file for file in self.files if file.id not in done]
        resumed = len(self.files) - len(self.todo)
        log.info("%s: %d images, %d of them have their row already", store.url, len(self.files), resumed)
        self.recorder.params(run_settings.relevant(cfg))

    def stream(self) -> None:
        """Make the rows of all images that have none, if there are any.

        Raises:
            SystemExit: the run was asked to end, and what was at work is written.
        """
        if not self.todo:
            return
        self.check_room()
        store, lock = self.store, self._lock
        store.delete(manifest.MANIFEST_FILE)
        self.gate.before(store, self.files)
        attempts, blocks = self._start_stream()
        try:
            clock = self._follow(attempts, blocks)
        finally:
            attempts.end()
        lock.check()
        clock.save()
        store.refresh()
        known_facts(store, self.facts)  # refuses rows of another model that came meanwhile
        store.drop_duplicates()
        self._stop.exit_if_requested()
        store.delete(suspects.SUSPECTS_FILE)  # every image has its row
        self.facts = complete(store, self.cfg, self.facts, self.models, self.check_room)
        self.gate.after(store)

    def _follow(self, attempts: AnyAttemptLog, blocks: Generator[pa.Table, None, None]) -> RunClock:
        """Take the blocks as they come, and return the clock of the run."""
        self._stop.attach(attempts.close)
        clock, agreed = RunClock(self.store, before=self.store.index().num_rows), False
        with (
            Progress("generate", len(self.todo), interval_s=self.cfg.log_interval_s) as progress,
            closing(blocks),
        ):
            for block in blocks:
                self._lock.check()
                clock.count(block.num_rows)
                if not agreed:  # every model is loaded before the first block is through
                    self.facts, agreed = attempts.facts(), True
                    remember(self.store, self.facts)
                _count(progress, block, self._accepted(), run_label(self.cfg.out))
        say_counts(counts := attempts.counts())
        clock.note({what: number for (stage, what), number in counts.items() if stage == "project"})
        return clock

    def _start_stream(self) -> tuple[AnyAttemptLog, Generator[pa.Table, None, None]]:
        """Return the attempt log of the stream, and its blocks, which begin to be made when they are iterated over."""
        cfg, store, token = self.cfg, self.store, self._lock.token
        patience = batch_bound(cfg.generation).of(1) or cfg.generation.no_progress_timeout_s
        notebook = suspects.Notebook(store.url, suspects.circumstances(cfg), patience)
        evidence = notebook.load(self.todo)
        choice = compilation_of_run(cfg, len(self.todo))
        log.info("compiling the teacher is %s", choice)
        cfg = replace(cfg, teacher=replace(cfg.teacher, compile=choice.on))
        if not cfg.ray.enabled:
            from gmd_ray.generation.in_process import run_in_process

            local = AttemptLog(self.facts, notebook.save, evidence)
            return local, run_in_process(cfg, self.todo, store.url, token, local, self.models)
        from gmd_ray.generation.stream import build_stream, run_stream

        remote = start_attempt_log(self.facts, notebook.save, evidence)
        ds = build_stream(cfg, self.todo, store.url, token, remote, self.models)
        return remote, run_stream(ds, remote, cfg.generation.no_progress_timeout_s, self.check_room())

    def close(self) -> None:
        """Check that the rows account for every input, and write the manifest.

        Raises:
            BooksError: they do not.
            SystemExit: the run was asked to end since the stream ran dry; the manifest is written.
        """
        rows = self.store.index()
        self.totals = check_totals(
            rows,
            self.ids,
            resumed=len(self.files) - len(self.todo),
            threshold=self.cfg.scorer.threshold,
            higher_is_better=higher_is_better(self.facts),
            fidelity=self._fidelity_bound(),
            seconds=time.monotonic() - self._start,
        )
        removed = self.totals.removed_inputs
        if removed:
            log.info("%s: %d rows of images that are no longer among the inputs, left out", self.store.url, removed)
        self.summary = manifest.make_manifest(self.cfg, self.store, self.totals, self.facts, rows, self.ids)
        self.store.write(manifest.MANIFEST_FILE, self.summary)
        self._stop.exit_if_requested()

    def report(self) -> Totals:
        """Tell the recorder of the counts and the manifest, and return the totals."""
        figures = {**self.totals.counts(), "images_per_second": self.summary["images_per_second"]}
        self.recorder.metrics({key: float(value) for key, value in figures.items() if value is not None})
        self.recorder.artifact(below(self.store.url, manifest.MANIFEST_FILE))
        return self.totals

    def check_room(self) -> list[str]:
        """See that the cluster holds the smallest pools, and return what is missing on a cluster that may grow.

        The cluster is looked at once in a run, and only when models are to be loaded.

        Raises:
            ConfigError: something is missing, and the cluster cannot grow.
        """
        if self._missing is None:
            self._missing = check_capacity(self.cfg)
        return self._missing

    def _fidelity_bound(self) -> FidelityBound | None:
        """Return the bound that this run asks for. The rows are made with the metric that it asks for as well."""
        scorer = self.cfg.scorer
        return fidelity_bound(scorer.fidelity_bound, scorer.fidelity, scorer.fidelity, self.store.url)

    def _accepted(self) -> pc.Expression:
        return accepted(self.cfg.scorer.threshold, higher_is_better(self.facts), (), self._fidelity_bound())


@contextmanager
def _storage_errors_as_gmd_errors(url: str) -> Iterator[None]:
    """Raise an error of files or storage that persists (no space, no permission) as a GmdError of one line."""
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError) or is_ray_error(error):  # some errors of Ray's are OSErrors too
            raise
        raise GmdError(
            f"{one_line(error)}; what is written to {url} stays, and the same command goes on once that is mended"
        ) from error


@contextmanager
def _system_memory_pool() -> Iterator[None]:
    """Let Arrow allocate from the system. Its own pool would keep several times the index while the driver lives."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def _count(progress: Progress, block: pa.Table, view: pc.Expression, run: str) -> None:
    """Add a block (columns `io_stages.SUMMARY`) to progress line and metrics; `view` holds for accepted rows."""
    ok = block.filter(pc.field("status") == "ok").num_rows
    taken = block.filter(view).num_rows
    new = {"accepted": taken, "rejected": ok - taken, "failed": block.num_rows - ok}
    progress.update(block.num_rows, **{key: progress.counts.get(key, 0) + n for key, n in new.items()})
    record_rows(run, new, progress.counts, block.to_pydict(), progress.total - progress.done)
