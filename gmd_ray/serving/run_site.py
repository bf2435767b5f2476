"""The site of one run: its report, its pairs, and a drop zone for photos."""

from __future__ import annotations

import hmac
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from gmd_ray.config.secrets import redact
from gmd_ray.errors import DataError
from gmd_ray.serving.drop_zone import LARGEST_FILE, DropZone
from gmd_ray.serving.pages import asset_response, render_page
from gmd_ray.serving.pair_list import ORDERS, PICTURES, STATES, PairList, PairRow, thumbnail
from gmd_ray.serving.server import Refusal, Request, Response, not_found, token_hash

PACKAGE = "gmd_ray.serving"
NAMES = {"lq": "photo", "restored": "restored", "pseudo_target": "pseudo-target"}
_OWN_FILE = {
    # The report is one file with its own styles and scripts: it runs as a stranger to this site, and loads nothing.
    "Content-Security-Policy": "sandbox allow-scripts allow-popups; default-src 'none'; img-src data: blob:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; font-src data:"
}
_FOR_A_WHILE = {"Cache-Control": "private, max-age=600"}
_THUMBNAILS = 600
"""Number of thumbnails that are held, of about 20 kB each."""


class RunSite:
    """Answers the requests for one run."""

    largest_body = LARGEST_FILE

    def __init__(
        self, name: str, report: Path, pairs: PairList | None, photos: DropZone | None, token_hash: str | None = None
    ) -> None:
        """Parts that the run does not have are left out of the pages.

        Args:
            name: of the run, as the pages show it.
            report: the file of its report, which may come later.
            pairs: its pair store.
            photos: restores photos with its adapted student.
            token_hash: `server.token_hash` of the token that begins every path; None on a loopback address.
        """
        self.name, self.pairs, self.photos = name, pairs, photos
        self._report_file, self._token_hash = report, token_hash
        self._thumbnails: OrderedDict[tuple[str, str, str], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def admit(self, request: Request) -> None:
        """Refuse paths without the token, and posts but those of photos."""
        where = self._where(request)
        if request.method == "POST" and (where != "restored" or self.photos is None):
            raise not_found()

    def answer(self, request: Request) -> Response:
        """Give a page, a picture, or the restored photo."""
        where = self._where(request)
        if request.method == "POST":
            return self._restored(request.body)
        if where in ("run.css", "run.js"):
            return asset_response(PACKAGE, where)
        try:
            page = {
                "": self._home,
                "report.html": self._report,
                "pairs": self._pairs,
                "pair": self._pair,
                "picture": self._picture,
                "result": self._result,
            }[where]
        except KeyError:
            raise not_found() from None
        try:
            return page(request)
        except DataError as error:
            raise Refusal(500, redact(str(error))) from error

    def _where(self, request: Request) -> str:
        """The path behind the token."""
        parts = request.path.split("/")[1:]
        if self._token_hash is not None:
            if not hmac.compare_digest(token_hash(parts[0]), self._token_hash) or len(parts) < 2:
                raise not_found()
            parts = parts[1:]
        return "/".join(parts)

    def _page(self, template: str, **values: Any) -> Response:
        text = render_page(PACKAGE, template, site=self, has_report=self._report_file.is_file(), **values)
        return Response(redact(text).encode())

    def _home(self, request: Request) -> Response:
        counts = None if self.pairs is None else self.pairs.page().counts
        return self._page("home.html.j2", counts=counts, largest=LARGEST_FILE, here="")

    def _report(self, request: Request) -> Response:
        if not self._report_file.is_file():
            raise not_found()
        return Response(self._report_file.read_bytes(), headers=_OWN_FILE)

    def _pairs(self, request: Request) -> Response:
        if self.pairs is None:
            raise not_found()
        state = request.query.get("state", "")
        order = request.query.get("order", "best")
        find = request.query.get("find", "")[:200]
        number = request.query.get("page", "1")
        page = self.pairs.page(state, order, find, int(number) if number.isdecimal() and len(number) < 9 else 1)
        asked = {"state": state if state in STATES else "", "order": order if order in ORDERS else "best", "find": find}
        return self._page(
            "pairs.html.j2", page=page, asked=asked, states=STATES, orders=ORDERS, names=NAMES, here="pairs"
        )

    def _pair(self, request: Request) -> Response:
        row = self._row(request)
        assert self.pairs is not None
        facts = self.pairs.columns(row, ["uri", "width", "height", "fidelity", "error", "restored", "seconds_project"])
        shown = [name for name in PICTURES if row.state != "failed"]
        if facts.pop("restored", None) is None:
            shown = [name for name in shown if name != "restored"]
        return self._page("pair.html.j2", row=row, facts=facts, shown=shown, names=NAMES, here="pairs")

    def _picture(self, request: Request) -> Response:
        name, small = request.query.get("of", ""), request.query.get("size") == "small"
        if name not in PICTURES:
            raise not_found()
        row = self._row(request)
        key = row.part, row.id, name
        with self._lock:
            held = self._thumbnails.get(key) if small else None
        if held is not None:
            return Response(held, "image/jpeg", headers=_FOR_A_WHILE)
        assert self.pairs is not None
        png = self.pairs.columns(row, [name]).get(name)
        if png is None:
            raise not_found()
        if not small:
            return Response(png, "image/png", headers=_FOR_A_WHILE)
        made = thumbnail(png)
        with self._lock:
            self._thumbnails[key] = made
            while len(self._thumbnails) > _THUMBNAILS:
                self._thumbnails.popitem(last=False)
        return Response(made, "image/jpeg", headers=_FOR_A_WHILE)

    def _row(self, request: Request) -> PairRow:
        row = None if self.pairs is None else self.pairs.find(request.query.get("id", ""))
        if row is None:
            raise not_found()
        return row

    def _restored(self, data: bytes) -> Response:
        assert self.photos is not None
        made = self.photos.take(data)
        facts = {"id": made.id, "width": made.width, "height": made.height, "seconds": round(made.seconds, 2)}
        return Response.json(facts)

    def _result(self, request: Request) -> Response:
        made = None if self.photos is None else self.photos.result(request.query.get("id", ""))
        of = request.query.get("of", "")
        if made is None or of not in ("before", "after"):
            raise not_found()
        return Response(made.before if of == "before" else made.after, "image/png", headers=_FOR_A_WHILE)
