"""One run's knowledge of images that hang or kill workers, and the use of it by the next run."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gmd_ray.config import Config
from gmd_ray.generation import suspects
from gmd_ray.generation.attempts.log import AttemptLog, Attempts, AtWork
from gmd_ray.generation.suspects import Notebook
from gmd_ray.images.listing import ImageFile

OLD = datetime(2020, 1, 1, tzinfo=UTC)
FILES = [ImageFile(key, f"/{key}", 9, OLD) for key in "abcd"]


@pytest.fixture
def book(tmp_path: Path) -> Notebook:
    return Notebook(str(tmp_path / "pairs"), "settings", 60.0)


def told(book: Notebook) -> dict[str, list[int]]:
    document = json.loads(Path(book.url, suspects.SUSPECTS_FILE).read_text())
    return {f"{row['stage']} {row['id']}": [row["times"], row["alone"], row["hung"]] for row in document["rows"]}


def test_what_ended_with_its_worker_is_kept_and_what_goes_on_is_not(book: Notebook) -> None:
    log = AttemptLog({}, book.save)
    log.begin("project", ["a", "b"])
    log.begin("restore", ["c"])
    assert not Path(book.url, suspects.SUSPECTS_FILE).exists(), (
        "a driver that is killed now has nothing against its images"
    )
    assert log.history("project", ["a", "b"]) == [Attempts(1), Attempts(1)]  # repeated: the worker died
    assert told(book) == {"project a": [1, 0, 0], "project b": [1, 0, 0]}
    log.begin("project", ["a"])
    log.hung("project", ["a"])
    assert told(book) == {"project a": [2, 1, 1], "project b": [1, 0, 0]}
    log.begin("project", ["b"])
    log.done("project", ["b"])
    assert told(book) == {"project a": [2, 1, 1]}

    assert book.load(FILES) == {("project", "a"): Attempts(2, 1, 0, 1)}
    after = AttemptLog({}, book.save, book.load(FILES))
    assert after.history("project", ["a", "b"]) == [Attempts(2, 1, 0, 1), Attempts()]
    assert after.history("restore", ["a"]) == [Attempts()]


def test_a_stall_names_what_goes_on_and_suspects_what_is_old(book: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("gmd_ray.generation.attempts.log.time.monotonic", lambda: now)
    log = AttemptLog({}, book.save)
    log.begin("start scorer", ["actor"])
    log.begin("project", ["a"])
    now = 150.0
    log.begin("restore", ["b"])
    now = 160.0
    assert log.stalled(40.0) == [
        AtWork("start scorer", "actor", 60.0),
        AtWork("project", "a", 60.0),
        AtWork("restore", "b", 10.0),
    ]
    assert told(book) == {"project a": [1, 1, 1]}


def test_a_batch_that_ended_at_the_last_moment_did_not_hang(book: Notebook) -> None:
    log = AttemptLog({}, book.save)
    log.begin("project", ["a"])
    log.done("project", ["a"])
    log.hung("project", ["a"])
    assert log.history("project", ["a"]) == [Attempts()]


def test_other_circumstances_are_a_new_trial() -> None:
    cfg = Config()
    before = suspects.circumstances(cfg)
    cfg.teacher.prompt_embeddings = "/found/anew"
    cfg.generation.max_attempts, cfg.target.limit = 5, 3
    assert suspects.circumstances(cfg) == before
    cfg.teacher.compile = not cfg.teacher.compile
    assert suspects.circumstances(cfg) != before


def test_what_no_longer_counts(book: Notebook, tmp_path: Path) -> None:
    book.save(
        {
            ("project", "a"): Attempts(2, 2, 0, 2),
            ("project", "b"): Attempts(2, 1, 0, 0),
            ("read", "c"): Attempts(2, 2, 0, 1),
        }
    )
    everything = book.load(FILES)
    assert len(everything) == 3
    assert set(book.load(FILES[:1])) == {("project", "a")}, "of images that have no row"
    later = ImageFile("a", "/a", 9, datetime(2100, 1, 1, tzinfo=UTC))
    assert set(book.load([later, *FILES[1:]])) == everything.keys() - {("project", "a")}, "another photo by now"
    assert Notebook(book.url, "other settings", 60.0).load(FILES) == {}
    patient = Notebook(book.url, "settings", 61.0).load(FILES)  # what took too long for 60 s may be done in 61
    assert patient == {("project", "b"): Attempts(2, 1), ("read", "c"): Attempts(1, 1)}
    assert Notebook(book.url, "settings", 30.0).load(FILES) == everything
    for damage in ("{", "[]", '{"settings": "settings"}', '{"settings": "settings", "rows": [{}], "patience_s": 1}'):
        Path(book.url, suspects.SUSPECTS_FILE).write_text(damage)
        assert book.load(FILES) == {}
    assert Notebook(str(tmp_path / "none"), "settings", 60.0).load(FILES) == {}
