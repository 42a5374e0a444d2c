"""`ranking-examples`, read to its end as what the ranker is trained from: features as they were served, and outcomes.

The topic is read twice. An example may be there again (after a crash) or corrected (a late watch); which of them holds
is known at the end, so the first reading keeps the identities, a few numbers each, and the second writes those that
hold to disk. Impressions that nothing was ranked for, or by other features than ours, train nothing and are counted;
so are those from before their user was erased.

Here features are looked at for the first time since they were served: the history and join workers pass them on unread.
What cannot be features is passed over with its whole example, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from infra.platform.settings import Kafka, Settings
from models.catalogue.vocabulary import Vocabulary
from models.ranking.feature import Scope
from models.ranking.features import SCHEMA_HASH, ids_of, numbers_of
from models.ranking.ranking_examples import MOST_CAP_S, SCOPES, WIDTHS, ExampleWriter, RankingExamples, target_of
from streams import topics
from streams.erasure.erase_users import read_erased_users
from streams.kafka.follow import read_to_end
from streams.messages import RankingExample, Refused, decode

Progress = Callable[[str, int, int], None]
Floats = npt.NDArray[np.float32]

CHUNK = 2_000  # impressions written together


class ServedExamples(NamedTuple):
    """`passed_over`: impressions without features of ours, and examples that cannot be read; `repeated`: examples that
    another one replaces; `erased`: impressions from before their user was erased."""

    examples: RankingExamples
    impressions: int
    passed_over: int
    repeated: int
    erased: int


def store_served(
    settings: Settings,
    directory: Path,
    items: pl.DataFrame | None,
    progress: Progress = lambda stage, done, total: None,
) -> ServedExamples:
    """All examples that hold, in `directory`. `items`: a catalogue, for durations. Raises TopicMissing."""
    kafka, users, erased = settings.kafka, read_erased_users(settings), 0
    holding, repeated = _identities(kafka, progress)
    writer = _Writer(directory, items)
    for place, example in _examples(kafka, partial(progress, "served impressions")):
        if example is None:
            writer.passed_over += 1
        elif place in holding and users.is_from_before(example.impression.user_id, example.impression.at_ms):
            erased += 1
        elif place in holding:
            writer.add(example)
    return ServedExamples(writer.finish(), writer.impressions, writer.passed_over, repeated, erased)


def _identities(kafka: Kafka, progress: Progress) -> tuple[set[tuple[int, int]], int]:
    """Return where the examples that hold lie, partition and offset in `ranking-examples`; and how many others there
    are."""
    best: dict[tuple[int, int, int], tuple[int, tuple[int, int]]] = {}
    read = 0
    for place, example in _examples(kafka, partial(progress, "reading outcomes")):
        if example is None:
            continue
        read += 1
        # offsets begin anew where `impressions` was made again; the time tells an impression from one of before
        identity = (example.partition, example.offset, example.impression.at_ms)
        told = (example.revision, place)
        best[identity] = max(best.get(identity, told), told)
    return {place for _, place in best.values()}, read - len(best)


def _examples(
    kafka: Kafka, progress: Callable[[int, int], None]
) -> Iterator[tuple[tuple[int, int], RankingExample | None]]:
    """Each record's place, and the example that it is; None for what cannot be read."""
    for record in read_to_end(kafka, topics.RANKING_EXAMPLES, progress=progress):
        example = None
        with suppress(Refused):
            example = decode(RankingExample, record.value, max_bytes=8 * kafka.max_message_bytes)
        yield (record.partition, record.offset), example


class _Writer:
    """Collects impressions and writes them as columns."""

    def __init__(self, directory: Path, items: pl.DataFrame | None) -> None:
        self.impressions = self.passed_over = 0
        self._writer = ExampleWriter(directory)
        self._names = {str(f.space): Vocabulary([""]) for scope in SCOPES for f in ids_of(scope)}
        self._users = Vocabulary()
        self._waiting: list[RankingExample] = []
        self._durations: dict[str, float] = {}
        if items is not None:
            known = items.select("item_id", "duration_s").filter(pl.col("duration_s") > 0)  # 0 is an unknown one
            self._durations = dict(known.iter_rows())

    def add(self, example: RankingExample) -> None:
        if not is_usable(example):
            self.passed_over += 1
            return
        self.impressions += 1
        self._waiting.append(example)
        if len(self._waiting) >= CHUNK:
            self._write()

    def finish(self) -> RankingExamples:
        if self._waiting:
            self._write()
        return self._writer.finish({space: (names.names, 0) for space, names in self._names.items()}, MOST_CAP_S)

    def _write(self) -> None:
        examples, self._waiting = self._waiting, []
        before = self._writer.queries
        queries = [example.impression for example in examples]
        self._writer.add("query", _matrix("query", [each.values for each in queries]), self._codes("query", queries))
        shown = [
            (row, item, outcome)
            for row, example in enumerate(examples)
            for item, outcome in zip(example.impression.items, example.outcomes, strict=True)
            if item.values
        ]
        items = [item for _, item, _ in shown]
        self._writer.add(
            "impression", _matrix("impression", [item.values for item in items]), self._codes("impression", items)
        )
        request = np.array([row for row, _, _ in shown], np.int64)
        duration_s = np.array([self._durations.get(item.item_id, np.nan) for item in items], np.float32)
        watched_s = np.array([outcome.watched_s for _, _, outcome in shown], np.float32)
        users = np.array([self._users.code(each.user_id) for each in queries], np.int64)
        self._writer.add_outcomes(
            request=before + request,
            target_s=target_of(watched_s, duration_s, MOST_CAP_S),
            duration_s=duration_s,
            completed=np.array([outcome.completed for _, _, outcome in shown], np.bool_),
            position=np.array([item.position for item in items], np.int32),
            user=users[request],
            at_ms=np.array([each.at_ms for each in queries], np.int64)[request],
        )

    def _codes(self, scope: Scope, recorded: list[Any]) -> dict[str, npt.NDArray[np.int32]]:
        codes = {}
        for feature in ids_of(scope):
            width, names = WIDTHS.get(feature.name, 1), self._names[str(feature.space)]
            table = np.zeros((len(recorded), width), np.int32)
            for row, each in enumerate(recorded):
                known = each.ids.get(feature.name, ())[-width:]
                table[row, : len(known)] = [names.code(name) for name in known]
            codes[feature.name] = table
        return codes


def is_usable(example: RankingExample) -> bool:
    """Return whether the ranker can learn from it: features of our schema, of the width that the schema says, and
    outcomes of the items that were shown."""
    impression = example.impression
    if impression.schema_hash != SCHEMA_HASH or len(example.outcomes) != len(impression.items):
        return False
    of_query, of_impression = (4 * len(numbers_of(scope)) for scope in SCOPES)
    fed = {len(shown.values) for shown in impression.items}
    return len(impression.values) == of_query and fed <= {0, of_impression}


def _matrix(scope: Scope, values: list[bytes]) -> Floats:
    width = len(numbers_of(scope))
    return np.frombuffer(b"".join(values), "<f4").reshape(-1, width).astype(np.float32)
