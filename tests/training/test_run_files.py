"""The files of a fine-tune's directory, on a disk and at a URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmd_ray.config.places import above, below, name_of
from gmd_ray.errors import DataError
from gmd_ray.storage import read_bytes, write_bytes
from gmd_ray.training.run_files import append_line, checkpoint_steps, read_curve, read_end, read_json, state_of


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_a_curve_grows_line_by_line_and_is_read_from_where_one_was(scheme: str, tmp_path: Path) -> None:
    curve = f"{scheme}{tmp_path}/curve.jsonl"
    assert (read_curve(curve), read_end(curve, 0)) == ([], b"")
    for step in (2, 4):
        append_line(curve, b'{"step": %d}\n' % step)
    assert read_curve(curve) == [{"step": 2}, {"step": 4}]
    assert read_end(curve, len(b'{"step": 2}\n')) == b'{"step": 4}\n'
    assert read_end(curve, 24) == b""
    append_line(curve, b'{"ste')
    assert read_curve(curve) == [{"step": 2}, {"step": 4}]
    assert read_bytes(curve) == b'{"step": 2}\n{"step": 4}\n', "the torn line is cut off"


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_checkpoints_are_found_by_their_folders(scheme: str, tmp_path: Path) -> None:
    directory = f"{scheme}{tmp_path}/adapted"
    assert checkpoint_steps(directory) == set()
    for step in (3, 12):
        write_bytes(state_of(directory, step), b"state")
    write_bytes(f"{directory}/train/step_notes.txt", b"")
    write_bytes(f"{directory}/train/other/a", b"")
    assert checkpoint_steps(directory) == {3, 12}
    assert read_bytes(f"{directory}/train/step_00000012/state.pt") == b"state"


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_a_lost_or_damaged_record_names_itself_and_its_folder(scheme: str, tmp_path: Path) -> None:
    place = f"{scheme}{tmp_path}/settings.json"
    with pytest.raises(DataError, match=f"^{place}: no such file; restore it, or remove {scheme}{tmp_path} to train"):
        read_json(place)
    write_bytes(place, b"[1")
    with pytest.raises(DataError, match=f"^{place}: not a JSON object"):
        read_json(place)


def test_names_keep_the_options_of_a_url_at_its_end() -> None:
    url = "s3://bucket/run/finetune?endpoint_override=http://host:9000/x"
    file = below(url, "adapted/curve.jsonl")
    assert file == "s3://bucket/run/finetune/adapted/curve.jsonl?endpoint_override=http://host:9000/x"
    assert above(above(file)) == url
    assert (name_of(url), name_of(file), name_of("/a/what?/")) == ("finetune", "curve.jsonl", "what?")
    assert above("/a/what?/b.json") == "/a/what?"
