"""What a user has said of items and channels: the newest of each, and what is unwanted by it.

Signals about an item may also say how much its completed watch counts as an example (`weighed`).

There are three sorts of signals: opinions (`like`, `dislike`, `not_interested`, and `undo`, which takes one of them
back), `share` and `save`. Of every sort the newest about each item and each channel stands, by its own time: what was
disliked and liked later is wanted again, whichever of the two comes first, and however often. At the very same time the
opinion that keeps something away stands.

What is unwanted is kept apart from the rest, `unwanted` items and channels and `others`, the oldest leave first: who
likes much loses no dislike by it. An opinion replaces the one before it also where it is too old to stay itself. A like
that has left does not tell any more that a dislike from before it is over; such a dislike would have to be sent anew,
when so many newer signals have come.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import NamedTuple

from msgspec.structs import replace

from streams.history.rules import Applied, Outcome
from streams.messages import Signal, SignalEvent, Source, UserHistory

UNWANTED = frozenset({"dislike", "not_interested"})
OPINIONS = UNWANTED | {"like", "undo"}
NOTHING: frozenset[str] = frozenset()


class Unwanted(NamedTuple):
    """The items and channels that a user does not want to see."""

    items: frozenset[str] = NOTHING
    channels: frozenset[str] = NOTHING


def unwanted_by(history: UserHistory) -> Unwanted:
    signals = [signal for signal in history.signals if signal.kind in UNWANTED]
    if not signals:
        return Unwanted()
    items = frozenset(signal.item_id for signal in signals if signal.item_id is not None)
    return Unwanted(items, frozenset(signal.channel for signal in signals if signal.channel is not None))


def weighed(applied: Applied, weights: Mapping[str, float]) -> Applied:
    """The same with the weight of its example: those of what the user has said of the item, by kind, multiply."""
    example = applied.example
    if example is None or not weights:
        return applied
    mine = (signal.kind for signal in applied.history.signals if signal.item_id == example.item_id)
    weight = prod(weights.get(kind, 1.0) for kind in mine)
    return applied._replace(example=replace(example, weight=weight))


def said_of_items(events: Iterable[SignalEvent]) -> dict[tuple[str, str], list[str]]:
    """By user and item the kinds that stand at the end of these events, in whatever order they come."""
    newest: dict[tuple[str, str, str], tuple[int, bool, str]] = {}  # as `_order` has them about one item
    for event in events:
        if event.item_id is not None:
            key, mine = (event.user_id, event.item_id, _about(event)[0]), _order(event)[:3]
            newest[key] = max(newest.get(key, mine), mine)
    said: dict[tuple[str, str], list[str]] = {}
    while newest:
        (user_id, item_id, _), (_, _, kind) = newest.popitem()
        if kind != "undo":
            said.setdefault((user_id, item_id), []).append(kind)
    return said


def apply_signal(history: UserHistory, event: SignalEvent, source: Source, *, unwanted: int, others: int) -> Applied:
    """Put a signal in the place of the older one of its sort about the same, and keep the newest."""
    if source.offset <= history.signal_offset:
        return Applied(history, Outcome.REPLAYED)
    new = Signal(event.kind, event.item_id, event.channel, event.event_ms, event.event_id, source.offset)
    signals = history.signals
    before = next((signal for signal in signals if _about(signal) == _about(new)), None)
    if before is not None and _order(before) == _order(new):
        outcome = Outcome.DUPLICATE
    elif before is not None and _order(before) > _order(new):
        outcome = Outcome.TOO_OLD
    else:
        signals = _newest([new, *(signal for signal in signals if signal is not before)], unwanted, others)
        outcome = Outcome.KEPT if new in signals else Outcome.TOO_OLD
    produced_ms = max(history.produced_ms, source.produced_ms)
    newer = replace(history, signals=signals, signal_offset=source.offset, produced_ms=produced_ms)
    return Applied(newer, outcome)


def _newest(signals: Iterable[Signal], unwanted: int, others: int) -> tuple[Signal, ...]:
    """The newest of those that keep something away, and of the others, in order of time."""
    ordered = sorted(signals, key=_order)
    away = [signal for signal in ordered if signal.kind in UNWANTED]
    rest = [signal for signal in ordered if signal.kind not in UNWANTED]
    return tuple(sorted([*away[-unwanted:], *rest[-others:]], key=_order))


def _about(signal: Signal | SignalEvent) -> tuple[str, str | None, str | None]:
    return "opinion" if signal.kind in OPINIONS else signal.kind, signal.item_id, signal.channel


def _order(signal: Signal | SignalEvent) -> tuple[int, bool, str, str, str]:
    """Older ones first; the same whatever order they come in."""
    return signal.event_ms, signal.kind in UNWANTED, signal.kind, signal.item_id or "", signal.channel or ""
