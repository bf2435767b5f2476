"""Every photo of a folder has one row: a failed one where it is not decoded; links and thumbnails have none."""

from __future__ import annotations

from pathlib import Path

from gmd_ray.generation import generate
from tests.generation.world import World, write_photo


def test_raw_files_are_failed_rows_and_links_and_thumbnails_are_none(tmp_path: Path) -> None:
    world = World(tmp_path).build(2)
    photos = set(world.ids())
    raw = {f"IMG_1{ending}" for ending in (".cr3", ".raf", ".orf", ".rw2", ".jxl", ".hif")}
    write_photo(world.photos / "preview.png", (24, 24))
    for name in raw | {"IMG_2.NEF"}:  # a raw file's preview decodes, and is not the photo
        (world.photos / name).write_bytes((world.photos / "preview.png").read_bytes())
    write_photo(world.photos / "IMG_2.png", (24, 24))
    write_photo(world.photos / "@eaDir" / "IMG_1.jpg" / "SYNOPHOTO_THUMB_XL.png", (24, 24))
    (world.photos / "latest").symlink_to(".")
    (world.photos / "linked.png").symlink_to("preview.png")
    books = generate(world.cfg, models=world.models())
    rows = world.rows()
    assert set(rows) == photos | raw | {"preview.png", "IMG_2.png"}
    assert {key for key, row in rows.items() if row["status"] == "failed"} == raw
    assert (books.inputs, books.failed) == (len(rows), len(raw))
    for key in raw:
        assert (rows[key]["error_stage"], rows[key]["error_type"], rows[key]["attempts"]) == ("read", "DataError", 1)
        assert "which this program does not decode" in str(rows[key]["error"])
