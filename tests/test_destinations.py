"""Places that cannot be written: one line, and nothing left there."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gmd_ray.cli import main
from gmd_ray.destinations import why_unwritable, writing
from gmd_ray.errors import ConfigError


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_what_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "page.html").write_text("old")
    (tmp_path / "link").symlink_to("full")
    before = everything(tmp_path)
    for path, folder in (
        ("full", True),
        ("a/b/c", True),
        ("full/page.html", False),
        ("x/new.html", False),
        ("link", True),
    ):
        assert why_unwritable(str(tmp_path / path), folder=folder) is None
    assert everything(tmp_path) == before
    assert (tmp_path / "full" / "page.html").read_text() == "old"


def places(root: Path) -> dict[str, tuple[str, bool]]:
    """Place -> (what is said of it, whether a folder is wanted)."""
    (root / "file").write_text("")
    (root / "dangling").symlink_to(root / "unmounted")
    (root / "folder").mkdir()
    return {
        str(root / "file"): ("it is a file", True),
        str(root / "file" / "below"): ("file is a file", True),
        str(root / "dangling"): (f"link to {root / 'unmounted'}, which is not there", True),
        str(root / "dangling" / "below"): ("which is not there", False),
        str(root / "folder"): ("it is a folder", False),
        str(root / ("n" * 300)): ("a name of 300 bytes", True),
        str(root / "new" / ("ü" * 200) / "x"): ("a name of 400 bytes", True),
        "/proc/run": ("/proc", True),
        "/dev/null/x": ("/dev/null is", True),
    }


def test_what_cannot_says_why(tmp_path: Path) -> None:
    for path, (why, folder) in places(tmp_path).items():
        found = why_unwritable(path, folder=folder)
        assert found is not None, path
        assert why in found, (path, found)
    assert "NUL" in str(why_unwritable(str(tmp_path / "a\0b"), folder=True))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_permissions(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert why_unwritable(str(tmp_path / "locked" / "x"), folder=True) is not None


def test_an_error_of_the_work_itself_is_one_line_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--to .*/x: cannot be written \(.*No space left on device"):  # noqa: SIM117
        with writing("--to", str(tmp_path / "x"), folder=True):
            raise OSError(28, "No space left on device", "part")
    with pytest.raises(BrokenPipeError), writing("--to", str(tmp_path), folder=True):
        raise BrokenPipeError
    with writing("--to", "s3://bucket/x", folder=True):  # told by its first write
        pass


@pytest.mark.parametrize(
    "args",
    [
        ["export", "--to"],
        ["gate", "STORE", "--html"],
        ["sheet", "STORE", "--to"],
        ["new-student", "ldm-tiny", "--to"],
        ["degrade", "-i", "PHOTOS", "--preset", "noise25", "-o"],
        ["import", "--from", "parquet:TABLE", "--hq", "hq", "-o"],
        ["encode-prompts", "teacher.path=TEACHER", "--to"],
    ],
)
def test_every_verb_that_writes_somewhere(
    args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gmd_ray.pairstore.store import PairStore
    from tests.generation.shelf import fill, finish, ok_row
    from tests.planning.conftest import TEACHER, picture

    monkeypatch.setattr("gmd_ray.ray_utils.session.ray_session", lambda cfg: pytest.fail("Ray was started first"))
    store = PairStore(str(tmp_path / "run" / "pairs"))
    rows = [ok_row(f"{i}.png", 6.0) for i in range(2)]
    fill(store, [rows])
    finish(store, rows)
    picture(tmp_path / "photos" / "a.png")
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "table").mkdir()
    images = pa.table({"hq": [(tmp_path / "photos" / "a.png").read_bytes()]})
    pq.write_table(images, tmp_path / "table" / "a.parquet")
    named = {"STORE": tmp_path / "run", "PHOTOS": tmp_path / "photos", "TABLE": tmp_path / "table", "TEACHER": TEACHER}
    for key, value in named.items():
        args = [word.replace(key, str(value)) for word in args]
    before = everything(tmp_path)
    settings = [f"out={tmp_path / 'run'}"] if args[0] in ("export", "encode-prompts") else []
    assert main([*args, str(tmp_path / "taken" / "below"), *settings]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1, error
    assert error[0].startswith(f"gmd-ray: {args[-1]} {tmp_path / 'taken' / 'below'}: cannot be written (")
    assert everything(tmp_path) == before
