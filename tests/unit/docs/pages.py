"""Markdown as the tests read it: links, anchors, code in the text, blocks of code, and blocks between empty lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[3]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^(?: {4}.*(?:\n|$))+", re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Page:
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """The text without its blocks of code."""
        return INDENTED.sub("", FENCE.sub("", self.text))

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    def links(self) -> list[str]:
        return LINK.findall(self.prose)

    def anchors(self) -> set[str]:
        """The anchors of the headings, as GitHub makes them."""
        plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(self.prose))
        return {words.strip().replace(" ", "-") for words in plain}

    def spans(self) -> list[str]:
        """What stands in backticks; a line's end within is a space."""
        return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", self.prose)]

    def code_lines(self) -> list[str]:
        """The lines of the blocks of code, without what follows a #."""
        blocks = FENCE.findall(self.text) + INDENTED.findall(FENCE.sub("", self.text))
        return [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]

    def blocks(self) -> Iterator[str]:
        """What stands between two empty lines; each row of a table is one of its own."""
        for block in re.split(r"\n\s*\n", self.prose):
            rows = block.splitlines() if block.startswith("|") else [block]
            yield from (" ".join(row.split()) for row in rows)


DOCS = [Page(path) for path in sorted((ROOT / "docs").glob("*.md"))]
BESIDE = [Page(ROOT / name) for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PAGES = BESIDE + DOCS
