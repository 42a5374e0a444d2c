"""A user's state in another partition than before: the same, less what speaks of the old partition. Pure.

- Offsets: an event at a small offset of the new partition would pass for handled. What is read a second time is known
  by its event or request id.
- The identity of a ranking example, by which a correction takes the place of what it corrects, is where the impression
  was read. It is written down, since it is not the user's partition any more.
- The statistics of the new partition take what was due at or before their watermark for counted. What has yet to be
  counted of the user is due after it.
"""

from __future__ import annotations

from msgspec.structs import replace

from streams.history.rebuild_histories import without_offsets as history_without_offsets
from streams.join.attribution import Rules
from streams.join.rules import due_ms
from streams.messages import JoinState, OpenImpression, UserHistory
from streams.replaced.take_out_offsets import without_offsets
from streams.topics import IMPRESSIONS, WATCH_EVENTS


def moved_history(history: UserHistory) -> UserHistory | None:
    """The history in another partition; None where nothing is left of it."""
    history = history_without_offsets(history)
    return None if replace(history, since_ms=0) == UserHistory(history.user_id) else history


def moved_state(state: JoinState, before: int, closed_ms: int, rules: Rules) -> JoinState | None:
    """The state of a join that comes from the partition `before` to one whose windows are closed up to `closed_ms`;
    None where nothing is left of it but offsets."""
    if due_ms(state, rules) is None:
        return None
    impressions = tuple(_moved(each, before, closed_ms, rules) for each in state.impressions)
    return replace(without_offsets(state, (WATCH_EVENTS, IMPRESSIONS)), impressions=impressions)


def _moved(each: OpenImpression, before: int, closed_ms: int, rules: Rules) -> OpenImpression:
    counted_after_ms = 0 if each.revision < 0 else rules.grace_ms
    closes_ms = max(each.closes_ms, closed_ms + 1 - counted_after_ms)
    return replace(each, partition=before if each.partition < 0 else each.partition, closes_ms=closes_ms)
