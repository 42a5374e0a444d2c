"""The rollout as a state machine: releases, crashes, late and repeated words, two servers, roll-backs, losses.

Always: no server answers from a collection that is not whole or not of its towers' version; a collection that a living
server has said it uses is not dropped; one spare is kept. Left alone: the newest release is live on all servers, or the
one that was rolled back to, whatever Milvus loses. One thing is as it is, and not what one would wish: a server whose
collection Milvus has lost asks the new one that is made in its place while it is still being filled.
"""

from collections.abc import Callable

from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from indexer.rollout import announced_ms, is_whole
from tests.unit.indexer.rollout_world import TIMEOUT_MS, Indexer, Server, World

SERVERS = st.sampled_from("st")
STEPS = st.integers(1, 12)


class Rollout(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.published: list[str] = []
        self.spare = ""  # what the operator has chosen and not yet announced
        self.places: dict[str, Server] = {}  # a living server by its place
        self.has_died = False  # one of them, without a word

    @initialize(releases=st.integers(0, 3), servers=st.sampled_from(["", "s", "st", "st"]))
    def begin(self, releases: int, servers: str) -> None:
        """Somewhere in the life of a system that has had a good time so far."""
        for place in servers:
            self.server_starts(place, compacted=False)
        for _ in range(releases):
            self.publish(is_there=True)
            self._go_on()

    # --- releases ----------------------------------------------------------------------------------------------------

    @rule(is_there=st.booleans())
    def publish(self, is_there: bool) -> None:
        """A bundle may come to this machine later than its announcement."""
        version = f"v{len(self.published):03}"
        self.published.append(version)
        self.world.bundles |= {version} if is_there else set()
        self.world.publish(version)

    @precondition(lambda self: set(self.published) - self.world.bundles)
    @rule()
    def bundles_arrive(self) -> None:
        self.world.bundles |= set(self.published)

    @precondition(lambda self: self.published)
    @rule(back=st.integers(0, 2))
    def publish_again(self, back: int) -> None:
        self.world.publish(self.published[-1 - min(back, len(self.published) - 1)])

    # --- the indexer -------------------------------------------------------------------------------------------------

    @rule(steps=STEPS)
    def indexer_works(self, steps: int) -> None:
        for _ in range(steps):
            self.world.indexer.step()

    @rule(compacted=st.booleans())
    def indexer_dies(self, compacted: bool) -> None:
        """The next one knows what the topic and Milvus tell."""
        self.world.indexer = Indexer(self.world, compacted=compacted)

    # --- servers -----------------------------------------------------------------------------------------------------

    @rule(place=SERVERS, compacted=st.booleans())
    def server_starts(self, place: str, compacted: bool) -> None:
        """In the place of one that dies without a word, if there is one."""
        self.server_dies(place)
        self.world.started += 1
        server = Server(self.world, f"{place}{self.world.started}", self.world.reader(compacted=compacted))
        server.due_ms = self.world.now_ms + 1000 * (self.world.started % 5)
        self.places[place] = self.world.servers[server.id] = server

    @precondition(lambda self: self.places)
    @rule(place=SERVERS)
    def server_dies(self, place: str) -> None:
        if place in self.places:
            self.has_died = True
            del self.world.servers[self.places.pop(place).id]

    @precondition(lambda self: self.places)
    @rule(place=SERVERS)
    def server_says_goodbye(self, place: str) -> None:
        if place in self.places:
            self.world.topic.append((f"server/{self.places[place].id}", None))
            del self.world.servers[self.places.pop(place).id]

    @precondition(lambda self: self.places)
    @rule(place=SERVERS, most=st.integers(1, 5))
    def server_reads(self, place: str, most: int) -> None:
        if place in self.places:
            self.places[place].read(most)

    @precondition(lambda self: self.places)
    @rule(place=SERVERS, what=st.sampled_from([Server.load, Server.swap]))
    def server_goes_on(self, place: str, what: Callable[[Server], None]) -> None:
        if place in self.places:
            what(self.places[place])

    @precondition(lambda self: self.places)
    @rule(place=SERVERS, is_mute=st.booleans())
    def server_is_heard_or_not(self, place: str, is_mute: bool) -> None:
        if place in self.places:
            self.places[place].is_mute = is_mute

    # --- the rest of the world ---------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.live)
    @rule(is_slow=st.booleans())
    def operator_rolls_back(self, is_slow: bool) -> None:
        """Chooses, and announces a moment later; what was chosen may be old by then."""
        self.spare = self.world.look_for_spare()
        if not is_slow:
            self.slow_operator_announces()

    @precondition(lambda self: self.spare)
    @rule()
    def slow_operator_announces(self) -> None:
        if self.spare:
            self.world.announce_spare(self.spare)
            self.spare = ""

    @precondition(lambda self: self.world.milvus)
    @rule(which=st.integers(0, 3), is_noticed=st.booleans())
    def milvus_loses_a_collection(self, which: int, is_noticed: bool) -> None:
        versions = sorted(self.world.milvus)
        self.world.lose(versions[which % len(versions)])
        if is_noticed:
            self.world.indexer.look_again()

    @rule(passed_s=st.sampled_from([1, 3, 6, 20, 70]))
    def time_passes(self, passed_s: int) -> None:
        self.world.pass_time(passed_s * 1000)

    @rule(releases=st.integers(0, 2), behind=st.sampled_from(["", "s", "t", "st"]))
    def all_goes_well_for_a_while(self, releases: int, behind: str) -> None:
        """Except that some servers may take their time."""
        self._go_on(behind)
        for _ in range(releases):
            self.publish(is_there=True)
            self._go_on(behind)

    # --- what is promised --------------------------------------------------------------------------------------------

    @invariant()
    def every_answer_is_of_one_version_and_a_whole_collection(self) -> None:
        for server in self.world.servers.values():
            server.answer()

    @invariant()
    def a_mark_is_never_ahead_of_its_collection(self) -> None:
        assert all(collection.filled for collection in self.world.milvus.values() if is_whole(collection.mark))

    def teardown(self) -> None:
        """Left alone, everything comes to rest where it should. Who has died without a word is believed dead only when
        others are heard for long after."""
        if self.world.is_broken:
            return
        rolled_back, newest = self.world.rolled_back, self.world.newest
        for place in sorted({"s", "t"} - set(self.places)) if self.has_died else ():
            self.server_starts(place, compacted=True)
        for server in self.world.servers.values():
            server.is_mute = False
        self.world.indexer.look_again()
        for _ in range(8):
            self._go_on()
        self.world.pass_time(2 * TIMEOUT_MS)
        for _ in range(3):
            self._go_on()
        live = self.world.live
        if rolled_back:
            assert live == rolled_back, "a roll-back was undone"
        elif newest in self.world.bundles and newest != self.world.left:
            mark = self.world.marks.get(newest, "")
            assert announced_ms(mark) is not None, "the newest release was never announced"
            assert live == newest or self._came_after(live, newest), "the newest release did not go live"
        for server in self.world.servers.values():
            assert server.live == live, f"{server.id} answers from {server.live}, live is {live}"
        assert not live or is_whole(self.world.marks.get(live, "")), "what is live is not there"
        assert len(set(self.world.milvus) - {live, newest}) <= 1, "more than one spare is kept"

    def _came_after(self, live: str, newest: str) -> bool:
        """Return whether servers were told of `live` after they were told of `newest`."""
        told = [message.version for key, message in self.world.topic if key == "index" and message is not None]
        return newest in told and told[::-1].index(live) < told[::-1].index(newest)

    def _go_on(self, behind: str = "") -> None:
        """Six seconds, in which the indexer hears of one server now and of the other then."""
        for _ in range(4):
            for _ in range(4):
                self.world.indexer.step()
            self.world.pass_time(1500)
        for place, server in self.places.items():
            if place not in behind:
                server.read()
                server.load()
                server.swap()


Rollout.TestCase.settings = hypothesis_settings(
    max_examples=400, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestRollout = Rollout.TestCase
