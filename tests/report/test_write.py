from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gmd_ray.config import Config
from gmd_ray.evaluation.actor import EvaluationActor
from gmd_ray.evaluation.evaluate import collect
from gmd_ray.evaluation.items import Item, held_out_items
from gmd_ray.evaluation.results import PICTURES, ROWS, Evaluation
from gmd_ray.evaluation.store import open_store, pair_items
from gmd_ray.evaluation.summaries.gains import find_gains
from gmd_ray.images.files.encode import encode_png
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.pairstore.store import PairStore
from gmd_ray.report import gallery, write_report
from gmd_ray.report.write import make_report
from tests.evaluation.conftest import draw, write_store
from tests.report.page import Page, picture

HOSTILE = "<script>alert(1)</script>&\"'{:02d}.png".replace("/", "⁄")


@dataclass(frozen=True)
class Decision:
    promoted: bool
    reasons: list[str]
    version: str | None


def judge(cfg: Config, students: dict[str, str]) -> Evaluation:
    items: list[Item] = held_out_items(cfg)
    store = open_store(cfg)
    if store is not None and "adapted" in students:
        items += pair_items(store, cfg.evaluation.report_images)
    return collect(cfg, students, items, [EvaluationActor(cfg, students)(pa.Table.from_pylist(items))])


def page(cfg: Config, students: dict[str, str], decision: Decision | None = None) -> Page:
    path = write_report(cfg, judge(cfg, students), decision=decision)
    assert path == f"{cfg.out}/report.html"
    return Page(Path(path).read_text())


def test_a_whole_run(run: Config, students: dict[str, str], tmp_path: Path) -> None:
    write_store(tmp_path / "out", [5.5, 5.0, 4.5, 4.2, 4.0, 3.5, None])
    draw(tmp_path / "truth", "lq", "hq", 7)
    run.evaluation.pairs_hq = str(tmp_path / "truth" / "hq")
    decision = Decision(False, ["holds: target psnr", "refused: source psnr 20: gain -1"], "3")
    found = page(run, students, decision)
    for words in (
        "of 6 target test photos",
        "7 inputs 4 accepted 2 rejected 1 failed 66.7 % of scored pass ≥ 4.2",
        "Not promoted gmd-student, version 3",
        "score 5.5 00.png",
        "empty file",
        "threshold 4.2",
    ):
        assert words in found.text
    assert found.galleries["Accepted pairs"] == ["00.png", "02.png"], "both ends of the accepted ones, and the middle"
    assert found.galleries["Borderline pairs"] == ["03.png", "04.png"], "the nearest third of the scored pairs"
    assert found.galleries["Rejected pairs"] == ["05.png"]
    thumbs = found.named("button", "thumb")
    shown = [name for names in found.galleries.values() for name in names]
    assert len(thumbs) == len(shown)
    # Held-out: three images of each set, with input, two students and truth. Pairs: five with input, restored image,
    # pseudo-target, adapted student's output and truth.
    pictures = found.named("img")
    assert len(pictures) == 2 * 3 * 4 + 5 * 5
    assert {picture(of["src"]).shape for of in pictures} == {(32, 32, 3)}
    assert all(of["alt"] for of in pictures)
    assert [item["class"] for item in found.named("li") if item.get("class")] == ["no"]


def test_galleries_hold_the_largest_gains_and_losses(run: Config, students: dict[str, str]) -> None:
    evaluation = judge(run, students)
    gains = find_gains(evaluation, "target")
    assert gains is not None
    by_gain = sorted(gains.by_image, key=gains.by_image.__getitem__)
    galleries = page(run, students).galleries
    kept = set(evaluation.pictured("target"))
    best = [image for image in by_gain[::-1][:2] if gains.by_image[image] > 0 and image in kept]
    worst = [image for image in by_gain[:2] if gains.by_image[image] < 0 and image in kept]
    assert galleries["Most improved"] == best
    assert galleries["Most harmed"] == worst
    assert not set(galleries["Typical"]) & {*best, *worst}


def test_the_licence_of_the_teacher_is_told(run: Config, students: dict[str, str]) -> None:
    assert "Teacher's licence" not in page(run, students).text, "no teacher is known"
    run.teacher.path = "black-forest-labs/FLUX.1-dev"
    text = page(run, students).text
    assert "Teacher's licence: non-commercial (FLUX.1 [dev] Non-Commercial License, https://github.com/" in text
    assert "black-forest-labs/FLUX.1-dev" in text, "the name of a model is no place of a server"


def test_pictures_and_remark_come_before_the_tables(run: Config, students: dict[str, str]) -> None:
    run.evaluation.remark = "It says <nothing> of other cameras."
    found = page(run, students)
    head, _, rest = found.text.partition("Target test set")
    assert run.evaluation.remark in head
    assert "Most improved" in head
    assert "Photo by photo" in rest
    assert found.text.index("Adaptation") < found.text.index(run.evaluation.remark)


def test_images_that_have_left_the_inputs_are_not_counted(
    run: Config, students: dict[str, str], tmp_path: Path
) -> None:
    write_store(tmp_path / "out", [5.5, 5.0, 4.0, None])
    manifest = tmp_path / "out" / "pairs" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"stranger_ids": ["01.png", "03.png"]}))
    assert "2 inputs 1 accepted 1 rejected 0 failed" in page(run, students).text


def test_predicted_and_actual_cost(run: Config, students: dict[str, str], tmp_path: Path) -> None:
    """Unknown figures are left out: no row of dashes, and no column without a figure."""
    write_store(tmp_path / "out", [5.0, 4.0])
    assert "images projected" not in page(run, students).text
    manifest = tmp_path / "out" / "pairs" / "manifest.json"
    predicted = {"images": 6000, "accelerator_hours": 3.8, "wall_hours": 0.95, "disk_bytes": 10**10, "price": None}
    actual = {"images": 5990, "accelerator_hours": 4.125, "wall_hours": None, "disk_bytes": 9 * 10**9, "price": None}
    cost = {"predicted": predicted, "actual": actual | {"currency": "USD", "tflops": 480.0}}
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(told | {"cost": cost}))
    run.teacher.pool.num_gpus = 1
    text = page(run, students).text
    for words in ("images projected 6,000 5,990", "accelerator-hours 3.8 4.12", "hours 0.95 images", "disk, GB 10 9"):
        assert words in text
    assert "price" not in text.partition("Time and money")[2].partition("Settings,")[0], "nobody gave a price"
    manifest.write_text(json.dumps(told | {"cost": cost | {"predicted": None}}))
    run.teacher.pool.num_gpus = 0
    text = page(run, students).text
    assert "images projected 5,990" in text
    assert "what actual" in text
    assert "hours of the teacher, on CPUs 4.12" in text


def test_no_dash_stands_for_what_is_unknown(run: Config, students: dict[str, str], tmp_path: Path) -> None:
    write_store(tmp_path / "out", [5.0, 4.0])
    run.evaluation.target_hq = None
    assert " – " not in page(run, students).text


def test_the_second_opinion_is_told(run: Config, students: dict[str, str], tmp_path: Path) -> None:
    write_store(tmp_path / "out", [5.0, 4.5, 4.0], fidelity=[20.0, 30.0, 40.0])
    run.scorer.fidelity, run.scorer.fidelity_bound = "psnr", 25.0
    found = page(run, students)
    assert "3 inputs 1 accepted 2 rejected 0 failed" in found.text
    assert "psnr >= 25 to restored" in found.text


def test_the_page_needs_nothing_beside_itself(run: Config, students: dict[str, str], tmp_path: Path) -> None:
    write_store(tmp_path / "out", [5.0, 4.0])
    found = page(run, students)
    assert [of.get("src") for of in found.named("script")] == [None]
    assert [of["href"] for of in found.named("link")] == ["data:,"], "an icon, so that no browser asks for one"
    sources = [value for _, attributes in found.tags for key, value in attributes.items() if key in ("src", "href")]
    assert all(str(source).startswith(("data:", "#")) for source in sources)
    assert not re.search(r"url\((?!#)|@import|https?://", found.html)


def test_no_path_of_the_server_stands_in_the_page(run: Config, students: dict[str, str], tmp_path: Path) -> None:
    place = tmp_path / "a place (with marks) & more"
    write_store(tmp_path / "out", [5.0, None], uri=f"{place}/{{}}")
    store = PairStore(f"{run.out}/pairs")
    store.write("gate_check.json", {"checks": [{"warning": f"source: BACKWARDS: see {place}/checks/gate.json"}]})
    run.target.path, run.scorer.path = str(place / "photos"), "s3://bucket/deep/scorer"
    run.evaluation.metrics = ["psnr", "niqe"]
    run.evaluation.weights = {"niqe": str(place / "niqe.mat")}
    html = page(run, students, Decision(False, [f"refused: {place}/mlflow.db is locked"], None)).html
    for secret in (str(tmp_path), "with marks", "bucket/deep"):
        assert secret not in re.sub(r";base64,[^\"]*", "", html), secret
    assert "…/scorer" in html
    assert "…/photos" in html


def test_many_large_pictures_stay_under_the_limit(run: Config, students: dict[str, str]) -> None:
    """The worst case: noise, which no codec shrinks, in every gallery that a user may ask for."""
    evaluation = judge(run, students)
    noise = np.random.default_rng(0)
    count, names = 30, ("lq", "baseline", "adapted", "source_only", "median", "hq")
    rows, pictures = [], []
    for i in range(count):
        known = {"dataset": "target", "id": f"{i:03}.png"}
        for name, value in (("baseline", 20.0), ("adapted", 20.0 + noise.normal())):
            rows.append(known | {"student": name, "metric": "psnr", "value": value, "higher_is_better": True})
        for name in names:
            png = encode_png(noise.integers(0, 256, (320, 320, 3), np.uint8))
            pictures.append(known | {"name": name, "png": png})
    tables = pa.Table.from_pylist(rows, schema=ROWS), pa.Table.from_pylist(pictures, schema=PICTURES)
    run.evaluation.report_images = count
    large = replace(evaluation, rows=tables[0], pictures=tables[1], students=("baseline", "adapted"))
    size = len(make_report(run, large, None, RunInputs()).encode())
    assert 5_000_000 < size < 15_000_000


def test_hostile_names_stay_text(run: Config, students: dict[str, str], tmp_path: Path) -> None:
    write_store(tmp_path / "out", [5.0, None], HOSTILE)
    draw(tmp_path / "odd", "lq", "hq", 2, HOSTILE)
    run.evaluation.target_lq, run.evaluation.target_hq = str(tmp_path / "odd/lq"), str(tmp_path / "odd/hq")
    found = page(run, students, Decision(True, ["holds: <b>x</b>"], "1"))
    assert len(found.named("script")) == 1
    assert "alert" not in found.html.partition("<script>")[2]
    assert HOSTILE.format(0) in found.text
    assert any(picture["alt"] == f"adapted (after) of {HOSTILE.format(0)}" for picture in found.named("img"))
    assert "holds: <b>x</b>" in found.text


@pytest.mark.parametrize(("scores", "accepted"), [([5.0, 4.5], 2), ([1.0, 2.0], 0), ([None], 0)])
def test_stores_with_one_kind_of_row(
    run: Config, students: dict[str, str], tmp_path: Path, scores: list[float | None], accepted: int
) -> None:
    write_store(tmp_path / "out", scores)
    found = page(run, students)
    assert f"{len(scores)} inputs {accepted} accepted" in found.text
    assert ("Accepted pairs" in found.text) == (accepted > 0)
    assert ("Rejected pairs" in found.text) == (accepted == 0 and scores != [None])


def test_without_ground_truth_pair_store_and_adapted_student(run: Config, students: dict[str, str]) -> None:
    run.evaluation.target_hq = run.evaluation.source_hq = run.evaluation.source_lq = None
    run.evaluation.metrics = ["psnr", "niqe"]
    run.evaluation.weights = {"niqe": "/nowhere/niqe.mat"}
    found = page(run, {"baseline": students["baseline"]})
    assert "no adapted student" in found.text
    assert "niqe : evaluation.weights.niqe=…/niqe.mat: no such file" in found.text
    assert "psnr: unavailable: needs ground truth, which this test set lacks" in found.text
    assert "No metric has a value on this set" in found.text or "method parameters" in found.text
    assert len(found.named("img")) == 3 * 2


def test_the_training_log_becomes_a_curve_and_passwords_do_not_show(
    run: Config, students: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "out" / "finetune" / "adapted" / "curve.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text('{"step": 10, "loss": 0.5}\n{"died": 1, "error": "x"}\n{"step": 20, "loss": 0.25}\n{"step": 3')
    run.tracking.uri = "https://me:secret@mlflow.example:5000"
    write_store(tmp_path / "out", [5.0, None], uri="s3://KEY:secret@bucket/{}")
    manifest = tmp_path / "out" / "pairs" / "manifest.json"
    manifest.write_text(json.dumps({"target": "s3://KEY:secret@bucket"} | json.loads(manifest.read_text())))
    found = page(run, students)
    assert found.text.count("Loss of the fine-tune") == 1
    assert "training loss over the steps of adapted (after)" in [of.get("aria-label") for of in found.named("svg")]
    assert "secret" not in found.html
    assert "mlflow.example:5000" in found.text


def test_ground_truth_goes_by_names_that_look_the_same(tmp_path: Path) -> None:
    """macOS stores an accent apart from its letter, and a linked file has a name of its own."""
    decomposed = unicodedata.normalize("NFD", "Grüße.png")
    (tmp_path / decomposed).write_bytes(b"")
    (tmp_path / "again.png").symlink_to(decomposed)
    cfg = Config()
    cfg.evaluation.pairs_hq = str(tmp_path)
    composed = unicodedata.normalize("NFC", "Grüße.jpg")
    assert gallery._truths(cfg, [composed, "again.jpg", "other.jpg"], RunInputs()) == {
        composed: f"{tmp_path}/{decomposed}",
        "again.jpg": f"{tmp_path}/again.png",
    }
