"""Small charts as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 18, 34
BINS = 32


def histogram(accepted: Sequence[float], rejected: Sequence[float], threshold: float) -> Markup:
    """A histogram of the scores of accepted and rejected pairs, stacked, with a line at the threshold."""
    low, high = _around([*accepted, *rejected, threshold])
    edges = np.linspace(low, high, BINS + 1)
    counts = {name: np.histogram(values, edges)[0] for name, values in (("accepted", accepted), ("rejected", rejected))}
    top = int((counts["accepted"] + counts["rejected"]).max()) or 1
    frame = _Frame(low, high, 0, top)
    parts = [frame.axes("score", "pairs")]
    width = (WIDTH - LEFT - RIGHT) / BINS
    for i in range(BINS):
        base = 0
        for name, of in counts.items():
            n = int(of[i])
            if n:
                y = frame.y(base + n)
                parts.append(
                    f'<rect class="{name}" x="{frame.x(edges[i]) + 0.75:.1f}" y="{y:.1f}" width="{width - 1.5:.1f}" '
                    f'height="{frame.y(base) - y:.1f}"><title>{n} {name}</title></rect>'
                )
            base += n
    parts.append(_mark(frame, threshold))
    return _svg(parts, "Histogram of scores")


def curves(series: Mapping[str, Sequence[tuple[float, float]]]) -> Markup:
    """A line chart of points (step, loss) by name."""
    points = [point for line in series.values() for point in line]
    steps, values = [x for x, _ in points], [y for _, y in points]
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    frame = _Frame(min(steps), max(max(steps), min(steps) + 1), low - margin, high + margin)
    parts = [frame.axes("step", "training loss")]
    for i, (name, line) in enumerate(series.items()):
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in sorted(line))
        x, y = WIDTH - RIGHT, TOP + 6 + 15 * i
        parts.append(f'<polyline class="line l{i % 4}" points="{path}"/>')
        parts.append(f'<text class="l{i % 4}" x="{x}" y="{y}" text-anchor="end">{escape(name)}</text>')
    return _svg(parts, "Training loss")


def yield_curve(points: Sequence[tuple[float, float]], threshold: float) -> Markup:
    """A line chart of points (threshold, per cent accepted), with a line at the given threshold."""
    frame = _Frame(*_around([*(x for x, _ in points), threshold]), 0, 100)
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in sorted(points))
    line = f'<polyline class="line l0" points="{path}"/>'
    return _svg([frame.axes("threshold", "% accepted"), line, _mark(frame, threshold)], "Yield over thresholds")


class _Frame:
    """The mapping from data to pixels, and the axes."""

    def __init__(self, x0: float, x1: float, y0: float, y1: float) -> None:
        self.x0, self.x1, self.y0, self.y1 = x0, x1, y0, y1

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str, y_label: str) -> str:
        parts = []
        bottom = HEIGHT - BOTTOM
        for value in _ticks(self.y0, self.y1, 4):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        for value in _ticks(self.x0, self.x1, 6):
            x, y = self.x(value), bottom + 16
            parts.append(f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="middle">{value:g}</text>')
        parts.append(f'<line class="axis" x1="{LEFT}" y1="{bottom}" x2="{WIDTH - RIGHT}" y2="{bottom}"/>')
        parts.append(f'<text class="label" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{x_label}</text>')
        parts.append(f'<text class="label" x="{LEFT}" y="{TOP - 7}">{y_label}</text>')
        return "".join(parts)


def _around(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis that holds these values."""
    low, high = min(values), max(values)
    margin = (high - low) * 0.04 or 0.5
    return low - margin, high + margin


def _mark(frame: _Frame, threshold: float) -> str:
    """A vertical line at the threshold."""
    x = frame.x(threshold)
    anchor, shift = ("end", -6) if x > WIDTH / 2 else ("start", 6)
    return (
        f'<line class="threshold" x1="{x:.1f}" y1="{TOP - 4}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="threshold" x="{x + shift:.1f}" y="{TOP + 6}" text-anchor="{anchor}">'
        f"threshold {threshold:g}</text>"
    )


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round values between the ends of an axis, about as many as wanted."""
    raw = (high - low) / wanted
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    first = math.ceil(low / step)
    return [round(i * step, 12) for i in range(first, math.floor(high / step) + 1)]


def _svg(parts: Sequence[str], title: str) -> Markup:
    body = "".join(parts)
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{body}</svg>')
