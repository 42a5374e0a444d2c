"""A user's history, event by event: the newest watches, searches and impressions, and the example that a completed
watch makes.

Pure: a history and an event go in, a history and perhaps an example come out; nothing here knows of Kafka or the time.

Of the watches the newest `keep` stay, of whatever length, and the newest `keep` completed ones: the ranker looks at the
first, the user tower at the second, and whoever skips much has few that are both. Of the impressions the newest `keep`
shown items stay, list by list; the oldest list is cut to what still fits. Of a watch that is let go, or is too old to
be kept, the item is remembered in `seen` (see streams.history.watched_filter).

An event is applied once. A source offset at or below the history's is a replay after a crash (its effects were
acknowledged before the history was: see streams.history.app), an event id that is already in the history is a
producer's duplicate, and so is a log's row of the same item and time (streams/history/log_rows.py). An event that would
not stay is passed over as too old. The check of duplicates is complete by this: a watch that was let go had `keep`
others at its time or later, and still has them when its duplicate comes. So it must be "at its time or later", both for
what is let go and for what is too old. The request ids of impressions are checked by the same reasoning, counted in
shown items; that is why a list is cut, not left out, where it does not fit whole.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from enum import StrEnum
from operator import attrgetter
from typing import NamedTuple

from msgspec.structs import replace

from streams.history.log_rows import is_known, is_row
from streams.history.watched_filter import remember
from streams.messages import (
    ImpressionOutline,
    Search,
    SearchEvent,
    ShownList,
    Source,
    TrainingExample,
    UserHistory,
    Watch,
    WatchEvent,
)

_event_ms, _at_ms, _event_id, _completes = map(attrgetter, ("event_ms", "at_ms", "event_id", "completed"))


class Outcome(StrEnum):
    KEPT = "kept"
    REPLAYED = "replayed"
    DUPLICATE = "duplicate"
    TOO_OLD = "too_old"


class Applied(NamedTuple):
    history: UserHistory
    outcome: Outcome
    example: TrainingExample | None = None


def is_completed(watch_s: float, duration_s: float | None, completed_s: float) -> bool:
    """The positive rule (paper section 3.1, "a user completing a video"): to the end, or `completed_s` of it."""
    enough_s = min(duration_s, completed_s) if duration_s else completed_s  # a duration of 0 is an unknown one
    return watch_s >= enough_s


def apply_watch(
    history: UserHistory,
    event: WatchEvent,
    source: Source,
    *,
    keep: int,
    completed_s: float,
    watched: int = 0,
    watched_days: int = 0,
) -> Applied:
    """Sort a watch in by event time, keep the newest `keep` and the newest `keep` completed ones, and make its example
    if it was completed. Of the items that are not kept, the newest `watched` of the last `watched_days` are remembered.

    The example holds the history from before the watch's own time, also for a watch that comes late
    (paper section 3.3: predict the next watch, never a held-out one from the middle).
    """
    if source.offset <= history.watch_offset:
        return Applied(history, Outcome.REPLAYED)
    watches = history.watches
    if is_known(watches, event):
        return Applied(_passed_over(history, source), Outcome.DUPLICATE)
    completed = is_completed(event.watch_s, event.duration_s, completed_s)
    watch = Watch(
        event.item_id, event.event_ms, event.watch_s, event.duration_s, completed, event.event_id, source.offset
    )
    first = bisect_left(watches, event.event_ms, key=_event_ms)  # a watch at the very same time is not "before"
    before, later = watches[:first], watches[first:]
    is_too_old = len(later) >= keep and not (completed and _completed(later) < keep)
    place = bisect_right(watches, event.event_ms, key=_event_ms)
    kept, gone = (watches, [watch]) if is_too_old else newest((*watches[:place], watch, *watches[place:]), keep)
    seen = history.seen
    if gone:
        seen = remember(seen, gone, newest_ms=kept[-1].event_ms, keep=watched, days=watched_days)
    if is_too_old:
        return Applied(replace(_passed_over(history, source), seen=seen), Outcome.TOO_OLD)
    newer = replace(
        history,
        watches=kept,
        seen=seen,
        context=event.context or history.context,
        watch_offset=source.offset,
        produced_ms=max(history.produced_ms, source.produced_ms),
    )
    if not completed:
        return Applied(newer, Outcome.KEPT)
    example = TrainingExample(
        user_id=event.user_id,
        item_id=event.item_id,
        event_ms=event.event_ms,
        watch_s=event.watch_s,
        duration_s=event.duration_s,
        watches=before,
        searches=history.searches[: bisect_left(history.searches, event.event_ms, key=_event_ms)],
        context=newer.context,
        partition=source.partition,
        offset=source.offset,
        produced_ms=source.produced_ms,
        is_row=is_row(event.event_id),
    )
    return Applied(newer, Outcome.KEPT, example)


def apply_search(history: UserHistory, event: SearchEvent, source: Source, *, keep: int) -> Applied:
    """Sort a search in by event time and keep the newest `keep`."""
    if source.offset <= history.search_offset:
        return Applied(history, Outcome.REPLAYED)
    searches = history.searches
    outcome = Outcome.KEPT
    if event.event_id in map(_event_id, searches):
        outcome = Outcome.DUPLICATE
    elif len(searches) - bisect_left(searches, event.event_ms, key=_event_ms) >= keep:
        outcome = Outcome.TOO_OLD
    else:
        place = bisect_right(searches, event.event_ms, key=_event_ms)
        search = Search(event.query, event.event_ms, event.event_id, source.offset)
        searches = (*searches[:place], search, *searches[place:])[-keep:]
    newer = replace(
        history,
        searches=searches,
        context=event.context or history.context,
        search_offset=source.offset,
        produced_ms=max(history.produced_ms, source.produced_ms),
    )
    return Applied(newer, outcome)


def apply_impression(history: UserHistory, event: ImpressionOutline, source: Source, *, keep: int) -> Applied:
    """Sort the list that was shown in by its time and keep the newest `keep` shown items."""
    if source.offset <= history.impression_offset:
        return Applied(history, Outcome.REPLAYED)
    lists = history.impressions
    outcome = Outcome.KEPT
    if any(shown.request_id == event.request_id for shown in lists):
        outcome = Outcome.DUPLICATE
    elif sum(len(shown.item_ids) for shown in lists[bisect_left(lists, event.at_ms, key=_at_ms) :]) >= keep:
        outcome = Outcome.TOO_OLD
    elif event.items:
        place = bisect_right(lists, event.at_ms, key=_at_ms)
        shown = ShownList(event.request_id, event.at_ms, tuple(item.item_id for item in event.items))
        lists = _newest_shown((*lists[:place], shown, *lists[place:]), keep)
    newer = replace(
        history,
        impressions=lists,
        impression_offset=source.offset,
        produced_ms=max(history.produced_ms, source.produced_ms),
    )
    return Applied(newer, outcome)


def newest(watches: tuple[Watch, ...], keep: int) -> tuple[tuple[Watch, ...], list[Watch]]:
    """The last `keep`, and in front of them as many older completed ones as `keep` completed ones need; and the rest,
    which is let go."""
    recent, older = watches[-keep:], watches[:-keep]
    completed = [watch for watch in older if watch.completed]
    first = max(0, len(completed) + _completed(recent) - keep)  # of the older completed ones, that stays
    gone = [watch for watch in older if not watch.completed] + completed[:first]
    return (*completed[first:], *recent), gone


def _newest_shown(lists: Sequence[ShownList], keep: int) -> tuple[ShownList, ...]:
    """The newest lists with `keep` items in all; the oldest of them is cut to what fits."""
    newest: list[ShownList] = []
    for shown in reversed(lists):
        newest.append(ShownList(shown.request_id, shown.at_ms, shown.item_ids[:keep]))
        keep -= len(shown.item_ids)
        if keep <= 0:
            break
    return tuple(reversed(newest))


def _completed(watches: Sequence[Watch]) -> int:
    return sum(map(_completes, watches))


def _passed_over(history: UserHistory, source: Source) -> UserHistory:
    """The same history, knowing that the stream has been read up to here."""
    return replace(history, watch_offset=source.offset)
