"""A contact sheet of a pair store: the best, the borderline and the worst pairs, to see what the gate sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gmd_ray.evaluation.gallery import PictureRow, pair_row
from gmd_ray.evaluation.pages import render
from gmd_ray.pairstore import manifest, run_settings
from gmd_ray.pairstore.schema import accepted, rows_dataset
from gmd_ray.pairstore.store import PairStore, arrow_errors_as_data_errors
from gmd_ray.pairstore.thresholds import read_gate

SHOWN = ("restored", "pseudo_target", "lq")


def make_sheet(store: PairStore, threshold: float | None = None, limit: float | None = None, count: int = 6) -> str:
    """One HTML page that needs nothing beside itself: at most `count` pairs of each kind, each image once.

    Borderline are the scores nearest to the threshold, from both sides of it. Restored, pseudo-target and LQ input
    stand side by side; `restored` is left out where the store does not hold it.

    Args:
        threshold, limit: see `generation.gate.read_gate`.

    Raises:
        DataError: as that.
    """
    gate = read_gate(store, threshold, limit)
    rows = rows_dataset(store.path, store.filesystem)
    strangers = manifest.removed_input_ids(store.read(manifest.MANIFEST_FILE), store.read(run_settings.SETTINGS_FILE))
    view = accepted(gate.threshold, gate.higher_is_better, strangers, gate.bound)
    ok = (pc.field("status") == "ok") & pc.field("score").is_valid()
    ok = ok & ~pc.field("id").isin(pa.array(strangers, pa.string()))
    with arrow_errors_as_data_errors(store.url):
        taken = set(rows.to_table(columns=["id"], filter=view)["id"].to_pylist())
        table = rows.to_table(columns=["id", "score"], filter=ok)
    found = dict(zip(table["id"].to_pylist(), table["score"].to_pylist(), strict=True))
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
    with arrow_errors_as_data_errors(store.url):
        pictures = _pictures(rows, [key for _, pairs in chosen.values() for _, key in pairs])
    groups = [
        (title, note, [_row(pictures[key], key in taken) for _, key in pairs])
        for title, (note, pairs) in chosen.items()
        if pairs
    ]
    return render(
        "sheet.html.j2",
        url=store.url,
        threshold=f"{'≥' if gate.higher_is_better else '≤'} {gate.threshold:g}",
        bound=str(gate.bound) if gate.bound else "",
        groups=groups,
    )


def _pictures(rows: Any, ids: list[str]) -> dict[str, dict[str, Any]]:
    columns = ["id", "score", "fidelity", *SHOWN]
    found = rows.to_table(columns=columns, filter=pc.field("id").isin(pa.array(ids, pa.string()))).to_pylist()
    return {row["id"]: row for row in found}


def _row(row: dict[str, Any], taken: bool) -> PictureRow:
    closeness = "" if row["fidelity"] is None else f", fidelity {row['fidelity']:.3g}"
    note = f"score {row['score']:.3g}{closeness}, {'accepted' if taken else 'rejected'}"
    return pair_row(row["id"], {name: row[name] for name in SHOWN if row[name] is not None}, note)
