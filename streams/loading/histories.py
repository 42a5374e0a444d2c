"""The histories that a log's users would have, had its rows come one by one: one message for each user.

A million rows are some ten thousands of messages, which the history worker takes in at once (streams/history/loaded.py)
instead of row by row. Of a row that is not kept only the item's hash is looked at, so a user of many rows costs little.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from infra.platform.settings import History
from models.arrays import Flags, Rows
from models.logs.log import CONTEXT_COLUMNS
from models.logs.stored_log import StoredLog
from models.logs.timeline import Timeline
from streams.history.log_rows import row_id
from streams.history.watched_filter import codes_of, pack
from streams.messages import Context, LoadedHistory, Search, Watch

Searches = Mapping[str, tuple[Search, ...]]  # the newest of each user, oldest first
NO_SEARCHES: Searches = {}


def histories_of(log: StoredLog, settings: History, searches: Searches = NO_SEARCHES) -> Iterator[LoadedHistory]:
    """Yield the history of each user of the log, and of no one else."""
    codes = codes_of(log.item_ids)
    for rows in Timeline(log.users).by_user():
        edges = np.flatnonzero(np.diff(log.users[rows])) + 1
        for own in np.split(rows, edges):
            yield _history(log, own, codes, settings, searches)


def kept(completed: Flags, keep: int) -> Flags:
    """bool [N]: of watches in order of time, the newest `keep` and the newest `keep` completed ones."""
    mask = np.zeros(len(completed), np.bool_)
    mask[max(0, len(completed) - keep) :] = True
    mask[np.flatnonzero(completed)[-keep:]] = True
    return mask


def _history(log: StoredLog, rows: Rows, codes: np.ndarray, settings: History, searches: Searches) -> LoadedHistory:
    """The history of the user of these rows, which are all of the user's, in order of time."""
    user_id, newest_ms = log.user_ids[log.users[rows[0]]], int(log.event_ms[rows[-1]])
    stay = kept(log.completed[rows], settings.watches)
    gone = rows[~stay]
    seen = pack(
        codes[log.items[gone]],
        log.event_ms[gone],
        newest_ms=newest_ms,
        keep=settings.seen,
        days=settings.seen_days,
    )
    return LoadedHistory(
        user_id,
        newest_ms,
        tuple(_watches(log, user_id, rows[stay])),
        searches.get(user_id, ()),
        _context(log, rows),
        seen,
    )


def _watches(log: StoredLog, user_id: str, rows: Rows) -> Iterator[Watch]:
    """A row that does not say for how long was watched to the least that completes it, as when it is replayed."""
    columns = (log.items[rows], log.event_ms[rows], log.watch_s[rows], log.duration_s[rows], log.completed[rows])
    for item, event_ms, watched_s, length_s, completed in zip(*(column.tolist() for column in columns), strict=True):
        duration_s = None if np.isnan(length_s) else round(length_s, 3)
        least_s = log.completed_s if duration_s is None else min(duration_s, log.completed_s)
        watch_s = least_s if np.isnan(watched_s) else round(watched_s, 3)
        item_id = log.item_ids[item]
        yield Watch(item_id, event_ms, watch_s, duration_s, completed, row_id(user_id, item_id, event_ms), -1)


def _context(log: StoredLog, rows: Rows) -> Context | None:
    """The context of the newest row that has any."""
    if not log.contexts:
        return None
    columns = {name: log.contexts[name][rows] for name in CONTEXT_COLUMNS if name in log.contexts}
    told = [values > 0 if name in log.vocabularies else ~np.isnan(values) for name, values in columns.items()]
    at = np.flatnonzero(np.logical_or.reduce(told))
    if not len(at):
        return None
    known: dict[str, str | float | bool] = {}
    for (name, values), is_told in zip(columns.items(), told, strict=True):
        if is_told[at[-1]]:
            value = values[at[-1]].item()
            known[name] = log.vocabularies[name][value] if name in log.vocabularies else value
    if "signed_in" in known:
        known["signed_in"] = float(known["signed_in"]) >= 0.5
    return Context(**known)  # type: ignore[arg-type]
