"""A server that was still reading its topics while partitions were raised: it does not join with states of before."""

from types import SimpleNamespace
from typing import Any

import pytest
from kafka.errors import KafkaConnectionError

from infra.platform.settings import Kafka, Settings
from serving.worker.worker import Worker
from streams import topics
from streams.kafka import partition_counts
from streams.kafka.partition_counts import PartitionsWatch
from streams.kafka.releases import key_of
from streams.kafka.requirements import TopicUnfit
from streams.messages import PartitionsRaised


def worker_with(done: list[str]) -> Any:
    """A worker that is primed, and notes in `done` what it does."""
    worker: Any = object.__new__(Worker)
    worker._settings = Settings(kafka=Kafka(topic_prefix="x-"))
    worker._partitions = SimpleNamespace(take_over=lambda now_ms: False, has_joined=True)
    worker._partitions_watch = PartitionsWatch(worker._settings.kafka)
    worker._releases = SimpleNamespace(apply_release=lambda value: None)
    worker._experiments = SimpleNamespace(hear=lambda key, value: None)
    worker._apply = lambda: None
    for name in ("_finish", "_report", "leave"):
        setattr(worker, name, lambda name=name: done.append(name))
    worker._read_requests = lambda: done.append("read")
    return worker


def raised() -> Any:
    key = key_of(PartitionsRaised(3, 5, 1)).encode()
    return SimpleNamespace(topic="x-" + topics.RELEASES, key=key, value=b"")


def test_a_server_looks_where_states_lie_before_it_joins_and_when_partitions_are_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    found: list[Exception] = [KafkaConnectionError()]

    def require(kafka: Kafka) -> None:
        done.append("looked")
        if found:
            raise found.pop()

    monkeypatch.setattr(partition_counts, "require_partitions", require)
    worker = worker_with(done)
    worker.step()
    assert done == ["looked", "_finish", "_report"], "nothing is read while nobody can tell"
    done.clear()
    worker.step()
    worker.step()
    assert done == ["looked", "read", "read"]
    done.clear()
    worker._apply_shared(raised())
    found.append(TopicUnfit("being raised"))
    with pytest.raises(TopicUnfit):
        worker.step()
    assert done == ["looked", "leave"]
