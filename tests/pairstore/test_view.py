"""The accepted pairs of stores as every version left them, held against the rows by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gmd_ray.errors import DataError
from gmd_ray.pairstore.manifest import Manifest, read_manifest
from gmd_ray.pairstore.parts import write_part
from gmd_ray.pairstore.run_settings import RunSettings, read_settings
from gmd_ray.pairstore.schema import PAIR_SCHEMA, FidelityBound
from gmd_ray.pairstore.store import PairStore
from gmd_ray.pairstore.view import StoreView

ROWS: list[dict[str, Any]] = [
    {"id": "a", "status": "ok", "score": 1.0, "fidelity": 30.0, "lq": b"a"},
    {"id": "b", "status": "ok", "score": 4.2, "fidelity": 10.0},
    {"id": "c", "status": "ok", "score": 5.0, "fidelity": 20.0},
    {"id": "d", "status": "ok", "score": 6.0},
    {"id": "x", "status": "failed"},
]
SETTINGS = {"settings": {"scorer.fidelity": "psnr"}, "models": {"scorer": {"higher_is_better": False}}}


@pytest.fixture
def store(tmp_path: Path) -> PairStore:
    store = PairStore(str(tmp_path / "pairs"))
    write_part(store.filesystem, store.rows_path, pa.Table.from_pylist(ROWS, schema=PAIR_SCHEMA))
    return store


def ids(store: PairStore, *args: Any, **kwargs: Any) -> list[str]:
    return sorted(StoreView.open(store, *args, **kwargs).ids())


def test_a_store_without_documents(store: PairStore) -> None:
    """A score whose direction nobody recorded is better when it is higher."""
    view = StoreView.open(store.url, 4.2)
    assert sorted(view.ids()) == ["b", "c", "d"], "a score equal to the threshold is accepted"
    assert (view.manifest, view.settings, view.higher_is_better) == (None, RunSettings(), True)
    assert (view.bound, view.removed_inputs) == (None, ())
    with pytest.raises(DataError, match="no finished run says which threshold; give --threshold"):
        StoreView.open(store)
    with pytest.raises(DataError, match=r"made with scorer\.fidelity=none"):
        StoreView.open(store, 4.2, 20.0)


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pair store here"):
        StoreView.open(str(tmp_path), 4.2, 20.0)


def test_the_settings_speak_until_a_run_has_finished(store: PairStore) -> None:
    store.write("settings.json", SETTINGS | {"inputs": {"count": 4, "stranger_ids": ["a"]}})
    view = StoreView.open(store, 4.2, 20.0)
    assert (view.higher_is_better, view.bound, view.removed_inputs) == (False, FidelityBound("psnr", 20.0), ("a",))
    assert ids(store, 5.0) == ["b", "c"]
    assert ids(store, 5.0, 20.0) == ["c"]
    assert ids(store, 5.0, higher_is_better=True) == ["c", "d"]


def test_the_manifest_of_a_finished_run_speaks_before_the_settings(store: PairStore) -> None:
    store.write("settings.json", SETTINGS | {"inputs": {"stranger_ids": ["a", "b"]}})
    manifest = {"threshold": 4.2, "higher_is_better": True, "stranger_ids": ["d"], "fidelity_bound": None}
    store.write("manifest.json", manifest | {"settings": {"scorer.fidelity": "ssim"}})
    view = StoreView.open(store)
    assert (view.threshold, view.higher_is_better, view.removed_inputs) == (4.2, True, ("d",))
    assert sorted(view.ids()) == ["b", "c"]
    assert StoreView.open(store, bound=15.0).bound == FidelityBound("ssim", 15.0)


def test_a_manifest_without_the_newer_keys(store: PairStore) -> None:
    """Direction and fidelity are those of the settings; no input was removed, whatever an interrupted run says."""
    store.write("settings.json", SETTINGS | {"inputs": {"stranger_ids": ["a", "b"]}})
    store.write("manifest.json", {"threshold": 4.2})
    assert ids(store) == ["a", "b"]
    assert StoreView.open(store, bound=15.0).bound == FidelityBound("psnr", 15.0)
    Path(store.path, "settings.json").unlink()
    assert ids(store) == ["b", "c", "d"]


def test_the_fidelity_bound(store: PairStore) -> None:
    store.write("manifest.json", {"threshold": 4.2, "fidelity_bound": 15.0, "settings": {"scorer.fidelity": "psnr"}})
    assert ids(store) == ["b", "c", "d"], "the recorded bound is not asked for by itself"
    assert ids(store, bound=15.0) == ["c"], "a row without a fidelity does not hold a bound"
    assert ids(store, bound=10.0, fidelity="psnr") == ["b", "c"]
    with pytest.raises(DataError, match=r"fidelity=psnr, which a bound on ssim cannot use"):
        StoreView.open(store, bound=0.5, fidelity="ssim")
    view = StoreView.open(store, 99.0, 15.0)
    assert sorted(view.read(["id"], view.any_score)["id"].to_pylist()) == ["a", "c"]


def test_rows_and_scores(store: PairStore) -> None:
    store.write("manifest.json", {"threshold": 4.2, "stranger_ids": ["d"]})
    view = StoreView.open(store)
    ranked = [("c", 5.0), ("b", pytest.approx(4.2)), ("a", 1.0)]
    assert view.scores() == ranked
    assert StoreView.open(store, higher_is_better=False).scores() == ranked[::-1]
    assert view.read(["id"], view.with_status("failed"))["id"].to_pylist() == ["x"]
    assert view.rows_of(["a", "x"], ["lq"]) == {"a": {"id": "a", "lq": b"a"}, "x": {"id": "x", "lq": None}}


def test_parts_of_a_version_without_the_newer_columns(tmp_path: Path) -> None:
    store = PairStore(str(tmp_path / "pairs"))
    table = pa.Table.from_pylist(ROWS, schema=PAIR_SCHEMA)
    Path(store.rows_path).mkdir(parents=True)
    old = table.drop_columns(["fidelity", "bytes", "modified", "digest"])
    pq.write_table(old, Path(store.rows_path, "part-old.parquet"))
    view = StoreView.open(store, 4.2)
    assert view.ids() == ["b", "c", "d"]
    assert view.read(["digest", "fidelity"])["digest"].null_count == 3


def test_what_cannot_be_read_is_one_line(store: PairStore) -> None:
    Path(store.path, "manifest.json").write_text("[1]")
    with pytest.raises(DataError, match=r"manifest\.json: not a manifest of this program"):
        StoreView.open(store, 4.2)
    Path(store.path, "manifest.json").write_text("{half")
    with pytest.raises(DataError, match=r"manifest\.json: not a JSON document"):
        StoreView.open(store, 4.2)
    Path(store.path, "manifest.json").unlink()
    Path(store.path, "manifest.json").mkdir()
    with pytest.raises(DataError, match=r"manifest\.json: cannot be read"):
        StoreView.open(store, 4.2)
    Path(store.path, "manifest.json").rmdir()
    Path(store.path, "settings.json").write_text('"text"')
    with pytest.raises(DataError, match=r"settings\.json: not settings of this program"):
        StoreView.open(store, 4.2)
    Path(store.path, "settings.json").unlink()
    Path(store.rows_path, "part-torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"part-torn\.parquet.*`gmd-ray verify` names it"):
        StoreView.open(store, 4.2).ids()


def test_documents_keep_what_this_version_does_not_know(store: PairStore) -> None:
    manifest = {"inputs": 4, "seconds": 2.5, "images_per_second": None, "cost": {"predicted": None}, "newer": [1]}
    settings = {"settings": {"a": 1}, "places": {"target.path": {"path": "/photos"}}, "newer": True}
    store.write("manifest.json", manifest)
    store.write("settings.json", settings | {"inputs": {"count": 4, "limit": 9}})
    read = read_manifest(store)
    assert read is not None
    assert (read.inputs, read.seconds, read.images_per_second, read.cost) == (4, 2.5, None, {"predicted": None})
    assert (read.threshold, read.fidelity, read.fidelity_bound, read.higher_is_better) == (None, None, None, None)
    saved = read_settings(store)
    assert (saved.path("target.path"), saved.path("scorer.path")) == ("/photos", None)
    assert (saved.input_count, saved.input_limit, saved.settings, saved.models) == (4, 9, {"a": 1}, {})
    for document, name in ((read, "manifest.json"), (saved, "settings.json")):
        text = Path(store.path, name).read_text()
        assert document.to_json() == json.loads(text)
        store.write(name, document.to_json())
        assert Path(store.path, name).read_text() == text
    assert Manifest().cost == {}
