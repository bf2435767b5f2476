"""The answers of raters who used links, in SQLite; tokens are stored as hashes alone.

Each thread opens a connection of its own, in WAL mode, so that fifty raters write at once and none waits for a reader.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from gmd_ray.errors import ConfigError, DataError
from gmd_ray.serving.server import new_token, token_hash
from gmd_ray.study.folder import CHOICES, Study, private_folder
from gmd_ray.text import one_line

FILE = "answers.sqlite"
LONGEST_RATER = 80
SLOWEST_S = 86_400.0
"""Longer times are cut to this one: a page that stayed open overnight."""
STORED, SAME, KEPT = "stored", "same", "kept"
"""Outcomes of an answer: stored; equal to the one that is there; or another one is there and stays."""
_TABLES = """
create table if not exists study (id text not null);
create table if not exists raters (
  id integer primary key, name text not null, token_hash text not null unique, invited text not null
);
create table if not exists answers (
  rater integer not null references raters(id), pair text not null,
  choice text not null check (choice in ('left', 'tie', 'right')),
  seconds real not null, at text not null, primary key (rater, pair)
);
"""


@dataclass(frozen=True)
class Answer:
    """One rater's judgement of one pair."""

    rater: str
    """Identity of the rater, unique among links and files."""
    name: str
    """The name as it was given; two raters may share one."""
    pair: str
    choice: str
    """One of `CHOICES`."""
    seconds: float
    """Time from the moment both pictures were there; 0 where it is not known."""
    at: str
    """ISO 8601, UTC."""


@dataclass(frozen=True)
class Invitation:
    """A new rater, and the token of the link, which nobody can read again."""

    name: str
    token: str


class AnswerBook:
    """Raters and answers of one study, in `private/answers.sqlite`."""

    def __init__(self, study: Study) -> None:
        """Open the file, and make it if missing.

        Raises:
            DataError: the file holds the answers of another study, or is no such file.
        """
        self.study = study
        self._path = private_folder(study.folder) / FILE
        self._pairs = {pair.id for pair in study.pairs}
        self._path.touch(mode=0o600)
        try:
            with self._connection() as db:
                db.execute("pragma journal_mode = wal")
                db.executescript(_TABLES)
                with db:
                    db.execute("begin immediate")
                    if db.execute("select id from study").fetchone() is None:
                        db.execute("insert into study values (?)", (study.id,))
                (owner,) = db.execute("select id from study").fetchone()
        except sqlite3.DatabaseError as error:
            raise DataError(f"{self._path}: not the answers of a study ({one_line(error)})") from error
        if owner != study.id:
            raise DataError(f"{self._path}: answers to another study; move the file away")

    def invite(self, names: Sequence[str]) -> list[Invitation]:
        """Add raters, each with a new link.

        Raises:
            ConfigError: a name is empty or too long.
        """
        for name in names:
            if not name.strip() or len(name) > LONGEST_RATER:
                raise ConfigError(f"--rater {name[:20]!r}: a name of 1 to {LONGEST_RATER} characters")
        made = [Invitation(name.strip(), new_token()) for name in names]
        rows = [(each.name, token_hash(each.token), _now()) for each in made]
        with self._connection() as db, db:
            db.executemany("insert into raters (name, token_hash, invited) values (?, ?, ?)", rows)
        return made

    def count_raters(self) -> int:
        """The number of raters who have a link."""
        with self._connection() as db:
            return int(db.execute("select count(*) from raters").fetchone()[0])

    def rater(self, token: str) -> int | None:
        """The rater whose link has this token; None if nobody's has."""
        with self._connection() as db:
            row = db.execute("select id from raters where token_hash = ?", (token_hash(token),)).fetchone()
        return None if row is None else int(row[0])

    def choices(self, rater: int) -> dict[str, str]:
        """The answers that a rater has given: pair -> choice."""
        with self._connection() as db:
            return dict(db.execute("select pair, choice from answers where rater = ?", (rater,)))

    def submit(self, rater: int, pair: str, choice: str, seconds: float, *, revise: bool = False) -> str:
        """Store an answer.

        Args:
            rater: from `rater`.
            pair: a pair of this study.
            choice: one of `CHOICES`.
            seconds: time that the rater took.
            revise: replace another answer that is there; without it, the first one stays.

        Returns:
            `STORED`, `SAME` or `KEPT`.

        Raises:
            ValueError: no such pair or choice.
        """
        if pair not in self._pairs or choice not in CHOICES:
            raise ValueError("no such pair or choice")
        row = (choice, min(max(seconds, 0.0), SLOWEST_S), _now(), rater, pair)
        with self._connection() as db, db:
            db.execute("begin immediate")
            found = db.execute("select choice from answers where rater = ? and pair = ?", (rater, pair)).fetchone()
            if found is None:
                db.execute("insert into answers (choice, seconds, at, rater, pair) values (?, ?, ?, ?, ?)", row)
                return STORED
            if found[0] == choice:
                return SAME
            if not revise:
                return KEPT
            db.execute("update answers set choice = ?, seconds = ?, at = ? where rater = ? and pair = ?", row)
            return STORED

    def answers(self) -> list[Answer]:
        """Every answer, by rater and pair."""
        query = (
            "select raters.id, name, pair, choice, seconds, at from answers join raters on raters.id = rater "
            "order by raters.id, pair"
        )
        with self._connection() as db:
            return [Answer(f"link {row[0]}", *row[1:]) for row in db.execute(query)]

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self._path, timeout=30, isolation_level=None)
        try:
            yield db
        finally:
            db.close()


def stored_answers(study: Study) -> list[Answer]:
    """The answers that came by links; none where no link was ever made."""
    if not (study.folder / "private" / FILE).exists():
        return []
    return AnswerBook(study).answers()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
