"""Sizes and truncation, found in headers and last bytes, against the results of decoding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmd_ray.errors import DataError
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.headers import read_headers, settle_doubts
from gmd_ray.images.listing import ImageFile, list_images

ENDINGS = ["png", "jpg", "bmp", "tif", "webp", "gif", "avif", "jp2", "ppm", "pgm", "pbm"]
_MODES = {"pgm": "L", "pbm": "1"}


def noise(height: int = 120, width: int = 160) -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height))


def write(path: Path, **options: object) -> ImageFile:
    noise().convert(_MODES.get(path.suffix[1:], "RGB")).save(path, **options)
    return ImageFile(path.name, str(path))


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp", "avif"])
def test_sizes_are_upright_whatever_the_exif_block_says(ending: str, tmp_path: Path) -> None:
    files = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files.append(write(tmp_path / f"{orientation}.{ending}", exif=exif))
    headers = read_headers(files)
    assert [header.size for header in headers] == [decode_image(Path(f.uri).read_bytes()).shape[:2] for f in files]
    assert {header.size for header in headers} == {(120, 160), (160, 120)}
    assert not any(header.doubtful for header in headers)


@pytest.mark.parametrize(
    ("ending", "options"),
    [*((ending, {}) for ending in ENDINGS), *(("tif", {"compression": kind}) for kind in ("tiff_lzw", "jpeg"))],
)
def test_a_file_cut_anywhere_is_told_where_decoding_fails(ending: str, options: dict[str, str], tmp_path: Path) -> None:
    whole = Path(write(tmp_path / f"whole.{ending}", **options).uri).read_bytes()
    size = len(whole)
    for cut in (0, 1, 2, 4, 8, 12, 13, 40, size // 3, size // 2, size - 40, size - 3, size):
        path = tmp_path / f"cut{cut}.{ending}"
        path.write_bytes(whole[: size - cut])
        file = ImageFile(path.name, str(path))
        try:
            decoded: tuple[int, ...] | None = decode_image(path.read_bytes()).shape[:2]
        except DataError:
            decoded = None
        [header] = settle_doubts([file], read_headers([file]))
        assert header.size == decoded, cut
        assert bool(header.reason) == (decoded is None)
        assert not header.doubtful
    assert read_headers([ImageFile("w", str(tmp_path / f"cut0.{ending}"))])[0].doubtful is False


def test_whole_files_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmd_ray.images.headers.decode_image", lambda *_, **__: pytest.fail("decoded"))
    files = [write(tmp_path / f"a.{ending}") for ending in ENDINGS]
    with open(tmp_path / "a.png", "ab") as file:
        file.write(b"a note of another program")
    with open(tmp_path / "a.jpg", "ab") as file:
        file.write(b"\0" * 512)  # as some cameras fill up
    headers = settle_doubts(files, read_headers(files))
    assert {header.size for header in headers} == {(120, 160)}
    assert [header.bytes for header in headers] == [Path(file.uri).stat().st_size for file in files]


def test_a_trailer_behind_a_jpeg_is_no_damage(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jpg")
    with open(file.uri, "ab") as stream:
        stream.write(b"SEFT and what else a telephone adds")
    [header] = read_headers([file])
    assert header.doubtful
    assert settle_doubts([file], [header])[0].size == (120, 160)


def test_doubts_beyond_the_limit_follow_those_that_were_settled(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{i}.jpg") for i in range(4)]
    for file in files:
        Path(file.uri).write_bytes(Path(file.uri).read_bytes() + b"trailer")
    headers = read_headers(files)
    assert [h.doubtful for h in settle_doubts(files, headers, limit=2)] == [False] * 4
    Path(files[1].uri).write_bytes(Path(files[1].uri).read_bytes()[:900])
    settled = settle_doubts(files, read_headers(files), limit=2)
    assert [(h.size is None, h.doubtful) for h in settled] == [
        (False, False),
        (True, False),
        (False, True),
        (False, True),
    ]


def test_what_is_refused_says_why(tmp_path: Path) -> None:
    write(tmp_path / "large.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "raw.nef").write_text("raw")
    files = [
        ImageFile(name, str(tmp_path / name)) for name in ("large.png", "empty.png", "text.jpg", "raw.nef", "none.png")
    ]
    headers = read_headers(files, max_pixels=1000)
    assert [header.size for header in headers] == [None] * 5
    for header, words in zip(
        headers, ("too large: 160x120", "empty file", "not an image", "a Nikon raw file", "none.png"), strict=True
    ):
        assert words in header.reason
    Image.fromarray(np.full((8, 8), 9e9, np.float32)).save(tmp_path / "float.tif")
    floats = [ImageFile("float.tif", str(tmp_path / "float.tif"))]
    [header] = read_headers(floats)
    assert header.doubtful, "whether its samples are read is seen where they are decoded"


def test_other_filesystems(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    data = Path(write(tmp_path / "a.png").uri).read_bytes()
    memory.pipe("/headers/a.png", data)
    memory.pipe("/headers/b.png", data[:300])
    files = list_images("memory://headers")
    headers = settle_doubts(files, read_headers(files))
    assert [(header.size, header.bytes) for header in headers] == [((120, 160), len(data)), (None, 300)]
    memory.rm("/headers", recursive=True)
