"""Going back to the spare: its collection is announced again, and every living server is waited for.

The announcement is all there is to it. The indexer leaves it alone, since it announces no collection twice, and keeps
the version that was left as the spare: rolling back twice goes forward again. A newer bundle that it still has to
announce goes live when it is ready; `RolledBack.coming` says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import msgspec

from indexer import rollout
from indexer.rollout import WHOLE, announced_ms, spare_of
from indexer.schema import collection_name
from infra.operate.releases import (
    BundleFound,
    CollectionFound,
    find_bundles,
    hear,
    read_collections,
    read_topic,
    servers_of,
)
from infra.platform.guarded_process import ServiceError
from infra.platform.settings import Settings
from streams import topics
from streams.kafka.follow import TopicFollower
from streams.kafka.releases import announce
from streams.messages import IndexReady

POLL_S = 0.05


class RollBackRefused(ServiceError):
    """There is nothing to go back to; the text says why."""


class RollBackPlan(NamedTuple):
    """The collection to go back to, the release that is live until then, the one that goes live whatever is done now
    (see `coming`), and the servers that are waited for."""

    spare: CollectionFound
    before: str
    coming: str
    servers: set[str]


class RolledBack(msgspec.Struct, frozen=True):
    """The outcome of a roll-back. `waiting_for`: living servers that have not said that they answer from `version`."""

    version: str
    before: str
    served_by: list[str]
    waiting_for: list[str]
    coming: str  # the version that goes live when it is announced, empty when none is to come
    spent_s: float  # since it was announced

    @property
    def is_served(self) -> bool:
        return bool(self.served_by) and not self.waiting_for


@dataclass
class _AwaitedServers:
    """The servers that a roll-back waits for: those that lived when it began and those that were heard since."""

    version: str
    told: rollout.Releases
    awaited: set[str]

    def hear(self, follower: TopicFollower, wait_s: float) -> None:
        for record in follower.poll(wait_s):
            self.told = hear(self.told, record)
            self.awaited |= set(self.told.servers or {}) & {_server_of(record.key)}

    def answers(self) -> tuple[list[str], list[str]]:
        """Those that answer from the version, and those that do not; who has said goodbye is neither."""
        servers = self.told.servers or {}
        present = sorted(self.awaited & set(servers))
        done = [name for name in present if servers[name].version == self.version]
        return done, [name for name in present if name not in done]


def roll_back(
    settings: Settings, wait_s: float, progress: Callable[[str], None] = lambda what: None, *, to: str = ""
) -> RolledBack:
    """Announce the spare, then wait up to `wait_s` until all living servers answer from it. `to`: only if
    this version is the spare.

    Raises RollBackRefused, IndexFailure (Milvus does not answer), TopicMissing and KafkaError.
    """
    with TopicFollower(settings.kafka, topics.RELEASES) as follower:
        told = reduce(hear, follower.to_end(), rollout.Releases())
        plan = _plan(settings, told, to)
        spare = plan.spare
        progress(f"checking {spare.version}")
        check_spare(settings, spare.version)
        follower.expect_present()  # the bundle may have been fetched, which takes minutes
        told = reduce(hear, follower.to_end(), told)
        plan = _plan(settings, told, spare.version)
        spare = plan.spare
        began = time.monotonic()
        now_ms = time.time_ns() // 1_000_000
        name = collection_name(settings.milvus.collection_prefix, spare.version)
        ready = IndexReady(spare.version, name, spare.rows, now_ms, rolled_back_from=told.live)
        announce(settings.kafka, ready)
        progress(f"{spare.version} is announced")
        awaited = _AwaitedServers(spare.version, told, plan.servers)
        _wait(awaited, follower, wait_s, progress)
    served_by, waiting_for = awaited.answers()
    return RolledBack(
        version=spare.version,
        before=plan.before,
        served_by=served_by,
        waiting_for=waiting_for,
        coming=plan.coming,
        spent_s=time.monotonic() - began,
    )


def read_plan(settings: Settings, to: str = "") -> RollBackPlan:
    """What a roll-back would do now; the spare's files are not looked at. Raises as `roll_back`."""
    return _plan(settings, read_topic(settings.kafka), to)


def choose(
    told: rollout.Releases,
    collections: Iterable[CollectionFound],
    bundles: Iterable[BundleFound],
    to: str = "",
    not_known: str = "",
) -> CollectionFound:
    """The collection to go back to; `to`: only if it is of this version. `not_known`: why there may be more bundles.
    Raises RollBackRefused."""
    found = {each.version: each for each in collections}
    marks = {version: each.mark for version, each in found.items()}
    if not told.live:
        raise RollBackRefused("no release is live yet: there is nothing to go back from")
    if to == told.live:
        raise RollBackRefused(f"release {to} is live already")
    if marks.get(told.live) == WHOLE:  # its mark comes after its announcement, and the indexer would announce it again
        raise RollBackRefused(f"release {told.live} is being announced at this moment: try again in a second")
    spare = spare_of(told.live, marks)
    if not spare:
        raise RollBackRefused(f"there is no spare: no release but {told.live} has an announced index to go back to")
    if to not in ("", spare):
        raise RollBackRefused(f"a roll-back goes to the spare, which is {spare} and not {to}")
    problem = {bundle.version: bundle.problem for bundle in bundles}.get(spare, not_known or "it is not there")
    if problem:
        raise RollBackRefused(f"the spare {spare} cannot be served, for want of its bundle: {problem}")
    return found[spare]


def check_spare(settings: Settings, version: str) -> None:
    """Raises RollBackRefused for a bundle that no server would take: it is damaged, or of another nextwatch's features.
    A server that starts would have no release then. One that is in the store only is fetched for that."""
    from models.release.bundle import BundleError, check_bundle  # with torch, which takes seconds
    from streams.bundles.source import source_of

    try:
        check_bundle(source_of(settings).directory(version))
    except BundleError as error:
        raise RollBackRefused(f"the spare {version} cannot be served: {error}") from None


def living(told: rollout.Releases, now_ms: int, timeout_s: float) -> set[str]:
    """The servers that have been heard within `timeout_s`."""
    servers = servers_of(told, now_ms, timeout_s)
    return {server.server_id for server in servers if server.lives and server.heard_s_ago <= timeout_s}


def coming(told: rollout.Releases, collections: Iterable[CollectionFound]) -> str:
    """The newest bundle's version while its collection has still to be announced; empty otherwise."""
    newest = told.bundle.version if told.bundle else ""
    mark = {each.version: each.mark for each in collections}.get(newest, "")
    return newest if announced_ms(mark) is None and newest != told.live else ""


def _plan(settings: Settings, told: rollout.Releases, to: str) -> RollBackPlan:
    collections = read_collections(settings.milvus)
    bundles, problem = find_bundles(settings)
    spare = choose(told, collections, bundles, to, problem)
    servers = living(told, time.time_ns() // 1_000_000, settings.indexer.server_timeout_s)
    return RollBackPlan(spare, told.live, coming(told, collections), servers)


def _wait(awaited: _AwaitedServers, follower: TopicFollower, wait_s: float, progress: Callable[[str], None]) -> None:
    deadline = time.monotonic() + wait_s
    before: list[str] = []
    while (left_s := deadline - time.monotonic()) > 0:
        awaited.hear(follower, min(POLL_S, left_s))
        done, waiting = awaited.answers()
        if done != before:
            progress(f"{len(done)} of {len(done) + len(waiting)} servers answer from {awaited.version}")
            before = done
        if done and not waiting:
            return


def _server_of(key: bytes | None) -> str:
    kind, _, server_id = (key or b"").decode(errors="replace").partition("/")
    return server_id if kind == "server" else ""
