"""The rollout of a release: what is built, announced and dropped. Whatever happens in between is in
test_rollout_machine.py."""

from __future__ import annotations

from typing import Any

from indexer.rollout import (
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
    spare_of,
    versions_served,
)
from streams.messages import BundlePublished, IndexReady, RebuildAsked, RebuildDone, Release, ServerState

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


def test_nothing_is_done_before_the_first_release() -> None:
    assert next_actions(Releases(), {}) == []
    assert next_actions(Releases(), {"leftover": ""}) == []


def test_a_new_bundle_is_built() -> None:
    assert next_actions(heard(bundle("a")), {}) == [Begin("a")]
    assert next_actions(heard(bundle("a")), {"a": ""}, building="a") == []


def test_a_whole_collection_is_announced_and_then_left_alone() -> None:
    assert next_actions(heard(bundle("a")), {"a": WHOLE}) == [Announce("a")]
    assert next_actions(heard(bundle("a"), ready("a")), {"a": announced(5)}) == []


def test_an_interrupted_build_is_dropped_and_started_again() -> None:
    assert next_actions(heard(bundle("a")), {"a": ""}) == [Drop("a"), Begin("a")]


def test_a_build_that_was_overtaken_by_a_newer_bundle_is_dropped() -> None:
    assert next_actions(heard(bundle("a"), bundle("b")), {"a": ""}, building="a") == [Drop("a"), Begin("b")]


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
    assert next_actions(heard(bundle("b"), ready("b", 2), ready("a", 3)), marks) == [Renew("a", 3)]
    marks["a"] = announced(3)
    assert next_actions(heard(bundle("b"), ready("b", 2), ready("a", 3)), marks) == []


def test_after_a_roll_back_the_version_rolled_back_from_is_the_spare() -> None:
    marks = {"a": announced(1), "b": announced(2), "c": announced(3)}
    assert next_actions(heard(bundle("c"), ready("c", 3), ready("b", 4)), marks) == [Renew("b", 4), Drop("a")]


def test_a_roll_back_from_a_clock_that_is_behind_leaves_the_version_gone_back_to_as_the_next_spare() -> None:
    marks = {"a": announced(100), "b": announced(200)}
    back = [bundle("b"), ready("b", 200), ready("a", 20)]
    assert next_actions(heard(*back), marks) == [Renew("a", 201)]
    marks["a"] = announced(201)
    assert next_actions(heard(*back), marks) == []
    marks["c"] = announced(300)
    assert next_actions(heard(*back, bundle("c"), ready("c", 300)), marks) == [Drop("b")]
    assert spare_of("c", marks) == "a"


def test_a_release_that_is_announced_by_a_clock_that_is_behind_is_the_newest_all_the_same() -> None:
    marks = {"a": announced(200), "b": announced(100)}
    assert next_actions(heard(bundle("b"), ready("a", 200), ready("b", 100)), marks) == [Renew("b", 201)]


def test_a_live_collection_that_milvus_has_lost_is_built_again() -> None:
    assert next_actions(heard(bundle("a"), ready("a")), {}) == [Begin("a")]
    assert next_actions(heard(bundle("b"), ready("b"), ready("a")), {"b": announced(2)}) == [Begin("a")]


def test_nothing_is_dropped_while_the_live_collection_is_missing() -> None:
    marks = {"a": announced(1), "b": announced(2), "c": announced(3)}
    assert next_actions(heard(bundle("d"), ready("d")), marks, unusable=frozenset({"d"})) == []


def test_a_topic_that_was_lost_is_told_again_of_a_collection_that_was_not() -> None:
    assert next_actions(heard(bundle("a")), {"a": announced(1)}) == [Announce("a")]


def test_a_bundle_that_cannot_be_used_is_passed_over() -> None:
    assert next_actions(heard(bundle("a")), {}, unusable=frozenset({"a"})) == []


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
