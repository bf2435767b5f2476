"""The page of a rater, which is the same with a server and without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from gmd_ray.serving.pages import data_block, render_page
from gmd_ray.study.folder import Study, StudyPair

PACKAGE = "gmd_ray.study"


def rater_page(
    study: Study,
    pairs: Sequence[StudyPair],
    *,
    answers: Mapping[str, str] | None = None,
    embedded: Mapping[str, Any] | None = None,
) -> str:
    """Fill the page.

    Args:
        study: gives the texts.
        pairs: in the order in which they are shown.
        answers: of a rater with a link: what was answered before.
        embedded: of a page without a server: `pictures`, the `data:` URI of each picture, and `style`, `script` and
            `policy`, which stand in the page itself.
    """
    data = {
        "study": study.id,
        "pairs": [[pair.id, pair.left, pair.right, pair.width, pair.height] for pair in pairs],
        "answers": dict(answers or {}),
        "pictures": None if embedded is None else embedded["pictures"],
    }
    marked = {name: Markup((embedded or {}).get(name, "")) for name in ("style", "script", "policy")}
    return render_page(
        PACKAGE, "rater.html.j2", study=study, data=data_block(data), alone=embedded is not None, **marked
    )
