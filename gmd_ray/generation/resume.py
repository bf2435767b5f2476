"""Resuming a store, which is possible only with the settings, models and photos that its rows were made with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gmd_ray.config import Config, StudentConfig
from gmd_ray.errors import DataError, ModelError, ResumeMismatchError
from gmd_ray.generation.loading import facts_of
from gmd_ray.generation.models import Models, model_configs
from gmd_ray.hashing import content_digest
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.encode import decode_png
from gmd_ray.images.listing import ImageFile, read_file
from gmd_ray.pairstore import run_settings
from gmd_ray.pairstore.run_settings import Facts
from gmd_ray.pairstore.schema import rows_dataset
from gmd_ray.pairstore.store import PairStore
from gmd_ray.pairstore.totals import find_removed_inputs
from gmd_ray.ray_utils.remote_errors import answer_of, as_value
from gmd_ray.students import Student, load_student
from gmd_ray.text import one_line

log = logging.getLogger("gmd_ray.generation")

_SAMPLE = 3
"""Number of photos of a moved folder that are read and compared."""
_DECODERS_DIFFER = 2
"""Largest difference, in levels of 8 bits, between what two versions of a decoder make of one file (color profiles,
JPEG)."""


def _nothing() -> None:
    pass


def refuse_other_settings(store: PairStore, cfg: Config) -> None:
    """Compare by value the settings that alter pixels or scores with those that the store's ok rows were made with.

    Raises:
        ResumeMismatchError: naming the keys that differ.
    """
    saved = store.read(run_settings.SETTINGS_FILE) or {}
    if known_facts(store, saved.get("models", {})):
        now = run_settings.relevant(cfg)
        run_settings.refuse_changes(saved.get("settings", now), now, store.url)


def refuse_other_student(
    store: PairStore, cfg: Config, load: Callable[[StudentConfig], Student] = load_student
) -> None:
    """Compare the student's fingerprint with that of the store's ok rows, if its file is not the one it was.

    The student is loaded in this process, on the CPU. Nothing is written, and Ray is not needed. Teachers and scorers
    are larger, and are compared by `check_resume`.

    Raises:
        ResumeMismatchError: another student.
        ModelError: a student that cannot be loaded.
        ConfigError: settings that it does not have.
    """
    saved = store.read(run_settings.SETTINGS_FILE) or {}
    known = known_facts(store, saved.get("models", {})).get("student")
    now = run_settings.places(cfg)
    keys = [key for key in run_settings.moved(saved.get("places", now), now) if key.startswith("student.")]
    if known is not None and keys:
        student = load(replace(model_configs(cfg)["student"], device="cpu"))
        _refuse_other_model(store, "student", keys, known["fingerprint"], student.fingerprint)


def check_resume(
    store: PairStore,
    cfg: Config,
    images: list[ImageFile],
    models: Models,
    changed_ids: Collection[str] = (),
    before_loading: Callable[[], object] = _nothing,
) -> Facts:
    """Compare this run with what the store's rows were made with, and leave the settings of this run in the store.

    Settings are compared by value. A path that changed, or a model file whose size or date did, may still hold the
    same: the model is loaded once to compare fingerprints, and the photos are compared with the rows made of them.

    Args:
        store: the pair store, whose lock the caller holds.
        cfg: the settings of this run.
        images: the inputs of this run.
        models: the loaders of this run.
        changed_ids: the result of `changes.changed_photos`.
        before_loading: is called before a model is loaded on Ray, and raises where it cannot be.

    Returns:
        the facts of the models behind the store's rows. They are empty for a store without ok rows, which may be gone
        on with by any settings and models.

    Raises:
        ResumeMismatchError: naming the keys that differ.
        ModelError: a model that cannot be loaded.
    """
    refuse_other_settings(store, cfg)
    saved = store.read(run_settings.SETTINGS_FILE) or {}
    facts = known_facts(store, saved.get("models", {}))
    now, places = run_settings.relevant(cfg), run_settings.places(cfg)
    if facts:
        changed = run_settings.moved(saved.get("places", places), places)
        if "target.path" in changed:
            _refuse_other_images(store, cfg, images, changed_ids)
        for section in run_settings.MODELS:
            keys = [key for key in changed if key.startswith(f"{section}.")]
            if keys or (section == "scorer" and "higher_is_better" not in facts[section]):
                facts[section] = _same_model(store, section, keys, facts.get(section), cfg, models, before_loading)
    removed = find_removed_inputs(store.index(), [image.id for image in images])
    # For `gmd-ray status` and other readers, while the run goes on.
    inputs = {"count": len(images), "limit": cfg.target.limit, "stranger_ids": removed}
    store.write(run_settings.SETTINGS_FILE, {"settings": now, "places": places, "models": facts, "inputs": inputs})
    return facts


def remember(store: PairStore, facts: Facts) -> None:
    """Write the facts of the workers' models beside the settings in the store."""
    store.write(run_settings.SETTINGS_FILE, {**store.read(run_settings.SETTINGS_FILE), "models": facts})


def complete(
    store: PairStore, cfg: Config, facts: Facts, models: Models, before_loading: Callable[[], object] = _nothing
) -> Facts:
    """Return the facts of every model behind the store's ok rows, even if the attempt log died before it gave them.

    The direction of the score is among them; without it the totals of a lower-is-better scorer would be reversed.
    `before_loading` is as for `check_resume`.
    """
    known = known_facts(store, facts)
    if "scorer" in known and "higher_is_better" not in known["scorer"]:
        known["scorer"] = _same_model(store, "scorer", ["scorer.path"], known["scorer"], cfg, models, before_loading)
    if known != facts and known:
        facts = {**facts, **known}
        remember(store, facts)
    return facts


def known_facts(store: PairStore, remembered: Facts) -> Facts:
    """Return the facts of the models that made the store's ok rows: fingerprints from the rows, the rest `remembered`.

    Raises:
        DataError: rows of two students, two teachers or two scorers.
    """
    rows = store.index().select(["status", *run_settings.MODELS])
    ok = rows.filter(pc.field("status") == "ok")
    facts: Facts = {}
    for section in run_settings.MODELS:
        prints = sorted(pc.unique(ok[section]).drop_null().to_pylist())
        if len(prints) > 1:
            raise DataError(
                f"{store.url}: rows of several {section}s ({', '.join(prints)}): `gmd-ray verify` names the part files "
                f"that do not belong here; move them away"
            )
        if prints:
            old = remembered.get(section, {})
            facts[section] = {**(old if old.get("fingerprint") == prints[0] else {}), "fingerprint": prints[0]}
    return facts


def _refuse_other_images(store: PairStore, cfg: Config, images: list[ImageFile], changed_ids: Collection[str]) -> None:
    """Refuse a folder whose photos are not those of the rows: rows are not made anew because of a mistaken path.

    A few photos are read even if size and time are unchanged, since rows of old stores hold neither.
    """
    ok = store.index().filter((pc.field("status") == "ok") & pc.field("id").isin(pa.array(changed_ids, pa.string())))
    if ok.num_rows:
        some = ", ".join(sorted(ok["id"].to_pylist())[:_SAMPLE])
        raise ResumeMismatchError(
            f"{store.url} holds pairs of another target.path: {ok.num_rows} photos of {cfg.target.path} are not the "
            f"images that their rows were made of ({some}); give another out=, or the old folder (where the folder was "
            f"moved and these were changed on purpose, a link at its old place makes them anew)"
        )
    by_id = {image.id: image for image in images}
    view = (pc.field("status") == "ok") & pc.field("id").isin(pa.array(sorted(by_id), pa.string()))
    rows = rows_dataset(store.path, store.filesystem).head(_SAMPLE, columns=["id", "lq", "digest"], filter=view)
    for row in rows.to_pylist():
        uri = by_id[row["id"]].uri
        data = read_file(uri)
        if row["digest"] is not None:
            same = content_digest(data) == row["digest"]
        else:
            image = decode_image(data, gray=cfg.target.gray, max_pixels=cfg.target.max_pixels)
            now, then = np.rint(image * 255), np.rint(decode_png(row["lq"]) * 255)
            same = now.shape == then.shape and bool(np.abs(now - then).max() <= _DECODERS_DIFFER)
        if not same:
            raise ResumeMismatchError(
                f"{store.url} holds pairs of another target.path: {uri} is not the image its row {row['id']!r} was "
                f"made of; give another out=, or the old folder"
            )
    log.info("target.path has moved, its images are the same")


def _same_model(
    store: PairStore,
    section: str,
    keys: list[str],
    known: dict[str, Any] | None,
    cfg: Config,
    models: Models,
    before_loading: Callable[[], object],
) -> dict[str, Any]:
    """Load a model, and compare it with the one behind the rows. Return its facts."""
    load, config = getattr(models, section), model_configs(cfg)[section]
    if cfg.ray.enabled:
        before_loading()
        facts = _facts_on_ray(section, load, config, cfg.generation.no_progress_timeout_s)
    else:
        facts = _load_facts(load, config)
    if known is not None:
        _refuse_other_model(store, section, keys, known["fingerprint"], facts["fingerprint"])
    return facts


def _facts_on_ray(section: str, load: Callable[[Any], Any], config: Any, timeout_s: int) -> dict[str, Any]:
    """Load a model in a task that reserves what an actor of its pool does, and return its facts."""
    import ray
    from ray.exceptions import RayError

    from gmd_ray.ray_utils.pools import actor_resources

    loading = ray.remote(as_value).options(**actor_resources(config.pool)).remote(_load_facts, load, config)
    what = f"the {section}, to be compared with the store's, was not loaded"
    try:
        return dict(answer_of(loading, what, timeout_s))
    except RayError as error:
        raise ModelError(
            f"the {section} could not be loaded to compare it with the store's: {one_line(error)}"
        ) from error


def _refuse_other_model(store: PairStore, section: str, keys: list[str], known: str, now: str) -> None:
    if now != known:
        raise ResumeMismatchError(
            f"{store.url} was made with another {section}: {', '.join(keys)} now gives model {now}, its rows are of "
            f"{known}; give another out=, or the old model"
        )


def _load_facts(load: Callable[[Any], Any], config: Any) -> dict[str, Any]:
    return facts_of(load(config))
