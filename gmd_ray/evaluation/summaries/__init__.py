"""Summaries of an evaluation: Markdown, LaTeX and JSON, the verdict in words, and the paper's published rows."""

from __future__ import annotations

from gmd_ray.config.places import below
from gmd_ray.evaluation.results import Evaluation, evaluation_folder
from gmd_ray.evaluation.summaries.document import json_text
from gmd_ray.evaluation.summaries.latex import latex
from gmd_ray.evaluation.summaries.markdown import markdown
from gmd_ray.storage import write_bytes

__all__ = ["FILES", "json_text", "latex", "markdown", "save_tables"]

FILES = ("table.md", "table.tex", "summary.json")


def save_tables(evaluation: Evaluation, out: str) -> None:
    """Write `table.md`, `table.tex` and `summary.json` to `<out>/evaluation`."""
    texts = (markdown(evaluation), latex(evaluation), json_text(evaluation))
    for name, text in zip(FILES, texts, strict=True):
        write_bytes(below(evaluation_folder(out), name), text.encode())
