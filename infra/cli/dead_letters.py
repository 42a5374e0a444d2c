"""Dead letters from the command line: list, show, retry, drop.

They hold what users have sent, ids included: that is shown here to whoever may read the topic, and logged nowhere.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from infra.cli.options import AsJson, print_json
from infra.operate.progress import progress_bars

app = typer.Typer(no_args_is_help=True, help="Messages that could not be used: list, show, retry or drop them.")

MOST_OUTCOMES = 1000  # shown to a person
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="TOPIC/PARTITION/OFFSET, as `list` shows them")]
OfTopic = Annotated[str, typer.Option("--topic", metavar="TOPIC", help="Only those of messages of this topic")]
OfCode = Annotated[str, typer.Option("--code", metavar="CODE", help="Only those that were refused for this: invalid")]
Since = Annotated[str, typer.Option(metavar="TIME", help="Only those since then: 30m, 2h, 7d, or 2026-01-31T12:00")]
AllOpen = Annotated[bool, typer.Option("--all", help="All that are open, or those of them that the options name")]


@app.command("list")
def list_letters(
    context: typer.Context,
    topic: OfTopic = "",
    code: OfCode = "",
    since: Since = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest")] = 50,
    closed: Annotated[bool, typer.Option("--all", help="Those that were retried or dropped as well")] = False,
    as_json: AsJson = False,
) -> None:
    """The letters that are open, oldest first."""
    from infra.operate.dead_letter_page import row_of, table_of
    from streams.dead_letters.box import Wanted, read_box

    wanted = Wanted(topic, code, since_ms(since, _now_ms()), closed)
    with progress_bar("reading") as told:
        entries = [each for each in read_box(context.obj.connected.kafka, told).values() if wanted.includes(each)]
    shown = entries[-limit:]
    if as_json:
        print_json([row_of(entry) for entry in shown])
        return
    console = Console(highlight=False)
    console.print(table_of(shown) if shown else "no dead letters")
    if len(entries) > len(shown):
        console.print(f"\n{len(entries) - len(shown):,} older ones are not shown (--limit)")


@app.command()
def show(
    context: typer.Context,
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="TOPIC/PARTITION/OFFSET, as `list` shows it")],
    raw: Annotated[
        bool, typer.Option("--raw", help="Write the bytes of the message's value, and nothing else")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """All of one letter; its value as text where it is that, else in hexadecimal. Exit 1 when there is none."""
    from infra.operate.dead_letter_page import content_of, print_letter, row_of
    from streams.dead_letters.box import find, read_box

    kafka = context.obj.connected.kafka
    place = _places([letter_id])[0]
    with progress_bar("reading") as told:
        entry = read_box(kafka, told).get(place)
        letter = next(find(kafka, [place]), None)
    if entry is None or letter is None:
        Console(stderr=True, highlight=False).print(escape(f"there is no dead letter {letter_id}"), soft_wrap=True)
        raise typer.Exit(1)
    if raw:
        sys.stdout.buffer.write(letter.value or b"")
    elif as_json:
        print_json(row_of(entry) | content_of(letter))
    else:
        print_letter(entry, letter, Console(highlight=False, soft_wrap=True))


@app.command()
def retry(
    context: typer.Context,
    ids: Ids = None,
    all_open: AllOpen = False,
    topic: OfTopic = "",
    code: OfCode = "",
    since: Since = "",
    again: Annotated[bool, typer.Option("--again", help="Also what was retried or dropped before")] = False,
    as_json: AsJson = False,
) -> None:
    """Send messages again as they were, to where they were. One that was sent again before is not, and says so.

    Exit 1 when one of them is not there or cannot be sent.
    """
    from streams.dead_letters.retry import retry as send_again

    def act(entries: Sequence[Any], told: Callable[[int, int], None]) -> Iterator[Any]:
        return send_again(context.obj.connected.kafka, entries, _now_ms(), again=again, progress=told)

    _work_through(context, ids or [], (all_open, topic, code, since), act, "sending", as_json=as_json)


@app.command()
def drop(
    context: typer.Context,
    ids: Ids = None,
    all_open: AllOpen = False,
    topic: OfTopic = "",
    code: OfCode = "",
    since: Since = "",
    as_json: AsJson = False,
) -> None:
    """Mark letters as done with: they are no longer listed, and go when the topic's time is over.

    Exit 1 when one of them is not there.
    """
    from streams.dead_letters.retry import drop as put_away

    def act(entries: Sequence[Any], told: Callable[[int, int], None]) -> Iterator[Any]:
        return put_away(context.obj.connected.kafka, entries, _now_ms())

    _work_through(context, ids or [], (all_open, topic, code, since), act, "dropping", as_json=as_json)


def _work_through(
    context: typer.Context,
    ids: Sequence[str],
    chosen: tuple[bool, str, str, str],
    act: Callable[[Sequence[Any], Callable[[int, int], None]], Iterator[Any]],
    doing: str,
    *,
    as_json: bool,
) -> None:
    """Do something with the letters of these ids, or with all that are chosen, and say what became of each."""
    from streams.dead_letters.box import Wanted, read_box
    from streams.dead_letters.retry import Outcome

    all_open, topic, code, since = chosen
    if all_open == bool(ids) or (ids and any((topic, code, since))):
        raise typer.BadParameter("give ids, or --all (with --topic, --code and --since, if only some are meant)")
    places, wanted = _places(ids), Wanted(topic, code, since_ms(since, _now_ms()))
    with progress_bar("reading") as told:
        box = read_box(context.obj.connected.kafka, told)
    entries = [entry for entry in box.values() if wanted.includes(entry)] if all_open else []
    entries += [box[place] for place in dict.fromkeys(places) if place in box]
    outcomes = [Outcome(str(place), "not found", "there is no such letter") for place in places if place not in box]
    with progress_bar(doing) as told:
        outcomes += act(entries, told)
    _print_outcomes(outcomes, as_json=as_json)
    raise typer.Exit(1 if any(outcome.problem for outcome in outcomes) else 0)


def since_ms(text: str, now_ms: int) -> int:
    """A time as it was typed: so long ago, or a date. Raises BadParameter."""
    if not text:
        return 0
    if found := re.fullmatch(r"(\d{1,9})([smhd])", text):
        return now_ms - 1000 * int(found[1]) * UNITS[found[2]]
    try:
        return round(1000 * datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is neither 30m, 2h or 7d nor a date such as 2026-01-31T12:00") from None


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, if that is a terminal, from the first time that something is told."""
    with progress_bars(quiet=not Console(stderr=True).is_terminal, transient=True) as step:
        yield partial(step, what)


def _places(ids: Iterable[str]) -> list[Any]:
    from streams.dead_letters.box import place_of

    places = {each: place_of(each) for each in ids}
    wrong = next((each for each, place in places.items() if place is None), None)
    if wrong is not None:
        raise typer.BadParameter(f"{wrong!r} is no id of a dead letter: TOPIC/PARTITION/OFFSET, as `list` shows them")
    return list(places.values())


def _print_outcomes(outcomes: Sequence[Any], *, as_json: bool) -> None:
    if as_json:
        print_json([outcome._asdict() for outcome in outcomes])
        return
    from infra.operate.dead_letter_page import harmless

    console = Console(highlight=False, soft_wrap=True)
    for outcome in outcomes[:MOST_OUTCOMES]:
        why = f": {escape(harmless(outcome.problem))}" if outcome.problem else ""
        console.print(f"{escape(harmless(outcome.place))}  {escape(harmless(outcome.what))}{why}")
    if len(outcomes) > MOST_OUTCOMES:
        console.print(f"... and {len(outcomes) - MOST_OUTCOMES:,} more (--json lists them all)")
    if not outcomes:
        console.print("no dead letters")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
