"""The demo's photographs: where each comes from, under which licence, and how it becomes the small file that ships.

    python -m gmd_ray.demo.photos.collect --from DIR [--to FOLDER]

DIR holds one unpacked package a folder, named as in `Photograph.package`: `dpkg-deb -x FILE.deb DIR/budgie-backgrounds`
for a Debian package, `unzip FILE.whl -d DIR/scipy` for a wheel. Written are `ROLE/NAME.jpg` and `ATTRIBUTION.md`.
Photographs whose embedded metadata reserves rights that the package says are waived are left out.
"""

from __future__ import annotations

import argparse
import bz2
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from gmd_ray.demo.photos.prepare import PHOTOGRAPHS
from gmd_ray.images.files.decode import decode_8bit

ROLES = ("target", "target_test", "source", "source_test")
QUALITY = 90
"""JPEG quality of the small files, without subsampling of colour."""

PACKAGES = {
    "budgie-backgrounds": ("Debian package budgie-backgrounds 3.0-1", "its copyright file, `Files: *`"),
    "lomiri-wallpapers-16.04": (
        "Debian package lomiri-wallpapers-16.04 20.04.0-4",
        "its copyright file, which names each photograph",
    ),
    "scikit-image": ("PyPI wheel scikit-image 0.26.0", "the docstring of `skimage.data.NAME`"),
    "scikit-learn": ("PyPI wheel scikit-learn 1.9.1", "its `sklearn/datasets/images/README.txt`"),
    "scipy": ("PyPI wheel scipy 1.9.3", "the docstring of `scipy.misc.face`, which names public-domain-image.com"),
}
"""Package -> its name and version, and the place where it states the licence."""


@dataclass(frozen=True)
class Photograph:
    """One photograph: its place in a package, its rights and its place in the demo."""

    role: str
    """One of `ROLES`. No photograph has two."""
    name: str
    """Stem of the small file."""
    package: str
    """A key of `PACKAGES`."""
    path: str
    """Path inside the package."""
    author: str
    licence: str
    long_side: int
    """Pixels along the longer side of the small file."""


def _budgie(role: str, name: str, author: str = "not stated (Wikimedia Commons)") -> Photograph:
    path = f"usr/share/backgrounds/budgie/{name}.jpg"
    return Photograph(role, name, "budgie-backgrounds", path, author, "CC0", 640)


def _lomiri(name: str, file: str, author: str, licence: str = "CC-BY-4.0") -> Photograph:
    path = f"usr/share/backgrounds/{file}.jpg"
    return Photograph("source", name, "lomiri-wallpapers-16.04", path, f"{author}, 2018", licence, 560)


def _skimage(role: str, file: str, author: str, licence: str, long_side: int) -> Photograph:
    return Photograph(role, Path(file).stem, "scikit-image", f"skimage/data/{file}", author, licence, long_side)


def _sklearn(name: str, author: str) -> Photograph:
    path = f"sklearn/datasets/images/{name}.jpg"
    return Photograph("source_test", name, "scikit-learn", path, f"{author} (Flickr)", "CC-BY-2.0", 360)


_PARKS = "National Park Service"

LIST = (
    # Of the ten usable photographs of budgie-backgrounds, every other one in alphabetical order is a target.
    _budgie("target", "abstract-spiral"),
    _budgie("target", "canyon-wren", _PARKS),
    _budgie("target", "extreme-desert-hike"),
    _budgie("target", "oakland-zoo-otters", "Derrick Coetzee"),
    _budgie("target", "piazza-gae-aulenti"),
    _budgie("target_test", "blue-periwinkle"),
    _budgie("target_test", "casa-mila"),
    _budgie("target_test", "lake-sherburne", f"Jacob W. Frank, {_PARKS}"),
    _budgie("target_test", "perched-osprey", f"Jacob W. Frank, {_PARKS}"),
    _budgie("target_test", "tea-gardens"),
    _skimage("target_test", "chelsea.png", "Stefan van der Walt", "CC0", 400),
    _skimage("target_test", "coffee.png", "Rachel Michetti, courtesy of Pikolo Espresso Bar", "CC0", 480),
    Photograph("target_test", "face", "scipy", "scipy/misc/face.dat", "not stated", "public domain", 640),
    _lomiri("aitzgorri", "aitzgorri_by_Aitzol_Berasategi", "Aitzol Berasategi"),
    _lomiri("friends", "friends_by_Aitzol_Berasategi", "Aitzol Berasategi"),
    _lomiri("life", "life_by_Aitzol_Berasategi", "Aitzol Berasategi"),
    _lomiri("picosdeeuropa", "picosdeeuropa_by_Aitzol_Berasategi", "Aitzol Berasategi"),
    _lomiri("picture-0b", "Picture_0B_by_freespace", 'Trevor "Freespace"'),
    _lomiri("picture-1a", "Picture_1A_by_freespace", 'Trevor "Freespace"'),
    _lomiri("seeding", "seeding_by_Clements_Engelhardt", "Clemens Engelhardt", "CC0"),
    _lomiri("sunset", "sunset_by_Aitzol_Berasategi", "Aitzol Berasategi"),
    _lomiri("wine", "Wine_by_Jakkub_Mede", "Jakub Mede"),
    _skimage("source_test", "astronaut.png", "NASA", "public domain", 360),
    _skimage("source_test", "rocket.jpg", "SpaceX", "public domain", 360),
    _sklearn("china", "danielbuechele"),
    _sklearn("flower", "vultilion"),
)


def collect(packages: Path, to: Path) -> None:
    """Write every photograph of `LIST` and `ATTRIBUTION.md` below `to`; unpacked packages lie below `packages`."""
    for photo in LIST:
        file = to / photo.role / f"{photo.name}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(shrink(_read(packages / photo.package / photo.path), photo.long_side))
    (to / "ATTRIBUTION.md").write_text(attribution(), encoding="utf-8")


def shrink(rgb: np.ndarray, long_side: int) -> bytes:
    """Make a photograph smaller by area averaging and encode it as JPEG without metadata.

    Args:
        rgb: uint8, (H, W, 3).
        long_side: pixels along the longer side of the result, fewer than the photograph has.
    """
    height, width = rgb.shape[:2]
    ratio = long_side / max(height, width)
    assert ratio < 1, (rgb.shape, long_side)
    small = cv2.resize(rgb, (round(width * ratio), round(height * ratio)), interpolation=cv2.INTER_AREA)
    full = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    settings = [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, full]
    _, code = cv2.imencode(".jpg", small[..., ::-1], [*settings, cv2.IMWRITE_JPEG_OPTIMIZE, 1])
    return code.tobytes()


_PAGE = """# Photographs of the demo

Made by `python -m gmd_ray.demo.photos.collect --from DIR`. Changes: each was made smaller by area averaging, and saved
again as JPEG of quality {quality} without its metadata. No photograph has two roles.

| file | author | licence | taken from |
| --- | --- | --- | --- |
{rows}

Where the packages state the licences:

{places}

The licences: [CC0](https://creativecommons.org/publicdomain/zero/1.0/),
[CC-BY-4.0](https://creativecommons.org/licenses/by/4.0/), [CC-BY-2.0](https://creativecommons.org/licenses/by/2.0/).
The two of scikit-learn are flickr.com/photos/danielbuechele/6061409035 and flickr.com/photos/vultilion/6056698931; its
README names danielbuechele for both.

Left out of budgie-backgrounds: high-trestle-trail and singaporean-cityscape, whose embedded metadata say "All rights
reserved" and CC-BY-NC-SA; roman-colosseum and beacon-street-sunset, whose larger originals name a holder of rights;
ocean-waves, saturnian-profile, valley-midnight and waves-midnight, which are no photographs of a scene. Left out of
lomiri-wallpapers-16.04: all that is under CC-BY-SA, and umang, a drawing.
"""


def attribution() -> str:
    """Write the Markdown page that names author, licence, package and changes of every photograph."""
    rows = (f"| {p.role}/{p.name}.jpg | {p.author} | {p.licence} | {PACKAGES[p.package][0]} |" for p in LIST)
    places = (f"- {name}: {place}." for name, place in PACKAGES.values())
    return _PAGE.format(quality=QUALITY, rows="\n".join(rows), places="\n".join(places))


def _read(file: Path) -> np.ndarray:
    """Read one original: uint8, (H, W, 3)."""
    if file.suffix == ".dat":  # scipy.misc.face is 768 rows of 1024 RGB pixels in bz2
        return np.frombuffer(bz2.decompress(file.read_bytes()), np.uint8).reshape(768, 1024, 3)
    return decode_8bit(file.read_bytes())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="packages", type=Path, required=True, metavar="DIR")
    parser.add_argument("--to", type=Path, default=PHOTOGRAPHS, metavar="FOLDER")
    args = parser.parse_args()
    collect(args.packages, args.to)
