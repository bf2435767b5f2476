"""The files of a pair store: part files of rows, and JSON documents, in one directory of any filesystem."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow import fs

from gmd_ray.config.places import below
from gmd_ray.errors import DataError, StorageError
from gmd_ray.pairstore.parts import drop_rows, part_name
from gmd_ray.pairstore.schema import PAIR_SCHEMA, rows_dataset
from gmd_ray.storage import TEMPORARY, absolute, get, open_filesystem, put_json, remove, with_retries
from gmd_ray.text import one_line

log = logging.getLogger("gmd_ray.generation")

PART = "__filename"
"""Arrow's name of the column that holds the file a row was read from."""
INDEX = [
    *("id", "status", "score", "fidelity", "teacher", "student", "scorer"),
    *("seconds_restore", "seconds_project", "seconds_score", "error_stage", "error_type"),
    *("bytes", "modified"),
]
"""Columns that a driver keeps in memory for every row."""
_AT_ONCE = 64
"""Number of part files that are read together."""


def store_url(out: str) -> str:
    """The URL of the pair store of a run directory; options of a URL (`?key=value`) stay at its end."""
    return below(absolute(out), "pairs")


def find_store(url: str) -> PairStore:
    """Find the pair store at a URL, or below it where it is a run directory.

    Raises:
        DataError: there is neither.
    """
    for place in (url, store_url(url)):
        store = PairStore(absolute(place))
        try:
            if store.exists():
                return store
        except OSError as error:
            raise DataError(f"{url}: cannot be looked into: {one_line(error)}; mend that first") from error
    raise DataError(f"{url}: no pair store here, nor in pairs/ below; give the directory that holds rows/")


@contextmanager
def arrow_errors_as_data_errors(url: str) -> Iterator[None]:
    """Turn Arrow's errors of part files that it cannot read into a DataError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{url}: a part file cannot be read ({one_line(error)}); `gmd-ray verify` names it where it is torn or "
            f"foreign, and says what to do"
        ) from error


class PairStore:
    """The directory of a pair store: `rows/part-*.parquet`, `settings.json`, `manifest.json` and other documents."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.filesystem, self.path = open_filesystem(url)
        self.rows_path = f"{self.path}/rows"
        self._index: pa.Table | None = None

    def exists(self) -> bool:
        """Tell whether the directory holds any part of a store."""
        infos = self.filesystem.get_file_info(
            [self.rows_path, f"{self.path}/settings.json", f"{self.path}/manifest.json"]
        )
        return any(info.type != fs.FileType.NotFound for info in infos)

    def index(self) -> pa.Table:
        """Read columns `INDEX` of every row, with the path of its part file in column `PART`.

        They are read once, since that takes minutes for a large store on an object store; call `refresh` after others
        have written.

        Raises:
            DataError: a part file is damaged or foreign; it is named.
        """
        if self._index is None:
            self._index = self._read_index()
        return self._index

    def refresh(self) -> None:
        """Let the next call of `index` read the files again."""
        self._index = None

    def _read_index(self) -> pa.Table:
        empty = pa.schema([*(PAIR_SCHEMA.field(name) for name in INDEX), (PART, pa.string())]).empty_table()
        if not self._names():
            return empty
        with arrow_errors_as_data_errors(self.url):
            files = rows_dataset(self.path, self.filesystem).files
            rows = pa.concat_tables(
                self._read_parts(files[start : start + _AT_ONCE]) for start in range(0, len(files), _AT_ONCE)
            )
        nameless = rows.filter(pc.field("id").is_null() | pc.field("status").is_null())
        if nameless.num_rows:
            raise DataError(f"{nameless[PART][0]}: foreign, it has rows without an id or a status; move it away")
        return rows

    def _read_parts(self, files: list[str], columns: Sequence[str] = (*INDEX, PART)) -> pa.Table:
        """Read columns of part files into one chunk per column.

        A part holds few rows, so that an array for each column of each file would take more memory than the rows do.
        So would the footers of all parts; they are not cached, since there is no second scan.
        """
        parts = ds.dataset(files, schema=PAIR_SCHEMA, format="parquet", filesystem=self.filesystem)
        return with_retries(lambda: parts.to_table(columns=list(columns), cache_metadata=False)).combine_chunks()

    def remove_temp_files(self) -> None:
        """Remove part files that were left half written by writers that were killed."""
        for name in self._names(TEMPORARY):
            remove(self.filesystem, f"{self.rows_path}/{name}")

    def drop_duplicates(self) -> int:
        """Keep one row of every id that has several, an ok one where there is one; returns the number of dropped rows.

        Two rows of one id come from a crash while a part was rewritten, or from a late write of a killed run. Which one
        stays does not matter only where all ok rows are of one student, teacher and scorer: `resume.known_facts` checks
        that first.

        Among rows of one status, the one stays whose part has the name that its ids give (`part_name`): a part with
        another name is a copy, which `gmd-ray verify` reports.
        """
        rows = self.index().select(["id", "status", PART])
        if pc.count_distinct(rows["id"]).as_py() == rows.num_rows:
            return 0
        counts = pc.value_counts(rows["id"].combine_chunks())
        doubles = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        copies: dict[str, list[tuple[bool, bool, str]]] = defaultdict(list)
        twice = rows.filter(pc.field("id").isin(doubles))
        misnamed = self._misnamed(pc.unique(twice[PART]))
        for row in twice.to_pylist():
            copies[row["id"]].append((row["status"] != "ok", row[PART] in misnamed, _base(row[PART])))
        unwanted: dict[str, set[str]] = defaultdict(set)
        for key, found in copies.items():
            for *_, part in sorted(found)[1:]:
                unwanted[part].add(key)
        self._drop(unwanted)
        dropped = sum(len(ids) for ids in unwanted.values())
        if dropped:
            log.warning("%s: %d rows were there twice after a crash; one of each is kept", self.url, dropped)
        return dropped

    def _misnamed(self, parts: pa.Array) -> set[str]:
        """Choose those part files whose name is not the one that their rows' ids give."""
        held: dict[str, list[str]] = defaultdict(list)
        for row in self.index().select(["id", PART]).filter(pc.field(PART).isin(parts)).to_pylist():
            held[row[PART]].append(row["id"])
        return {part for part, ids in held.items() if part_name(ids) != _base(part)}

    def digests(self, ids: Collection[str]) -> dict[str, str | None]:
        """Read column `digest` of the rows of some ids: id -> digest. Only parts that hold such rows are read."""
        wanted = pa.array(ids, pa.string())
        rows = self.index().select(["id", PART])
        files = pc.unique(rows.filter(pc.is_in(rows["id"], wanted))[PART]).to_pylist()
        found: dict[str, str | None] = {}
        with arrow_errors_as_data_errors(self.url):
            for start in range(0, len(files), _AT_ONCE):
                part = self._read_parts(files[start : start + _AT_ONCE], ["id", "digest"])
                part = part.filter(pc.is_in(part["id"], wanted))
                found.update(zip(part["id"].to_pylist(), part["digest"].to_pylist(), strict=True))
        return found

    def drop(self, ids: Collection[str]) -> None:
        """Remove the rows of these ids, so that the next run makes them anew."""
        unwanted: dict[str, set[str]] = defaultdict(set)
        rows = self.index().select(["id", PART])
        for row in rows.filter(pc.is_in(rows["id"], pa.array(ids, pa.string()))).to_pylist():
            unwanted[_base(row[PART])].add(row["id"])
        self._drop(unwanted)

    def drop_failed(self, ids: Collection[str]) -> int:
        """Remove the failed rows among these ids, so that they are tried again; returns how many there were."""
        unwanted: dict[str, set[str]] = defaultdict(set)
        failed = self.index().filter(pc.field("status") == "failed")
        for row in failed.select(["id", PART]).to_pylist():
            if row["id"] in ids:
                unwanted[_base(row[PART])].add(row["id"])
        self._drop(unwanted)
        return sum(len(keys) for keys in unwanted.values())

    def _drop(self, unwanted: dict[str, set[str]]) -> None:
        if unwanted:
            drop_rows(self.filesystem, self.rows_path, unwanted)
            self.refresh()

    def size(self) -> int:
        """Total bytes of the part files."""
        infos = self.filesystem.get_file_info(fs.FileSelector(self.rows_path, allow_not_found=True))
        return sum(info.size or 0 for info in infos if info.base_name.startswith("part-"))

    def read(self, name: str) -> Any:
        """Read a JSON document of the store; None where there is none.

        Raises:
            DataError: it is not JSON.
            StorageError: it cannot be read.
        """
        try:
            data = get(self.filesystem, f"{self.path}/{name}")
        except OSError as error:
            raise StorageError(f"{self.url}/{name}: cannot be read: {one_line(error)}") from error
        try:
            return None if data is None else json.loads(data)
        except ValueError as error:
            raise DataError(f"{self.url}/{name}: not a JSON document ({error}); remove it or restore it") from error

    def write(self, name: str, value: Any) -> None:
        """Write a JSON document of the store atomically, with retries."""
        with_retries(lambda: put_json(self.filesystem, f"{self.path}/{name}", value))

    def delete(self, name: str) -> None:
        """Remove a document of the store, which may be gone already."""
        remove(self.filesystem, f"{self.path}/{name}")

    def _names(self, prefix: str = "part-") -> list[str]:
        infos = self.filesystem.get_file_info(fs.FileSelector(self.rows_path, allow_not_found=True))
        return [info.base_name for info in infos if info.base_name.startswith(prefix)]


def _base(path: str) -> str:
    return path.rsplit("/", 1)[-1]
