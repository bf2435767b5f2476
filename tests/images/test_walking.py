"""Links, loops, other people's folders and unreadable ones: each photo is listed once, and what is not is counted."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from pyarrow import fs

from gmd_ray.errors import DataError
from gmd_ray.images import walking
from gmd_ray.images.listing import list_folder, list_images, read_file
from gmd_ray.images.walking import BROKEN, LOOP, NO_FILE, NOT_PHOTOS, REPEATED_FILE, REPEATED_FOLDER


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Make two photos, one of them in a subfolder."""
    for name in ("a.png", "m/b.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(name.encode())
    return tmp_path / "photos"


def ids(folder: Path) -> list[str]:
    return [image.id for image in list_images(str(folder))]


@pytest.mark.parametrize(
    ("link", "target", "reason"),
    [
        ("latest", ".", LOOP),
        ("0loop", "..", LOOP),  # the folder above the root: all of its neighbours would come with it
        ("m/loop", "..", LOOP),
        ("m/self", ".", LOOP),
        ("m/far", "../..", LOOP),
        ("up", "/", LOOP),
        ("zz", "m", REPEATED_FOLDER),
        ("0", "m", REPEATED_FOLDER),  # sorts before what it leads to
        ("a2.png", "a.png", REPEATED_FILE),
        ("0.png", "m/b.png", REPEATED_FILE),
        ("gone", "nowhere", BROKEN),
        ("gone.png", "nowhere.png", BROKEN),
        ("self.png", "self.png", BROKEN),
    ],
)
def test_a_link_to_what_is_there_adds_nothing_and_is_told(
    photos: Path, link: str, target: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    (photos / link).symlink_to(target)
    (photos.parent / "private.png").write_bytes(b"")
    with caplog.at_level(logging.INFO):
        listing = list_folder(str(photos))
    assert [image.id for image in listing.images] == ["a.png", "m/b.png"]
    assert dict(listing.left_out) == {reason: 1}
    assert listing.summary() == f"{reason}: 1"
    assert f"1 files, links and folders left out ({reason}: 1)" in caplog.text


def test_absolute_links_and_links_through_links(photos: Path) -> None:
    (photos / "x").symlink_to(photos)
    (photos / "y").symlink_to(photos / "x" / "m")
    (photos / "z").symlink_to("y")
    listing = list_folder(str(photos))
    assert [image.id for image in listing.images] == ["a.png", "m/b.png"]
    assert dict(listing.left_out) == {LOOP: 1, REPEATED_FOLDER: 2}


def test_what_lies_outside_is_followed_once_under_the_link_that_sorts_first(photos: Path, tmp_path: Path) -> None:
    outside = tmp_path / "disk"
    (outside / "deep").mkdir(parents=True)
    (outside / "c.png").write_bytes(b"c")
    (outside / "deep" / "d.png").write_bytes(b"d")
    (outside / "deep" / "back").symlink_to("..")
    (photos / "n").symlink_to(outside)
    (photos / "b").symlink_to(outside)
    (photos / "k").symlink_to(outside / "deep")
    (photos / "c2.png").symlink_to(outside / "c.png")
    listing = list_folder(str(photos))
    # Links to files and folders of one level go by their names: `c2.png` comes after `b`, which holds the file.
    assert [image.id for image in listing.images] == ["a.png", "b/c.png", "b/deep/d.png", "m/b.png"]
    assert dict(listing.left_out) == {LOOP: 1, REPEATED_FOLDER: 2, REPEATED_FILE: 1}
    assert [read_file(image.uri) for image in listing.images] == [b"a.png", b"c", b"d", b"m/b.png"]
    again = {image.id: read_file(image.uri) for image in listing.repeats()}
    assert again == {"c2.png": b"c", "k/d.png": b"d", "n/c.png": b"c", "n/deep/d.png": b"d"}


def test_the_order_in_which_a_disk_lists_changes_nothing(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for link, target in (("0", "m"), ("y", "m"), ("x", "y"), ("0.png", "a.png"), ("z.png", "a.png"), ("m/up", "..")):
        (photos / link).symlink_to(target)
    first = list_folder(str(photos))
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: str) -> None:
            self._entries = sorted(scandir(path), key=lambda entry: entry.name, reverse=True)

        def __iter__(self) -> Iterator[os.DirEntry[str]]:
            return iter(self._entries)

        def __enter__(self) -> Backwards:
            return self

        def __exit__(self, *exc: object) -> None:
            pass

    monkeypatch.setattr(walking.os, "scandir", Backwards)
    second = list_folder(str(photos))
    assert (list(second.images), second.left_out, second.aliases) == (list(first.images), first.left_out, first.aliases)
    assert [image.id for image in first.images] == ["a.png", "m/b.png"]


def test_a_folder_that_is_a_link_itself_and_hard_links(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "here").symlink_to(photos)
    os.link(photos / "a.png", photos / "hard.png")
    assert ids(tmp_path / "here") == ["a.png", "hard.png", "m/b.png"]
    (photos / "loop").symlink_to(tmp_path / "here")
    assert dict(list_folder(str(tmp_path / "here")).left_out) == {LOOP: 1}


def test_two_folders_that_link_to_each_other(tmp_path: Path) -> None:
    for one, other in (("p", "q"), ("q", "p")):
        (tmp_path / one).mkdir()
        (tmp_path / one / f"{one}.png").write_bytes(b"")
        (tmp_path / one / other).symlink_to(tmp_path / other)
    listing = list_folder(str(tmp_path))
    assert [image.id for image in listing.images] == ["p/p.png", "q/q.png"]
    assert dict(listing.left_out) == {REPEATED_FOLDER: 2}
    listing = list_folder(str(tmp_path / "p"))  # q lies outside now, and leads back
    assert [image.id for image in listing.images] == ["p.png", "q/q.png"]
    assert dict(listing.left_out) == {LOOP: 1}


NAS = [
    "@eaDir/IMG_1.jpg/SYNOPHOTO_THUMB_XL.jpg",
    "2024/@eaDir/IMG_1.jpg/SYNOPHOTO_THUMB_M.jpg",
    "#recycle/old.jpg",
    "$RECYCLE.BIN/S-1-5-21/$R1.png",
    "System Volume Information/x.png",
    "sub/__MACOSX/x.png",
    "@Recycle/x.png",
    "@Recently-Snapshot/GMT+08/x.png",
    "#snapshot/x/IMG_1.jpg",
    "lost+found/#1.png",
    ".thumbnails/x.png",
    ".AppleDouble/x.png",
    ".Trash-1000/files/x.png",
    ".@__thumb/s100IMG_1.jpg",
]


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_thumbnails_and_recycle_bins_are_left_out_and_counted(where: str, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for name in [*NAS, "2024/IMG_1.jpg", "recycle/ok.png", "eaDir/ok.png"]:
        if where == "memory":
            memory.pipe(f"/nas/{name}", b"x")
        else:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"x")
    listing = list_folder("memory://nas" if where == "memory" else str(tmp_path))
    assert [image.id for image in listing.images] == ["2024/IMG_1.jpg", "eaDir/ok.png", "recycle/ok.png"]
    assert listing.left_out["hidden"] == 4
    assert listing.left_out["@eaDir"] == 2  # folders: what is in them is not walked
    assert listing.left_out.total() == len(NAS)  # type: ignore[attr-defined]
    assert all(name == name.lower() for name in NOT_PHOTOS)


def test_what_is_told_names_every_reason_and_the_common_endings(photos: Path) -> None:
    for i in range(9):
        for copy in range(9 - i):
            (photos / f"{copy}.x{i}").write_bytes(b"")
    (photos / "loop").symlink_to(".")
    (photos / "a.\x1b[2J").write_bytes(b"")
    summary = list_folder(str(photos)).summary()
    assert summary == f"{LOOP}: 1, .x0: 9, .x1: 8, .x2: 7, .x3: 6, .x4: 5, ..."
    for path in photos.glob("*.x*"):
        path.unlink()
    assert list_folder(str(photos)).summary() == f"{LOOP}: 1, .\\x1b[2J: 1"


def test_a_folder_of_thumbnails_can_be_asked_for_itself(tmp_path: Path) -> None:
    (tmp_path / "@eaDir").mkdir()
    (tmp_path / "@eaDir" / "x.png").write_bytes(b"")
    assert ids(tmp_path / "@eaDir") == ["x.png"]


def test_what_is_no_file_is_left_out(photos: Path) -> None:
    os.mkfifo(photos / "pipe.png")  # reading one would wait for ever
    (photos / "linked.png").symlink_to("pipe.png")
    assert dict(list_folder(str(photos)).left_out) == {NO_FILE: 2}


def test_size_and_time_are_those_of_the_file_behind_a_link(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out.png").write_bytes(b"12345")
    os.utime(tmp_path / "out.png", ns=(0, 1_700_000_000_123_456_789))
    (photos / "link.png").symlink_to(tmp_path / "out.png")
    [image] = [image for image in list_images(str(photos)) if image.id == "link.png"]
    assert image.size == 5
    assert image.modified is not None
    assert image.modified.timestamp() == 1_700_000_000.123456


def test_a_folder_that_may_not_be_read_is_one_line(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuses(path: str) -> object:  # root, as which tests may run, may read all
        if path.endswith("/m"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(walking.os, "scandir", refuses)
    with pytest.raises(DataError, match=rf"^{photos}: cannot be listed: {photos}/m: Permission denied$"):
        list_images(str(photos))


def test_files_and_folders_that_go_while_they_are_listed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def gone(path: str) -> object:
        if path.endswith("/m"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return scandir(path)

    monkeypatch.setattr(walking.os, "scandir", gone)
    assert ids(photos) == ["a.png"]


def test_one_stat_for_each_file_and_none_for_what_is_left_out(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of a million files on a network disk must not cost more calls than the scan itself."""
    for i in range(50):
        (photos / f"{i}.png").write_bytes(b"")
        (photos / f"{i}.txt").write_bytes(b"")
    asked: list[str] = []
    real = os.stat
    monkeypatch.setattr(walking.os, "stat", lambda path: asked.append(path) or real(path))
    monkeypatch.setattr(walking.os.path, "realpath", lambda path: asked.append(path) or path)
    assert len(ids(photos)) == 52
    depth = len(photos.parts)
    assert len(asked) <= depth + 3  # the folder and those above it; entries have theirs from the scan


class Hostile(fs.FileSystemHandler):
    """A server that lists arbitrary paths."""

    def __init__(self, *paths: str) -> None:
        self.paths = paths

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return [fs.FileInfo(path, fs.FileType.Directory) for path in paths]

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        return [fs.FileInfo(path, fs.FileType.File, size=1) for path in self.paths]

    def _never(self, *given: object) -> None:
        raise NotImplementedError

    def get_type_name(self) -> str:
        return "hostile"

    def normalize_path(self, path: str) -> str:
        return path

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = move = copy_file = _never  # type: ignore[assignment]
    open_input_stream = open_input_file = open_output_stream = open_append_stream = _never  # type: ignore[assignment]


@pytest.mark.parametrize("path", ["/ftp/../../x.png", "/ftp/a/../../x.png", "/ftp/a//x.png", "/etc/x.png", "/ftpx.png"])
def test_a_server_that_lists_what_is_not_below_the_folder_is_refused(path: str) -> None:
    filesystem = fs.PyFileSystem(Hostile("/ftp/a.png", path))
    with pytest.raises(DataError, match=r"not (a path )?below it"):
        walking.walk(filesystem, "/ftp", "ftp://host/ftp", lambda name: "")
    assert list(walking.walk(fs.PyFileSystem(Hostile("/ftp/a.png")), "/ftp", "x", lambda name: "").files) == ["a.png"]


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError(111, "refused"), TimeoutError("slow"), RuntimeError("403\nForbidden"), KeyError("x")],
)
def test_a_driver_that_fails_while_listing_is_one_line(error: Exception) -> None:
    class Fails(Hostile):
        def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
            raise error

    with pytest.raises(DataError, match=r"^ftp://host/x: cannot be listed: ") as caught:
        walking.walk(fs.PyFileSystem(Fails()), "/x", "ftp://host/x", lambda name: "")
    assert "\n" not in str(caught.value)


def test_shared_input_link_loop() -> None:
    folder = Path(__file__).parents[2].parent / "shared" / "inputs" / "link_loop"
    if not folder.is_dir() or not (folder / "latest").is_symlink():
        pytest.skip("shared inputs are not here")
    assert ids(folder) == ["a.png"]
