"""The timeline of a cluster: nodes, teachers at work and images per second, as a table and as a figure."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEP_S = 1.0
WINDOW_S = 5.0
"""Time over which images per second are averaged."""
INK, SOFT, NODES, BUSY = "#1f2933", "#6b7785", "#9db8d9", "#1f5fa8"


@dataclass(frozen=True)
class Moment:
    """The state of a cluster at one time."""

    seconds: float
    """Since the run began."""
    nodes: int
    """Nodes of the teachers that are alive."""
    busy: int
    """Teachers at work on a batch."""
    images_per_second: float
    """Images that teachers finished in the `WINDOW_S` around this time, for each second."""


@dataclass(frozen=True)
class Timeline:
    """Moments at equal distances, and what happened between them."""

    moments: list[Moment]
    events: list[tuple[float, str]]
    """(seconds since the run began, what happened)."""

    @classmethod
    def of(
        cls,
        begin: float,
        nodes: Sequence[tuple[float, int]],
        calls: Sequence[tuple[float, float, int]],
        events: Sequence[tuple[float, str]],
    ) -> Timeline:
        """Put together what was seen.

        Args:
            begin: the time at which the run began. All times are in seconds since the epoch.
            nodes: (time, number of nodes), in order of time.
            calls: (begin, end, images) of each finished call of a teacher, in any order.
            events: (time, words).
        """
        moments = []
        for step in range(math.ceil((nodes[-1][0] - begin) / STEP_S) + 1):
            now = begin + step * STEP_S
            seen = [count for time, count in nodes if time <= now] or [nodes[0][1]]
            busy = sum(start <= now < end for start, end, _ in calls)
            done = sum(images for _, end, images in calls if abs(end - now) <= WINDOW_S / 2)
            moments.append(Moment(step * STEP_S, seen[-1], busy, round(done / WINDOW_S, 2)))
        return cls(moments, [(round(time - begin, 1), words) for time, words in events])

    def summary(self) -> dict[str, Any]:
        """Return the figures that a text about the timeline needs."""
        most = max(moment.nodes for moment in self.moments)
        return {
            "most_nodes": most,
            "all_up_s": next(moment.seconds for moment in self.moments if moment.nodes == most),
            "events": self.events,
            "all_gone_s": next(m.seconds for m in reversed(self.moments) if m.nodes) + STEP_S,
            "most_images_per_second": max(moment.images_per_second for moment in self.moments),
        }

    def write(self, folder: Path) -> None:
        """Write timeline.csv, a line for each moment, and timeline.json, with events and summary as well."""
        with open(folder / "timeline.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["seconds", "nodes", "busy", "images_per_second"])
            writer.writerows([m.seconds, m.nodes, m.busy, m.images_per_second] for m in self.moments)
        everything = {"moments": [vars(moment) for moment in self.moments], **self.summary()}
        (folder / "timeline.json").write_text(json.dumps(everything, indent=1))


def draw(timeline: Timeline, path: Path, most: int) -> None:
    """Draw a timeline as SVG: nodes and teachers at work above, images per second below; `most` nodes may be there."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    seconds = [moment.seconds for moment in timeline.moments]
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "timeline",
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": SOFT,
        "axes.labelcolor": INK,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
    }
    with rc_context(style):
        figure = Figure(figsize=(9, 4.6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        nodes, busy = [m.nodes for m in timeline.moments], [m.busy for m in timeline.moments]
        above.fill_between(seconds, nodes, step="post", color=NODES, alpha=0.6, linewidth=0, label="teacher nodes")
        above.step(seconds, busy, where="post", color=BUSY, linewidth=1.4, label="teachers at work")
        above.set(ylabel="number", ylim=(0, most + 0.8))
        above.yaxis.set_major_locator(MaxNLocator(integer=True))
        above.legend(loc="upper left", frameon=False, labelcolor=INK, ncols=2, borderaxespad=0)
        below.plot(seconds, [m.images_per_second for m in timeline.moments], color=BUSY, linewidth=1.4)
        below.set(xlabel="seconds since the run began", ylabel="images/s", xlim=(0, seconds[-1]))
        below.set_ylim(bottom=0)
        for time, words in timeline.events:
            for axes in (above, below):
                axes.axvline(time, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            late = time > 0.8 * seconds[-1]
            above.annotate(
                words, (time, 1), (-5 if late else 5, -2), xycoords=("data", "axes fraction"), color=INK,
                textcoords="offset points", ha="right" if late else "left", va="top",
            )  # fmt: skip
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(path, format="svg", metadata=unsaid)
