"""Paired folders: matching low-quality images with clean ones, and loading both."""

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
from gmd_ray.text import some

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairFile:
    """One paired sample."""

    id: str
    """Path of the clean image relative to its folder."""
    lq: str | None
    """URI of the low-quality image; None if a degradation makes it from `hq`."""
    hq: str
    """URI of the clean image."""
    files: tuple[ImageFile, ...] = field(default=(), compare=False, repr=False)
    """The listed files of the pair, the clean one first; empty if the pair does not come from a listing."""


def list_pairs(hq: str, lq: str | None, template: str = "{}", limit: int | None = None) -> list[PairFile]:
    """Pair the images of two folders by relative path without extension.

    Names that differ only in Unicode's normal form are equal: macOS stores accents separately from their letters. A
    file that appears twice in a folder, through a link, is used twice only if the other folder has both names. Files of
    formats that are not decoded are left out with a warning.

    Args:
        hq: folder or URL of clean images, read recursively.
        lq: folder or URL of their degraded versions; None if they are made by a degradation.
        template: pattern of the LQ files' names. `{}` stands for the HQ file's name without extension, and a path in
            front of it is a folder under `lq`. `{}x4` pairs `city/a.png` with `city/ax4.jpg`; `X4/{}` pairs it with
            `X4/city/a.jpg`.
        limit: keep only the first `limit` pairs; the whole folders must match nevertheless.

    Returns:
        the pairs, sorted by id.

    Raises:
        DataError: files on either side have no partner, or two files share a stem; the message names them.
        ConfigError: the template does not have exactly one `{}`, in its last path component.
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
                f"{len(missing_lq)} of {len(clean)} images in {hq} have no partner in {lq} ({some(missing_lq)})"
            )
        if unmatched_lq:
            complaints.append(
                f"{len(unmatched_lq)} of {len(degraded)} in {lq} have none in {hq} ({some(unmatched_lq)})"
            )
        raise DataError(f"pairs by name, template {template!r}: {'; '.join(complaints)}")
    both = [(clean[stem], degraded[name]) for name, stem in expected.items()]
    pairs = [PairFile(hq_file.id, lq_file.uri, hq_file.uri, (hq_file, lq_file)) for hq_file, lq_file in both]
    return sorted(pairs, key=lambda pair: pair.id)[:limit]


def list_by_stem(hq: str) -> dict[str, ImageFile]:
    """List the images of a folder by their path without extension; a file that is linked twice has both names."""
    clean, more = _by_stem(hq)
    return clean | more


def list_truths(hq: str, ids: Sequence[str], key: str, clean: Mapping[str, ImageFile] | None = None) -> list[str]:
    """Find the ground truth of each image, by path without extension.

    Args:
        hq: folder or URL of clean images; it may hold others too.
        ids: ids of the images, relative to their own folder.
        key: the setting that `hq` comes from, for the error.
        clean: what `list_by_stem(hq)` returned, where the folder has been listed before.

    Returns:
        the URI of the ground truth of each id, in their order.

    Raises:
        DataError: images have no ground truth; the message names some.
    """
    if clean is None:
        clean = list_by_stem(hq)
    missing = [image for image in ids if pairing_stem(image) not in clean]
    if missing:
        these = f"{len(missing)} of {len(ids)} photos"
        raise DataError(f"{key}={hq}: {these} have no ground truth there ({some(missing)})")
    return [clean[pairing_stem(image)].uri for image in ids]


def load_pair(
    pair: PairFile,
    degradation: Degradation | SecondOrder | None,
    gray: bool,
    key: tuple[object, ...],
    scale: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Load both images of a pair, or load the clean one and degrade it.

    Args:
        pair: a pair from `list_pairs`.
        degradation: used if `pair.lq` is None; it determines the scale.
        gray: see `decode_image`.
        key: sample key of the degradation's random draws, such as (run seed, pair id, epoch).
        scale: required HQ pixels per LQ pixel of two files; None accepts any integer that fits both axes.

    Returns:
        (lq, hq), float32 RGB in [0, 1]: (h, w, 3) and (h * scale, w * scale, 3). Before a degradation, the rows and
        columns of `hq` beyond a multiple of the scale are cut off.

    Raises:
        DataError: a file cannot be read, or the sizes do not fit; the message names the file or the pair.
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
    """Return an error message with both files and the likely mistake. Sizes are (height, width)."""
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
    """Load one image as float32 RGB in [0, 1], (H, W, 3).

    Raises:
        DataError: the file cannot be read; the message names it.
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
    """Return the key by which images are paired: the relative path without extension, in Unicode's normal form C."""
    return unicodedata.normalize("NFC", str(PurePosixPath(name).with_suffix("")))


def _decoded(url: str, listing: Listing) -> list[ImageFile]:
    """Return the listed images of decoded formats, and log a warning about the others."""
    refused = {file.id: refusal for file in listing.images if (refusal := refusal_by_name(file.id))}
    if refused:
        first = next(iter(refused))
        logger.warning("%s: %d files are left out of its pairs (%s: %s)", url, len(refused), first, refused[first])
    if len(refused) == len(listing.images):
        raise DataError(f"{url}: no image that this program decodes among {len(refused)}")
    return [file for file in listing.images if file.id not in refused]


def _by_stem(url: str) -> tuple[dict[str, ImageFile], dict[str, ImageFile]]:
    """Index the images of a folder by stem: those listed, and those repeated through links under stems of their own."""
    listing = list_folder(url)
    by_stem: dict[str, ImageFile] = {}
    for file in _decoded(url, listing):
        stem = pairing_stem(file.id)
        if stem in by_stem:
            names = [by_stem[stem].id, file.id]
            if len({unicodedata.normalize("NFC", name) for name in names}) == 1:
                names = [ascii(name) for name in names]  # printed as text, they would look the same
            raise DataError(f"{url}: {' and '.join(names)} share a name; pairs go by name without extension")
        by_stem[stem] = file
    repeats = {pairing_stem(file.id): file for file in listing.repeats()}
    return by_stem, {stem: file for stem, file in repeats.items() if stem not in by_stem}
