"""One HTML page of a store's scores: histogram, yield curve and the paper's pass rates."""

from __future__ import annotations

from gmd_ray.pairstore.thresholds import PAPER_PASS_RATES, PAPER_THRESHOLD, GateView
from gmd_ray.report.charts import score_charts
from gmd_ray.report.pages import render
from gmd_ray.report.placeless import hide_places, last_name


def gate_page(view: GateView) -> str:
    """Make the page; it refers to no other file."""
    passes, total = view.passes(view.threshold), len(view.scores)
    taken, left = view.close[passes].tolist(), [*view.close[~passes].tolist(), *view.strayed.tolist()]
    page = render(
        "gate.html.j2",
        name=last_name(view.url.rstrip("/").removesuffix("/pairs")),
        metric=last_name(view.metric),
        bound=str(view.bound) if view.bound else "",
        threshold=f"{'≥' if view.higher_is_better else '≤'} {view.threshold:g}",
        total=total,
        admitted=view.admitted(view.threshold),
        charts=score_charts(taken, left, view.threshold, lambda limit: view.admitted(limit) / total),
        rows=[(f"{value:g}", n, f"{100 * n / total:.1f} %", value == view.threshold) for value, n in view.curve()],
        paper=PAPER_PASS_RATES,
        paper_threshold=PAPER_THRESHOLD,
        warnings=view.warnings,
        comparable=view.metric == "nima",
    )
    return hide_places(page, [view.url])
