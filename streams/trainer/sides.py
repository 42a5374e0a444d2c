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
    is_shown: bool  # on the page, whose metrics speak of the live one

    @property
    def metrics(self) -> Any:
        """On which it tells of its learning."""
        return metrics if self.is_shown else metrics.UNSHOWN


LIVE = Side(topics.ITEM_VECTORS, TRAINER, is_shown=True)
RIVAL = Side(topics.RIVAL_VECTORS, RIVAL_TRAINER, is_shown=False)
