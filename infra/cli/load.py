"""`nextwatch load`: from a log to a recommender that knows its users, in one command."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.markup import escape

from infra.cli.ask import shown_reply
from infra.cli.learn import remove_old
from infra.cli.options import LOG, AsJson, ItemsFile, Mapping, SearchesFile, print_json
from infra.cli.session import Session
from infra.operate.progress import progress_bars
from infra.platform.settings import Settings

if TYPE_CHECKING:
    from models.logs.stored_log import StoredLog

ASK_S = 10.0


def load(
    context: typer.Context,
    log: Annotated[Path, LOG],
    items: ItemsFile = None,
    searches: SearchesFile = None,
    mapping: Mapping = None,
    user: Annotated[
        str | None, typer.Option(help="Whose list to show in the end [default: who has the most rows]")
    ] = None,
    wait_s: Annotated[float, typer.Option(help="Longest wait for histories to be taken in, and for a server")] = 300.0,
    as_json: AsJson = False,
) -> None:
    """Train a release from a log, tell the system its users' histories, and show a list.

    Nothing is learnt twice: a later `replay` of the same rows is known. Without a broker everything is started as
    `nextwatch up` does, on the same data, and stopped in the end.
    """
    from infra.operate.training import TrainingJob, announce_bundle, train_release
    from models.logs.log import parse_mapping
    from models.logs.stored_log import open_log

    session: Session = context.obj
    reachable, settings = session.reachable, session.settings
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=settings.data_dir, prefix="loading-") as scratch:
        job = TrainingJob(log, items, searches, parse_mapping(mapping or []), directory=Path(scratch))
        with progress_bars(quiet=as_json) as step:
            manifest = train_release(reachable or settings, job, step)
        assert manifest is not None  # it helps nobody else
        with _system(settings, reachable) as running:
            from infra.operate.loading import load_log

            stored = open_log(Path(scratch))
            with progress_bars(quiet=as_json) as step:
                loaded = load_log(running, stored, items=items, searches=searches, wait_s=wait_s, step=step)
            announce_bundle(running, manifest)
            remove_old(running)
            shown = user or most_active(stored)
            reply = _ask(running, shown, manifest.version, wait_s)
            report = {"version": manifest.version, "user": shown, "reply": reply} | msgspec.structs.asdict(loaded)
            _show(report, as_json=as_json)
    raise typer.Exit(0 if loaded.taken and reply is not None and not reply.error else 1)


def most_active(log: StoredLog) -> str:
    """The user with the most rows."""
    return log.user_ids[int(np.bincount(log.users).argmax())]


@contextmanager
def _system(settings: Settings, reachable: Settings | None) -> Iterator[Settings]:
    """The system that runs, or one that is started for the time of the block."""
    if reachable is not None:
        yield reachable
        return
    from infra.local.stack import running_stack
    from infra.local.supervisor import interrupted_by_signals

    console = Console(stderr=True)

    def report(process: str, what: str) -> None:
        console.print(f"[dim]{process}: {escape(what)}[/]", highlight=False)

    with interrupted_by_signals(), running_stack(settings, report) as (started, _):
        yield started


def _ask(settings: Settings, user: str, version: str, wait_s: float) -> Any:
    """The list of a user from this release, which leaves no impression: nobody has seen it. None when no server
    answers from it."""
    from infra.platform.kafka_clients import client_options
    from nextwatch_client import RecommendClient
    from nextwatch_client.messages import RecommendRequest
    from streams.kafka.releases import wait_until_served

    with Console(stderr=True).status(f"waiting for a server to answer from {version}"):
        if not wait_until_served(settings.kafka, version, wait_s):
            return None
    with RecommendClient(client_options(settings.kafka)) as client:
        request = RecommendRequest(uuid.uuid4().hex, user, record=False)
        return client.recommend_many([request], timeout_s=ASK_S)[0]


def _show(report: dict[str, Any], *, as_json: bool) -> None:
    reply = report["reply"]
    if as_json:
        print_json(report)
        return
    console = Console()
    told = f"{report['rows']:,} rows of {report['users']:,} users, {report['items']:,} items"
    console.print(f"release {report['version']}; told in {report['wall_s']:.1f} s: {told}", highlight=False)
    if not report["taken"]:
        console.print("[yellow]not all histories are taken in yet: does `nextwatch worker history` run?[/]")
    if reply is None:
        console.print("[red]no server answers from the release yet[/]: does `nextwatch serve` run?")
        return
    console.print(f"\nfor {escape(report['user'])}:", highlight=False)
    console.print(shown_reply(reply))
