"""What becomes of a record: handed on, forwarded to its user's partition, or set aside with the reason."""

from types import SimpleNamespace
from typing import Any

from aiokafka.structs import ConsumerRecord
from faust.types.tuples import TP

from infra.platform.settings import Settings
from streams.kafka.faust.patches import Batch
from streams.kafka.faust_app import owned
from streams.kafka.intake import Raw, read, reject
from streams.messages import DeadLetter, Refused, SearchEvent, WatchEvent, decode, encode
from streams.topics import DEAD_LETTERS, FORWARDED, SEARCH_EVENTS, WATCH_EVENTS, partition_of
from tests.harness.system import with_section

KINDS = {WATCH_EVENTS: WatchEvent, SEARCH_EVENTS: SearchEvent}
NOW_MS = 1_700_000_000_000
SETTINGS = Settings()
PARTITIONS = SETTINGS.kafka.partitions
HOME = partition_of("u", PARTITIONS)
ASTRAY = (HOME + 1) % PARTITIONS


class Waiting(list[tuple[Any, ...]]):
    """The records that were put into an outbox: (topic, partition, key, value, headers)."""

    def add(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: tuple[Any, ...] = ()
    ) -> None:
        self.append((topic, partition, key, value, tuple(headers)))


def watch(event_ms: int = NOW_MS, user_id: str = "u") -> bytes:
    return encode(WatchEvent("e", user_id, "i", event_ms, 30.0))


def raw(value: bytes | None, partition: int = HOME, offset: int = 7, **change: Any) -> Raw:
    return Raw(WATCH_EVENTS, partition, offset, NOW_MS, b"u", value, ())._replace(**change)


def take(*batch: Raw) -> tuple[list[Any], Waiting]:
    """What is handed on of a batch, and what is waiting to be sent."""
    outbox = Waiting()
    return [message for _, message in read(batch, KINDS, SETTINGS, outbox, now_ms=NOW_MS)], outbox  # type: ignore[arg-type]


def letters(outbox: Waiting) -> list[DeadLetter]:
    assert all(topic == DEAD_LETTERS for topic, *_ in outbox)
    return [decode(DeadLetter, value) for _, _, _, value, _ in outbox]


def test_good_messages_are_handed_on_in_order_each_as_its_topic_says():
    search = encode(SearchEvent("s", "u", "cats", NOW_MS))
    handed_on, outbox = take(raw(watch()), raw(search, topic=SEARCH_EVENTS), raw(watch(NOW_MS - 5)))
    assert [type(message) for message in handed_on] == [WatchEvent, SearchEvent, WatchEvent]
    assert handed_on[2].event_ms == NOW_MS - 5 and not outbox


def test_a_bad_message_goes_to_the_dead_letters_whole_with_where_it_lies_and_why():
    bad = raw(b'{"event_id": 7}', headers=(("trace", b"1"),), key=b"\xff")
    handed_on, outbox = take(bad, raw(watch()))
    assert len(handed_on) == 1, "the stream goes on"
    (letter,) = letters(outbox)
    assert (letter.topic, letter.partition, letter.offset) == (WATCH_EVENTS, HOME, 7)
    assert (letter.key, letter.value, letter.headers) == (b"\xff", bad.value, (("trace", b"1"),))
    assert letter.code == "invalid" and "event_id" in letter.reason and letter.at_ms == NOW_MS


def test_each_kind_of_bad_message_has_its_code():
    skew_ms = int(1000 * SETTINGS.history.future_s)
    huge = watch()[:-1] + b', "padding": "' + b"x" * SETTINGS.kafka.max_message_bytes + b'"}'
    batch = [raw(None), raw(b"\x00\xff"), raw(watch(NOW_MS + skew_ms + 1)), raw(huge), raw(watch(NOW_MS + skew_ms))]
    handed_on, outbox = take(*batch)
    assert [letter.code for letter in letters(outbox)] == ["empty", "malformed", "future", "too_large"]
    assert [message.event_ms for message in handed_on] == [NOW_MS + skew_ms], "a clock may be ahead a little"


def test_the_dead_letter_of_a_huge_message_is_cut_and_says_so():
    outbox = Waiting()
    reject(raw(b"x" * 2_000_000), Refused("too_large", "it is too large"), SETTINGS, outbox, now_ms=NOW_MS)  # type: ignore[arg-type]
    (letter,) = letters(outbox)
    assert letter.value == b"x" * 500_000 and "cut to 500000 of 2000000 bytes" in letter.reason


def test_a_message_on_another_partition_than_its_users_is_forwarded_there():
    astray = raw(watch(), partition=ASTRAY, headers=(("trace", b"1"),), key=None)
    handed_on, outbox = take(astray)
    assert not handed_on
    origin = (FORWARDED, f"{WATCH_EVENTS}/{ASTRAY}/7/{PARTITIONS}".encode())
    assert outbox == [(WATCH_EVENTS, HOME, b"u", astray.value, (("trace", b"1"), origin))]


def test_a_forwarded_message_is_taken_at_home_and_never_forwarded_again():
    _, outbox = take(raw(watch(), partition=ASTRAY))
    headers = outbox[0][-1]
    handed_on, outbox = take(raw(watch(), headers=headers))
    assert len(handed_on) == 1 and not outbox
    handed_on, outbox = take(raw(watch(), partition=ASTRAY, headers=headers))
    assert not handed_on
    assert [letter.code for letter in letters(outbox)] == ["misrouted"]


def test_what_was_forwarded_and_not_read_when_the_partitions_were_raised_is_forwarded_once_more():
    """And between processes that disagree about their number it does not go round for ever."""
    fewer, more = (with_section(SETTINGS, "kafka", partitions=partitions) for partitions in (3, 5))
    homes = [partition_of("u", 3), partition_of("u", 5)]
    assert homes[0] != homes[1]
    message, places = raw(watch(), partition=next(n for n in range(3) if n not in homes)), []
    for settings in (fewer, more, fewer):
        outbox = Waiting()
        assert not list(read([message], KINDS, settings, outbox, now_ms=NOW_MS))  # type: ignore[arg-type]
        (topic, partition, _, _, headers) = outbox[0]
        places.append((topic, partition))
        message = message._replace(partition=partition, headers=headers)
    assert places[:2] == [(WATCH_EVENTS, home) for home in homes]
    assert places[2][0] == DEAD_LETTERS


def test_an_origin_that_does_not_tell_the_partitions_is_not_forwarded_again():
    for origin in (b"watch-events/0/0", b"watch-events/0/0/many", b"", b"9/9/9/99999999999"):
        _, outbox = take(raw(watch(), partition=ASTRAY, headers=((FORWARDED, origin),)))
        assert [letter.code for letter in letters(outbox)] == ["misrouted"]


def test_a_reader_without_an_outbox_passes_over_what_another_worker_reports():
    batch = [raw(None), raw(watch(), partition=ASTRAY), raw(watch())]
    handed_on = list(read(batch, KINDS, SETTINGS, None, now_ms=NOW_MS))
    assert [record.partition for record, _ in handed_on] == [HOME]


def test_a_record_is_taken_from_faust_as_it_was_sent():
    name = "p-" + WATCH_EVENTS
    fetched = {
        TP(name, place): [ConsumerRecord(name, place, 12, 1_700_000_000_250, 0, b"u", b"v", None, 1, 1, (("a", b"1"),))]
        for place in (3, 4)
    }
    app: Any = SimpleNamespace(consumer=SimpleNamespace(assignment=lambda: {TP(name, 3)}))
    raw = Raw(WATCH_EVENTS, 3, 12, 1_700_000_000_250, b"u", b"v", (("a", b"1"),))
    assert owned(app, Batch(fetched, 1), "p-") == [raw], "and only of a partition that is still ours"
