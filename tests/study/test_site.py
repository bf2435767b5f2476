"""A served study by real requests: forged pairs, foreign tokens and double submits change nothing; 50 raters."""

from __future__ import annotations

import json
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gmd_ray.errors import DataError
from gmd_ray.serving.server import PageServer
from gmd_ray.study.answers import AnswerBook
from gmd_ray.study.create import create_study
from gmd_ray.study.folder import Study, StudyKey
from gmd_ray.study.result import study_result
from tests.study.conftest import NAMES, attentive, pictures
from tests.study.served import get, page_data, post, running


@pytest.fixture
def served(study: Study) -> Iterator[tuple[PageServer, AnswerBook]]:
    with running(study) as both:
        yield both


def answer(pair: str, choice: str = "left", **more: Any) -> dict[str, Any]:
    return {"pair": pair, "choice": choice, "seconds": 1.5, **more}


def test_a_rater_sees_every_pair_once_and_resumes(served: tuple[PageServer, AnswerBook], study: Study) -> None:
    server, book = served
    one, other = book.invite(["Ann", "Ben"])
    status, page, headers = get(server, f"/r/{one.token}/")
    data = page_data(page)
    assert status == 200
    assert "'unsafe-inline'" not in headers["Content-Security-Policy"]
    assert sorted(pair[0] for pair in data["pairs"]) == sorted(pair.id for pair in study.pairs)
    assert data["answers"] == {}
    others = page_data(get(server, f"/r/{other.token}/")[1])["pairs"]
    assert others != data["pairs"]
    assert sorted(others) == sorted(data["pairs"])
    first = data["pairs"][0][0]
    assert post(server, one.token, answer(first, "tie")) == (200, {"outcome": "stored", "choice": "tie"})
    again = page_data(get(server, f"/r/{one.token}/")[1])
    assert (again["pairs"], again["answers"]) == (data["pairs"], {first: "tie"})
    assert page_data(get(server, f"/r/{other.token}/")[1])["answers"] == {}


def test_pictures_come_as_they_were_written(served: tuple[PageServer, AnswerBook], study: Study) -> None:
    server, book = served
    (ann,) = book.invite(["Ann"])
    pair = study.pairs[0]
    status, body, headers = get(server, f"/r/{ann.token}/pictures/{pair.left}")
    assert (status, body, headers["Content-Type"]) == (200, study.picture(pair.left), "image/png")
    assert "Last-Modified" not in headers


def test_nothing_that_a_rater_gets_tells_a_method(served: tuple[PageServer, AnswerBook]) -> None:
    server, book = served
    (ann,) = book.invite(["Ann"])
    for path in ("/", f"/r/{ann.token}/", f"/r/{ann.token}/study.js", f"/r/{ann.token}/study.css"):
        body = get(server, path)[1]
        for word in (*NAMES, "alert(1)", "photo0", "degraded", "repeated"):
            assert word.encode() not in body


def test_a_title_is_text_and_no_markup(served: tuple[PageServer, AnswerBook]) -> None:
    server, book = served
    (ann,) = book.invite(["<script>alert(2)</script>"])
    for path in ("/", f"/r/{ann.token}/"):
        assert b"<b>study</b>" not in get(server, path)[1]
        assert b"&lt;b&gt;study&lt;/b&gt;" in get(server, path)[1]
        assert b"alert(2)" not in get(server, path)[1]


@pytest.mark.parametrize(
    "path",
    [
        *("/r/", "/r/nobody/", "/r//", "/study.json", "/private/key.json", "/r", "/key.json", "/r/\udcff/"),
        *("/r/TOKEN/pictures/../../../private/key.json", "/r/TOKEN/pictures/%2e%2e/%2e%2e/private/key.json"),
        *("/r/TOKEN/pictures/", "/r/TOKEN/pictures/0000000000000000.png", "/r/TOKEN/answers", "/r/TOKEN/key.json"),
        *("/r/TOKEN//etc/passwd", "/r/TOKEN/pictures//etc/passwd", "/r/TOKEN/study.json", "/r/TOKENx/"),
    ],
)
def test_no_other_path_gives_anything(served: tuple[PageServer, AnswerBook], path: str) -> None:
    server, book = served
    (ann,) = book.invite(["Ann"])
    path = path.replace("TOKEN", ann.token).replace("\udcff", "%ff")
    status, body, _ = get(server, path)
    assert (status, body) == (404, b"There is nothing at this address.\n")


def test_a_link_without_its_slash_leads_to_the_page(served: tuple[PageServer, AnswerBook]) -> None:
    server, book = served
    (ann,) = book.invite(["Ann"])
    status, _, headers = get(server, f"/r/{ann.token}")
    assert (status, headers["Location"]) == (308, f"{ann.token}/")


@pytest.mark.parametrize(
    "change",
    [
        *({"pair": "f" * 16}, {"pair": "../key"}, {"pair": None}, {"pair": ["a"]}, {"choice": "both"}, {"choice": ""}),
        *({"seconds": "soon"}, {"seconds": None}, {"seconds": 1e400}, {"seconds": [1]}, {"choice": None}),
    ],
)
def test_a_forged_answer_is_refused(
    served: tuple[PageServer, AnswerBook], study: Study, change: dict[str, Any]
) -> None:
    server, book = served
    (ann,) = book.invite(["Ann"])
    assert post(server, ann.token, answer(study.pairs[0].id) | change)[0] == 400
    assert book.answers() == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b'"x"', b"null", b"[" * 900, b"\xff", b'{"pair":NaN}'])
def test_a_body_that_is_no_answer_is_refused(served: tuple[PageServer, AnswerBook], body: bytes) -> None:
    server, book = served
    (ann,) = book.invite(["Ann"])
    assert post(server, ann.token, body)[0] == 400
    assert book.answers() == []


def test_a_foreign_token_is_refused(served: tuple[PageServer, AnswerBook], study: Study, tmp_path: Path) -> None:
    server, book = served
    (ann,) = book.invite(["Ann"])
    elsewhere = AnswerBook(create_study(pictures(("a", "b"), 2), tmp_path / "other"))
    (stranger,) = elsewhere.invite(["Stranger"])
    for token in (stranger.token, ann.token[:-1], ann.token + "A", "' or 1=1 --".replace(" ", "%20"), "%00"):
        assert post(server, token, answer(study.pairs[0].id))[0] == 404
    assert book.answers() == []


def test_a_second_answer_changes_nothing_unless_the_rater_went_back(
    served: tuple[PageServer, AnswerBook], study: Study
) -> None:
    server, book = served
    (ann,) = book.invite(["Ann"])
    pair = study.pairs[0].id
    assert post(server, ann.token, answer(pair, "left"))[1] == {"outcome": "stored", "choice": "left"}
    (stored,) = book.answers()
    assert post(server, ann.token, answer(pair, "left", seconds=9))[1] == {"outcome": "same", "choice": "left"}
    assert post(server, ann.token, answer(pair, "right")) == (409, {"outcome": "kept", "choice": "left"})
    assert post(server, ann.token, answer(pair, "right", revise="yes"))[0] == 409
    assert book.answers() == [stored]
    assert post(server, ann.token, answer(pair, "tie", revise=True))[1] == {"outcome": "stored", "choice": "tie"}
    assert [each.choice for each in book.answers()] == ["tie"]


def test_times_are_bounded(served: tuple[PageServer, AnswerBook], study: Study) -> None:
    server, book = served
    (ann,) = book.invite(["Ann"])
    for pair, seconds in zip(study.pairs, (-5, 1e30), strict=False):
        assert post(server, ann.token, answer(pair.id, seconds=seconds))[0] == 200
    assert sorted(each.seconds for each in book.answers()) == [0, 86_400]


def test_fifty_raters_at_once(served: tuple[PageServer, AnswerBook], study: Study, key: StudyKey) -> None:
    """Each answers every pair twice at the same time, forges one more, and posts one with the next rater's name."""
    server, book = served
    raters = book.invite([f"rater {i}" for i in range(50)])
    failures: list[object] = []
    gate = threading.Barrier(len(raters))

    def rate(number: int) -> None:
        try:
            token = raters[number].token
            preferred = NAMES[number % 2]
            gate.wait()
            for pair, *_ in page_data(get(server, f"/r/{token}/")[1])["pairs"]:
                choice = attentive(key, pair, preferred)
                twins = [threading.Thread(target=post, args=(server, token, answer(pair, choice))) for _ in range(2)]
                for twin in twins:
                    twin.start()
                for twin in twins:
                    twin.join()
            assert post(server, token, answer("e" * 16))[0] == 400
            assert post(server, token[::-1], answer(study.pairs[0].id))[0] == 404
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=rate, args=(number,)) for number in range(len(raters))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    answers = book.answers()
    assert len(answers) == len({(each.rater, each.pair) for each in answers}) == 50 * len(study.pairs)
    for each in answers:
        assert each.choice == attentive(key, each.pair, NAMES[int(each.name.split()[1]) % 2])
    (found,) = study_result(study, key, answers).comparisons
    assert (found.wins, found.ties, found.losses) == (150, 0, 150)


def test_only_hashes_of_tokens_are_stored_and_only_the_owner_reads_them(study: Study) -> None:
    book = AnswerBook(study)
    (ann,) = book.invite(["Ann"])
    private = study.folder / "private"
    files = list(private.iterdir())
    assert {"answers.sqlite", "key.json"} <= {file.name for file in files}
    for file in files:
        assert ann.token.encode() not in file.read_bytes()
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0
    with sqlite3.connect(private / "answers.sqlite") as db:
        assert db.execute("pragma journal_mode").fetchone() == ("wal",)
    assert book.rater(ann.token) == 1
    assert AnswerBook(study).rater(ann.token) == 1  # after a restart too


def test_answers_of_another_study_are_refused(study: Study, tmp_path: Path) -> None:
    AnswerBook(study).invite(["Ann"])
    other = create_study(pictures(("a", "b"), 2), tmp_path / "other")
    (other.folder / "private" / "answers.sqlite").write_bytes(
        (study.folder / "private" / "answers.sqlite").read_bytes()
    )
    with pytest.raises(DataError, match="answers to another study"):
        AnswerBook(other)
    (other.folder / "private" / "answers.sqlite").write_bytes(json.dumps({}).encode() * 600)
    with pytest.raises(DataError, match="not the answers of a study"):
        AnswerBook(other)
