"""The rollout of a release: what is built, announced and dropped. Whatever happens in between is in
test_rollout_machine.py."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from indexer.item_attributes import AttributeTable
from indexer.pending_writes import PendingWrites
from indexer.rollout import (
    LONG,
    WHOLE,
    Announce,
    Begin,
    Drop,
    Releases,
    Renew,
    Stage,
    Step,
    announced,
    decide,
    forget_server,
    go_on,
    hear,
    long_dead,
    spare_of,
    versions_served,
)
from indexer.rollout_executor import Collections
from infra.platform.settings import Bundles, Settings
from streams.messages import BundlePublished, IndexReady, RebuildAsked, RebuildDone, Release, ServerState
from tests.harness.needs import OBSTORE, needs
from tests.harness.system import wait_until
from tests.unit.serving.worlds import train_small

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


def test_a_filled_collection_is_verified_before_it_takes_rows_and_is_whole_when_it_has_seen_all_of_them() -> None:
    assert go_on(Stage.FILLING, caught_up=True) == [Step.FILL]
    assert go_on(Stage.FILLED, caught_up=True) == [Step.WRITE, Step.VERIFY, Step.REREAD]
    assert go_on(Stage.CATCHING_UP, caught_up=False) == []
    assert go_on(Stage.CATCHING_UP, caught_up=True) == [Step.WRITE, Step.FINISH]


THREE = {"a": announced(1), "b": announced(2), "c": announced(3)}
DECISIONS: dict[str, list[tuple[Releases, dict[str, str], dict[str, Any], list[Any]]]] = {
    "nothing is done before the first release": [(heard(), {}, {}, []), (heard(), {"leftover": ""}, {}, [])],
    "a new bundle is built": [
        (heard(bundle("a")), {}, {}, [Begin("a")]),
        (heard(bundle("a")), {"a": ""}, {"building": "a"}, []),
    ],
    "a whole collection is announced, and then left alone": [
        (heard(bundle("a")), {"a": WHOLE}, {}, [Announce("a")]),
        (heard(bundle("a"), ready("a")), {"a": announced(5)}, {}, []),
    ],
    "an interrupted build is dropped and started again": [(heard(bundle("a")), {"a": ""}, {}, [Drop("a"), Begin("a")])],
    "a build that was overtaken by a newer bundle is dropped": [
        (heard(bundle("a"), bundle("b")), {"a": ""}, {"building": "a"}, [Drop("a"), Begin("b")])
    ],
    "one spare is kept and older ones are dropped": [(heard(bundle("c"), ready("c")), THREE, {}, [Drop("a")])],
    "the older ones stay until the new one is announced": [
        (heard(bundle("c"), ready("b")), THREE | {"c": WHOLE}, {}, [Announce("c")])
    ],
    "after a roll-back the version rolled back from is the spare": [
        (heard(bundle("c"), ready("c", 3), ready("b", 4)), THREE, {}, [Renew("b", 4), Drop("a")])
    ],
    "a release that is announced by a clock that is behind is the newest all the same": [
        (
            heard(bundle("b"), ready("a", 200), ready("b", 100)),
            {"a": announced(200), "b": announced(100)},
            {},
            [Renew("b", 201)],
        )
    ],
    "a live collection that Milvus has lost is built again": [
        (heard(bundle("a"), ready("a")), {}, {}, [Begin("a")]),
        (heard(bundle("b"), ready("b"), ready("a")), {"b": announced(2)}, {}, [Begin("a")]),
    ],
    "nothing is dropped while the live collection is missing": [
        (heard(bundle("d"), ready("d")), THREE, {"unusable": frozenset({"d"})}, [])
    ],
    "a topic that was lost is told again of a collection that was not": [
        (heard(bundle("a")), {"a": announced(1)}, {}, [Announce("a")])
    ],
    "a bundle that cannot be used is passed over": [(heard(bundle("a")), {}, {"unusable": frozenset({"a"})}, [])],
}


@pytest.mark.parametrize("promise", DECISIONS)
def test_what_is_decided(promise: str) -> None:
    for releases, marks, more, actions in DECISIONS[promise]:
        assert next_actions(releases, marks, **more) == actions


def test_a_collection_that_a_living_server_serves_is_not_dropped() -> None:
    releases = heard(bundle("c"), ready("c"), ServerState("s", "a", 0))
    assert next_actions(releases, THREE) == []
    releases = hear(releases, ServerState("t", "c", 0), TIMEOUT_MS)
    assert next_actions(releases, THREE) == []
    releases = hear(releases, ServerState("t", "c", 0), TIMEOUT_MS + 1)
    assert next_actions(releases, THREE) == [Drop("a")]


def test_a_server_that_says_goodbye_holds_nothing() -> None:
    releases = heard(ServerState("s", "a", 0), ServerState("t", "b", 0))
    assert versions_served(forget_server(releases, "s"), TIMEOUT_MS) == {"b"}


def test_silence_of_all_servers_declares_none_of_them_dead() -> None:
    releases = heard(ServerState("s", "a", 0), ServerState("t", "b", 0), at_ms=1)
    assert versions_served(releases, TIMEOUT_MS) == {"a", "b"}


def test_a_roll_back_to_the_spare_stays() -> None:
    marks = {"a": announced(1), "b": announced(2)}
    assert next_actions(heard(bundle("b"), ready("b", 2), ready("a", 3)), marks) == [Renew("a", 3)]
    marks["a"] = announced(3)
    assert next_actions(heard(bundle("b"), ready("b", 2), ready("a", 3)), marks) == []


def test_a_roll_back_from_a_clock_that_is_behind_leaves_the_version_gone_back_to_as_the_next_spare() -> None:
    marks = {"a": announced(100), "b": announced(200)}
    back = [bundle("b"), ready("b", 200), ready("a", 20)]
    assert next_actions(heard(*back), marks) == [Renew("a", 201)]
    marks["a"] = announced(201)
    assert next_actions(heard(*back), marks) == []
    marks["c"] = announced(300)
    assert next_actions(heard(*back, bundle("c"), ready("c", 300)), marks) == [Drop("b")]
    assert spare_of("c", marks) == "a"


def asked(at_ms: int) -> RebuildAsked:
    return RebuildAsked("v", at_ms)


def done(asked_ms: int) -> RebuildDone:
    return RebuildDone("v", asked_ms, 1, "", 1)


def open_after(*messages: Release) -> RebuildAsked | None:
    """The request that is open: told by order of arrival, whatever the clocks of those who ask say."""
    return heard(*messages).rebuild


def test_a_request_is_open_until_its_answer() -> None:
    assert open_after() is None
    assert open_after(asked(100)) == asked(100)
    assert open_after(asked(100), done(100)) is None
    assert open_after(done(100)) is None, "compaction has taken the request"


def test_an_answered_request_of_a_clock_that_is_ahead_hides_no_later_one() -> None:
    assert open_after(asked(100), done(100), asked(50)) == asked(50)
    assert open_after(asked(100), done(100), asked(50), done(50)) is None
    assert open_after(done(100), asked(50)) == asked(50), "compacted"


def test_the_newest_is_open_when_an_older_one_is_answered_meanwhile() -> None:
    assert open_after(asked(50), asked(100), done(50)) == asked(100)
    assert open_after(asked(100), asked(50), done(100)) == asked(50)
    assert open_after(asked(100), asked(50), done(50), done(100)) is None, "our own answers are read again later"


def test_a_request_that_was_sent_twice_is_done_once() -> None:
    assert open_after(asked(100), done(100), asked(100)) is None


def test_a_server_is_forgotten_long_after_the_others_would_call_it_dead() -> None:
    releases = heard(ServerState("old", "a", 0), ServerState("older", "a", 0))
    assert long_dead(releases, TIMEOUT_MS) == [], "nobody else was heard"
    releases = hear(releases, ServerState("new", "a", 0), LONG * TIMEOUT_MS)
    assert long_dead(releases, TIMEOUT_MS) == []
    releases = hear(releases, ServerState("old", "a", 0), LONG * TIMEOUT_MS + 1)
    assert long_dead(releases, TIMEOUT_MS) == ["older"]


@needs(OBSTORE)
def test_a_bundle_is_fetched_beside_the_loop_and_begun_when_it_is_here(tmp_path: Path) -> None:
    """Nothing is decided of it meanwhile, so the loop keeps fresh what is live; why it cannot be fetched is told."""
    store, trained = tmp_path / "store", tmp_path / "trained"
    version = train_small(trained).version
    settings = Settings(data_dir=tmp_path, bundles=Bundles(store=f"file://{store}"))
    never: Any = None  # Milvus is not asked
    collections = Collections(never, PendingWrites(), AttributeTable(), settings, never)
    releases = heard(bundle(version))

    def begin(now_ms: int) -> None:
        for decision in collections.decide(releases, now_ms):
            collections.carry_out(decision, now_ms)

    begin(0)
    wait_until(lambda: collections.decide(releases, 0) == [Begin(version)], "an answer", 10)
    begin(0)
    assert "is not there" in collections.refusal and collections.decide(releases, 0) == []
    shutil.copytree(trained / version, store / version)
    begin(60_000)
    assert collections.stage is None and collections.marks == {}
    wait_until(lambda: collections.decide(releases, 60_000) == [Begin(version)], "fetched", 10)
    begin(60_000)
    assert collections.stage is Stage.FILLING and not collections.refusal
