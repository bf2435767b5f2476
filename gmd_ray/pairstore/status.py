"""State of a run, read from its store alone; nothing is changed."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from gmd_ray.pairstore.history import read_runs
from gmd_ray.pairstore.lock import holder_of
from gmd_ray.pairstore.manifest import read_manifest
from gmd_ray.pairstore.run_settings import read_settings
from gmd_ray.pairstore.store import PairStore
from gmd_ray.pairstore.view import removed_inputs
from gmd_ray.storage import map_threads
from gmd_ray.text import printable, some

COLUMNS = ["id", "status", "error_stage", "error_type"]


@dataclass(frozen=True)
class Status:
    """Counts of a store, and the driver at work on it."""

    url: str
    ok: int
    failed: int
    inputs: int | None
    """Number of inputs of the last run that began here; None where it is not recorded."""
    failures: dict[str, int]
    """`stage: error type` -> rows, most frequent first."""
    skipped: int
    """Part files that could not be read; `gmd-ray verify` names them."""
    failed_ids: dict[str, list[str]]
    """The ids of failed rows by the same keys as `failures`, sorted."""
    holder: dict[str, str] | None
    """Keys `pid`, `host`, `since` and `beat` of the driver at work; None where no driver is."""
    images_per_second: float | None
    """Rate of the run going on, else of the last finished run."""
    finished: bool

    @property
    def rows(self) -> int:
        return self.ok + self.failed

    @property
    def eta_s(self) -> float | None:
        """Estimated seconds to go; None where no driver is at work or its rate is not known."""
        if self.holder is None or self.inputs is None or not self.images_per_second:
            return None
        return max(0, self.inputs - self.rows) / self.images_per_second

    def as_json(self) -> dict[str, Any]:
        """The state for programs: the fields, `rows` and `eta_s`."""
        return {**asdict(self), "rows": self.rows, "eta_s": self.eta_s}

    def __str__(self) -> str:
        of = f" of {self.inputs:,}" if self.inputs is not None else ""
        share = f" ({100 * self.rows / self.inputs:.0f}%)" if self.inputs else ""
        lines = [self.url, f"{self.rows:,}{of} rows{share}: {self.ok:,} ok, {self.failed:,} failed"]
        lines += [f"  {count:,} {kind} ({some(self.failed_ids[kind])})" for kind, count in self.failures.items()]
        if self.skipped:
            lines.append(f"{self.skipped} part files cannot be read; gmd-ray verify names them")
        if self.images_per_second:
            lines.append(f"{self.images_per_second:.3g} images/s{' so far' if self.holder else ' in the last run'}")
        if self.eta_s is not None:
            lines.append(f"about {_span(self.eta_s)} to go")
        if self.holder is not None:
            since = float(self.holder.get("since", self.holder["beat"]))
            at = datetime.fromtimestamp(since).strftime("%Y-%m-%d %H:%M:%S")
            who = f"process {self.holder['pid']} on {self.holder['host']}"
            lines.append(f"{who} is at work since {at} ({_span(time.time() - since)})")
        else:
            lines.append(f"nobody is at work here; the last run {'finished' if self.finished else 'did not finish'}")
        return "\n".join(map(printable, lines))


def read_status(store: PairStore) -> Status:
    """Read the state of a store.

    A part file that disappears meanwhile (a driver rewrites parts to drop duplicates) is left out; an id that has
    several rows counts once.
    """
    holder = holder_of(store.filesystem, store.path)
    infos = store.filesystem.get_file_info(fs.FileSelector(store.rows_path, allow_not_found=True))
    parts = [info for info in infos if info.base_name.startswith("part-") and info.base_name.endswith(".parquet")]
    rows: dict[str, tuple[str, str]] = {}
    skipped = 0
    manifest, settings = read_manifest(store), read_settings(store)

    def read(info: fs.FileInfo) -> pa.Table | None:
        try:
            return pq.read_table(info.path, columns=COLUMNS, filesystem=store.filesystem, partitioning=None)
        except FileNotFoundError:
            return pa.table({name: [] for name in COLUMNS})
        except (pa.ArrowException, OSError):
            return None

    for table in map_threads(read, parts):
        if table is None:
            skipped += 1
            continue
        for row in table.to_pylist():
            if rows.get(row["id"], ("failed", ""))[0] != "ok":
                rows[row["id"]] = row["status"], f"{row['error_stage']}: {row['error_type']}"
    everything = len(rows)
    for key in set(removed_inputs(manifest, settings)) & rows.keys():
        del rows[key]
    rate, runs = None, read_runs(store)
    if holder is not None:
        # An entry older than the driver at work belongs to an earlier run: this one has not begun its stream yet.
        if runs and runs[-1]["began"] >= float(holder.get("since", "inf")) and everything > runs[-1]["before"]:
            rate = (everything - runs[-1]["before"]) / max(time.time() - runs[-1]["began"], 1e-3)
    elif manifest is not None:
        rate = manifest.images_per_second
    kinds: dict[str, list[str]] = {}
    for key, (status, kind) in sorted(rows.items()):
        if status == "failed":
            kinds.setdefault(kind, []).append(key)
    counts = Counter({kind: len(ids) for kind, ids in kinds.items()})
    failed = counts.total()
    return Status(
        url=store.url,
        ok=len(rows) - failed,
        failed=failed,
        inputs=manifest.inputs if manifest is not None and holder is None else settings.input_count,
        failures=dict(counts.most_common()),
        failed_ids=kinds,
        skipped=skipped,
        holder=holder,
        images_per_second=rate,
        finished=manifest is not None,
    )


def _span(seconds: float) -> str:
    """Format a duration as `3 s`, `4 min` or `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
