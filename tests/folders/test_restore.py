"""`gmd-ray restore`: a folder of every kind of photo, restored as its owner expects."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from gmd_ray.cli import main
from gmd_ray.config import Config
from gmd_ray.errors import ConfigError, ExitCode
from gmd_ray.folders.restore import restore_folder
from gmd_ray.images.files.photo import FORMATS
from gmd_ray.images.results import Naming, name_results
from gmd_ray.ray_utils.pools import actor_pool
from gmd_ray.students.latent.presets import new_latent_student
from tests.students.networks import save_network, student_of


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "models" / "dncnn.pth"
    path.parent.mkdir()
    save_network(path, "dncnn")
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Make eleven files: nine kinds of photos, and two broken ones."""
    root = tmp_path / "photos"
    (root / "deep er").mkdir(parents=True)
    y, x = np.mgrid[0:24, 0:40].astype(np.float32)
    rgb = np.stack([x * 6, y * 10, 255 - x * 3 - y * 4], -1).round().astype(np.uint8)
    image = Image.fromarray(rgb)
    image.save(root / "plain.png")
    image.save(root / "deep er" / "photo.JPG", quality=95)
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(root / "turned.jpg", exif=turned)
    Image.fromarray(np.dstack([rgb, (x * 6).astype(np.uint8)])).save(root / "see through.png")
    image.save(root / "web.webp", lossless=True)
    Image.fromarray(np.dstack([rgb, np.full((24, 40), 255, np.uint8)])).save(root / "opaque.png")
    cv2.imwrite(str(root / "fine.png"), (rgb.astype(np.uint16) * 257 + 100))
    cv2.imwrite(str(root / "fine.tif"), (rgb.astype(np.uint16) * 257 + 100))
    image.convert("L").save(root / "gray.png")
    (root / "deep er" / "torn.jpg").write_bytes((root / "turned.jpg").read_bytes()[:400])
    (root / "empty.png").write_bytes(b"")
    (root / "notes.txt").write_text("no image")
    return root


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(np.float32)


def restored_by(model: Path, image: np.ndarray) -> np.ndarray:
    """Restore an (H, W, 3) array in [0, 1] with the student."""
    tensor = torch.from_numpy(np.ascontiguousarray(image)).float().permute(2, 0, 1)[None]
    return student_of(model).restore(tensor)[0].permute(1, 2, 0).numpy()


def check_folder(photos: Path, out: Path, model: Path) -> None:
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("[!.]*") if path.is_file())
    assert files == [
        "deep er/photo_r.JPG",
        "fine_r.png",
        "fine_r.tif",
        "gray_r.png",
        "opaque_r.png",
        "plain_r.png",
        "see through_r.png",
        "turned_r.jpg",
        "web_r.webp",
    ]
    plain = restored_by(model, pixels(photos / "plain.png") / 255)
    assert np.array_equal(pixels(out / "plain_r.png"), np.rint(plain * 255))
    with Image.open(out / "turned_r.jpg") as image:
        assert image.size == (24, 40)
        assert image.getexif()[0x0112] == 1
    see_through = pixels(out / "see through_r.png")
    alpha = restored_by(model, np.repeat(pixels(photos / "see through.png")[..., 3:] / 255, 3, 2)).mean(2)
    assert np.array_equal(see_through[..., :3], np.rint(plain * 255))
    assert np.abs(see_through[..., 3] - np.rint(alpha * 255)).max() <= 1
    assert (pixels(out / "opaque_r.png")[..., 3] == 255).all()
    deep = cv2.imread(str(photos / "fine.png"), cv2.IMREAD_UNCHANGED)[..., ::-1]
    for name in ("fine_r.png", "fine_r.tif"):
        result = cv2.imread(str(out / name), cv2.IMREAD_UNCHANGED)[..., ::-1]
        assert result.dtype == np.uint16
        expected = restored_by(model, deep.astype(np.float32) / 65535) * 65535
        assert np.abs(result - expected).max() <= 1
    with Image.open(out / "gray_r.png") as image:
        assert image.mode == "L"


def test_a_folder_with_broken_files(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["restore", "-i", str(photos), "-o", str(out), "-m", str(model), "--suffix", "_r"]) == ExitCode.DATA
    said = capsys.readouterr()
    assert said.out == f"9 of 11 images restored to {out}\n"
    assert "gmd-ray: deep er/torn.jpg: damaged" in said.err
    assert said.err.splitlines()[-1] == "gmd-ray: empty.png: empty file"
    check_folder(photos, out, model)


@pytest.mark.slow
def test_on_a_cluster(
    photos: Path, model: Path, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative folder is the caller's, and the pool is as set."""
    pools = []
    monkeypatch.setattr("gmd_ray.ray_utils.pools.actor_pool", lambda pool: pools.append(pool) or actor_pool(pool))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # Ray's workers stay where the session began
    cfg = Config()
    cfg.student.path, cfg.student.device, cfg.student.pool.max = str(model), "cpu", 2
    done = restore_folder(cfg, str(photos), "out", suffix="_r", on_ray=True)
    assert (done.count, list(done.failed)) == (9, ["deep er/torn.jpg", "empty.png"])
    check_folder(photos, tmp_path / "here" / "out", model)
    assert pools == [cfg.student.pool]
    cfg.student.path = str(photos / "plain.png")
    with pytest.raises(ValueError, match="unknown ending"):
        restore_folder(cfg, str(photos), "out", on_ray=True)


def test_tiles_endings_and_single_files(photos: Path, tmp_path: Path) -> None:
    model = tmp_path / "x2.pth"
    save_network(model, "esrgan_old")
    one = ["restore", "-i", str(photos / "plain.png"), "-m", str(model), "student.tile_overlap=8"]
    assert main([*one, "-o", str(tmp_path / "whole")]) == 0
    assert main([*one, "-o", str(tmp_path / "tiled"), "-t", "16", "--ext", "tif"]) == 0
    whole, tiled = (pixels(tmp_path / name) for name in ("whole/plain.png", "tiled/plain.tif"))
    assert whole.shape == tiled.shape == (48, 80, 3)
    assert not np.array_equal(whole, tiled)
    assert np.abs(whole - tiled).mean() < 2


def test_a_sampled_photo_is_the_same_each_time_and_wherever_it_lies(photos: Path, tmp_path: Path) -> None:
    new_latent_student("ldm-tiny", tmp_path / "ldm")
    cfg = Config()
    cfg.student.path, cfg.student.device, cfg.student.sampling_steps = str(tmp_path / "ldm"), "cpu", 1
    (photos / "empty.png").unlink()
    for out in ("one", "two"):
        restore_folder(cfg, str(photos), str(tmp_path / out))
    first, second = ((tmp_path / out / "plain.png").read_bytes() for out in ("one", "two"))
    assert first == second


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"out": "photos"}, "would replace their sources"),
        ({"out": "photos/restored"}, "lies within"),
        ({"out": "o", "ext": "gif"}, "known: auto, png"),
        ({"out": "o", "ext": "png"}, r"fine\.png, fine\.tif would all be written to"),
    ],
)
def test_results_never_replace_sources_or_each_other(
    photos: Path, model: Path, tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    cfg = Config()
    cfg.student.path = str(model)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ConfigError, match=message):
        restore_folder(cfg, str(photos), str(tmp_path / settings.pop("out")), **settings)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_auto_is_each_photos_own_kind_where_it_can_be_written() -> None:
    names = {"a.JPG": "a.JPG", "b.jfif": "b.jfif", "c.avif": "c.png", "d.jp2": "d.png", "e.gif": "e.png"}
    names |= {"f.pnm": "f.png", "g.heic": "g.png", "h.nef": "h.png"}
    assert name_results([*names], Naming()) == names
    assert all(PurePosixPath(target).suffix.lower() in FORMATS for target in names.values())
