"""The words that a rater reads.

The design is the paper's (figure 7): two anonymous pictures side by side, and a third answer, "Equally
Good/Bad". The wording is ours, one text for each of the paper's two tasks and one for any other; `--instructions` takes
another one.
"""

from __future__ import annotations

from dataclasses import dataclass

from gmd_ray.errors import ConfigError, DataError
from gmd_ray.storage import read_bytes

LONGEST = 4000
"""Characters that a text of one's own may have."""


@dataclass(frozen=True)
class Instructions:
    """The question above each pair, and the paragraphs before the first one."""

    question: str
    paragraphs: tuple[str, ...]


_ANSWERS = (
    "If you see no difference, or both are equally good or equally bad, choose the answer in the middle. There are no "
    "right answers: your own impression counts. Zoom in before you decide; both pictures move together."
)

TEXTS = {
    "restoration": Instructions(
        "Which picture looks better?",
        (
            "You will see two versions, A and B, of the same photo. A program made both from one damaged photo.",
            "Choose the version that looks better to you: clear and natural, with believable detail, and without "
            "leftover damage or odd patterns.",
            _ANSWERS,
        ),
    ),
    "deblurring": Instructions(
        "Which picture looks better?",
        (
            "You will see two versions, A and B, of the same photo. A program made both from one blurred photo.",
            "Choose the version that looks better to you: sharp and natural, with clean edges and readable detail, and "
            "without leftover blur, double edges or odd patterns.",
            _ANSWERS,
        ),
    ),
    "super-resolution": Instructions(
        "Which picture looks better?",
        (
            "You will see two versions, A and B, of the same photo. A program made both by enlarging one small photo.",
            "Choose the version that looks better to you: detailed and natural, with believable texture, and without "
            "noise, smeared surfaces or invented patterns.",
            _ANSWERS,
        ),
    ),
}
"""Task -> text."""


def own_text(path: str) -> Instructions:
    """Read a text of one's own: the first paragraph is the question, and blank lines separate the others.

    Raises:
        ConfigError: there is no such file.
        DataError: the text is empty, too long, or not UTF-8.
    """
    data = read_bytes(path)
    if data is None:
        raise ConfigError(f"--instructions {path}: no such file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"--instructions {path}: not UTF-8; save it as UTF-8") from error
    paragraphs = [" ".join(part.split()) for part in text.replace("\r", "").split("\n\n") if part.strip()]
    if len(paragraphs) < 2 or len(text) > LONGEST:
        raise DataError(
            f"--instructions {path}: a question, a blank line, and paragraphs of at most {LONGEST} characters in all"
        )
    return Instructions(paragraphs[0], tuple(paragraphs[1:]))
