"""Torn checkpoints are found before any worker starts; the files of a fine-tune, on a disk and at a URL."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ray.train import CheckpointConfig
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.context import StorageContext

from gmd_ray.errors import DataError
from gmd_ray.storage import read_bytes, write_bytes
from gmd_ray.training.checkpoints import settle_checkpoints
from gmd_ray.training.run_files import append_line, checkpoint_steps, read_curve, read_end, read_json, state_of
from gmd_ray.training.spec import TrainingSpec, make_spec
from tests.training.toys import make_config

SCORES = {4: 30.0, 8: 32.0, 12: 31.0}


def _leave(
    tmp_path: Path, steps: list[int], listed: list[int] | None = None, scored: bool = False
) -> tuple[TrainingSpec, Path]:
    """Write the files of a run with these checkpoints; the snapshot lists those in `listed`, by default all of them."""
    held_out = {"validate_every": 4, "export": "best"} if scored else {}
    cfg = make_config(tmp_path, **held_out)
    cfg.evaluation.source_hq, cfg.evaluation.source_lq = cfg.source.hq, cfg.source.lq
    spec = make_spec(cfg, "adapted", None)
    train = Path(spec.directory, "train")
    for step in steps:
        folder = train / f"step_{step:08d}"
        folder.mkdir(parents=True)
        torch.save({"step": step, "module": {"weight": torch.arange(500.0) + step}}, folder / "state.pt")
    results = [
        {
            "version": 0,
            "checkpoint_dir_name": f"step_{step:08d}",
            "metrics": {"step": step, **({"val_psnr": SCORES[step]} if scored else {})},
        }
        for step in (steps if listed is None else listed)
    ]
    document = {
        "ray_version": "x",
        "checkpoint_results": sorted(results, key=lambda entry: SCORES[entry["metrics"]["step"]] if scored else 0),
        "checkpoint_report_indices": list(range(len(results))),
        "latest_checkpoint_result": results[-1],
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": 6,
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
    (train / "checkpoint_manager_snapshot.json").write_text(json.dumps(document))
    curve = [{"step": step, "loss": 1.0, **({"val_psnr": SCORES[step]} if scored else {})} for step in steps]
    Path(spec.directory, "curve.jsonl").write_text("".join(json.dumps(point) + "\n" for point in curve))
    return spec, train


def _as_ray_sees_it(spec: TrainingSpec) -> tuple[str, list[str]]:
    """The checkpoint that Ray Train would give its workers, and all that it knows of, in its order."""
    storage = StorageContext(storage_path=spec.directory, experiment_dir_name="train")
    manager = CheckpointManager(CheckpointConfig(), storage)
    latest = manager.latest_checkpoint_result
    assert latest is not None
    names = [Path(result.checkpoint.path).name for result in manager._checkpoint_results]
    return Path(latest.checkpoint.path).name, names


def _tear(path: Path, how: str) -> None:
    whole = path.read_bytes()
    middle = whole.index(torch.arange(100.0, 104.0).numpy().tobytes())
    torn = {
        "cut in half": whole[: len(whole) // 2],
        "cut by one byte": whole[:-1],
        "one byte": whole[:1],
        "empty": b"",
        "zeros": bytes(len(whole)),
        "zeros at the end": whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2),
        "one byte changed": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "something else": b"<html>not found</html>",
    }
    if how == "missing":
        path.unlink()
    elif how == "folder missing":
        path.unlink()
        path.parent.rmdir()
    else:
        path.write_bytes(torn[how])


HOWS = ["cut in half", "cut by one byte", "one byte", "empty", "zeros", "zeros at the end", "one byte changed"]
HOWS += ["something else", "missing", "folder missing"]


def test_whole_checkpoints_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec, train = _leave(tmp_path, [8, 12])
    before = (train / "checkpoint_manager_snapshot.json").read_bytes()
    settle_checkpoints(spec, "finetune adapted")
    assert (train / "checkpoint_manager_snapshot.json").read_bytes() == before
    assert caplog.records == []
    assert _as_ray_sees_it(spec) == ("step_00000012", ["step_00000008", "step_00000012"])


@pytest.mark.parametrize("how", HOWS)
def test_the_one_before_a_torn_checkpoint_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    spec, train = _leave(tmp_path, [8, 12])
    _tear(train / "step_00000012" / "state.pt", how)
    settle_checkpoints(spec, "finetune adapted")
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert str(train / "step_00000012" / "state.pt") in line
    assert line.endswith("resuming from step 8")
    assert _as_ray_sees_it(spec) == ("step_00000008", ["step_00000008"])


@pytest.mark.parametrize("how", HOWS)
def test_where_none_is_whole_the_line_names_the_file_and_what_to_do(tmp_path: Path, how: str) -> None:
    spec, train = _leave(tmp_path, [12])
    _tear(train / "step_00000012" / "state.pt", how)
    with pytest.raises(DataError) as caught:
        settle_checkpoints(spec, "finetune adapted")
    assert str(train / "step_00000012" / "state.pt") in str(caught.value)
    assert f"remove {train} to start over" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unlisted_checkpoint_is_used_where_the_listed_one_is_torn(tmp_path: Path) -> None:
    spec, train = _leave(tmp_path, [8, 12], listed=[12])
    _tear(train / "step_00000012" / "state.pt", "cut in half")
    settle_checkpoints(spec, "finetune adapted")
    assert _as_ray_sees_it(spec) == ("step_00000008", ["step_00000008"])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"checkpoint_results": [{}]}', bytes(300), None])
def test_a_torn_list_is_made_again_from_the_folders(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    spec, train = _leave(tmp_path, [4, 8, 12])
    snapshot = train / "checkpoint_manager_snapshot.json"
    snapshot.unlink() if content is None else snapshot.write_bytes(content)
    settle_checkpoints(spec, "finetune adapted")
    assert _as_ray_sees_it(spec) == ("step_00000012", ["step_00000004", "step_00000008", "step_00000012"])
    assert f"{snapshot} is damaged or missing: resuming from step 12" in caplog.text


def test_a_run_killed_at_its_first_checkpoint_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec, train = _leave(tmp_path, [4])
    (train / "checkpoint_manager_snapshot.json").unlink()
    _tear(train / "step_00000004" / "state.pt", "cut in half")
    settle_checkpoints(spec, "finetune adapted")
    assert "starting from step 0" in caplog.text
    assert not (train / "checkpoint_manager_snapshot.json").exists()
    (train / "checkpoint_manager_snapshot.json").write_bytes(b"")
    (train / "step_00000004" / "state.pt").unlink()
    (train / "step_00000004").rmdir()
    settle_checkpoints(spec, "finetune adapted")
    assert not (train / "checkpoint_manager_snapshot.json").exists()


def test_a_torn_best_checkpoint_is_made_again_from_before_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec, train = _leave(tmp_path, [4, 8, 12], scored=True)
    settle_checkpoints(spec, "finetune adapted")
    assert _as_ray_sees_it(spec)[0] == "step_00000012"
    _tear(train / "step_00000008" / "state.pt", "cut in half")
    settle_checkpoints(spec, "finetune adapted")
    assert f"{train}/step_00000008/state.pt is incomplete: resuming from step 4" in caplog.text
    assert _as_ray_sees_it(spec) == ("step_00000004", ["step_00000004"])


def test_a_torn_best_checkpoint_with_none_before_it_is_told(tmp_path: Path) -> None:
    spec, train = _leave(tmp_path, [8, 12], scored=True)
    _tear(train / "step_00000008" / "state.pt", "empty")
    with pytest.raises(DataError, match=r"step_00000008/state\.pt is empty"):
        settle_checkpoints(spec, "finetune adapted")


def test_scores_order_a_list_that_is_made_again(tmp_path: Path) -> None:
    spec, train = _leave(tmp_path, [4, 8, 12], scored=True)
    (train / "checkpoint_manager_snapshot.json").write_bytes(b"")
    settle_checkpoints(spec, "finetune adapted")
    # Worst first, as Ray Train lists them: it removes from the front.
    assert _as_ray_sees_it(spec) == ("step_00000012", ["step_00000004", "step_00000012", "step_00000008"])


def test_checkpoints_at_a_url_are_settled_like_those_on_a_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec, train = _leave(tmp_path, [4, 8, 12])
    state = train / "step_00000012" / "state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    url = f"memory://{tmp_path}/run"
    for file in Path(spec.directory).rglob("*"):
        if file.is_file():
            write_bytes(f"{url}/{file.relative_to(spec.directory).as_posix()}", file.read_bytes())
    with caplog.at_level(logging.WARNING, logger="gmd_ray"):
        settle_checkpoints(replace(spec, directory=url), "finetune adapted")
    assert f"{url}/train/step_00000012/state.pt is incomplete: resuming from step 8" in caplog.text

    settle_checkpoints(spec, "finetune adapted")
    snapshot = "train/checkpoint_manager_snapshot.json"
    assert read_bytes(f"{url}/{snapshot}") == Path(spec.directory, snapshot).read_bytes()


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
