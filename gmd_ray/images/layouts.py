"""Published data sets by name: the folders in which their archives put the images, and the expected image counts.

Wherever a folder of images can be given, `SET/SPLIT/SIDE@ROOT` names one side of a set: `gopro/train/blur@/datasets`.
Ids leave out what all images of a side have in common, so the two images of a pair have the same id.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from gmd_ray.errors import ConfigError, DataError, nearest

_NAME = re.compile(r"(?P<name>[a-z0-9_]+/[a-z0-9_]+/[a-z0-9_]+)@(?P<root>.*)", re.DOTALL)


@dataclass(frozen=True)
class ListFile:
    """A text file that lists the images of a split."""

    path: str
    """Path of the file relative to the root."""
    column: int
    """Index, from 0, of the column that holds the image paths; columns are separated by white space."""
    base: str
    """Folder, relative to the root, from which those paths start."""


@dataclass(frozen=True)
class PublishedSet:
    """One side of one split."""

    title: str
    """Name of the set in messages."""
    folder: str
    """Folder of the images, relative to the root."""
    files: str
    """Pattern of the files below the folder. `*` matches any part of one path component; what the stars match, joined
    by `/`, is the id."""
    count: int | None
    """Number of images in the complete side; None if no trustworthy source states it."""
    listed: ListFile | None = None
    """The file that lists the images of this split; None if the folder holds exactly those."""
    hint: str = "unpack all of it there"
    """Advice for users who lack some of the images."""

    def describe(self) -> str:
        """Describe the side in one line of `gmd-ray ls sets`."""
        listed = f", those in {self.listed.path}" if self.listed else ""
        count = f"{self.count:,} images" if self.count else "images"
        return f"{self.title}: {count}, ROOT/{self.folder}/{self.files}{listed}"

    def image_id(self, name: str) -> str | None:
        """Return the id of the file `name`, a path relative to the folder; None if it is not of this side."""
        pattern = "([^/]*)".join(re.escape(part) for part in self.files.split("*"))
        match = re.fullmatch(pattern, name)
        return "/".join(match.groups()) + self.files[self.files.rindex(".") :] if match else None

    def missing(self, name: str, root: str, actual: str) -> DataError:
        """Return the error for a side that is absent or incomplete."""
        count = f"{self.count:,} images" if self.count else "images"
        return DataError(f"{name}@{root}: {self.title} has {count}; found {actual}; {self.hint}")

    def select(self, name: str, root: str, listed: dict[str, str], lines: str | None) -> dict[str, str]:
        """Choose the images of the side among those in its folder.

        Args:
            name: name of the set, for errors.
            root: folder of the data sets, for errors.
            listed: id -> path relative to the folder.
            lines: content of the list file; None without one.

        Returns:
            the part of `listed` that belongs to the side.

        Raises:
            DataError: the count is wrong, there are no images, or listed images are missing.
        """
        if self.listed is not None and lines is not None:
            words = [line.split() for line in lines.splitlines() if line.strip()]
            head = f"{root}/{self.listed.path}"
            if any(len(line) <= self.listed.column for line in words):
                raise DataError(
                    f"{head}: a line has no column {self.listed.column + 1}; give the list as it was published"
                )
            paths = {_nfc(f"{self.listed.base}/{line[self.listed.column]}".lstrip("/")) for line in words}
            there = {_nfc(f"{self.folder}/{path}"): key for key, path in listed.items()}
            missing = sorted(paths - there.keys())
            if missing:
                raise DataError(
                    f"{head}: {len(missing)} of its {len(paths)} images are not there ({', '.join(missing[:3])})"
                )
            listed = {there[path]: listed[there[path]] for path in paths}
        if not listed or (self.count is not None and len(listed) != self.count):
            raise self.missing(name, root, f"{len(listed):,} as {root}/{self.folder}/{self.files}")
        return listed


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _sides(name: str, title: str, folder: str, count: int | None, **files: str) -> dict[str, PublishedSet]:
    """Make the sides of a set that share a folder and differ in their file patterns."""
    return {f"{name}/{side}": PublishedSet(title, folder, pattern, count) for side, pattern in files.items()}


def _realblur(split: str, count: int) -> dict[str, PublishedSet]:
    folder = "RealBlur-J_ECC_IMCORR_centroid_itensity_ref"  # the archive's own spelling
    sides = {"gt": ("scene*/gt/gt_*.png", 0), "blur": ("scene*/blur/blur_*.png", 1)}
    return {
        f"realblur_j/{split}/{side}": PublishedSet(
            f"RealBlur-J {split}",
            f"RealBlur/{folder}",
            pattern,
            count,
            ListFile(f"RealBlur/RealBlur_J_{split}_list.txt", column, "RealBlur"),
        )
        for side, (pattern, column) in sides.items()
    }


def _frozen(name: str, title: str, count: int, command: str, *sides: str) -> dict[str, PublishedSet]:
    """Make the sides of a frozen set that `gmd-ray degrade` wrote."""
    hint = f"make it with `gmd-ray degrade {command} -o ROOT/frozen/{name}`"
    return {
        f"frozen/{name}/{side}": PublishedSet(title, f"frozen/{name}/{side}", "*.png", count, hint=hint)
        for side in sides
    }


def _polyu_crops(**counts: int) -> dict[str, PublishedSet]:
    """Make the sides of the crops that `gmd_ray.images.sets.polyu` cuts."""
    hint = "make them with `python -m gmd_ray.images.sets.polyu ROOT`"
    return {
        f"frozen/polyu/{side}": PublishedSet("PolyU crops", f"frozen/polyu/{side}", "*.png", count, hint=hint)
        for side, count in counts.items()
    }


_POLYU = "PolyU-Real-World-Noisy-Images-Dataset"
"""Name of the repository that publishes the set; `git clone` makes a folder of this name."""

SETS: dict[str, PublishedSet] = {
    **_sides("gopro/train", "GoPro train", "GOPRO_Large/train", 2103,
             sharp="*/sharp/*.png", blur="*/blur/*.png", blur_gamma="*/blur_gamma/*.png"),
    **_sides("gopro/test", "GoPro test", "GOPRO_Large/test", 1111,
             sharp="*/sharp/*.png", blur="*/blur/*.png", blur_gamma="*/blur_gamma/*.png"),
    # The layout of Restormer and NAFNet.
    **_sides("gopro_flat/train", "GoPro train", "train/GoPro", 2103, target="target/*.png", input="input/*.png"),
    **_sides("gopro_flat/test", "GoPro test", "test/GoPro", 1111, target="target/*.png", input="input/*.png"),
    **_sides("reds/train", "REDS train", "REDS/train", 24000,
             sharp="train_sharp/*/*.png", blur="train_blur/*/*.png", blur_jpeg="train_blur_jpeg/*/*.jpg"),
    **_sides("reds/val", "REDS val", "REDS/val", 3000,
             sharp="val_sharp/*/*.png", blur="val_blur/*/*.png", blur_jpeg="val_blur_jpeg/*/*.jpg"),
    # Every tenth frame, chosen as in NAFNet's and HINet's scripts.
    **_sides("reds/val300", "REDS val-300", "REDS/val", 300,
             sharp="val_sharp/*/*9.png", blur="val_blur/*/*9.png", blur_jpeg="val_blur_jpeg/*/*9.jpg"),
    **_realblur("train", 3758),
    **_realblur("test", 980),
    **_sides("realblur_j_flat/test", "RealBlur-J test", "test/RealBlur_J", 980,
             target="target/*.png", input="input/*.png"),
    **_sides("div2k/train", "DIV2K train", "DIV2K", 800,
             hq="DIV2K_train_HR/*.png", bicubic_x2="DIV2K_train_LR_bicubic/X2/*x2.png",
             bicubic_x3="DIV2K_train_LR_bicubic/X3/*x3.png", bicubic_x4="DIV2K_train_LR_bicubic/X4/*x4.png"),
    **_sides("div2k/val", "DIV2K val", "DIV2K", 100,
             hq="DIV2K_valid_HR/*.png", bicubic_x2="DIV2K_valid_LR_bicubic/X2/*x2.png",
             bicubic_x3="DIV2K_valid_LR_bicubic/X3/*x3.png", bicubic_x4="DIV2K_valid_LR_bicubic/X4/*x4.png"),
    **_sides("flickr2k/train", "Flickr2K", "Flickr2K", 2650, hq="Flickr2K_HR/*.png"),
    # The NTIRE 2020 archives. That the paper's 113 are the validation photos is our reading.
    **_sides("dped/train", "DPED-iPhone train", "DPED", 5614, iphone="DPEDiphone-tr-x/*.png"),
    **_sides("dped/val", "DPED-iPhone validation", "DPED", 113, iphone="DPEDiphone-va/*.png"),
    **_sides("dped/test", "DPED-iPhone test crops", "DPED", None, iphone="DPEDiphone-crop-te-x/*.png"),
    # The original release: patches of 100 x 100.
    **_sides("dped_patches/train", "DPED patches, train", "dped/iphone/training_data", None,
             iphone="iphone/*.jpg", canon="canon/*.jpg"),
    **_sides("dped_patches/test", "DPED patches, test", "dped/iphone/test_data/patches", None,
             iphone="iphone/*.jpg", canon="canon/*.jpg"),
    # Real camera noise; the truth is the mean of many shots of the same scene.
    **_sides("polyu/originals", "PolyU, 40 scenes", f"{_POLYU}/OriginalImages", 40,
             real="*_Real.JPG", mean="*_mean.JPG"),
    **_sides("polyu/crops", "PolyU, crops of 512 x 512", f"{_POLYU}/CroppedImages", 100,
             real="*_real.JPG", mean="*_mean.JPG"),
    # The 15 crops of Nam et al.'s set that the literature uses, in the repository of MCWNNM.
    **_sides("cc15/test", "CC15", "MCWNNM-ICCV2017/Real_ccnoise_denoised_part", 15,
             real="*_real.png", mean="*_mean.png"),
    **_sides("sidd_small/train", "SIDD-Small sRGB", "SIDD_Small_sRGB_Only/Data", 160,
             noisy="*/NOISY_SRGB_*.PNG", gt="*/GT_SRGB_*.PNG"),
    **_sides("sidd_medium/train", "SIDD-Medium sRGB", "SIDD_Medium_Srgb/Data", 320,
             noisy="*/*_NOISY_SRGB_*.PNG", gt="*/*_GT_SRGB_*.PNG"),
    **_sides("bsds500/all", "BSDS500", "BSDS500/data/images", 500, hq="*/*.jpg"),
    **_sides("kodak24/test", "Kodak24", "Kodak24", 24, hq="*.png"),
    **_polyu_crops(target_lq=230, target_hq=230, target_test_lq=48, target_test_hq=48,
                   source_hq=300, source_test_hq=24),
    **_frozen("div2k_weak_x4", "DIV2K train, weak x4", 30000,
              "-i div2k/train/hq@ROOT --preset weak --crops 30000 --size 512", "hq", "lq"),
    **_frozen("flickr2k_strong_x4", "Flickr2K, strong x4", 6000,
              "-i flickr2k/train/hq@ROOT --preset strong --crops 6000 --size 512", "hq", "lq"),
    **_frozen("div2k_val_strong_x4", "DIV2K val, strong x4", 3000,
              "-i div2k/val/hq@ROOT --preset strong --crops 3000 --size 512", "hq", "lq"),
    **_frozen("div2k_val_weak_x4", "DIV2K val, weak x4", 3000,
              "-i div2k/val/hq@ROOT --preset weak --crops 3000 --size 512", "hq", "lq"),
    **_frozen("div2k_realesrgan_x2", "DIV2K train, Real-ESRGAN x2", 30000,
              "-i div2k/train/hq@ROOT --preset realesrgan --set scale=2 --crops 30000 --size 512", "hq", "lq"),
    **_frozen("dped_val_center", "DPED-iPhone validation, centre crops", 113,
              "-i dped/val/iphone@ROOT --preset none --crops center --size 256", "hq", "lq"),
}  # fmt: skip
"""`SET/SPLIT/SIDE` -> the location of its images below a root."""


def parse_set(url: str) -> tuple[str, PublishedSet, str] | None:
    """Parse `SET/SPLIT/SIDE@ROOT`.

    Returns:
        (name, set, root); None for anything else, which is a folder or URL.

    Raises:
        ConfigError: the set is unknown, or the root is missing.
    """
    match = _NAME.fullmatch(url)
    if match is None:
        return None
    name, root = match["name"], match["root"].rstrip("/")
    if name not in SETS:
        close = nearest(name, SETS)
        hint = close if close.startswith("did") else "`gmd-ray ls sets` lists them"
        raise ConfigError(f"{url}: no published set {name!r}; {hint}")
    if not root:
        raise ConfigError(f"{url}: give the folder of the data sets, data.root=... or {name}@FOLDER")
    return name, SETS[name], root
