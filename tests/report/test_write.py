from __future__ import annotations

import base64
import json
import re
import unicodedata
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest

from gmd_ray.config import Config
from gmd_ray.evaluation.actor import EvaluationActor
from gmd_ray.evaluation.evaluate import collect
from gmd_ray.evaluation.items import Item, held_out_items
from gmd_ray.evaluation.results import Evaluation
from gmd_ray.evaluation.store import open_store, pair_items
from gmd_ray.images.files.encode import decode_png
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.report import gallery, write_report
from tests.evaluation.conftest import draw, write_store

HOSTILE = "<script>alert(1)</script>&\"'{:02d}.png".replace("/", "⁄")


@dataclass(frozen=True)
class Decision:
    promoted: bool
    reasons: list[str]
    version: str | None


class Page(HTMLParser):
    """Tags, attributes and text of a page; refuses one that is not well formed."""

    VOID = ("meta", "img")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


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
        "on 6 target test images",
        "7 inputs 4 accepted 2 rejected 1 failed 66.7 % of scored pass ≥ 4.2",
        "not promoted gmd-student version 3",
        "00.png score 5.5",
        "empty file",
        "threshold 4.2",
    ):
        assert words in found.text
    # Held-out: three images of target and source each, LQ + two students + ground truth. Pairs: three accepted and
    # both rejected, LQ + restored + pseudo-target + adapted + ground truth. At the head one target image stands again.
    pictures = found.named("img")
    assert len(pictures) == 4 + 2 * 3 * 4 + 5 * 5
    for picture in pictures:
        head, _, data = str(picture["src"]).partition(",")
        assert head == "data:image/png;base64"
        image = decode_png(base64.b64decode(data))
        assert picture["width"] == str(3 * image.shape[1])
    assert [item["class"] for item in found.named("li") if item.get("class")] == ["no"]


def test_the_licence_of_the_teacher_is_told(run: Config, students: dict[str, str]) -> None:
    assert "Teacher's licence" not in page(run, students).text, "no teacher is known"
    run.teacher.path = "black-forest-labs/FLUX.1-dev"
    text = page(run, students).text
    assert "Teacher's licence: non-commercial (FLUX.1 [dev] Non-Commercial License, https://github.com/" in text


def test_pictures_and_remark_come_before_the_tables(run: Config, students: dict[str, str]) -> None:
    """At the head stands the image of median gain of those that are pictured."""
    run.evaluation.remark = "It says <nothing> of other cameras."
    evaluation = judge(run, students)
    text = page(run, students).text
    head, _, rest = text.partition("Target test set")
    assert run.evaluation.remark in head
    gains = {
        image: evaluation.values("adapted", "target", "psnr")[image]
        - evaluation.values("baseline", "target", "psnr")[image]
        for image in evaluation.pictured("target")
    }
    typical = sorted(gains, key=lambda image: gains[image])[len(gains) // 2]
    assert [image for image in gains if image in head] == [typical]
    assert "Target test images" in rest
    only_baseline = {"baseline": students["baseline"]}
    assert "Before and after" not in page(run, only_baseline).text


def test_images_that_have_left_the_inputs_are_not_counted(
    run: Config, students: dict[str, str], tmp_path: Path
) -> None:
    write_store(tmp_path / "out", [5.5, 5.0, 4.0, None])
    manifest = tmp_path / "out" / "pairs" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"stranger_ids": ["01.png", "03.png"]}))
    assert "2 inputs 1 accepted 1 rejected 0 failed" in page(run, students).text


def test_predicted_and_actual_cost(run: Config, students: dict[str, str], tmp_path: Path) -> None:
    write_store(tmp_path / "out", [5.0, 4.0])
    assert "Cost of the pairs" not in page(run, students).text
    manifest = tmp_path / "out" / "pairs" / "manifest.json"
    predicted = {"images": 6000, "accelerator_hours": 3.8, "wall_hours": 0.95, "disk_bytes": 10**10, "price": None}
    actual = {"images": 5990, "accelerator_hours": 4.125, "wall_hours": None, "disk_bytes": 9 * 10**9, "price": None}
    cost = {"predicted": predicted, "actual": actual | {"currency": "USD", "tflops": 480.0}}
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(told | {"cost": cost}))
    text = page(run, students).text
    for words in ("images projected 6,000 5,990", "accelerator-hours 3.8 4.125", "hours 0.95 –", "disk, GB 10 9"):
        assert words in text
    assert "cost, USD" not in text, "nobody gave a price"
    manifest.write_text(json.dumps(told | {"cost": cost | {"predicted": None}}))
    assert "images projected – 5,990" in page(run, students).text


def test_the_second_opinion_is_told(run: Config, students: dict[str, str], tmp_path: Path) -> None:
    write_store(tmp_path / "out", [5.0, 4.5, 4.0], fidelity=[20.0, 30.0, 40.0])
    run.scorer.fidelity, run.scorer.fidelity_bound = "psnr", 25.0
    found = page(run, students)
    assert "3 inputs 1 accepted 2 rejected 0 failed" in found.text
    assert "psnr >= 25 to restored" in found.text


def test_the_page_needs_nothing_beside_itself(run: Config, students: dict[str, str], tmp_path: Path) -> None:
    write_store(tmp_path / "out", [5.0, 4.0])
    found = page(run, students)
    assert not found.named("script")
    assert not found.named("link")
    sources = [value for _, attributes in found.tags for key, value in attributes.items() if key in ("src", "href")]
    assert all(str(source).startswith("data:") for source in sources)
    assert not re.search(r"url\(|@import|https?://", Path(f"{run.out}/report.html").read_text())


def test_hostile_names_stay_text(run: Config, students: dict[str, str], tmp_path: Path) -> None:
    write_store(tmp_path / "out", [5.0, None], HOSTILE)
    draw(tmp_path / "odd", "lq", "hq", 2, HOSTILE)
    run.evaluation.target_lq, run.evaluation.target_hq = str(tmp_path / "odd/lq"), str(tmp_path / "odd/hq")
    found = page(run, students, Decision(True, ["holds: <b>x</b>"], "1"))
    assert not found.named("script")
    assert HOSTILE.format(0) in found.text
    assert any(picture["alt"] == f"adapted of {HOSTILE.format(0)}" for picture in found.named("img"))
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
    assert "niqe : evaluation.weights.niqe=/nowhere/niqe.mat: no such file" in found.text
    assert "psnr: unavailable: needs ground truth, which this test set lacks" in found.text
    assert "student psnr ↑ parameters s/image lq – – – baseline –" in found.text
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
    assert len(found.named("polyline")) == 1
    assert "secret" not in Path(f"{run.out}/report.html").read_text()
    assert "***@mlflow.example:5000" in found.text
    assert "***@bucket" in found.text


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
