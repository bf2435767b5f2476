from __future__ import annotations

import json
import re
import stat
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmd_ray.errors import ConfigError, DataError
from gmd_ray.images.files.encode import decode_png, encode_png
from gmd_ray.study.create import StudyPlan, create_study
from gmd_ray.study.folder import COMPARISON, DEGRADED, REPEATED, Study, StudyKey, load_key, load_study
from gmd_ray.study.instructions import TEXTS, own_text
from gmd_ray.study.sources import read_methods
from tests.study.conftest import NAMES, PLAN, SIDE, comparisons, pictures


def shown(study: Study, name: str) -> np.ndarray:
    return np.rint(decode_png(study.picture(name)) * 255).astype(np.uint8)


def test_every_pair_shows_what_the_key_says(study: Study, key: StudyKey) -> None:
    methods = pictures(NAMES, 6)
    for pair in study.pairs:
        facts = key.pairs[pair.id]
        for name, maker in ((pair.left, facts.left), (pair.right, facts.right)):
            if maker != DEGRADED:
                assert np.array_equal(shown(study, name), methods[maker][facts.photo]())


def test_every_two_methods_meet_once_on_every_photo(tmp_path: Path) -> None:
    study = create_study(pictures(("a", "b", "c"), 5), tmp_path, PLAN)
    pairs = load_key(study).pairs.values()
    meetings = Counter((*sorted((facts.left, facts.right)), facts.photo) for facts in pairs if facts.kind == COMPARISON)
    expected = {(*two, f"photo{i}") for two in (("a", "b"), ("a", "c"), ("b", "c")) for i in range(5)}
    assert meetings == dict.fromkeys(expected, 1)


@pytest.mark.parametrize("seed", range(5))
def test_sides_are_balanced_between_methods(tmp_path: Path, seed: int) -> None:
    study = create_study(pictures(("a", "b", "c"), 9), tmp_path, StudyPlan(seed=seed))
    pairs = load_key(study).pairs.values()
    for one, other in (("a", "b"), ("a", "c"), ("b", "c")):
        lefts = [
            facts.left for facts in pairs if facts.kind == COMPARISON and {facts.left, facts.right} == {one, other}
        ]
        assert sorted(Counter(lefts).values()) == [4, 5]


def test_a_repeated_pair_has_its_sides_swapped(study: Study, key: StudyKey) -> None:
    repeats = [facts for facts in key.pairs.values() if facts.kind == REPEATED]
    assert len(repeats) == 2
    for facts in repeats:
        first = key.pairs[facts.of]
        assert (first.left, first.right, first.photo) == (facts.right, facts.left, facts.photo)


def test_a_degraded_copy_is_obviously_one(study: Study, key: StudyKey) -> None:
    checks = [pair for pair in study.pairs if key.pairs[pair.id].kind == DEGRADED]
    assert len(checks) == 2
    for pair in checks:
        left, right = (shown(study, name).astype(float) for name in (pair.left, pair.right))
        assert 10 * np.log10(255**2 / np.mean((left - right) ** 2)) < 20


def test_no_public_file_tells_a_method(study: Study, key: StudyKey) -> None:
    public = study.folder / "public"
    files = [path for path in public.rglob("*") if path.is_file()]
    texts = b"\n".join(path.read_bytes() for path in files if path.suffix == ".json")
    for word in (*NAMES, "ours", "alert", "photo0", "degraded", "repeated", "seed"):
        assert word.encode() not in texts
    pngs = [path for path in files if path.suffix == ".png"]
    assert len(pngs) == len(files) - 1 == 2 * len(study.pairs)
    assert len({path.stat().st_mtime_ns for path in pngs}) == 1
    for path in pngs:
        assert re.fullmatch(r"[0-9a-f]{16}\.png", path.name)
        assert Image.open(path).info == {}
    # Neither the order of the pairs nor that of the names sorts the methods or the attention checks.
    kinds = [key.pairs[pair.id].kind for pair in study.pairs]
    assert kinds != sorted(kinds)
    assert stat.S_IMODE((study.folder / "private").stat().st_mode) == 0o700
    assert stat.S_IMODE((study.folder / "private" / "key.json").stat().st_mode) == 0o600


def test_the_seed_fixes_everything_and_a_drawn_one_is_large(tmp_path: Path) -> None:
    methods = pictures(("a", "b"), 3)
    one, same, other = (create_study(methods, tmp_path / str(i), StudyPlan(seed=s)) for i, s in enumerate((1, 1, 2)))
    assert (one.id, one.pairs) == (same.id, same.pairs)
    assert {pair.id for pair in one.pairs}.isdisjoint(pair.id for pair in other.pairs)
    drawn = [load_key(create_study(methods, tmp_path / f"drawn{i}")).seed for i in range(2)]
    assert len(set(drawn)) == 2
    assert min(drawn) > 2**32


def test_limit_and_crop(tmp_path: Path) -> None:
    study = create_study(pictures(("a", "b"), 6), tmp_path, StudyPlan(seed=1, limit=2, crop=8, degraded=0, repeated=0))
    key = load_key(study)
    assert len(comparisons(key)) == len(study.pairs) == 2
    whole = pictures(("a", "b"), 6)
    middle = slice(SIDE // 2 - 4, SIDE // 2 + 4)
    for pair in study.pairs:
        facts = key.pairs[pair.id]
        assert (pair.width, pair.height) == (8, 8)
        assert np.array_equal(shown(study, pair.left), whole[facts.left][facts.photo]()[middle, middle])


def test_a_study_is_read_back_as_it_was_made(study: Study, key: StudyKey) -> None:
    assert load_study(study.folder) == study
    assert study.paragraphs == TEXTS["restoration"].paragraphs
    assert {pair.id for pair in study.pairs} == key.pairs.keys()


def test_what_cannot_be_a_study_is_refused_and_leaves_nothing(tmp_path: Path, study: Study) -> None:
    methods = dict(pictures(("a", "b"), 3))
    with pytest.raises(ConfigError, match="two methods or more"):
        create_study({"a": methods["a"]}, tmp_path / "new")
    with pytest.raises(ConfigError, match="holds a study already"):
        create_study(methods, study.folder)
    lacking = {"a": methods["a"], "b": {"photo0": methods["b"]["photo0"]}}
    with pytest.raises(DataError, match=r"b: 2 of 3 photos have no picture of this method \(photo1, photo2\)"):
        create_study(lacking, tmp_path / "new")
    with pytest.raises(DataError, match="a pair needs one size"):
        create_study({"a": methods["a"], "b": pictures(("b",), 3, side=30)["b"]}, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_folders_of_results(tmp_path: Path) -> None:
    for method in ("baseline", "adapted"):
        (tmp_path / method / "city").mkdir(parents=True)
        image = pictures((method,), 1)[method]["photo0"]()
        suffix = ".png" if method == "baseline" else ".bmp"
        Image.fromarray(image).save(tmp_path / method / "city" / f"one{suffix}")
    methods = read_methods([f"{name}={tmp_path / name}" for name in ("baseline", "adapted")])
    assert {name: list(photos) for name, photos in methods.items()} == {
        "baseline": ["city/one"],
        "adapted": ["city/one"],
    }
    assert np.array_equal(methods["adapted"]["city/one"](), pictures(("adapted",), 1)["adapted"]["photo0"]())
    for words, line in (
        (["baseline"], "give NAME=FOLDER"),
        (["a=x", "=y"], "give NAME=FOLDER"),
        ([f"a={tmp_path / 'baseline'}", f"a={tmp_path / 'adapted'}"], "named twice"),
        ([f"a={tmp_path / 'baseline'}", f"b={tmp_path}/./baseline"], "a, b: both are "),
    ):
        with pytest.raises((ConfigError, DataError), match=f"{line}|x:"):
            read_methods(words)


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8))[:40])
    with pytest.raises(DataError, match=r"1\.png"):
        read_methods([f"a={tmp_path / 'a'}"])["a"]["1"]()


def test_a_damaged_or_foreign_document_is_refused(study: Study, tmp_path: Path) -> None:
    other = create_study(pictures(("a", "b"), 2), tmp_path / "other")
    key = study.folder / "private" / "key.json"
    key.write_bytes((other.folder / "private" / "key.json").read_bytes())
    with pytest.raises(DataError, match="the key of another study"):
        load_key(study)
    document = json.loads((study.folder / "public" / "study.json").read_text())
    document["pairs"][0]["left"] = "../../private/key.json"
    (study.folder / "public" / "study.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="pairs or pictures that no study has"):
        load_study(study.folder)
    with pytest.raises(DataError, match="`gmd-ray study create` makes a study"):
        load_study(tmp_path / "nowhere")


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("Which is sharper?\r\n\r\nLook at\r\nthe edges.\n\nThen choose.\n")
    assert own_text(str(file)).question == "Which is sharper?"
    assert own_text(str(file)).paragraphs == ("Look at the edges.", "Then choose.")
    file.write_text("Only a question?")
    with pytest.raises(DataError, match="a question, a blank line"):
        own_text(str(file))
    with pytest.raises(ConfigError, match="no such file"):
        own_text(str(tmp_path / "none"))
