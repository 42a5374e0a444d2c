"""Dead letters as they are shown, to a person and to a script.

What is shown is made harmless first: a message may hold what a terminal would obey.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from streams.dead_letters.box import Entry
from streams.messages import DeadLetter

LONGEST_REASON = 90
HEX_BYTES = 4096  # shown of a value that is no text
TEXT_CHARACTERS = 65_536


class ShownValue(NamedTuple):
    """A message's value as it is shown; `is_cut`: not all of it."""

    text: str
    is_text: bool
    is_cut: bool


def table_of(entries: Sequence[Entry]) -> Table:
    """A line for each letter."""
    table = Table("id", "when", "code", "reason", "bytes", "state", box=None, pad_edge=False)
    for entry in entries:
        reason = entry.reason if len(entry.reason) <= LONGEST_REASON else entry.reason[:LONGEST_REASON] + "..."
        cells = (str(entry.place), when(entry.at_ms), entry.code, reason, f"{entry.size:,}", entry.state)
        table.add_row(*(escape(harmless(cell)) for cell in cells))
    return table


def print_letter(entry: Entry, letter: DeadLetter, console: Console) -> None:
    """All of one letter; of a long value its beginning."""
    state = entry.state if not entry.marked_ms else f"{entry.state} {when(entry.marked_ms)}"
    facts = {"id": str(entry.place), "when": when(entry.at_ms), "code": entry.code, "reason": entry.reason}
    facts |= {"state": state, "retried from": entry.retried_from} | facts_beside(letter)
    for name, value in facts.items():
        if value:
            console.print(f"{escape(harmless(name)):<14} {escape(harmless(value))}")
    if letter.value is None:
        console.print("no value")
        return
    shown = shown_value(letter.value)
    console.print(f"value          {entry.size:,} bytes{'' if shown.is_text else ', not text'}\n")
    console.print(escape(shown.text))
    if shown.is_cut:
        console.print("\n... (all of it: --raw)")


def facts_beside(letter: DeadLetter) -> dict[str, str]:
    """Key and headers of the message, and what was too large to be kept whole."""
    facts = {"key": _inline(letter.key)}
    facts |= {f"header {name}": _inline(content) for name, content in letter.headers}
    return facts | {f"{what} was cut": f"it had {size:,} bytes" for what, size in letter.cut.items()}


def shown_value(value: bytes) -> ShownValue:
    """A value as text where it is that, else in hexadecimal; of a long one the beginning."""
    text = as_text(value)
    if text is None:
        return ShownValue(hex_dump(value), is_text=False, is_cut=len(value) > HEX_BYTES)
    return ShownValue(text[:TEXT_CHARACTERS], is_text=True, is_cut=len(text) > TEXT_CHARACTERS)


def row_of(entry: Entry) -> dict[str, Any]:
    """The line of a letter, for scripts."""
    return {
        "id": str(entry.place),
        "topic": entry.place.topic,
        "partition": entry.place.partition,
        "offset": entry.place.offset,
        "at_ms": entry.at_ms,
        "code": entry.code,
        "reason": entry.reason,
        "bytes": entry.size,
        "whole": entry.is_whole,
        "state": entry.state,
        "marked_ms": entry.marked_ms or None,
        "retried_from": entry.retried_from or None,
    }


def content_of(letter: DeadLetter) -> dict[str, Any]:
    """Bytes as text where they are UTF-8, else in hexadecimal under another name."""

    def told(name: str, content: bytes | None) -> dict[str, str | None]:
        try:
            return {name: None if content is None else content.decode()}
        except UnicodeDecodeError:
            return {f"{name}_hex": (content or b"").hex()}

    headers = [{"name": name, **told("value", content)} for name, content in letter.headers]
    return told("key", letter.key) | told("value", letter.value) | {"headers": headers, "cut": letter.cut}


def when(at_ms: int) -> str:
    """A time as a person reads it; a letter may hold any number."""
    try:
        at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at_ms)
        return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError):
        return str(at_ms)


def harmless(text: str) -> str:
    """Text without what a terminal would obey."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text)


def as_text(value: bytes) -> str | None:
    """A value as text that can be shown as it is; None when it is not that."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return text if all(each.isprintable() or each in "\n\t" for each in text) else None


def hex_dump(value: bytes) -> str:
    """Sixteen bytes a line: place, hexadecimal, and what of it is ASCII."""
    lines = []
    for at in range(0, min(len(value), HEX_BYTES), 16):
        part = value[at : at + 16]
        plain = "".join(chr(each) if 32 <= each < 127 else "." for each in part)
        lines.append(f"{at:08x}  {part.hex(' '):<47}  {plain}")
    return "\n".join(lines)


def _inline(content: bytes | None) -> str:
    if content is None:
        return ""
    text = as_text(content)
    return (text if text is not None else "0x" + content.hex())[:1000]
