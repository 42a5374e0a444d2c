"""Options that several commands have, and how they answer a script: each said once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

T = TypeVar("T")

LONGEST_TITLE = 80  # characters

LOG = typer.Argument(
    help="Parquet, CSV or JSON-lines: user_id,item_id,event_ms[,watch_s,duration_s]; for the ranker every exposure, "
    "watch_s 0 where it was not watched"
)
ItemsFile = Annotated[
    Path | None, typer.Option("--items", help="Catalogue: item_id[,channel,topics,duration_s,published_ms]")
]
SearchesFile = Annotated[Path | None, typer.Option("--searches", help="Searches: user_id,query,event_ms")]
Mapping = Annotated[
    list[str] | None, typer.Option("--map", help="ours=theirs, for other column names; may be given several times")
]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts")]


def shortened(title: str) -> str:
    """A title as it fits into a table."""
    return title if len(title) <= LONGEST_TITLE else title[: LONGEST_TITLE - 1] + "…"


def answer(report: T, show: Callable[[T], object], *, as_json: bool) -> None:
    """Print a report for a script, or show it to a person."""
    if as_json:
        print_json(report)
    else:
        show(report)


def print_json(report: Any) -> None:
    """Print plain data or a Struct of ours for a script."""
    typer.echo(json.dumps(msgspec.to_builtins(report), indent=2))
