"""Compares the rows of a pair store with its manifest, and with the photos of its input folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from gmd_ray.config.secrets import MARK
from gmd_ray.errors import GmdError
from gmd_ray.images.listing import ImageFile, list_images
from gmd_ray.pairstore.audit import changes
from gmd_ray.pairstore.manifest import MANIFEST_FILE, Manifest, read_manifest
from gmd_ray.pairstore.run_settings import SETTINGS_FILE, RunSettings, read_settings
from gmd_ray.pairstore.store import PairStore
from gmd_ray.pairstore.view import StoreView
from gmd_ray.text import one_line, some

_AGAIN = "run generate again"


@dataclass(frozen=True)
class StoreFault:
    """One thing that is wrong with a store."""

    where: str
    """The file or the id."""
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.mend}"


def recount(store: PairStore, rows: pa.Table, notes: list[str], deep: bool) -> list[StoreFault]:
    """Compare the counts of the manifest with the rows, and the rows with the input folder.

    Args:
        rows: the columns of the whole store but for its images.
        notes: gets a line for each comparison that cannot be made.
        deep: read every photo and compare its digest with its row's.
    """
    findings: list[StoreFault] = []
    manifest, settings = None, RunSettings()
    try:
        manifest = read_manifest(store)
    except GmdError as error:
        findings.append(StoreFault(f"{store.path}/{MANIFEST_FILE}", one_line(error, 120), _AGAIN))
    try:
        settings = read_settings(store)
    except GmdError as error:
        findings.append(StoreFault(f"{store.path}/{SETTINGS_FILE}", one_line(error, 120), _AGAIN))
    if manifest is not None:
        findings += _recount(store, rows, manifest)
    elif not findings:
        findings.append(StoreFault(store.url, "no manifest.json: its run did not finish", _AGAIN))
    folder = settings.path("target.path")
    if folder is None or "inputs" not in settings.document:
        notes.append("settings.json names no input folder: rows are not compared with the inputs")
        return findings
    if MARK in folder:
        notes.append("the input folder's URL holds a secret, which is not kept: rows are not compared with the inputs")
        return findings
    try:
        images = list_images(folder, settings.input_limit)
    except GmdError as error:
        notes.append(f"rows are not compared with the inputs: {error}")
        return findings
    inputs = {image.id for image in images}
    ids = set(rows["id"].to_pylist())
    lost = sorted(inputs - ids)
    if lost:
        findings.append(StoreFault(store.url, f"{len(lost)} inputs have no row ({some(lost)})", "run generate again"))
    removed = sorted(ids - inputs - set(() if manifest is None else manifest.removed_inputs))
    if removed:
        what = f"{len(removed)} rows are of images that are not in {folder} ({some(removed)})"
        findings.append(StoreFault(store.url, what, "run generate again: it leaves them out, or put the images back"))
    return [*findings, *_photos(store, rows, images, deep, notes)]


def _photos(
    store: PairStore, rows: pa.Table, images: list[ImageFile], deep: bool, notes: list[str]
) -> Iterator[StoreFault]:
    """Compare the photos of the input folder with the sizes, times and digests in the rows."""
    compared = changes.Comparison(rows, images, changes.confirmed_stamps(store), every=deep)
    digests = dict(zip(rows["id"].to_pylist(), rows["digest"].to_pylist(), strict=True)) if compared.doubtful else {}
    compared.read(lambda _: digests)
    if compared.unknown:
        notes.append(f"{compared.unknown} rows have no size and time of their photo: whether it changed is not known")
    if compared.unread:
        notes.append(f"{len(compared.unread)} photos could not be read to be compared ({some(list(compared.unread))})")
    mend = "run generate again: it makes them anew"
    disguised = set(compared.disguised)
    for ids, how in (
        (sorted(set(compared.changed) - disguised), mend),
        (sorted(disguised), f"size and time are the old ones: `touch` them, and {mend}"),
    ):
        if ids:
            yield StoreFault(
                store.url, f"{len(ids)} photos are not those that their rows were made of ({some(ids)})", how
            )


def _recount(store: PairStore, rows: pa.Table, manifest: Manifest) -> Iterator[StoreFault]:
    where, document = f"{store.path}/{MANIFEST_FILE}", manifest.document
    try:
        counts = {name: int(document[name]) for name in ("inputs", "accepted", "rejected", "failed")}
        document["higher_is_better"]
        # The manifest alone: its counts were made with the direction and the fidelity that it records.
        bound = manifest.fidelity_bound
        view = StoreView.of_documents(store, manifest, RunSettings(), document["threshold"], bound)
        accepted = view.expression
    except (KeyError, TypeError, ValueError) as error:
        yield StoreFault(where, f"not a manifest of this program ({one_line(error)})", _AGAIN)
        return
    mine = rows.filter(~pc.field("id").isin(pa.array(view.removed_inputs, pa.string())))
    ok = mine.filter(pc.field("status") == "ok").num_rows
    taken = mine.filter(accepted).num_rows
    failed = mine.filter(pc.field("status") == "failed").num_rows
    found = {"inputs": mine.num_rows, "accepted": taken, "rejected": ok - taken, "failed": failed}
    wrong = [f"{name} {counts[name]} (rows: {found[name]})" for name in counts if counts[name] != found[name]]
    if wrong:
        yield StoreFault(where, f"its counts are not those of the rows: {', '.join(wrong)}", _AGAIN)
