"""From a body to messages that can be sent, by the rules that the streams read them with (streams/messages.py).

A body holds one event or a list of them. Each is judged alone: what is wrong with one is no reason to lose another.
They are written anew, so that nothing travels that was not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from streams.messages import Item, Refused, SearchEvent, SignalEvent, WatchEvent, decode

Event = WatchEvent | SearchEvent | SignalEvent

MOST_CHARACTERS = 256  # of an id
UNACKNOWLEDGED = "unacknowledged"  # code of a problem that is not the event's own


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event that was not taken: its place in the body, a short code and what is wrong."""

    index: int
    code: str
    reason: str
    event_id: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """What became of a body: how many of its events the brokers have acknowledged, and why not the others."""

    accepted: int
    problems: list[Problem] = []


@dataclass
class Events:
    """The events of a body, `places` theirs in it, and what is wrong with the others."""

    good: list[Event] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


class BadRequest(ValueError):
    """A request that cannot be used; the text says why."""


class _OnlyId(msgspec.Struct):
    event_id: str = ""


def read_events(kind: type[Event], body: bytes, *, max_bytes: int, latest_ms: int) -> Events:
    """Read one event or a list of them. Raises BadRequest for a body that holds none."""
    events = Events()
    for place, raw in enumerate(_each(body)):
        try:
            event = decode(kind, bytes(raw), max_bytes=max_bytes, latest_ms=latest_ms)
        except Refused as refused:
            events.problems.append(Problem(place, refused.code, str(refused), _id_in(raw)))
        else:
            events.good.append(event)
            events.places.append(place)
    return events


def status_of(outcome: Outcome) -> HTTPStatus:
    """202: all are acknowledged; 503: some were not, send them again; 400: none can be used; 207: some of each."""
    if not outcome.problems:
        return HTTPStatus.ACCEPTED
    if any(problem.code == UNACKNOWLEDGED for problem in outcome.problems):
        return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.MULTI_STATUS if outcome.accepted else HTTPStatus.BAD_REQUEST


def read_item(item_id: str, body: bytes, *, max_bytes: int) -> Item:
    """Read an item whose id is in the path. Raises BadRequest."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
        if fields.setdefault("item_id", item_id) != item_id:
            raise BadRequest(f"item_id in the body is {fields['item_id']!r}, in the path {item_id!r}")
        return decode(Item, msgspec.json.encode(fields), max_bytes=max_bytes)
    except Refused as refused:
        raise BadRequest(str(refused)) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"not an item as JSON: {error}") from None


def read_id(encoded: str) -> str:
    """Read the id in a path, percent-encoded there. Raises BadRequest."""
    try:
        found = unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError:
        raise BadRequest("the id in the path is not UTF-8, percent-encoded") from None
    if not 1 <= len(found) <= MOST_CHARACTERS:
        raise BadRequest(f"an id has 1 to {MOST_CHARACTERS} characters, this one has {len(found)}")
    return found


def _each(body: bytes) -> list[msgspec.Raw]:
    try:
        if body.lstrip()[:1] != b"[":
            return [msgspec.json.decode(body, type=msgspec.Raw)]
        events = msgspec.json.decode(body, type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not events:
        raise BadRequest("the body is a list of no events")
    return events


def _id_in(raw: msgspec.Raw) -> str:
    try:
        return msgspec.json.decode(raw, type=_OnlyId).event_id[:MOST_CHARACTERS]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
