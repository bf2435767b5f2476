"""Checks a pair store: every part file, every row, and the totals against the manifest and the inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from gmd_ray.errors import GmdError
from gmd_ray.images.files.encode import decode_png
from gmd_ray.pairstore import run_settings
from gmd_ray.pairstore.audit import changes
from gmd_ray.pairstore.audit.recount import StoreFault, recount
from gmd_ray.pairstore.lock import holder_of
from gmd_ray.pairstore.parts import SCALARS, part_name
from gmd_ray.pairstore.schema import PAIR_SCHEMA
from gmd_ray.pairstore.store import PairStore
from gmd_ray.storage import TEMPORARY, map_threads
from gmd_ray.text import one_line, printable, some

KNOWN = {"settings.json", "manifest.json", "runs.json", "lock.json", "plan.json", "sheet.html", "rows"}
KNOWN |= {"suspects.json", "gate_check.json", changes.STAMPS_FILE}
NEW_COLUMNS = {"fidelity", "bytes", "modified", "digest"}
"""Columns that stores of earlier versions lack."""
_AGAIN = "remove it, and run generate again for its images"


@dataclass(frozen=True)
class Verified:
    """The result of a check: what was checked, and what is wrong."""

    url: str
    parts: int
    rows: int
    images: int | None
    """Number of images that were decoded; None where images were not checked."""
    findings: list[StoreFault]
    notes: list[str]
    """Checks that could not be made, and why."""

    def __str__(self) -> str:
        """Format a line for each note and finding, then a summary."""
        looked = f"{self.parts} part files, {self.rows} rows"
        looked += "" if self.images is None else f", {self.images} images"
        verdict = f"{len(self.findings)} findings" if self.findings else "whole"
        lines = [*self.notes, *map(str, self.findings), f"{self.url}: {looked}: {verdict}"]
        return "\n".join(map(printable, lines))

    def as_json(self) -> dict[str, Any]:
        """The same for programs; `ok` without findings."""
        return {"ok": not self.findings, **asdict(self)}


def verify(store: PairStore, deep: bool = False) -> Verified:
    """Check the whole store; nothing is changed.

    While a driver is at work, the manifest and the totals are not checked, since only a finished store has them.

    Args:
        deep: decode every PNG and compare its size with width and height; read every photo of the input folder and
            compare it with the digest in its row. Else image columns are not read, and photos are read only where
            their time differs from the one in their row.
    """
    notes, findings = [], list(_foreign(store))
    working = holder_of(store.filesystem, store.path) is not None
    if working:
        notes.append("a driver is at work here: leftovers and totals are checked once it is done")
    else:
        findings += _leftovers(store)
    tables, names, images = [], [], 0
    parts = [
        info
        for info in _files(store, store.rows_path)
        if info.base_name.startswith("part-") and info.base_name.endswith(".parquet")
    ]
    for info, (table, wrong) in zip(parts, map_threads(lambda info: _part(store, info), parts), strict=True):
        findings += wrong
        if table is not None:
            tables.append(table)
            names.append(info.path)
            if deep:
                count, broken = _pictures(store, info)
                images, findings = images + count, findings + broken
    rows = pa.concat_tables(tables) if tables else PAIR_SCHEMA.empty_table().select(SCALARS)
    findings += _other_models(names, tables)
    findings += _duplicates(store, rows)
    if not working:
        findings += recount(store, rows, notes, deep)
    return Verified(store.url, len(tables), rows.num_rows, images if deep else None, findings, notes)


def _files(store: PairStore, path: str) -> list[fs.FileInfo]:
    infos = store.filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(infos, key=lambda info: info.base_name)


def _foreign(store: PairStore) -> Iterator[StoreFault]:
    for info in _files(store, store.path):
        if info.base_name not in KNOWN and not info.base_name.startswith(TEMPORARY):
            yield StoreFault(info.path, "no file of a pair store", "move it away")
    for info in _files(store, store.rows_path):
        name = info.base_name
        if not (name.startswith("part-") and name.endswith(".parquet")) and not name.startswith(TEMPORARY):
            yield StoreFault(info.path, "no part file", "move it away")


def _leftovers(store: PairStore) -> Iterator[StoreFault]:
    for folder in (store.path, store.rows_path):
        for info in _files(store, folder):
            if info.base_name.startswith(TEMPORARY):
                yield StoreFault(info.path, "left half written by a writer that was killed", "remove it")
            elif folder == store.path and info.base_name == "lock.json":
                yield StoreFault(info.path, "left by a driver that is gone", "run generate again, or remove it")


def _part(store: PairStore, info: fs.FileInfo) -> tuple[pa.Table | None, list[StoreFault]]:
    """Read the columns of a part file but for its images, and list what is wrong; no table where it cannot be read."""
    try:
        file = pq.ParquetFile(info.path, filesystem=store.filesystem)
    except FileNotFoundError:  # a driver at work removed it after it was listed
        return None, []
    except (pa.ArrowException, OSError) as error:
        return None, [StoreFault(info.path, f"torn, or no Parquet file ({one_line(error, 120)})", _AGAIN)]
    kinds = {field.name: field.type for field in file.schema_arrow}
    wanted = {field.name: field.type for field in PAIR_SCHEMA if field.name in kinds or field.name not in NEW_COLUMNS}
    odd = sorted({*kinds, *wanted} - (kinds.keys() & wanted.keys()))
    odd += sorted(name for name in kinds.keys() & wanted.keys() if kinds[name] != wanted[name])
    if odd:
        return None, [StoreFault(info.path, f"foreign: columns {', '.join(odd)} are not those of a pair store", _AGAIN)]
    try:
        table = file.read(columns=[name for name in SCALARS if name in kinds])
    except (pa.ArrowException, OSError) as error:
        return None, [StoreFault(info.path, f"torn ({one_line(error, 120)})", _AGAIN)]
    for name in SCALARS:
        if name not in kinds:
            table = table.append_column(PAIR_SCHEMA.field(name), pa.nulls(table.num_rows, PAIR_SCHEMA.field(name).type))
    findings = []
    nameless = table["id"].null_count + table["status"].null_count
    if nameless:
        return None, [StoreFault(info.path, "foreign: it has rows without an id or a status", "move it away")]
    if part_name(table["id"].to_pylist()) != info.base_name:
        findings.append(StoreFault(info.path, "file name does not match the ids inside", _AGAIN))
    for row in table.to_pylist():
        wrong = _row(row)
        if wrong:
            findings.append(StoreFault(f"{info.path}: row {row['id']}", wrong, _AGAIN))
    return table.select(SCALARS), findings


def _row(row: dict[str, Any]) -> str:
    """Say what is wrong with the columns of a row that are not images; empty where nothing is."""
    if row["status"] == "ok":
        missing = [name for name in ("width", "height", "score", "student", "teacher", "scorer") if row[name] is None]
        return f"ok, but without {', '.join(missing)}" if missing else ""
    if row["status"] == "failed":
        missing = [name for name in ("error_stage", "error_type", "error") if row[name] is None]
        return f"failed, but without {', '.join(missing)}" if missing else ""
    return f"status {row['status']!r} is neither ok nor failed"


def _pictures(store: PairStore, info: fs.FileInfo) -> tuple[int, list[StoreFault]]:
    """Decode the images of one part file; returns their number and what is wrong with them."""
    count, findings = 0, []
    file = pq.ParquetFile(info.path, filesystem=store.filesystem)
    columns = ["id", "status", "lq", "restored", "pseudo_target", "width", "height"]
    try:
        for batch in file.iter_batches(batch_size=16, columns=columns):
            for row in batch.to_pylist():
                decoded, wrong = _picture(row)
                count += decoded
                findings += [StoreFault(f"{info.path}: row {row['id']}", reason, _AGAIN) for reason in wrong]
    except (pa.ArrowException, OSError) as error:
        findings.append(StoreFault(info.path, f"torn in its images ({one_line(error, 120)})", _AGAIN))
    return count, findings


def _picture(row: dict[str, Any]) -> tuple[int, list[str]]:
    """Decode the images of a row; returns how many decode and what is wrong. A failed row may lack any of them."""
    sizes, wrong = {}, []
    for name in ("lq", "restored", "pseudo_target"):
        if row[name] is None:
            if row["status"] == "ok" and name != "restored":
                wrong.append(f"ok, but without {name}")
            continue
        try:
            sizes[name] = decode_png(row[name]).shape[:2]
        except GmdError as error:
            wrong.append(f"{name}: {error}")
    recorded = (row["height"], row["width"])
    for name in ("pseudo_target", "restored"):
        if name in sizes and None not in recorded and sizes[name] != recorded:
            height, width = sizes[name]
            wrong.append(f"{name} is {width}x{height}, the row says {recorded[1]}x{recorded[0]}")
    if "lq" in sizes and None not in recorded:
        (height, width), (lq_height, lq_width) = recorded, sizes["lq"]
        if height % lq_height or width % lq_width:
            wrong.append(f"{width}x{height} is no multiple of its lq, {lq_width}x{lq_height}")
    return len(sizes), wrong


def _other_models(names: list[str], tables: list[pa.Table]) -> Iterator[StoreFault]:
    """Find parts whose ok rows were made by other models than most rows: they come from another store."""
    for section in run_settings.MODELS:
        made_by = [
            Counter(made for made in table.filter(pc.field("status") == "ok")[section].to_pylist() if made)
            for table in tables
        ]
        everyone = sum(made_by, Counter())
        if len(everyone) < 2:
            continue
        [(usual, _)] = everyone.most_common(1)
        for name, found in zip(names, made_by, strict=True):
            others = sorted(found.keys() - {usual})
            if others:
                yield StoreFault(name, f"foreign: rows of {section} {', '.join(others)}, most are of {usual}", _AGAIN)


def _duplicates(store: PairStore, rows: pa.Table) -> Iterator[StoreFault]:
    twice = sorted(key for key, count in Counter(rows["id"].to_pylist()).items() if count > 1)
    if twice:
        yield StoreFault(
            store.url, f"{len(twice)} ids have several rows ({some(twice)})", "run generate again: it repairs"
        )
