"""Paired folders: which low-quality file belongs to which clean one, and loading both."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np

from gmd_ray.errors import ConfigError, DataError
from gmd_ray.images.degradation.degradations import Degradation, sample_rng
from gmd_ray.images.degradation.second_order import SecondOrder
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.formats import refusal_by_name
from gmd_ray.images.listing import ImageFile, Listing, check_limit, list_folder, read_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairFile:
    """One paired sample."""

    id: str
    """Path of the clean image relative to its folder."""
    lq: str | None
    """URI of the low-quality image; None where it is made from `hq` by a degradation."""
    hq: str
    """URI of the clean image."""
    files: tuple[ImageFile, ...] = field(default=(), compare=False, repr=False)
    """Both files as the listing told of them, the clean one first; empty where no listing did."""


def list_pairs(hq: str, lq: str | None, template: str = "{}", limit: int | None = None) -> list[PairFile]:
    """Pair two folders by relative path without extension, sorted by id.

    Names that differ in Unicode's normal form alone are one name: macOS stores accents apart from their letters. A file
    that a folder has twice, through a link, is used twice only where the other folder has both names. Files of formats
    that are not decoded are left out, with a warning.

    Args:
        hq: folder or URL of clean images, read recursively.
        lq: folder or URL of their degraded versions, or None.
        template: how an LQ file is called: `{}` stands for the HQ file's name without extension, and a path before it
            is a folder under `lq`. `{}x4` pairs `city/a.png` with `city/ax4.jpg`, `X4/{}` with `X4/city/a.jpg`.
        limit: keep the first n pairs; all of the folders must match nonetheless.

    Raises:
        DataError: naming files without a partner, on both sides, and stems that two files share.
        ConfigError: for a template without exactly one `{}` in its last part.
    """
    if lq is None:
        check_limit(limit)
        return [PairFile(file.id, None, file.uri, (file,)) for file in _decoded(hq, list_folder(hq))[:limit]]
    if template.rpartition("/")[2].count("{}") != 1 or template.count("{}") != 1:
        raise ConfigError(f"template={template!r}: needs one '{{}}' in its last part, e.g. '{{}}x4'")
    template = unicodedata.normalize("NFC", template)
    clean, more_clean = _by_stem(hq)
    degraded, more_degraded = _by_stem(lq)
    clean |= {stem: file for stem, file in more_clean.items() if _apply(template, stem) in degraded}
    expected = {_apply(template, stem): stem for stem in clean}
    degraded |= {name: file for name, file in more_degraded.items() if name in expected}
    missing_lq = [clean[stem].id for name, stem in expected.items() if name not in degraded]
    unmatched_lq = [file.id for name, file in degraded.items() if name not in expected]
    if missing_lq or unmatched_lq:
        complaints = []
        if missing_lq:
            complaints.append(
                f"{len(missing_lq)} of {len(clean)} images in {hq} have no partner in {lq} ({_some(missing_lq)})"
            )
        if unmatched_lq:
            complaints.append(
                f"{len(unmatched_lq)} of {len(degraded)} in {lq} have none in {hq} ({_some(unmatched_lq)})"
            )
        raise DataError(f"pairs by name, template {template!r}: {'; '.join(complaints)}")
    both = [(clean[stem], degraded[name]) for name, stem in expected.items()]
    pairs = [PairFile(hq_file.id, lq_file.uri, hq_file.uri, (hq_file, lq_file)) for hq_file, lq_file in both]
    return sorted(pairs, key=lambda pair: pair.id)[:limit]


def list_by_stem(hq: str) -> dict[str, ImageFile]:
    """The images of a folder by their path without extension; a file that is linked twice stands under both names."""
    clean, more = _by_stem(hq)
    return clean | more


def list_truths(hq: str, ids: Sequence[str], key: str, clean: Mapping[str, ImageFile] | None = None) -> list[str]:
    """URIs of the ground truth of each of these images, paired by path without extension; others may lie beside it.

    Args:
        hq: folder or URL of clean images.
        ids: of images elsewhere, relative to their own folder.
        key: the setting that `hq` comes from, for the error.
        clean: what `list_by_stem(hq)` returned, where the folder has been listed before.

    Raises:
        DataError: naming images without ground truth.
    """
    if clean is None:
        clean = list_by_stem(hq)
    missing = [image for image in ids if pairing_stem(image) not in clean]
    if missing:
        these = f"{len(missing)} of {len(ids)} photos"
        raise DataError(f"{key}={hq}: {these} have no ground truth there ({_some(missing)})")
    return [clean[pairing_stem(image)].uri for image in ids]


def load_pair(
    pair: PairFile,
    degradation: Degradation | SecondOrder | None,
    gray: bool,
    key: tuple[object, ...],
    scale: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Load one pair, or its clean half and degrade that.

    Args:
        pair: from `list_pairs`.
        degradation: used where `pair.lq` is None; its scale is then the pair's.
        gray: see `decode_image`.
        key: sample key of the degradation's random draws, e.g. (run seed, pair id, epoch).
        scale: HQ pixels for one LQ pixel, of files; None accepts any whole number that fits both axes.

    Returns:
        (lq, hq), float32 RGB in [0, 1]: (h, w, 3) and (h * scale, w * scale, 3). Where `hq` is degraded, its last rows
        and columns beyond a multiple of the scale are cut off first.

    Raises:
        DataError: naming the file that cannot be read, or the pair whose sizes do not fit.
    """
    clean = load_image(pair.hq, gray)
    if pair.lq is None:
        assert degradation is not None, "a pair without an LQ file needs a degradation"
        s = degradation.scale
        if min(clean.shape[:2]) < s:
            raise DataError(f"{pair.hq}: {clean.shape[1]}x{clean.shape[0]} is too small to be degraded at scale {s}")
        clean = np.ascontiguousarray(clean[: clean.shape[0] // s * s, : clean.shape[1] // s * s])
        return degradation(clean, sample_rng(*key)), clean
    degraded = load_image(pair.lq, gray)
    (h, w), (height, width) = degraded.shape[:2], clean.shape[:2]
    s = scale or max(1, height // h)
    if (height, width) != (h * s, w * s):
        raise DataError(_sizes_do_not_fit(pair, (h, w), (height, width), scale))
    return degraded, clean


def _sizes_do_not_fit(pair: PairFile, lq: tuple[int, int], hq: tuple[int, int], scale: int | None) -> str:
    """Names both files, and what may be wrong: the folders, the names, or the student. Sizes are (height, width)."""
    wanted = f"{scale} times" if scale else "a whole number of times"
    actual = max(1, hq[0] // lq[0])
    if lq[0] > hq[0] or lq[1] > hq[1]:
        advice = "lq is the larger one: are the two folders swapped?"
    elif scale and hq == (lq[0] * actual, lq[1] * actual):
        advice = f"the student's scale is {scale}: take one of scale {actual}, or pairs of scale {scale}"
    else:
        advice = "are these two of one photo? The template (source.lq_template) says which names belong together"
    return (
        f"pair {pair.id}: hq is {hq[1]}x{hq[0]}, lq {lq[1]}x{lq[0]}; hq has to be {wanted} as large as lq "
        f"({pair.hq}, {pair.lq}); {advice}"
    )


def load_image(uri: str, gray: bool) -> np.ndarray:
    """One image, float32 RGB in [0, 1], (H, W, 3).

    Raises:
        DataError: naming the file that cannot be read.
    """
    try:
        return decode_image(read_file(uri), gray=gray)
    except DataError as error:
        text = str(error)
        raise DataError(text if uri in text else f"{uri}: {text}") from error


def _apply(template: str, stem: str) -> str:
    folder, _, name = template.rpartition("/")
    path = PurePosixPath(stem)
    return str(PurePosixPath(folder, path.parent, name.replace("{}", path.name)))


def pairing_stem(name: str) -> str:
    """What pairs go by: a relative path without its extension, in Unicode's normal form C."""
    return unicodedata.normalize("NFC", str(PurePosixPath(name).with_suffix("")))


def _decoded(url: str, listing: Listing) -> list[ImageFile]:
    """The images without those that could not be read: a pair is used, or it is not there."""
    refused = {file.id: refusal for file in listing.images if (refusal := refusal_by_name(file.id))}
    if refused:
        first = next(iter(refused))
        logger.warning("%s: %d files are left out of its pairs (%s: %s)", url, len(refused), first, refused[first])
    if len(refused) == len(listing.images):
        raise DataError(f"{url}: no image that this program decodes among {len(refused)}")
    return [file for file in listing.images if file.id not in refused]


def _by_stem(url: str) -> tuple[dict[str, ImageFile], dict[str, ImageFile]]:
    """The images of a folder by stem, and those that are there once more, through links, under stems of their own."""
    listing = list_folder(url)
    found: dict[str, ImageFile] = {}
    for file in _decoded(url, listing):
        stem = pairing_stem(file.id)
        if stem in found:
            names = [found[stem].id, file.id]
            if len({unicodedata.normalize("NFC", name) for name in names}) == 1:
                names = [ascii(name) for name in names]  # as text they look the same
            raise DataError(f"{url}: {' and '.join(names)} share a name; pairs go by name without extension")
        found[stem] = file
    more = {pairing_stem(file.id): file for file in listing.repeats()}
    return found, {stem: file for stem, file in more.items() if stem not in found}


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
