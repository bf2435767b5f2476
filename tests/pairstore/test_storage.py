"""Files that are replaced as a whole, or not at all, and local copies of those that lie elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmd_ray.storage import (
    absolute_if_exists,
    is_file,
    is_folder,
    is_remote,
    local_copy,
    local_draft,
    map_threads,
    read_bytes,
    replacing,
    write_bytes,
)


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


def test_a_url_is_read_from_a_copy_that_goes_with_the_block(tmp_path: Path) -> None:
    root = f"memory://{tmp_path}/model"
    files = {"index.json": b"{}", "part/weights.bin": bytes(range(256))}
    for name, data in files.items():
        write_bytes(f"{root}/{name}", data)
    with local_copy(root) as folder:
        found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*.*")}
        assert (found, Path(folder).name) == (files, "model")
    with local_copy(f"{root}/index.json") as file:
        assert (Path(file).read_bytes(), Path(file).name) == (b"{}", "index.json")
    assert not Path(folder).exists()
    assert not Path(file).exists()
    with (
        pytest.raises(FileNotFoundError, match=f"^{root}/absent: no such file or folder$"),
        local_copy(f"{root}/absent"),
    ):
        raise AssertionError
    with local_copy(f"{tmp_path}/here") as path:
        assert path == f"{tmp_path}/here", "a local path is no copy"


def test_a_draft_is_put_in_its_place_when_the_block_ends(tmp_path: Path) -> None:
    url = f"memory://{tmp_path}/student.pth"
    with local_draft(url) as draft:
        assert Path(draft).name == "student.pth"
        Path(draft).write_bytes(b"weights")
        assert not is_file(url)
    assert read_bytes(url) == b"weights"
    with local_draft(f"memory://{tmp_path}/latent") as draft:
        (Path(draft) / "vae").mkdir(parents=True)
        for name in ("model_index.json", "vae/config.json"):
            (Path(draft) / name).write_text(name)
    assert is_folder(f"memory://{tmp_path}/latent")
    assert read_bytes(f"memory://{tmp_path}/latent/vae/config.json") == b"vae/config.json"

    def half() -> None:
        with local_draft(url) as draft:
            Path(draft).write_bytes(b"half")
            raise ValueError("mid")

    with pytest.raises(ValueError, match="mid"):
        half()
    assert read_bytes(url) == b"weights"


def test_local_paths_and_urls_are_told_apart() -> None:
    assert not any(map(is_remote, ("a/b", "/a/b", "file:///a/b", "local:///a")))
    assert all(map(is_remote, ("s3://bucket/a", "GS://bucket", "memory://a")))


def test_a_path_that_is_not_here_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").touch()
    assert absolute_if_exists("model") == str(tmp_path / "model")
    assert [absolute_if_exists(path) for path in ("owner/model", None)] == ["owner/model", None]


def test_results_come_in_the_order_of_the_items() -> None:
    assert list(map_threads(lambda item: item * 2, range(100))) == list(range(0, 200, 2))
