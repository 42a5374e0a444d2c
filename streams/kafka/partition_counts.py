"""How many partitions the users' states lie in, looked at before a process starts, and before it works for its group:
with another `kafka.partitions` it would look for a user's state where it is not, and begin every user anew. Nor may one
start while the partitions are being raised, and half of the states are on their way (streams/partitions)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from infra.platform.settings import Kafka
from streams import topics
from streams.kafka.follow import TopicMissing, read_to_end
from streams.kafka.requirements import TopicUnfit
from streams.messages import PartitionsRaised, Refused, Release, decode
from streams.topics import RAISE

STATES = (topics.USER_HISTORIES, topics.JOIN_STATE)
RAISE_KEY = str(PartitionsRaised.__struct_config__.tag).encode()  # on `releases`


class PartitionsWatch:
    """Looks again where users' states lie, before a process does what depends on it: minutes may have gone by since it
    started, in which partitions were raised."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka, self.is_due = kafka, True

    def look_again(self) -> None:
        """Look at the next `look`."""
        self.is_due = True

    def look(self) -> None:
        """Return when states lie where we look for them. Raises TopicUnfit, KafkaError."""
        if self.is_due:
            self.is_due = False
            try:
                require_partitions(self._kafka)
            except BaseException:
                self.is_due = True
                raise


def require_partitions(kafka: Kafka) -> None:
    """Return when states lie where we look for them. Raises TopicUnfit, KafkaError."""
    problems = [*_other_counts(kafka), *check_raise(kafka)]
    if problems:
        raise TopicUnfit("\n".join(problems))


def check_raise(kafka: Kafka) -> list[str]:
    """Return what no process starts with: partitions that are being raised. Raises KafkaError."""
    try:
        raised = read_raise(kafka)
    except TopicMissing:
        return []  # where nothing is made there is nothing to raise
    if raised is None or raised.is_done:
        return []
    return [
        f"the partitions are being raised from {raised.before} to {raised.after}, and users' states are on their way: "
        "run `nextwatch rebuild partitions` to its end"
    ]


def read_raise(kafka: Kafka) -> PartitionsRaised | None:
    """Return what is known of the last raise. Raises TopicMissing, KafkaError."""
    newest = None
    for record in read_to_end(kafka, topics.RELEASES):
        with suppress(Refused):
            message: Release = decode(Release, record.value)  # type: ignore[arg-type]
            newest = message if isinstance(message, PartitionsRaised) else newest
    return newest


def _other_counts(kafka: Kafka) -> Iterator[str]:
    for name, has in topics.partition_counts(kafka, STATES).items():
        if has != kafka.partitions:
            raised = f", or {RAISE}" if has < kafka.partitions else ""
            yield (
                f"{kafka.topic_prefix}{name} has {has} partitions, and kafka.partitions is {kafka.partitions}: set it "
                f"to {has}{raised}"
            )
