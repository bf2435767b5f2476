"""Errors and messages of `gmd-ray restore` before the first photo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmd_ray.cli import main
from tests.students.networks import save_network

ROOT = Path(__file__).resolve().parents[2]
INPUTS = ROOT.parent / "shared" / "inputs"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a photo, a model x1 and a model x4."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)).save("photos/a.png")
    save_network(Path("model.pth"), "dncnn")
    save_network(Path("x4.pth"), "esrgan_basicsr")
    return tmp_path


def tree(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*")}


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["-i", "", "-o", "out", "-m", "model.pth"], 2, "-i is empty"),
        (["-i", "photos", "-o", "", "-m", "model.pth"], 2, "-o is empty"),
        (["-i", "photos", "-o", " ", "-m", "model.pth"], 2, "-o is empty"),
        (["-i", "photos", "-o", "out", "-m", ""], 2, "-m is empty"),
        (["-i", "photos", "-o", "out", "-m", "model.pth", "--suffix", "/x"], 2, "--suffix /x"),
        (["-i", "photos", "-o", "out", "-m", "model.pth", "--suffix", "../"], 2, "--suffix ../"),
        (["-i", "photos", "-o", "out", "-m", "model.pth", "--ext", "../x"], 2, "--ext ../x: known: auto, png"),
        (["-i", "photos", "-o", "photos/out", "-m", "model.pth"], 2, "lies within"),
        (["-i", "photos", "-o", "photos", "-m", "model.pth"], 2, "would replace their sources"),
        (["-i", "photos/a.png", "-o", "photos", "-m", "model.pth"], 2, "would replace their sources"),
        (["-i", "photos", "-o", "link", "-m", "model.pth"], 2, "would replace their sources"),
        (["-i", "photos", "-o", "{here}/photos", "-m", "model.pth"], 2, "would replace their sources"),
        (["-i", "photos", "-o", "file://{here}/photos", "-m", "model.pth"], 2, "would replace their sources"),
        (["-i", "photos", "-o", "link", "-m", "model.pth", "--suffix", "_r"], 2, "lies within"),
        (["-i", "photos/deep", "-o", "photos", "-m", "model.pth", "--suffix", "x"], 3, "photos/deep: no such folder"),
        (["-i", "photos", "-o", "model.pth/out", "-m", "model.pth"], 2, "model.pth/out: cannot be written"),
        (["-i", "photos", "-o", "model.pth", "-m", "model.pth"], 2, "model.pth: cannot be written"),
        (["-i", "nowhere", "-o", "out", "-m", "model.pth"], 3, "nowhere: no such folder"),
    ],
)
def test_is_refused_in_one_line_before_anything_is_written(
    world: Path, args: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "link").symlink_to(world / "photos")
    before = tree(world)
    assert main(["restore", *(arg.replace("{here}", str(world)) for arg in args)]) == status
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("gmd-ray: ")
    assert message in line
    assert tree(world) == before


def test_results_too_large_for_their_format(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A WebP of 4100 pixels becomes 16,400, which no WebP has."""
    Path("wide").mkdir()
    Image.new("RGB", (4100, 2), (90, 120, 40)).save("wide/wide.webp")
    args = ["restore", "-i", "wide", "-o", "out", "-m", "x4.pth"]
    assert main([*args, "--ext", "webp"]) == 2
    assert "--ext webp: wide.webp would be more than 16383 pixels a side at x4" in capsys.readouterr().err
    assert main(args) == 0
    assert Image.open("out/wide.png").size == (16400, 8)
    assert main([*args, "--ext", "jpg"]) == 0
    assert Image.open("out/wide.jpg").size == (16400, 8)


def test_a_gif_beside_a_png(world: Path) -> None:
    image = Image.open("photos/a.png")
    image.convert("P").save("photos/a.gif")
    assert main(["restore", "-i", "photos", "-o", "out", "-m", "model.pth"]) == 0
    assert {path.name for path in Path("out").glob("[!.]*")} == {"a.png", "a.gif.png"}


def test_what_is_for_a_cluster_alone_is_told(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["restore", "-i", "photos", "-o", "out", "-m", "model.pth", "student.pool.num_gpus=1"]
    assert main(args) == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if "num_gpus" in line]
    assert "student.pool.num_gpus=1: for a Ray cluster" in line
    assert "student.device=auto" in line


def test_a_gray_model_keeps_the_colours_of_a_photo(world: Path) -> None:
    save_network(Path("gray.pth"), "dncnn_gray_bn")
    for name in ("photos/gray.png", "photos/rgb gray.png"):
        image = Image.open("photos/a.png").convert("L")
        (image if name == "photos/gray.png" else image.convert("RGB")).save(name)
    assert main(["restore", "-i", "photos", "-o", "out", "-m", "gray.pth"]) == 0
    given, made = (np.asarray(Image.open(f"{folder}/a.png")).astype(float) for folder in ("photos", "out"))
    inside = (made > 0).all(2) & (made < 255).all(2)  # where nothing was clipped
    assert inside.mean() > 0.2
    for a, b in ((0, 2), (1, 2)):
        difference = (given[..., a] - given[..., b]) - (made[..., a] - made[..., b])
        assert np.abs(difference[inside]).max() <= 1
    assert np.abs(given - made)[inside].mean() > 1
    gray = np.asarray(Image.open("out/rgb gray.png"))
    assert (gray == gray[..., :1]).all()
    assert np.array_equal(gray[..., 0], np.asarray(Image.open("out/gray.png")))


def test_a_local_restore_needs_no_ray(world: Path) -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from gmd_ray.cli import main\n"
        "sys.exit(main(['restore', '-i', 'photos', '-o', 'out', '-m', 'model.pth']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=world, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path("out/a.png").is_file()


@pytest.mark.skipif(not INPUTS.is_dir(), reason="the shared inputs are not here")
def test_the_inputs_of_strangers(world: Path) -> None:
    assert main(["restore", "-i", str(INPUTS / "gif_and_png"), "-o", "both", "-m", "model.pth"]) == 0
    assert {path.name for path in Path("both").glob("[!.]*")} == {"x.png", "x.gif.png"}
    assert main(["restore", "-i", str(INPUTS / "too_wide"), "-o", "wide", "-m", "x4.pth"]) == 0
    assert Image.open("wide/wide.png").size == (16400, 8)
