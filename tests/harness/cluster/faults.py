"""What may befall a cluster. Each fault ends when all brokers have all copies again, and tells since when the cluster
could take every message: until then a silence is its own."""

from __future__ import annotations

import time
from collections.abc import Callable

from streams.topics import IMPRESSIONS, TOPICS
from tests.harness.cluster.brokers import READY_S, able_after, insist_on, spread_leaders
from tests.harness.cluster.system import PARTITIONS, ClusterSystem
from tests.harness.system import wait_until

Fault = Callable[[ClusterSystem, float], float]  # given how long it lasts; when the cluster was able to go on


def leader_killed(system: ClusterSystem, away_s: float) -> float:
    return killed(system, follower_of_the_quorum(system), away_s)


def controller_killed(system: ClusterSystem, away_s: float) -> float:
    return killed(system, system.brokers.controller(), away_s)


def leader_stands_still(system: ClusterSystem, away_s: float) -> float:
    lost, until_s = follower_of_the_quorum(system), time.monotonic() + away_s
    with system.brokers.standing_still(lost):
        able_s = able_after(system.brokers, lost)
        time.sleep(max(0.0, until_s - time.monotonic()))
    system.brokers.wait_whole()
    return able_s


def rolled(system: ClusterSystem, _: float) -> float:
    """Stopped and started again in order, one by one."""
    began_s = time.monotonic()
    for number in system.brokers.nodes:
        system.brokers.stop(number)
        system.brokers.start(number)
        system.brokers.wait_whole()
    return began_s


def too_few_in_sync(system: ClusterSystem, away_s: float) -> float:
    """A copy is missing that the topics insist on: no broker takes a message for them (NotEnoughReplicas)."""
    lost = follower_of_the_quorum(system)
    names = [system.topic(topic.name) for topic in TOPICS]
    system.brokers.stop(lost)
    insist_on(system.brokers, names, len(system.brokers.nodes))
    time.sleep(away_s)
    insist_on(system.brokers, names, len(system.brokers.nodes) - 1)
    able_s = time.monotonic()
    system.brokers.start(lost)
    system.brokers.wait_whole()
    return able_s


def killed(system: ClusterSystem, lost: int, away_s: float) -> float:
    until_s = time.monotonic() + away_s
    system.brokers.kill(lost)
    able_s = able_after(system.brokers, lost)
    time.sleep(max(0.0, until_s - time.monotonic()))
    system.brokers.start(lost)
    system.brokers.wait_whole()
    return able_s


def follower_of_the_quorum(system: ClusterSystem) -> int:
    """A broker that leads a partition of impressions and is not the controller, whose loss is another fault."""
    found, name = list[int](), system.topic(IMPRESSIONS)

    def is_there() -> bool:
        spread_leaders(system.brokers, name)
        controller = system.brokers.controller()
        leaders = [system.brokers.leader(name, number) for number in range(PARTITIONS)]
        found[:] = [leader for leader in leaders if leader != controller]
        return bool(found)

    wait_until(is_there, "a leader that is not the controller", READY_S, every_s=0.5)
    return found[0]


FAULTS: dict[str, Fault] = {
    "leader killed": leader_killed,
    "leader stands still": leader_stands_still,
    "too few copies in sync": too_few_in_sync,
    "rolled one by one": rolled,
    "controller killed": controller_killed,
}
