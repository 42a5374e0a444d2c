"""The rows of a log as watches: the id that a row has whichever way it comes, and which watches are the same one.

A log is loaded, replayed and sent live by whoever wrote it, each with other event ids. What these ways have in common
is user, item and time, by which a log knows its own duplicates too. Of two live watches nothing is presumed: they are
the same by their event id alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from hashlib import blake2b
from operator import attrgetter

from streams.messages import Watch, WatchEvent

ROW = "log-"  # what the event ids of rows begin with
_event_ms, _event_id = map(attrgetter, ("event_ms", "event_id"))


def row_id(user_id: str, item_id: str, event_ms: int) -> str:
    """The same for the same row, whichever file and place it stands in."""
    content = f"{len(user_id)} {user_id} {item_id} {event_ms}".encode()
    return ROW + blake2b(content, digest_size=12).hexdigest()


def is_row(event_id: str) -> bool:
    return event_id.startswith(ROW)


def is_known(watches: Sequence[Watch], event: WatchEvent) -> bool:
    """Return whether a watch is among these (in order of time) already: by its event id, or, where one of the two is a
    log's row, by item and time."""
    if event.event_id in map(_event_id, watches):
        return True
    for at in range(bisect_left(watches, event.event_ms, key=_event_ms), len(watches)):
        watch = watches[at]
        if watch.event_ms != event.event_ms:
            return False
        if watch.item_id == event.item_id and (is_row(watch.event_id) or is_row(event.event_id)):
            return True
    return False
