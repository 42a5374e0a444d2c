"""All processes, a real broker, and thousands of messages that cannot be used with good ones between them: everybody
lives, each bad one is accounted for once, and the good ones are as if the others had not been."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest

from indexer.collection import Index
from infra.platform.kafka_clients import client_options
from nextwatch_client import RecommendClient, RecommendReply, RecommendRequest
from streams import topics
from streams.dead_letters.box import Place, read_box
from streams.dead_letters.retry import retry
from streams.messages import (
    Impression,
    Item,
    JoinState,
    Refused,
    SearchEvent,
    Shown,
    SignalEvent,
    WatchEvent,
    decode,
    encode,
)
from tests.harness.flood import PASSED_OVER, SET_ASIDE, Account, allow_any_time, pour, pour_refused_requests
from tests.harness.needs import KAFKA, needs
from tests.harness.service import Service, Size, running_service
from tests.harness.system import read_metrics, wait_until
from tests.harness.traffic import Histories, Reader, now_ms

pytestmark = needs(KAFKA, "what brokers take is only known of Apache Kafka")

WORKERS = ("history", "join", "trending", "trainer")
ALL = ("indexer", "serving", *WORKERS)
ROUNDS = 2
MANY, FEW, LARGE_EVERY = 400, 100, 300  # bad messages a round, for topics that are set aside and passed over
WAIT_S = 90.0


@dataclass
class Outcome:
    """What was sent, and what runs."""

    service: Service
    account: Account
    client: RecommendClient
    histories: Histories
    join_states: Reader
    pids: dict[str, int]
    bad: list[tuple[str, int, int]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    replies: list[RecommendReply] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    catalogue: float = 0.0
    vector: Any = None

    def live_good(self, number: int) -> None:
        """What viewers and editors do in a round."""
        traffic, known = self.service.traffic, list(self.service.releases.items)
        for at in range(5):
            user = f"good-{number}-{at}"
            self.users.append(user)
            traffic.send(
                topics.SEARCH_EVENTS, user, encode(SearchEvent(uuid.uuid4().hex, user, f"query {user}", now_ms()))
            )
            shown = (Shown(known[0], 1, "mine"), Shown(known[9], 2, "mine"))
            traffic.send(
                topics.IMPRESSIONS, user, encode(Impression(f"shown-{user}", user, now_ms(), "me", "v", shown))
            )
            for item in known[:3]:
                traffic.watch(user, item)
            self.items.append(f"new-{number}-{at}")
            traffic.publish(Item(self.items[-1], "new", "channel-x", duration_s=60.0))
        askers = list(self.service.releases.histories)[5 * number : 5 * number + 5]
        requests = [RecommendRequest(f"{asker}/{number}", asker, 10) for asker in askers]
        self.replies += self.client.recommend_many(requests, timeout_s=WAIT_S)

    def ready(self) -> set[str]:
        return {name for name, health in self.service.health().items() if health["ready"]}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(running_service(tmp_path_factory.mktemp("fuzz"), 1, Size(), deadline_s=WAIT_S))
        for name in WORKERS:
            service.start(name)
        service.wait_ready(*WORKERS)
        kafka = service.settings.kafka
        allow_any_time(kafka)
        client = stack.enter_context(RecommendClient(client_options(kafka)))
        parts = Account(kafka), Histories(kafka), Reader(kafka, topics.JOIN_STATE)
        for part in parts:
            stack.callback(part.close)
        account, histories, join_states = parts
        pids = {name: process.pid for name, process in service.processes.items()}
        outcome = Outcome(service, account, client, histories, join_states, pids)
        outcome.catalogue = read_metrics(service.settings, "serving")["nextwatch_catalogue_items"]
        for number in range(ROUNDS):
            for at, topic in enumerate((*SET_ASIDE, *PASSED_OVER)):
                places = pour(kafka, topic, MANY if topic in SET_ASIDE else FEW, 100 * number + at, LARGE_EVERY)
                outcome.bad += places if topic in SET_ASIDE else []
            outcome.refused += pour_refused_requests(kafka, 20)
            outcome.live_good(number)
        outcome.vector = service.releases.bundles[0].model.item_vectors()[5] + np.float32(0.5)
        item = service.releases.bundles[0].model.item_ids[5]
        row = msgspec.structs.replace(service.row(0, item, outcome.vector), epoch=1)  # the trainer's, else it is stale
        service.traffic.send(topics.ITEM_VECTORS, item, encode(row))
        account.wait_for(outcome.bad, outcome.refused)
        yield outcome


def test_every_process_lives_and_is_ready(outcome):
    wait_until(lambda: outcome.ready() == set(ALL), "all ready", WAIT_S)
    assert {name: process.poll() for name, process in outcome.service.processes.items()} == dict.fromkeys(ALL)
    assert {name: process.pid for name, process in outcome.service.processes.items()} == outcome.pids


def test_each_bad_message_is_one_dead_letter_and_no_good_one_is(outcome):
    assert len(outcome.bad) > ROUNDS * MANY * len(SET_ASIDE)
    assert MANY > LARGE_EVERY, "large ones are in it"
    assert outcome.account.unaccounted(outcome.bad) == []
    assert outcome.account.foreign(outcome.bad) == []
    box = read_box(outcome.service.settings.kafka)
    assert box.keys() == set(outcome.bad), "one letter each, also where a rebalance had it read again"


def test_what_asks_too_much_is_answered_by_an_error(outcome):
    assert set(outcome.refused) <= outcome.account.errors.keys()


def test_good_messages_between_them_are_unharmed(outcome):
    service = outcome.service
    watched = list(service.releases.items)[:3]
    for user in outcome.users:
        history = outcome.histories.of(user, lambda history: len(history.watches) == 3 and history.impressions)
        assert [watch.item_id for watch in history.watches] == watched
        assert [search.query for search in history.searches] == [f"query {user}"]
        assert [shown.request_id for shown in history.impressions] == [f"shown-{user}"]
        state = outcome.join_states.until(lambda _, user=user: joined(outcome, user), f"the impression of {user}")
        assert [each.request_id for each in state.impressions] == [f"shown-{user}"]
    assert all(reply.error is None and reply.items for reply in outcome.replies)
    count = "nextwatch_catalogue_items"
    expected = outcome.catalogue + len(outcome.items)
    wait_until(lambda: read_metrics(service.settings, "serving")[count] == expected, "the catalogue", WAIT_S)
    bundle = service.releases.bundles[0]
    index, version, item = Index(service.settings.milvus), bundle.manifest.version, bundle.model.item_ids[5]
    wait_until(lambda: np.allclose(index.vectors(version, [item])[item][1], outcome.vector), "the vector", WAIT_S)
    index.close()


def joined(outcome: Outcome, user: str) -> JoinState | None:
    record = outcome.join_states.newest().get(user.encode())
    with contextlib.suppress(Refused):
        state = decode(JoinState, record.value, max_bytes=4_000_000) if record is not None else None
        return state if state is not None and state.impressions and state.impressions[0].watches else None
    return None


def test_a_message_that_has_become_good_is_sent_again_and_counts_once_though_it_is_sent_twice(outcome):
    """Refused for a clock that was ahead, and taken when the time has come."""
    service, user = outcome.service, "ahead"
    kafka, home = service.settings.kafka, topics.partition_of("ahead", service.settings.kafka.partitions)
    ahead_ms = now_ms() + int(1000 * service.settings.history.future_s) + 4000
    item = next(iter(service.releases.items))
    messages = {
        topics.WATCH_EVENTS: WatchEvent("ahead-watch", user, item, ahead_ms, 60.0, 60.0),
        topics.SEARCH_EVENTS: SearchEvent("ahead-search", user, "ahead of time", ahead_ms),
        topics.SIGNALS: SignalEvent("ahead-signal", user, "save", ahead_ms, item),
        topics.IMPRESSIONS: Impression("ahead-shown", user, ahead_ms, "me", "v", (Shown(item, 1, "mine"),)),
    }
    places = []
    for topic, message in messages.items():
        sent = service.traffic.send(topic, user, encode(message), partition=home)
        places.append(Place(topic, sent.partition, sent.offset))
    outcome.account.wait_for(places)
    time.sleep(max(0.0, ahead_ms / 1000 - service.settings.history.future_s - time.time()))
    box = read_box(kafka)
    for again in (False, True):
        outcomes = list(retry(kafka, [box[place] for place in places], now_ms(), again=again))
        assert [each.problem for each in outcomes] == [""] * len(messages)
    outcome.histories.of(
        user, lambda history: history.watches and history.searches and history.signals and history.impressions
    )
    last = service.traffic.watch(user, item)
    found = outcome.histories.of(user, lambda history: history.watches[0].event_id == last.event_id)
    assert [watch.event_id for watch in found.watches] == [last.event_id, "ahead-watch"]
    assert [search.event_id for search in found.searches] == ["ahead-search"]
    assert [signal.event_id for signal in found.signals] == ["ahead-signal"]
    assert [shown.request_id for shown in found.impressions] == ["ahead-shown"]
    request = RecommendRequest("asked-twice", user, 5)
    first, second = (outcome.client.recommend_many([request], timeout_s=WAIT_S)[0] for _ in range(2))
    assert first.items == second.items
    assert outcome.account.foreign([*outcome.bad, *places]) == [], "none of them was refused again"


def test_workers_that_start_anew_find_their_state_among_all_of_it(outcome):
    service = outcome.service
    for name in WORKERS:
        service.processes[name].ask_to_stop()
    for name in WORKERS:
        assert service.processes[name].stop() == 0
        service.start(name)
    service.wait_ready(*WORKERS)
    user = outcome.users[0]
    service.traffic.watch(user, "one more")
    outcome.histories.of(user, lambda history: [watch.item_id for watch in history.watches][3:] == ["one more"])
    assert {name: process.poll() for name, process in service.processes.items()} == dict.fromkeys(ALL)
