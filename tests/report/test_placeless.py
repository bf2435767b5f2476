"""Pages without places of a server."""

from __future__ import annotations

import pytest

from gmd_ray.report.placeless import hide_places, last_name, short_places


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data/runs/7/lq", "…/lq"),
        ("read /home/me/photos/a.png: torn", "read …/a.png: torn"),
        ("s3://bucket/deep/a.png is gone", "…/a.png is gone"),
        ("weights=/nowhere/niqe.mat: no such file", "weights=…/niqe.mat: no such file"),
        ("(file:///srv/x/y)", "(…/y)"),
        ("~/secret/place/x", "…/x"),
        ("MLflow at sqlite:////srv/run/mlflow.db failed", "MLflow at …/mlflow.db failed"),
        ("https://github.com/black-forest-labs/flux", "https://github.com/black-forest-labs/flux"),
        ("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-dev"),
        ("12 images/s and 3/4 of them", "12 images/s and 3/4 of them"),
        ("</p><p>a</p>", "</p><p>a</p>"),
        ("/a b/c d/e f.png", "…/e f.png"),
        ("/a b/c d/other.png", "…/other.png"),
        ('src="data:image/webp;base64,/a/b/c/d=="', 'src="data:image/webp;base64,/a/b/c/d=="'),
        ("<script>x = /a/b/c;</script>", "<script>x = /a/b/c;</script>"),
    ],
)
def test_texts(text: str, expected: str) -> None:
    assert hide_places(text, ["/a b/c d/e f.png"]) == expected


def test_documents() -> None:
    document = {"out": "/srv/run 1", "uri": "s3://KEY:secret@bucket/x", "n": 3, "list": ["~/a/b", "runs/demo", None]}
    assert short_places(document) == {"out": "…/run 1", "uri": "…/x", "n": 3, "list": ["…/b", "runs/demo", None]}
    assert "secret" not in str(short_places({"uri": "s3://KEY:secret@bucket"}))


@pytest.mark.parametrize("place", ["/a/b/lq", "/a/b/lq/", "lq", "s3://bucket/lq", "https://x/lq?token=1"])
def test_last_names(place: str) -> None:
    assert last_name(place) == "lq"
