"""Photographs of a page, each with all its versions, in galleries that say why they were chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gmd_ray.config import Config
from gmd_ray.errors import GmdError
from gmd_ray.evaluation.actor import ADAPTED, PICTURE_SIDE, centre
from gmd_ray.evaluation.results import TRUTH, UNTOUCHED, Evaluation
from gmd_ray.evaluation.store import StoreSummary, borderline_pairs, shown_pairs
from gmd_ray.evaluation.summaries.gains import Gains
from gmd_ray.evaluation.table import BASELINE
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.encode import decode_png, encode_png, png_size
from gmd_ray.images.listing import read_file
from gmd_ray.images.sets.pairs import pairing_stem
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.report.encode import BUDGET, encode_pictures

LABELS = {
    UNTOUCHED: "untouched photo",
    BASELINE: "restored (before)",
    "restored": "restored (before)",
    "pseudo_target": "pseudo-target",
    ADAPTED: "adapted (after)",
    TRUTH: "ground truth",
}
"""Words of a page for the names of rows and pictures; a control keeps its own name."""
SHOWN = ("lq", "restored", "pseudo_target")
"""Columns of the pair store that a page shows."""


@dataclass(frozen=True)
class ShownPhoto:
    """One photograph in its versions."""

    id: str
    versions: Mapping[str, bytes]
    """PNGs by name, in the order of a page; all show the same part of the image."""
    before: str
    """Name of the version that stands on the left at first."""
    after: str
    """Name of the version that stands on the right at first."""
    note: str = ""
    marks: Mapping[str, str] = field(default_factory=dict)
    """A figure for each version, such as its PSNR."""
    style: str = ""
    """better, worse, or nothing."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels of the largest version."""
        return max(png_size(png) for png in self.versions.values())


@dataclass(frozen=True)
class Gallery:
    """Photographs that were chosen for one reason."""

    title: str
    note: str
    photos: list[ShownPhoto]
    empty: str = ""
    """Sentence that stands where no photograph does; without one the gallery is left out."""
    folded: bool = False
    """True where the reader has to open it."""


def label(name: str) -> str:
    """The words of a page for the name of a student or picture."""
    return LABELS.get(name, name.replace("_", " "))


def held_out_galleries(evaluation: Evaluation, gains: Gains | None, count: int) -> list[Gallery]:
    """The galleries of the target test set: typical, most improved and most harmed; no photo is in two of them.

    Without gains the photos are those that the evaluation kept, which are spread evenly over the test set.
    """
    pictured = evaluation.pictured("target")
    if gains is None or gains.dataset != "target":
        return [Gallery("Target test photos", "evenly over the test set", _test_photos(evaluation, "target", pictured))]
    kept = set(pictured)
    half = max(1, len(gains.by_image) // 3)
    improved = [image for image in gains.most_improved(min(count, half)) if image in kept]
    harmed = [image for image in gains.most_harmed(min(count, half)) if image in kept and image not in improved]
    rest = [image for image in pictured if image not in {*improved, *harmed}]
    typical = gains.typical(min(count, max(3, len(gains.by_image) // 6)), rest or pictured)
    chosen = [
        ("Typical", "gains nearest the median of all", typical, ""),
        ("Most improved", "largest gains first", improved, "No test photo improves."),
        ("Most harmed", "largest losses first", harmed, "No test photo gets worse."),
    ]
    return [
        Gallery(title, note, _test_photos(evaluation, "target", images, gains), empty)
        for title, note, images, empty in chosen
    ]


def source_gallery(evaluation: Evaluation, gains: Gains | None) -> Gallery:
    """The gallery of the source test set."""
    photos = _test_photos(evaluation, "source", evaluation.pictured("source"), gains)
    note = "the domain that the student was trained on; evenly over the set"
    return Gallery("Source test photos", note, photos, folded=True)


def _test_photos(
    evaluation: Evaluation, dataset: str, images: Iterable[str], gains: Gains | None = None
) -> list[ShownPhoto]:
    photos = []
    for image in images:
        names = [UNTOUCHED, *(name for name in evaluation.students if name not in (UNTOUCHED, ADAPTED)), ADAPTED, TRUTH]
        found = {name: evaluation.picture(dataset, image, name) for name in dict.fromkeys(names)}
        versions = {name: png for name, png in found.items() if png is not None}
        psnr = {name: evaluation.values(name, dataset, "psnr").get(image) for name in versions}
        after = ADAPTED if ADAPTED in versions else BASELINE if BASELINE in versions else UNTOUCHED
        before = BASELINE if after == ADAPTED and BASELINE in versions else UNTOUCHED
        if before not in versions or after not in versions:
            continue
        marks = {name: f"{value:.2f} dB" for name, value in psnr.items() if value is not None}
        gain = None if gains is None else gains.by_image.get(image)
        style = "" if gain is None else "better" if gain > 0 else "worse" if gain < 0 else ""
        note = "" if gains is None else gains.text(image)
        photos.append(ShownPhoto(image, versions, before, after, note, marks, style))
    return photos


def pair_galleries(cfg: Config, store: StoreSummary, evaluation: Evaluation, inputs: RunInputs) -> list[Gallery]:
    """The galleries of the pair store: accepted, borderline and rejected pairs; no pair is in two of them."""
    shown = shown_pairs(store, cfg.evaluation.report_images)
    near = set(borderline_pairs(store, cfg.evaluation.report_images))
    taken = {image for image, _ in store.accepted}
    images = store.images(shown)
    truth = _truths(cfg, shown, inputs)
    photos = {}
    for image in shown:
        parts = {name: png for name in SHOWN if (png := images[image][name]) is not None}
        png = evaluation.picture("pairs", image, ADAPTED)
        hq = _read(truth[image], cfg.target.gray) if image in truth else None
        verdict = "accepted" if image in taken else "rejected"
        note = f"score {images[image]['score']:.3g}" + (f", {verdict}" if image in near else "")
        photos[image] = pair_photo(image, parts, note, adapted=png, truth=hq)
    order = [image for image, _ in store.scores if image in photos]
    chosen = [
        ("Accepted pairs", "evenly over the scores, best first",
         [image for image in order if image in taken and image not in near]),
        ("Borderline pairs", "scores nearest to the threshold, best first", [i for i in order if i in near]),
        ("Rejected pairs", "evenly over the scores, best first; never trained on",
         [image for image in order if image not in taken and image not in near]),
    ]  # fmt: skip
    return [Gallery(title, note, [photos[image] for image in ids]) for title, note, ids in chosen]


def pair_photo(
    image: str,
    pngs: Mapping[str, bytes],
    note: str,
    *,
    adapted: bytes | None = None,
    truth: np.ndarray | None = None,
    after: str = "pseudo_target",
) -> ShownPhoto:
    """Make the photo of one row of the pair store, its images cut to the same centre.

    Args:
        image: id of the row.
        pngs: PNGs by column, `lq` and `after` among them, in the order of the page.
        note: text beside the id.
        adapted: PNG of the adapted student's output, cut already.
        truth: ground truth, (H, W, 3) in [0, 1].
        after: the version that stands on the right at first.
    """
    parts = {name: decode_png(png) for name, png in pngs.items()}
    scale = parts[after].shape[1] // parts["lq"].shape[1]
    parts = {name: centre(part, PICTURE_SIDE // (scale if name == "lq" else 1)) for name, part in parts.items()}
    if adapted is not None:
        parts[ADAPTED] = decode_png(adapted)
    if truth is not None:
        parts[TRUTH] = centre(truth, PICTURE_SIDE)
    marks = {name: _psnr(part, parts.get(TRUTH)) for name, part in parts.items()}
    versions = {name: encode_png(part, 6) for name, part in parts.items()}
    before = "restored" if "restored" in versions else UNTOUCHED
    return ShownPhoto(image, versions, before, after, note, {name: mark for name, mark in marks.items() if mark})


def fit(galleries: Sequence[Gallery], budget: int = BUDGET) -> tuple[list[Gallery], dict[bytes, str]]:
    """Encode the pictures of all galleries within a number of bytes; the longest galleries are cut until they fit.

    Returns:
        The galleries without empty ones that have nothing to say, and the URI of each PNG.
    """
    kept = list(galleries)
    while True:
        pngs = [png for gallery in kept for photo in gallery.photos for png in photo.versions.values()]
        uris = encode_pictures(pngs, budget)
        if uris is not None:
            return [gallery for gallery in kept if gallery.photos or gallery.empty], uris
        most = max(len(gallery.photos) for gallery in kept) // 2
        kept = [replace(gallery, photos=gallery.photos[:most]) for gallery in kept]


def _truths(cfg: Config, ids: Sequence[str], inputs: RunInputs) -> Mapping[str, str]:
    """URIs of the ground truth of target images by id, paired by path without extension."""
    if cfg.evaluation.pairs_hq is None:
        return {}
    listing = inputs.folder(cfg.evaluation.pairs_hq)
    by_stem = {pairing_stem(file.id): file.uri for file in (*listing.repeats(), *listing.images)}
    stems = {image: pairing_stem(image) for image in ids}
    return {image: by_stem[stem] for image, stem in stems.items() if stem in by_stem}


def _read(uri: str, gray: bool) -> np.ndarray | None:
    try:
        return decode_image(read_file(uri), gray=gray)
    except GmdError:  # the ground truth is for the report alone, which leaves the picture out
        return None


def _psnr(part: np.ndarray, hq: np.ndarray | None) -> str:
    """The PSNR over RGB as text; empty for the ground truth itself, and without one of the same size."""
    if hq is None or hq is part or hq.shape != part.shape:
        return ""
    error = float(np.mean((part.astype(np.float64) - hq) ** 2))
    return "identical" if error == 0 else f"{-10 * math.log10(error):.2f} dB"
