"""The impression that a watch belongs to, and for how long it can.

The request id decides where the watch carries one and its list shows the item. Else, and where a player sends the id of
another list, the newest impression that shows the item and whose window holds the watch's time. A watch that belongs
nowhere was chosen by the viewer, and trains retrieval only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infra.platform.settings import Settings
from streams.messages import JoinedWatch, OpenImpression


@dataclass(frozen=True)
class Rules:
    window_ms: int
    grace_ms: int
    early_ms: int
    keep: int
    most_bytes: int  # of a user's impressions, as soon as there are two
    completed_s: float

    @classmethod
    def of(cls, settings: Settings) -> Rules:
        join = settings.join
        return cls(
            window_ms=round(1000 * join.window_s),
            grace_ms=round(1000 * join.grace_s),
            early_ms=round(1000 * join.early_s),
            keep=join.open_impressions,
            most_bytes=3 * settings.kafka.max_message_bytes,
            completed_s=settings.history.completed_s,
        )


def home_of(watch: JoinedWatch, impressions: Sequence[OpenImpression], rules: Rules) -> OpenImpression | None:
    """The impression that a watch belongs to, of those that are kept (oldest first)."""
    newest = None
    for each in impressions:
        after_ms = watch.event_ms - each.at_ms
        if watch.item_id not in each.item_ids:
            continue
        # A clock that is behind does not matter where the request id says it; a session that lasted does.
        if watch.request_id == each.request_id and after_ms <= rules.window_ms + rules.grace_ms:
            return each
        if 0 <= after_ms <= rules.window_ms:
            newest = each
    return newest
