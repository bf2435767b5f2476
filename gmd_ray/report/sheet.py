"""A contact sheet of a pair store: the best, the borderline and the worst pairs by score."""

from __future__ import annotations

from typing import Any

import numpy as np

from gmd_ray.errors import DataError
from gmd_ray.pairstore.store import PairStore
from gmd_ray.pairstore.view import StoreView
from gmd_ray.report.gallery import Gallery, ShownPhoto, fit, label, pair_photo
from gmd_ray.report.pages import render
from gmd_ray.report.placeless import hide_places, last_name

SHOWN = ("restored", "pseudo_target", "lq")


def make_sheet(store: PairStore, threshold: float | None = None, limit: float | None = None, count: int = 6) -> str:
    """Make one HTML page without external files: at most `count` pairs of each kind, and each pair once.

    Borderline pairs have the scores nearest to the threshold, on both sides of it. A row shows restored image,
    pseudo-target and LQ input; `restored` is left out where the store does not hold it.

    Args:
        threshold: on the scorer's own scale; None takes the one of the last finished run.
        limit: a fidelity bound; None asks for none.

    Raises:
        DataError: nothing is scored yet, there is no threshold to take, or the bound is on a fidelity that the store
            does not hold.
    """
    gate = StoreView.open(store, threshold, limit)
    found = dict(gate.scores())
    if not found:
        raise DataError(f"{store.url}: no row has a score yet")
    taken = set(gate.ids())
    worst_first = sorted((score, key) for key, score in found.items())
    ranked = worst_first[::-1] if gate.higher_is_better else worst_first
    near = np.float32(gate.threshold)
    borderline = sorted(ranked, key=lambda pair: (abs(pair[0] - near), pair[1]))[:count]
    rest = [pair for pair in ranked if pair not in borderline]
    best, rest = rest[:count], rest[count:]
    worst = rest[-count:] if count else []
    chosen = {
        "Best": ("highest first" if gate.higher_is_better else "lowest first", best),
        "Borderline": ("nearest to the threshold, best first", [pair for pair in ranked if pair in borderline]),
        "Worst": ("worst last", worst),
    }
    shown = [key for _, pairs in chosen.values() for _, key in pairs]
    pictures = gate.rows_of(shown, ["score", "fidelity", *SHOWN])
    galleries, uris = fit(
        [
            Gallery(title, note, [_photo(pictures[key], key in taken) for _, key in pairs])
            for title, (note, pairs) in chosen.items()
        ]
    )
    page = render(
        "sheet.html.j2",
        name=last_name(store.url.rstrip("/").removesuffix("/pairs")),
        threshold=f"{'≥' if gate.higher_is_better else '≤'} {gate.threshold:g}",
        bound=str(gate.bound) if gate.bound else "",
        galleries=galleries,
        uris=uris,
        label=label,
    )
    return hide_places(page, [store.url])


def _photo(row: dict[str, Any], taken: bool) -> ShownPhoto:
    closeness = "" if row["fidelity"] is None else f", fidelity {row['fidelity']:.3g}"
    note = f"score {row['score']:.3g}{closeness}, {'accepted' if taken else 'rejected'}"
    return pair_photo(row["id"], {name: row[name] for name in SHOWN if row[name] is not None}, note)
