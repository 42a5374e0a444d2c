"""Features computed again from the topics, and compared to the bit with those that the ranker was fed when it served.

Serving records with each impression how far it had read `user-histories`, `items` and `item-statistics`
(`Impression.marks`). Here the topics are read from their beginning and stopped at each impression's marks: the newest
history of its user on their partition, the bundle's catalogue with the items told until then, the bundle's statistics
with the rows told until then. What was asked (time, context, candidates with their scores and places) is as recorded.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from kafka import KafkaConsumer, TopicPartition

from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import Kafka
from models.ranking.feature import Scope
from models.ranking.features import compute_ids, compute_numbers, numbers_of
from models.ranking.ranker import id_strings
from models.ranking.ranking_batch import SIMILAR, SOURCES, TRENDING, nominated
from models.ranking.ranking_request import Nominations, RankingQuery, ranking_batch_of
from models.release.bundle import Bundle, read_bundle
from serving.state.views import CatalogueView, StatisticsView
from streams import topics
from streams.messages import Impression, Shown, UserHistory, decode

EXAMPLES = 10  # of differences that are told
SHARED = (topics.ITEMS, topics.ITEM_STATISTICS)


class Recorded(NamedTuple):
    """An impression that the ranker was fed for. `partition` is its user's."""

    partition: int
    impression: Impression

    def mark(self, topic: str, partition: int) -> int:
        """The next offset that serving had not read."""
        places = self.impression.marks.get(topic, ())
        return places[partition] if partition < len(places) else 0


@dataclass
class Parity:
    """What was compared: lists with the features of their query, items, single values and ids; and what differed."""

    lists: int = 0
    items: int = 0
    values: int = 0
    unranked: int = 0  # lists that no ranker was fed for
    differing_lists: int = 0
    differing_items: int = 0
    differing: Counter[str] = field(default_factory=Counter)  # values by feature
    examples: list[str] = field(default_factory=list)

    @property
    def differences(self) -> int:
        return self.differing_lists + self.differing_items


def check_parity(kafka: Kafka, bundles_dir: Path, half_life_h: float, most: int | None = None) -> Parity:
    """Compute the features of all recorded impressions again (or of the `most` newest)."""
    found = Parity()
    recorded = _read_impressions(kafka, found)[-most if most else None :]
    histories = _histories_of(kafka, recorded)
    shared = {topic: list(_records(kafka, topic)) for topic in SHARED}
    by_server: dict[str, list[int]] = defaultdict(list)
    for at, each in enumerate(recorded):
        by_server[each.impression.served_by].append(at)
    for places in by_server.values():
        served = _Served(shared, bundles_dir, StatisticsView(kafka.partitions, half_life_h))
        for at in sorted(places, key=lambda at: _read_so_far(recorded[at])):
            impression = recorded[at].impression
            bundle = served.move_to(recorded[at])
            history = histories[at] or UserHistory(impression.user_id)
            _compare(impression, history, bundle, served, found)
    return found


class _Served:
    """What one server had read of the shared topics, moved forward from impression to impression."""

    def __init__(self, shared: dict[str, list[Any]], bundles_dir: Path, statistics: StatisticsView) -> None:
        self._records, self._bundles_dir = shared, bundles_dir
        self._waiting: dict[tuple[str, int], list[Any]] = defaultdict(list)
        for topic, records in shared.items():
            for record in reversed(records):
                self._waiting[topic, record.partition].append(record)  # the first one last
        self._catalogue, self.statistics = CatalogueView(), statistics
        self._bundles: dict[str, Bundle] = {}

    def move_to(self, recorded: Recorded) -> Bundle:
        """Apply what had been read by then; the release that answered, its catalogue as it was."""
        for (topic, partition), waiting in self._waiting.items():
            mark = recorded.mark(topic, partition)
            while waiting and waiting[-1].offset < mark:
                self._apply(topic, waiting.pop())
        version = recorded.impression.ranked_by or recorded.impression.version
        if version not in self._bundles:
            bundle = self._bundles[version] = read_bundle(self._bundles_dir / version)
            self._catalogue.describe_all(bundle.catalogue)
        return self._bundles[version]

    def _apply(self, topic: str, record: Any) -> None:
        if topic == topics.ITEM_STATISTICS:
            self.statistics.apply(record.key, record.value)
        elif (item_id := self._catalogue.apply(record.key, record.value)) is not None:
            for bundle in self._bundles.values():
                self._catalogue.describe(item_id, bundle.catalogue)


def _compare(impression: Impression, history: UserHistory, bundle: Bundle, served: _Served, found: Parity) -> None:
    ranked = [item for item in impression.items if item.values]
    query = RankingQuery(
        msgspec.structs.replace(history, context=impression.context),
        impression.at_ms,
        [item.item_id for item in ranked],
        np.array([np.nan if item.score is None else item.score for item in ranked], np.float32),
        np.array([item.retrieval_rank or np.nan for item in ranked], np.float32),
        np.nan if impression.best_score is None else impression.best_score,
        _nominations(ranked),
        known_ms=impression.known_ms,
    )
    moment = ranking_batch_of([query], bundle.catalogue, [bundle.statistics, served.statistics.statistics])
    told: list[tuple[Scope, Sequence[Impression | Shown]]] = [("query", [impression]), ("impression", ranked)]
    for scope, recorded in told:
        numbers, ids = compute_numbers(moment, scope).astype("<f4"), compute_ids(moment, scope)
        differing = 0
        strings = id_strings(ids, scope, range(len(recorded)))
        for row, each in enumerate(recorded):
            found.values += numbers.shape[1]
            differing += _differs(scope, each, numbers[row], strings[row], impression, found)
        if scope == "query":
            found.lists += 1
            found.differing_lists += differing
        else:
            found.items += len(ranked)
            found.differing_items += differing


def _nominations(ranked: Sequence[Shown]) -> Nominations:
    """Who nominated each item, and with what score, as recorded."""
    by = [np.array([source in item.sources for item in ranked], np.bool_) for source in SOURCES[1:]]
    scores = {
        source: np.array([item.sources.get(source, np.nan) for item in ranked], np.float32)
        for source in (TRENDING, SIMILAR)
    }
    return Nominations(nominated(by), scores[TRENDING], scores[SIMILAR])


def _differs(
    scope: Scope, told: Impression | Shown, numbers: Any, ids: dict[str, Any], impression: Impression, found: Parity
) -> bool:
    """Whether anything of a query or an item differs; what does is counted."""
    wrong: list[tuple[str, Any, Any]] = [
        (name, told.ids.get(name), ids.get(name)) for name in {*told.ids, *ids} if told.ids.get(name) != ids.get(name)
    ]
    if numbers.tobytes() != told.values:
        served = np.frombuffer(told.values, "<f4")
        differing = np.flatnonzero(served.view("<u4") != numbers.view("<u4")) if len(served) == len(numbers) else ()
        wrong += [(numbers_of(scope)[at].name, served[at], numbers[at]) for at in differing]
        wrong += [("values", len(served), len(numbers))] if not len(differing) else []
    for name, was, now in wrong:
        found.differing[name] += 1
        if len(found.examples) < EXAMPLES:
            item = getattr(told, "item_id", "the query")
            found.examples.append(f"{impression.request_id}, {item}, {name}: served {was}, computed {now}")
    return bool(wrong)


def _read_impressions(kafka: Kafka, found: Parity) -> list[Recorded]:
    recorded = []
    for record in _records(kafka, topics.IMPRESSIONS):
        impression = decode(Impression, record.value, max_bytes=len(record.value))
        if impression.schema_hash:
            recorded.append(Recorded(record.partition, impression))
        else:
            found.unranked += 1
    return sorted(recorded, key=lambda each: each.impression.at_ms)


def _histories_of(kafka: Kafka, recorded: Sequence[Recorded]) -> list[UserHistory | None]:
    """Of each impression the newest history of its user below the mark of their partition."""
    found: list[UserHistory | None] = [None] * len(recorded)
    newest: dict[tuple[int, bytes], bytes | None] = {}
    waiting: dict[int, list[tuple[int, int]]] = defaultdict(list)  # by partition (mark, place), the first one last
    for at, each in enumerate(recorded):
        waiting[each.partition].append((each.mark(topics.USER_HISTORIES, each.partition), at))

    def settle(partition: int, until: Callable[[int], bool]) -> None:
        left = waiting[partition]
        while left and until(left[-1][0]):
            at = left.pop()[1]
            encoded = newest.get((partition, recorded[at].impression.user_id.encode()))
            found[at] = None if encoded is None else decode(UserHistory, encoded, max_bytes=len(encoded))

    for places in waiting.values():
        places.sort(reverse=True)
    for record in _records(kafka, topics.USER_HISTORIES):
        settle(record.partition, lambda mark, offset=record.offset: mark <= offset)  # type: ignore[misc]
        newest[record.partition, record.key] = record.value
    for partition in list(waiting):
        settle(partition, lambda mark: True)
    return found


def _read_so_far(recorded: Recorded) -> int:
    """Grows with what its server had read."""
    return sum(sum(recorded.impression.marks.get(topic, ())) for topic in SHARED)


def _records(kafka: Kafka, topic: str) -> Iterator[Any]:
    """All that a topic holds, in order within each partition. Checksums are left to the broker: in Python they would
    take longer than all else."""
    name = kafka.topic_prefix + topic
    consumer = KafkaConsumer(**kafka_python_options(kafka), check_crcs=False, enable_auto_commit=False)
    with contextlib.closing(consumer):
        places = [TopicPartition(name, number) for number in consumer.partitions_for_topic(name) or ()]
        consumer.assign(places)
        consumer.seek_to_beginning(*places)
        ends = consumer.end_offsets(places)
        while any(consumer.position(place) < ends[place] for place in places):
            for batch in consumer.poll(timeout_ms=500).values():
                yield from batch
