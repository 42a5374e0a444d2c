"""The rollout of a release: which collection is made, announced and dropped, decided here and done elsewhere.

`decide` and `go_on` return effects; the indexer's loop (indexer/process.py) carries them out, each acknowledged before
the next begins. A new collection goes through: filled and verified, caught up with all of `item-vectors`, marked whole,
announced, marked announced. A crash in between leaves a mark that says where to go on, or that nothing of it counts.

A collection's mark in Milvus says how far its making has come, so that whoever starts next knows what it finds:
none (being filled, or left half full), `whole` (filled, verified, up to date), `announced:<ms>` (servers were told).
Marks are written before what they allow: a collection is whole before it is announced, and only announced ones become
live, spare, or the target of a roll-back. A half-full one is dropped and made again from the start.

Whether a server lives is told by order of arrival, not by clocks: it is dead when others have been heard for long
since it was last heard. A broker that is away, or an indexer that was, silences all alike and so declares nobody dead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto

from streams.messages import (
    BundlePublished,
    Experiment,
    IndexReady,
    PartitionsRaised,
    RebuildAsked,
    RebuildDone,
    Release,
    ServerState,
    SourceTopics,
)

WHOLE = "whole"
_ANNOUNCED = "announced:"
LONG = 10  # time-outs after which a dead server is forgotten


@dataclass(frozen=True)
class Server:
    version: str
    heard_ms: int


@dataclass(frozen=True)
class Releases:
    """The state that the `releases` topic tells, as far as it was read."""

    bundle: BundlePublished | None = None  # the newest
    ready: IndexReady | None = None  # the newest: what servers shall serve
    servers: Mapping[str, Server] | None = None  # by server id
    rebuild: RebuildAsked | None = None  # the newest request to make the live collection anew, while it is not answered
    rebuilt_ms: int | None = None  # the request that was answered last

    @property
    def live(self) -> str:
        """The version that servers were told to serve; empty before the first."""
        return self.ready.version if self.ready else ""


class Stage(Enum):
    """A stage of the collection that is being made."""

    FILLING = auto()
    FILLED = auto()
    CATCHING_UP = auto()


@dataclass(frozen=True)
class Begin:
    """Begin to make the collection of this version from its bundle."""

    version: str


@dataclass(frozen=True)
class Announce:
    """Tell servers that this version's collection is ready, then mark it announced."""

    version: str


@dataclass(frozen=True)
class Renew:
    """Write into the mark that servers were told of this version last, at this time: a roll-back."""

    version: str
    at_ms: int


@dataclass(frozen=True)
class Drop:
    """Remove a collection (and stop making it)."""

    version: str


class Step(Enum):
    """An effect that the collection that is being made needs."""

    FILL = "write the next batch of its bundle"
    WRITE = "write all rows that were read"
    VERIFY = "see that it holds its bundle, and let it take rows from now on"
    REREAD = "read `item-vectors` from the beginning"
    FINISH = "mark it whole"


Decision = Begin | Announce | Renew | Drop
Effect = Decision | Step


def announced(at_ms: int) -> str:
    """The mark of a collection that servers were told of."""
    return f"{_ANNOUNCED}{at_ms}"


def announced_ms(mark: str) -> int | None:
    """Return when servers were told of a collection with this mark; None when they were not."""
    number = mark.removeprefix(_ANNOUNCED)
    return int(number) if mark.startswith(_ANNOUNCED) and number.isdigit() else None


def is_whole(mark: str) -> bool:
    return mark == WHOLE or announced_ms(mark) is not None


def hear(releases: Releases, message: Release, heard_ms: int) -> Releases:
    """Return what is known after one more message; `heard_ms` is our own clock when it was read."""
    match message:
        case BundlePublished():
            return replace(releases, bundle=message)
        case IndexReady():
            return replace(releases, ready=message)
        case ServerState():
            server = Server(message.version, heard_ms)
            return replace(releases, servers={**(releases.servers or {}), message.server_id: server})
        case RebuildAsked(at_ms=at_ms):  # who asks has a clock of their own: it is no more than the request's name
            return releases if at_ms == releases.rebuilt_ms else replace(releases, rebuild=message)
        case RebuildDone(asked_ms=asked_ms):
            is_answer = releases.rebuild is not None and releases.rebuild.at_ms == asked_ms
            return replace(releases, rebuild=None if is_answer else releases.rebuild, rebuilt_ms=asked_ms)
        case SourceTopics() | PartitionsRaised() | Experiment():  # the workers' and the servers' own
            return releases


def forget_server(releases: Releases, server_id: str) -> Releases:
    """A server has said goodbye (a tombstone under its key)."""
    servers = {name: server for name, server in (releases.servers or {}).items() if name != server_id}
    return replace(releases, servers=servers)


def long_dead(releases: Releases, timeout_ms: int) -> list[str]:
    """The servers that have been dead for long: nobody needs to know of them any more."""
    servers = releases.servers or {}
    newest_ms = max((server.heard_ms for server in servers.values()), default=0)
    return [name for name, server in servers.items() if server.heard_ms < newest_ms - LONG * timeout_ms]


def versions_served(releases: Releases, timeout_ms: int) -> set[str]:
    """The versions that living servers answer from."""
    servers = (releases.servers or {}).values()
    newest_ms = max((server.heard_ms for server in servers), default=0)
    return {server.version for server in servers if server.version and server.heard_ms >= newest_ms - timeout_ms}


def decide(
    releases: Releases,
    marks: Mapping[str, str],
    *,
    building: str = "",
    unusable: frozenset[str] = frozenset(),
    timeout_ms: int,
) -> list[Decision]:
    """Return what to do now, in this order.

    `marks`: the mark of every collection there is. `building`: the version being built here. `unusable`: versions whose
    bundle cannot be read just now. Ask again after the actions are done: one step is decided at a time.
    """
    wanted = _wanted(releases, marks, unusable)
    actions: list[Decision] = [*_renewed(releases, marks)]
    if building and building != wanted:
        actions.append(Drop(building))
        building = ""
    if wanted and is_whole(marks.get(wanted, "")):
        actions.append(Announce(wanted))
    elif wanted and wanted != building:
        actions += [Drop(wanted)] if wanted in marks else []
        actions.append(Begin(wanted))
    done = {action.version for action in actions}
    return actions + [Drop(v) for v in sorted(_superfluous(releases, marks, timeout_ms) - done - {building, wanted})]


def go_on(stage: Stage, *, caught_up: bool) -> list[Effect]:
    """The next effects for the collection that is being made; `caught_up`: all of `item-vectors` has been read since
    the last REREAD."""
    match stage:
        case Stage.FILLING:
            return [Step.FILL]
        case Stage.FILLED:
            return [Step.WRITE, Step.VERIFY, Step.REREAD]
    return [Step.WRITE, Step.FINISH] if caught_up else []


def _wanted(releases: Releases, marks: Mapping[str, str], unusable: frozenset[str]) -> str:
    """The version whose collection is still to be made or announced: the newest bundle's, else the live one's if it
    is lost (a Milvus that lost its data; after a roll-back it is not the newest). What was rolled back from is not
    announced again."""
    newest = releases.bundle.version if releases.bundle else ""
    if releases.ready and newest == releases.ready.rolled_back_from:
        newest = ""
    if is_whole(marks.get(newest, "")) and not releases.live:
        return newest  # the topic was lost, the collection was not
    for version in (newest, releases.live):
        if version and version not in unusable and announced_ms(marks.get(version, "")) is None:
            return version
    return ""


def _renewed(releases: Releases, marks: Mapping[str, str]) -> list[Renew]:
    """After a roll-back the live version is the one that servers were told of last, whatever its mark and the clock of
    whoever told them say: the next release's spare is found by that."""
    told_ms = announced_ms(marks.get(releases.live, ""))
    if releases.ready is None or told_ms is None:
        return []
    others = [
        ms for version, mark in marks.items() if version != releases.live and (ms := announced_ms(mark)) is not None
    ]
    at_ms = max(releases.ready.at_ms, max(others, default=-1) + 1)
    return [Renew(releases.live, at_ms)] if told_ms < at_ms else []


def spare_of(live: str, marks: Mapping[str, str]) -> str:
    """Return what a roll-back goes to: the other one that servers were told of last; empty for none."""
    told = {version: ms for version, mark in marks.items() if (ms := announced_ms(mark)) is not None}
    others = [version for version in told if version != live]
    return max(others, key=lambda version: (told[version], version), default="") if live else ""


def _superfluous(releases: Releases, marks: Mapping[str, str], timeout_ms: int) -> set[str]:
    """Collections that nobody needs: not live, not the spare, not the newest bundle's, not served. All are kept while
    the live one is not there to be fallen back upon."""
    if announced_ms(marks.get(releases.live, "")) is None:
        return set()
    newest = releases.bundle.version if releases.bundle else ""
    needed = {releases.live, spare_of(releases.live, marks), newest}
    return set(marks) - needed - versions_served(releases, timeout_ms)
