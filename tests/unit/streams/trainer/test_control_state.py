"""What the trainer follows is followed whatever the broker does when it begins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kafka.errors import KafkaConnectionError

from infra.platform.settings import Model, Settings
from streams import topics
from streams.erased_users import ForgetSecretWrong
from streams.messages import Item, encode
from streams.trainer import control_state as module
from streams.trainer.control_state import ControlState
from tests.unit.streams.erasure.test_erased_users import record_of


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
    known = ControlState(Settings())
    known.start()
    try:
        assert known.caught_up.wait(10), "its thread has not ended"
        assert Follower.away == 0
    finally:
        known.stop()


def test_what_items_say_is_followed_until_they_are_taken_down(monkeypatch: pytest.MonkeyPatch):
    said = [Item("a", vector=(0.0, 2.0), description="some words"), Item("b", vector=(1.0,)), Item("c")]
    records = [SimpleNamespace(topic=topics.ITEMS, key=item.item_id.encode(), value=encode(item)) for item in said]
    records.append(SimpleNamespace(topic=topics.ITEMS, key=b"c", value=b'{"item_id": "c", "vector": [1, "x"]}'))
    records.append(SimpleNamespace(topic=topics.ITEMS, key=b"b", value=None))
    monkeypatch.setattr(module, "TopicFollower", Follower)
    monkeypatch.setattr(Follower, "away", 0)
    monkeypatch.setattr(Follower, "poll", lambda self, wait_s: [records.pop(0)] if records else [])
    known = ControlState(Settings(model=Model(content=True)))
    monkeypatch.setattr(Follower, "caught_up", property(lambda self: not records))
    known.start()
    try:
        assert known.caught_up.wait(10)
        assert {*known.items} == {"a", "c"} and "b" not in known.items
        assert known.items["a"].vector.tolist() == [0, 1] and len(known.items["a"].words) == 2
        assert not len(known.items["c"].vector), "an entry that cannot be read changes nothing"
    finally:
        known.stop()


def test_another_secret_than_that_of_before_is_said_to_who_asks(monkeypatch: pytest.MonkeyPatch):
    key, value = record_of("u", secret="of before")
    record = SimpleNamespace(topic=topics.FORGOTTEN, key=key, value=value, offset=0)
    monkeypatch.setattr(module, "TopicFollower", Follower)
    monkeypatch.setattr(Follower, "away", 0)
    monkeypatch.setattr(Follower, "poll", lambda self, wait_s: [record])
    known = ControlState(Settings())
    known.check()
    known.start()
    assert known.caught_up.wait(10)
    with pytest.raises(ForgetSecretWrong):
        known.check()
