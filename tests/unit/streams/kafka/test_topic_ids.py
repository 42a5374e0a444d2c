"""Topics whose offsets are remembered: who notices that one was deleted and made again."""

import asyncio
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from indexer import rollout
from infra.local.broker import Broker
from infra.operate.doctor import diagnose
from infra.platform.settings import Settings
from streams import topics
from streams.kafka import faust_app
from streams.kafka.faust_app import see_that_topics_stay
from streams.kafka.topic_ids import (
    RIVAL_TRAINER,
    SOURCES,
    STATES,
    TRAINER,
    TopicReplaced,
    changes_of,
    check_topic_ids,
    line_of,
    read_known_ids,
    remember_ids,
    replaced,
    require_same_topics,
    topic_ids,
)
from streams.messages import SourceTopics
from tests.harness.needs import require_kafka
from tests.harness.system import wait_until

KNOWN = {topics.USER_HISTORIES: "table", topics.WATCH_EVENTS: "w1", topics.SEARCH_EVENTS: "s1"}


@pytest.mark.parametrize(
    ("present", "changed"),
    [
        (KNOWN, []),
        (KNOWN | {topics.WATCH_EVENTS: "w2"}, [topics.WATCH_EVENTS]),
        (KNOWN | {topics.IMPRESSIONS: "i1"}, []),
        (KNOWN | {topics.WATCH_EVENTS: "w2", topics.USER_HISTORIES: "another"}, []),
        ({}, []),
    ],
    ids=["the same", "another", "one that was not known", "the state is another too", "a broker that tells none"],
)
def test_a_source_is_replaced_when_its_id_is_another_and_the_state_is_the_same(present, changed):
    assert replaced("history", KNOWN, present) == changed


def test_what_workers_remember_changes_nothing_of_the_rollout():
    before = rollout.Releases()
    assert rollout.hear(before, SourceTopics("history", KNOWN), 1) is before


@pytest.fixture
def own(broker: Broker, with_topics: Settings) -> Settings:
    """A broker that tells the ids of topics, with ours."""
    require_kafka(broker.kind, "noida tells no topic ids")
    return with_topics


def make_again(settings: Settings, *names: str) -> None:
    """Delete topics and make them again."""
    full = [settings.kafka.topic_prefix + name for name in names]
    with topics.open_admin(settings.kafka) as admin:
        admin.delete_topics(full)
        wait_until(lambda: not set(full) & set(admin.list_topics()), "the topics are gone", 30, 0.1)
    assert topics.create_topics(settings.kafka) == full


@pytest.mark.parametrize(("worker", "topic"), [("join", topics.IMPRESSIONS), ("trainer", topics.TRAINING_EXAMPLES)])
def test_a_topic_that_was_made_again_ends_the_start_until_somebody_has_acted(own, worker, topic):
    require_same_topics(own.kafka, worker)
    require_same_topics(own.kafka, worker)
    known = read_known_ids(own.kafka)
    assert known[worker].keys() == {STATES[worker], *SOURCES[worker]} and not check_topic_ids(own.kafka)
    make_again(own, topic)
    with pytest.raises(TopicReplaced, match=f"^{topic}: .* `nextwatch (rebuild offsets|train)"):
        require_same_topics(own.kafka, worker)
    assert read_known_ids(own.kafka) == known, "who has only looked remembers nothing else"
    assert [line.partition(":")[0] for line in check_topic_ids(own.kafka)] == [topic]
    found = {each.what: each.way_out for each in diagnose(own, lambda: own)}
    assert "`nextwatch " in found["topic"] and not found["topics"]
    remember_ids(own.kafka, worker)
    require_same_topics(own.kafka, worker)


def test_what_is_remembered_of_a_release_beside_the_live_one_is_no_fault_of_a_system_whose_experiment_is_over(own):
    remember_ids(own.kafka, RIVAL_TRAINER)
    make_again(own, topics.WATCH_EVENTS, topics.TRAINING_EXAMPLES)
    remember_ids(own.kafka, TRAINER)  # it has a new release, and goes on
    assert changes_of(own.kafka, RIVAL_TRAINER).keys() == {topics.TRAINING_EXAMPLES, topics.WATCH_EVENTS}
    assert not [line for line in check_topic_ids(own.kafka) if line.startswith(topics.TRAINING_EXAMPLES)]
    remember_ids(own.kafka, RIVAL_TRAINER)
    assert not changes_of(own.kafka, RIVAL_TRAINER)


def test_a_state_that_was_made_again_with_its_sources_remembers_nothing(own):
    require_same_topics(own.kafka, "trending")
    make_again(own, topics.WATCH_EVENTS, topics.TRENDING)
    require_same_topics(own.kafka, "trending")
    assert read_known_ids(own.kafka)["trending"] == topic_ids(own.kafka, [topics.WATCH_EVENTS, topics.TRENDING])


def test_a_worker_that_runs_leaves_when_a_topic_of_its_is_another(own, monkeypatch):
    monkeypatch.setattr(faust_app, "IDS_EVERY_S", 0.1)
    app: Any = SimpleNamespace(should_stop=False)

    async def run() -> None:
        seen = asyncio.ensure_future(see_that_topics_stay(app, own.kafka, (topics.WATCH_EVENTS, topics.ITEMS)))
        await asyncio.sleep(0.5)
        assert not seen.done()
        await asyncio.get_running_loop().run_in_executor(None, partial(make_again, own, topics.WATCH_EVENTS))
        with pytest.raises(TopicReplaced, match=topics.WATCH_EVENTS):
            await asyncio.wait_for(seen, 10)

    asyncio.run(run())


def test_the_way_out_for_a_release_beside_the_live_one_ends_its_experiment_and_announces_nothing():
    line = line_of(RIVAL_TRAINER, topics.TRAINING_EXAMPLES)
    stop, train = "`nextwatch experiment stop`", "`nextwatch train --from-topics --no-announce`"
    assert stop in line and train in line and line.index(stop) < line.index(train)
