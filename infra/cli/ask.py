"""Commands that speak to a running system as any client would: recommend, watch, history."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from infra.cli.options import AsJson, answer, shortened

UserId = Annotated[str, typer.Argument(metavar="USER")]


def recommend(
    context: typer.Context,
    user: UserId,
    k: Annotated[int | None, typer.Option("-k", min=1, help="How many items [default: serving.k]")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="ITEM", help="Leave this item out (may be given more than once)")
    ] = None,
    only: Annotated[
        str | None, typer.Option("--filter", metavar="EXPRESSION", help="Only such items: 'duration_s < 600'")
    ] = None,
    timeout_s: Annotated[float, typer.Option(help="How long to wait for the reply")] = 5.0,
    watch: Annotated[
        bool, typer.Option("--watch", help="Ask again and again, and mark what has moved; Ctrl-C")
    ] = False,
    every_s: Annotated[float, typer.Option(min=0.1, help="With --watch: seconds between two requests")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Ask for recommendations, through the request topic."""
    from infra.platform.kafka_clients import client_options
    from nextwatch_client import RecommendClient

    with RecommendClient(client_options(context.obj.connected.kafka)) as client:
        ask = partial(client.recommend, user, k=k, exclude=exclude or (), filter=only, timeout_s=timeout_s)
        if watch:
            _follow(ask, every_s, as_json=as_json)
        reply = ask()
    answer(reply, lambda found: Console().print(shown_reply(found)), as_json=as_json)
    raise typer.Exit(1 if reply.error else 0)


def watch(
    context: typer.Context,
    user: UserId,
    item: Annotated[str, typer.Argument(metavar="ITEM")],
    watch_s: Annotated[float, typer.Option("--seconds", min=0, help="How long it was watched")] = 60.0,
    duration_s: Annotated[float | None, typer.Option("--duration", min=0, help="How long the video is")] = None,
    as_json: AsJson = False,
) -> None:
    """Send one watch event, as a player would."""
    from kafka import KafkaProducer

    from infra.platform.kafka_clients import kafka_python_options
    from streams import topics
    from streams.messages import WatchEvent, encode

    kafka = context.obj.connected.kafka
    event = WatchEvent(uuid.uuid4().hex, user, item, time.time_ns() // 1_000_000, watch_s, duration_s)
    producer = KafkaProducer(**kafka_python_options(kafka))
    try:
        name = kafka.topic_prefix + topics.WATCH_EVENTS
        producer.send(name, key=user.encode(), value=encode(event)).get(timeout=10)
    finally:
        producer.close()
    answer(event, lambda sent: Console().print(f"sent {sent.event_id}"), as_json=as_json)


def history(context: typer.Context, user: UserId, as_json: AsJson = False) -> None:
    """Show what the system knows of a user: the newest watches, searches and signals."""
    from infra.operate.user_history import read_history

    found = read_history(context.obj.connected, user)
    answer(found, _print_history, as_json=as_json)
    raise typer.Exit(0 if found is not None else 1)


def _follow(ask: Callable[[], Any], every_s: float, *, as_json: bool) -> NoReturn:
    """Show the newest reply until Ctrl-C, for a script a line of JSON each; an error ends it."""
    before: list[str] | None = None
    with contextlib.suppress(KeyboardInterrupt), Live(auto_refresh=False, vertical_overflow="visible") as screen:
        while True:
            reply = ask()
            if as_json:
                typer.echo(json.dumps(msgspec.to_builtins(reply)))
            elif screen.console.is_terminal:
                screen.update(shown_reply(reply, before), refresh=True)
            else:
                screen.console.print(shown_reply(reply, before))
            if reply.error:
                raise typer.Exit(1)
            before = [item.item_id for item in reply.items]
            time.sleep(every_s)
    raise typer.Exit(0)


def moves(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """What became of each place: new, by how many it rose or fell, or nothing."""
    places = {item_id: at for at, item_id in enumerate(before)}
    return [_move(places.get(item_id), at) for at, item_id in enumerate(now)]


def _move(before: int | None, now: int) -> str:
    if before is None:
        return "[green]new[/]"
    if before == now:
        return ""
    return f"[green]up {before - now}[/]" if now < before else f"[yellow]down {now - before}[/]"


def shown_reply(reply: Any, before: Sequence[str] | None = None) -> RenderableType:
    """A reply as a table; `before`: the items of the last one, to mark what has moved."""
    if reply.error:
        return Text.from_markup(f"[red]error[/]: {escape(reply.error)}")
    titled = any(item.title for item in reply.items)
    columns = ("rank", "item", *(("title",) if titled else ()), "source", "expected watch")
    table = Table(*columns, box=None, pad_edge=False)
    if before is not None:
        table.add_column("moved")
    marks = moves(before or (), [item.item_id for item in reply.items])
    for item, mark in zip(reply.items, marks, strict=True):
        seconds = "" if item.expected_watch_s is None else f"{item.expected_watch_s:.0f} s"
        title = [escape(shortened(item.title))] if titled else []
        cells = (str(item.rank), escape(item.item_id), *title, item.source, seconds)
        table.add_row(*cells, *([] if before is None else [mark]))
    stages = ", ".join(f"{name} {spent:.1f}" for name, spent in reply.stages_ms.items())
    about = f"\nversion {reply.version or 'none yet'}, {reply.history_watches} watches known; ms: {stages}"
    degraded = [f"[yellow]degraded[/]: {', '.join(reply.degraded)}"] if reply.degraded else []
    return Group(table, about, *degraded)


def _print_history(found: Any) -> None:
    console = Console()
    if found is None:
        console.print("no history: nothing of this user has come in, or the history worker has not read it yet")
        return
    table = Table("when", "item", "watched", "completed", box=None, pad_edge=False)
    for entry in reversed(found.watches):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.event_ms / 1000))
        of = "" if entry.duration_s is None else f" of {entry.duration_s:.0f}"
        table.add_row(when, escape(entry.item_id), f"{entry.watch_s:.0f}{of} s", "yes" if entry.completed else "")
    console.print(table)
    if found.searches:
        console.print(escape("searches: " + ", ".join(search.query for search in reversed(found.searches))))
    if found.signals:
        console.print(escape("signals: " + ", ".join(map(_said, reversed(found.signals)))))


def _said(signal: Any) -> str:
    return f"{signal.kind} {signal.item_id or 'channel ' + signal.channel}"
