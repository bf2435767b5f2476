"""Local files that are replaced as a whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmd_ray.storage import absolute_if_exists, map_threads, read_bytes, replacing, write_bytes


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.pth"
    with replacing(path, path.suffix) as draft:
        draft.write_bytes(b"1")
        assert (draft.parent, draft.suffix, path.exists()) == (path.parent, ".pth", False)
        assert draft.name.startswith(".tmp-")
    with replacing(path) as draft:
        draft.write_bytes(b"2")
        assert (path.read_bytes(), draft.suffix) == (b"1", "")
    assert [(file.name, file.read_bytes()) for file in path.parent.iterdir()] == [("a.pth", b"2")]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def half() -> None:
        with replacing(path) as draft:
            draft.write_bytes(b"half")
            raise ValueError("mid")

    with pytest.raises(ValueError, match="mid"):
        half()
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a", b"old")]


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_whole_files_by_url(scheme: str, tmp_path: Path) -> None:
    url = f"{scheme}{tmp_path}/folder/a.txt"
    assert read_bytes(url) is None
    write_bytes(url, b"text")
    assert read_bytes(url) == b"text"


def test_a_path_that_is_not_here_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").touch()
    assert absolute_if_exists("model") == str(tmp_path / "model")
    assert [absolute_if_exists(path) for path in ("owner/model", None)] == ["owner/model", None]


def test_results_come_in_the_order_of_the_items() -> None:
    assert list(map_threads(lambda item: item * 2, range(100))) == list(range(0, 200, 2))
