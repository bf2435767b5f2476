"""A source image that changed under its name is noticed; a data set that was moved is not taken for another."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gmd_ray.config import Config
from gmd_ray.errors import DataError, ResumeMismatchError
from gmd_ray.images import lmdb_store
from gmd_ray.images.files.encode import encode_png
from gmd_ray.training import refuse_begun
from gmd_ray.training.data import sources
from gmd_ray.training.digests import digest as digest_of_lines
from gmd_ray.training.resume import check_settings
from gmd_ray.training.spec import make_spec
from tests.training.toys import make_config, pair_row, picture, write_store

OLD = 1_000_000_000


def _check(cfg: Config, name: str = "adapted") -> None:
    check_settings(make_spec(cfg, name, None))


def _begin(cfg: Config, *, finished: bool = False) -> Path:
    """Leave what a run leaves at its first checkpoint, or at its end."""
    spec = make_spec(cfg, "adapted", None)
    check_settings(spec)
    directory = Path(spec.directory)
    if finished:
        (directory / "finetuned.json").write_text("{}")
    else:
        (directory / "train").mkdir()
        (directory / "train" / "checkpoint_manager_snapshot.json").write_text("{}")
    return directory


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose content is looked at."""
    found: list[str] = []
    read_file = sources.read_file

    def counted(uri: str) -> bytes:
        found.append(uri)
        return read_file(uri)

    monkeypatch.setattr(sources, "read_file", counted)
    return found


def _overwrite(path: Path) -> None:
    path.write_bytes(encode_png(picture(77)))


def _same_size(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    os.utime(path, (OLD, OLD))


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("side", ["hq", "lq"])
@pytest.mark.parametrize("change", [_overwrite, _same_size])
def test_an_image_that_changed_under_its_name_is_named(
    tmp_path: Path, change: Callable[[Path], None], side: str, finished: bool
) -> None:
    cfg = make_config(tmp_path)
    directory = _begin(cfg, finished=finished)
    path = tmp_path / "source" / side / "3.png"
    change(path)
    with pytest.raises(ResumeMismatchError) as caught:
        _check(cfg)
    assert str(path) in str(caught.value)
    assert f"{directory} was begun with other source images" in str(caught.value)
    assert "remove the directory" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ResumeMismatchError):  # and is not forgotten
        _check(cfg)


def test_an_unchanged_source_costs_a_listing(tmp_path: Path, reads: list[str]) -> None:
    cfg = make_config(tmp_path)
    _begin(cfg)
    assert len(reads) == len(set(reads)) == 12
    reads.clear()
    _check(cfg)
    refuse_begun(cfg, "adapted")
    _check(cfg, "source_only")  # another fine-tune of the same source
    assert reads == []


def test_a_copied_data_set_is_read_once_and_accepted(tmp_path: Path, reads: list[str]) -> None:
    cfg = make_config(tmp_path)
    _begin(cfg)
    shutil.copytree(tmp_path / "source", tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*.png"):
        os.utime(path, (OLD, OLD))
    shutil.rmtree(tmp_path / "source")
    cfg.source.hq, cfg.source.lq = str(tmp_path / "copy" / "hq"), str(tmp_path / "copy" / "lq")
    reads.clear()
    refuse_begun(cfg, "adapted")
    assert reads == [], "without a look into the files nothing speaks against them"
    _check(cfg)
    assert len(reads) == 12
    _check(cfg)
    assert len(reads) == 12, "the new times are kept"


def test_a_size_that_changed_is_refused_without_reading(tmp_path: Path, reads: list[str]) -> None:
    cfg = make_config(tmp_path)
    directory = _begin(cfg)
    _overwrite(tmp_path / "source" / "hq" / "0.png")
    reads.clear()
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    with pytest.raises(ResumeMismatchError, match=r"hq/0\.png"):
        refuse_begun(cfg, "adapted")
    assert reads == []
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before


def test_clean_images_alone_where_the_others_are_made_of_them(tmp_path: Path, reads: list[str]) -> None:
    cfg = make_config(tmp_path)
    cfg.source.lq, cfg.source.degradation = None, "none"
    _begin(cfg)
    assert len(reads) == 6
    _overwrite(tmp_path / "source" / "lq" / "0.png")
    _check(cfg)
    _overwrite(tmp_path / "source" / "hq" / "0.png")
    with pytest.raises(ResumeMismatchError, match=r"hq/0\.png"):
        _check(cfg)


def test_storage_without_times_is_read(tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmd_ray.images.listing._microseconds", lambda ns: None)
    cfg = make_config(tmp_path)
    _begin(cfg)
    reads.clear()
    _check(cfg)
    assert len(reads) == 12
    _same_size(tmp_path / "source" / "lq" / "5.png")
    with pytest.raises(ResumeMismatchError, match=r"lq/5\.png"):
        _check(cfg)


def test_a_finetune_of_before_the_record_is_accepted(tmp_path: Path, reads: list[str]) -> None:
    cfg = make_config(tmp_path)
    directory = _begin(cfg)
    (directory / "sources.parquet").unlink()
    _overwrite(tmp_path / "source" / "hq" / "0.png")
    reads.clear()
    _check(cfg)
    assert reads == []


def test_held_out_pairs_count_where_they_pick_the_export(tmp_path: Path) -> None:
    shutil.copytree(make_config(tmp_path).source.hq or "", tmp_path / "held" / "hq")
    shutil.copytree(make_config(tmp_path).source.lq or "", tmp_path / "held" / "lq")
    for export in ("last", "best"):
        cfg = make_config(tmp_path, validate_every=4, validation_images=2, export=export)
        cfg.out = str(tmp_path / export)
        shutil.copytree(tmp_path / "run" / "pairs", tmp_path / export / "pairs")
        cfg.evaluation.source_hq, cfg.evaluation.source_lq = str(tmp_path / "held/hq"), str(tmp_path / "held/lq")
        _begin(cfg)
        _overwrite(tmp_path / "held" / "hq" / "5.png")  # beyond the first two
        _check(cfg)
        _overwrite(tmp_path / "held" / "hq" / "1.png")
        if export == "last":
            _check(cfg)
            shutil.copy(tmp_path / "source" / "hq" / "1.png", tmp_path / "held" / "hq" / "1.png")
        else:
            with pytest.raises(ResumeMismatchError, match=r"held/hq/1\.png"):
                _check(cfg)


def test_before_the_first_checkpoint_another_source_begins_anew(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    _check(cfg)
    directory = Path(make_spec(cfg, "adapted", None).directory)
    curve = directory / "curve.jsonl"
    curve.write_text('{"step": 1, "loss": 2.0}\n')
    _check(cfg)
    assert curve.is_file()
    _overwrite(tmp_path / "source" / "hq" / "0.png")
    _check(cfg)
    assert not curve.is_file()
    rows = {row["key"]: row for row in pq.read_table(directory / "sources.parquet").to_pylist()}
    assert rows["hq/0.png"]["size"] == (tmp_path / "source" / "hq" / "0.png").stat().st_size


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    directory = _begin(cfg)
    record = directory / "sources.parquet"
    record.write_bytes(record.read_bytes()[:50])
    with pytest.raises(DataError, match=r"sources\.parquet: damaged .* remove it"):
        _check(cfg)


def test_reading_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    with caplog.at_level(logging.INFO, logger="gmd_ray"):
        _check(make_config(tmp_path))
    assert "source files 12/12 file (100%)" in caplog.text


@pytest.mark.parametrize("digest", [None, "a" * 64])
def test_a_photo_that_changed_makes_other_accepted_pairs(tmp_path: Path, digest: str | None) -> None:
    """Rows without a digest are of a store that is older than it, and so are its fine-tunes."""
    cfg = make_config(tmp_path)
    rows: list[dict[str, Any]] = [pair_row(i, digest=digest) for i in range(8)]
    store = tmp_path / "run" / "pairs"
    write_store(store, rows)
    target = make_spec(cfg, "adapted", None).target
    assert target is not None
    if digest is None:
        keys = ("id", "scorer", "score", "student", "teacher")
        plain = [json.dumps({key: row[key] for key in sorted(keys)}, sort_keys=True) for row in rows[1:]]
        assert target.digest == digest_of_lines(plain)
    write_store(store, [*rows[:4], rows[4] | {"digest": "b" * 64}, *rows[5:]])
    changed = make_spec(cfg, "adapted", None).target
    assert changed is not None
    assert changed.digest != target.digest
    assert changed.ids == target.ids


def test_an_lmdb_is_as_it_was_where_its_time_is(tmp_path: Path, reads: list[str]) -> None:
    lmdb = pytest.importorskip("lmdb")
    cfg = make_config(tmp_path)
    cfg.source.hq, cfg.source.lq = str(tmp_path / "gt.lmdb"), str(tmp_path / "lq.lmdb")

    def put(store: str, name: str, data: bytes) -> None:
        lmdb_store._environment.cache_clear()  # open for reading, in this process
        gc.collect()
        with lmdb.open(store, map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
            transaction.put(name.encode(), data)

    for folder in (cfg.source.hq, cfg.source.lq):
        for name in "ab":
            put(folder, name, encode_png(picture(ord(name))))
        Path(folder, "meta_info.txt").write_text("a.png (24,20,3) 1\nb.png (24,20,3) 1\n")
    _begin(cfg)
    reads.clear()
    _check(cfg)
    assert reads == []
    os.utime(Path(cfg.source.lq, "data.mdb"), (OLD, OLD))
    _check(cfg)
    assert [Path(uri).name for uri in reads] == ["a.png", "b.png"]
    put(cfg.source.lq, "b", encode_png(picture(5)))
    with pytest.raises(ResumeMismatchError, match=r"\(\S+lq\.lmdb/b\.png\)"):
        _check(cfg)
