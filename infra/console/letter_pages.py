"""The pages of dead letters: the open ones, one of them with what it holds, and what became of one that is retried or
dropped, as `nextwatch dead-letters` does it.

What an open letter holds is shown whole and as text; of one that is closed only what is known of it, for it may be of
a user who was forgotten. A page that is sent again changes nothing: what was sent again before is not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from kafka.errors import KafkaError
from litestar import Response

from infra.console.rendering import Console, read_form
from infra.gateway.bodies import BadRequest
from infra.gateway.routes import Asked, services_of
from infra.operate.dead_letter_page import facts_beside, shown_value
from infra.platform.settings import Kafka
from streams.dead_letters.box import OPEN, Entry, Place, find, place_of, read_box, tries_of
from streams.dead_letters.retry import Outcome, drop, retry
from streams.kafka.follow import TopicMissing
from streams.messages import DeadLetter

MOST_LETTERS = 200
NOT_FOUND = "there is no such letter: the topic's time for it may be over"
ACTIONS: dict[str, Callable[..., Any]] = {"retry": retry, "drop": drop}


class Letter(NamedTuple):
    """One letter: how often its message was tried, and what it holds (None in a list, and when it is closed)."""

    entry: Entry
    tries: int
    letter: DeadLetter | None = None


async def show_letters(console: Console, request: Asked) -> Response[str]:
    """The open letters, newest first."""
    shown: dict[str, Any] = {"letters": [], "total": 0, "problem": "", "now_ms": time.time() * 1000}
    try:
        async with console.reading:
            letters, total = await asyncio.to_thread(read_open, services_of(request).settings.kafka)
    except (KafkaError, TopicMissing) as error:
        return console.page("dead_letters", request, shown | {"problem": str(error)}, 503)
    return console.page("dead_letters", request, shown | {"letters": letters, "total": total})


async def show_letter(
    console: Console, request: Asked, letter_id: str, outcome: Outcome | None = None
) -> Response[str]:
    """One letter, after what was done with it. Raises BadRequest."""
    place = read_place(letter_id)
    shown = nothing_of(place) | {"outcome": outcome, "problem": outcome.problem if outcome else ""}
    try:
        async with console.reading:
            found = await asyncio.to_thread(read_letter, services_of(request).settings.kafka, place)
    except (KafkaError, TopicMissing) as error:
        problem = f"{outcome.what}, but it cannot be looked at now: {error}" if outcome else str(error)
        return console.page("letter", request, nothing_of(place) | {"problem": problem}, 503)
    if found is None:
        return console.page("letter", request, nothing_of(place) | {"problem": NOT_FOUND}, 404)
    if found.letter is not None:
        value = None if found.letter.value is None else shown_value(found.letter.value)
        shown |= {"facts": facts_beside(found.letter), "value": value}
    return console.page("letter", request, shown | {"found": found}, 409 if shown["problem"] else 200)


async def act_on_letter(console: Console, request: Asked) -> Response[str]:
    """Retry or drop one letter, and say what became of it. Raises BadRequest."""
    form = await read_form(request)
    place, action = read_place(form.get("id", "")), ACTIONS.get(form.get("do", ""))
    if action is None:
        raise BadRequest(f"what is done with a letter is one of {', '.join(ACTIONS)}")
    try:
        async with console.reading:
            outcome = await asyncio.to_thread(act, services_of(request).settings.kafka, place, action)
    except (KafkaError, TopicMissing) as error:
        problem = f"not known to be done, look again in a moment: {error}"
        return console.page("letter", request, nothing_of(place) | {"problem": problem}, 503)
    return await show_letter(console, request, str(place), outcome)


def nothing_of(place: Place) -> dict[str, Any]:
    """All that the page of a letter names, empty."""
    shown = {"place": str(place), "problem": "", "facts": {}, "now_ms": time.time() * 1000}
    return shown | dict.fromkeys(("outcome", "found", "value"))


def read_open(kafka: Kafka) -> tuple[list[Letter], int]:
    """The newest of the open letters, newest first, and how many are open in all."""
    box = read_box(kafka)
    entries = [entry for entry in reversed(box.values()) if entry.state == OPEN]
    return [Letter(entry, tries_of(box, entry)) for entry in entries[:MOST_LETTERS]], len(entries)


def read_letter(kafka: Kafka, place: Place) -> Letter | None:
    box = read_box(kafka)
    if (entry := box.get(place)) is None:
        return None
    letter = next(find(kafka, [place]), None) if entry.state == OPEN else None
    return Letter(entry, tries_of(box, entry), letter)


def act(kafka: Kafka, place: Place, action: Callable[..., Any]) -> Outcome:
    """Do it with the letter of this place."""
    entries = [entry for entry in (read_box(kafka).get(place),) if entry is not None]
    outcomes = [*action(kafka, entries, time.time_ns() // 1_000_000)] if entries else []
    return outcomes[0] if outcomes else Outcome(str(place), "not found", NOT_FOUND)


def read_place(letter_id: str) -> Place:
    """The place that an id names. Raises BadRequest."""
    place = place_of(letter_id)
    if place is None:
        raise BadRequest("an id of a dead letter is TOPIC/PARTITION/OFFSET, as the page of dead letters shows it")
    return place
