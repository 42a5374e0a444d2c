"""Impressions meet outcomes: what became of each list that was shown, as examples for the ranker.

Pure: a user's state, an event and the watermark (how far event time has come, see streams.join.watermark) go in; a
state and what happened come out.

Which impression a watch belongs to (streams.join.attribution) does not depend on which of the two was read first: one
that is read later draws the watches that belong to it, from those that wait (`early`) and from older impressions.

An impression makes its example when its window has passed (what nobody watched is 0 s) and is kept for the grace; what
changes it meanwhile makes a higher `revision`. Revisions are not counted but made of the offsets that the state has
seen, that of the first example too: a counter would start again from an older state after a crash, and what is made
then could come below what was sent before it.
Request ids and event ids are known as long as the impression is kept. A user's state is bounded: beyond `keep`
impressions the oldest makes its example at once and is forgotten. It must fit into one message, whatever comes.

Statistics count an impression twice over (`Tally`): when it closes, and what has changed since when it is forgotten.
Both moments are in its state, so that a repeat after a crash is known (see streams.join.item_statistics). A window
therefore never ends at or before the watermark at which the impression came: closings go in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import NamedTuple

from msgspec import Raw
from msgspec.structs import replace

from streams.history.rules import is_completed
from streams.join.attribution import Rules, home_of
from streams.messages import (
    ImpressionOutline,
    JoinedWatch,
    JoinState,
    OpenImpression,
    Outcome,
    Refused,
    UnreadExample,
    WatchEvent,
    decode,
    open_impression,
)

MOST_WATCHES = 200  # of one impression, and of those that wait
WATCHES_SHARE = 30  # of what impressions may take, in characters: one of an id may become six bytes


class Fate(StrEnum):
    """The end of a watch. One that has none yet waits for its impression."""

    JOINED = "joined"
    LATE = "late"
    DUPLICATE = "duplicate"
    REPLAYED = "replayed"
    NO_IMPRESSION = "no_impression"  # it named one that we do not know, or no longer
    SELF_CHOSEN = "self_chosen"
    TOO_MANY = "too_many"


class Tally(NamedTuple):
    """Outcomes for the statistics. `counted`: what they hold of the impression already, None at its closing."""

    impression: ImpressionOutline
    outcomes: tuple[Outcome, ...]
    counted: tuple[Outcome, ...] | None
    at_ms: int  # when it is due, event time
    pushed_by: int | None = None  # offset of the impression that made it due before


class Step(NamedTuple):
    state: JoinState
    fates: tuple[Fate, ...] = ()
    examples: tuple[UnreadExample, ...] = ()
    tallies: tuple[Tally, ...] = ()


def apply_watch(
    state: JoinState, event: WatchEvent, offset: int, *, watermark_ms: int, partition: int, rules: Rules
) -> Step:
    """Add a watch to its impression, or let it wait for one that is not read yet."""
    if offset <= state.watch_offset:
        return Step(state, (Fate.REPLAYED,))
    state = replace(state, watch_offset=offset)
    if any(watch.event_id == event.event_id for watch in _all_watches(state)):
        return Step(state, (Fate.DUPLICATE,))
    if sum(map(_weight, _all_watches(state))) > rules.most_bytes // WATCHES_SHARE:
        return Step(state, (Fate.TOO_MANY,))
    completed = is_completed(event.watch_s, event.duration_s, rules.completed_s)
    watched_s = min(event.watch_s, event.duration_s or event.watch_s)  # a replay is no longer video
    watch = JoinedWatch(event.item_id, event.event_ms, watched_s, completed, event.event_id, event.request_id, offset)
    home = home_of(watch, state.impressions, rules)
    if home is None:
        return _wait(state, watch, watermark_ms, rules)
    if len(home.watches) >= MOST_WATCHES:
        return Step(state, (Fate.TOO_MANY,))
    changed, examples = _changed(home, (*home.watches, watch), state, partition)
    impressions = tuple(changed if each is home else each for each in state.impressions)
    fate = Fate.JOINED if home.revision < 0 else Fate.LATE
    return Step(replace(state, impressions=impressions), (fate,), examples)


def apply_impression(
    state: JoinState,
    outline: ImpressionOutline,
    impression: bytes,
    offset: int,
    *,
    watermark_ms: int,
    partition: int,
    rules: Rules,
) -> Step:
    """Open an impression and draw the watches to it that are its own. One that was there before changes nothing.
    `impression`: the message whose outline it is."""
    if offset <= state.impression_offset:
        return Step(state)
    state = replace(state, impression_offset=offset)
    if any(each.request_id == outline.request_id for each in state.impressions):
        return Step(state)
    closes_ms = max(outline.at_ms + rules.window_ms, watermark_ms + 1)
    new = open_impression(outline, impression, offset, closes_ms)
    everything = sorted((*state.impressions, new), key=lambda each: (each.at_ms, each.offset))
    shown = set(new.item_ids)
    drawn = [
        watch for watch in _all_watches(state) if watch.item_id in shown and home_of(watch, everything, rules) is new
    ][:MOST_WATCHES]
    impressions, examples = _without(everything, drawn, state, partition)
    impressions[everything.index(new)] = replace(new, watches=tuple(drawn))
    early = tuple(watch for watch in state.early if watch not in drawn)
    fates = (Fate.JOINED,) * (len(state.early) - len(early))
    impressions, closings, tallies = _push_out(impressions, offset, partition, rules, _newest_offset(state))
    state = replace(state, impressions=tuple(impressions), early=early)
    return Step(state, fates, (*examples, *closings), tallies)


def advance(state: JoinState, *, watermark_ms: int, partition: int, rules: Rules) -> Step:
    """Close the windows, forget what is beyond the grace, and give up the watches that waited, up to the watermark."""
    kept, examples, tallies = [], [], []
    for each in state.impressions:
        if each.revision < 0 and each.closes_ms <= watermark_ms:
            closing = _close(each, partition, _newest_offset(state))
            if closing is None:
                continue
            each, example, tally = closing  # noqa: PLW2901
            examples.append(example)
            tallies.append(tally)
        if each.closes_ms + rules.grace_ms > watermark_ms:
            kept.append(each)
        else:
            tallies += _settle(each, each.closes_ms + rules.grace_ms)
    early = tuple(watch for watch in state.early if watch.event_ms + rules.early_ms > watermark_ms)
    fates = tuple(_unmatched(watch) for watch in state.early if watch.event_ms + rules.early_ms <= watermark_ms)
    return Step(replace(state, impressions=tuple(kept), early=early), fates, tuple(examples), tuple(tallies))


def due_ms(state: JoinState, rules: Rules) -> int | None:
    """The watermark at which `advance` has something to do, None when nothing is left to do."""
    closings = (each.closes_ms + (rules.grace_ms if each.revision >= 0 else 0) for each in state.impressions)
    return min((*closings, *(watch.event_ms + rules.early_ms for watch in state.early)), default=None)


def outcomes_of(each: OpenImpression) -> tuple[Outcome, ...]:
    """Return what became of each shown item, in the order in which they were shown; of one that was listed twice the
    first."""
    watched: dict[str, tuple[float, bool]] = {}
    for watch in sorted(each.watches, key=lambda watch: watch.offset):  # a sum of floats has an order
        watched_s, completed = watched.get(watch.item_id, (0.0, False))
        watched[watch.item_id] = watched_s + watch.watch_s, completed or watch.completed
    return tuple(Outcome(item_id, *watched.pop(item_id, (0.0, False))) for item_id in each.item_ids)


def open_count(state: JoinState) -> int:
    return sum(each.revision < 0 for each in state.impressions)


def _all_watches(state: JoinState) -> Iterable[JoinedWatch]:
    yield from state.early
    for each in state.impressions:
        yield from each.watches


def _weight(watch: JoinedWatch) -> int:
    """About how many characters a watch takes."""
    return 60 + len(watch.item_id) + len(watch.event_id) + len(watch.request_id or "")


def _wait(state: JoinState, watch: JoinedWatch, watermark_ms: int, rules: Rules) -> Step:
    if watch.event_ms + rules.early_ms <= watermark_ms:
        return Step(state, (_unmatched(watch),))
    early = (*state.early, watch)
    fates = tuple(_unmatched(each) for each in early[:-MOST_WATCHES])
    return Step(replace(state, early=early[-MOST_WATCHES:]), fates)


def _unmatched(watch: JoinedWatch) -> Fate:
    return Fate.SELF_CHOSEN if watch.request_id is None else Fate.NO_IMPRESSION


def _changed(
    each: OpenImpression, watches: tuple[JoinedWatch, ...], state: JoinState, partition: int
) -> tuple[OpenImpression, tuple[UnreadExample, ...]]:
    """An impression with other watches; when its example is out, the one that corrects it."""
    if each.revision < 0:
        return replace(each, watches=watches), ()
    each = replace(each, watches=watches, revision=_newest_offset(state) + 1)
    return each, (_example(each, partition),)


def _without(
    impressions: Iterable[OpenImpression], drawn: Sequence[JoinedWatch], state: JoinState, partition: int
) -> tuple[list[OpenImpression], list[UnreadExample]]:
    """The impressions without the watches that another one has drawn, and the corrections that this makes."""
    left: list[OpenImpression] = []
    examples: list[UnreadExample] = []
    for each in impressions:
        watches = tuple(watch for watch in each.watches if watch not in drawn)
        kept, corrections = (
            (each, ()) if len(watches) == len(each.watches) else _changed(each, watches, state, partition)
        )
        left.append(kept)
        examples += corrections
    return left, examples


def _push_out(
    impressions: list[OpenImpression], offset: int, partition: int, rules: Rules, revision: int
) -> tuple[list[OpenImpression], tuple[UnreadExample, ...], tuple[Tally, ...]]:
    """Close and forget the oldest until what is left is within bounds."""
    examples: list[UnreadExample] = []
    tallies: list[Tally] = []
    while len(impressions) > rules.keep or (len(impressions) > 1 and _size(impressions) > rules.most_bytes):
        oldest = min(impressions, key=lambda each: (each.closes_ms, each.offset))
        impressions = [each for each in impressions if each is not oldest]
        if oldest.revision < 0:
            if (closing := _close(oldest, partition, revision)) is not None:
                examples.append(closing[1])
                tallies.append(closing[2]._replace(pushed_by=offset))
        else:
            tallies += [tally._replace(pushed_by=offset) for tally in _settle(oldest, oldest.closes_ms)]
    return impressions, tuple(examples), tuple(tallies)


def _size(impressions: Iterable[OpenImpression]) -> int:
    """At least as many bytes as they take."""
    return sum(len(each.impression) + 4 * len("".join(each.item_ids)) + 5 * len(each.item_ids) for each in impressions)


def _newest_offset(state: JoinState) -> int:
    """Return how much of its events a state has read: a revision is made of it."""
    return state.read_before + state.watch_offset + state.impression_offset + 2


def _close(each: OpenImpression, partition: int, revision: int) -> tuple[OpenImpression, UnreadExample, Tally] | None:
    """None when its message cannot be read: somebody else wrote to the changelog. It is as one that never was."""
    outline = _outline_of(each)
    if outline is None:
        return None
    outcomes = outcomes_of(each)
    watched = tuple(outcome for outcome in outcomes if outcome.watched_s > 0)
    closed = replace(each, revision=revision, counted=watched)
    return closed, _example(closed, partition), Tally(outline, outcomes, None, each.closes_ms)


def _settle(each: OpenImpression, at_ms: int) -> list[Tally]:
    """Return what has changed since it closed, if anything has."""
    outcomes = outcomes_of(each)
    watched = tuple(outcome for outcome in outcomes if outcome.watched_s > 0)
    outline = None if watched == each.counted else _outline_of(each)
    return [] if outline is None else [Tally(outline, outcomes, each.counted, at_ms)]


def _outline_of(each: OpenImpression) -> ImpressionOutline | None:
    """What was read of an impression when it came: its state holds the message only."""
    with suppress(Refused):
        outline = decode(ImpressionOutline, each.impression, max_bytes=len(each.impression))
        if tuple(shown.item_id for shown in outline.items) == each.item_ids:
            return outline
    return None


def _example(each: OpenImpression, partition: int) -> UnreadExample:
    return UnreadExample(
        Raw(each.impression),
        outcomes_of(each),
        partition if each.partition < 0 else each.partition,
        each.offset,
        closed_ms=each.closes_ms,
        revision=each.revision,
    )
