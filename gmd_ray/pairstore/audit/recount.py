"""The rows of a pair store against its manifest, and against the photos of its input folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gmd_ray.config.secrets import MARK
from gmd_ray.errors import GmdError
from gmd_ray.images.listing import ImageFile, list_images
from gmd_ray.pairstore import manifest, run_settings
from gmd_ray.pairstore.audit import changes
from gmd_ray.pairstore.schema import accepted, fidelity_bound
from gmd_ray.pairstore.store import PairStore
from gmd_ray.text import one_line

SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    where: str
    """File or id."""
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.mend}"


def recount(store: PairStore, rows: pa.Table, notes: list[str], deep: bool) -> list[Finding]:
    """The counts of the manifest against the rows, and the rows against the input folder."""
    documents = {}
    findings = []
    for name in (manifest.MANIFEST_FILE, run_settings.SETTINGS_FILE):
        try:
            documents[name] = store.read(name)
        except GmdError as error:
            findings.append(Finding(f"{store.path}/{name}", one_line(error, 120), "run generate again"))
            documents[name] = None
    told, saved = documents[manifest.MANIFEST_FILE], documents[run_settings.SETTINGS_FILE] or {}
    if told is None:
        if not findings:
            findings.append(Finding(store.url, "no manifest.json: its run did not finish", "run generate again"))
    else:
        findings += _recount(store, rows, told)
    ids = set(rows["id"].to_pylist())
    folder = saved.get("places", {}).get("target.path", {}).get("path")
    if folder is None or "inputs" not in saved:
        notes.append("settings.json names no input folder: rows are not held against the inputs")
        return findings
    if MARK in folder:
        notes.append("the input folder's place holds a secret, which is not kept: rows are not held against the inputs")
        return findings
    try:
        images = list_images(folder, saved["inputs"]["limit"])
    except GmdError as error:
        notes.append(f"rows are not held against the inputs: {error}")
        return findings
    inputs = {image.id for image in images}
    lost = sorted(inputs - ids)
    if lost:
        findings.append(Finding(store.url, f"{len(lost)} inputs have no row ({some(lost)})", "run generate again"))
    strangers = sorted(ids - inputs - set((told or {}).get("stranger_ids", [])))
    if strangers:
        what = f"{len(strangers)} rows are of images that are not in {folder} ({some(strangers)})"
        findings.append(Finding(store.url, what, "run generate again: it leaves them out, or put the images back"))
    return [*findings, *_photos(store, rows, images, deep, notes)]


def _photos(
    store: PairStore, rows: pa.Table, images: list[ImageFile], deep: bool, notes: list[str]
) -> Iterator[Finding]:
    """The photos of the input folder against the size, time and digest of those that the rows were made of."""
    compared = changes.Comparison(rows, images, changes.confirmed_stamps(store), every=deep)
    digests = dict(zip(rows["id"].to_pylist(), rows["digest"].to_pylist(), strict=True)) if compared.doubtful else {}
    compared.read(lambda _: digests)
    if compared.unknown:
        notes.append(f"{compared.unknown} rows are older than the columns by which a changed photo is known")
    if compared.unread:
        notes.append(f"{len(compared.unread)} photos could not be read to be compared ({some(list(compared.unread))})")
    mend = "run generate again: it makes them anew"
    disguised = set(compared.disguised)
    for ids, how in (
        (sorted(set(compared.changed) - disguised), mend),
        (sorted(disguised), f"size and time are the old ones: `touch` them, and {mend}"),
    ):
        if ids:
            yield Finding(store.url, f"{len(ids)} photos are not those that their rows were made of ({some(ids)})", how)


def _recount(store: PairStore, rows: pa.Table, told: dict[str, Any]) -> Iterator[Finding]:
    mend = "run generate again"
    mine = rows.filter(~pc.field("id").isin(pa.array(told.get("stranger_ids", []), pa.string())))
    try:
        recorded = run_settings.recorded_fidelity(told.get("settings", {}))
        bound = fidelity_bound(told.get("fidelity_bound"), None, recorded, store.url)
        view = accepted(told["threshold"], told["higher_is_better"], (), bound)
        counts = {name: int(told[name]) for name in ("inputs", "accepted", "rejected", "failed")}
    except (KeyError, TypeError, ValueError) as error:
        yield Finding(
            f"{store.path}/{manifest.MANIFEST_FILE}", f"not a manifest of this program ({one_line(error)})", mend
        )
        return
    ok = mine.filter(pc.field("status") == "ok").num_rows
    taken = mine.filter(view).num_rows
    failed = mine.filter(pc.field("status") == "failed").num_rows
    found = {"inputs": mine.num_rows, "accepted": taken, "rejected": ok - taken, "failed": failed}
    wrong = [f"{name} {counts[name]} (rows: {found[name]})" for name in counts if counts[name] != found[name]]
    if wrong:
        yield Finding(
            f"{store.path}/{manifest.MANIFEST_FILE}", f"its books are not those of the rows: {', '.join(wrong)}", mend
        )


def some(ids: list[str]) -> str:
    """The first few of them."""
    return ", ".join(ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "")
