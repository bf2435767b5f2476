"""The served study: each rater has a link with a token, sees the pairs in an order of their own, and resumes there."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from gmd_ray.serving.pages import asset_response, render_page
from gmd_ray.serving.server import Refusal, Request, Response, not_found
from gmd_ray.study.answers import KEPT, AnswerBook
from gmd_ray.study.folder import Study
from gmd_ray.study.page import PACKAGE, rater_page

_KEPT_A_DAY = {"Cache-Control": "private, max-age=86400, immutable"}


class StudySite:
    """Answers the requests of raters: `/r/<token>/`, the pictures below it, and answers that are posted there."""

    largest_body = 2000

    def __init__(self, study: Study, book: AnswerBook) -> None:
        self._study, self._book = study, book
        self._pictures = {name for pair in study.pairs for name in (pair.left, pair.right)}

    def admit(self, request: Request) -> None:
        """Refuse posts but those of a rater's answers."""
        if request.method == "POST":
            _, where = self._rater(request)
            if where != "answers":
                raise not_found()

    def answer(self, request: Request) -> Response:
        """Give a page, a picture, or the outcome of an answer."""
        if request.path == "/":
            return Response(render_page(PACKAGE, "door.html.j2", study=self._study).encode())
        if request.path == "/study.css":
            return asset_response(PACKAGE, "study.css")
        rater, where = self._rater(request)
        if request.method == "POST":
            return self._submit(rater, request)
        if where is None:  # the page's links are relative to its folder
            return Response(b"", status=308, headers={"Location": f"{request.path.rpartition('/')[2]}/"})
        if where == "":
            ordered = sorted(self._study.pairs, key=lambda pair: _place(self._study.id, rater, pair.id))
            page = rater_page(self._study, ordered, answers=self._book.choices(rater))
            return Response(page.encode())
        if where in ("study.css", "study.js"):
            return asset_response(PACKAGE, where)
        folder, _, name = where.partition("/")
        if folder == "pictures" and name in self._pictures:
            return Response(self._study.picture(name), "image/png", headers=_KEPT_A_DAY)
        raise not_found()

    def _rater(self, request: Request) -> tuple[int, str | None]:
        """The rater of `/r/<token>/<where>`, and where; None where even the slash after the token is missing."""
        _, door, *rest = request.path.split("/", 3)
        rater = self._book.rater(rest[0]) if door == "r" and rest else None
        if rater is None:
            raise not_found()
        return rater, rest[1] if len(rest) > 1 else None

    def _submit(self, rater: int, request: Request) -> Response:
        try:
            posted: Any = json.loads(request.body)
            pair, choice = str(posted["pair"]), str(posted["choice"])
            seconds, revise = float(posted["seconds"]), posted.get("revise") is True
            if not math.isfinite(seconds):
                raise ValueError
            outcome = self._book.submit(rater, pair, choice, seconds, revise=revise)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise Refusal(400, "This is not an answer to a pair of this study.") from error
        stored = self._book.choices(rater)
        return Response.json({"outcome": outcome, "choice": stored[pair]}, 409 if outcome == KEPT else 200)


def _place(study: str, rater: int, pair: str) -> str:
    """A sort key that puts the pairs into an order of each rater's own."""
    return hashlib.sha256(f"{study} {rater} {pair}".encode()).hexdigest()
