"""A system that was working with three partitions goes on with five: what its users had done stays known, counted once,
and what was not read yet is read by who owns it now."""

from __future__ import annotations

import json
import uuid
from collections import Counter, defaultdict
from typing import Any

import pytest

from infra.local.broker import Broker
from infra.platform.settings import Join, Settings
from streams import topics
from streams.history.rebuild_histories import RebuildRefused, read_histories
from streams.join.app import read_statistics
from streams.messages import Impression, RankingExample, Shown, TrainingExample, UserHistory, decode, encode
from streams.partitions.raise_partitions import raise_partitions
from streams.topics import partition_of
from streams.trending.app import read_published
from tests.harness.crash.replay import read_all
from tests.harness.needs import require_kafka
from tests.harness.system import Cluster, own_settings, running, wait_until, with_section
from tests.harness.traffic import Traffic, now_ms
from tests.unit.infra.command import commands

BEFORE, AFTER = 3, 5
WORKERS = ["history", "join", "trending"]
WINDOW_MS = 8_000
USERS = [f"user-{number}" for number in range(12)]
MOVED = [user for user in USERS if partition_of(user, BEFORE) != partition_of(user, AFTER)]
PATIENCE_S = 60.0
SOURCES = {
    "history": (topics.WATCH_EVENTS, topics.SEARCH_EVENTS, topics.IMPRESSIONS),
    "join": (topics.WATCH_EVENTS, topics.IMPRESSIONS),
    "trending": (topics.WATCH_EVENTS,),
}


class Viewers:
    """What the users do, and what of it must be known in the end."""

    def __init__(self) -> None:
        self.watched: dict[str, list[str]] = defaultdict(list)  # event ids by user, in the order of their times
        self.lists: dict[str, Impression] = {}  # by request
        self._clock_ms = now_ms() - 100_000

    def show(self, settings: Settings, items: str, at_ms: int) -> dict[str, str]:
        """A list to each user; the request ids."""
        traffic, requests = Traffic(settings.kafka), {}
        for user in USERS:
            shown = tuple(Shown(item, place, "retrieval") for place, item in enumerate(items, 1))
            impression = Impression(uuid.uuid4().hex, user, at_ms, "server", "v1", shown)
            traffic.send_later(topics.IMPRESSIONS, user, encode(impression))
            self.lists[impression.request_id], requests[user] = impression, impression.request_id
        traffic.flush()
        traffic.close()
        return requests

    def watch(self, settings: Settings, item: str, requests: dict[str, str] | None = None, **how: Any) -> None:
        traffic, self._clock_ms = Traffic(settings.kafka), self._clock_ms + 1000
        for user in USERS:
            request_id = None if requests is None else requests[user]
            at_ms = self._clock_ms if requests is None else self.lists[requests[user]].at_ms
            event = traffic.watch(user, item, at_ms, request_id=request_id, **how)
            self.watched[user].append(event.event_id)
        traffic.close()


def wait_until_read(settings: Settings) -> None:
    with Cluster(settings.kafka) as cluster:
        wait_until(
            lambda: not any(cluster.behind(group, name) for group, names in SOURCES.items() for name in names),
            "all is read",
            PATIENCE_S,
            0.2,
        )


def example_of(settings: Settings, request_id: str) -> list[RankingExample]:
    """All examples of a request, oldest revision first."""
    found = [decode(RankingExample, record.value) for record in read_all(settings, topics.RANKING_EXAMPLES)]
    return sorted((each for each in found if each.impression.request_id == request_id), key=lambda each: each.revision)


def closed(settings: Settings) -> float:
    """How many shown items are counted in the statistics, of all partitions."""
    rows = (row for rows in read_statistics(settings.kafka).values() for row in rows)
    return round(sum(row.impressions for row in rows if row.scope == "all"), 3)


def test_a_system_goes_on_with_more_partitions(broker: Broker, tmp_path, monkeypatch, capsys):
    require_kafka(broker.kind, "noida makes no more partitions")
    join = Join(window_s=WINDOW_MS / 1000, grace_s=600, early_s=600, publish_s=0.2, half_life_h=1e9)
    few = own_settings(broker.bootstrap, tmp_path, kafka={"partitions": BEFORE, "session_timeout_s": 6.0}, join=join)
    many, viewers = with_section(few, "kafka", partitions=AFTER), Viewers()
    assert {partition_of(user, BEFORE) for user in MOVED} == set(range(BEFORE))

    with running(few, WORKERS):
        viewers.watch(few, "before")
        over = viewers.show(few, "ab", now_ms() - WINDOW_MS)
        viewers.watch(few, "a", over)
        wait_until_read(few)
        wait_until(lambda: closed(few) == 2 * len(USERS), "the first lists are counted", PATIENCE_S, 0.2)
        still_open = viewers.show(few, "cd", now_ms() + 2000)
        wait_until_read(few)
        with pytest.raises(RebuildRefused, match=r"running: 1 history, 1 join, 1 trending; .* stop history"):
            raise_partitions(many)
    viewers.watch(few, "not read yet")  # on partitions of before

    nextwatch = commands(monkeypatch, capsys, settings=many)
    refused = nextwatch("worker", "history")
    assert refused.code == 2 and "kafka.partitions is 5: set it to 3, or stop history" in refused.err
    done = nextwatch("rebuild", "partitions", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    states = {each["topic"]: each["moved"] for each in report["topics"] if each["moved"]}
    assert (report["before"], report["after"]) == (BEFORE, AFTER) and states.keys() == {
        topics.USER_HISTORIES,
        topics.JOIN_STATE,
    }
    assert "nothing to raise" in nextwatch("rebuild", "partitions").out

    viewers.watch(many, "after")
    viewers.watch(many, "d", still_open)
    viewers.watch(many, "b", over)  # late: a correction
    with running(many, WORKERS):
        wait_until_read(many)
        wait_until(lambda: closed(many) >= 4 * len(USERS), "all lists are counted", PATIENCE_S, 0.2)
        wait_until_read(many)

    check_histories(many, viewers)
    check_examples(many, viewers, over, [60.0, 60.0])
    check_examples(many, viewers, still_open, [0.0, 60.0])
    assert closed(many) == 4 * len(USERS), "each list once"
    totals = [each.totals[-1] for each in read_published(many.kafka) if each.scope == "global"]
    assert round(sum(totals), 3) == sum(map(len, viewers.watched.values())), "each watch is trending once"
    assert not read_all(many, topics.DEAD_LETTERS)


def check_histories(settings: Settings, viewers: Viewers) -> None:
    """Each watch is in its user's one history, and has made one example."""
    found: dict[str, list[str]] = {}
    for number in range(AFTER):
        for user, value in read_histories(settings.kafka, number).items():
            assert number == partition_of(user, AFTER) and user not in found
            found[user] = [watch.event_id for watch in decode(UserHistory, value).watches]
    assert {user: Counter(each) for user, each in found.items()} == {
        user: Counter(each) for user, each in viewers.watched.items()
    }
    records = read_all(settings, topics.TRAINING_EXAMPLES)
    learnt = Counter((each.user_id, each.item_id) for each in (decode(TrainingExample, r.value) for r in records))
    assert set(learnt.values()) == {1} and learnt.total() == sum(map(len, viewers.watched.values()))


def check_examples(settings: Settings, viewers: Viewers, requests: dict[str, str], seconds: list[float]) -> None:
    """Each list has one example that holds, which has all watches."""
    for user, request_id in requests.items():
        examples = example_of(settings, request_id)
        assert len({(each.partition, each.offset) for each in examples}) == 1, user
        assert examples[0].impression == viewers.lists[request_id]
        assert [each.watched_s for each in examples[-1].outcomes] == seconds, user
