"""What the trainer follows is followed whatever the broker does when it begins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kafka.errors import KafkaConnectionError
from msgspec.structs import replace

from infra.platform.settings import Model, Settings
from streams import topics
from streams.erased_users import ForgetSecretWrong
from streams.kafka.releases import key_of
from streams.messages import Experiment, Item, Variant, encode
from streams.trainer import control_state as module
from streams.trainer.control_state import ControlState
from tests.harness.system import wait_until
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


def test_the_release_beside_the_live_one_is_that_of_the_experiment_that_runs_once_all_is_read(
    monkeypatch: pytest.MonkeyPatch,
):
    first = Experiment("first", "s", 1, (Variant("a", 0.5), Variant("b", 0.5, {"release": "v2"})), beside="v2")
    variants = (Variant("a", 0.5), Variant("b", 0.5, {"release": "v3"}))
    second = replace(first, name="second", started_ms=6, variants=variants, beside="v3")
    told = [first, replace(first, stopped_ms=5), None, second, replace(second, stopped_ms=7)]
    records = [SimpleNamespace(topic=topics.RELEASES, key=b"experiment/second", value=each) for each in told]
    for record in records:
        if record.value is not None:
            record.key, record.value = key_of(record.value).encode(), encode(record.value)
    seen: list[str] = []

    def poll(self: Follower, wait_s: float) -> list[Any]:
        seen.append(known.beside)
        return [records.pop(0)] if records else []

    monkeypatch.setattr(module, "TopicFollower", Follower)
    monkeypatch.setattr(Follower, "away", 0)
    monkeypatch.setattr(Follower, "caught_up", property(lambda self: len(records) <= 3))
    monkeypatch.setattr(Follower, "poll", poll)
    known = ControlState(Settings())
    known.start()
    try:
        wait_until(lambda: len(seen) > 5, "all of it is read", 10)
    finally:
        known.stop()
    assert seen[:6] == ["", "", "", "", "v3", ""]


def test_an_experiment_that_no_server_serves_has_nothing_learnt(monkeypatch: pytest.MonkeyPatch):
    unserved = Experiment("one", "s", 1, (Variant("a", 0.5), Variant("b", 0.5)), beside="v2")
    records = [SimpleNamespace(topic=topics.RELEASES, key=key_of(unserved).encode(), value=encode(unserved))]
    monkeypatch.setattr(module, "TopicFollower", Follower)
    monkeypatch.setattr(Follower, "away", 0)
    monkeypatch.setattr(Follower, "poll", lambda self, wait_s: [records.pop(0)] if records else [])
    monkeypatch.setattr(Follower, "caught_up", property(lambda self: not records))
    known = ControlState(Settings())
    known.start()
    try:
        assert known.caught_up.wait(10) and known.beside == ""
    finally:
        known.stop()
