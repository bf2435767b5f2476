"""The photo demo's world: seeded, one photograph in one role, each independent of the others, and small enough."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import gmd_ray
from gmd_ray.demo.photos import collect
from gmd_ray.demo.photos.prepare import PHOTOGRAPHS, PhotoWorldSize, prepare, shake
from gmd_ray.errors import DataError
from gmd_ray.images.files.decode import decode_8bit

SMALL = PhotoWorldSize(seed=1, shots=2, target=4, severe=1, target_test=2, source=3, source_test=2)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of the demo's photographs a role, cut to 400 pixels at most."""
    folder = tmp_path_factory.mktemp("photographs")
    for role in collect.ROLES:
        for file in sorted((PHOTOGRAPHS / role).glob("*.jpg"))[:2]:
            (folder / role).mkdir(exist_ok=True)
            cv2.imwrite(str(folder / role / file.name), cv2.imread(str(file))[:260, :280])
    return folder


@pytest.fixture(scope="module")
def world(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    prepare(root, SMALL, photographs)
    return root


def pictures(world: Path) -> dict[str, bytes]:
    return {file.relative_to(world).as_posix(): file.read_bytes() for file in world.rglob("*.png")}


def read(file: Path) -> np.ndarray:
    return decode_8bit(file.read_bytes()).astype(float)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / ((a - b) ** 2).mean()))


def test_it_writes_its_folders_once(world: Path, photographs: Path) -> None:
    counts = {folder.name: len(list(folder.iterdir())) for folder in world.iterdir() if folder.is_dir()}
    assert counts == {
        "target_lq": 10, "target_hq": 10, "target_test_lq": 4, "target_test_hq": 4, "source_hq": 6, "source_test_hq": 4,
    }  # fmt: skip
    stamp = (world / "target_lq").stat().st_mtime_ns
    prepare(world, SMALL, photographs)
    assert (world / "target_lq").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="other settings"):
        prepare(world, PhotoWorldSize(seed=2), photographs)


def test_pairs_show_the_same_place(world: Path) -> None:
    """A picture is nearer to its own truth than to any other, and the severe ones are far from it."""
    lq, hq = sorted((world / "target_lq").iterdir()), sorted((world / "target_hq").iterdir())
    assert [f.name for f in lq] == [f.name for f in hq]
    for file in lq:
        if "severe" in file.stem:
            assert psnr(read(file), read(world / "target_hq" / file.name)) < 25
            continue
        scores = {other.name: psnr(read(file), read(other)) for other in hq if "severe" not in other.stem}
        assert max(scores, key=lambda name: scores[name]) == file.name
        assert scores[file.name] > 27


def test_an_image_depends_on_nothing_but_its_own_photograph(world: Path, photographs: Path, tmp_path: Path) -> None:
    """Without the other photographs the images of one are the same, bit by bit; with another seed they are not."""
    one = tmp_path / "photographs"
    for role in collect.ROLES:
        last = sorted((photographs / role).iterdir())[-1]
        (one / role).mkdir(parents=True)
        shutil.copy(last, one / role)
    prepare(tmp_path / "world", SMALL, one)
    alone, both = pictures(tmp_path / "world"), pictures(world)
    assert len(alone) == len(both) / 2
    assert all(both[name] == image for name, image in alone.items())
    prepare(tmp_path / "other", replace(SMALL, seed=2), one)
    assert all(alone[name] != image for name, image in pictures(tmp_path / "other").items())


def test_shaking_keeps_the_light_and_takes_the_detail() -> None:
    x = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    shaken = shake(x, np.random.default_rng(1))
    assert shaken.mean() == pytest.approx(x.mean(), rel=0.05)
    assert shaken.std() < 0.2 * x.std()


def test_no_photograph_has_two_roles() -> None:
    names = [photo.name for photo in collect.LIST]
    assert len(names) == len(set(names))
    assert len({(photo.package, photo.path) for photo in collect.LIST}) == len(names)
    shipped = {file.relative_to(PHOTOGRAPHS).as_posix() for file in PHOTOGRAPHS.rglob("*.jpg")}
    assert shipped == {f"{photo.role}/{photo.name}.jpg" for photo in collect.LIST}
    assert {photo.role for photo in collect.LIST} == set(collect.ROLES)
    thumbnails = {file: decode_8bit(file.read_bytes())[::16, ::16].tobytes() for file in PHOTOGRAPHS.rglob("*.jpg")}
    assert len(set(thumbnails.values())) == len(thumbnails)


def test_every_photograph_is_free_and_attributed() -> None:
    page = (PHOTOGRAPHS / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert page == collect.attribution()
    for photo in collect.LIST:
        assert photo.licence in ("CC0", "public domain", "CC-BY-2.0", "CC-BY-4.0")
        assert re.search(rf"{photo.role}/{photo.name}\.jpg \| .*{re.escape(photo.licence)}", page)
    photo = decode_8bit((PHOTOGRAPHS / "source" / "wine.jpg").read_bytes())
    assert max(photo.shape) == next(p.long_side for p in collect.LIST if p.name == "wine")


def test_shrinking_averages_areas_and_drops_metadata() -> None:
    x = np.kron(np.random.default_rng(0).integers(60, 200, (8, 12, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
    small = decode_8bit(collect.shrink(x, 96))
    assert small.shape == (64, 96, 3)
    assert np.abs(small.astype(int) - x[::2, ::2]).mean() < 4
    assert b"Exif" not in collect.shrink(x, 96)


def test_the_demos_fit_in_45_megabytes() -> None:
    folder = Path(gmd_ray.__file__).parent / "demo"
    files = [file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert sum(file.stat().st_size for file in files) <= 45e6


def test_importing_reads_no_weights() -> None:
    """Not one file of `weights/` or `photographs/` is opened by importing the package and its demos."""
    code = (
        "import sys\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == 'open' else None)\n"
        "import gmd_ray.cli, gmd_ray.demo.train_models\n"
        "import gmd_ray.demo.photos.prepare, gmd_ray.demo.toy.prepare\n"
        "assert any(name.endswith('.pyc') or name.endswith('.py') for name in opened), 'the hook sees nothing'\n"
        "print([name for name in opened if '/weights/' in name or '/photographs/' in name])\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
