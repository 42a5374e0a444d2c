"""The trainer's state for a release, and its work on a batch: rank before learning, learn, say what is to be published.

A thin layer between messages and models.retrieval.incremental: it keeps the release in use, the place in
`training-examples` up to which the rows have learnt (`Progress`, published with the rows), which rows may wait
(streams.trainer.progress), and the share of examples that each model found (prequential recall). Everything here runs
in one executor thread, away from the event loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import structlog

from infra.platform.settings import Trainer
from models.arrays import Rows
from models.catalogue.content import NO_CONTENT, NO_VECTOR, ItemContent
from models.evaluation.drift import FadingMean
from models.logs.examples import Examples
from models.release.bundle import Bundle
from models.retrieval.cold_start import Admission
from models.retrieval.incremental import NO_ROWS, IncrementalTrainer
from models.retrieval.prequential import Budget, rank_before
from streams.messages import ItemVector, TrainingExample
from streams.trainer.progress import PROGRESS_KEY, Progress, WaitingRows
from streams.trainer.sides import LIVE, Side

log = structlog.get_logger(__name__)

RECALL_AT = (10, 100)
WINDOW = 2000  # examples that the recall gauges speak of
MOVED = 5000  # rows that the gauges of drift speak of
LEAST_REFRESHES = 64  # per batch; an eighth as many as examples more
MOST_UNDESCRIBED = 1000  # items watched before their description came, the newest of them

MOST_BATCHES = 16  # learnt while a row waits: what a restart learns again is bounded, also when catching up

T = TypeVar("T")
Keyed = tuple[bytes, ItemVector | None]  # a row by its key, or the tombstone of one


class Learnt(NamedTuple):
    rows: list[Keyed]  # what the topic must carry before the progress
    duplicates: int = 0


class Learner:
    """The trainer's state for one release."""

    def __init__(
        self,
        bundle: Bundle,
        items: Mapping[str, ItemContent],
        settings: Trainer,
        seed: int,
        epoch: int = 0,
        side: Side = LIVE,
    ) -> None:
        self.version = bundle.manifest.version
        self._learnt_ms = bundle.manifest.learnt_ms
        self.epoch = epoch  # of the rows that it makes (streams.epochs)
        self.progress = Progress()
        self.is_new = True  # no progress of this release has been published yet
        self.renewed_to = 0  # examples below may be of a `watch-events` of before: its offsets say nothing
        self._items = items
        self._settings = settings
        self._side = side
        self._step = 0
        self._has_stepped = False  # of the batch in hand, or the last one
        self._recent: deque[np.ndarray] = deque(maxlen=WINDOW)
        self._waiting = WaitingRows(settings.publish_s, MOST_BATCHES * settings.batch)
        self._ahead: dict[str, int] = {}  # restored rows: the offset below which each has learnt its examples
        self._trainer = IncrementalTrainer(bundle.model, bundle.catalogue, settings, seed=seed)
        self._released = bundle.model
        self._admission = Admission(settings.admit_after)
        self._undescribed: dict[str, None] = {}  # placed without what `items` says of them, the oldest first
        self._has_warned = False
        self._idle_ms = round(settings.expire_h * 3_600_000)
        self._budget = Budget(settings.evaluate_scores)
        self._evaluations_due = 1.0
        self._turned, self._grown = FadingMean(MOVED), FadingMean(MOVED)

    @property
    def _metrics(self) -> Any:
        return self._side.metrics

    def restore(self, key: bytes, row: ItemVector | None) -> None:
        """Restore one published row of this release, or the tombstone of one that expired."""
        if row is None:
            self._trainer.remove_item(key.decode())  # it had expired
            self._ahead.pop(key.decode(), None)
            return
        if row.version != self.version:
            return
        self._step = max(self._step, row.step)
        if key == PROGRESS_KEY:
            self.progress = msgspec.msgpack.decode(row.state, type=Progress)
            self.is_new = False
        else:
            self._trainer.restore(key.decode(), row.vector, row.query_row, row.state)
            self._ahead[key.decode()] = row.learnt_to

    def learn(
        self, batch: Sequence[tuple[int, TrainingExample]], now_s: float = 0.0, *, evaluate: bool = True
    ) -> Learnt:
        """Rank each (offset, example), then learn them all in one step; the rows that are to be published now, by a
        clock that does not jump. The progress stays where it is when that fails."""
        self._has_stepped = False
        fresh, progress = self._unseen(batch)
        touched, due = self._step_with(fresh, evaluate=evaluate) if fresh else (NO_ROWS, NO_ROWS)
        before, self.progress = self.progress, progress
        self._waiting.add((self._trainer.item_ids[row].encode() for row in touched.tolist()), before, now_s)
        oldest_ms = {example.item_id: example.produced_ms for example in reversed(fresh)}
        rows = self._due_rows(now_s, due, oldest_ms)
        expired = self._expire(max((example.event_ms for example in fresh), default=0))
        return Learnt([*rows, *expired], len(batch) - len(fresh))

    def due(self, now_s: float) -> Learnt:
        """The rows that have waited long enough by now, and those of items whose description has come after their
        watch; of all time: every row that waits."""
        return Learnt(self._due_rows(now_s, self._describe(), {}))

    def knows(self, item_id: str) -> bool:
        """Return whether an item has a row."""
        return self._trainer.row(item_id) >= 0

    def learn_singly(
        self, batch: Sequence[tuple[int, TrainingExample]], bug: Exception, now_s: float = 0.0
    ) -> tuple[Learnt, dict[int, Exception]]:
        """A batch that `learn` has failed on with `bug`, one example after the other, so that one bad one costs no good
        one; and the errors of those that fail again, by offset, which the progress passes over. Nothing is learnt
        twice: when the step had been taken, all of the batch counts as failed."""
        if self._has_stepped:
            self.begin_at(batch[-1][0] + 1)
            return Learnt([]), {offset: bug for offset, _ in batch}
        rows: list[Keyed] = []
        duplicates, failed = 0, dict[int, Exception]()
        for offset, example in batch:
            try:
                learnt = self.learn([(offset, example)], now_s, evaluate=False)
            except Exception as error:
                failed[offset] = error
                self.begin_at(offset + 1)
            else:
                rows += learnt.rows
                duplicates += learnt.duplicates
        return Learnt(rows, duplicates), failed

    def _step_with(self, fresh: list[TrainingExample], *, evaluate: bool) -> tuple[Rows, Rows]:
        """Place, rank and learn; the rows that a restart would have to learn again, and those to be published now."""
        admitted = [example for example in fresh if self._place(example.item_id)]
        self._metrics.NOT_ADMITTED.inc(len(fresh) - len(admitted))
        examples = self._trainer.read(admitted)
        if evaluate and self._is_sampled():
            self._evaluate(examples.take(slice(self._budget.grant(len(examples), len(self._trainer)))))
        self._has_stepped = True
        result = self._trainer.learn(examples, max((example.event_ms for example in admitted), default=0))
        self._step += 1
        if result.dropped:
            log.error(
                "a step was dropped: its loss was not finite or had exploded", version=self.version, step=self._step
            )
        self._metrics.STEPS_DROPPED.inc(result.dropped)
        self._metrics.STEPS.inc(not result.dropped)
        self._metrics.LOSS.set(result.loss)
        self._metrics.TRAINER_ROWS.set(len(self._trainer))
        self._tell_drift(result.touched)
        stale = self._trainer.due_refreshes(limit=len(fresh) // 8 + LEAST_REFRESHES)
        return result.touched, np.union1d(result.due, stale)

    def _expire(self, now_ms: int) -> list[Keyed]:
        """Tombstones of the items that nobody has watched for too long."""
        expired = self._trainer.expire(now_ms, self._idle_ms) if self._idle_ms and now_ms else []
        self._metrics.EXPIRED.inc(len(expired))
        for item_id in expired:
            self._waiting.discard(item_id.encode())
        return [(item_id.encode(), None) for item_id in expired]

    def progress_row(self) -> tuple[bytes, ItemVector]:
        """The record that says how far the rows that were published before it have learnt."""
        state = msgspec.msgpack.encode(self._waiting.told(self.progress))
        return PROGRESS_KEY, ItemVector(self.version, self._step, b"", b"", 0, state, self.epoch)

    def begin_at(self, offset: int) -> None:
        """Examples below are in the release, or not to be learnt."""
        self.progress = Progress(max(offset, self.progress.next_offset), self.progress.watched)

    def forget_watched(self) -> None:
        """`watch-events` was made anew: no watch of it is learnt."""
        self.progress = Progress(self.progress.next_offset)

    def rows_of(self, keys: Iterable[bytes]) -> list[Keyed]:
        """The rows of these items as they are now; of those that have none tombstones, where items expire."""
        places = {key: self._trainer.row(key.decode(errors="replace")) for key in keys}
        known = np.array([place for place in places.values() if place >= 0], dtype=np.int64)
        gone = [key for key, place in places.items() if place < 0] if self._idle_ms else []
        return [*self._rows(known, {}), *((key, None) for key in gone)]

    def _due_rows(self, now_s: float, due: Rows, oldest_ms: Mapping[str, int]) -> list[Keyed]:
        """The rows `due` and those that have waited long enough, which wait no longer."""
        overdue = self._waiting.overdue(now_s, self.progress.next_offset)
        waited = np.array([self._trainer.row(key.decode()) for key in overdue], np.int64)
        return list(self._rows(np.union1d(due, waited), oldest_ms))

    def _unseen(self, batch: Sequence[tuple[int, TrainingExample]]) -> tuple[list[TrainingExample], Progress]:
        """The examples that neither the rows nor the release have learnt, and the progress as it is after them."""
        watched = dict(self.progress.watched)
        next_offset = self.progress.next_offset
        self._ahead = {item_id: offset for item_id, offset in self._ahead.items() if offset > next_offset}
        fresh = []
        for offset, example in batch:
            is_old = offset < self.renewed_to
            if offset >= next_offset and (is_old or example.offset > watched.get(example.partition, -1)):
                if offset >= self._ahead.get(example.item_id, 0) and not self._is_released(example):
                    fresh.append(example)
                if not is_old:
                    watched[example.partition] = example.offset
            next_offset = max(next_offset, offset + 1)
        return fresh, Progress(next_offset, watched)

    def _is_released(self, example: TrainingExample) -> bool:
        """Return whether the release has learnt it already: a row of its log, sent again as a watch."""
        return example.is_row and example.event_ms <= self._learnt_ms

    def _place(self, item_id: str) -> bool:
        """See that an item has a row; whether it has one."""
        if self._trainer.row(item_id) >= 0:
            return True
        if not self._admission.admits(item_id):
            return False
        content = self._items.get(item_id)
        self._undescribed.pop(item_id, None)  # of a row that has expired
        if content is None:  # topics keep no order between them: it may be on its way
            self._undescribed[item_id] = None
            if len(self._undescribed) > MOST_UNDESCRIBED:
                del self._undescribed[next(iter(self._undescribed))]
        self._trainer.add_item(item_id, NO_CONTENT if content is None else self._readable(content))
        return True

    def _readable(self, content: ItemContent) -> ItemContent:
        """The content of an item that is placed; a vector of another length than the release has learnt is counted and
        said once, and the item placed by the rest."""
        known = self._trainer.content_shape.vector
        if not known or len(content.vector) in (0, known):
            return content
        self._metrics.UNFIT_VECTORS.inc()
        if not self._has_warned:
            reason = f"the release has learnt vectors of {known} numbers, an item has one of {len(content.vector)}"
            log.warning("vectors of items are passed over", version=self.version, reason=reason)
            self._has_warned = True
        return content._replace(vector=NO_VECTOR)

    def _describe(self) -> Rows:
        """Move the rows of items that `items` has told of since they were placed; which."""
        found = ((item_id, self._items.get(item_id)) for item_id in self._undescribed)
        told = {item_id: content for item_id, content in found if content is not None}
        for item_id in told:
            del self._undescribed[item_id]
        rows = [self._trainer.describe(item_id, self._readable(content)) for item_id, content in told.items()]
        return np.array([row for row in rows if row >= 0], np.int64)

    def _is_sampled(self) -> bool:
        """Ranking costs as much as learning does, and a sample of the batches says the same."""
        self._evaluations_due += self._settings.evaluate_share
        is_due = self._evaluations_due >= 1
        self._evaluations_due -= is_due
        return is_due

    def _evaluate(self, examples: Examples) -> None:
        """Prequential recall: count the examples whose item each model has in its top k before learning it."""
        if not len(examples):
            return
        ranks = rank_before(self._trainer, self._released, examples)
        hits = np.stack(
            [(model >= 0) & (model < k) for model in (ranks.live, ranks.frozen, ranks.popular) for k in RECALL_AT]
        )[:, ranks.counted]  # [3 models x 2 k, B]
        self._recent.extend(hits.T)
        if not self._recent:
            return
        recall = np.mean(self._recent, axis=0)
        self._metrics.PREQUENTIAL_EXAMPLES.inc(hits.shape[1])
        self._metrics.PREQUENTIAL_SAMPLE.set(len(self._recent))
        labels = [(model, str(k)) for model in ("live", "frozen", "popular") for k in RECALL_AT]
        for (model, k), found, share in zip(labels, hits.sum(axis=1), recall, strict=True):
            self._metrics.PREQUENTIAL_HITS.labels(model, k).inc(int(found))
            self._metrics.PREQUENTIAL_RECALL.labels(model, k).set(share)

    def _tell_drift(self, touched: np.ndarray) -> None:
        """Show how far the rows that have just moved are from where the release had them."""
        means = (self._turned, self._grown)
        for gauge, mean, moved in zip(
            (self._metrics.ROW_TURN, self._metrics.ROW_GROWTH), means, self._trainer.drift(touched), strict=True
        ):
            mean.observe(moved)
            if mean.value is not None:
                gauge.set(mean.value)

    def _rows(self, touched: np.ndarray, oldest_ms: Mapping[str, int]) -> Iterator[tuple[bytes, ItemVector]]:
        for item_id, vector, query_row, state in self._trainer.rows(touched):
            key, ms, learnt_to = item_id.encode(), oldest_ms.get(item_id, 0), self.progress.next_offset
            self._waiting.discard(key)
            yield key, ItemVector(self.version, self._step, vector, query_row, ms, state, self.epoch, learnt_to)


def batches(examples: Iterable[T], size: int) -> Iterator[list[T]]:
    examples = iter(examples)
    while chunk := list(islice(examples, size)):
        yield chunk
