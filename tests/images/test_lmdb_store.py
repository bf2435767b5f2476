"""LMDB stores in BasicSR's format: listed by meta_info.txt, read by key, paired like folders."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gmd_ray.cli import main
from gmd_ray.errors import DataError, ExitCode
from gmd_ray.images import lmdb_store
from gmd_ray.images.files.encode import encode_png
from gmd_ray.images.listing import list_images, read_file
from gmd_ray.images.sets.pairs import list_pairs, load_pair
from gmd_ray.images.sizes import image_sizes
from tests.images.test_safe_paths import HOSTILE

lmdb = pytest.importorskip("lmdb")


def picture(seed: int, size: int) -> bytes:
    return encode_png(np.random.default_rng(seed).random((size, size, 3), dtype=np.float32))


def store(folder: Path, images: dict[str, bytes], size: int) -> str:
    """Make a store with the layout of BasicSR's make_lmdb_from_imgs."""
    environment = lmdb.open(str(folder), map_size=1 << 24)
    with environment.begin(write=True) as transaction:
        for name, data in images.items():
            transaction.put(name.rpartition(".")[0].encode(), data)
    environment.close()
    lines = [f"{name} ({size},{size},3) 1" for name in images]
    (folder / "meta_info.txt").write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.fixture
def stores(tmp_path: Path) -> tuple[str, str]:
    names = ["000/00000001.png", "000/00000000.png", "v1.5.png"]
    hq = store(tmp_path / "gt.lmdb", {name: picture(i, 16) for i, name in enumerate(names)}, 16)
    lq = store(tmp_path / "lq.lmdb", {name: picture(9 + i, 8) for i, name in enumerate(names)}, 8)
    return hq, lq


def test_pairs_of_two_stores(stores: tuple[str, str]) -> None:
    pairs = list_pairs(*stores)
    assert [pair.id for pair in pairs] == ["000/00000000.png", "000/00000001.png", "v1.5.png"]
    for pair, i in zip(pairs, (1, 0, 2), strict=True):
        assert read_file(pair.hq) == picture(i, 16)
        assert read_file(pair.lq or "") == picture(9 + i, 8)
        lq, hq = load_pair(pair, None, False, ())
        assert (lq.shape, hq.shape) == ((8, 8, 3), (16, 16, 3))
    assert [image.id for image in list_images(stores[0] + "/", 1)] == ["000/00000000.png"]


def test_sizes_of_a_store(stores: tuple[str, str]) -> None:
    meta = Path(stores[1], "meta_info.txt")
    meta.write_text(meta.read_text() + "gone.png (8,8,3) 1\n")
    images = list_images(stores[1])
    assert [image.id for image in images] == ["000/00000000.png", "000/00000001.png", "gone.png", "v1.5.png"]
    assert image_sizes(images, max_pixels=64) == [(8, 8), (8, 8), None, (8, 8)]
    assert image_sizes(images, max_pixels=63) == [None] * 4


def test_reading_leaves_no_lock_and_works_in_threads_and_processes(stores: tuple[str, str]) -> None:
    root = Path(stores[0])
    (root / "lock.mdb").unlink()
    uri = list_images(stores[0])[0].uri
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(read_file, [uri] * 40)) == {picture(1, 16)}
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(1) as processes:
            assert processes.apply(read_file, (uri,)) == picture(1, 16)
    assert not (root / "lock.mdb").exists()


def test_a_store_and_its_list_that_disagree(stores: tuple[str, str], tmp_path: Path) -> None:
    meta = Path(stores[0], "meta_info.txt")
    text = meta.read_text()
    meta.write_text(text + "gone.png (8,8,3) 1\n")
    with pytest.raises(DataError, match="no image 'gone'"):
        read_file(f"{stores[0]}/gone.png")
    meta.write_text(text + "what is this\n")
    with pytest.raises(DataError, match=r"'what is this' is not `name\.png"):
        list_images(stores[0])
    meta.unlink()
    with pytest.raises(DataError, match=r"meta_info\.txt: no such file"):
        list_images(stores[0])
    torn = tmp_path / "torn.lmdb"
    torn.mkdir()
    (torn / "data.mdb").write_bytes(b"no pages")
    (torn / "meta_info.txt").write_text("a.png (8,8,3) 1\n")
    with pytest.raises(DataError, match="cannot be opened as LMDB"):
        read_file(list_images(str(torn))[0].uri)


def test_without_the_package_one_line_says_what_to_install(
    stores: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lmdb_store._environment.cache_clear()
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(DataError, match=r"pip install 'gmd_ray\[lmdb\]'"):
        read_file(list_images(stores[0])[0].uri)


def test_a_folder_of_images_may_end_in_lmdb(tmp_path: Path) -> None:
    (tmp_path / "photos.lmdb").mkdir()
    (tmp_path / "photos.lmdb" / "a.png").write_bytes(picture(0, 8))
    images = list_images(str(tmp_path / "photos.lmdb"))
    assert read_file(images[0].uri) == picture(0, 8)


def test_names_with_spaces_brackets_and_dots(tmp_path: Path) -> None:
    names = ["photo.png", "photo (1).png", "a b/c (2,3) (1).png", "v1.5.png", "x.lmdb/y.png", "é\u2028.png"]
    folder = store(tmp_path / "s.lmdb", {name: picture(i, 8) for i, name in enumerate(names)}, 8)
    images = list_images(folder)
    assert [image.id for image in images] == sorted(names)
    for image in images:
        assert read_file(image.uri) == picture(names.index(image.id), 8)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_blank_lines_and_windows_line_ends(end: str, tmp_path: Path) -> None:
    folder = Path(store(tmp_path / "s.lmdb", {name: picture(0, 8) for name in ("a.png", "b.png")}, 8))
    lines = ["a.png (8,8,3) 1", "", "   ", "b.png (8, 8, 3) 1  ", ""]
    (folder / "meta_info.txt").write_bytes(b"\xef\xbb\xbf" + end.join(lines).encode())
    images = list_images(str(folder))
    assert [image.id for image in images] == ["a.png", "b.png"]
    assert read_file(images[0].uri) == picture(0, 8)


@pytest.mark.parametrize("name", [name for name in HOSTILE if name and not name.endswith((".", "/"))])
def test_a_name_that_would_leave_an_output_folder_is_refused(name: str, tmp_path: Path) -> None:
    folder = Path(store(tmp_path / "s.lmdb", {"a.png": picture(0, 8)}, 8))
    line = f"a.png (8,8,3) 1\n{name}{'' if name.endswith('.png') else '.png'} (8,8,3) 1\n"
    (folder / "meta_info.txt").write_bytes(line.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match=r"meta_info\.txt.*(not a path below its folder|UTF-8|is not `name)"):
        list_images(str(folder))


def test_hostile_names_write_nothing_outside(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    folder = Path(store(tmp_path / "in" / "s.lmdb", {"a.png": picture(0, 64), "../../x": picture(0, 64)}, 64))
    for hostile in ("../../x.png", f"{tmp_path}/up.png"):
        (folder / "meta_info.txt").write_text(f"a.png (64,64,3) 1\n{hostile} (64,64,3) 1\n")
        assert (
            main(["degrade", "-i", str(folder), "-o", str(tmp_path / "o" / "u" / "t"), "--preset", "bicubic"])
            == ExitCode.DATA
        )
    assert [path for path in tmp_path.rglob("*.png") if path.is_file()] == []


def test_names_that_stand_there_twice(tmp_path: Path) -> None:
    folder = Path(store(tmp_path / "s.lmdb", {"a.png": picture(0, 8)}, 8))
    for again in ("a.png", "a.jpg"):  # the key is the name without its ending
        (folder / "meta_info.txt").write_text(f"a.png (8,8,3) 1\n{again} (8,8,3) 1\n")
        with pytest.raises(DataError, match=rf"'a\.png' and '{again}' are one image of the store"):
            list_images(str(folder))


def test_lines_that_are_not_of_the_form(tmp_path: Path) -> None:
    folder = Path(store(tmp_path / "s.lmdb", {"a.png": picture(0, 8)}, 8))
    for line in ("photo (1).png", "a.png", "a (8,8,3) 1", "a.png (8,8,3) x", " (8,8,3) 1", "a.png (8) 1"):
        (folder / "meta_info.txt").write_text(f"{line}\n")
        with pytest.raises(DataError, match="is not `name"):
            list_images(str(folder))
    (folder / "meta_info.txt").write_bytes("a.png (8,8,3) 1\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"meta_info\.txt: cannot be read as UTF-8"):
        list_images(str(folder))


def test_shared_input_lmdb() -> None:
    folder = Path(__file__).parents[2].parent / "shared" / "inputs" / "lmdb" / "copies.lmdb"
    if not folder.is_dir():
        pytest.skip("shared inputs are not here")
    assert [image.id for image in list_images(str(folder))] == ["photo (1).png", "photo.png"]
    assert all(read_file(image.uri) for image in list_images(str(folder)))
