"""Folders on real filesystems: the local disk, and fsspec's in-memory one for the path every other scheme takes."""

from __future__ import annotations

import logging
import os
import pickle
import re
from pathlib import Path

import fsspec
import pyarrow.fs
import pytest

from gmd_ray.errors import ConfigError, DataError, StorageError
from gmd_ray.images.listing import _joiner, list_images, read_file
from gmd_ray.images.sets.pairs import list_pairs
from gmd_ray.storage import open_filesystem, with_retries

NAMES = ["b.png", "a b/ü (1).JPG", "a b/é#50%?.jpeg", "z/y/x/deep.TIFF", "B.webp"]
OTHERS = ["notes.txt", "z/clip.mp4", "noext", ".hidden.png", ".cache/x.png", "__MACOSX/._b.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES + OTHERS:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "photos"


def test_local_folder(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        files = list_images(str(folder))
    assert [file.id for file in files] == sorted(NAMES)
    assert [read_file(file.uri).decode() for file in files] == sorted(NAMES)
    assert "6 files, links and folders left out" in caplog.text
    assert "hidden: 2" in caplog.text  # a file and a folder
    assert "__MACOSX: 1" in caplog.text


def test_relative_path_home_and_trailing_slash(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list_images(str(folder))
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    for url in ("photos", "./photos/", "~/photos", f"{folder}//", f"file://{folder}"):
        assert list_images(url) == expected, url


def test_file_url_is_percent_encoded(folder: Path) -> None:
    files = list_images((folder / "a b").as_uri())
    assert [file.id for file in files] == ["é#50%?.jpeg", "ü (1).JPG"]
    assert read_file(files[0].uri).decode() == "a b/é#50%?.jpeg"


def test_any_fsspec_scheme(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for name in NAMES + OTHERS:
        memory.pipe(f"/photos/{name}", name.encode())
    for url in ("memory://photos", "memory://photos/"):
        files = list_images(url)
        assert [file.id for file in files] == sorted(NAMES)
        assert [read_file(file.uri).decode() for file in files] == sorted(NAMES)
    with pytest.raises(DataError, match="memory://nowhere: no such folder"):
        list_images("memory://nowhere")
    with pytest.raises(DataError, match="no such file"):
        read_file("memory://photos/none.png")


def test_linked_folders_are_followed(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    os.symlink(folder / "a b", root / "linked")
    os.symlink(tmp_path / "gone.png", root / "dangling.png")
    assert [file.id for file in list_images(str(root))] == ["linked/é#50%?.jpeg", "linked/ü (1).JPG"]


def test_limit_keeps_the_first(folder: Path) -> None:
    assert [file.id for file in list_images(str(folder), limit=2)] == sorted(NAMES)[:2]
    assert len(list_images(str(folder), limit=100)) == len(NAMES)
    with pytest.raises(ConfigError, match="limit=0"):
        list_images(str(folder), limit=0)


def test_errors_name_the_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{folder}/nowhere: no such folder"):
        list_images(f"{folder}/nowhere")
    with pytest.raises(DataError, match=r"b\.png: is a file"):
        list_images(f"{folder}/b.png")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("a")
    with pytest.raises(DataError, match=r"text: no images \(.*\.png.*\) among 1 files"):
        list_images(str(tmp_path / "text"))
    with pytest.raises(DataError, match="no such file"):
        read_file(f"{folder}/none.png")
    with pytest.raises(DataError, match="zzz://x: cannot be opened"):
        list_images("zzz://x")


@pytest.mark.parametrize("url", ["", " ", "file://", "local://"])
def test_an_empty_path_is_not_the_folder_one_is_in(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for use in (list_images, open_filesystem, lambda path: list_pairs(path, None), lambda path: list_pairs(".", path)):
        with pytest.raises(ConfigError, match="an empty path"):
            use(url)
    assert len(list_images(".")) == len(NAMES)


def test_the_local_disk_under_fsspecs_name(folder: Path) -> None:
    (folder / "loop").symlink_to(".")
    assert [file.id for file in list_images(f"local://{folder}")] == sorted(NAMES)
    assert read_file(list_images(f"local://{folder}")[0].uri).decode() == sorted(NAMES)[0]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ftp://127.0.0.1:9/x", None),
        ("zip://x::/nowhere/a.zip", None),
        ("zzz://x", None),
        ("github://a:b@/x", "github://***@/x"),
    ],
)
def test_a_server_that_cannot_be_reached_is_one_line(
    url: str, shown: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = pytest.importorskip("requests")

    def refuse(*given: object, **more: object) -> None:
        raise requests.exceptions.ConnectionError("no\nnetwork")

    monkeypatch.setattr(requests, "get", refuse)
    fsspec.filesystem("memory").clear_instance_cache()
    for use in (list_images, lambda place: read_file(f"{place}/a.png")):
        with pytest.raises(DataError, match=rf"^{re.escape(shown or url)}.*: cannot be opened: ") as caught:
            use(url)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), TimeoutError("slow"), RuntimeError("503 Slow\nDown")])
def test_a_network_that_fails_while_reading_may_be_asked_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/flaky/a.png", b"data")
    failures = [error, error]
    opened = type(memory).open

    def flaky(self: object, *given: object, **more: object) -> object:
        if failures:
            raise failures.pop()
        return opened(self, *given, **more)

    monkeypatch.setattr(type(memory), "open", flaky)
    monkeypatch.setattr("gmd_ray.storage.PAUSES_S", (0.0, 0.0))
    with pytest.raises(StorageError, match=r"^memory://flaky/a\.png: cannot be read: ") as caught:
        read_file("memory://flaky/a.png")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, DataError)
    assert isinstance(caught.value, OSError)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), StorageError)  # from a worker
    assert with_retries(lambda: read_file("memory://flaky/a.png")) == b"data"


def test_what_will_not_change_by_itself_is_not_asked_again(folder: Path) -> None:
    asked = []

    def look(uri: str) -> bytes:
        asked.append(uri)
        return read_file(uri)

    for uri in (f"{folder}/none.png", f"{folder}/b.png/x.png"):
        with pytest.raises(DataError):
            with_retries(lambda uri=uri: look(uri))
    assert len(asked) == 2


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb"):
        pass
    with pytest.raises(DataError, match="not valid UTF-8"):
        list_images(str(tmp_path))


def test_the_root_of_a_filesystem_is_a_folder() -> None:
    for root in ("memory://", "memory:///"):
        assert open_filesystem(_joiner(root)("a.png"))[1].lstrip("/") == "a.png"
    assert _joiner("/")("a.png") == "/a.png"


def test_object_store_urls() -> None:
    """No bucket is contacted: pyarrow opens these filesystems offline, and the names survive both ways."""
    options = "region=us-east-1&endpoint_override=http%3A%2F%2Flocalhost%3A9"
    url = f"s3://bucket/my%20photos/?{options}"
    filesystem, path = open_filesystem(url)
    assert isinstance(filesystem, pyarrow.fs.S3FileSystem)
    assert path == "bucket/my photos"
    assert filesystem.region == "us-east-1"
    for name in NAMES:
        uri = _joiner(url)(name)
        assert uri.endswith(options)
        again, file_path = open_filesystem(uri)
        assert file_path == f"bucket/my photos/{name}"
        assert again is filesystem  # opened once, not once per image
    gs, gs_path = open_filesystem("gs://anonymous@bucket/a/b.png")
    assert isinstance(gs, pyarrow.fs.GcsFileSystem)
    assert gs_path == "bucket/a/b.png"
