"""What of a user's signals stands: the newest about each item and channel, whatever the order, and so many of them."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from infra.platform.settings import Settings
from streams import topics
from streams.history.app import apply
from streams.history.rebuild_histories import Reach, kept, without_offsets
from streams.history.rules import Applied, Outcome, apply_watch
from streams.history.signals import Unwanted, apply_signal, said_of_items, unwanted_by, weighed
from streams.kafka.intake import Raw
from streams.messages import (
    Refused,
    Signal,
    SignalEvent,
    Source,
    TrainingExample,
    UserHistory,
    WatchEvent,
    decode,
    encode,
)
from tests.unit.streams.kafka.test_intake import Waiting

NOW_MS = 1_700_000_000_000
SETTINGS = Settings()
MANY = 1000


def said(kind: Any, event_ms: int, item: str | None = "a", channel: str | None = None) -> SignalEvent:
    return SignalEvent(f"{kind}-{item}-{channel}-{event_ms}", "u", kind, event_ms, item, channel)


def add(history: UserHistory, event: SignalEvent, offset: int, unwanted: int = MANY, others: int = MANY) -> Applied:
    return apply_signal(history, event, Source(0, offset, 0), unwanted=unwanted, others=others)


def fold(events: Sequence[SignalEvent], **limits: int) -> UserHistory:
    """The history after signals at offsets 0, 1, 2, ..."""
    history = UserHistory("u")
    for offset, event in enumerate(events):
        history = add(history, event, offset, **limits).history
    return history


def items(history: UserHistory) -> set[str]:
    return set(unwanted_by(history).items)


def test_a_disliked_item_and_a_channel_of_no_interest_are_unwanted_until_a_like_or_an_undo():
    events = [said("dislike", 1), said("not_interested", 2, None, "cats"), said("dislike", 3, "b")]
    assert unwanted_by(fold(events)) == Unwanted(frozenset("ab"), frozenset({"cats"}))
    assert unwanted_by(fold([*events, said("like", 4)])) == Unwanted(frozenset("b"), frozenset({"cats"}))
    undone = fold([*events, said("undo", 4, None, "cats"), said("undo", 5, "b")])
    assert unwanted_by(undone) == Unwanted(frozenset("a"))
    assert items(fold([*events, said("like", 4), said("dislike", 5)])) == {"a", "b"}, "and away again"


def test_an_item_is_no_channel_of_the_same_name():
    assert unwanted_by(fold([said("dislike", 1, None, "a"), said("like", 2, "a")])).channels == {"a"}


def test_a_share_or_a_save_lifts_no_dislike_and_stands_beside_a_like():
    assert items(fold([said("dislike", 1), said("share", 2), said("save", 3)])) == {"a"}
    history = fold([said("like", 1), said("share", 2), said("save", 3), said("share", 4)])
    assert [(each.kind, each.event_ms) for each in history.signals] == [("like", 1), ("save", 3), ("share", 4)]


def test_the_later_of_two_opinions_stands_whichever_comes_first():
    early = add(fold([said("like", 20)]), said("dislike", 10), 1)
    assert items(early.history) == set() and early.outcome is Outcome.TOO_OLD
    assert early.history.signal_offset == 1, "the offset of a passed-over signal is remembered, so a replay knows it"


def test_what_is_sent_twice_or_read_again_changes_nothing():
    history = fold([said("dislike", 10), said("like", 20)])
    replayed = add(history, said("dislike", 30), 1)
    assert replayed.outcome is Outcome.REPLAYED and replayed.history is history
    again = add(history, said("like", 20), 2)
    assert again.outcome is Outcome.DUPLICATE and again.history.signals == history.signals
    assert add(history, said("dislike", 10), 2).history.signals == history.signals


KINDS = st.sampled_from(["like", "dislike", "not_interested", "undo", "share", "save"])
ABOUT = st.sampled_from([("a", None), ("b", None), (None, "a"), (None, "c")])
EVENTS = st.lists(st.builds(lambda kind, at, about: said(kind, at, *about), KINDS, st.integers(0, 5), ABOUT))


@given(EVENTS, st.randoms(use_true_random=False))
def test_in_any_order_and_however_often_signals_say_the_same(events: list[SignalEvent], random: Any):
    shuffled = [*events, *events]
    random.shuffle(shuffled)
    first, second = (
        [replace(each, offset=0, event_id="") for each in fold(order).signals] for order in (events, shuffled)
    )
    assert first == second


@given(EVENTS)
def test_what_is_said_of_items_in_a_topic_is_what_stands_in_the_history(events: list[SignalEvent]):
    stands = {(each.item_id, each.kind) for each in fold(events).signals if each.item_id and each.kind != "undo"}
    told = said_of_items(events)
    assert {(item, kind) for (user, item), kinds in told.items() for kind in kinds} == stands
    assert {user for user, _ in told} <= {"u"}


WEIGHTS = {"like": 2.0, "share": 3.0, "dislike": 0.0}


@pytest.mark.parametrize(
    ("signals", "weight"),
    [
        ([], 1.0),
        ([said("like", 1)], 2.0),
        ([said("like", 1), said("share", 2), said("save", 3)], 6.0),
        ([said("like", 1, "b"), said("dislike", 2, None, "a")], 1.0),
        ([said("dislike", 1), said("share", 2)], 0.0),
        ([said("dislike", 1), said("undo", 2)], 1.0),
    ],
)
def test_a_watch_weighs_as_an_example_what_its_user_has_said_of_the_item(signals: list[SignalEvent], weight: float):
    source = Source(0, 0, 0)
    applied = apply_watch(fold(signals), WatchEvent("w", "u", "a", 9, 30.0), source, keep=9, completed_s=18.0)
    found = weighed(applied, WEIGHTS)
    assert found.history is applied.history, "the watch is a watch all the same"
    assert found.example is not None and found.example.weight == weight
    assert weighed(applied, {}) is applied


def test_an_example_from_before_weights_weighs_one_and_a_weight_travels():
    example = TrainingExample("u", "a", 1, 30.0, None, (), (), None, 0, 0, 1)
    assert b"weight" not in encode(example), "as it was written before"
    heavy = replace(example, weight=4.0)
    assert [decode(TrainingExample, encode(each)).weight for each in (example, heavy)] == [1.0, 4.0]


def test_the_worker_weighs_by_its_settings_and_an_unwanted_watch_by_nothing():
    home = topics.partition_of("u", SETTINGS.kafka.partitions)
    table = {"u": encode(fold([said("like", 1), said("dislike", 2, "b")]))}
    watches = [WatchEvent(item, "u", item, NOW_MS, 30.0) for item in "ab"]
    batch = [Raw(topics.WATCH_EVENTS, home, at, NOW_MS, b"u", encode(each), ()) for at, each in enumerate(watches)]
    for model, weights in (({}, [1.0, 1.0]), ({"like_weight": 3.0, "unwanted_weight": 0.0}, [3.0, 0.0])):
        outbox = Waiting()
        settings = Settings.model_validate({"model": model})
        changed, _, bug = apply(batch, table, outbox, settings, now_ms=NOW_MS)  # type: ignore[arg-type]
        assert bug is None and len(changed["u"].watches) == 2
        assert [decode(TrainingExample, value).weight for _, _, _, value, _ in outbox] == weights


def test_the_oldest_leave_and_likes_push_out_no_dislike():
    dislikes = [said("dislike", at, f"i{at}") for at in range(5)]
    likes = [said("like", 10 + at, f"l{at}") for at in range(50)]
    history = fold([*dislikes, *likes], unwanted=3, others=4)
    assert items(history) == {"i2", "i3", "i4"}
    assert [each.item_id for each in history.signals if each.kind == "like"] == ["l46", "l47", "l48", "l49"]
    late = add(history, said("dislike", 1, "late"), 99, unwanted=3, others=4)
    assert late.outcome is Outcome.TOO_OLD and late.history.signals == history.signals


def test_an_undo_that_is_too_old_to_stay_still_lifts_what_is_older():
    likes = [said("like", 10 + at, f"l{at}") for at in range(4)]
    history = fold([said("dislike", 1), *likes], others=4)
    assert items(add(history, said("undo", 2), 9, others=4).history) == set()


@pytest.mark.parametrize("form", [True, False])
def test_signals_are_stored_in_both_forms_and_a_kind_that_is_newer_than_its_reader_costs_no_history(form: bool):
    history = fold([said("dislike", 1), said("not_interested", 2, None, "c")])
    assert decode(UserHistory, encode(history, compact=form)) == history
    newer = replace(history, signals=(*history.signals, Signal("adored", "x", None, 3, "e", 7)))
    assert unwanted_by(decode(UserHistory, encode(newer, compact=form))) == unwanted_by(history)
    before = b'{"user_id":"u","watch_offset":3}'
    assert decode(UserHistory, before).signals == () and decode(UserHistory, before).signal_offset == -1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "hate"}, "hate"),
        ({"item_id": None}, "one of the two"),
        ({"channel": "c"}, "one of the two"),
        ({"item_id": ""}, r"\$\.item_id"),
        ({"event_ms": -1}, r"\$\.event_ms"),
    ],
)
def test_a_signal_that_cannot_be_used_is_a_dead_letter_and_the_next_one_counts(change: dict[str, Any], says: str):
    good = {"event_id": "e", "user_id": "u", "kind": "dislike", "event_ms": NOW_MS, "item_id": "a"}
    with pytest.raises(Refused, match=says):
        decode(SignalEvent, json_of(good | change))
    home = topics.partition_of("u", SETTINGS.kafka.partitions)
    values = (json_of(good | change), json_of(good))
    batch = [Raw(topics.SIGNALS, home, at, NOW_MS, b"u", value, ()) for at, value in enumerate(values)]
    outbox = Waiting()
    changed, _, bug = apply(batch, {}, outbox, SETTINGS, now_ms=NOW_MS)  # type: ignore[arg-type]
    assert items(changed["u"]) == {"a"} and bug is None
    assert [topic for topic, *_ in outbox] == [topics.DEAD_LETTERS]


def json_of(fields: dict[str, Any]) -> bytes:
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def test_the_settings_say_how_many_are_kept():
    small = Settings.model_validate({"history": {"unwanted": 1, "signals": 2}})
    home = topics.partition_of("u", small.kafka.partitions)
    events = [said(kind, NOW_MS - 9 + at, f"i{at}") for at, kind in enumerate(["dislike"] * 2 + ["save"] * 3)]
    batch = [Raw(topics.SIGNALS, home, at, NOW_MS, b"u", encode(event), ()) for at, event in enumerate(events)]
    changed, _, _ = apply(batch, {}, Waiting(), small, now_ms=NOW_MS)  # type: ignore[arg-type]
    assert [each.item_id for each in changed["u"].signals] == ["i1", "i3", "i4"]


def test_a_rebuild_keeps_the_signals_that_the_topic_holds_no_more():
    history = fold([said("dislike", 1, "a"), said("dislike", 2, "b")])
    first = dict.fromkeys((topics.WATCH_EVENTS, topics.SEARCH_EVENTS, topics.IMPRESSIONS), 0) | {topics.SIGNALS: 1}
    left = kept(history, Reach(first, {}), set())
    assert items(left) == {"a"} and left.signal_offset == 0
    assert add(left, said("dislike", 2, "b"), 1).history == history


def test_the_offsets_of_another_cluster_are_taken_out_and_reading_again_changes_nothing():
    events = [said("dislike", 1, "a"), said("like", 2, "a"), said("dislike", 3, "b")]
    history = without_offsets(fold(events))
    assert history.signal_offset == -1 and {each.offset for each in history.signals} == {-1}
    for offset, event in enumerate(events):
        history = add(history, event, offset).history
    assert items(history) == {"b"} and history.signal_offset == 2
