from __future__ import annotations

import pytest

from gmd_ray.text import printable, some


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain.png", "plain.png"),
        ("Grüße 写真 \U0001f4f7.png", "Grüße 写真 \U0001f4f7.png"),
        ("a\nforged line\x1b[2J", r"a\nforged line\x1b[2J"),
        ("\x9b31m", r"\x9b31m"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("a\u2028b\u2029c\x7f\r\t", r"a\u2028b\u2029c\x7f\r\t"),
        ("می\u200cخواهم.png", "می\u200cخواهم.png"),
        (r"C:\n", r"C:\n"),
        ("\udcff", r"\udcff"),
    ],
)
def test_control_characters_are_escaped(given: str, shown: str) -> None:
    assert printable(given) == shown


def test_line_breaks_may_stay() -> None:
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"


def test_some_of_many_names() -> None:
    assert some([]) == ""
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some(["a", "b", "c", "d"]) == "a, b, c, ..."
    assert some(["a", "b"], shown=1) == "a, ..."
