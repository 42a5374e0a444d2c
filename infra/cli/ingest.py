"""What `nextwatch topics` says of topics that are to be ingested: a sample of what they become, and a proposal."""

from __future__ import annotations

import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infra.cli.options import answer
from infra.operate.dead_letter_page import harmless
from infra.platform.settings import Ingest, Settings, SettingsError

LOOKED_AT = 200  # records that a proposal is made from


def show_sample(settings: Settings, count: int, file: Path | None, *, as_json: bool) -> None:
    """Show what the newest records would become; exit 1 when one would be refused or has to wait."""
    from streams.ingest.sample import sample

    settings = settings if file is None else with_mappings(settings, file)
    if not settings.ingest.topics:
        raise SettingsError("ingest.topics is empty: nothing is mapped (--suggest TOPIC proposes a mapping)")
    rows = sample(settings, count, now_ms=time.time_ns() // 1_000_000)
    report = [row._asdict() for row in rows]
    answer(report, _print_sample, as_json=as_json)
    raise typer.Exit(1 if any(row.outcome in ("refused", "waits") for row in rows) else 0)


def show_suggestion(settings: Settings, topic: str) -> None:
    """Write a proposal for a topic to stdout. Raises SettingsError for records that nothing here reads."""
    from streams.ingest.formats import guessed
    from streams.ingest.registry import registry_of
    from streams.ingest.sample import newest_records
    from streams.ingest.suggestion import suggest

    raws = newest_records(settings.kafka, topic, LOOKED_AT)
    read_as, values = guessed([raw.value for raw in raws if raw.value], registry_of(settings.ingest))
    typer.echo(suggest(topic, values, read_as), nl=False)


def with_mappings(settings: Settings, file: Path) -> Settings:
    """The settings with the `[[ingest.topics]]` of a file in place of their own. Raises SettingsError."""
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
        mapped = Ingest.model_validate({"topics": tree.get("ingest", {}).get("topics", ())})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: not a TOML file: {error}") from None
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise SettingsError(f"{file}: ingest.{'; '.join(problems)}") from None
    return settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"topics": mapped.topics})})


def _print_sample(rows: Sequence[dict[str, Any]]) -> None:
    console = Console(highlight=False)
    table = Table("record", "", "when", box=None, pad_edge=False)
    table.add_column("message, or why not", overflow="fold")
    for row in rows:
        told = row["reason"] or (msgspec.json.encode(row["message"]).decode() if row["message"] else "")
        mark = {"refused": "red", "waits": "yellow", "passed over": "dim"}.get(row["outcome"], "green")
        becomes = f"{row['outcome']} {row['becomes']}".strip()
        place = f"{row['topic']}/{row['partition']}/{row['offset']}"
        table.add_row(escape(place), f"[{mark}]{becomes}[/]", when(row["message"]), escape(harmless(told)))
    console.print(table)
    counts = Counter((row["topic"], row["outcome"]) for row in rows)
    for (topic, outcome), count in sorted(counts.items()):
        console.print(f"{escape(topic)}: {count} {outcome}")
    if not rows:
        console.print("the topics hold no records")


def when(message: dict[str, Any] | None) -> str:
    """A message's time as people read it: a wrong unit shows at once."""
    at_ms = (message or {}).get("event_ms", (message or {}).get("published_ms"))
    if at_ms is None:
        return ""
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds").removesuffix("+00:00") + "Z"
    except (ValueError, OverflowError):
        return "beyond the year 9999"
