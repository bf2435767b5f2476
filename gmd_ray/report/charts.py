"""Charts of a page as inline SVG, drawn by matplotlib and coloured by the page's style sheet."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 420, 260
"""Units of a chart's view box; a phone shows it at four fifths of that, so that its text stays legible."""
MOST_POINTS = 1500
"""Points of a scatter at most, taken evenly by order: a page must not grow with the test set."""
MOST_STEPS = 400
"""Points of a line at most."""
BINS = 30
YIELD_POINTS = 101

# Colours that stand for variables of the style sheet, so that a chart follows the reader's light or dark page.
_COLOURS = {
    "ink": "#010101",
    "soft": "#020202",
    "line": "#030303",
    "accent": "#040404",
    "good": "#050505",
    "bad": "#060606",
    "accepted": "#070707",
    "rejected": "#080808",
    "l1": "#090909",
    "l2": "#0a0a0a",
    "l3": "#0b0b0b",
}
_SERIES = ("accent", "l1", "l2", "l3")


def scatter(before: Sequence[float], after: Sequence[float], metric: str, higher_is_better: bool) -> Markup:
    """Plot each image as a point: its value before the adaptation against its value after it.

    Points on the better side of the diagonal have the colour of a gain.
    """
    take = _thinned(len(before), MOST_POINTS)
    x, y = np.asarray(before, float)[take], np.asarray(after, float)[take]
    better = y > x if higher_is_better else y < x

    def draw(axes: Axes) -> None:
        ends = _around(np.concatenate([x, y]))
        axes.plot(ends, ends, color=_COLOURS["soft"], linewidth=1, linestyle=(0, (4, 3)))
        for of, colour in ((better, "good"), (~better, "bad")):
            axes.scatter(x[of], y[of], s=16, color=_COLOURS[colour], alpha=0.75, linewidths=0)
        axes.set(xlim=ends, ylim=ends, xlabel=f"{metric} before", ylabel=f"{metric} after")

    side = "above" if higher_is_better else "below"
    return _svg(draw, f"{metric} of each image, before and after; {int(better.sum())} of {len(x)} points lie {side} "
                      "the diagonal, on the better side")  # fmt: skip


def gains(values: Sequence[float], mean: float, low: float | None, high: float | None, unit: str) -> Markup:
    """Plot the distribution of the gains over the images, with their mean and its interval.

    Args:
        values: a gain for each image; positive is better.
        mean: their mean.
        low: lower end of the 95 % interval of the mean; None where there is none.
        high: upper end of it.
        unit: name of the axis.
    """
    of = np.asarray(values, float)

    def draw(axes: Axes) -> None:
        left, right = _around(np.append(of, 0.0))
        counts, edges = np.histogram(of, np.linspace(left, right, BINS + 1))
        middles, width = (edges[:-1] + edges[1:]) / 2, (right - left) / BINS
        colours = [_COLOURS["good" if middle > 0 else "bad"] for middle in middles]
        axes.bar(middles, counts, width * 0.88, color=colours, alpha=0.75, linewidth=0)
        if low is not None and high is not None:
            axes.axvspan(low, high, color=_COLOURS["ink"], alpha=0.14, linewidth=0)
        axes.axvline(mean, color=_COLOURS["ink"], linewidth=1.6)
        axes.axvline(0, color=_COLOURS["soft"], linewidth=1, linestyle=(0, (4, 3)))
        axes.set(xlim=(left, right), ylim=(0, max(counts.max() * 1.12, 1)), xlabel=unit, ylabel="images")
        _whole(axes)

    spread = "" if low is None or high is None else f", 95 % interval {low:.3g} to {high:.3g}"
    return _svg(draw, f"Gains of {len(of)} images: mean {mean:.3g}{spread}")


def histogram(accepted: Sequence[float], rejected: Sequence[float], threshold: float) -> Markup:
    """Plot the scores of accepted and rejected pairs, stacked, with a line at the threshold."""

    def draw(axes: Axes) -> None:
        ends = _around(np.array([*accepted, *rejected, threshold], float))
        edges = np.linspace(*ends, BINS + 1)
        counts = {name: np.histogram(of, edges)[0] for name, of in (("rejected", rejected), ("accepted", accepted))}
        base = np.zeros(BINS)
        for name, count in counts.items():
            if count.any():
                centres = (edges[:-1] + edges[1:]) / 2
                axes.bar(centres, count, (edges[1] - edges[0]) * 0.88, base, color=_COLOURS[name], linewidth=0,
                         label=name)  # fmt: skip
            base = base + count
        axes.set(xlim=ends, ylim=(0, max(base.max() * 1.22, 1)), xlabel="score", ylabel="pairs")
        _threshold(axes, threshold, ends)
        _whole(axes)

    return _svg(draw, f"Histogram of scores: {len(accepted)} accepted, {len(rejected)} rejected, threshold "
                      f"{threshold:g}")  # fmt: skip


def score_charts(
    accepted: Sequence[float],
    rejected: Sequence[float],
    threshold: float,
    share: Callable[[float], float] | None,
    of: str = "scored pairs",
) -> list[dict[str, Any]]:
    """The histogram of the scores and the yield curve, as `title`, `svg` and `note` for the macro `chart`.

    Args:
        accepted: scores of accepted pairs.
        rejected: scores of the others.
        threshold: the gate's.
        share: the share of pairs in [0, 1] that a threshold accepts; None leaves the curve out.
        of: the things that `share` is counted over, in words.
    """
    note = f"{len(accepted):,} accepted, {len(rejected):,} rejected."
    made = [{"title": "Scores", "svg": histogram(accepted, rejected, threshold), "note": note}]
    if share is not None:
        low, high = min([*accepted, *rejected]), max([*accepted, *rejected])
        line = [(x, 100 * share(x)) for x in np.linspace(low, high, YIELD_POINTS).tolist()]
        note = f"The threshold accepts {100 * share(threshold):.1f} % of the {of}."
        made.append({"title": "Yield of each threshold", "svg": yield_curve(line, threshold), "note": note})
    return made


def yield_curve(points: Sequence[tuple[float, float]], threshold: float) -> Markup:
    """Plot points (threshold, per cent accepted) as a line, with a mark at the given threshold."""

    def draw(axes: Axes) -> None:
        x, y = zip(*sorted(points), strict=True)
        ends = _around(np.array([*x, threshold], float))
        axes.plot(x, y, color=_COLOURS["accent"], linewidth=2)
        axes.set(xlim=ends, ylim=(0, 116), yticks=[0, 25, 50, 75, 100], xlabel="threshold", ylabel="% accepted")
        _threshold(axes, threshold, ends)

    return _svg(draw, f"Share of pairs accepted at each threshold; the threshold is {threshold:g}")


def curves(series: Mapping[str, Sequence[tuple[float, float]]], quantity: str) -> Markup:
    """Plot points (step, value) as a line for each name.

    Args:
        quantity: name of the axis of values.
    """

    def draw(axes: Axes) -> None:
        for i, (name, line) in enumerate(series.items()):
            points = np.array(sorted(line), float)[_thinned(len(line), MOST_STEPS)]
            dot = "o" if len(points) == 1 else None
            axes.plot(points[:, 0], points[:, 1], color=_COLOURS[_SERIES[i % 4]], linewidth=1.6, marker=dot, label=name)
        axes.set(xlabel="step", ylabel=quantity)
        axes.margins(x=0.02, y=0.12)
        if len(series) > 1:
            axes.legend(loc="best", frameon=False, labelcolor=_COLOURS["ink"], handlelength=1.2)

    return _svg(draw, f"{quantity} over the steps of {', '.join(series)}")


def _svg(draw: Callable[[Axes], None], words: str) -> Markup:
    """Draw one pair of axes; `words` say for a screen reader what the chart shows."""
    from matplotlib import rc_context  # imported late: it takes a second
    from matplotlib.figure import Figure

    rc = {
        "svg.fonttype": "none",
        "font.size": 13,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.edgecolor": _COLOURS["soft"],
        "axes.labelcolor": _COLOURS["soft"],
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "xtick.color": _COLOURS["soft"],
        "ytick.color": _COLOURS["soft"],
        "ytick.left": False,
        "text.parse_math": False,
    }
    with rc_context(rc):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="y", color=_COLOURS["line"], linewidth=1)
        axes.locator_params(axis="x", nbins=6)
        draw(axes)
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        sink = io.StringIO()
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(sink.getvalue(), words)


def _inline(text: str, words: str) -> Markup:
    """Make matplotlib's file a part of a page: no header, ids of its own, the page's fonts and colours."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # its rule would hold for the whole page
    prefix = f"c{zlib.crc32(text.encode()):x}-"
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'xlink:href="#', f'href="#{prefix}', text)
    text = re.sub(r"url\(#", f"url(#{prefix}", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r" font-family: [^;\"]*;?", "", text)
    for name, colour in _COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    body = text[text.index(">") + 1 :]
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}">'
    return Markup(head + re.sub(r"\n\s*", "\n", body).rstrip())


def _threshold(axes: Axes, value: float, ends: tuple[float, float]) -> None:
    axes.axvline(value, color=_COLOURS["ink"], linewidth=1.3, linestyle=(0, (4, 3)))
    late = value > sum(ends) / 2
    axes.annotate(
        f"threshold {value:g}", (value, 1), (-6 if late else 6, -2), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="right" if late else "left", va="top", color=_COLOURS["ink"],
    )  # fmt: skip


def _whole(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _around(values: np.ndarray) -> tuple[float, float]:
    """The ends of an axis that holds these values."""
    low, high = float(values.min()), float(values.max())
    margin = (high - low) * 0.04 or abs(high) * 0.1 or 0.5
    return low - margin, high + margin


def _thinned(count: int, most: int) -> np.ndarray:
    """Indices of at most that many of `count` entries, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
