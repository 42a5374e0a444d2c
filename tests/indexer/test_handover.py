"""The hand-over between releases: what is built, announced and dropped, whatever happens in between."""

from __future__ import annotations

from typing import Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from indexer.handover import (
    WHOLE,
    Announce,
    Build,
    Drop,
    Releases,
    announced,
    announced_ms,
    decide,
    forget_server,
    hear,
    versions_served,
)
from streams.messages import BundlePublished, IndexReady, Release, ServerState

TIMEOUT_MS = 60_000


def bundle(version: str) -> BundlePublished:
    return BundlePublished(version, created_ms=0, dim=3, items=1, schema_hash="x")


def ready(version: str, at_ms: int = 0) -> IndexReady:
    return IndexReady(version, f"items_{version}", 1, at_ms)


def heard(*messages: Release, at_ms: int = 0) -> Releases:
    releases = Releases()
    for message in messages:
        releases = hear(releases, message, at_ms)
    return releases


def next_actions(releases: Releases, marks: dict[str, str], **more: Any) -> list[Any]:
    return decide(releases, marks, timeout_ms=TIMEOUT_MS, **more)


def test_nothing_is_done_before_the_first_release() -> None:
    assert next_actions(Releases(), {}) == []
    assert next_actions(Releases(), {"leftover": ""}) == []


def test_a_new_bundle_is_built() -> None:
    assert next_actions(heard(bundle("a")), {}) == [Build("a")]
    assert next_actions(heard(bundle("a")), {"a": ""}, building="a") == []


def test_a_whole_collection_is_announced_and_then_left_alone() -> None:
    assert next_actions(heard(bundle("a")), {"a": WHOLE}) == [Announce("a")]
    assert next_actions(heard(bundle("a"), ready("a")), {"a": announced(5)}) == []


def test_an_interrupted_build_is_dropped_and_started_again() -> None:
    assert next_actions(heard(bundle("a")), {"a": ""}) == [Drop("a"), Build("a")]


def test_a_build_that_was_overtaken_by_a_newer_bundle_is_dropped() -> None:
    assert next_actions(heard(bundle("a"), bundle("b")), {"a": ""}, building="a") == [Drop("a"), Build("b")]


def test_one_spare_is_kept_and_older_ones_are_dropped() -> None:
    marks = {"a": announced(1), "b": announced(2), "c": announced(3)}
    assert next_actions(heard(bundle("c"), ready("c")), marks) == [Drop("a")]


def test_the_older_ones_stay_until_the_new_one_is_announced() -> None:
    marks = {"a": announced(1), "b": announced(2), "c": WHOLE}
    assert next_actions(heard(bundle("c"), ready("b")), marks) == [Announce("c")]


def test_a_collection_that_a_living_server_serves_is_not_dropped() -> None:
    marks = {"a": announced(1), "b": announced(2), "c": announced(3)}
    releases = heard(bundle("c"), ready("c"), ServerState("s", "a", 0))
    assert next_actions(releases, marks) == []
    releases = hear(releases, ServerState("t", "c", 0), TIMEOUT_MS)
    assert next_actions(releases, marks) == []
    releases = hear(releases, ServerState("t", "c", 0), TIMEOUT_MS + 1)
    assert next_actions(releases, marks) == [Drop("a")]


def test_a_server_that_says_goodbye_holds_nothing() -> None:
    releases = heard(ServerState("s", "a", 0), ServerState("t", "b", 0))
    assert versions_served(forget_server(releases, "s"), TIMEOUT_MS) == {"b"}


def test_silence_of_all_servers_declares_none_of_them_dead() -> None:
    releases = heard(ServerState("s", "a", 0), ServerState("t", "b", 0), at_ms=1)
    assert versions_served(releases, TIMEOUT_MS) == {"a", "b"}


def test_a_roll_back_to_the_spare_stays() -> None:
    marks = {"a": announced(1), "b": announced(2)}
    assert next_actions(heard(bundle("b"), ready("b"), ready("a")), marks) == []


def test_after_a_roll_back_the_version_rolled_back_from_is_the_spare() -> None:
    marks = {"a": announced(1), "b": announced(2), "c": announced(3)}
    assert next_actions(heard(bundle("c"), ready("c"), ready("b")), marks) == [Drop("a")]


def test_a_live_collection_that_milvus_has_lost_is_built_again() -> None:
    assert next_actions(heard(bundle("a"), ready("a")), {}) == [Build("a")]
    assert next_actions(heard(bundle("b"), ready("b"), ready("a")), {"b": announced(2)}) == [Build("a")]


def test_nothing_is_dropped_while_the_live_collection_is_missing() -> None:
    marks = {"a": announced(1), "b": announced(2), "c": announced(3)}
    assert next_actions(heard(bundle("d"), ready("d")), marks, unusable=frozenset({"d"})) == []


def test_a_topic_that_was_lost_is_told_again_of_a_collection_that_was_not() -> None:
    assert next_actions(heard(bundle("a")), {"a": announced(1)}) == [Announce("a")]


def test_a_bundle_that_cannot_be_used_is_passed_over() -> None:
    assert next_actions(heard(bundle("a")), {}, unusable=frozenset({"a"})) == []


class HandOver(RuleBasedStateMachine):
    """The topic, Milvus, two servers and an indexer that may die between any two effects."""

    def __init__(self) -> None:
        super().__init__()
        self.topic: list[Release] = []
        self.marks: dict[str, str] = {}  # what Milvus holds
        self.complete: set[str] = set()  # and which of it really is
        self.serving: dict[str, str] = {}  # living servers
        self.now_ms = 0
        self.start()

    def start(self) -> None:
        """A new indexer: it knows only what the topic and Milvus tell."""
        self.releases = Releases()
        self.position = 0
        self.building = ""
        self.todo: list[Any] = []

    def read(self) -> None:
        for message in self.topic[self.position :]:
            self.releases = hear(self.releases, message, self.now_ms)
        self.position = len(self.topic)

    @rule()
    def publish(self) -> None:
        self.topic.append(bundle(f"v{sum(isinstance(m, BundlePublished) for m in self.topic):03}"))

    @rule()
    def crash(self) -> None:
        self.start()

    @rule()
    def look(self) -> None:
        if not self.todo:
            self.read()
            self.todo = decide(self.releases, self.marks, building=self.building, timeout_ms=TIMEOUT_MS)

    @precondition(lambda self: self.todo)
    @rule()
    def act(self) -> None:
        action = self.todo[0]
        match action:
            case Drop(version):
                self.drop(version)
            case Build(version):
                assert version not in self.marks
                self.marks[version] = ""
                self.building = version
            case Announce(version):
                if not (self.topic and self.topic[-1] == ready(version, self.now_ms)):
                    assert version in self.complete, "an incomplete collection was announced"
                    self.topic.append(ready(version, self.now_ms))
                    return  # acknowledged; the mark is the next step, and a crash may come between
                self.marks[version] = announced(self.now_ms)
        del self.todo[0]

    def drop(self, version: str) -> None:
        if version in self.complete:
            assert version not in self.serving.values(), "a served collection was dropped"
            assert version != self.live(), "the live collection was dropped"
        self.marks.pop(version, None)
        self.complete.discard(version)
        self.building = "" if self.building == version else self.building

    @precondition(lambda self: self.building)
    @rule()
    def fill(self) -> None:
        if self.building not in self.complete:
            self.complete.add(self.building)
        else:
            self.marks[self.building] = WHOLE
            self.building = ""

    @rule(server=st.sampled_from("st"), passed_s=st.integers(0, 20))
    def heartbeat(self, server: str, passed_s: int) -> None:
        """A living server takes over what is announced, and says so. Servers are never silent for a minute."""
        self.now_ms += passed_s * 1000
        live = self.live()
        if live:
            assert live in self.complete, "servers were told of a collection that is not there"
            self.serving[server] = live
        for name, version in {server: "", **self.serving}.items():
            self.topic.append(ServerState(name, version, self.now_ms))
        self.read()

    @rule(server=st.sampled_from("st"))
    def server_dies(self, server: str) -> None:
        self.serving.pop(server, None)

    @precondition(lambda self: not self.todo)
    @rule()
    def roll_back(self) -> None:
        live = self.live()
        told = {v: ms for v, mark in self.marks.items() if (ms := announced_ms(mark)) is not None and v != live}
        if live and told:
            self.topic.append(ready(max(told, key=lambda version: (told[version], version)), self.now_ms))

    def live(self) -> str:
        return next((m.version for m in reversed(self.topic) if isinstance(m, IndexReady)), "")

    @invariant()
    def marked_collections_are_complete(self) -> None:
        assert {version for version, mark in self.marks.items() if mark} <= self.complete

    def teardown(self) -> None:
        """Left alone, the hand-over comes to rest with the newest bundle announced and at most one spare."""
        rolled_back = self.live()
        for _ in range(20):
            self.look()
            while self.todo:
                self.act()
            while self.building:
                self.fill()
        self.read()
        newest = self.releases.bundle.version if self.releases.bundle else ""
        assert self.live() in {newest, rolled_back}
        assert not newest or announced_ms(self.marks[newest]) is not None
        idle = set(self.marks) - {self.live()} - versions_served(self.releases, TIMEOUT_MS)
        assert len(idle) <= 1


HandOver.TestCase.settings = hypothesis_settings(max_examples=150, stateful_step_count=40, deadline=None)
TestHandOver = HandOver.TestCase
