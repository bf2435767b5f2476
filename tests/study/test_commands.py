"""The actions of `gmd-ray study`, from folders to a result."""

from __future__ import annotations

import re
import signal
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from gmd_ray.cli import main
from gmd_ray.config import Config
from gmd_ray.config.saving import save_config
from gmd_ray.errors import ExitCode
from gmd_ray.evaluation.results import PICTURES, ROWS, Evaluation
from gmd_ray.images.files.encode import decode_png, encode_png
from gmd_ray.serving.server import PageServer
from gmd_ray.study.answers import AnswerBook
from gmd_ray.study.folder import COMPARISON, Study, load_key, load_study
from tests import PATIENCE_S
from tests.study.conftest import pictures
from tests.study.served import page_data


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    for method, photos in pictures(("baseline", "adapted"), 5).items():
        (tmp_path / method).mkdir()
        for photo, load in photos.items():
            Image.fromarray(load()).save(tmp_path / method / f"{photo}.png")
    return [f"{method}={tmp_path / method}" for method in ("baseline", "adapted")]


def test_create_says_what_is_for_whom(folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "study")
    words = ["--title", "A & B", "--task", "deblurring", "--limit", "3", "--checks", "1", "--seed", "4"]
    assert main(["study", "create", *folders, "-o", out, *words]) == 0
    printed = capsys.readouterr().out
    assert "5 pairs: 3 comparisons, 2 attention checks" in printed
    assert "give it to nobody" in printed
    study = load_study(out)
    assert study.title == "A & B"
    assert "one blurred photo" in study.paragraphs[0]
    assert load_key(study).seed == 4


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["baseline=BASELINE"], "two methods or more"),
        (["baseline=BASELINE", "adapted"], "give NAME=FOLDER"),
        (["baseline=BASELINE", "adapted=ADAPTED", "--checks", "-1"], "--checks -1: give 0 or more"),
        (["baseline=BASELINE", "adapted=ADAPTED", "--instructions", "none.txt"], "no such file"),
        (["baseline=BASELINE", "adapted=ADAPTED", "--run", "none"], "evaluate this run first"),
        (["baseline=BASELINE", "adapted=ADAPTED", "-o", "s3://bucket/study"], "a folder of this machine"),
    ],
)
def test_a_mistake_is_one_line(
    folders: list[str], tmp_path: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"BASELINE": str(tmp_path / "baseline"), "ADAPTED": str(tmp_path / "adapted")}
    words = [re.sub("BASELINE|ADAPTED", lambda found: places[found[0]], word) for word in words]
    command = ["study", "create", "-o", str(tmp_path / "study"), *words]
    expected = ExitCode.DATA if "--run" in words else ExitCode.SETTINGS  # a run without figures lacks data
    assert main(command) == expected
    assert line in capsys.readouterr().err
    assert not (tmp_path / "study" / "public").exists()


def test_the_pictures_of_an_evaluation(tmp_path: Path) -> None:
    """Those spread over the test set, and not that of the photo in its middle, which gained most."""
    rows, kept = [], []
    made = pictures(("baseline", "adapted", "median"), 5)
    for name, photos in made.items():
        for photo, load in photos.items():
            rows.append({"dataset": "target", "id": photo, "student": name, "metric": "psnr", "value": 1.0})
            if photo in ("photo0", "photo2", "photo4"):
                kept.append({"dataset": "target", "id": photo, "name": name, "png": encode_png(load())})
    tables = [pa.Table.from_pylist(table, schema=schema) for table, schema in ((rows, ROWS), (kept, PICTURES))]
    Evaluation(tables[0], tables[1], tuple(made), ("psnr",), "").save(str(tmp_path / "run"))
    cfg = Config(out=str(tmp_path / "run"))
    cfg.evaluation.report_images = 2
    save_config(cfg, tmp_path / "run" / "config.yaml")
    run = ["study", "create", "--run", str(tmp_path / "run"), "--checks", "0"]
    assert main([*run, "-o", str(tmp_path / "study")]) == 0
    study = load_study(tmp_path / "study")
    key = load_key(study).pairs
    assert sorted(facts.photo for facts in key.values()) == ["photo0", "photo4"]
    for pair in study.pairs:
        facts = key[pair.id]
        assert (facts.kind, {facts.left, facts.right}) == (COMPARISON, {"baseline", "adapted"})
        assert np.array_equal(np.rint(decode_png(study.picture(pair.left)) * 255), made[facts.left][facts.photo]())
    assert main([*run, "--students", "baseline,nobody", "-o", str(tmp_path / "other")]) == 2
    assert main([*run, "--dataset", "source", "-o", str(tmp_path / "other")]) == ExitCode.DATA


@pytest.fixture
def not_serving(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Servers are made and closed at once; the lines that they would have said."""
    lines: list[str] = []

    def closed(server: PageServer, line: str) -> int:
        lines.append(line)
        server.server_close()
        return 0

    monkeypatch.setattr("gmd_ray.verbs.pages.study.serving", closed)
    monkeypatch.setattr("gmd_ray.verbs.pages.serve.serving", closed)
    return lines


def test_links_are_written_once_and_for_the_owner(study: Study, tmp_path: Path, not_serving: list[str]) -> None:
    links = tmp_path / "links.txt"
    words = ["study", "serve", str(study.folder), "--port", "0", "--url", "https://study.example.org/"]
    assert main([*words, "--invite", "2", "--rater", "Ann\x1b[2J", "--links", str(links)]) == 0
    assert not_serving == ["study    https://study.example.org"]
    assert stat.S_IMODE(links.stat().st_mode) == 0o600
    lines = [line.split("\t") for line in links.read_text().splitlines()]
    assert [name for name, _ in lines] == ["Ann\\x1b[2J", "rater 1", "rater 2"]
    book = AnswerBook(study)
    for i, (_, link) in enumerate(lines, 1):
        found = re.fullmatch(r"https://study\.example\.org/r/([\w-]{32})/", link)
        assert found is not None
        assert book.rater(found[1]) == i
    # The links in that file count: it is not overwritten, and nobody is invited in vain.
    assert main([*words, "--invite", "1", "--links", str(links)]) == 2
    assert book.count_raters() == 3
    assert main(["study", "serve", str(study.folder), "--port", "0", "--url", "study.example.org"]) == 2


def test_a_page_without_server_says_its_size(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["study", "export-html", str(study.folder), "--to", str(page)]) == 0
    assert f"{page.stat().st_size / 1e6:.1f} MB, 10 pairs" in capsys.readouterr().out


@pytest.mark.slow
def test_the_served_command_prints_links_that_open_and_ends_on_ctrl_c(study: Study) -> None:
    words = [sys.executable, "-m", "gmd_ray.cli", "study", "serve", str(study.folder), "--port", "0", "--invite", "1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name, link = process.stdout.readline().split("   ")
        assert name == "rater 1"
        assert process.stdout.readline().startswith("study    http://127.0.0.1:")
        with urllib.request.urlopen(link.strip(), timeout=PATIENCE_S) as page:
            assert len(page_data(page.read())["pairs"]) == 10
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE_S) == ExitCode.INTERRUPTED
