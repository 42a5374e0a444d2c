"""A user's history as it stands in the topic: what `nextwatch history` shows."""

from __future__ import annotations

from infra.platform.guarded_process import ServiceError
from infra.platform.settings import Settings
from streams import topics
from streams.kafka.follow import read_to_end
from streams.messages import Refused, UserHistory, decode


def read_history(settings: Settings, user: str) -> UserHistory | None:
    """The user's newest history, read from their partition of `user-histories`; None if there is none.

    Raises ServiceError when it is damaged.
    """
    newest = None
    place = topics.partition_of(user, settings.kafka.partitions)
    for record in read_to_end(settings.kafka, topics.USER_HISTORIES, partitions=[place]):
        if record.key == user.encode():
            newest = record.value
    try:
        return None if newest is None else decode(UserHistory, newest, max_bytes=len(newest))
    except Refused as refused:
        text = f"the history is damaged ({refused}): stop the history workers, then `nextwatch rebuild histories`"
        raise ServiceError(text) from None
