"""`nextwatch rebuild`: what is derived, made again from the topics (and bundles) alone."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infra.cli.options import AsJson, answer
from infra.operate.progress import progress_bars
from infra.platform.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    help="Make again from topics and bundles: the index, or the histories; go on with a topic that was made again, or "
    "with more partitions.",
)


@app.command()
def index(
    context: typer.Context,
    wait_s: Annotated[float, typer.Option(min=0, help="How long to wait for the indexer's answer")] = 600.0,
    as_json: AsJson = False,
) -> None:
    """Make the live release's collection anew, from its bundle, item-vectors and items, beside the one that is there;
    the running indexer does it, verifies it as a new release's, and puts it in the other's place.

    Exit 1 when it could not (the old collection stays), or has not answered in time (the request stands).
    """
    from infra.operate.rebuild_index import rebuild_index

    with progress_bars(quiet=as_json) as step:
        done = rebuild_index(context.obj.with_milvus, wait_s, step)
    if done.problem:
        text = f"[red]not rebuilt[/], the old collection stays: {escape(done.problem)}"
    elif done.answered:
        text = f"rebuilt: {escape(done.version)}, {done.items:,} items in {done.spent_s:.1f} s"
    else:
        text = "[red]no answer[/] in time: is an indexer running? The request stands, it is done as soon as one is"
    answer(done, lambda _: say(text), as_json=as_json)
    raise typer.Exit(0 if done.answered and not done.problem else 1)


@app.command()
def histories(
    context: typer.Context,
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="Keep nothing of the present histories, also of what is older than topics"),
    ] = False,
    restored: Annotated[
        bool,
        typer.Option(
            "--restored", help="user-histories was copied from another cluster: only make it ready for the worker"
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing; exit 1 when there is something to write")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make all histories again from watch-events, search-events, signals and impressions; what is older than these is
    kept from the present histories. The history workers must be stopped (exit 2 when they are not)."""
    from streams.history.rebuild_histories import adopt_histories, rebuild_histories

    if restored and from_scratch:
        raise typer.BadParameter("--restored keeps all of the histories, --from-scratch nothing: give one of them")
    settings: Settings = context.obj.connected
    with progress_bars(quiet=as_json) as step:
        if restored:
            found = adopt_histories(settings, step, dry_run=dry_run)
        else:
            found = rebuild_histories(settings, from_scratch=from_scratch, dry_run=dry_run, progress=step)
    text = (
        f"{found.users:,} histories from {found.events:,} events: {found.differ:,} differed, of which "
        f"{found.missing:,} were missing; {found.written:,} written, {found.deleted:,} deleted"
    )
    answer(found, lambda _: say(text), as_json=as_json)
    raise typer.Exit(1 if dry_run and found.differ else 0)


@app.command()
def offsets(context: typer.Context, as_json: AsJson = False) -> None:
    """A topic was deleted and made again: take its old offsets out of histories, joins and trending counts, by which
    new events would pass for handled. These workers must be stopped (exit 2 when they are not)."""
    from streams.replaced.take_out_offsets import take_out_replaced

    with progress_bars(quiet=as_json) as step:
        done = take_out_replaced(context.obj.connected, step)
    text = f"{', '.join(done.topics)}: {done.written:,} records without their offsets; start the workers"
    answer(done, lambda _: say(text if done.topics else "no topic was made anew"), as_json=as_json)


@app.command()
def partitions(context: typer.Context, as_json: AsJson = False) -> None:
    """kafka.partitions was raised: give the users' topics so many, and bring each user's history and open impressions
    to the partition that is the user's now. History, join, trending and serving must be stopped (exit 2 when they are
    not); what breaks off is ended by the same command."""
    from streams.partitions.raise_partitions import raise_partitions

    with progress_bars(quiet=as_json) as step:
        done = raise_partitions(context.obj.connected, step)
    answer(done, _print_raised, as_json=as_json)


def _print_raised(done: Any) -> None:
    if not done.topics:
        say(f"nothing to raise: the users' topics have {done.after} partitions")
        return
    table = Table("topic", "partitions before", "now", "records of states moved", box=None, pad_edge=False)
    for each in done.topics:
        table.add_row(each.topic, str(each.before), str(each.after), f"{each.moved:,}" if each.moved else "")
    Console(highlight=False, soft_wrap=True).print(table)
    begun = "ended what had broken off; " if done.was_begun else ""
    say(f"{begun}start the processes, all with kafka.partitions {done.after}")


def say(text: str) -> None:
    Console(highlight=False, soft_wrap=True).print(text)
