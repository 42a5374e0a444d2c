"""One of three brokers is killed while people watch and ask: nothing acknowledged is lost, everybody is answered."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from streams.kafka.follow import TopicFollower
from streams.topics import USER_HISTORIES
from tests.harness.cluster.brokers import able_after, move_leader
from tests.harness.cluster.faults import follower_of_the_quorum
from tests.harness.cluster.system import ClusterSystem, running_cluster
from tests.harness.needs import KAFKA, needs

pytestmark = [pytest.mark.system, needs(KAFKA)]

SESSION_S = 4.0  # of a broker: shorter than Kafka's own, for the test's sake
BEYOND_S = 10.0  # wide: machines of CI are slow


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterSystem]:
    with running_cluster(tmp_path_factory.mktemp("cluster"), SESSION_S) as running:
        yield running


def test_offsets_are_told_by_the_leader_of_now_though_it_has_moved(system: ClusterSystem) -> None:
    """To a consumer that has heard of the old one, which lives; in less than a request's time (30 s)."""
    name = system.topic(USER_HISTORIES)
    with TopicFollower(system.settings.kafka, USER_HISTORIES) as follower:
        before = follower.ends()
        move_leader(system.brokers, name, 0)
        began_s = time.monotonic()
        assert follower.ends().keys() == before.keys()
        assert time.monotonic() - began_s < BEYOND_S


def test_a_leader_that_is_killed_costs_a_silence_and_nothing_that_was_acknowledged(
    system: ClusterSystem, record_property: pytest.RecordProperty
) -> None:
    lost = follower_of_the_quorum(system)
    with system.load(watches_per_s=20.0, requests_per_s=10.0) as (watching, people):
        time.sleep(1.0)
        system.brokers.kill(lost)
        able_s = able_after(system.brokers, lost)
        time.sleep(2.0)
    assert len(watching.acknowledged) > 20 and system.lost_and_doubled() == (0, 0)
    assert len(people.requests) > 20 and all(request.is_answered for request in people.requests)
    impressions = system.impressions(people.requests)
    assert all(impressions[request.request_id] for request in people.requests)
    silence_s = max(request.silence_s for request in people.requests)
    beyond_s = max(request.beyond_s(able_s) for request in people.requests)
    record_property("told", f"a broker killed: silent for {silence_s:.1f} s, {beyond_s:.1f} s longer than the cluster")
    assert beyond_s < BEYOND_S
