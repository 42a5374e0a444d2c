"""What is taken down is in no reply two seconds later, whatever else is down, lost, late or started again; nor is what
the trainer has let go of retrieved. Both come back when they are put up again. What one user does not want is in none
of this user's replies after a second, until the user thinks better of it, or is forgotten."""

from __future__ import annotations

import contextlib
import itertools
import time
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from indexer.collection import Index
from infra.platform.kafka_clients import client_options
from nextwatch_client import RecommendClient, RecommendReply, RecommendRequest
from streams import topics
from streams.messages import Item, SignalEvent, encode
from tests.harness.service import Service, Size, running_service
from tests.harness.system import try_cli, wait_until
from tests.harness.traffic import WAIT_S, now_ms

EVERYTHING = 300  # more than there are items
TAKEDOWN_S = 2.0  # the promise
LOOK_S = 1.0  # so long it is looked at afterwards
SIGNAL_S = 1.0  # the promise for what a user has said
CRITIC = "critic"  # a user whose history the worker makes
TOWERS = {"two_tower", "similar"}  # found by a vector


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data_dir = tmp_path_factory.mktemp("takedown")
    with running_service(data_dir, 1, Size(), max_k=EVERYTHING, candidates=EVERYTHING, deadline_s=WAIT_S) as service:
        yield service


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[RecommendClient]:
    with RecommendClient(client_options(service.settings.kafka)) as client:
        yield client


@pytest.fixture
def items(service: Service) -> tuple[str, str]:
    """Two items that nobody of those who are asked for has watched: one for each way to take down."""
    seen = {watch.item_id for user in viewers(service) for watch in service.releases.histories[user].watches}
    free = [item_id for item_id in service.releases.bundles[0].model.item_ids if item_id not in seen]
    place = 2 * next(NUMBERS)
    return free[place], free[place + 1]


NUMBERS = itertools.count()  # each test has items of its own


def viewers(service: Service) -> list[str]:
    """Some who are known, on both partitions."""
    return list(service.releases.histories)[:4]


def everybody(service: Service) -> list[str]:
    return [*viewers(service), "stranger-1", "stranger-2"]


def ask(client: RecommendClient, user: str) -> RecommendReply:
    request = RecommendRequest(f"{user}/{time.monotonic_ns()}", user, EVERYTHING, record=False)
    reply = client.result(client.submit(request), request, WAIT_S)
    assert reply.error is None
    return reply


def shown(client: RecommendClient, user: str, sources: set[str] | None = None) -> set[str]:
    return {item.item_id for item in ask(client, user).items if sources is None or item.source in sources}


def take_down(service: Service, items: tuple[str, str]) -> float:
    """The first by a tombstone, the second by available=false; when the last of it was acknowledged."""
    service.traffic.take_down(items[0])
    service.traffic.publish(Item(items[1], available=False))
    return time.monotonic()


def put_up(service: Service, client: RecommendClient, items: tuple[str, str]) -> None:
    """Make them available again; return when everybody sees them again, found by their vectors where there is a
    history."""
    for item in items:
        service.traffic.publish(service.releases.items[item])
    wait_until(
        lambda: (
            all(all_of(items, shown(client, user)) for user in everybody(service))
            and all(all_of(items, shown(client, user, TOWERS)) for user in viewers(service))
        ),
        f"{items} back in the replies",
        WAIT_S,
    )


def assert_gone(service: Service, client: RecommendClient, items: tuple[str, str], since_s: float) -> None:
    """From two seconds after `since_s` on, when the takedown was acknowledged, nobody is shown the items."""
    asked = 0
    while (sent_s := time.monotonic()) < since_s + TAKEDOWN_S + LOOK_S or asked < 2:
        found = {user: set(items) & shown(client, user) for user in everybody(service)}
        if sent_s >= since_s + TAKEDOWN_S:
            asked += 1
            assert not any(found.values()), f"shown {sent_s - since_s:.1f} s after the takedown: {found}"


def all_of(items: tuple[str, str], found: set[str]) -> bool:
    return found.issuperset(items)


def indexed(service: Service, *items: str) -> dict[str, np.ndarray]:
    """The vectors of those of the items that the index has."""
    with contextlib.closing(Index(service.settings.milvus)) as index:
        found = index.vectors(service.releases.bundles[0].manifest.version, items)
    return {item: np.asarray(vector) for item, (_, vector) in found.items()}


def is_used(client: RecommendClient, user: str) -> bool:
    """Whether the index is asked: nothing was degraded."""
    return not ask(client, user).degraded


def mirror_answers(client: RecommendClient, user: str) -> bool:
    return any("mirror" in step for step in ask(client, user).degraded)


def test_what_is_taken_down_is_in_no_reply_after_two_seconds_and_comes_back(service, client, items):
    assert all(all_of(items, shown(client, user)) for user in everybody(service))
    assert_gone(service, client, items, take_down(service, items))
    wait_until(lambda: not indexed(service, *items), "gone from the index", WAIT_S)
    put_up(service, client, items)


def test_what_is_taken_down_while_milvus_is_away_is_in_no_reply_then_nor_when_it_is_back(service, client, items):
    user = viewers(service)[0]
    service.milvus.process.kill()
    wait_until(lambda: mirror_answers(client, user), "the mirror answers", WAIT_S)
    assert all(all_of(items, shown(client, user)) for user in everybody(service))
    since_s = take_down(service, items)
    assert_gone(service, client, items, since_s)
    service.restart_milvus()
    wait_until(lambda: is_used(client, user), "the index is used again", WAIT_S)
    assert_gone(service, client, items, since_s)
    wait_until(lambda: not indexed(service, *items), "gone from the index", WAIT_S)
    put_up(service, client, items)


def test_what_is_down_stays_down_when_the_index_is_built_anew_from_bundle_and_topics(service, client, items):
    since_s = take_down(service, items)
    service.processes["indexer"].stop()
    service.empty_milvus()
    service.start("indexer")
    service.wait_ready("indexer")
    wait_until(lambda: is_used(client, viewers(service)[0]), "the new index is used", WAIT_S)
    assert_gone(service, client, items, since_s)
    assert not indexed(service, *items)
    put_up(service, client, items)
    wait_until(lambda: len(indexed(service, *items)) == 2, "their vectors in the new index", WAIT_S)


def test_a_stale_row_that_comes_after_a_takedown_brings_nothing_back(service, client, items):
    other = next(each for each in service.releases.items if each not in items)
    since_s = take_down(service, items)
    stale = {item: 2 * vector_of(service, item) for item in items}
    for item, vector in stale.items():
        service.traffic.send(topics.ITEM_VECTORS, item, encode(service.row(0, item, vector)))
    marker = 0.5 * vector_of(service, other)
    wait_until(lambda: passes(service, other, marker), "rows sent after them in the index", WAIT_S, every_s=0.3)
    assert_gone(service, client, items, since_s)
    assert not indexed(service, *items)
    put_up(service, client, items)
    wait_until(lambda: len(indexed(service, *items)) == 2, "back in the index", WAIT_S)
    for item, vector in indexed(service, *items).items():
        assert np.allclose(vector, stale[item]), "it comes back with the newest that was learnt of it"


def vector_of(service: Service, item: str) -> np.ndarray:
    return np.frombuffer(service.row(0, item).vector, "<f4")


def passes(service: Service, item: str, marker: np.ndarray) -> bool:
    """Send a row; whether an earlier one is in the index. Partitions are read side by side, hence one on each."""
    for partition in range(service.settings.kafka.partitions):
        row = encode(service.row(0, item, marker))
        service.traffic.send(topics.ITEM_VECTORS, item, row, partition=partition)
    return np.allclose(indexed(service, item)[item], marker)


def test_a_server_that_starts_anew_shows_nothing_that_is_down(service, client, items):
    since_s = take_down(service, items)
    assert_gone(service, client, items, since_s)
    assert service.processes["serving"].stop() == 0
    service.start("serving")
    assert_gone(service, client, items, since_s)  # from its very first reply
    service.wait_ready("serving")
    assert_gone(service, client, items, since_s)
    put_up(service, client, items)


def test_what_the_trainer_lets_go_of_is_found_by_no_vector_until_a_row_of_it_comes_again(service, client, items):
    item, is_found = items[0], lambda: any(items[0] in shown(client, user, TOWERS) for user in viewers(service))
    assert is_found()
    service.traffic.send(topics.ITEM_VECTORS, item, None)
    wait_until(lambda: not is_found(), "found by no vector", WAIT_S)
    wait_until(lambda: not indexed(service, item), "gone from the index", WAIT_S)
    service.traffic.send(topics.ITEM_VECTORS, item, encode(service.row(0, item)))
    wait_until(is_found, "found again", WAIT_S)
    wait_until(lambda: bool(indexed(service, item)), "back in the index", WAIT_S)


def test_what_the_trainer_lets_go_of_while_milvus_is_away_leaves_the_mirror_and_then_the_index(service, client, items):
    item, user = items[0], viewers(service)[0]

    def is_found() -> bool:
        reply = ask(client, user)
        assert any("mirror" in step for step in reply.degraded)
        return item in {each.item_id for each in reply.items if each.source in TOWERS}

    service.milvus.process.kill()
    wait_until(lambda: mirror_answers(client, user), "the mirror answers", WAIT_S)
    assert is_found()
    service.traffic.send(topics.ITEM_VECTORS, item, None)
    wait_until(lambda: not is_found(), "gone from the mirror", WAIT_S)
    service.traffic.send(topics.ITEM_VECTORS, item, encode(service.row(0, item)))
    wait_until(is_found, "back in the mirror", WAIT_S)
    service.traffic.send(topics.ITEM_VECTORS, item, None)
    service.restart_milvus()
    wait_until(lambda: is_used(client, user), "the index is used again", WAIT_S)
    # The indexer may have read the row and the second tombstone apart: then it is there again for a moment.
    wait_until(lambda: not indexed(service, item) and item not in shown(client, user, TOWERS), "gone", WAIT_S)
    assert not indexed(service, item)


def test_a_request_that_is_sent_again_is_not_shown_what_was_taken_down_meanwhile(service, client, items):
    request = RecommendRequest("asked-twice", viewers(service)[0], EVERYTHING)
    first = client.result(client.submit(request), request, WAIT_S)
    assert all_of(items, {each.item_id for each in first.items})
    assert_gone(service, client, items, take_down(service, items))
    again = client.result(client.submit(request), request, WAIT_S)
    put_up(service, client, items)
    left = [each.item_id for each in first.items if each.item_id not in items]
    assert [each.item_id for each in again.items] == left, "the same list, without what was taken down"


@pytest.fixture(scope="module")
def critic(service: Service, client: RecommendClient) -> str:
    """A user of whom the history worker knows a watch; without one nobody has a history here."""
    service.start("history")
    service.wait_ready("history")
    item = next(iter(service.releases.items))
    service.traffic.watch(CRITIC, item)
    wait_until(lambda: item not in shown(client, CRITIC), "the critic's watch", WAIT_S)
    return CRITIC


def say(service: Service, user: str, kind: Any, item: str | None = None, channel: str | None = None) -> float:
    """Send a signal; when it was acknowledged."""
    event = SignalEvent(uuid.uuid4().hex, user, kind, now_ms(), item, channel)
    service.traffic.send(topics.SIGNALS, user, encode(event))
    return time.monotonic()


def assert_unwanted(client: RecommendClient, user: str, unwanted: set[str], since_s: float) -> None:
    """A reply to what this user asks a second after `since_s`, when the signal was acknowledged, has none of these."""
    time.sleep(max(0.0, since_s + SIGNAL_S - time.monotonic()))
    assert not unwanted & shown(client, user)


def test_what_a_user_does_not_want_is_in_no_reply_after_a_second_until_it_is_liked_or_the_user_forgotten(
    service, client, critic, items
):
    """Neither a server nor a worker that starts anew brings it back."""
    disliked, catalogue = items[0], service.releases.items
    channel = next(item.channel for item in catalogue.values() if item.channel != catalogue[disliked].channel)
    others = {name for name, item in catalogue.items() if item.channel == channel}
    assert shown(client, critic) >= {disliked, *others} - {next(iter(catalogue))}, "all but what was watched"
    assert_unwanted(client, critic, {disliked}, say(service, critic, "dislike", disliked))
    assert_unwanted(client, critic, others, say(service, critic, "not_interested", channel=channel))
    assert disliked in shown(client, viewers(service)[0]), "others are shown it"
    say(service, critic, "like", disliked)
    wait_until(lambda: disliked in shown(client, critic), "liked again", WAIT_S)
    unwanted = {disliked, *others}
    assert_unwanted(client, critic, unwanted, say(service, critic, "dislike", disliked))
    for name in ("serving", "history"):
        assert service.processes[name].stop() == 0
        service.start(name)
    assert_unwanted(client, critic, unwanted, 0.0)  # from its very first reply
    service.wait_ready("serving", "history")
    assert_unwanted(client, critic, unwanted, 0.0)
    forgotten = try_cli(service.settings, "forget", critic, "--wait-s", "0", "--no-held")
    assert "not confirmed by worker join" in forgotten.stdout, "none runs here"
    wait_until(lambda: shown(client, critic) >= unwanted, "a stranger's list", WAIT_S)
