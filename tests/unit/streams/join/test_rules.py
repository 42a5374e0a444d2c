"""The pure core of the join: which watch belongs to which impression, when it closes, and what corrects it."""

import json
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.platform.settings import Join, Kafka, Settings
from streams.join.attribution import Rules
from streams.join.rules import MOST_WATCHES, Fate, Step, advance, apply_impression, apply_watch, due_ms, open_count
from streams.messages import (
    Impression,
    ImpressionOutline,
    JoinState,
    RankingExample,
    Refused,
    Shown,
    WatchEvent,
    decode,
    encode,
)

WINDOW_MS, GRACE_MS, EARLY_MS = 100, 50, 10
RULES = Rules(WINDOW_MS, GRACE_MS, EARLY_MS, keep=5, most_bytes=1_000_000, completed_s=18)
HOME = 3


def impression(request_id: str, at_ms: int, items: str) -> Impression:
    """Shown items, one letter each, top first."""
    shown = tuple(Shown(item, place, "retrieval") for place, item in enumerate(items, 1))
    return Impression(request_id, "u", at_ms, "server", "v1", shown)


def watch(
    item: str, event_ms: int, request_id: str | None = None, watch_s: float = 20.0, event_id: str = ""
) -> WatchEvent:
    return WatchEvent(event_id or f"{item}@{event_ms}", "u", item, event_ms, watch_s, 60.0, request_id)


class Stream:
    """A user's events one after the other; each topic counts its own offsets."""

    def __init__(self, rules: Rules = RULES) -> None:
        self.rules = rules
        self.state = JoinState("u")
        self.watermark_ms = 0
        self.examples: list[RankingExample] = []

    def show(self, request_id: str, at_ms: int, items: str, offset: int | None = None) -> Step:
        offset = self.state.impression_offset + 1 if offset is None else offset
        return self.take(impression(request_id, at_ms, items), offset)

    def take(self, shown: Impression | bytes, offset: int) -> Step:
        raw = shown if isinstance(shown, bytes) else encode(shown)
        return self._take(self._apply(apply_impression, decode(ImpressionOutline, raw), raw, offset))

    def watch(self, event: WatchEvent, offset: int | None = None) -> tuple[Fate, ...]:
        offset = self.state.watch_offset + 1 if offset is None else offset
        return self._take(self._apply(apply_watch, event, offset)).fates

    def until(self, watermark_ms: int) -> Step:
        self.watermark_ms = watermark_ms
        return self._take(advance(self.state, watermark_ms=watermark_ms, partition=HOME, rules=self.rules))

    def outcomes(self, offset: int = 0) -> list[tuple[str, float, bool]]:
        """What holds of the impression at this offset."""
        own = [example for example in self.examples if example.offset == offset]
        held = max(reversed(own), key=lambda example: example.revision)
        return [(each.item_id, each.watched_s, each.completed) for each in held.outcomes]

    def _apply(self, apply, *event) -> Step:
        return apply(self.state, *event, watermark_ms=self.watermark_ms, partition=HOME, rules=self.rules)

    def _take(self, step: Step) -> Step:
        self.state = step.state
        self.examples += [decode(RankingExample, encode(example)) for example in step.examples]
        return step


def stream_of(items: str, request_id: str = "r") -> Stream:
    """A viewer who was shown this list at 1000."""
    stream = Stream()
    stream.show(request_id, 1000, items)
    return stream


def test_the_rules_are_the_settings():
    own = Settings(join=Join(window_s=7, grace_s=2, early_s=1.5, open_impressions=4), kafka=Kafka(max_message_bytes=9))
    assert Rules.of(own) == Rules(7000, 2000, 1500, 4, 27, own.history.completed_s)
    usual = Rules.of(Settings())
    assert usual.early_ms >= usual.window_ms, "a watch waits as long as its impression could still be open"


def test_a_window_closes_with_seconds_for_what_was_watched_and_none_for_the_rest():
    stream = stream_of("abc")
    assert stream.watch(watch("b", 1010, "r", 20.0)) == (Fate.JOINED,)
    assert stream.watch(watch("c", 1020, "r", 3.0)) == (Fate.JOINED,)
    assert stream.until(1099).examples == ()
    (example,) = stream.until(1100).examples
    assert stream.outcomes() == [("a", 0.0, False), ("b", 20.0, True), ("c", 3.0, False)]
    assert (example.partition, example.offset, example.closed_ms) == (HOME, 0, 1100)
    assert stream.examples[0].impression == impression("r", 1000, "abc")
    assert stream.until(1100).examples == (), "once"


def test_watches_of_one_item_add_up():
    stream = stream_of("a")
    for number, watch_s in enumerate((5.0, 19.0, 2.0)):
        stream.watch(watch("a", 1000 + number, "r", watch_s))
    stream.until(1100)
    assert stream.outcomes() == [("a", 26.0, True)]


def test_a_replay_is_no_longer_video():
    stream = stream_of("a")
    stream.watch(watch("a", 1010, "r", watch_s=500.0))
    stream.until(1100)
    assert stream.outcomes() == [("a", 60.0, True)]


def test_an_item_that_was_listed_twice_is_watched_once():
    stream = stream_of("aba")
    stream.watch(watch("a", 1010, "r"))
    stream.until(1100)
    assert stream.outcomes() == [("a", 20.0, True), ("b", 0.0, False), ("a", 0.0, False)]


def test_a_request_id_decides_also_where_the_players_clock_is_behind_or_the_window_over():
    stream = stream_of("a", "old")
    stream.show("new", 1010, "a")
    for event_ms in (500, 1020, 1000 + WINDOW_MS + GRACE_MS):
        assert stream.watch(watch("a", event_ms, "old", 1.0)) == (Fate.JOINED,)
    assert stream.watch(watch("a", 1001 + WINDOW_MS + GRACE_MS, "old", 1.0)) == (), "beyond the grace it waits in vain"
    stream.until(1110)
    assert stream.outcomes(0) == [("a", 3.0, False)] and stream.outcomes(1) == [("a", 0.0, False)]


def test_without_a_request_id_the_newest_impression_that_shows_the_item_and_was_open_then_has_the_watch():
    stream = Stream()
    for request_id, at_ms, items in (("1", 1000, "ab"), ("2", 1010, "a"), ("3", 1020, "b"), ("4", 1040, "a")):
        stream.show(request_id, at_ms, items)
    assert stream.watch(watch("a", 1030)) == (Fate.JOINED,)
    assert stream.watch(watch("a", 1010 + WINDOW_MS + 1)) == (Fate.JOINED,)
    assert stream.watch(watch("a", 1040 + WINDOW_MS + 1)) == stream.watch(watch("a", 999)) == ()
    stream.until(1140)
    assert [stream.outcomes(offset)[0][1] for offset in range(4)] == [0.0, 20.0, 0.0, 20.0]


def test_a_request_id_whose_list_does_not_show_the_item_falls_back_to_the_one_that_does():
    stream = stream_of("a", "1")
    stream.show("2", 1010, "b")
    assert stream.watch(watch("a", 1020, "2")) == stream.watch(watch("b", 1020, "1")) == (Fate.JOINED,)


def test_a_watch_that_was_read_before_its_impression_waits_for_it():
    stream = Stream()
    assert stream.watch(watch("a", 1010, "r")) == stream.watch(watch("b", 1010)) == ()
    assert stream.show("r", 1000, "ab").fates == (Fate.JOINED, Fate.JOINED)
    stream.until(1100)
    assert [seconds for _, seconds, _ in stream.outcomes()] == [20.0, 20.0]


def test_a_watch_that_waited_in_vain_is_counted_and_no_example():
    stream = Stream()
    stream.watch(watch("a", 1010, "r"))
    stream.watch(watch("b", 1011))
    assert due_ms(stream.state, RULES) == 1010 + EARLY_MS
    assert stream.until(1019).fates == () and stream.until(1020).fates == (Fate.NO_IMPRESSION,)
    assert stream.until(1021).fates == (Fate.SELF_CHOSEN,)
    assert stream.watch(watch("c", 1000)) == (Fate.SELF_CHOSEN,), "so long ago that it need not wait"
    assert not stream.examples and due_ms(stream.state, RULES) is None


def test_an_impression_that_is_read_late_draws_the_watches_that_are_its_own():
    stream = stream_of("ab", "1")
    stream.watch(watch("a", 1020))
    stream.watch(watch("b", 1020, "1"))
    stream.until(1100)
    assert stream.outcomes(0) == [("a", 20.0, True), ("b", 20.0, True)]
    (correction,) = stream.show("2", 1010, "ab").examples
    assert correction.offset == 0 and correction.revision > stream.examples[0].revision
    assert stream.outcomes(0) == [("a", 0.0, False), ("b", 20.0, True)], "its request id keeps b"
    stream.until(1110)
    assert stream.outcomes(1) == [("a", 20.0, True), ("b", 0.0, False)]


def test_a_late_watch_corrects_the_example_and_a_later_one_again():
    stream = stream_of("ab")
    stream.until(1100)
    assert stream.watch(watch("a", 1090, "r")) == stream.watch(watch("b", 1140, "r")) == (Fate.LATE,)
    revisions = [example.revision for example in stream.examples]
    assert len(revisions) == 3 and revisions == sorted(set(revisions))
    assert stream.outcomes() == [("a", 20.0, True), ("b", 20.0, True)]


def test_a_correction_after_a_crash_is_above_those_that_were_sent_before_it():
    stream = stream_of("a", "1")
    stream.until(1100)
    written = stream.state
    late, newer = watch("a", 1020), ("2", 1010, "a")
    stream.watch(late)
    stream.show(*newer)
    assert stream.outcomes(0) == [("a", 0.0, False)] and len(stream.examples) == 3
    stream.state = written  # both are read again, the other one first, and make no correction
    stream.show(*newer)
    stream.watch(late)
    stream.watch(watch("a", 1090, "1", 7.0))
    assert len(stream.examples) == 4 and stream.outcomes(0) == [("a", 7.0, False)]


def test_after_the_grace_an_impression_is_forgotten():
    stream = stream_of("a")
    stream.until(1100)
    assert due_ms(stream.state, RULES) == 1150 and stream.until(1149).state.impressions
    assert not stream.until(1150).state.impressions
    assert stream.watch(watch("a", 1090, "r")) == (Fate.NO_IMPRESSION,)
    assert len(stream.examples) == 1


def test_duplicates_and_replays_change_nothing():
    stream = stream_of("a")
    stream.watch(watch("a", 1010, "r", event_id="e"))
    stream.watch(watch("z", 1010, event_id="waits"))
    before = stream.state.impressions, stream.state.early
    assert stream.watch(watch("a", 1010, "r", event_id="e")) == (Fate.DUPLICATE,)
    assert stream.watch(watch("z", 1010, event_id="waits")) == (Fate.DUPLICATE,)
    assert stream.watch(watch("a", 1011, "r"), offset=3) == (Fate.REPLAYED,)
    stream.show("r", 1000, "ab")
    stream.show("s", 1000, "ab", offset=1)
    assert (stream.state.impressions, stream.state.early) == before
    assert (stream.state.watch_offset, stream.state.impression_offset) == (3, 1)


def test_a_window_never_ends_at_or_before_the_watermark_at_which_its_impression_came():
    stream = Stream()
    stream.until(5000)
    stream.show("r", 1000, "a")
    assert stream.state.impressions[0].closes_ms == 5001
    stream.watch(watch("a", 1010, "r"))
    stream.until(5001)
    assert stream.outcomes() == [("a", 20.0, True)]


def test_beyond_the_bound_the_oldest_impression_makes_its_example_at_once():
    stream = Stream()
    for number in range(RULES.keep):
        assert stream.show(f"r{number}", 1000 + number, "a").examples == ()
    stream.watch(watch("a", 1050, "r0"))
    step = stream.show("more", 1050, "a")
    assert stream.outcomes(0) == [("a", 20.0, True)] and len(stream.state.impressions) == RULES.keep
    assert [(tally.counted, tally.pushed_by) for tally in step.tallies] == [(None, RULES.keep)]
    assert open_count(stream.state) == RULES.keep


def test_large_impressions_push_older_ones_out_as_many_do():
    size = len(encode(impression("r0", 1000, "abcdefgh")))
    stream = Stream(replace(RULES, most_bytes=4 * size))
    for number in range(5):
        stream.show(f"r{number}", 1000 + number, "abcdefgh")
    assert 2 <= len(stream.state.impressions) < 5 and len(stream.examples) == 5 - len(stream.state.impressions)


def test_a_viewer_who_sends_watches_without_end_keeps_a_bounded_state():
    stream = stream_of("a")
    for number in range(MOST_WATCHES):
        assert stream.watch(watch("a", 1000, "r", event_id=f"e{number}")) == (Fate.JOINED,)
    assert stream.watch(watch("a", 1000, "r", event_id="one more")) == (Fate.TOO_MANY,)
    fates = [stream.watch(watch("z", 1000, event_id=f"z{number}")) for number in range(MOST_WATCHES + 1)]
    assert fates[-2:] == [(), (Fate.SELF_CHOSEN,)] and len(stream.state.early) == MOST_WATCHES


def test_an_impression_goes_into_its_examples_byte_for_byte_whatever_its_features_are():
    raw = """{"request_id": "r", "user_id": "u", "at_ms": 1000, "served_by": "", "version": "", "values": 7,
        "items": [{"item_id": "a", "position": 1, "source": "", "sources": [1e15], "slot": "héro"}]}""".encode()
    state = JoinState("u")
    opened = apply_impression(
        state, decode(ImpressionOutline, raw), raw, 0, watermark_ms=0, partition=HOME, rules=RULES
    )
    closed = advance(opened.state, watermark_ms=1100, partition=HOME, rules=RULES)
    late = apply_watch(closed.state, watch("a", 1010, "r"), 0, watermark_ms=1100, partition=HOME, rules=RULES)
    for example in (*closed.examples, *late.examples):
        written = encode(example)
        assert raw in written and json.loads(written)["impression"] == json.loads(raw)
        with pytest.raises(Refused):  # by who reads features
            decode(RankingExample, written)
    assert len(closed.examples) == len(late.examples) == 1


def test_what_the_join_writes_of_a_whole_impression_is_a_ranking_example():
    stream = Stream()
    stream.show("r", 1000, "ab")
    (unread,) = stream.until(1100).examples
    assert encode(unread) == encode(stream.examples[0])


@pytest.mark.parametrize(
    "written", [b"", b"{", encode(impression("r", 1000, "ab"))], ids=["no", "cut", "of other items"]
)
def test_a_state_with_an_impression_that_is_none_is_as_one_without_it(written: bytes):
    """Somebody else wrote to the changelog."""
    stream = Stream()
    stream.show("r", 1000, "a")
    stream.state = msgspec.structs.replace(
        stream.state, impressions=(msgspec.structs.replace(stream.state.impressions[0], impression=written),)
    )
    pushing = Stream(replace(RULES, keep=1))
    pushing.state = stream.state
    for step in (stream.until(1100), pushing.show("s", 1200, "a")):
        assert (step.examples, step.tallies) == ((), ())
    assert stream.state.impressions == () and len(pushing.state.impressions) == 1


def test_what_changed_since_the_closing_is_counted_when_it_is_forgotten():
    stream = stream_of("ab")
    stream.watch(watch("a", 1010, "r"))
    (closing,) = stream.until(1100).tallies
    assert closing.counted is None and closing.at_ms == 1100
    stream.watch(watch("b", 1090, "r"))
    (change,) = stream.until(1150).tallies
    assert change.at_ms == 1150 and [each.watched_s for each in change.outcomes] == [20.0, 20.0]
    assert change.counted is not None and [each.item_id for each in change.counted] == ["a"]


# --- in any order, whatever is read twice -----------------------------------------------------------------------------

ITEMS = "abc"
shown_lists = st.tuples(
    st.integers(0, 40), st.text(ITEMS, min_size=1, max_size=3).map(lambda drawn: "".join(dict.fromkeys(drawn)))
)
watched_items = st.tuples(
    st.integers(-5, 160), st.sampled_from(ITEMS), st.sampled_from([None, 0, 1, 2, 9]), st.integers(0, 30)
)
PATIENT = replace(RULES, grace_ms=10_000, early_ms=10_000, keep=50)


def oracle(shown: list[Impression], watches: list[WatchEvent]) -> dict[str, list[float]]:
    """Seconds by request id, from everything at once."""
    seconds = {each.request_id: dict.fromkeys((item.item_id for item in each.items), 0.0) for each in shown}
    newest_first = sorted(enumerate(shown), key=lambda pair: (pair[1].at_ms, pair[0]), reverse=True)
    for event in {each.event_id: each for each in reversed(watches)}.values():
        having = [each for _, each in newest_first if event.item_id in seconds[each.request_id]]
        named = [each for each in having if each.request_id == event.request_id]
        open_then = [each for each in having if each.at_ms <= event.event_ms <= each.at_ms + WINDOW_MS]
        for home in (named or open_then)[:1]:
            seconds[home.request_id][event.item_id] += event.watch_s
    return {request_id: list(by_item.values()) for request_id, by_item in seconds.items()}


@settings(max_examples=400, deadline=None)
@given(st.lists(shown_lists, max_size=4), st.lists(watched_items, max_size=8), st.data())
def test_in_any_order_with_duplicates_and_crashes_the_last_examples_are_those_of_everything_at_once(
    drawn, watched, data
):
    """A crash loses the state since it was last written, but no example that was sent; then events are read again."""
    shown = [impression(f"r{n}", at_ms, items) for n, (at_ms, items) in enumerate(drawn)]
    watches = [
        watch(item, at_ms + 5, None if named is None else f"r{named}", float(watch_s), f"e{n}")
        for n, (at_ms, item, named, watch_s) in enumerate(watched)
    ]
    sent_shown = shown + _again(shown, data)
    sent_watches = watches + _again(watches, data)
    stream, written = Stream(PATIENT), JoinState("u")
    read = [0, 0]  # next offsets of the two topics
    sent = [sent_shown, sent_watches]
    for choice in data.draw(st.lists(st.sampled_from("iiwwws>>!"), max_size=40)):
        topic = "iw".find(choice)
        if topic >= 0 and read[topic] < len(sent[topic]):
            _read_one(stream, sent, topic, read)
        elif choice == ">":
            stream.until(stream.watermark_ms + 30)
        elif choice == "s":
            written = stream.state
        elif choice == "!":
            stream.state = written
            read = [data.draw(st.integers(0, _seen(written, topic) + 1)) for topic in (0, 1)]
    for topic in (0, 1):
        while read[topic] < len(sent[topic]):
            _read_one(stream, sent, topic, read)
    stream.until(max(stream.watermark_ms, 5000))
    expected = oracle(shown, watches)
    assert {example.impression.request_id for example in stream.examples} == expected.keys()
    for offset, each in enumerate(shown):
        assert [seconds for _, seconds, _ in stream.outcomes(offset)] == expected[each.request_id]
    assert {example.offset for example in stream.examples} == set(range(len(shown))), "a duplicate is no example"


def _again(sent: list, data: st.DataObject) -> list:
    """Some of it, sent a second time."""
    return [sent[n] for n in data.draw(st.lists(st.integers(0, len(sent) - 1), max_size=3))] if sent else []


def _seen(state: JoinState, topic: int) -> int:
    return (state.impression_offset, state.watch_offset)[topic]


def _read_one(stream: Stream, sent: list[list], topic: int, read: list[int]) -> None:
    event, offset = sent[topic][read[topic]], read[topic]
    read[topic] += 1
    if topic == 0:
        stream.show(event.request_id, event.at_ms, "".join(item.item_id for item in event.items), offset)
    else:
        stream.watch(event, offset)
