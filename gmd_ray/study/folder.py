"""The folder of a study: what raters may see in `public/`, and what tells methods apart in `private/`.

`public/` holds `study.json` and `pictures/`. `private/` is its owner's alone (mode 700): `key.json`, the answers of
raters who used links (`answers.sqlite`), and the result.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gmd_ray.errors import DataError

VERSION = 1
CHOICES = ("left", "tie", "right")
COMPARISON, DEGRADED, REPEATED = "comparison", "degraded", "repeated"
"""Kinds of pairs: two methods; a picture and a degraded copy of it; a comparison again, with its sides swapped."""
_ID, _PICTURE = re.compile(r"[0-9a-f]{16}"), re.compile(r"[0-9a-f]{16}\.png")


@dataclass(frozen=True)
class StudyPair:
    """Two pictures of equal size, as a rater sees them."""

    id: str
    """16 random hexadecimal digits."""
    left: str
    """File name in `public/pictures`: random digits, and `.png`."""
    right: str
    width: int
    """Width of both pictures in pixels."""
    height: int


@dataclass(frozen=True)
class Study:
    """The public part of a study."""

    id: str
    title: str
    question: str
    paragraphs: tuple[str, ...]
    pairs: tuple[StudyPair, ...]
    folder: Path

    def picture(self, name: str) -> bytes:
        """The PNG of a picture that one of the pairs names.

        Raises:
            DataError: the file is missing.
        """
        assert _PICTURE.fullmatch(name), name
        path = self.folder / "public" / "pictures" / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read; the study is not whole, create it again") from error


@dataclass(frozen=True)
class KeyPair:
    """The truth about a pair, which no rater sees."""

    kind: str
    """`COMPARISON`, `DEGRADED` or `REPEATED`."""
    photo: str
    left: str
    """The method of the left picture; of a degraded copy, `degraded`."""
    right: str
    of: str = ""
    """Id of the comparison that a `REPEATED` pair repeats."""


@dataclass(frozen=True)
class StudyKey:
    """The private part of a study."""

    study: str
    """Id of the study that it belongs to."""
    seed: int
    methods: tuple[str, ...]
    pairs: dict[str, KeyPair]


def write_study(study: Study, key: StudyKey) -> None:
    """Write the documents beside the pictures; `study.json` comes last, so that a folder with it is whole."""
    private = private_folder(study.folder)
    key_file = private / "key.json"
    with open(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump({"version": VERSION, **asdict(key)}, file, indent=1)
    public = asdict(study)
    del public["folder"]
    text = json.dumps({"version": VERSION, **public}, indent=1)
    (study.folder / "public" / "study.json").write_text(text, encoding="utf-8")


def private_folder(folder: Path) -> Path:
    """The folder that only its owner can enter; made if missing."""
    private = folder / "private"
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    return private


def load_study(folder: str | Path) -> Study:
    """Read the public part.

    Raises:
        DataError: there is no study, or its document is damaged or from a newer version.
    """
    path = Path(folder) / "public" / "study.json"
    document = _read(path)
    try:
        pairs = tuple(StudyPair(**pair) for pair in document["pairs"])
        study = Study(
            id=document["id"],
            title=document["title"],
            question=document["question"],
            paragraphs=tuple(document["paragraphs"]),
            pairs=pairs,
            folder=Path(folder),
        )
        names = [name for pair in pairs for name in (pair.left, pair.right)]
        whole = all(map(_PICTURE.fullmatch, names)) and all(_ID.fullmatch(pair.id) for pair in pairs)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not the document of a study; create it again") from error
    if not whole or not _ID.fullmatch(study.id):
        raise DataError(f"{path}: it names pairs or pictures that no study has; create it again")
    return study


def load_key(study: Study) -> StudyKey:
    """Read the private part.

    Raises:
        DataError: it is missing, damaged, or belongs to another study.
    """
    path = study.folder / "private" / "key.json"
    document = _read(path)
    try:
        pairs = {pair: KeyPair(**facts) for pair, facts in document["pairs"].items()}
        key = StudyKey(document["study"], document["seed"], tuple(document["methods"]), pairs)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not the key of a study") from error
    if key.study != study.id or key.pairs.keys() != {pair.id for pair in study.pairs}:
        raise DataError(f"{path}: the key of another study; put the key back that was made with this one")
    return key


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; `gmd-ray study create` makes a study") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON; create the study again") from error
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise DataError(f"{path}: not a study of this version ({VERSION}) of the program")
    return document
