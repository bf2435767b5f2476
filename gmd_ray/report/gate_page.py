"""One HTML page of a store's scores: histogram, yield curve and the paper's pass rates."""

from __future__ import annotations

import numpy as np

from gmd_ray.pairstore.thresholds import PAPER_PASS_RATES, PAPER_THRESHOLD, GateView
from gmd_ray.report import svg
from gmd_ray.report.pages import render

POINTS = 101
"""Number of points of the yield curve."""


def gate_page(view: GateView) -> str:
    """Make the page; it refers to no other file."""
    passes, scores, total = view.passes(view.threshold), view.scores, len(view.scores)
    taken, left = view.close[passes].tolist(), [*view.close[~passes].tolist(), *view.strayed.tolist()]
    line = [(x, 100 * view.admitted(x) / total) for x in np.linspace(scores[0], scores[-1], POINTS).tolist()]
    return render(
        "gate.html.j2",
        url=view.url,
        metric=view.metric,
        bound=str(view.bound) if view.bound else "",
        threshold=f"{'≥' if view.higher_is_better else '≤'} {view.threshold:g}",
        total=total,
        admitted=view.admitted(view.threshold),
        histogram=svg.histogram(taken, left, view.threshold),
        yields=svg.yield_curve(line, view.threshold),
        rows=[(f"{value:g}", n, f"{100 * n / total:.1f} %", value == view.threshold) for value, n in view.curve()],
        paper=PAPER_PASS_RATES,
        paper_threshold=PAPER_THRESHOLD,
        warnings=view.warnings,
        comparable=view.metric == "nima",
    )
