"""Settings, models and photos that changed under a store."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from gmd_ray.config import Config, PoolConfig
from gmd_ray.errors import ModelError, ResumeMismatchError
from gmd_ray.generation import generate
from gmd_ray.generation.resume import check_resume, refuse_other_settings, refuse_other_student
from gmd_ray.hashing import content_digest
from gmd_ray.images.files.encode import decode_png
from gmd_ray.images.listing import list_images
from gmd_ray.pairstore import run_settings
from gmd_ray.pairstore.audit.verify import verify
from gmd_ray.pairstore.store import PairStore
from tests.generation.world import World, write_photo, write_scorer, write_toy_student


def test_changed_settings_are_refused_by_name(world: World) -> None:
    world.cfg.teacher.steps = 8
    world.cfg.teacher.injection.tensors = "v"
    with pytest.raises(
        ResumeMismatchError,
        match=r"made with other settings: teacher\.injection\.tensors: 'kv' -> 'v'; teacher\.steps: 25 -> 8; give",
    ):
        generate(world.cfg, models=world.models())
    assert not Path(world.store, "lock.json").exists()


def test_settings_that_change_no_pixel_are_accepted(world: World) -> None:
    for model in (world.cfg.student, world.cfg.teacher, world.cfg.scorer):
        model.pool = PoolConfig(num_cpus=0.3, batch_size=5, max=2)
        model.device = "cpu"
    world.cfg.generation.rows_per_block = 3
    world.cfg.generation.max_attempts = 4
    world.cfg.scorer.threshold = 1.0
    books = generate(world.cfg, models=world.models())
    assert (books.resumed, books.rejected) == (31, 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target.gray", True),
        ("student.tile", 64),
        ("student.dtype", "bfloat16"),
        ("teacher.prompt", "sharp"),
        ("teacher.true_cfg", 2.0),
        ("teacher.true_cfg_interval", (0.2, 0.8)),
        ("teacher.solver", "midpoint"),
        ("teacher.nudge", 1.15),
        ("teacher.injection.blocks", ["a", "b"]),
        ("scorer.metric", "musiq"),
        ("scorer.tiles", 2),
        ("scorer.fidelity", "psnr"),
    ],
)
def test_relevant_settings(key: str, value: Any) -> None:
    changed = Config()
    node: Any = changed
    *sections, field = key.split(".")
    for section in sections:
        node = getattr(node, section)
    setattr(node, field, value)
    before, after = run_settings.relevant(Config()), run_settings.relevant(changed)
    assert {name for name in before if before[name] != after[name]} == {key}
    assert run_settings.fingerprint(before) != run_settings.fingerprint(after)
    with pytest.raises(ResumeMismatchError, match=f"the store was made with other settings: {key}: "):
        run_settings.refuse_changes(before, after, "the store")


def test_how_the_teacher_was_set_and_what_it_caches_is_of_no_consequence() -> None:
    changed = Config()
    changed.teacher.preset, changed.teacher.cache = "gmd", "lockstep"
    changed.teacher.gpus_per_replica, changed.teacher.sharding = 4, "ulysses"
    assert run_settings.relevant(changed) == run_settings.relevant(Config())


def test_a_setting_that_an_old_store_does_not_know_had_its_default() -> None:
    now = run_settings.relevant(Config())
    old = {key: value for key, value in now.items() if key != "teacher.strength"}
    run_settings.refuse_changes(old, now, "the store")
    with pytest.raises(ResumeMismatchError, match=r"teacher\.strength: 1\.0 -> 0\.5"):
        run_settings.refuse_changes(old, {**now, "teacher.strength": 0.5}, "the store")


def test_a_setting_that_only_an_old_store_knows() -> None:
    """Its value of that time stands for what the program does without it; with any other one the rows differ."""
    now = run_settings.relevant(Config())
    run_settings.refuse_changes(now | {"teacher.quantization": "none"}, now, "the store")
    with pytest.raises(ResumeMismatchError, match=r"teacher\.quantization: 'fp8' -> 'none'"):
        run_settings.refuse_changes(now | {"teacher.quantization": "fp8"}, now, "the store")


def test_an_overlap_of_tiles_that_there_are_not() -> None:
    now = run_settings.relevant(Config())
    old = now | {"student.tile_overlap": 32}  # the default of earlier versions
    run_settings.refuse_changes(old, now, "the store")
    with pytest.raises(ResumeMismatchError, match=r"student\.tile_overlap: 32 -> None"):
        run_settings.refuse_changes(old | {"student.tile": 64}, now | {"student.tile": 64}, "the store")


def test_models_may_move_but_not_change(world: World, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(world.weights / "scorer", moved / "scorer")
    shutil.copy(world.weights / "student.pth", moved / "student.pth")
    world.cfg.student.path, world.cfg.scorer.path = str(moved / "student.pth"), str(moved / "scorer")
    assert generate(world.cfg, models=world.models()).resumed == 31

    # Other weights at the same place, on a store with nothing left to do.
    write_toy_student(moved / "student.pth", seed=1)
    with pytest.raises(ResumeMismatchError, match=r"another student: student\.path now gives model"):
        generate(world.cfg, models=world.models())
    shutil.copy(world.weights / "student.pth", moved / "student.pth")
    write_scorer(moved / "scorer", seed=1)
    with pytest.raises(ResumeMismatchError, match=r"another scorer: scorer\.path now gives model"):
        generate(world.cfg, models=world.models())


def test_a_moved_model_is_compared_in_a_worker(world: World, ray_session: None, tmp_path: Path) -> None:
    world.cfg.ray.enabled = True
    shutil.copytree(world.weights / "scorer", tmp_path / "moved")
    world.cfg.scorer.path = str(tmp_path / "moved")
    assert generate(world.cfg, models=world.models()).resumed == 31
    write_scorer(tmp_path / "moved", seed=1)
    with pytest.raises(ResumeMismatchError, match=r"another scorer: scorer\.path now gives model"):
        generate(world.cfg, models=world.models())


def test_a_model_that_does_not_load_in_time_is_not_waited_for(world: World, ray_session: None) -> None:
    world.cfg.ray.enabled = True
    world.cfg.teacher.path, world.cfg.generation.no_progress_timeout_s = "slow", 3
    with pytest.raises(ModelError, match=r"the teacher, .*, was not loaded in generation\.no_progress_timeout_s=3"):
        generate(world.cfg, models=world.models())


def test_a_worker_with_another_model_is_refused(world: World) -> None:
    """The loader gives other weights though nothing in the settings says so."""
    write_photo(world.photos / "new.png")
    with pytest.raises(
        ResumeMismatchError, match=r"teacher\.path gives model sharpen-25-9\.0-.*store's rows are of sharpen-25-1\.5"
    ):
        generate(world.cfg, models=world.models(higher=9.0))
    assert "new.png" not in world.rows()


def test_other_photos_of_the_same_names_are_refused(world: World, tmp_path: Path) -> None:
    other = tmp_path / "other photos"
    for number, key in enumerate(world.ids()):
        write_photo(other / key, (8, 9 + number))
    world.cfg.target.path = str(other)
    with pytest.raises(ResumeMismatchError, match=r"another target\.path: 28 photos of .* are not the images that"):
        generate(world.cfg, models=world.models())


def test_other_photos_with_the_same_sizes_and_times_are_refused(world: World, tmp_path: Path) -> None:
    """As of an archive without times; some photos of another folder are read whatever they say."""
    other = tmp_path / "other photos"
    for key in world.ids():
        data, stat = (world.photos / key).read_bytes(), (world.photos / key).stat()
        (other / key).parent.mkdir(parents=True, exist_ok=True)
        (other / key).write_bytes(data[:-1] + b"!" if data else data)
        os.utime(other / key, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    world.cfg.target.path = str(other)
    with pytest.raises(ResumeMismatchError, match=r"pairs of another target\.path: .* is not the image its row"):
        generate(world.cfg, models=world.models())


def test_a_photo_that_was_replaced_is_projected_anew_and_nothing_else_is(world: World) -> None:
    assert generate(world.cfg, models=world.models()).resumed == 31  # the photos have moved
    before = world.rows()
    new = {"001.png": (20, 16), "truncated.jpg": (16, 16)}
    for name, size in new.items():
        write_photo(world.photos / "drawn.png", size)
        (world.photos / "drawn.png").rename(world.photos / name)
    os.utime(world.photos / "002.png")
    (world.photos / "text.png").write_text("not an image either\n")

    books = generate(world.cfg, models=world.models())
    assert (books.inputs, books.resumed, books.failed) == (31, 28, 2)
    assert world.projected() == dict.fromkeys(new, 1)
    rows = world.rows()
    for key, row in rows.items():
        if key in {*new, "text.png"}:
            data = (world.photos / key).read_bytes()
            assert (row["bytes"], row["digest"]) == (len(data), content_digest(data))
            assert row["digest"] != before[key]["digest"]
        else:
            assert row == before[key]
    assert decode_png(rows["001.png"]["lq"]).shape == (20, 16, 3)  # type: ignore[arg-type]
    assert verify(PairStore(world.store), deep=True).findings == []
    assert generate(world.cfg, models=world.models()).resumed == 31
    assert world.projected() == dict.fromkeys(new, 1)


def test_another_student_is_refused_without_ray(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PairStore(world.store)
    world.cfg.ray.enabled = True  # the verb's preflight, before Ray starts
    monkeypatch.setattr("gmd_ray.generation.resume._facts_on_ray", lambda *given: pytest.fail("Ray is needed"))
    refuse_other_settings(store, world.cfg)
    refuse_other_student(store, world.cfg)
    write_toy_student(world.root / "student.pth", seed=1)
    world.cfg.student.path = str(world.root / "student.pth")
    with pytest.raises(
        ResumeMismatchError, match=r"another student: student\.path now gives model .*, its rows are of"
    ):
        refuse_other_student(store, world.cfg)
    world.cfg.student.path = str(shutil.copy(world.weights / "student.pth", world.root / "the same.pth"))
    refuse_other_student(store, world.cfg)
    world.cfg.teacher.steps = 3
    with pytest.raises(ResumeMismatchError, match=r"teacher\.steps: 25 -> 3"):
        refuse_other_settings(store, world.cfg)


def test_a_store_without_finished_rows_binds_to_nothing(world: World) -> None:
    shutil.rmtree(Path(world.store, "rows"))
    world.cfg.teacher.steps = 3
    store = PairStore(world.store)
    assert check_resume(store, world.cfg, list_images(str(world.photos)), world.models()) == {}
    saved = store.read(run_settings.SETTINGS_FILE)
    assert saved["settings"]["teacher.steps"] == 3
    assert saved["models"] == {}
    world.cfg.target.limit = 1
    assert generate(world.cfg, models=world.models()).ok == 1
    assert world.table()["teacher"].to_pylist() == ["sharpen-3-1.5-"]
