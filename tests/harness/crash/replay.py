"""What must be there, from the topics alone: everything at once, by the shortest rules that give it.

Nothing here is of the code that runs: no state, no batches, no offsets to pass over. Each event counts once, by its id,
where it stands first on its user's own partition.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from infra.platform.settings import Settings
from streams.kafka.follow import TopicFollower
from streams.messages import ImpressionOutline, Refused, SearchEvent, SignalEvent, TrainingExample, WatchEvent, decode
from streams.topics import IMPRESSIONS, SEARCH_EVENTS, SIGNALS, WATCH_EVENTS, partition_of
from tests.harness.traffic import Histories, Reader

Place = tuple[int, int]  # partition and offset
MOST_BYTES = 8_000_000


class Content(NamedTuple):
    """What a history holds: (event id, offset) of watches, searches and signals, request ids of lists, oldest first."""

    watches: tuple[tuple[str, int], ...]
    searches: tuple[tuple[str, int], ...]
    lists: tuple[str, ...]
    signals: tuple[tuple[str, int], ...]


class ExampleContent(NamedTuple):
    """What a training example says: the watch, and the event ids of the watches before it, oldest first."""

    user_id: str
    item_id: str
    event_ms: int
    watch_s: float
    duration_s: float | None
    before: tuple[str, ...]


@dataclass
class Events:
    """The events that count, by user; and what there was besides."""

    watches: dict[str, list[tuple[WatchEvent, Place]]] = field(default_factory=lambda: defaultdict(list))
    searches: dict[str, list[tuple[SearchEvent, Place]]] = field(default_factory=lambda: defaultdict(list))
    lists: dict[str, list[tuple[ImpressionOutline, Place]]] = field(default_factory=lambda: defaultdict(list))
    signals: dict[str, list[tuple[SignalEvent, Place]]] = field(default_factory=lambda: defaultdict(list))
    at_home: list[WatchEvent] = field(default_factory=list)  # every readable watch on its own partition, copies too
    unreadable: set[tuple[str, int, int]] = field(default_factory=set)  # topic, partition, offset
    astray: set[str] = field(default_factory=set)  # event ids that stood on another partition
    ids: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # by topic: every event id there is

    @property
    def total(self) -> int:
        kinds = (self.watches, self.searches, self.lists, self.signals)
        return sum(len(mine) for kind in kinds for mine in kind.values())


def read_all(settings: Settings, topic: str) -> list[Any]:
    """All records of a topic, by partition and offset."""
    records = []
    with TopicFollower(settings.kafka, topic) as follower:
        while not follower.caught_up:
            records += follower.poll(0.2)
    return sorted(records, key=lambda record: (record.partition, record.offset))


def read_events(settings: Settings) -> Events:
    found = Events()
    kinds: dict[str, tuple[Any, str]] = {
        WATCH_EVENTS: (WatchEvent, "event_id"),
        SEARCH_EVENTS: (SearchEvent, "event_id"),
        IMPRESSIONS: (ImpressionOutline, "request_id"),
        SIGNALS: (SignalEvent, "event_id"),
    }
    into: dict[str, Any] = dict(zip(kinds, (found.watches, found.searches, found.lists, found.signals), strict=True))
    for topic, (kind, id_name) in kinds.items():
        for record in read_all(settings, topic):
            place = record.partition, record.offset
            try:
                event = decode(kind, record.value, max_bytes=MOST_BYTES)
            except Refused:
                found.unreadable.add((topic, *place))
                continue
            event_id = getattr(event, id_name)
            is_at_home = partition_of(event.user_id, settings.kafka.partitions) == record.partition
            if not is_at_home:
                found.astray.add(event_id)
            else:
                if topic == WATCH_EVENTS:
                    found.at_home.append(event)
                if event_id not in found.ids[topic]:
                    into[topic][event.user_id].append((event, place))
                found.ids[topic].add(event_id)
    return found


def is_long(event: WatchEvent, settings: Settings) -> bool:
    """The rule of a positive (README: completed, or so many seconds of it)."""
    return event.watch_s >= min(event.duration_s or 1e9, settings.history.completed_s)


def histories(events: Events, settings: Settings) -> dict[str, Content]:
    """By user: the newest watches and the newest completed ones, the newest searches, the newest shown items, and the
    last word on each item and channel."""
    keep = settings.history
    users = {*events.watches, *events.searches, *events.lists, *events.signals}
    return {
        user: Content(
            tuple((event.event_id, place[1]) for event, place in _newest(events.watches[user], settings)),
            tuple((event.event_id, place[1]) for event, place in _by_time(events.searches[user])[-keep.searches :]),
            _newest_lists(events.lists[user], keep.impressions),
            tuple((event.event_id, place[1]) for event, place in _last_words(events.signals[user])),
        )
        for user in users
    }


def check(settings: Settings, histories_read: Histories, examples_read: Reader) -> None:
    """The histories on the topic are those of this replay, and each example is there, always the same."""
    events = read_events(settings)
    for user_id, content in histories(events, settings).items():
        histories_read.of(
            user_id,
            lambda history, wanted=content.watches: tuple((w.event_id, w.offset) for w in history.watches) == wanted,
            "the history of an independent replay",
        )
    made: dict[Place, set[bytes]] = defaultdict(set)
    for record in examples_read.to_the_end():
        example = decode(TrainingExample, record.value)
        made[example.partition, example.offset].add(record.value)
    assert made.keys() == examples(events, settings).keys(), "no example is missing, none is of a watch that makes none"
    assert all(len(copies) == 1 for copies in made.values()), "an example that is made again is the same, byte for byte"


def examples(events: Events, settings: Settings) -> dict[Place, ExampleContent]:
    """Each training example that must be there, by its identity."""
    return {
        place: ExampleContent(
            event.user_id,
            event.item_id,
            event.event_ms,
            event.watch_s,
            event.duration_s,
            _before(event, mine[:number], settings),
        )
        for mine in events.watches.values()
        for number, (event, place) in enumerate(mine)
        if is_long(event, settings)
    }


def _before(event: WatchEvent, known: Sequence[tuple[WatchEvent, Place]], settings: Settings) -> tuple[str, ...]:
    """What a history that knew these watches held of the time before the event."""
    return tuple(each.event_id for each, _ in _newest(known, settings) if each.event_ms < event.event_ms)


def outcomes(events: Events, settings: Settings) -> dict[Place, list[float]]:
    """Watched seconds of each shown item, by the identity of the impression: the named list, else the newest that
    showed the item within the window."""
    window_ms = 1000 * settings.join.window_s
    seconds = {
        place: dict.fromkeys((item.item_id for item in shown.items), 0.0)
        for mine in events.lists.values()
        for shown, place in mine
    }
    for user, watches in events.watches.items():
        for event, _ in watches:
            having = [(shown, place) for shown, place in events.lists[user] if event.item_id in seconds[place]]
            named = [place for shown, place in having if shown.request_id == event.request_id]
            then = [(shown.at_ms, place) for shown, place in having if 0 <= event.event_ms - shown.at_ms <= window_ms]
            for place in named or [place for _, place in sorted(then)[-1:]]:
                seconds[place][event.item_id] += min(event.watch_s, event.duration_s or event.watch_s)
    return {place: list(by_item.values()) for place, by_item in seconds.items()}


def trending(events: Events, settings: Settings) -> Counter[str]:
    """Completed watches by item; here a copy counts like any other."""
    return Counter(event.item_id for event in events.at_home if is_long(event, settings))


def _newest(watches: Sequence[tuple[WatchEvent, Place]], settings: Settings) -> list[tuple[WatchEvent, Place]]:
    ordered = _by_time(watches)
    long = [pair for pair in ordered if is_long(pair[0], settings)]
    stay = {place for _, place in (*ordered[-settings.history.watches :], *long[-settings.history.watches :])}
    return [pair for pair in ordered if pair[1] in stay]


def _last_words(signals: Iterable[tuple[SignalEvent, Place]]) -> list[tuple[SignalEvent, Place]]:
    """Of opinions, shares and saves each; no user of a crash run says so much that some of it would be let go."""
    beside = {"share", "save"}
    last = {
        (event.kind if event.kind in beside else "", event.item_id, event.channel): (event, place)
        for event, place in _by_time(signals)
    }
    return _by_time(last.values())


def _newest_lists(lists: Iterable[tuple[ImpressionOutline, Place]], most_items: int) -> tuple[str, ...]:
    newest: list[str] = []
    for shown, _ in sorted(lists, key=lambda pair: (pair[0].at_ms, pair[1]), reverse=True):
        if most_items > 0 and shown.items:
            newest.append(shown.request_id)
            most_items -= len(shown.items)
    return tuple(reversed(newest))


def _by_time(events: Iterable[tuple[Any, Place]]) -> list[tuple[Any, Place]]:
    return sorted(events, key=lambda pair: (pair[0].event_ms, pair[1]))
