"""What the history worker makes of a batch of watches, searches and impressions."""

import asyncio
from typing import Any

import pytest

from infra.platform.settings import Settings
from streams.erased_users import ErasedUsers, fingerprint, hash_of
from streams.history.app import apply, handle
from streams.history.log_rows import row_id
from streams.history.watched_filter import DAY_MS, codes_of, watched_mask
from streams.kafka.intake import Raw
from streams.messages import (
    COMPACT,
    Impression,
    LoadedHistory,
    Shown,
    TrainingExample,
    UserErased,
    UserHistory,
    Watch,
    WatchEvent,
    decode,
    encode,
)
from streams.topics import (
    DEAD_LETTERS,
    IMPRESSIONS,
    LOADED_HISTORIES,
    TRAINING_EXAMPLES,
    USER_HISTORIES,
    WATCH_EVENTS,
    partition_of,
)
from tests.unit.streams.kafka.test_intake import Waiting

NOW_MS = 1_700_000_000_000
SETTINGS = Settings()
HOME = partition_of("u", SETTINGS.kafka.partitions)


def raw(topic: str, message: Any, offset: int, partition: int = HOME, produced_ms: int = NOW_MS) -> Raw:
    value = message if isinstance(message, bytes) else encode(message)
    return Raw(topic, partition, offset, produced_ms, b"u", value, ())


def impression(request_id: str, at_ms: int) -> Impression:
    return Impression(request_id, "u", at_ms, "server", "v1", (Shown("a", 1, "x"), Shown("b", 2, "x")))


def test_impressions_come_into_the_history_and_watches_make_their_examples_as_ever():
    watch = WatchEvent("e", "u", "a", NOW_MS, 30.0, 60.0)
    batch = [raw(IMPRESSIONS, impression("r", NOW_MS), 4), raw(WATCH_EVENTS, watch, 7)]
    outbox = Waiting()
    changed, sent_ms, bug = apply(batch, {}, outbox, SETTINGS, now_ms=NOW_MS)  # type: ignore[arg-type]
    history = changed["u"]
    assert [(shown.request_id, shown.item_ids) for shown in history.impressions] == [("r", ("a", "b"))]
    assert (history.watch_offset, history.impression_offset) == (7, 4)
    assert [topic for topic, *_ in outbox] == [TRAINING_EXAMPLES] and bug is None
    assert sent_ms == [NOW_MS], "the time to a history is that of watches"


@pytest.mark.parametrize(("compact", "first"), [(True, COMPACT), (False, b"{")])
@pytest.mark.parametrize("before", [True, False])
def test_both_forms_are_built_on_and_one_is_written(compact: bool, first: bytes, before: bool):
    settings = Settings.model_validate({"history": {"compact": compact}})
    old = Watch("a", NOW_MS - 1, 30.0, 60.0, True, "e0", 3)
    table: dict[str, bytes] = {"u": encode(UserHistory("u", (old,), watch_offset=3), compact=before)}
    batch, outbox = [raw(WATCH_EVENTS, WatchEvent("e1", "u", "b", NOW_MS, 30.0, 60.0), 7)], Waiting()
    sent: Any = Sent(outbox)
    assert asyncio.run(handle(batch, table, sent, settings)) is None
    by_topic = {topic: value for topic, _, _, value, _ in outbox}
    assert by_topic.keys() == {TRAINING_EXAMPLES, USER_HISTORIES} and by_topic[USER_HISTORIES] == table["u"]
    assert all(value.startswith(first) for value in by_topic.values())
    assert [watch.item_id for watch in decode(UserHistory, table["u"]).watches] == ["a", "b"]
    assert decode(TrainingExample, by_topic[TRAINING_EXAMPLES]).watches == (old,)


class Traced(list[tuple[str, str, dict[str, Any]]]):
    """Keeps what is told, in place of a tracer."""

    def wants(self, traceparent: str) -> bool:
        return True

    def tell(self, name: str, traceparent: str, stages: Any, attributes: dict[str, Any]) -> None:
        self.append((name, traceparent, attributes))


def test_a_watchs_trace_goes_on_to_its_example_and_is_told_of_with_its_place_alone():
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    watches = [raw(WATCH_EVENTS, WatchEvent(f"e{at}", "u", "a", NOW_MS, 30.0, 60.0), at) for at in range(3)]
    batch = [
        watches[0],
        watches[1]._replace(headers=(("traceparent", trace.encode()), ("theirs", b"x"))),
        watches[2]._replace(headers=(("traceparent", b"00-none"),)),
    ]
    outbox, traced = Waiting(), Traced()
    assert asyncio.run(handle(batch, {}, Sent(outbox), SETTINGS, tracer=traced)) is None  # type: ignore[arg-type]
    examples = [list(headers) for topic, _, _, _, headers in outbox if topic == TRAINING_EXAMPLES]
    assert examples == [[], [("traceparent", trace.encode())], []]
    [(name, parent, about)] = traced
    assert (name, parent, about["messaging.kafka.offset"]) == ("history", trace, 1) and "u" not in about.values()


class Sent:
    """An outbox whose records are acknowledged at once."""

    def __init__(self, records: Waiting) -> None:
        self.add = records.add

    async def flush(self) -> None: ...


def test_an_impression_that_cannot_be_used_is_the_join_workers_to_report_and_a_watch_ours():
    astray = (HOME + 1) % SETTINGS.kafka.partitions
    batch = [
        raw(IMPRESSIONS, b"{}", 1),
        raw(IMPRESSIONS, impression("late", NOW_MS + 3_600_000), 2),
        raw(IMPRESSIONS, impression("astray", NOW_MS), 3, astray),
        raw(WATCH_EVENTS, b"{}", 1),
    ]
    outbox = Waiting()
    changed, _, bug = apply(batch, {}, outbox, SETTINGS, now_ms=NOW_MS)  # type: ignore[arg-type]
    assert changed == {} and bug is None and [topic for topic, *_ in outbox] == [DEAD_LETTERS]


@pytest.mark.parametrize(("seen", "found"), [(9, ["b", "c", "d"]), (2, ["c", "d"]), (0, [])])
def test_a_watch_beyond_what_the_settings_keep_is_remembered(seen: int, found: list[str]):
    small = Settings.model_validate({"history": {"watches": 1, "seen": seen, "seen_days": 7}})
    ages_d = {"a": 9, "b": 6, "c": 5, "d": 4, "e": 0}
    watches = [WatchEvent(f"e-{item}", "u", item, NOW_MS - age * DAY_MS, 30.0, 60.0) for item, age in ages_d.items()]
    batch = [raw(WATCH_EVENTS, watch, offset) for offset, watch in enumerate(watches)]
    changed, _, bug = apply(batch, {}, Waiting(), small, now_ms=NOW_MS)  # type: ignore[arg-type]
    mask = watched_mask(changed["u"].seen, codes_of(list(ages_d)), now_ms=NOW_MS, days=90)
    assert [item for item, is_seen in zip(ages_d, mask, strict=True) if is_seen] == found and bug is None


def loaded(*item_ids: str) -> LoadedHistory:
    watches = tuple(
        Watch(item, at, 30.0, 60.0, True, row_id("u", item, at), -1) for at, item in enumerate(item_ids, NOW_MS - 99)
    )
    return LoadedHistory("u", watches[-1].event_ms, watches)


def test_what_a_log_tells_is_known_before_the_watches_of_its_batch_and_makes_no_example():
    row = WatchEvent("player", "u", "b", NOW_MS - 98, 30.0, 60.0)  # the log's own, as a player has sent it
    batch = [raw(WATCH_EVENTS, row, 0), raw(WATCH_EVENTS, WatchEvent("e", "u", "c", NOW_MS, 30.0, 60.0), 1)]
    batch.append(raw(LOADED_HISTORIES, loaded("a", "b"), 0))
    outbox = Waiting()
    changed, _, bug = apply(batch, {}, outbox, SETTINGS, now_ms=NOW_MS)  # type: ignore[arg-type]
    assert [watch.item_id for watch in changed["u"].watches] == ["a", "b", "c"] and bug is None
    ((topic, _, _, value, _),) = outbox
    example = decode(TrainingExample, value)
    assert topic == TRAINING_EXAMPLES and [watch.item_id for watch in example.watches] == ["a", "b"]


def test_what_is_loaded_of_a_user_may_be_larger_than_an_event_and_is_nothing_where_it_is_too_late():
    small = Settings.model_validate({"kafka": {"max_message_bytes": 1000}})
    large = loaded(*(f"item-{number:040d}" for number in range(20)))
    assert 1000 < len(encode(large)) < 4000
    changed, _, _ = apply([raw(LOADED_HISTORIES, large, 0)], {}, Waiting(), small, now_ms=NOW_MS)  # type: ignore[arg-type]
    assert len(changed["u"].watches) == 20
    erased = ErasedUsers("")
    erased.hear(b"user/" + hash_of("u", b"").hex().encode(), encode(UserErased(NOW_MS, fingerprint(b""))), 0)
    late = [raw(LOADED_HISTORIES, loaded("a"), 0, produced_ms=NOW_MS + 9)]
    assert apply(late, {}, Waiting(), small, now_ms=NOW_MS, erased=erased)[0] == {}  # type: ignore[arg-type]


def test_what_cannot_be_read_of_a_loaded_history_is_a_dead_letter():
    outbox = Waiting()
    changed, _, bug = apply([raw(LOADED_HISTORIES, b"{}", 1)], {}, outbox, SETTINGS, now_ms=NOW_MS)  # type: ignore[arg-type]
    assert changed == {} and bug is None and [topic for topic, *_ in outbox] == [DEAD_LETTERS]
