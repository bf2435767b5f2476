"""Answers counted: planted preferences are found again, and raters who do not look are not counted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gmd_ray.cli import main
from gmd_ray.errors import DataError
from gmd_ray.study.answers import Answer, AnswerBook
from gmd_ray.study.create import StudyPlan, create_study
from gmd_ray.study.csv_answers import read_csv_answers
from gmd_ray.study.folder import COMPARISON, DEGRADED, REPEATED, Study, StudyKey, load_key
from gmd_ray.study.result import MethodComparison, StudyResult, study_result
from gmd_ray.study.tables import result_json, result_markdown
from tests.study.conftest import NAMES, PLAN, attentive, comparisons, pictures

AT = "2026-01-02T03:04:05+00:00"


def answer(rater: str, pair: str, choice: str, seconds: float = 2.0) -> Answer:
    return Answer(rater, rater.title(), pair, choice, seconds, AT)


def simulate(key: StudyKey, raters: int, odds: Mapping[tuple[str, str], tuple[float, float, float]]) -> list[Answer]:
    """Raters who see degraded copies, and draw from (first, tie, second) on each comparison."""
    rng = np.random.default_rng(17)
    given = []
    for rater in range(raters):
        for pair, facts in key.pairs.items():
            if facts.kind == DEGRADED:
                choice = attentive(key, pair, "")
            else:
                two = facts.left, facts.right
                straight = two in odds
                chances = odds[two] if straight else odds[two[1], two[0]][::-1]
                choice = ("left", "tie", "right")[rng.choice(3, p=chances)]
            given.append(answer(f"r{rater}", pair, choice))
    return given


def comparison(result: StudyResult, first: str, second: str) -> MethodComparison:
    (found,) = [each for each in result.comparisons if (each.first, each.second) == (first, second)]
    return found


def test_a_planted_preference_is_found(tmp_path: Path) -> None:
    study = create_study(pictures(("a", "b", "c"), 12), tmp_path, StudyPlan(seed=2))
    key = load_key(study)
    odds = {("a", "b"): (0.2, 0.2, 0.6), ("a", "c"): (0.4, 0.2, 0.4), ("b", "c"): (0.7, 0.1, 0.2)}
    result = study_result(study, key, simulate(key, 50, odds))
    for (first, second), (win, tie, loss) in odds.items():
        found = comparison(result, first, second)
        assert (found.raters, found.photos, found.wins + found.ties + found.losses) == (50, 12, 600)
        assert found.without_ties is not None
        assert found.ties_as_half is not None
        for rate, truth in ((found.without_ties, win / (win + loss)), (found.ties_as_half, win + tie / 2)):
            assert rate.rate == pytest.approx(truth, abs=0.05)
            assert rate.clustered is not None
            assert rate.clustered[0] - 0.02 < truth < rate.clustered[1] + 0.02
    verdicts = [each.verdict for each in result.comparisons]
    assert verdicts == ["Raters prefer b to a.", "No preference seen between a and c.", "Raters prefer b to c."]
    assert not any(rater.excluded for rater in result.raters)
    left, sided = result.chose_a
    assert left / sided == pytest.approx(0.5, abs=0.04)


def test_a_preference_has_to_hold_among_all_comparisons(tmp_path: Path) -> None:
    """15 of 20 raters prefer a to b: clear for one comparison, and not for one of three after Holm."""
    found = {}
    for names in (("a", "b"), ("a", "b", "c")):
        study = create_study(pictures(names, 1), tmp_path / str(len(names)), replace(PLAN, degraded=0, repeated=0))
        key = load_key(study)
        given = []
        for rater in range(20):
            for pair, facts in key.pairs.items():
                first, second = sorted((facts.left, facts.right))
                liked = first if rater < (15 if second == "b" else 10) else second
                given.append(answer(f"r{rater}", pair, attentive(key, pair, liked)))
        found[len(names)] = comparison(study_result(study, key, given), "a", "b")
    alone, among = found[2], found[3]
    assert alone.verdict == "Raters prefer a to b."
    assert alone.adjusted_p is not None
    assert alone.ties_as_half is not None
    assert alone.adjusted_p == alone.ties_as_half.p
    assert among.adjusted_p is not None
    assert alone.adjusted_p < 0.05 < among.adjusted_p
    assert among.adjusted_p == pytest.approx(3 * alone.adjusted_p)
    assert among.verdict == "No preference seen between a and b."


@pytest.mark.parametrize("raters", [1, 2, 3, 5, 6])
def test_few_raters_are_too_few_to_judge(tmp_path: Path, raters: int) -> None:
    """Everybody answers 6 to 4, which would be an interval without width."""
    study = create_study(pictures(NAMES, 10), tmp_path, replace(PLAN, degraded=0, repeated=0))
    key = load_key(study)
    first, second = key.methods
    given = [
        answer(f"r{rater}", pair, attentive(key, pair, first if i < 6 else second))
        for rater in range(raters)
        for i, pair in enumerate(sorted(key.pairs))
    ]
    result = study_result(study, key, given)
    (found,) = result.comparisons
    text = result_markdown(result)
    assert (found.wins, found.ties, found.losses) == (6 * raters, 0, 4 * raters)
    assert found.without_ties is not None
    low, high = (f"{100 * end:.1f}" for end in found.without_ties.wilson)
    if raters == 6:
        assert found.verdict == f"Raters prefer {first} to {second}."
    else:
        who = "1 rater" if raters == 1 else f"{raters} raters"
        assert found.verdict == f"{who} compared {first} with {second}: too few raters to judge, which takes 6."
        assert f"60.0 % ({low} to {high})" in text
    assert "Fewer than 6 raters get no second interval." in text


def test_counts_by_hand(study: Study, key: StudyKey) -> None:
    one, other = NAMES
    first, second, third, *_ = comparisons(key)
    given = []
    for rater in ("ann", "ben"):
        given += [answer(rater, first, attentive(key, first, one)), answer(rater, second, "tie")]
        given.append(answer(rater, third, attentive(key, third, one if rater == "ann" else other)))
    result = study_result(study, key, given)
    (found,) = result.comparisons
    assert (found.first, found.second, found.raters, found.photos) == (one, other, 2, 3)
    assert (found.wins, found.ties, found.losses) == (3, 2, 1)
    assert found.without_ties is not None
    assert found.without_ties.rate == 3 / 4
    assert [(rater.agreeing, rater.compared) for rater in result.raters] == [(2, 3), (2, 3)]
    assert result.raters[0].seconds == 2.0


def test_a_repeated_pair_checks_a_rater_and_counts_once(study: Study, key: StudyKey) -> None:
    repeats = [(pair, facts.of) for pair, facts in key.pairs.items() if facts.kind == REPEATED]
    (pair, before), (other_pair, other_before) = repeats
    same_side = [answer("x", pair, "left"), answer("x", before, "left")]  # sides are swapped: two preferences
    consistent = [answer("x", other_pair, "left"), answer("x", other_before, "right")]
    result = study_result(study, key, [*same_side, *consistent])
    (rater,) = result.raters
    assert (rater.contradictions, rater.repeats, rater.excluded) == (1, 2, False)
    (found,) = result.comparisons
    assert found.wins + found.ties + found.losses == 2


def test_who_fails_the_attention_checks_is_excluded_by_the_stated_rule(study: Study, key: StudyKey) -> None:
    attending = [answer("good", pair, attentive(key, pair, NAMES[1])) for pair in key.pairs]
    asleep = [answer("left", pair, "left") for pair in key.pairs]
    blind = [answer("tie", pair, "tie") for pair in key.pairs]
    result = study_result(study, key, [*attending, *asleep, *blind])
    records = {rater.id: rater for rater in result.raters}
    assert {rater: record.excluded for rater, record in records.items()} == {"good": False, "left": True, "tie": True}
    # The two copies are on different sides.
    assert {rater: (record.checks_failed, record.checks) for rater, record in records.items()} == {
        "good": (0, 2),
        "left": (1, 2),
        "tie": (2, 2),
    }
    (found,) = result.comparisons
    assert (found.wins, found.losses, found.raters) == (0, 6, 1)
    assert result.rule == "A rater who failed any of the pairs with an obviously degraded copy is excluded."
    lenient = study_result(study, key, [*attending, *asleep, *blind], allowed_failures=1)
    assert [rater.id for rater in lenient.raters if rater.excluded] == ["tie"]
    assert "failed more than one of" in lenient.rule


def test_who_answered_no_attention_check_is_counted_and_named(study: Study, key: StudyKey, tmp_path: Path) -> None:
    early = [answer("early", pair, "left") for pair in comparisons(key)[:3]]
    late = [answer("late", pair, attentive(key, pair, NAMES[1])) for pair in key.pairs]
    result = study_result(study, key, [*early, *late])
    assert {rater.id: (rater.unchecked, rater.excluded) for rater in result.raters} == {
        "early": (True, False),
        "late": (False, False),
    }
    text = result_markdown(result)
    assert "nothing shows whether they looked: Early." in text
    (row,) = [line for line in text.splitlines() if line.startswith("| Early |")]
    assert row.endswith("| no check answered |")
    assert text.count("no check answered") == 1
    plain = create_study(pictures(NAMES, 3), tmp_path / "plain", replace(PLAN, degraded=0))
    unguarded = load_key(plain)
    (rater,) = study_result(plain, unguarded, [answer("x", pair, "left") for pair in unguarded.pairs]).raters
    assert not rater.unchecked, "a study without checks says nothing of a single rater"


def test_no_answers_is_an_error(study: Study, key: StudyKey) -> None:
    with pytest.raises(DataError, match="no answers yet"):
        study_result(study, key, [])


def csv_text(study: Study, rows: list[tuple[str, str, str, str]], /, **changed: str) -> str:
    head = "study,rater,name,pair,choice,seconds,answered_at\r\n"
    facts = {"study": study.id, "seconds": "1.5"} | changed
    return head + "".join(
        f'{facts["study"]},{rater},"{name}",{pair},{choice},{facts["seconds"]},{changed.get("at", AT)}\r\n'
        for rater, name, pair, choice in rows
    )


def test_csv_files_of_raters(study: Study, key: StudyKey, tmp_path: Path) -> None:
    pair, other = comparisons(key)[:2]
    ann, second_ann = "0" * 16, "1" * 16
    good = csv_text(study, [(ann, "Ann", pair, "left"), (ann, "Ann", other, "tie"), (second_ann, "Ann", pair, "right")])
    later = csv_text(study, [(ann, "Ann", other, "right")], at="2026-01-02T03:09:00+00:00")
    forged = csv_text(study, [(ann, "Ann", "f" * 16, "left"), (ann, "Ann", pair, "both"), ("me", "Ann", pair, "left")])
    foreign = csv_text(study, [(ann, "Ann", pair, "left")], study="e" * 16)
    broken = csv_text(study, [(ann, "Ann", pair, "left")], seconds="nan")
    files = []
    for i, text in enumerate((good, good, later, forged, foreign, broken)):
        files.append(tmp_path / f"{i}.csv")
        files[-1].write_text(text, encoding="utf-8")
    found = read_csv_answers(study, files)
    choices = {(each.rater, each.pair): each.choice for each in found.answers}
    assert choices == {
        (f"file {ann}", pair): "left",
        (f"file {ann}", other): "right",
        (f"file {second_ann}", pair): "right",
    }
    assert dict(found.left_out) == {
        "answers to a pair that the same rater answered twice": 4,
        "rows with a pair that this study does not have": 1,
        "rows with a choice that does not exist": 1,
        "rows without a rater or a time": 2,
        "rows of another study": 1,
    }


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"study,rater\r\n", "no column 'name'"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"", "no column 'study'"),
        (b'study,rater,name,pair,choice,seconds,answered_at\r\n"' + b"x" * 200_000, "not a CSV file"),
    ],
)
def test_what_is_no_csv_file_is_refused(study: Study, tmp_path: Path, content: bytes, line: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=line):
        read_csv_answers(study, [tmp_path / "a.csv"])


def test_names_of_strangers_form_no_markup(study: Study, key: StudyKey) -> None:
    hostile = "<img src=x onerror=alert(1)> | `x` [a](javascript:b)\nx\x1b[2J"
    given = [replace(answer("x", pair, attentive(key, pair, NAMES[0])), name=hostile) for pair in key.pairs]
    result = study_result(study, key, given)
    text = result_markdown(result)
    assert "<script>" not in text
    assert "<img" not in text
    assert "\x1b" not in text
    (row,) = [line for line in text.splitlines() if "onerror" in line]
    # A table row of seven cells: no sign of the name ends one.
    assert len([i for i, sign in enumerate(row) if sign == "|" and row[i - 1] != "\\"]) == 8
    assert json.loads(result_json(result))["raters"][0]["name"] == hostile


def test_the_command_counts_links_and_files(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = load_key(study)
    book = AnswerBook(study)
    (invited,) = book.invite(["Ann"])
    rater = book.rater(invited.token)
    assert rater is not None
    for pair in key.pairs:
        book.submit(rater, pair, attentive(key, pair, NAMES[1]), 3.0)
    rows = [("a" * 16, "Ben", pair, attentive(key, pair, NAMES[1])) for pair in key.pairs]
    (tmp_path / "ben.csv").write_text(csv_text(study, rows))
    assert main(["study", "result", str(study.folder), str(tmp_path / "ben.csv")]) == 0
    assert "2 raters, 0 excluded" in capsys.readouterr().out
    document = json.loads((study.folder / "private" / "result.json").read_text())
    (found,) = document["comparisons"]
    assert (found["wins"], found["ties"], found["losses"]) == (0, 0, 12)
    assert found["without_ties"]["rate"] == 0.0
    assert found["without_ties"]["clustered"] is None
    assert (study.folder / "private" / "result.md").read_text().startswith("# Test &lt;b&gt;study&lt;/b&gt;\n")


def test_comparisons_and_kinds_are_what_the_plan_asked_for(key: StudyKey) -> None:
    kinds = [facts.kind for facts in key.pairs.values()]
    assert (kinds.count(COMPARISON), kinds.count(DEGRADED), kinds.count(REPEATED)) == (6, PLAN.degraded, PLAN.repeated)
