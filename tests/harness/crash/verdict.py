"""Compares what is there after the crashes with what the topics imply (tests/harness/crash/replay.py).

Everything that is found is lost (it should be there), doubled (it counts twice) or differs. What was sent again and had
one effect is not a finding but a number.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.collection import Index
from infra.platform.settings import Settings
from models.release.bundle import Bundle
from streams import topics
from streams.epochs import CLAIM
from streams.messages import (
    DeadLetter,
    Item,
    ItemVector,
    RankingExample,
    StatisticsRow,
    TrainingExample,
    Trending,
    UserHistory,
    decode,
)
from streams.trainer.item_contents import ItemContents
from streams.trainer.progress import PROGRESS_KEY
from tests.harness.crash import replay
from tests.harness.crash.load import Sent
from tests.harness.crash.relearnt import relearn, stream_of
from tests.harness.crash.replay import Content, Events, ExampleContent, Place, read_all
from tests.harness.traffic import total_of, vector_of

MOST_BYTES = 8_000_000
# Of a row from one that was learnt without faults; one example in a hundred that is learnt twice moves a row by more
# (tests/system/test_replay.py).
MOST_OFF = 1e-3
SAME = 1e-5  # of float32 numbers that went through Milvus

Floats = npt.NDArray[np.float32]


@dataclass
class Verdict:
    """What was compared, and what was found."""

    compared: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    again: Counter[str] = field(default_factory=Counter)  # sent again with one effect
    furthest: float = 0.0  # any number of a row from what it is without faults

    def compare(self, what: str, expected: Mapping[Any, Any], found: Mapping[Any, Any]) -> None:
        """Both by the same keys: a missing one is lost, one too many is doubled, another value differs."""
        self.compared[what] += len(expected)
        self.lost += [f"{what} {key}" for key in expected.keys() - found.keys()]
        self.doubled += [f"{what} {key}: there is none" for key in found.keys() - expected.keys()]
        self.differing += [
            f"{what} {key}: {found[key]!r}, not {expected[key]!r}"
            for key in expected.keys() & found.keys()
            if found[key] != expected[key]
        ]


def judge(settings: Settings, events: Events, sent: Sent, bundle: Bundle, items: Mapping[str, Item]) -> Verdict:
    """Everything, once the system is at rest. `bundle` is the live release's, `items` the catalogue."""
    verdict = Verdict()
    check_events(verdict, settings, events, sent)
    check_histories(verdict, settings, events)
    check_training_examples(verdict, settings, events)
    check_ranking_examples(verdict, settings, events)
    check_trending(verdict, settings, events)
    check_rows(verdict, settings, events, bundle)
    check_vectors(verdict, settings, bundle, items)
    check_index(verdict, settings, bundle)
    return verdict


def check_events(verdict: Verdict, settings: Settings, events: Events, sent: Sent) -> None:
    """What the brokers acknowledged is in its topic, at home; what could not be read is in the dead letters."""
    for topic in (topics.WATCH_EVENTS, topics.SEARCH_EVENTS, topics.SIGNALS):
        told = {name for name in sent.acknowledged(topic) if not name.startswith("bad")}
        verdict.compared[f"{topic} acknowledged"] += len(told)
        verdict.lost += [f"{topic} {name}" for name in told - events.ids[topic]]
    verdict.lost += [f"forwarded {name}" for name in events.astray - events.ids[topics.WATCH_EVENTS]]
    verdict.compared["forwarded"] += len(events.astray)
    letters = [decode(DeadLetter, each.value, max_bytes=MOST_BYTES) for each in read_all(settings, topics.DEAD_LETTERS)]
    places = Counter((each.topic, each.partition, each.offset) for each in letters)
    verdict.compared["unreadable"] += len(events.unreadable)
    verdict.lost += [f"dead letter of {place}" for place in events.unreadable - places.keys()]
    verdict.differing += [f"dead letter of {place}, which is good" for place in places.keys() - events.unreadable]
    verdict.again["dead letters"] += places.total() - len(places)


def check_histories(verdict: Verdict, settings: Settings, events: Events) -> None:
    found = {}
    for record in read_all(settings, topics.USER_HISTORIES):
        history = decode(UserHistory, record.value, max_bytes=MOST_BYTES)
        found[history.user_id] = Content(
            tuple((watch.event_id, watch.offset) for watch in history.watches),
            tuple((search.event_id, search.offset) for search in history.searches),
            tuple(shown.request_id for shown in history.impressions),
            tuple((signal.event_id, signal.offset) for signal in history.signals),
        )
    verdict.compare("history", replay.histories(events, settings), found)


def check_training_examples(verdict: Verdict, settings: Settings, events: Events) -> None:
    """Each is there, says what it must, is the same whenever it is there again, and is taken once by who passes over
    what is not newer."""
    expected, made, taken = replay.examples(events, settings), defaultdict(set), Counter[Place]()
    newest, said = dict[int, int](), dict[Place, ExampleContent]()
    for record in read_all(settings, topics.TRAINING_EXAMPLES):
        example = decode(TrainingExample, record.value, max_bytes=MOST_BYTES)
        place = example.partition, example.offset
        made[place].add(record.value)
        said[place] = content_of(example)
        if example.offset > newest.get(example.partition, -1):
            newest[example.partition] = example.offset
            taken[place] += 1
        else:
            verdict.again["training examples"] += 1
    verdict.compare("training example", dict.fromkeys(expected, 1), taken)
    both = expected.keys() & said.keys()
    verdict.compare("content of example", *({place: each[place] for place in both} for each in (expected, said)))
    verdict.differing += [f"training example {place} is not always the same" for place in made if len(made[place]) > 1]


def content_of(example: TrainingExample) -> ExampleContent:
    before = tuple(watch.event_id for watch in example.watches)
    return ExampleContent(
        example.user_id, example.item_id, example.event_ms, example.watch_s, example.duration_s, before
    )


def check_ranking_examples(verdict: Verdict, settings: Settings, events: Events) -> None:
    """The one that holds of each impression has the seconds of a join of everything at once; the statistics have
    counted every shown item once."""
    expected, held = replay.outcomes(events, settings), held_examples(settings, verdict.again)
    seconds = {place: [each.watched_s for each in example.outcomes] for place, example in held.items()}
    verdict.compare("ranking example", _rounded(expected), _rounded(seconds))
    counted = sum(row.impressions for row in statistics_of(settings).values() if row.scope == "all")
    shown = sum(map(len, expected.values()))
    verdict.compared["shown items in the statistics"] += shown
    if abs(counted - shown) > 1e-6 * shown:
        (verdict.lost if counted < shown else verdict.doubled).append(f"statistics: {counted} shown items, not {shown}")


def held_examples(settings: Settings, again: Counter[str]) -> dict[Place, RankingExample]:
    return held(read_all(settings, topics.RANKING_EXAMPLES), again)


def held(records: Iterable[Any], again: Counter[str]) -> dict[Place, RankingExample]:
    """By impression the example that holds: the highest revision, of equal ones the last."""
    found: dict[Place, RankingExample] = {}
    for record in records:
        example = decode(RankingExample, record.value, max_bytes=MOST_BYTES)
        place = example.partition, example.offset
        again["ranking examples"] += place in found and example.revision == found[place].revision
        if place not in found or example.revision >= found[place].revision:
            found[place] = example
    return found


def statistics_of(settings: Settings) -> dict[bytes, StatisticsRow]:
    newest = {record.key: record.value for record in read_all(settings, topics.ITEM_STATISTICS)}
    return {key: decode(StatisticsRow, value) for key, value in newest.items() if value is not None}


def check_trending(verdict: Verdict, settings: Settings, events: Events) -> None:
    """Counts hardly decay in these settings: they are the watches, each once."""
    verdict.compare("trending", replay.trending(events, settings), trending_counts(settings))


def trending_counts(settings: Settings) -> Counter[str]:
    """How often each item counts as watched; of settings in which nothing decays."""
    newest = {record.key: record.value for record in read_all(settings, topics.TRENDING)}
    counts = Counter[str]()
    for value in newest.values():
        message = decode(Trending, value, max_bytes=MOST_BYTES) if value is not None else None
        if message is not None and message.scope == "global":
            counts.update(dict(message.items))
    return Counter({item: round(count) for item, count in counts.items()})


def check_rows(verdict: Verdict, settings: Settings, events: Events, bundle: Bundle) -> None:
    """A row knows how many watches it has counted: all examples since the release, each once."""
    learnt = Counter(example.item_id for example in replay.examples(events, settings).values())
    model = bundle.model
    released = dict(zip(model.item_ids, model.popularity.totals().tolist(), strict=True))
    totals = {item: total_of(row) for item, row in newest_rows(settings, bundle).items() if row.state}
    for item, count in learnt.items():
        extra = round(totals.get(item, released.get(item, 0.0)) - released.get(item, 0.0)) - count
        verdict.compared["examples in rows"] += count
        if extra < 0:
            verdict.lost.append(f"{-extra} examples of {item} in its row")
        if extra > 0:
            verdict.doubled.append(f"{extra} examples of {item} in its row")


def check_vectors(verdict: Verdict, settings: Settings, bundle: Bundle, items: Mapping[str, Item]) -> None:
    """A row is where a learner that nothing befalls has it (tests/harness/crash/relearnt.py)."""
    examples, vectors = (read_all(settings, topic) for topic in (topics.TRAINING_EXAMPLES, topics.ITEM_VECTORS))
    stream = stream_of(bundle.manifest.version, examples, vectors)
    contents = ItemContents()
    for item in items.values():
        contents.hear(item)
    compare_rows(verdict, relearn(stream, bundle, contents, settings.trainer, settings.model.seed), stream.rows)


def compare_rows(verdict: Verdict, expected: Mapping[bytes, ItemVector], found: Mapping[bytes, ItemVector]) -> None:
    verdict.doubled += [
        f"row of {key.decode()}: nothing is to be learnt of it" for key in found.keys() - expected.keys()
    ]
    for key in found.keys() & expected.keys():
        off = float(np.abs(vector_of(found[key]) - vector_of(expected[key])).max())
        verdict.compared["vectors of rows"] += 1
        verdict.furthest = max(verdict.furthest, off)
        if off > MOST_OFF:
            verdict.differing.append(f"row of {key.decode()}, off by {off:g} from one that was learnt without faults")


def check_index(verdict: Verdict, settings: Settings, bundle: Bundle) -> None:
    """The live collection holds the newest row of every item that is not down, and nothing else."""
    version = bundle.manifest.version
    rows = newest_rows(settings, bundle)
    expected = dict(zip(bundle.model.item_ids, bundle.model.item_vectors(), strict=True))
    expected |= {item: vector_of(row) for item, row in rows.items()}
    down = items_down(settings)
    with contextlib.closing(Index(settings.milvus)) as index:
        found, count = index.vectors(version, sorted(expected)), index.count(version)
    verdict.compared["rows in the index"] += len(expected)
    verdict.lost += [f"row of {item} in the index" for item in expected.keys() - found.keys() - down]
    verdict.doubled += [f"row of {item}, which is down, in the index" for item in found.keys() & down]
    if count != len(expected.keys() - down):
        verdict.differing.append(f"{count} rows in the index, not {len(expected.keys() - down)}")
    verdict.differing += [
        f"row of {item} in the index, off by {np.abs(vector - expected[item]).max():g}"
        for item, (_, vector) in found.items()
        if not np.allclose(vector, expected[item], rtol=SAME, atol=SAME)
    ]


def newest_rows(settings: Settings, bundle: Bundle) -> dict[str, ItemVector]:
    """The newest row of each item of a release in `item-vectors`."""
    rows = rows_of(settings)
    return {item: row for item, row in rows if row.version == bundle.manifest.version}


def rows_of(settings: Settings) -> list[tuple[str, ItemVector]]:
    """Every row that a trainer has published, with its item; the trainers' own bookkeeping left out."""
    return [
        (record.key.decode(), decode(ItemVector, record.value))
        for record in read_all(settings, topics.ITEM_VECTORS)
        if record.key != PROGRESS_KEY and not record.key.startswith(CLAIM) and record.value is not None
    ]


def items_down(settings: Settings) -> set[str]:
    newest = {record.key.decode(): record.value for record in read_all(settings, topics.ITEMS)}
    return {item for item, value in newest.items() if value is None or b'"available":false' in value}


def _rounded(seconds: Mapping[Place, list[float]]) -> dict[Place, list[float]]:
    """A sum of floats depends on its order."""
    return {place: [round(each, 6) for each in mine] for place, mine in seconds.items()}
