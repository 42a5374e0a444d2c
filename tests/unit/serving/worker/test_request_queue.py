from types import SimpleNamespace
from typing import Any

from kafka import TopicPartition
from kafka.errors import IllegalStateError

from serving.worker.request_queue import RequestQueue

TOPIC = "recommend-requests"


class Ends(dict[TopicPartition, int | None]):
    """A consumer that knows the ends of its own partitions."""

    def highwater(self, place: TopicPartition) -> int | None:
        if place not in self:
            raise IllegalStateError(f"{place} is not assigned")
        return self[place]


def record(partition: int, offset: int) -> Any:
    return SimpleNamespace(topic=TOPIC, partition=partition, offset=offset)


def test_what_waits_is_what_is_queued_and_what_lies_behind_it() -> None:
    ends = Ends({TopicPartition(TOPIC, 0): 100, TopicPartition(TOPIC, 1): None, TopicPartition(TOPIC, 2): 8})
    queue = RequestQueue(ends)
    queue.add([record(0, 10), record(0, 11), record(1, 5), record(2, 7), record(3, 1)], 0.0)
    assert queue.waiting() == 5 + (100 - 12)
    queue.take(4)
    assert queue.waiting() == 1 + (100 - 12), "of the last partition, which is another's by now, nothing is known"
    queue.give_back()
    assert queue.waiting() == 0
