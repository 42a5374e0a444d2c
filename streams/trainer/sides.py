"""The two releases that a trainer may learn at once: the live one, and the one that an experiment serves beside it."""

from __future__ import annotations

from typing import Any, NamedTuple

from infra.platform import metrics
from streams import topics
from streams.kafka.topic_ids import RIVAL_TRAINER, TRAINER


class Side(NamedTuple):
    """What differs between them."""

    topic: str  # of its rows, and of how far they have learnt
    worker: str  # under which the ids of topics are remembered (streams/kafka/topic_ids.py)
    metrics: Any  # on which it tells of its learning: those of the page speak of the live one


LIVE = Side(topics.ITEM_VECTORS, TRAINER, metrics)
RIVAL = Side(topics.RIVAL_VECTORS, RIVAL_TRAINER, metrics.UNSHOWN)
