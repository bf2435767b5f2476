"""Rows that are in a store twice: which one stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gmd_ray.pairstore.parts import part_name
from gmd_ray.pairstore.store import PairStore
from tests.pairstore.test_store import add, statuses


@pytest.fixture
def store(tmp_path: Path) -> PairStore:
    return PairStore(str(tmp_path / "run" / "pairs"))


def test_repair_keeps_one_row_of_each_and_an_ok_one(store: PairStore) -> None:
    add(store, a="ok", b="failed", c="ok")
    add(store, b="ok", c="ok")
    add(store, d="ok")
    assert store.drop_duplicates() == 2
    assert statuses(store) == [("a", "ok"), ("b", "ok"), ("c", "ok"), ("d", "ok")]
    assert store.drop_duplicates() == 0


@pytest.mark.parametrize("copy", ["part-0000.parquet", "part-zzzz.parquet"])
def test_repair_keeps_the_copy_whose_name_is_right(store: PairStore, copy: str) -> None:
    name = add(store, a="ok", b="failed")
    Path(store.rows_path, copy).write_bytes(Path(store.rows_path, name).read_bytes())
    assert store.drop_duplicates() == 2
    assert os.listdir(store.rows_path) == [name]
    # An ok row outweighs a name.
    add(store, b="ok")
    Path(store.rows_path, part_name(["b"])).rename(Path(store.rows_path, copy))
    store.refresh()
    assert store.drop_duplicates() == 1
    assert statuses(store) == [("a", "ok"), ("b", "ok")]


def test_repair_loses_nothing_where_a_rewritten_part_takes_the_name_of_another(store: PairStore) -> None:
    for left, right in (("a", "b"), ("x", "y")):
        add(store, **{left: "ok", right: "ok"})
        add(store, **{left: "ok"})
        add(store, **{right: "ok"})
    store.drop_duplicates()
    assert statuses(store) == [(key, "ok") for key in "abxy"]


def test_a_crash_in_the_middle_of_a_rewrite_is_repaired(store: PairStore, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, a="ok", b="failed", c="failed")
    from gmd_ray.pairstore import parts

    with monkeypatch.context() as patch:
        patch.setattr(parts, "remove", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.drop_failed({"b"})
    assert len(os.listdir(store.rows_path)) == 2
    store.drop_duplicates()
    assert statuses(store) == [("a", "ok"), ("b", "failed"), ("c", "failed")]
    assert store.drop_failed({"b"}) == 1
    assert statuses(store) == [("a", "ok"), ("c", "failed")]
