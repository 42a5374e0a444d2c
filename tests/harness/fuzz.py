"""Messages that cannot be used, of every kind that we could think of, from a seed: what a broken producer sends, and
what one that means harm does.

Two sources: a list of named kinds (deep nesting, numbers that are none, other encodings, MessagePack that promises
gigabytes), and a byte fuzzer that mutates good messages. Whether a message is bad is not decided here but by
streams.messages.decode: what it accepts is a good message, whoever made it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from random import Random
from typing import Any, NamedTuple

import msgspec

from streams import topics
from streams.messages import (
    COMPACT,
    BundlePublished,
    Context,
    DeadLetter,
    Impression,
    ImpressionOutline,
    IndexReady,
    Item,
    ItemVector,
    JoinedWatch,
    JoinState,
    LoadedHistory,
    OpenImpression,
    Outcome,
    RankingExample,
    Recommended,
    RecommendReply,
    RecommendRequest,
    Refused,
    Search,
    SearchEvent,
    ServerState,
    Shown,
    ShownList,
    Signal,
    SignalEvent,
    StatisticsRow,
    TrainingExample,
    Trending,
    UserHistory,
    Watch,
    WatchEvent,
    decode,
    encode,
)

NOW_MS = time.time_ns() // 1_000_000
LATEST_MS = NOW_MS + 300_000
# Whose readers refuse times ahead of theirs; each later than any of them takes, for as long as a test may last.
_TIMED = (
    topics.WATCH_EVENTS,
    topics.SEARCH_EVENTS,
    topics.SIGNALS,
    topics.IMPRESSIONS,
    topics.LOADED_HISTORIES,
    topics.TRAINING_EXAMPLES,
)
AHEAD_MS = dict.fromkeys(_TIMED, NOW_MS + 2 * 86_400_000)
KIND_OF = {topic.name: topic.message for topic in topics.TOPICS}
KIND_OF[topics.IMPRESSIONS] = ImpressionOutline  # as far as they are read by who refuses them
BINARY = frozenset({topics.ITEM_VECTORS, topics.RIVAL_VECTORS})
COMPACTED = frozenset({topics.USER_HISTORIES, topics.LOADED_HISTORIES, topics.TRAINING_EXAMPLES})
LARGE_EVERY = 2000  # one message in so many is of megabytes

_WATCH = Watch("video-1", NOW_MS, 31.5, 60.0, True, "e1", 7)
_CONTEXT = Context("de", "de-DE", "tv", "home", True, 0.5, 0.25)
_SHOWN = Shown("video-1", 1, "fresh", 1.25, 20.0, 1, {"fresh": None}, {"item": ("a",)}, b"\0" * 8, 0.5)
_IMPRESSION = Impression(
    "r1", "ann", NOW_MS, "server", "v1", (_SHOWN,), _CONTEXT, "hash", {"user": ("ann",)}, b"\0" * 8
)
_SEARCH = Search("cars", NOW_MS, "s1", 3)
_LIST = ShownList("r1", NOW_MS, ("a",))
_SIGNAL = Signal("dislike", "video-1", None, NOW_MS, "g1", 2)
_JOINED = JoinedWatch("video-1", NOW_MS, 31.5, True, "e1", None, 5)
_OPEN = OpenImpression("r1", NOW_MS, ("video-1",), encode(_IMPRESSION), 7, NOW_MS, (_JOINED,))
_STATE_IN_JSON = {
    "user_id": "ann",
    "impressions": [{"impression": _IMPRESSION, "offset": 7, "closes_ms": NOW_MS, "watches": [_JOINED]}],
    "watch_offset": 5,
    "impression_offset": 7,
}
_RECOMMENDED = Recommended("video-1", 1, "fresh", 1.0, 20.0)

GOOD: dict[str, list[bytes]] = {  # JSON first, and the compact form where there is one
    topic: list(dict.fromkeys(encode(each, compact=compact) for compact in (False, True) for each in messages))
    for topic, messages in {
        topics.WATCH_EVENTS: [
            WatchEvent("e1", "ann", "video-1", NOW_MS, 31.5, 60.0, "r1", _CONTEXT),
            WatchEvent("e2", "bob \N{SNOWMAN}", "video-2", NOW_MS, 0.0),
        ],
        topics.SEARCH_EVENTS: [SearchEvent("s1", "ann", "red cars", NOW_MS, _CONTEXT)],
        topics.SIGNALS: [
            SignalEvent("g1", "ann", "dislike", NOW_MS, "video-1"),
            SignalEvent("g2", "bob", "not_interested", NOW_MS, channel="cars"),
        ],
        topics.ITEMS: [
            Item("video-1", "A title", "channel", ("cars", "red"), 60.0, NOW_MS, True, "de", {"music": ("77",)}),
            Item("video-2", available=False),
        ],
        topics.USER_HISTORIES: [
            UserHistory("ann", (_WATCH,), (_SEARCH,), _CONTEXT, 7, 3, NOW_MS, (_LIST,), 4, b"\0" * 12, 0, (_SIGNAL,), 2)
        ],
        topics.LOADED_HISTORIES: [LoadedHistory("ann", NOW_MS, (_WATCH,), (_SEARCH,), _CONTEXT, b"\0" * 12)],
        topics.TRAINING_EXAMPLES: [
            TrainingExample("ann", "video-1", NOW_MS, 31.5, 60.0, (_WATCH,), (_SEARCH,), _CONTEXT, 0, 7, NOW_MS)
        ],
        topics.ITEM_VECTORS: [ItemVector("v1", 7, b"\0" * 32, b"\0" * 28, NOW_MS, b"\1" * 16)],
        topics.RIVAL_VECTORS: [ItemVector("v2", 3, b"\0" * 32, b"\0" * 28, NOW_MS, b"\1" * 16)],
        topics.RELEASES: [
            BundlePublished("v1", NOW_MS, 9, 100, "hash"),
            IndexReady("v1", "items_v1", 100, NOW_MS),
            ServerState("server", "v1", NOW_MS),
        ],
        topics.IMPRESSIONS: [_IMPRESSION],
        topics.RANKING_EXAMPLES: [RankingExample(_IMPRESSION, (Outcome("video-1", 31.5, True),), 0, 7, NOW_MS, 3)],
        topics.JOIN_STATE: [JoinState("ann", (_OPEN,), (), 5, 7)],
        topics.ITEM_STATISTICS: [StatisticsRow("item", "video-1", 0, NOW_MS, 3.0, 1.0, 31.5, 1.0, 20.0, (NOW_MS, 7))],
        topics.TRENDING: [
            Trending("global", 0, NOW_MS, 3600.0, (("video-1", 3.5),), 7),
            Trending("global", 1, NOW_MS, 3600.0, (("video-1", 3.5),), 7, (86_400.0,), ((4.0, 5.0),), (3.5, 4.0, 5.0)),
        ],
        topics.RECOMMEND_REQUESTS: [
            RecommendRequest("r1", "ann", 20, _CONTEXT, "duration_s < 600", ("video-2",), 1000)
        ],
        topics.RECOMMEND_REPLIES: [RecommendReply("r1", (_RECOMMENDED,), "v1", "server", {"embed": 1.0})],
        topics.DEAD_LETTERS: [
            DeadLetter("items", 0, 7, "no good", "invalid", NOW_MS, b"key", b"\xff", (("trace", b"1"),))
        ],
    }.items()
}
GOOD[topics.JOIN_STATE].insert(0, msgspec.json.encode(_STATE_IN_JSON))  # as it was written before it had forms

# What may stand where a value of a JSON message stood.
INSTEAD = (
    b"-1", b"1e999", b"-1e999", b"NaN", b"Infinity", b"-Infinity", b"null", b"true", b"{}", b"[]", b'""', b"9" * 30,
    b"9" * 5000, b"1" + b"0" * 400, b"0.1e-400", b"18446744073709551616", b"-9223372036854775809", b'"\\ud800"',
    b'"\\udc00\\ud800"', b'"\xed\xa0\x80"', b'"\xff\xfe"', b'"\\u0000"', b'"\0"', b"[" * 3000, b'{"a":' * 3000, b'"',
    b"'a'", b"\xc0\x80", b"\x7f", b"0x10", b"1_000", b"01", b"+1", b".5", b'"\\x41"', b'"' + b"x" * 3000 + b'"',
    b"-62135596800000", b"253402300799999", b"9223372036854775807",
)  # fmt: skip

TEXT: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda raw: b"",
    "blanks": lambda raw: b" \n\t",
    "deep arrays": lambda raw: b"[" * 100_000,
    "deep arrays, closed": lambda raw: b"[" * 100_000 + b"]" * 100_000,
    "deep objects": lambda raw: b'{"a":' * 60_000,
    "depth in a field that nobody knows": lambda raw: raw[:-1] + b',"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "NUL bytes": lambda raw: b"\0" * 100,
    "a NUL behind it": lambda raw: raw + b"\0",
    "with a BOM": lambda raw: b"\xef\xbb\xbf" + raw,
    "UTF-16": lambda raw: raw.decode().encode("utf-16"),
    "UTF-16 without a BOM": lambda raw: raw.decode().encode("utf-16-le"),
    "UTF-32": lambda raw: raw.decode().encode("utf-32"),
    "EBCDIC": lambda raw: raw.decode(errors="replace").encode("cp500", "replace"),
    "an array around it": lambda raw: b"[" + raw + b"]",
    "a string of it": lambda raw: msgspec.json.encode(raw.decode()),
    "twice": lambda raw: raw + raw,
    "a comma too many": lambda raw: raw[:-1] + b",}",
    "a comment": lambda raw: b"/* a */" + raw,
    "a key again that holds nothing": lambda raw: raw[:-1] + b"," + raw[1 : raw.find(b":")] + b":null}",
    "a key without end": lambda raw: b'{"' + b"k" * 300_000,
    "escapes": lambda raw: b'{"event_id":"' + b"\\u0000" * 50_000 + b'"}',
    "compressed by hand": lambda raw: b"\x1f\x8b\x08\x00" + raw,
    "Confluent's five bytes before it": lambda raw: b"\0\0\0\0\x01" + raw,
    "Java's serialisation": lambda raw: b"\xac\xed\x00\x05t\x00\x04" + raw,
    "a pickle": lambda raw: b"\x80\x04\x95" + raw + b".",
    "null": lambda raw: b"null",
    "a number": lambda raw: b"7",
}

MSGPACK: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda raw: b"",
    "an array that says four thousand million": lambda raw: b"\xdd\xff\xff\xff\xff" + raw[1:],
    "a map that does": lambda raw: b"\xdf\xff\xff\xff\xff" + raw[1:],
    "text that does": lambda raw: b"\x96\xdb\xff\xff\xff\xff" + raw[1:],
    "bytes that do": lambda raw: b"\x96\xa2v1\x01\xc6\xff\xff\xff\xff" + raw[1:],
    "an extension that does": lambda raw: b"\x96\xc9\xff\xff\xff\xff\x05" + raw[1:],
    "deep arrays": lambda raw: b"\x91" * 300_000,
    "deep maps": lambda raw: b"\x81\xa1a" * 100_000,
    "depth behind what is known": lambda raw: b"\x99" + raw[1:] + b"\xa0\xc4\x00" + b"\x91" * 100_000,
    "never used": lambda raw: b"\xc1",
    "nil": lambda raw: b"\xc0",
    "a number for the version": lambda raw: b"\x96\x07" + raw[4:],
    "a step below nothing": lambda raw: b"\x96\xa2v1\xd3" + b"\xff" * 8 + raw[5:],
    "a step beyond 64 bits of sign": lambda raw: b"\x96\xa2v1\xcf" + b"\xff" * 8 + raw[5:],
    "JSON": lambda raw: b'{"version": "v1"}',
    "text that is no UTF-8": lambda raw: b"\x96\xa3\xed\xa0\x80" + raw[4:],
}

BEHIND_ITS_BYTE: dict[str, Callable[[bytes], bytes]] = {
    "nothing behind its byte": lambda raw: COMPACT,
    "JSON behind it": lambda raw: COMPACT + raw,
    "another byte": lambda raw: b"\x02" + msgspec.msgpack.encode(msgspec.json.decode(raw)),
    "a map that says four thousand million": lambda raw: COMPACT + b"\xdf\xff\xff\xff\xff\xa7user_id\xa1u",
    "watches that do": lambda raw: COMPACT + b"\x82\xa7user_id\xa1u\xa7watches\xdd\xff\xff\xff\xff",
    "deep arrays behind it": lambda raw: COMPACT + b"\x91" * 300_000,
    "deep maps in a field that nobody knows": lambda raw: COMPACT + b"\x81\xa1x" + b"\x81\xa1a" * 100_000,
    "a cut end": lambda raw: COMPACT + msgspec.msgpack.encode(msgspec.json.decode(raw))[:-1],
    "no map": lambda raw: COMPACT + b"\xc0",
}

LARGE: tuple[Callable[[bytes], bytes], ...] = (
    lambda raw: b'{"x":"' + b"x" * 900_000 + b'"}',
    lambda raw: b"\xff" * 1_500_000,
    lambda raw: b"[" * 900_000,
    lambda raw: b"\0" * 900_000,
)


class Bad(NamedTuple):
    """A record that must be accounted for. `timestamp_ms` None: the time of sending."""

    value: bytes | None
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_ms: int | None = None


def is_refused(topic: str, value: bytes | None, latest_ms: int | None = LATEST_MS) -> bool:
    """Whether a value cannot be used by who takes times up to `latest_ms` (None: any). Raises what `decode` should
    not."""
    try:
        decode(KIND_OF[topic], value, max_bytes=1_000_000, latest_ms=latest_ms)
    except Refused:
        return True
    return False


def mutants(topic: str, seed: int) -> Iterator[bytes]:
    """Good messages with something wrong in them, or not, without end."""
    rng, good = Random(seed), GOOD[topic]
    while True:
        raw = rng.choice(good)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            raw = mutate(rng, raw, rng.choice(good))
        yield raw


def mutate(rng: Random, raw: bytes, other: bytes) -> bytes:
    """One thing done to a message."""
    at = rng.randrange(len(raw) + 1)
    to = min(len(raw), at + rng.randrange(1, 24))
    return MUTATIONS[rng.randrange(len(MUTATIONS))](rng, raw, other, at, to)


def _value_replaced(rng: Random, raw: bytes, at: int) -> bytes:
    """Another value behind the next colon."""
    colon = raw.find(b":", at)
    end = raw.find(b",", colon)
    return raw if colon < 0 else raw[: colon + 1] + rng.choice(INSTEAD) + (raw[end:] if end >= 0 else b"}")


MUTATIONS: tuple[Callable[[Random, bytes, bytes, int, int], bytes], ...] = (
    lambda rng, raw, other, at, to: (
        raw[:at] + bytes(each ^ 1 << rng.randrange(8) for each in raw[at : at + 1]) + raw[at + 1 :]
    ),
    lambda rng, raw, other, at, to: raw[:at],
    lambda rng, raw, other, at, to: raw[:at] + other[rng.randrange(len(other)) :],
    lambda rng, raw, other, at, to: raw[:at] + raw[to:],
    lambda rng, raw, other, at, to: raw[:at] + raw[at:to] * rng.randrange(2, 9) + raw[to:],
    lambda rng, raw, other, at, to: raw[:at] + rng.randbytes(rng.randrange(1, 9)) + raw[at:],
    lambda rng, raw, other, at, to: raw[:at] + rng.choice(INSTEAD) + raw[to:],
    lambda rng, raw, other, at, to: _value_replaced(rng, raw, at),
    lambda rng, raw, other, at, to: rng.randbytes(rng.randrange(1, 60)),
)


def named(topic: str) -> dict[str, bytes]:
    """The message of each named kind, where it is one that everybody refuses."""
    raw = GOOD[topic][0]
    makers = MSGPACK if topic in BINARY else TEXT | BEHIND_ITS_BYTE if topic in COMPACTED else TEXT
    made = {name: make(raw) for name, make in makers.items()}
    return {name: value for name, value in made.items() if is_refused(topic, value, AHEAD_MS.get(topic))}


def bad_values(topic: str, seed: int, large_every: int = LARGE_EVERY) -> Iterator[bytes]:
    """Values that everybody refuses: the named ones by turns with mutants, and now and then a large one."""
    rng, raw = Random(seed), GOOD[topic][0]
    known, fuzzed = cycle(named(topic).values()), mutants(topic, seed)
    for number in cycle(range(large_every)):
        if number == large_every // 2:
            yield rng.choice(LARGE)(raw)
        elif number % 16 == 0:
            yield next(known)
        else:
            yield next(value for value in fuzzed if is_refused(topic, value, AHEAD_MS.get(topic)))


def bad_records(
    topic: str, count: int, seed: int, *, odd_times_ms: Sequence[int] = (), large_every: int = LARGE_EVERY
) -> Iterator[Bad]:
    """`count` bad records with all kinds of keys, headers and times; of `large_every` one has a large value, one a
    large key, one a large header."""
    is_deleted = next(each for each in topics.TOPICS if each.name == topic).cleanup == "delete"
    rng, values = Random(seed + 1), bad_values(topic, seed, large_every)
    for number in range(count):
        key = rng.choice((b"", b"\xff\xfe", b"k\0k", b"somebody", f"k{number}".encode()))
        if number % large_every == large_every // 4:
            key = b"k" * 1_000_000
        elif is_deleted and number % 5 == 0:
            key = None
        headers: Any = ()
        if number % 7 == 0:
            headers = (("unknown \N{SNOWMAN}", b"\xff\0"), ("", b""), (topics.FORWARDED, b"x" * rng.randrange(300)))
        elif number % large_every == large_every // 3:
            headers = (("huge", b"h" * 900_000),)
        timestamp_ms = rng.choice(odd_times_ms) if odd_times_ms and number % 10 == 0 else None
        # in a compacted topic a message without a value is a good one, and one without a key is refused by brokers
        value = None if number % 50 == 7 and is_deleted else next(values)
        yield Bad(value, key, headers, timestamp_ms)
