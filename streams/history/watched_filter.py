"""The items that a user has watched beyond the watches that the history keeps: a few bytes for each item, so that
nothing is recommended twice to those who watch much.

An entry is a hash of the item's id and the day of its newest watch that left the history, or that came too late for
it: six bytes, oldest day first, each item once. The newest `keep` stay; of one day, the last to be remembered. What
lies `days` before the user's newest watch is dropped when something is remembered, and what lies as far behind the
present is not counted when it is read, so that an item may come back. All of it follows from the events and their own
times: the same events give the same bytes.

The hash may err in one direction only: an item that was watched is always found, one that was not is taken for watched
with probability 1 - (1 - 2^-32)^n for n entries: 500 of them hide 1 of 8.6 million candidates, or one candidate in one
of 17,000 requests of 500. CRC-32 is no defence against ids that were made to collide; all they win is that one hides
the other from those who have watched it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from struct import Struct
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from streams.messages import Watch, WatchEvent

DAY_MS = 86_400_000
_ENTRY = np.dtype([("code", "<u4"), ("day", "<u2")])
_PACKED = Struct("<IH")  # the same
_SIZE = _PACKED.size
_LAST_DAY = 0xFFFF  # in the year 2149


def remember(watched: bytes, gone: Iterable[Watch | WatchEvent], *, newest_ms: int, keep: int, days: int) -> bytes:
    """`watched` and the watches that are `gone` from the history of a user whose newest watch is at `newest_ms`."""
    for watch in gone:
        watched = _add(watched, crc32(watch.item_id.encode()), _day_of(watch.event_ms))
    return _newest(watched, newest_ms=newest_ms, keep=keep, days=days)


def merge(watched: bytes, older: bytes, *, newest_ms: int, keep: int, days: int) -> bytes:
    """`watched` and what `older` holds beside it, which of one day goes first. To merge the same again changes
    nothing."""
    for code, day in _PACKED.iter_unpack(watched[: _count(watched) * _SIZE]):
        older = _add(older, code, day)
    return _newest(older, newest_ms=newest_ms, keep=keep, days=days)


def pack(codes: NDArray[np.uint32], event_ms: NDArray[np.int64], *, newest_ms: int, keep: int, days: int) -> bytes:
    """Return what `remember` makes of watches in order of time: of items with these codes [N]."""
    _, from_end = np.unique(codes[::-1], return_index=True)
    last = np.sort(len(codes) - 1 - from_end)
    entries = np.empty(len(last), _ENTRY)
    entries["code"], entries["day"] = codes[last], np.minimum(event_ms[last] // DAY_MS, _LAST_DAY)
    return _newest(entries.tobytes(), newest_ms=newest_ms, keep=keep, days=days)


def since(watched: bytes, at_ms: int) -> bytes:
    """The entries of later days than that of `at_ms`; all of them for 0."""
    first = bisect_right(range(_count(watched)), _day_of(at_ms), key=lambda at: _day_at(watched, at)) if at_ms else 0
    return watched[first * _SIZE : _count(watched) * _SIZE]


def _newest(watched: bytes, *, newest_ms: int, keep: int, days: int) -> bytes:
    first, oldest_day = max(0, _count(watched) - keep), _day_of(newest_ms) - days
    while first < _count(watched) and _day_at(watched, first) < oldest_day:
        first += 1
    return watched[first * _SIZE :] if first else watched


def codes_of(item_ids: Sequence[str]) -> NDArray[np.uint32]:
    """Return what `watched_mask` knows items by: [C]. Always the same for an id, so they can be kept beside it."""
    return np.array([crc32(item_id.encode()) for item_id in item_ids], np.uint32)


def watched_mask(watched: bytes, codes: NDArray[np.uint32], *, now_ms: int, days: int) -> NDArray[np.bool_]:
    """Return for items with these codes [C] whether they were watched within `days` and have left the history: [C].

    An item's day is that of its watch: what is counted for a moment longer than `days` is less than a day.
    """
    entries = np.frombuffer(watched, _ENTRY, count=_count(watched))  # [keep]
    known = np.sort(entries["code"][np.searchsorted(entries["day"], _day_of(now_ms) - days) :])
    if not len(known):
        return np.zeros(len(codes), np.bool_)
    found: NDArray[np.bool_] = known[np.searchsorted(known, codes) % len(known)] == codes
    return found


def _add(watched: bytes, code: int, day: int) -> bytes:
    """An item at its newest day, behind the others of that day."""
    at = _find(watched, code)
    if at >= 0:
        if _day_at(watched, at) >= day:
            return watched
        watched = watched[: at * _SIZE] + watched[(at + 1) * _SIZE :]
    entry = _PACKED.pack(code, day)
    if not watched or _day_at(watched, _count(watched) - 1) <= day:  # as it nearly always is
        return watched + entry
    place = bisect_right(range(_count(watched)), day, key=lambda at: _day_at(watched, at)) * _SIZE
    return watched[:place] + entry + watched[place:]


def _find(watched: bytes, code: int) -> int:
    """The entry of a code; -1 when there is none."""
    needle = code.to_bytes(4, "little")
    at = watched.find(needle)
    while at >= 0 and at % _SIZE:
        at = watched.find(needle, at + 1)  # it was found astride two entries
    return at // _SIZE if at >= 0 else -1


def _day_at(watched: bytes, at: int) -> int:
    return watched[at * _SIZE + 4] | watched[at * _SIZE + 5] << 8


def _day_of(time_ms: int) -> int:
    return min(time_ms // DAY_MS, _LAST_DAY)


def _count(watched: bytes) -> int:
    return len(watched) // _SIZE
