"""What the trainer follows is followed whatever the broker does when it begins."""

from __future__ import annotations

from typing import Any

import pytest
from kafka.errors import KafkaConnectionError

from infra.settings import Kafka
from streams import known as module
from streams.known import Known


class Follower:
    """Refuses to be built while the broker is away; then there is nothing to read."""

    away = 2
    caught_up = True

    def __init__(self, *_: Any) -> None:
        if Follower.away:
            Follower.away -= 1
            raise KafkaConnectionError

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def poll(self, wait_s: float) -> list[Any]:
        return []


def test_a_broker_that_is_away_when_reading_begins_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "TopicFollower", Follower)
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    known = Known(Kafka())
    known.start()
    try:
        assert known.caught_up.wait(10), "its thread has not ended"
        assert Follower.away == 0
    finally:
        known.stop()
