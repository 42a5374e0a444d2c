"""Two servers in one group: one is started anew, one is killed, and no client is left without its one answer."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

import pytest

from infra.platform.kafka_clients import client_options
from nextwatch_client import RecommendClient
from streams.topics import RECOMMEND_REQUESTS, partition_of
from tests.harness.needs import KAFKA, needs
from tests.harness.requests import Asked, steady, wait_for_replies
from tests.harness.service import Service, Size, running_service
from tests.harness.system import Cluster, wait_until
from tests.harness.witness import Witness

pytestmark = needs(KAFKA, "noida lets no second member into a group")

PARTITIONS = 4
SERVERS = ("serving-1", "serving-2")
PER_S = 20.0
PATIENCE_S = 120.0
AGAIN_S = tuple(2.0 * number for number in range(1, 30))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data_dir = tmp_path_factory.mktemp("servers")
    with running_service(data_dir, 1, Size(), servers=SERVERS, partitions=PARTITIONS) as service:
        wait_settled(service)
        yield service


@pytest.fixture
def witness(service: Service) -> Iterator[Witness]:
    with contextlib.closing(Witness(service.settings.kafka, service.releases)) as witness:
        yield witness


def wait_settled(service: Service, servers: Sequence[str] = SERVERS) -> None:
    """Return when these servers answer all partitions, none of them two of them."""
    wait_until(lambda: is_settled(service, servers), "all partitions answered", PATIENCE_S, every_s=0.2)


def is_settled(service: Service, servers: Sequence[str]) -> bool:
    health = [each for name, each in service.health().items() if name in servers and "partitions" in each]
    answered = sorted(number for each in health for number in each["partitions"])
    shares = [bool(each["ready"] and each["partitions"]) for each in health]
    return answered == list(range(PARTITIONS)) and shares == [True] * len(servers)


def load(
    service: Service, client: RecommendClient, asked: list[Asked], again_after_s: Sequence[float] = ()
) -> contextlib.AbstractContextManager[None]:
    users = itertools.cycle(service.releases.histories)
    return steady(client, users.__next__, PER_S, asked, again_after_s, tag=f"{time.monotonic_ns()}-", k=10)


def all_answered(asked: Sequence[Asked]) -> bool:
    """Wait for the replies; whether all came, none an error."""
    wait_for_replies(asked, PATIENCE_S)
    return all(each.reply is not None and each.reply.error is None and each.reply.items for each in asked)


def longest_s(asked: Sequence[Asked], since_s: float, until_s: float) -> dict[int, float]:
    """By partition: the longest that a request which was sent then waited for its reply."""
    longest: defaultdict[int, float] = defaultdict(float)
    for each in asked:
        if since_s <= each.sent_s < until_s:
            place = partition_of(each.user_id, PARTITIONS)
            longest[place] = max(longest[place], each.ms / 1000)
    return {place: round(seconds, 1) for place, seconds in sorted(longest.items())}


def test_a_rolling_restart_loses_no_reply_and_gives_none_twice_with_another_list(service, witness, capsys):
    asked: list[Asked] = []
    with RecommendClient(client_options(service.settings.kafka)) as client:
        with load(service, client, asked):
            marks = [("before", time.monotonic())]
            time.sleep(1.0)
            for name in SERVERS:
                marks.append((f"{name} leaves", time.monotonic()))
                assert service.processes[name].stop() == 0, "SIGTERM ends it cleanly"
                marks.append((f"{name} starts and joins", time.monotonic()))
                service.start(name, "serving")
                wait_settled(service)
            marks.append(("after", time.monotonic()))
            time.sleep(1.0)
        assert all_answered(asked), "no request was sent twice, and each has its reply"
    witness.read_to_the_end()
    assert witness.replies.keys() >= {each.request_id for each in asked}
    check_lists(witness)
    tell(capsys, asked, marks)


def test_what_waits_in_a_servers_queue_when_another_one_joins_or_leaves_is_answered(service, witness):
    """Bursts, so that the queue is never empty: a rebalance gives back what was read and not answered, also where the
    partition comes back to the same server."""
    users, asked = itertools.cycle(service.releases.histories), list[Asked]()
    with RecommendClient(client_options(service.settings.kafka)) as client:

        def keep_busy(under_way: int) -> int:
            """Send until so many are not answered yet; how many were sent in all."""
            for _ in range(under_way - sum(not each.future.done() for each in asked)):
                asked.append(Asked(f"{next(users)}/{time.monotonic_ns()}").send(client, (), k=10))
            return len(asked)

        assert service.processes[SERVERS[1]].stop() == 0
        wait_settled(service, SERVERS[:1])
        service.start(SERVERS[1], "serving")
        wait_until(lambda: keep_busy(300) and is_settled(service, SERVERS), "both at work", PATIENCE_S)
        wait_until(lambda: keep_busy(300) >= 2000, "more bursts", PATIENCE_S)
        assert all_answered(asked)
    witness.read_to_the_end()
    check_lists(witness)


def test_requests_of_a_killed_server_are_answered_by_the_other_and_duplicates_are_alike(service, witness, capsys):
    asked: list[Asked] = []
    with Cluster(service.settings.kafka) as cluster, RecommendClient(client_options(service.settings.kafka)) as client:
        before = cluster.total(RECOMMEND_REQUESTS)
        with load(service, client, asked, AGAIN_S):
            time.sleep(2.0)
            marks = [("killed", time.monotonic())]
            service.processes[SERVERS[0]].kill()
            wait_settled(service, SERVERS[1:])
            marks.append(("the other has all", time.monotonic()))
            time.sleep(2.0)
        assert all_answered(asked)
        sent_again = cluster.total(RECOMMEND_REQUESTS) - before - len(asked)
        assert sent_again > 0, "the client had to ask again"
        again = [Asked(each.request_id).send(client, (), k=10) for each in asked[-20:]]
        assert all_answered(again), "a copy that comes when the first reply is written is answered too"
    witness.read_to_the_end()
    check_lists(witness)
    twice = set(witness.answered_twice())
    assert twice >= {each.request_id for each in again}
    tell(capsys, asked, marks)
    with capsys.disabled():
        print(f"  {sent_again} sent again, {len(twice)} answered more than once")


def check_lists(witness: Witness) -> None:
    """Of one version each, as they are on record, and copies like the first."""
    assert witness.compared > 0 and witness.mixed == []
    assert witness.answered_otherwise() == []
    assert witness.recorded_otherwise() == []


def tell(capsys: pytest.CaptureFixture[str], asked: Sequence[Asked], marks: list[tuple[str, float]]) -> None:
    """How long a request waited at most, by what was going on when it was sent."""
    ends = [at_s for _, at_s in marks[1:]] + [float("inf")]
    with capsys.disabled():
        print(f"\n{len(asked)} requests; longest wait for a reply, by partition, s:")
        for (what, since_s), until_s in zip(marks, ends, strict=True):
            print(f"  {what}: {longest_s(asked, since_s, until_s)}")
