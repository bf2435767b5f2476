"""Published sets by name, on made-up trees of their shape, with empty files: a tenth of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from gmd_ray.cli import main
from gmd_ray.errors import ConfigError, DataError
from gmd_ray.images.layouts import SETS, parse_set
from gmd_ray.images.listing import list_images
from gmd_ray.images.sets.pairs import list_pairs

REALBLUR = "RealBlur-J_ECC_IMCORR_centroid_itensity_ref"


@pytest.fixture(autouse=True)
def a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, published in SETS.items():
        monkeypatch.setitem(SETS, name, replace(published, count=published.count and published.count // 10))


def touch(root: Path, names: Iterable[str]) -> None:
    folders = set()
    for name in names:
        path = f"{root}/{name}"
        folder = os.path.dirname(path)
        if folder not in folders:
            os.makedirs(folder, exist_ok=True)
            folders.add(folder)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))


def gopro(root: Path, split: str, count: int) -> None:
    frames = [f"GOPR{i // 100:04d}_11_00/{{}}/{i % 100:06d}.png" for i in range(count)]
    touch(root, [f"GOPRO_Large/{split}/{f.format(s)}" for f in frames for s in ("blur", "blur_gamma", "sharp")])
    clips = {f.partition("/")[0] for f in frames}
    touch(root, [f"GOPRO_Large/{split}/{clip}/frames X offset.txt" for clip in clips])


def reds(root: Path, split: str, clips: int, *sides: str) -> None:
    for side in sides:
        end = "jpg" if side == "blur_jpeg" else "png"
        folder = root / "REDS" / split / f"{split}_{side}"
        touch(folder, [f"000/{f:08d}.{end}" for f in range(100)])
        for clip in range(1, clips):
            (folder / f"{clip:03d}").symlink_to("000")


def realblur(root: Path, train: int, test: int) -> None:
    lines = []
    for i in range(train + test):
        scene, k = f"scene{1 + i // 20:03d}", 1 + i % 20
        lines.append(f"{REALBLUR}/{scene}/gt/gt_{k}.png {REALBLUR}/{scene}/blur/blur_{k}.png")
    touch(root / "RealBlur", [path for line in lines for path in line.split()])
    (root / "RealBlur" / "RealBlur_J_train_list.txt").write_text("\n".join(lines[:train]) + "\n")
    (root / "RealBlur" / "RealBlur_J_test_list.txt").write_text("\n".join(lines[train:]) + "\n")


def test_gopro_pairs_sharp_with_blur(tmp_path: Path) -> None:
    gopro(tmp_path, "train", 210)
    pairs = list_pairs(f"gopro/train/sharp@{tmp_path}", f"gopro/train/blur@{tmp_path}")
    assert len(pairs) == 210
    assert pairs[0].id == "GOPR0000_11_00/000000.png"
    clip = tmp_path / "GOPRO_Large" / "train" / "GOPR0000_11_00"
    assert (pairs[0].hq, pairs[0].lq) == (str(clip / "sharp" / "000000.png"), str(clip / "blur" / "000000.png"))
    assert len(list_pairs(f"gopro/train/sharp@{tmp_path}", f"gopro/train/blur_gamma@{tmp_path}/")) == 210


def test_gopro_in_the_restorers_layout(tmp_path: Path) -> None:
    touch(tmp_path, [f"test/GoPro/{side}/GOPR-{i:04d}.png" for side in ("input", "target") for i in range(111)])
    assert len(list_pairs(f"gopro_flat/test/target@{tmp_path}", f"gopro_flat/test/input@{tmp_path}")) == 111


def test_reds_first_frames_by_clip(tmp_path: Path) -> None:
    reds(tmp_path, "train", 24, "blur")
    first = list_images(f"reds/train/blur@{tmp_path}", 600)
    assert (first[0].id, first[-1].id) == ("000/00000000.png", "005/00000099.png")


def test_reds_val300_is_every_tenth_frame(tmp_path: Path) -> None:
    reds(tmp_path, "val", 3, "blur", "sharp", "blur_jpeg")
    pairs = list_pairs(f"reds/val300/sharp@{tmp_path}", f"reds/val300/blur_jpeg@{tmp_path}")
    assert len(pairs) == 30
    frames = {Path(pair.hq).stem for pair in pairs}
    assert frames == {f"{f:08d}" for f in range(9, 100, 10)}
    assert all(Path(pair.hq).stem == Path(pair.lq or "").stem for pair in pairs)
    assert all(Path(pair.hq).parent.name == Path(pair.lq or "").parent.name for pair in pairs)
    assert len(list_pairs(f"reds/val/sharp@{tmp_path}", f"reds/val/blur@{tmp_path}")) == 300


def test_realblur_splits_by_its_lists(tmp_path: Path) -> None:
    realblur(tmp_path, 375, 98)
    train = list_pairs(f"realblur_j/train/gt@{tmp_path}", f"realblur_j/train/blur@{tmp_path}")
    test = list_pairs(f"realblur_j/test/gt@{tmp_path}", f"realblur_j/test/blur@{tmp_path}")
    assert (len(train), len(test)) == (375, 98)
    assert not {pair.id for pair in train} & {pair.id for pair in test}
    assert Path(train[0].hq).relative_to(tmp_path / "RealBlur" / REALBLUR).as_posix() == "scene001/gt/gt_1.png"
    assert (
        Path(train[0].lq or "").relative_to(tmp_path / "RealBlur" / REALBLUR).as_posix() == "scene001/blur/blur_1.png"
    )


def test_realblur_names_listed_images_that_are_missing(tmp_path: Path) -> None:
    realblur(tmp_path, 375, 98)
    (tmp_path / "RealBlur" / REALBLUR / "scene001" / "blur" / "blur_3.png").unlink()
    with pytest.raises(DataError, match=r"train_list.txt: 1 of its 375 .*scene001/blur/blur_3.png"):
        list_images(f"realblur_j/train/blur@{tmp_path}")
    assert len(list_images(f"realblur_j/train/gt@{tmp_path}")) == 375


def test_div2k_pairs_with_its_bicubic_set_and_flickr2k_counts(tmp_path: Path) -> None:
    touch(tmp_path, [f"DIV2K/DIV2K_train_HR/{i:04d}.png" for i in range(1, 81)])
    touch(tmp_path, [f"DIV2K/DIV2K_train_LR_bicubic/X4/{i:04d}x4.png" for i in range(1, 81)])
    touch(tmp_path, [f"DIV2K/DIV2K_valid_HR/{i:04d}.png" for i in range(801, 811)])
    touch(tmp_path, [f"Flickr2K/Flickr2K_HR/{i:06d}.png" for i in range(1, 266)])
    pairs = list_pairs(f"div2k/train/hq@{tmp_path}", f"div2k/train/bicubic_x4@{tmp_path}")
    assert (len(pairs), pairs[0].id) == (80, "0001.png")
    assert Path(pairs[0].lq or "").name == "0001x4.png"
    assert len(list_images(f"div2k/val/hq@{tmp_path}")) == 10
    assert len(list_images(f"flickr2k/train/hq@{tmp_path}")) == 265


def test_dped_by_its_archives(tmp_path: Path) -> None:
    touch(tmp_path, [f"DPED/DPEDiphone-tr-x/{i}.png" for i in range(561)])
    touch(tmp_path, [f"DPED/DPEDiphone-va/{i}.png" for i in range(11)])
    assert len(list_images(f"dped/train/iphone@{tmp_path}")) == 561
    assert len(list_images(f"dped/val/iphone@{tmp_path}")) == 11


def test_dped_as_it_was_first_released(tmp_path: Path) -> None:
    names = [f"dped/iphone/training_data/{side}/{i}.jpg" for side in ("iphone", "canon") for i in range(7)]
    touch(tmp_path, names)
    pairs = list_pairs(f"dped_patches/train/canon@{tmp_path}", f"dped_patches/train/iphone@{tmp_path}")
    assert len(pairs) == 7  # of no known number
    (tmp_path / names[0]).unlink()
    with pytest.raises(DataError, match=r"1 of 7 images .*no partner .*\(0.jpg\)"):
        list_pairs(f"dped_patches/train/canon@{tmp_path}", f"dped_patches/train/iphone@{tmp_path}")


def test_polyu_pairs_noisy_shots_with_means_in_both_of_its_folders(tmp_path: Path) -> None:
    repository = "PolyU-Real-World-Noisy-Images-Dataset"
    scenes = ("Canon5D2_bag", "Nikon_800_carbi", "SonyA7II_stair", "Canon80D_GO")
    touch(tmp_path, [f"{repository}/OriginalImages/{s}_{shot}.JPG" for s in scenes for shot in ("Real", "mean")])
    crops = [f"Canon5D2_5_160_3200_chair_{i}" for i in range(10)]
    touch(tmp_path, [f"{repository}/CroppedImages/{c}_{shot}.JPG" for c in crops for shot in ("real", "mean")])
    originals = list_pairs(f"polyu/originals/mean@{tmp_path}", f"polyu/originals/real@{tmp_path}")
    assert [pair.id for pair in originals] == [f"{scene}.JPG" for scene in sorted(scenes)]
    assert Path(originals[0].lq or "").name == "Canon5D2_bag_Real.JPG"
    assert len(list_pairs(f"polyu/crops/mean@{tmp_path}", f"polyu/crops/real@{tmp_path}")) == 10


def test_cc15_leaves_the_denoised_images_out(tmp_path: Path) -> None:
    folder = "MCWNNM-ICCV2017/Real_ccnoise_denoised_part"
    touch(tmp_path, [f"{folder}/5dmark3_iso3200_1_{kind}.png" for kind in ("real", "mean", "ours")])
    (pair,) = list_pairs(f"cc15/test/mean@{tmp_path}", f"cc15/test/real@{tmp_path}")
    assert (pair.id, Path(pair.hq).name) == ("5dmark3_iso3200_1.png", "5dmark3_iso3200_1_mean.png")


def test_sidd_small_and_medium_name_their_files_differently(tmp_path: Path) -> None:
    scenes = [f"{i:04d}_001_S6_00100_00060_3200_L" for i in range(1, 17)]
    touch(tmp_path, [f"SIDD_Small_sRGB_Only/Data/{s}/{k}_SRGB_010.PNG" for s in scenes for k in ("NOISY", "GT")])
    medium = [f"{s}/{s[:4]}_{{}}_SRGB_{shot}.PNG" for s in scenes for shot in ("010", "011")]
    touch(tmp_path, [f"SIDD_Medium_Srgb/Data/{m.format(kind)}" for m in medium for kind in ("NOISY", "GT")])
    small = list_pairs(f"sidd_small/train/gt@{tmp_path}", f"sidd_small/train/noisy@{tmp_path}")
    assert (len(small), small[0].id) == (16, f"{scenes[0]}/010.PNG")
    pairs = list_pairs(f"sidd_medium/train/gt@{tmp_path}", f"sidd_medium/train/noisy@{tmp_path}")
    assert (len(pairs), pairs[1].id) == (32, f"{scenes[0]}/0001/011.PNG")
    assert Path(pairs[1].lq or "").name == "0001_NOISY_SRGB_011.PNG"


def test_an_incomplete_set_says_how_many_there_should_be(tmp_path: Path) -> None:
    gopro(tmp_path, "train", 12)
    with pytest.raises(DataError) as caught:
        list_images(f"gopro/train/sharp@{tmp_path}", 5)
    assert "GoPro train has 210 images; found 12" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_set_and_root(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="REDS train has 2,400 images; found no folder"):
        list_images(f"reds/train/blur@{tmp_path}")
    with pytest.raises(DataError, match=r"no such folder as .*data\.root"):
        list_images(f"reds/train/blur@{tmp_path}/nowhere")
    with pytest.raises(ConfigError, match=r"give the folder of the data sets, data\.root"):
        list_images("reds/train/blur@")
    with pytest.raises(DataError, match="make it with `gmd-ray degrade -i flickr2k/train/hq@ROOT --preset strong"):
        list_images(f"frozen/flickr2k_strong_x4/lq@{tmp_path}")


def test_counts_are_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    counts = {
        "gopro/train/blur": 2103, "gopro/test/blur": 1111, "reds/train/blur": 24000, "reds/val/blur": 3000,
        "reds/val300/blur": 300, "realblur_j/train/gt": 3758, "realblur_j/test/gt": 980, "div2k/train/hq": 800,
        "div2k/val/hq": 100, "flickr2k/train/hq": 2650, "dped/train/iphone": 5614, "dped/val/iphone": 113,
        "polyu/originals/real": 40, "polyu/crops/mean": 100, "cc15/test/real": 15, "sidd_small/train/gt": 160,
        "sidd_medium/train/noisy": 320, "bsds500/all/hq": 500, "kodak24/test/hq": 24,
    }  # fmt: skip
    assert {name: SETS[name].count for name in counts} == counts


def test_sets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "sets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("@")[0] for line in lines] == list(SETS)
    assert any("RealBlur_J_test_list.txt" in line for line in lines)


def test_an_unknown_set_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'gopro/train/sharp'"):
        list_images("gopro/train/sharpe@/data")


@pytest.mark.parametrize("url", ["/data/a@b", "a@b", "s3://key@bucket/x/y", "gopro/train@/data", "./a/b/c@d"])
def test_folders_with_an_at_sign_stay_folders(url: str) -> None:
    assert parse_set(url) is None


@pytest.mark.parametrize("name", SETS)
def test_every_set_gives_ids_to_its_own_files_alone(name: str) -> None:
    published = SETS[name]
    path = published.files.replace("*", "7")
    stars = published.files.count("*")
    assert published.image_id(path) == "/".join(["7"] * stars) + Path(path).suffix
    assert published.image_id(f"deeper/{path}") is None
    assert published.image_id(path + ".txt") is None
    assert parse_set(f"{name}@/data") == (name, published, "/data")
