"""The world of a rollout, one effect at a time: topic, Milvus, bundles, an indexer, servers, an operator.

What decides is the real thing: indexer/rollout.py, the acceptance rule of serving/state/release.py, the operator's
choice of infra/operate/roll_back.py. What only carries it out is written down here, in the order in which
indexer/rollout_executor.py and serving/state/release.py do it: every `yield` of the indexer is a place where it may
die, or anything else may happen.

What must never be is asserted where it would be: at a drop, at a decision, at an answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from indexer import rollout
from indexer.errors import IndexMissing
from indexer.rollout import WHOLE, Announce, Begin, Drop, Releases, Renew, announced, announced_ms, is_whole, spare_of
from infra.operate.releases import BundleFound, CollectionFound
from infra.operate.roll_back import RollBackRefused, choose
from serving.state.release import ReleaseError, check_collection
from streams.kafka.releases import key_of
from streams.messages import BundlePublished, IndexReady, Release, ServerState

TIMEOUT_MS = 60_000
HEARTBEAT_MS = 5_000
RETRY_MS = 5_000
DIM = 3

Record = tuple[str, Release | None]  # key and message; None: a goodbye


@dataclass
class Collection:
    of: str  # the version whose rows it holds
    filled: bool = False
    mark: str = ""


@dataclass
class Reader:
    """Whoever reads `releases` from its beginning: of what lies there when it starts, compaction may have left only the
    last record of each key."""

    unread: list[Record]
    position: int

    def read(self, topic: list[Record], most: int | None = None) -> list[Record]:
        news = self.unread + topic[self.position :]
        self.position, taken = len(topic), news[:most]
        self.unread = news[len(taken) :]
        return taken


class World:
    def __init__(self) -> None:
        self.now_ms = 0
        self.topic: list[Record] = []
        self.milvus: dict[str, Collection] = {}
        self.bundles: set[str] = set()
        self.servers: dict[str, Server] = {}  # living ones, by id
        self.started = 0
        self.rolled_back = ""  # to which version, by the operator, while it must stay so
        self.is_broken = False
        self.indexer = Indexer(self, compacted=False)

    # --- what everybody sees -----------------------------------------------------------------------------------------

    def reader(self, *, compacted: bool) -> Reader:
        newest = {key: place for place, (key, _) in enumerate(self.topic)}
        kept = [(key, message) for place, (key, message) in enumerate(self.topic) if newest[key] == place]
        return Reader(kept if compacted else list(self.topic), len(self.topic))

    def say(self, message: Release) -> None:
        self.topic.append((key_of(message), message))

    @property
    def live(self) -> str:
        """What servers were told to serve."""
        return next((m.version for _, m in reversed(self.topic) if isinstance(m, IndexReady)), "")

    @property
    def left(self) -> str:
        """What was rolled back from and is not to be announced again."""
        ready = next((m for _, m in reversed(self.topic) if isinstance(m, IndexReady)), None)
        return ready.rolled_back_from if ready else ""

    @property
    def newest(self) -> str:
        return next((m.version for _, m in reversed(self.topic) if isinstance(m, BundlePublished)), "")

    @property
    def marks(self) -> dict[str, str]:
        return {version: collection.mark for version, collection in self.milvus.items()}

    def collection(self, version: str) -> Collection:
        if version not in self.milvus:
            raise IndexMissing(version)
        return self.milvus[version]

    # --- serving.state.release.Index ----------------------------------------------------------------------------------

    def mark_of(self, version: str) -> str:
        return self.collection(version).mark

    def dim(self, version: str) -> int:
        return DIM if self.collection(version) else 0

    def load(self, version: str) -> None:
        self.collection(version)

    # --- what happens to it ------------------------------------------------------------------------------------------

    def publish(self, version: str) -> None:
        """Saying the newest again changes nothing, so a roll-back outlives it."""
        if version != self.newest:
            self.rolled_back = ""
        self.say(BundlePublished(version, 0, DIM, 1, "x"))

    def pass_time(self, ms: int) -> None:
        """Living servers are never silent for longer than a heartbeat, except those that nobody hears."""
        until_ms = self.now_ms + ms
        while self.now_ms < until_ms:
            next_ms = min(
                until_ms, *(server.due_ms for server in self.servers.values() if not server.is_mute), until_ms
            )
            self.now_ms = max(self.now_ms, next_ms)
            for server in self.servers.values():
                if server.due_ms <= self.now_ms:
                    server.report()

    def lose(self, version: str) -> None:
        """Milvus comes back without a collection."""
        self.milvus.pop(version, None)
        self.bereave(version)
        if version == self.newest != self.left:
            self.rolled_back = ""  # it is made anew, and announced as such

    def bereave(self, version: str) -> None:
        for server in self.servers.values():
            server.bereft.add(version)

    def drop(self, version: str) -> None:
        """The indexer removes a collection."""
        collection = self.milvus.pop(version, None)
        if collection is None:
            return
        if is_whole(collection.mark):
            assert version != self.indexer.releases.live, f"the live collection {version} was dropped"
            for server in self.servers.values():
                heard = self.indexer.last_heard_of(server.id)
                assert server.is_mute or not version == server.live == heard, f"{version} was dropped under a server"
        self.bereave(version)

    def look_for_spare(self) -> str:
        """The operator's first half of a roll-back; empty when it is refused."""
        found = [CollectionFound(version, "", each.mark, 1) for version, each in self.milvus.items()]
        told = Releases()
        for key, message in self.topic:
            told = _hear(told, key, message, self.now_ms)
        try:
            return choose(told, found, [BundleFound(version, 1) for version in self.bundles]).version
        except RollBackRefused:
            return ""

    def announce_spare(self, version: str) -> None:
        """The second half, a moment later. It must stay so when the newest release is the spare now (or it is gone back
        to) and nothing is on its way: what has still to be announced goes live when it is."""
        self.say(IndexReady(version, f"items_{version}", 1, self.now_ms, rolled_back_from=self.live))
        is_quiet = self.indexer.is_quiet and all(announced_ms(mark) is not None for mark in self.marks.values())
        self.rolled_back = version if is_quiet and self.newest in {version, spare_of(version, self.marks)} else ""


class Indexer:
    """indexer/process.py and rollout_executor.py; `step` goes on to the next effect."""

    def __init__(self, world: World, *, compacted: bool) -> None:
        self.world = world
        self.reader = world.reader(compacted=compacted)
        self.releases = Releases()
        self.marks = world.marks
        self.building = self.announcing = ""
        self.unusable: dict[str, int] = {}
        self._turns = self._run()
        self._making: Iterator[None] = iter(())

    def step(self) -> None:
        self.world.is_broken = True  # a broken promise ends the turns; whoever goes on must know
        next(self._turns)
        self.world.is_broken = False

    @property
    def is_quiet(self) -> bool:
        """Return whether nothing is on its way to servers."""
        return not self.building and not self.announcing

    def last_heard_of(self, server_id: str) -> str:
        server = (self.releases.servers or {}).get(server_id)
        return server.version if server else ""

    def look_again(self) -> None:
        for version in set(self.marks) - set(self.world.milvus):
            if version != self.building:
                del self.marks[version]

    def _run(self) -> Iterator[None]:
        while True:
            yield
            for key, message in self.reader.read(self.world.topic):
                self.releases = _hear(self.releases, key, message, self.world.now_ms)
                if isinstance(message, BundlePublished | IndexReady):
                    self.unusable.pop(message.version, None)
            try:
                yield from self._go_on_building()
                for action in self._decide():
                    yield
                    yield from self._act(action)
            except IndexMissing:
                self.look_again()
            self.announcing = ""

    def _decide(self) -> list[rollout.Decision]:
        unusable = frozenset(version for version, until_ms in self.unusable.items() if self.world.now_ms < until_ms)
        actions = rollout.decide(
            self.releases, self.marks, building=self.building, unusable=unusable, timeout_ms=TIMEOUT_MS
        )
        assert not any(isinstance(action, Begin) and action.version in unusable for action in actions)
        self._check_spare({action.version for action in actions if isinstance(action, Drop)})
        return actions

    def _check_spare(self, dropped: set[str]) -> None:
        """Of what servers were told of, only what was told before the spare may go, and only beside a live one."""
        told = {version: ms for version, mark in self.marks.items() if (ms := announced_ms(mark)) is not None}
        kept = [ms for version, ms in told.items() if version not in dropped and version != self.releases.live]
        for version in dropped & set(told):
            assert self.releases.live in told, f"{version} is dropped while the live collection is missing"
            assert version != self.releases.live, f"the live collection {version} is dropped"
            assert kept and max(kept) >= told[version], f"{version} is dropped and no later spare is kept"

    def _act(self, action: rollout.Decision) -> Iterator[None]:
        match action:
            case Drop(version):
                self._drop(version)
            case Begin(version):
                assert version not in self.marks, "half a collection was built upon"
                assert not self.building, f"{version} was begun while {self.building} is being made"
                if version in self.world.bundles:
                    self.marks[version], self.building = "", version
                    self._making = self._make(version)
                else:
                    self.unusable[version] = self.world.now_ms + RETRY_MS
            case Announce(version):
                yield from self._announce(version)
            case Renew(version, at_ms):
                self._mark(version, announced(at_ms))

    def _announce(self, version: str) -> Iterator[None]:
        self.announcing = version
        assert self.world.collection(version).filled, f"{version} was announced half full"
        yield
        self.world.say(IndexReady(version, f"items_{version}", 1, self.world.now_ms))
        yield
        self._mark(version, announced(self.world.now_ms))

    def _go_on_building(self) -> Iterator[None]:
        if not self.building:
            return
        try:
            next(self._making, None)
        except IndexMissing:
            self.unusable[self.building] = self.world.now_ms + RETRY_MS
            self._drop(self.building)
        yield

    def _make(self, version: str) -> Iterator[None]:
        self.world.drop(version)  # an attempt may have left half of one behind
        self.world.milvus[version] = Collection(version)
        yield
        self.world.collection(version).filled = True
        yield
        self._mark(version, WHOLE)
        self.building = ""

    def _drop(self, version: str) -> None:
        self.building = "" if self.building == version else self.building
        self.marks.pop(version, None)
        self.world.drop(version)

    def _mark(self, version: str, mark: str) -> None:
        self.world.collection(version).mark = mark
        self.marks[version] = mark


@dataclass
class Server:
    """serving/state/release.py and the worker's heartbeat. `live` is the version of its towers and of the collection
    that it asks. `bereft`: versions whose collections have gone away since it looked at them, so that it answers
    without one, or from what is made in its place (see the machine)."""

    world: World
    id: str
    reader: Reader
    wanted: str = ""
    tried: str = ""
    loaded: str = ""
    live: str = ""
    is_mute: bool = False
    due_ms: int = 0  # of the next heartbeat: no two servers beat together
    bereft: set[str] = field(default_factory=set)

    def read(self, most: int | None = None) -> None:
        for _, message in self.reader.read(self.world.topic, most):
            if isinstance(message, IndexReady) and message.version != self.wanted:
                if self.loaded:
                    self.tried = ""  # what is thrown away has to be loaded again when it is wanted again
                self.wanted, self.loaded = message.version, ""

    def load(self) -> None:
        if not self.wanted or self.wanted == self.tried or self.wanted not in self.world.bundles:
            return
        try:
            check_collection(self.wanted, DIM, self.world)  # type: ignore[arg-type]
        except (ReleaseError, IndexMissing):
            return  # tried again later
        self.loaded = self.tried = self.wanted
        self.bereft.discard(self.loaded)

    def swap(self) -> None:
        if self.loaded:
            self.live, self.loaded = self.loaded, ""

    def report(self) -> None:
        self.due_ms = self.world.now_ms + HEARTBEAT_MS
        if not self.is_mute:
            self.world.say(ServerState(self.id, self.live, self.world.now_ms))

    def answer(self) -> None:
        """What an answer of now would be made of."""
        collection = self.world.milvus.get(self.live)
        if not self.live or self.live in self.bereft:
            return
        assert collection is not None, f"{self.id}: the collection of {self.live} is gone"
        assert collection.of == self.live, f"{self.id}: towers of {self.live}, collection of {collection.of}"
        assert collection.filled, f"{self.id}: the collection of {self.live} is not whole"


def _hear(releases: Releases, key: str, message: Release | None, now_ms: int) -> Releases:
    if message is None:
        return rollout.forget_server(releases, key.removeprefix("server/"))
    return rollout.hear(releases, message, now_ms)
