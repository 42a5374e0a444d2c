"""`nextwatch forget`: users are deleted from what is kept of them, and nothing from before comes back."""

from __future__ import annotations

import datetime
import json
import sys
import time
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from infra.cli.learn import progress_bars
from infra.platform.settings import Settings, SettingsError


def register(app: typer.Typer) -> None:
    app.command()(forget)


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
    as_json: Annotated[bool, typer.Option("--json", help="For scripts")] = False,
) -> None:
    """Forget users: their histories and what waits in the join are deleted, and nothing from before is used again, also
    when topics are read again. Lists what the topics still hold of them, and until when.

    Exit 1 when a worker has not confirmed in time: it does so before it reads on; run the command again to see it.
    """
    from streams.erasure.erase_users import hide_letters, wait_until_done, write_erased_users
    from streams.erasure.erased_users_topic import read_erased_users
    from streams.erasure.retention_report import find_held

    settings: Settings = context.obj.connected
    users = _checked(users)
    now_ms = time.time_ns() // 1_000_000
    report: dict[str, Any] = {"users": len(users), "at_ms": None, "waiting_for": [], "hidden_letters": 0, "held": []}
    with progress_bars(quiet=as_json) as step:
        read_erased_users(settings)  # before anything is written: whether we have the secret of before
        if not dry_run:
            offset = write_erased_users(settings, users, now_ms)
            report["at_ms"] = now_ms
            report["waiting_for"] = wait_until_done(
                settings, users, offset, wait_s, lambda done, total: step("workers", done, total)
            )
        if held or dry_run:
            found, letters = find_held(settings, users, now_ms, step)
            report["held"] = msgspec.to_builtins([each for each in found if each.records])
            if not dry_run and letters:
                hide_letters(settings, letters, now_ms)
                report["hidden_letters"] = len(letters)
    in_use = sum(each["in_use"] for each in report["held"])
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _print(report)
    raise typer.Exit(1 if report["waiting_for"] or (in_use and not dry_run) else 0)


def _checked(users: list[str]) -> list[str]:
    """An id in the process list is seen by others: many come by the standard input."""
    if users == ["-"]:
        users = sys.stdin.read().splitlines()
    for user in users:
        if not 1 <= len(user) <= 256:
            raise SettingsError(f"a user's id has 1 to 256 characters, this one has {len(user)}")
    return list(dict.fromkeys(users))


def _print(report: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if report["at_ms"] is not None:
        console.print(f"forgotten as of {_date(report['at_ms'])}; {report['hidden_letters']} dead letters are hidden")
    for name in report["waiting_for"]:
        worker, _, partition = name.partition("/")
        console.print(
            f"[red]not confirmed[/] by worker {worker}, partition {partition}: is one running? What it keeps is "
            "deleted before it reads on; run this again to see it"
        )
    if not report["held"]:
        console.print("the topics hold nothing" if report["at_ms"] is None else "")
        return
    table = Table("topic", "records", "gone at the latest", "", box=None, pad_edge=False)
    for each in report["held"]:
        until = "not known: `nextwatch topics --alter`" if each["until_ms"] is None else _date(each["until_ms"])
        table.add_row(each["topic"], str(each["records"]), until, "[red]in use[/]" if each["in_use"] else "")
    console.print(table)


def _date(at_ms: int) -> str:
    return datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC).isoformat(" ", "seconds")
