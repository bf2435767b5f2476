"""README, docs/ and the pages of folders: what stands in code, what is linked, and what the headings are called."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Document:
    """A Markdown file of the repository, or a text that stands for one."""

    path: Path
    source: str

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        """The text without HTML comments, as a reader sees it."""
        return COMMENT.sub("", self.source)

    @cached_property
    def prose(self) -> str:
        """The text without fenced blocks."""
        return FENCE.sub("", self.text)

    def blocks(self, language: str) -> list[str]:
        return [found[2] for found in FENCE.finditer(self.text) if found[1] == language]

    def spans(self) -> list[str]:
        """Code within sentences, as it is seen: a line break is a space."""
        return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", self.prose)]

    def links(self) -> list[str]:
        """Targets of links and pictures."""
        return re.findall(r"\]\(([^)\s]+)\)", self.prose)

    def anchors(self) -> set[str]:
        """Headings as GitHub makes link targets of them."""
        headings = re.findall(r"^#+ (.*)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}

    def sections(self) -> dict[str, str]:
        """Heading of second level -> the text below it, fenced blocks included."""
        parts = re.split(r"^## (.*)$", self.text, flags=re.MULTILINE)[1:]
        return dict(zip(parts[::2], parts[1::2], strict=True))


def read_document(path: Path) -> Document:
    return Document(path, path.read_text(encoding="utf-8"))


def sample(text: str) -> Document:
    """A text as if it stood in docs/."""
    return Document(ROOT / "docs" / "sample.md", text)


DOCUMENTS = [
    read_document(path)
    for path in (
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "cluster/README.md",
        ROOT / "tests/benchmarks/README.md",
    )
]


def example(name: str) -> str:
    """The Python block of any document that begins with `# name`."""
    found = [block for document in DOCUMENTS for block in document.blocks("python") if block.startswith(f"# {name}")]
    assert len(found) == 1, f"{len(found)} examples begin with # {name}"
    return found[0]
