"""The rows and files of a run, and the effect of running it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from gmd_ray.config import PoolConfig
from gmd_ray.errors import DataError, ExitCode, GmdError
from gmd_ray.generation import generate
from gmd_ray.generation import run as run_module
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.encode import decode_png, to_images, to_tensor
from gmd_ray.pairstore.audit.verify import verify
from gmd_ray.pairstore.export import export_pairs
from gmd_ray.pairstore.schema import PAIR_SCHEMA
from gmd_ray.pairstore.store import PairStore
from gmd_ray.pairstore.totals import Totals
from gmd_ray.progress import NullRecorder
from gmd_ray.quality import load_scorer
from gmd_ray.ray_utils import shutdown
from gmd_ray.students import load_student
from tests.generation.shelf import fill
from tests.generation.world import BROKEN, SharpenTeacher, TeacherSpec, World, write_photo

Finished = tuple[World, Totals]


def test_every_file_is_one_row(finished: Finished) -> None:
    world, books = finished
    rows = world.rows()
    assert sorted(rows) == world.ids()
    assert {key for key, row in rows.items() if row["status"] == "failed"} == BROKEN
    assert (books.inputs, books.failed, books.ok, books.resumed) == (31, 3, 28, 0)
    assert books.accepted + books.rejected + books.failed == books.inputs
    assert world.projected() == {key: 1 for key in world.ids() if key not in BROKEN}
    assert world.table().schema.equals(PAIR_SCHEMA)


def test_broken_files_say_why(finished: Finished) -> None:
    rows = finished[0].rows()
    for key, reason in {"truncated.jpg": "truncated", "empty.png": "empty", "text.png": "not an image"}.items():
        row = rows[key]
        assert (row["error_stage"], row["error_type"], row["attempts"]) == ("read", "DataError", 1)
        assert reason in str(row["error"])
        assert "\n" not in str(row["error"])
        assert row["pseudo_target"] is row["score"] is row["teacher"] is None


def test_rows_hold_what_the_models_make(finished: Finished) -> None:
    world, _ = finished
    student, scorer = load_student(world.cfg.student), load_scorer(world.cfg.scorer)
    teacher = SharpenTeacher(TeacherSpec(str(world.log)), world.cfg.teacher)
    rows = world.rows()
    for key in ("001.png", "deep/er/004.png", "one pixel.png", "sixteen bit.png", "twin a.jpg"):
        row = rows[key]
        lq, restored, projected = (decode_png(row[name]) for name in ("lq", "restored", "pseudo_target"))  # type: ignore[arg-type]
        assert np.abs(lq - decode_image((world.photos / key).read_bytes())).max() <= 0.5 / 255 + 1e-6
        expected = to_images(student.restore(to_tensor([lq])))[0]
        assert np.abs(restored - expected).max() <= 0.51 / 255
        expected = to_images(teacher.project(to_tensor([restored]), ["x"]))[0]
        assert np.abs(projected - expected).max() <= 0.51 / 255
        assert row["score"] == pytest.approx(float(scorer.score(to_tensor([projected]))[0]), abs=1e-5)
        assert (row["height"], row["width"]) == projected.shape[:2]
        assert (row["student"], row["teacher"], row["scorer"]) == (
            student.fingerprint,
            teacher.fingerprint,
            scorer.fingerprint,
        )
    assert rows["twin a.jpg"]["pseudo_target"] == rows["twin b.jpg"]["pseudo_target"]


def test_manifest(finished: Finished) -> None:
    world, books = finished
    manifest = json.loads(Path(world.store, "manifest.json").read_text())
    assert {key: manifest[key] for key in ("inputs", "accepted", "rejected", "failed")} == {
        "inputs": books.inputs,
        "accepted": books.accepted,
        "rejected": books.rejected,
        "failed": 3,
    }
    assert manifest["failures"] == {"read: DataError": 3}
    assert manifest["threshold"] == world.cfg.scorer.threshold
    assert manifest["higher_is_better"] is True
    assert manifest["settings"]["teacher.injection.tensors"] == "kv"
    assert manifest["versions"]["ray"] == ray.__version__
    assert manifest["images_per_second"] > 0
    assert manifest["step_cache"] is None
    assert not Path(world.store, "lock.json").exists()


def test_a_finished_store_is_left_alone_and_the_threshold_moves_for_free(world: World, tmp_path: Path) -> None:
    class Recording(NullRecorder):
        def __init__(self) -> None:
            self.seen: dict[str, float] = {}
            self.files: list[str] = []

        def metrics(self, values, step=None) -> None:  # type: ignore[no-untyped-def]
            self.seen.update(values)

        def artifact(self, path, folder=None) -> None:  # type: ignore[no-untyped-def]
            self.files.append(path)

    parts = {file: file.stat().st_mtime_ns for file in Path(world.store, "rows").iterdir()}
    scores = sorted(float(row["score"]) for row in world.rows().values() if row["status"] == "ok")  # type: ignore[arg-type]
    world.cfg.scorer.threshold = scores[10]
    recorder = Recording()
    books = generate(world.cfg, recorder, models=world.models())
    assert books.resumed == books.inputs == 31
    assert (books.accepted, books.rejected) == (
        sum(s >= scores[10] for s in scores),
        sum(s < scores[10] for s in scores),
    )
    assert not world.projected()
    assert parts == {file: file.stat().st_mtime_ns for file in Path(world.store, "rows").iterdir()}
    assert recorder.seen["accepted"] == books.accepted
    assert recorder.files == [f"{world.store}/manifest.json"]


def test_only_missing_and_new_photos_are_projected(world: World) -> None:
    lost = sorted(Path(world.store, "rows").glob("part-*"))[0]
    before = world.rows()
    lost.unlink()
    left = world.rows()
    write_photo(world.photos / "new.png")
    (world.photos / "001.png").unlink()
    # What alters neither pixels nor scores may change.
    world.cfg.teacher.pool = PoolConfig(num_cpus=0.5, batch_size=1)
    world.cfg.generation.keep_restored = False
    books = generate(world.cfg, models=world.models())
    assert set(world.projected()) == (set(before) - set(left) | {"new.png"}) - BROKEN - {"001.png"}
    assert books.removed_inputs == ("001.png" in left)
    assert books.inputs == 31
    rows = world.rows()
    for key, row in rows.items():
        if key in before:
            assert row["pseudo_target"] == before[key]["pseudo_target"]
        if row["status"] == "ok":
            assert (row["restored"] is not None) == (key in left), "switched off since"
    assert rows["new.png"]["pseudo_target"]


def test_a_smaller_limit_makes_strangers_of_the_rest(world: World, tmp_path: Path) -> None:
    """They stay in the store, and leave the counts and the accepted view."""
    world.cfg.target.limit = 5
    books = generate(world.cfg, models=world.models())
    assert (books.inputs, books.removed_inputs) == (5, 26)
    assert len(world.rows()) == 31
    assert export_pairs(world.store, str(tmp_path / "all"), -100.0) == books.ok
    world.cfg.target.limit = None
    generate(world.cfg, models=world.models())
    assert export_pairs(world.store, str(tmp_path / "again"), -100.0) > books.ok


def test_an_empty_folder_is_refused(fresh: World, tmp_path: Path) -> None:
    fresh.cfg.target.path = str(tmp_path / "nothing")
    with pytest.raises(DataError, match="no such folder"):
        generate(fresh.cfg, models=fresh.models())


def test_a_part_of_another_store_is_refused_and_left(world: World) -> None:
    """It holds an id of ours: which of the two rows would go is not for a repair to say."""
    store = PairStore(world.store)
    ours = next(row for row in world.rows().values() if row["status"] == "ok")
    [name] = fill(store, [[{**ours, "teacher": "another"}]])
    files = sorted(file.name for file in Path(store.rows_path).iterdir())
    with pytest.raises(DataError, match=r"rows of several teachers .*another.*`gmd-ray verify` names"):
        generate(world.cfg, models=world.models())
    assert sorted(file.name for file in Path(store.rows_path).iterdir()) == files
    assert any(name in finding.where for finding in verify(store).findings)


def test_storage_that_cannot_be_written_is_one_line(fresh: World) -> None:
    (fresh.root / "file").write_text("")
    fresh.cfg.out = str(fresh.root / "file" / "run")
    before = pa.default_memory_pool().backend_name
    with pytest.raises(GmdError, match=r"Not a directory.*; what is written to .*file/run/pairs stays") as caught:
        generate(fresh.cfg, models=fresh.models())
    assert "\n" not in str(caught.value)
    assert pa.default_memory_pool().backend_name == before != "system", "that of the run is put back"


def test_a_stop_asked_for_while_the_books_are_closed_is_heard(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = run_module.manifest.make_manifest

    def late(*args: Any) -> Any:
        shutdown.ASKED.set()
        return real(*args)

    monkeypatch.setattr(run_module.manifest, "make_manifest", late)
    PairStore(world.store).delete("manifest.json")
    with pytest.raises(SystemExit) as caught:
        generate(world.cfg, models=world.models())
    assert caught.value.code == ExitCode.INTERRUPTED
    assert PairStore(world.store).read("manifest.json"), "it is written all the same"


def test_a_run_of_which_nothing_comes(fresh: World, tmp_path: Path) -> None:
    for file in fresh.photos.rglob("*.png"):
        file.write_bytes(b"no image")
    fresh.cfg.target.limit = 3
    books = generate(fresh.cfg, models=fresh.models())
    assert (books.inputs, books.failed, books.accepted, books.rejected) == (3, 3, 0, 0)
    assert verify(PairStore(fresh.store)).findings == []
    with pytest.raises(DataError, match="no pair is accepted"):
        export_pairs(fresh.store, str(tmp_path / "out"), 4.2)
