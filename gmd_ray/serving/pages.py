"""Pages, and the scripts and styles beside them, from the files of a package."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gmd_ray.serving.server import Response

_KINDS = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}


def render_page(package: str, template: str, **values: Any) -> str:
    """Fill a template of a package's folder `templates`. Values are escaped; one that is missing is an error."""
    return _environment(package).get_template(template).render(**values)


def data_block(value: Any) -> Markup:
    """A JSON text for `<script type="application/json">`, in which nothing can end the element."""
    text = json.dumps(value)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def asset(package: str, name: str) -> str:
    """The text of a file of a package's folder `assets`; `name` comes from the program, never from a request."""
    return (files(package) / "assets" / name).read_text(encoding="utf-8")


def asset_response(package: str, name: str) -> Response:
    """A script or style as the answer to a request."""
    return Response(asset(package, name).encode(), _KINDS[name.rpartition(".")[2]])


@cache
def _environment(package: str) -> Environment:
    return Environment(loader=PackageLoader(package), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
