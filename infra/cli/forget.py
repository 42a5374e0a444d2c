"""`nextwatch forget`: users are deleted from what is kept of them, and nothing from before comes back."""

from __future__ import annotations

import datetime
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from infra.cli.options import AsJson, answer
from infra.operate.progress import progress_bars

if TYPE_CHECKING:
    from infra.operate.forget_users import ForgetReport


def forget(
    context: typer.Context,
    users: Annotated[
        list[str], typer.Argument(metavar="USER...", help="Ids of the users to forget; - reads them, one a line")
    ],
    wait_s: Annotated[float, typer.Option(min=0, help="How long to wait for the workers")] = 60.0,
    held: Annotated[
        bool, typer.Option("--held/--no-held", help="Read all topics for what they still hold, and hide dead letters")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what the topics hold")] = False,
    as_json: AsJson = False,
) -> None:
    """Forget users: their histories and what waits in the join are deleted, and nothing from before is used again, also
    when topics are read again. Lists what the topics still hold of them, and until when.

    Exit 1 when a worker has not confirmed in time: it does so before it reads on; run the command again to see it.
    """
    from infra.operate.forget_users import forget_users

    ids = sys.stdin.read().splitlines() if users == ["-"] else users
    with progress_bars(quiet=as_json) as step:
        report = forget_users(context.obj.connected, ids, wait_s=wait_s, held=held, dry_run=dry_run, progress=step)
    answer(report, _print, as_json=as_json)
    raise typer.Exit(1 if report.waiting_for or (report.in_use and not dry_run) else 0)


def _print(report: ForgetReport) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if report.at_ms is not None:
        console.print(f"forgotten as of {_date(report.at_ms)}; {report.hidden_letters} dead letters are hidden")
    for name in report.waiting_for:
        worker, _, partition = name.partition("/")
        console.print(
            f"[red]not confirmed[/] by worker {worker}, partition {partition}: is one running? What it keeps is "
            "deleted before it reads on; run this again to see it"
        )
    if not report.held:
        console.print("the topics hold nothing" if report.at_ms is None else "")
        return
    table = Table("topic", "records", "gone at the latest", "", box=None, pad_edge=False)
    for each in report.held:
        until = "not known: `nextwatch topics --alter`" if each.until_ms is None else _date(each.until_ms)
        table.add_row(each.topic, str(each.records), until, "[red]in use[/]" if each.in_use else "")
    console.print(table)


def _date(at_ms: int) -> str:
    return datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC).isoformat(" ", "seconds")
