"""Rows of pictures for the report and the contact sheet."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gmd_ray.config import Config
from gmd_ray.errors import GmdError
from gmd_ray.evaluation.actor import ADAPTED, PICTURE_SIDE, centre
from gmd_ray.evaluation.results import Evaluation
from gmd_ray.evaluation.store import StoreSummary, shown_pairs
from gmd_ray.evaluation.table import BASELINE
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.encode import decode_png, encode_png, png_size
from gmd_ray.images.listing import read_file
from gmd_ray.images.sets.pairs import pairing_stem
from gmd_ray.images.sets.run_inputs import RunInputs

NAMES = {"lq": "LQ input", BASELINE: "restored (baseline)", "pseudo_target": "pseudo-target", "hq": "ground truth"}
SHOWN = ("lq", "restored", "pseudo_target")
"""Columns of the pair store that the report shows."""


@dataclass(frozen=True)
class Figure:
    """One picture with its caption."""

    name: str
    src: str
    """The PNG as a `data:` URI."""
    width: int
    """Width on the page, in CSS pixels."""
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class PictureRow:
    """Versions of one image, side by side."""

    id: str
    figures: list[Figure]
    note: str = ""


def held_out_rows(evaluation: Evaluation, dataset: str) -> list[PictureRow]:
    """The test images: input, output of every student and ground truth, with PSNR if it was measured."""
    rows = []
    for image in evaluation.pictured(dataset):
        pngs = {name: evaluation.picture(dataset, image, name) for name in ("lq", *evaluation.students, "hq")}
        psnr = {name: evaluation.values(name, dataset, "psnr").get(image) for name in pngs}
        best = max((value for value in psnr.values() if value is not None), default=None)
        # All pictures get the width of an output; the input is enlarged for students of a scale above 1.
        width = max(_width(png) for png in pngs.values() if png is not None)
        figures = [
            Figure(NAMES.get(name, name), _uri(png), width, _db(psnr[name]), best is not None and psnr[name] == best)
            for name, png in pngs.items()
            if png is not None
        ]
        rows.append(PictureRow(image, figures))
    return rows


def pair_rows(
    cfg: Config, store: StoreSummary, evaluation: Evaluation, inputs: RunInputs
) -> tuple[list[PictureRow], list[PictureRow]]:
    """Accepted and rejected pairs: LQ, restored, pseudo-target, output of the adapted student, and ground truth."""
    shown = shown_pairs(store, cfg.evaluation.report_images)
    images = store.images(shown)
    truth = _truths(cfg, shown, inputs)
    accepted = {image for image, _ in store.accepted}
    rows: tuple[list[PictureRow], list[PictureRow]] = ([], [])
    for image in shown:
        parts = _centred({name: decode_png(images[image][name]) for name in SHOWN if images[image][name] is not None})
        if (png := evaluation.picture("pairs", image, ADAPTED)) is not None:
            parts[ADAPTED] = decode_png(png)
        if image in truth and (hq := _read(truth[image], cfg.target.gray)) is not None:
            parts["hq"] = centre(hq, PICTURE_SIDE)
        width = _zoom(parts["pseudo_target"].shape[1])
        figures = [
            Figure(NAMES.get(name, name), _uri(encode_png(part, 6)), width, _psnr(part, parts.get("hq")))
            for name, part in parts.items()
        ]
        rows[0 if image in accepted else 1].append(PictureRow(image, figures, f"score {images[image]['score']:.3g}"))
    return rows


def pair_row(image: str, pngs: Mapping[str, bytes], note: str) -> PictureRow:
    """Images of one row of the pair store side by side, in the order given, cut to their centre.

    Args:
        image: id of the row.
        pngs: PNGs by column, `lq` and `pseudo_target` among them.
        note: text beside the id.
    """
    parts = _centred({name: decode_png(png) for name, png in pngs.items()})
    width = _zoom(parts["pseudo_target"].shape[1])
    return PictureRow(
        image, [Figure(NAMES.get(name, name), _uri(encode_png(x, 6)), width) for name, x in parts.items()], note
    )


def _centred(parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same centre of all images of a pair; that of `lq` is smaller by the student's scale."""
    scale = parts["pseudo_target"].shape[1] // parts["lq"].shape[1]
    return {name: centre(part, PICTURE_SIDE // (scale if name == "lq" else 1)) for name, part in parts.items()}


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
    return "identical" if error == 0 else _db(-10 * math.log10(error))


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} dB"


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _width(png: bytes) -> int:
    """The CSS width of a picture, from the width in its PNG header."""
    return _zoom(png_size(png)[0])


def _zoom(width: int) -> int:
    return width * (3 if width <= 96 else 2 if width <= 160 else 1)
