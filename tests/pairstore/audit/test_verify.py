"""Every kind of damage is found and named, and a whole store is called whole."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gmd_ray.cli import main
from gmd_ray.errors import ExitCode
from gmd_ray.images.listing import list_images
from gmd_ray.pairstore.audit.verify import Verified, verify
from gmd_ray.pairstore.store import PairStore, find_store
from tests.generation.shelf import failed_row, file_columns, fill, finish, lock, ok_row, png

ROWS = [
    [ok_row("a.png", 4.0), ok_row("b.png", 5.0), ok_row("c.png", 6.0)],
    [ok_row("d/e.png", 7.0, restored=None), failed_row("f.png")],
]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for key in ("a.png", "b.png", "c.png", "d/e.png", "f.png"):
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(b"never decoded")
    return folder


@pytest.fixture
def store(tmp_path: Path, photos: Path) -> PairStore:
    store = PairStore(str(tmp_path / "run" / "pairs"))
    files = {file.id: file_columns(file) for file in list_images(str(photos))}
    rows = [[row | files[row["id"]] for row in block] for block in ROWS]
    fill(store, rows)
    finish(store, [row for block in rows for row in block], photos=photos)
    return store


def parts(store: PairStore) -> list[Path]:
    return sorted(Path(store.rows_path).glob("part-*"))


def words(found: Verified) -> str:
    return "\n".join(map(str, found.findings))


def test_a_whole_store_is_whole(store: PairStore) -> None:
    for deep, images in ((False, None), (True, 11)):
        found = verify(store, deep)
        assert (found.parts, found.rows, found.images, found.findings, found.notes) == (2, 5, images, [], [])


def test_any_filesystem(photos: Path) -> None:
    store = PairStore("memory://verify/pairs")
    fill(store, ROWS)
    finish(store, [row for block in ROWS for row in block], photos=photos)
    assert verify(find_store("memory://verify"), deep=True).findings == []
    with store.filesystem.open_output_stream(f"{store.rows_path}/part-torn.parquet") as stream:
        stream.write(b"PAR1 half")
    assert "part-torn.parquet: torn, or no Parquet file" in words(verify(store))
    store.filesystem.delete_dir_contents(store.path)


def truncate(store: PairStore) -> str:
    part = parts(store)[0]
    part.write_bytes(part.read_bytes()[:-9])
    return f"{part.name}: torn, or no Parquet file"


def empty(store: PairStore) -> str:
    parts(store)[1].write_bytes(b"")
    return f"{parts(store)[1].name}: torn"


def foreign_columns(store: PairStore) -> str:
    pq.write_table(pa.table({"id": ["x"], "pixels": [1]}), f"{store.rows_path}/part-0.parquet")
    return "part-0.parquet: foreign: columns "


def renamed(store: PairStore) -> str:
    part = parts(store)[0]
    part.rename(part.with_name("part-other.parquet"))
    return "part-other.parquet: file name does not match the ids inside"


def other_models(store: PairStore) -> str:
    [name] = fill(store, [[ok_row("stray.png", 5.0, teacher="another")]])
    return f"{name}: foreign: rows of teacher another, most are of t"


def foreign_file(store: PairStore) -> str:
    Path(store.rows_path, "_SUCCESS").touch()
    return "_SUCCESS: no part file; move it away"


def foreign_beside(store: PairStore) -> str:
    Path(store.path, "notes.txt").touch()
    return "notes.txt: no file of a pair store"


def leftover(store: PairStore) -> str:
    Path(store.rows_path, ".tmp-0123").write_bytes(b"half")
    return ".tmp-0123: left half written by a writer that was killed; remove it"


def stale_lock(store: PairStore) -> str:
    lock(store, beat=1e6)
    return "lock.json: left by a driver that is gone"


def twice(store: PairStore) -> str:
    fill(store, [[ok_row("b.png", 5.0)]])
    return "1 ids have several rows (b.png); run generate again: it repairs"


def odd_status(store: PairStore) -> str:
    fill(store, [[{"id": "g.png", "status": "done"}]])
    return "row g.png: status 'done' is neither ok nor failed"


def nameless(store: PairStore) -> str:
    fill(store, [[ok_row("g.png", 5.0) | {"status": None}]])
    return "foreign: it has rows without an id or a status; move it away"


def scoreless(store: PairStore) -> str:
    fill(store, [[ok_row("g.png", 1.0) | {"score": None, "width": None}]])
    return "row g.png: ok, but without width, score"


def cooked_books(store: PairStore) -> str:
    told = store.read("manifest.json")
    store.write("manifest.json", {**told, "accepted": told["accepted"] + 1, "failed": 0})
    return "manifest.json: its counts are not those of the rows: accepted 4 (rows: 3), failed 0 (rows: 1)"


def lost_row(store: PairStore) -> str:
    parts(store)[0].unlink()
    return "inputs have no row ("


def unfinished(store: PairStore) -> str:
    store.delete("manifest.json")
    return "no manifest.json: its run did not finish"


def damaged_manifest(store: PairStore) -> str:
    Path(store.path, "manifest.json").write_text("{")
    return f"{store.path}/manifest.json: "


def stranger(store: PairStore) -> str:
    Path(store.read("settings.json")["places"]["target.path"]["path"], "c.png").unlink()
    return "1 rows are of images that are not in "


@pytest.mark.parametrize(
    "damage",
    [
        truncate, empty, foreign_columns, renamed, other_models, foreign_file, foreign_beside, leftover, stale_lock,
        twice, odd_status, nameless, scoreless, cooked_books, lost_row, unfinished, damaged_manifest, stranger,
    ],
)  # fmt: skip
def test_damage_is_named(store: PairStore, damage: Callable[[PairStore], str]) -> None:
    expected = damage(store)
    before = {file: file.read_bytes() for file in Path(store.path).rglob("*") if file.is_file()}
    found = verify(store)
    assert expected in words(found)
    assert all("\n" not in str(finding) and "; " in str(finding) for finding in found.findings)
    assert before == {file: file.read_bytes() for file in Path(store.path).rglob("*") if file.is_file()}, "only looked"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"pseudo_target": png(12, 16)[:60]}, "pseudo_target: not a whole PNG"),
        ({"lq": b"\x89PNG"}, "lq: not a whole PNG"),
        ({"width": 17}, "pseudo_target is 16x12, the row says 17x12"),
        ({"restored": png(6, 8)}, "restored is 8x6, the row says 16x12"),
        ({"lq": png(5, 8)}, "16x12 is no multiple of its lq, 8x5"),
        ({"pseudo_target": None}, "ok, but without pseudo_target"),
    ],
)
def test_the_deep_look_decodes(tmp_path: Path, values: dict, expected: str) -> None:
    store = PairStore(str(tmp_path / "pairs"))
    rows = [ok_row("a.png", 5.0), ok_row("b.png", 5.0, **values)]
    fill(store, [rows])
    finish(store, rows)
    assert verify(store).findings == []
    [finding] = [finding for finding in verify(store, deep=True).findings if expected in finding.what]
    assert finding.where.endswith("row b.png")


def test_a_run_that_goes_on_is_not_called_broken(store: PairStore) -> None:
    store.delete("manifest.json")
    parts(store)[1].unlink()
    Path(store.rows_path, ".tmp-0123").write_bytes(b"half")
    lock(store)
    found = verify(store)
    assert found.findings == []
    assert "a driver is at work" in found.notes[0]


def test_a_store_older_than_a_column_is_whole(tmp_path: Path) -> None:
    store = PairStore(str(tmp_path / "pairs"))
    rows = [ok_row("a.png", 5.0)]
    [name] = fill(store, [rows])
    part = Path(store.rows_path, name)
    pq.write_table(pq.read_table(part, partitioning=None).drop_columns(["fidelity"]), part)
    finish(store, rows)
    assert verify(store, deep=True).findings == []


def test_the_bound_is_in_the_books(tmp_path: Path) -> None:
    store = PairStore(str(tmp_path / "pairs"))
    rows = [ok_row(f"{i}.png", 5.0, fidelity=20.0 + i) for i in range(4)]
    fill(store, [rows])
    finish(store, rows, fidelity="psnr", bound=22.0)
    assert store.read("manifest.json")["accepted"] == 2
    assert verify(store).findings == []


def test_the_verb(store: PairStore, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = str(Path(store.path).parent)
    assert main(["verify", run, "--deep"]) == 0
    assert "2 part files, 5 rows, 11 images: whole" in capsys.readouterr().out
    leftover(store)
    lost_row(store)
    assert main(["verify", run]) == ExitCode.DATA
    lines = capsys.readouterr().out.strip().splitlines()
    assert "3 findings" in lines[-1], lines
    assert len(lines) == 4
    assert main(["verify", str(tmp_path / "photos")]) == ExitCode.DATA
    assert "no pair store here" in capsys.readouterr().err


def test_a_finished_run_is_whole(finished: tuple, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", finished[0].cfg.out, "--deep"]) == 0, capsys.readouterr().out


def test_looking_needs_no_model(store: PairStore) -> None:
    code = (
        "import sys; from gmd_ray.cli import main\n"
        f"codes = [main([*verb, {store.path!r}]) for verb in (['verify', '--deep'], ['status'], ['gate'])]\n"
        "print(json.dumps([codes, [m for m in ('torch', 'mlflow', 'diffusers') if m in sys.modules]]))"
    )
    result = subprocess.run([sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout.splitlines()[-1]) == [[0, 0, 0], []], result.stdout
