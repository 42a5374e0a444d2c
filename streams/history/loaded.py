"""What a log tells of a user, taken into the user's history: no example is made of it, since a release has learnt it.

The same rules as for watches that come one by one (streams/history/rules.py), applied to all of them together: what is
there already is not there twice, the newest stay, what is not kept is remembered in `seen`, and nothing from before an
erasure comes back. So it may be taken in again, before or after the same rows came as watches, and the history is the
same.
"""

from __future__ import annotations

from operator import attrgetter

from msgspec.structs import replace

from streams.history.rules import Applied, Outcome, newest
from streams.history.watched_filter import merge, remember, since
from streams.messages import LoadedHistory, Search, UserHistory, Watch

_event_ms = attrgetter("event_ms")


def apply_loaded(
    history: UserHistory, loaded: LoadedHistory, *, keep: int, watched: int, watched_days: int, searches: int
) -> Applied:
    """Merge what a log tells of a user into the history; `keep` and `searches` as in apply_watch and apply_search."""
    new = _unknown(history, loaded)  # in front of those of the same time: what was let go for them stays away
    kept, gone = newest(tuple(sorted((*new, *history.watches), key=_event_ms)), keep)
    limits = {"newest_ms": kept[-1].event_ms if kept else loaded.event_ms, "keep": watched, "days": watched_days}
    seen, ours = history.seen, {watch.event_id for watch in history.watches}
    older = since(loaded.seen, history.since_ms)
    if older or gone:
        older = remember(older, (watch for watch in gone if watch.event_id not in ours), **limits)
        seen = merge(seen, older, **limits)
        seen = remember(seen, (watch for watch in gone if watch.event_id in ours), **limits)
    newer = replace(
        history,
        watches=kept if new else history.watches,
        searches=_searches(history, loaded, searches),
        context=history.context or loaded.context,
        seen=seen,
    )
    return Applied(history, Outcome.DUPLICATE) if newer == history else Applied(newer, Outcome.KEPT)


def _unknown(history: UserHistory, loaded: LoadedHistory) -> list[Watch]:
    """The watches that the history does not hold: a row is known by item and time."""
    known = {(watch.item_id, watch.event_ms) for watch in history.watches}
    return [
        watch
        for watch in loaded.watches
        if watch.event_ms > history.since_ms and (watch.item_id, watch.event_ms) not in known
    ]


def _searches(history: UserHistory, loaded: LoadedHistory, keep: int) -> tuple[Search, ...]:
    known = {(search.query, search.event_ms) for search in history.searches}
    new = [
        search
        for search in loaded.searches
        if search.event_ms > history.since_ms and (search.query, search.event_ms) not in known
    ]
    return tuple(sorted((*history.searches, *new), key=_event_ms))[-keep:] if new else history.searches
