"""Test images that are also learned from, by their bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gmd_ray.images.headers import ImageHeader
from gmd_ray.images.listing import ImageFile
from gmd_ray.planning import Preflight
from gmd_ray.planning.data_sets import Side
from gmd_ray.planning.overlap import same_files
from tests.planning.conftest import config


def side(folder: Path, files: dict[str, bytes]) -> Side:
    folder.mkdir(parents=True)
    found = []
    for name, data in files.items():
        (folder / name).write_bytes(data)
        found.append(ImageFile(name, str(folder / name)))
    headers = tuple(ImageHeader(None, bytes=len(data)) for data in files.values())
    return Side("key", str(folder), tuple(found), headers)


def test_bytes_decide_not_names_sizes_or_ends(tmp_path: Path) -> None:
    long = bytes(range(256)) * 200
    ours = side(
        tmp_path / "a",
        {"x": b"same", "y": b"1234", "long": long, "inside": long[:20000] + b"?" + long[20001:], "z": b"alone here"},
    )
    theirs = side(tmp_path / "b", {"p": b"same", "y": b"4321", "long2": long, "w": long[:20000] + b"!" + long[20001:]})
    assert same_files(ours, theirs) == ["long2 is long", "p is x"]
    assert same_files(theirs, ours) == ["long is long2", "x is p"]
    assert same_files(ours, ours) == ["inside", "long", "x", "y", "z"]


def test_only_files_of_one_size_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def note(uri: str, size: int) -> str:
        opened.append(Path(uri).name)
        return uri

    monkeypatch.setattr("gmd_ray.planning.overlap._sampled", note)
    ours = side(tmp_path / "a", {f"{i}": b"x" * i for i in range(50)})
    theirs = side(tmp_path / "b", {f"t{i}": b"y" * i for i in range(49, 99)})
    assert same_files(ours, theirs) == []
    assert sorted(opened) == ["49", "t49"]


@pytest.fixture
def shared_photo(tmp_path: Path) -> Path:
    """A target photo that lies among the test images under another name; beside no truth."""
    folder = tmp_path / "test photos"
    folder.mkdir()
    config(tmp_path)
    shutil.copy(tmp_path / "photos" / "2.jpg", folder / "held out.jpg")
    shutil.copy(tmp_path / "target_test_lq" / "0.png", folder / "other.png")
    return folder


def test_target_photos_among_the_test_are_refused_where_it_is_measured(shared_photo: Path, tmp_path: Path) -> None:
    more = (f"evaluation.target_lq={shared_photo}", "evaluation.target_hq=null")
    for verb in ("adapt", "evaluate", "plan"):
        [error] = [f for f in Preflight(config(tmp_path, *more), verb).run().of("error") if f.code == "overlap"]
        assert error.key == "evaluation.target_lq"
        assert "1 of its 2 images are photos of target.path (held out.jpg is 2.jpg)" in error.message
        assert "evaluation.allow_overlap=true" in error.message
    found = Preflight(config(tmp_path, *more), "generate").run()
    assert found.ok, "told before the stream, which does not measure"
    assert [finding.code for finding in found.of("warning")] == ["overlap"]


def test_whoever_measures_on_the_adapted_photos_says_so(shared_photo: Path, tmp_path: Path) -> None:
    more = (f"evaluation.target_lq={tmp_path / 'photos'}", "evaluation.target_hq=null")
    assert "4 of its 4 images" in next(
        f.message for f in Preflight(config(tmp_path, *more), "adapt").run().of("error") if f.code == "overlap"
    )
    found = Preflight(config(tmp_path, *more, "evaluation.allow_overlap=true"), "adapt").run()
    assert found.ok
    assert "overlap" in [finding.code for finding in found.of("warning")]


def test_source_pairs_among_the_source_test_are_warned_of(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    shutil.copy(tmp_path / "source_hq" / "3.png", tmp_path / "source_test_hq" / "1.png")
    found = Preflight(cfg, "adapt").run()
    assert found.ok
    [warning] = found.of("warning")
    assert "evaluation.source_hq: 1 of its 2 images are among source.hq (1.png is 3.png)" in warning.message
