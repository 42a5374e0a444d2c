"""The verdict of the gate, as a person reads it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

REFUSED = 3  # the exit code of a release that was not announced since it is worse


def print_verdict(console: Console, verdict: Any, live: str, *, is_announced: bool) -> None:
    """Print every metric beside the other's, then what was decided, and why. `live`: the version that it was to
    replace."""
    if verdict.findings:
        console.print(_table(verdict, live))
    for note in verdict.notes:
        console.print(escape(note), highlight=False)
    worse = ", ".join(f"{each.metric} against {each.against}" for each in verdict.findings if each.worse)
    if not is_announced:
        kept = f"{escape(live)} stays live" if live else "nothing goes live"
        console.print(f"[red]refused[/], {kept}: worse in {escape(worse)}. --force announces it all the same")
    elif verdict.outcome == "refused":
        console.print(f"[yellow]announced with --force[/], although worse in {escape(worse)}", highlight=False)
    elif verdict.outcome == "passed":
        console.print("announced, and nothing was found worse")
    else:
        console.print("announced, not judged" + (": too few users to tell" if verdict.findings else ""))


def _table(verdict: Any, live: str) -> Table:
    columns = ("on watches not seen", "beside", "new", "other", "better by", "users")
    table = Table(*columns, box=None, pad_edge=False)
    for each in verdict.findings:
        between = "" if each.low is None else f" [{each.low:+.3g}, {each.high:+.3g}]"
        better = "" if each.better is None else f"{each.better:+.3g}{between}"
        against = f"{each.against} ({live})" if each.against == "live" else each.against
        look = "red" if each.worse else ""
        cells = (each.metric, against, *map(_number, (each.ours, each.theirs)), better, f"{each.users:,}")
        table.add_row(*map(escape, cells), style=look)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
