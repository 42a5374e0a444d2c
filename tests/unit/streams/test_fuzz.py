"""Whatever bytes arrive in a topic: they are a good message, or refused with a reason, and nothing else happens."""

import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from itertools import islice
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.consumer.fetcher import ConsumerRecord

from indexer import rollout
from indexer.intake import Intake, Targets
from indexer.item_attributes import AttributeTable
from indexer.pending_writes import PendingWrites
from infra.operate.releases import hear
from infra.platform.settings import Settings
from models.catalogue.catalogue import Catalogue
from serving.request.parsing import parse_request
from serving.state.release import Releases
from serving.state.trending_view import TrendingView
from serving.state.views import CatalogueView, HistoryView, StatisticsView
from streams import topics
from streams.bundles.source import BundleSource
from streams.history.rules import apply_impression, apply_search, apply_watch
from streams.history.signals import apply_signal
from streams.join.attribution import Rules
from streams.join.rules import advance as close
from streams.join.rules import apply_impression as apply_join_impression
from streams.join.rules import apply_watch as apply_join_watch
from streams.kafka.intake import Raw, read
from streams.messages import (
    ImpressionOutline,
    ItemVector,
    JoinState,
    Refused,
    SearchEvent,
    SignalEvent,
    WatchEvent,
    decode,
    encode,
)
from streams.trainer.control_state import ControlState
from streams.trending.app import take_over
from tests.harness.fuzz import GOOD, KIND_OF, LARGE, LATEST_MS, NOW_MS, is_refused, mutants, named
from tests.unit.streams.kafka.test_intake import Waiting

SETTINGS = Settings()
MANY = 100_000
FEW = 4_000
MOST_MB = 300  # more memory than before, whatever comes; one large message is of 1.5


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MOST_MB


@pytest.mark.parametrize("topic", GOOD)
def test_a_hundred_thousand_mutated_messages_are_refused_or_good(topic):
    refused = 0
    for raw in islice(mutants(topic, seed=1), MANY):
        try:
            message = decode(KIND_OF[topic], raw, latest_ms=LATEST_MS)
        except Refused:
            refused += 1
        else:
            encode(message)
    assert 0.5 * MANY < refused < MANY, "both kinds are in it"


@pytest.mark.parametrize("topic", GOOD)
def test_each_named_kind_is_refused_with_a_reason_and_soon(topic):
    kinds = named(topic)
    assert len(kinds) >= 15
    for name, value in [*kinds.items(), *((f"large {at}", make(GOOD[topic][0])) for at, make in enumerate(LARGE))]:
        began_s = time.process_time()
        with pytest.raises(Refused) as refused:
            decode(KIND_OF[topic], value, max_bytes=2_000_000)
        assert str(refused.value) and refused.value.code in {"malformed", "invalid", "empty"}, name
        assert time.process_time() - began_s < 1.0, name


def test_what_a_mutant_makes_of_a_good_message_can_be_sent_on():
    for topic in GOOD:
        for raw in islice((each for each in mutants(topic, seed=2) if not is_refused(topic, each)), 200):
            message = decode(KIND_OF[topic], raw)
            assert decode(KIND_OF[topic], encode(message), max_bytes=8_000_000) == message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(GOOD)), st.data())
def test_a_message_with_other_values_in_its_fields_is_refused_or_good(topic, data):
    raw = GOOD[topic][0]
    message = json.loads(raw) if topic != topics.ITEM_VECTORS else {}
    if isinstance(message, dict):
        for name in data.draw(st.lists(st.sampled_from(sorted(message) or ["x"]), max_size=3)):
            message[name] = data.draw(JSON)
    with suppress(Refused):
        encode(decode(KIND_OF[topic], json.dumps(message).encode(), latest_ms=LATEST_MS))


# --- the readers, each with what it does beside decoding -------------------------------------------------------------


def everything(topic: str, seed: int = 3, few: int = FEW) -> Iterator[bytes]:
    yield from named(topic).values()
    yield from islice(mutants(topic, seed), few)


KEYS = (b"ann", b"", b"\xff\xfe", b"a\0b", b"k" * 2000, b"server/x", b"item/" + b"9" * 5000 + b"/x", b"\xff/0", None)


@pytest.mark.parametrize("topic", [topics.WATCH_EVENTS, topics.SEARCH_EVENTS, topics.SIGNALS, topics.IMPRESSIONS])
def test_each_event_is_handed_on_forwarded_or_set_aside(topic):
    batch = [
        Raw(topic, at % 4, at, NOW_MS, KEYS[at % len(KEYS)], value, (("h", None),))
        for at, value in enumerate(everything(topic))
    ]
    outbox = Waiting()
    handed_on = list(read(batch, {topic: KIND_OF[topic]}, SETTINGS, outbox, now_ms=NOW_MS))
    assert len(handed_on) + len(outbox) == len(batch)
    histories = apply_all([(raw, message) for raw, message in handed_on])
    assert all(len(encode(history)) < 4_000_000 for history in histories.values())


def apply_all(events: list[tuple[Raw, Any]]) -> dict[str, Any]:
    from streams.messages import UserHistory

    histories: dict[str, Any] = {}
    for raw, event in events:
        before = histories.get(event.user_id) or UserHistory(event.user_id)
        if isinstance(event, WatchEvent):
            after = apply_watch(before, event, raw.source, keep=50, completed_s=18.0, watched=500, watched_days=90)
        elif isinstance(event, SearchEvent):
            after = apply_search(before, event, raw.source, keep=50)
        elif isinstance(event, SignalEvent):
            after = apply_signal(before, event, raw.source, unwanted=500, others=100)
        else:
            assert isinstance(event, ImpressionOutline)
            after = apply_impression(before, event, raw.source, keep=100)
        histories[event.user_id] = after.history
    return histories


def test_each_request_is_opened_and_has_a_reason_where_it_has_no_answer():
    odd = [
        (),
        (("reply_topic", b"\xff" * 300),),
        (("correlation_id", b"c" * 900_000),),
        (("reply_partition", b"\xff"),),
    ]
    opened = refused = 0
    for at, value in enumerate([*everything(topics.RECOMMEND_REQUESTS), None]):
        record = SimpleNamespace(value=value, headers=odd[at % 4], partition=0, offset=at, key=None, timestamp=0)
        letter = parse_request(record, SETTINGS, lambda topic: 0)
        opened, refused = opened + 1, refused + (letter.refused is not None)
        assert (letter.request is not None) or (letter.refused is not None)
        if letter.address is not None:
            assert sum(len(content) for _, content in letter.address.headers) < 250_000, "it fits into a reply"
    assert refused > opened / 2


def test_the_indexer_takes_or_refuses_each_record():
    rows = PendingWrites()
    rows.follow("v1")
    intake = Intake(rows, AttributeTable(), 1_000_000)
    hear_vector = partial(intake.hear_vector, targets=Targets({"v1": 8}))
    for topic, take in ((topics.ITEMS, intake.hear_item), (topics.ITEM_VECTORS, hear_vector)):
        for at, value in enumerate([*everything(topic), *len(KEYS) * [None]]):
            with suppress(Refused):
                take(KEYS[at % len(KEYS)], value, is_written=False, now_ms=NOW_MS)
    while taken := rows.take_rows(100):
        _, waiting = taken
        assert all(len(row.vector) == 32 and 0 <= row.step < 2**63 for row in waiting.values())


def record(topic: str, key: bytes | None, value: bytes | None, at: int = 0) -> Any:
    return ConsumerRecord("x-" + topic, 0, 0, at, NOW_MS, 0, key, value, (), None, 0, 0, 0)


def test_releases_are_heard_or_passed_over():
    told = rollout.Releases()
    known = ControlState(SETTINGS)
    for topic in (topics.RELEASES, topics.ITEMS):
        for at, value in enumerate([*everything(topic), *len(KEYS) * [None]]):
            each = record(topic, KEYS[at % len(KEYS)], value, at)
            told = hear(told, each) if topic == topics.RELEASES else told
            known._take(each)
    assert known.newest is None or known.newest.version.isascii(), "it names a directory"


def views() -> dict[str, Callable[[bytes | None, bytes | None], object]]:
    histories, catalogue, trending, statistics = (
        HistoryView(),
        CatalogueView(3_600_000),
        TrendingView(),
        StatisticsView(4, 168.0),
    )
    described, newest = Catalogue(), dict[bytes, Any]()

    def hear_history(key: bytes | None, value: bytes | None) -> None:
        histories.apply(0, key, value)
        histories.get("ann", 0)

    def hear_item(key: bytes | None, value: bytes | None) -> None:
        item_id = catalogue.apply(key, value, NOW_MS)
        if item_id is not None:
            catalogue.describe(item_id, described)

    def hear_trending(key: bytes | None, value: bytes | None) -> None:
        trending.apply(key, value)
        trending.best("ann")
        if key is not None:
            take_over(newest, key, value, max_bytes=1_000_000)

    def hear_statistics(key: bytes | None, value: bytes | None) -> None:
        statistics.apply(key, value)
        statistics.statistics.at("item", ["video-1"], np.array([NOW_MS]))

    return {
        topics.USER_HISTORIES: hear_history,
        topics.ITEMS: hear_item,
        topics.TRENDING: hear_trending,
        topics.ITEM_STATISTICS: hear_statistics,
    }


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("topic", views())
def test_the_views_of_serving_take_or_pass_over_each_record(topic, caplog):
    apply, keys = views()[topic], Random(1)
    for value in [*everything(topic), *20 * [None]]:
        apply(keys.choice(KEYS), value)


def test_a_release_that_is_served_takes_or_passes_over_each_row(tmp_path):
    class NoIndex:
        def mark_of(self, version: str, timeout_s: float | None = None) -> str:
            return ""

    with closing(Releases(BundleSource(tmp_path), NoIndex(), CatalogueView())) as releases:  # type: ignore[arg-type]
        for at, value in enumerate([*everything(topics.ITEM_VECTORS), *len(KEYS) * [None]]):
            releases.apply_vector(KEYS[at % len(KEYS)], value, NOW_MS)
        for value in everything(topics.RELEASES, few=200):
            releases.apply_release(value)
        assert all(isinstance(row, ItemVector) for row in releases._rows.values())


def test_what_the_join_makes_of_an_impression_is_json_whatever_it_was():
    how: dict[str, Any] = {"watermark_ms": 0, "partition": 0, "rules": Rules.of(SETTINGS)}
    examples = 0
    for raw in everything(topics.IMPRESSIONS):
        with suppress(Refused):
            state = apply_join_impression(JoinState("ann"), decode(ImpressionOutline, raw), raw, 0, **how).state
            state = decode(JoinState, encode(state))
            for example in close(state, watermark_ms=2**53, partition=0, rules=how["rules"]).examples:
                assert json.loads(encode(example), parse_int=float)["impression"]["items"] is not None
                examples += 1
    assert examples > 100


def test_the_join_closes_or_drops_what_a_state_holds():
    for raw in everything(topics.JOIN_STATE):
        with suppress(Refused):
            state = decode(JoinState, raw)
            for example in close(state, watermark_ms=2**53, partition=0, rules=Rules.of(SETTINGS)).examples:
                json.loads(encode(example), parse_int=float)


@pytest.mark.parametrize(("lists", "sources"), [(3, 75_000), (5, 20_000)])
def test_what_the_join_keeps_of_a_user_fits_into_a_message_whatever_comes(lists, sources):
    """Lists that grow when they are written again (1e15 becomes 1000000000000000.0), ids that take six bytes a
    character, and more watches than anybody has."""
    how: dict[str, Any] = {"watermark_ms": 0, "partition": 0, "rules": Rules.of(SETTINGS)}
    scores = ",".join(f'"{at:x}":1e15' for at in range(sources))
    state = JoinState("ann")
    for at in range(lists):
        raw = f"""{{"request_id":"{at}","user_id":"ann","at_ms":{NOW_MS},"served_by":"","version":"",
            "items":[{{"item_id":"a","position":1,"source":"","sources":{{{scores}}}}}]}}"""
        state = apply_join_impression(state, decode(ImpressionOutline, raw.encode()), raw.encode(), at, **how).state
        assert len(encode(state)) < 3_900_000, "a message may be four times the limit of a value (streams.topics)"
    for number in range(220 * (lists + 1)):
        name = f"{number}".ljust(256, "\x01")
        at, item_id = number % (lists + 1), "a" if number % (lists + 1) < lists else name
        watch = WatchEvent(name, "ann", item_id, NOW_MS, 31.5, None, f"{at}")
        state = apply_join_watch(state, watch, number, **how).state
    assert len(encode(state)) < 3_900_000
