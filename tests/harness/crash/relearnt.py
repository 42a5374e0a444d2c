"""What the rows of a release would be if nothing had failed: every example of the topic learnt once, by the product's
own learner, in this process, from the release on.

Of the run it takes no vector and no count, only after which examples rows were published, and by which trainer. So the
steps are of the same examples, and where a trainer has died, the next one goes on from the rows that were published by
then: what a death may cost, the moves of rows as negatives since, it costs here too. Chance has no part in it while
there are fewer items than negatives of a step.

Of a step that published nothing it is known that there was one, for rows count the steps, but not where it ended: the
end is taken that brings the rows that were published next closest. That chooses among steps of the same examples, each
learnt once; where there are too many ends to try, all is one step.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import comb
from typing import Any

import msgspec
import numpy as np

from infra.platform.settings import Trainer
from models.catalogue.content import ItemContent
from models.release.bundle import Bundle
from streams.epochs import Epochs
from streams.messages import ItemVector, TrainingExample, decode
from streams.trainer.learner import Learner
from streams.trainer.progress import PROGRESS_KEY, Progress
from tests.harness.traffic import vector_of

MOST_BYTES = 8_000_000
MOST_TRIED = 1000  # places of the ends of steps

Rows = Mapping[bytes, ItemVector]


@dataclass
class OfTrainer:
    """What one trainer has published, by the offset below which all was learnt then; and its newest progress."""

    rows: dict[int, dict[bytes, ItemVector]] = field(default_factory=lambda: defaultdict(dict))
    progress: ItemVector | None = None


@dataclass
class Stream:
    """What there was to learn, by its offset; who published what of it, by epoch; and the rows that came of it."""

    examples: Mapping[int, TrainingExample]
    trainers: dict[int, OfTrainer] = field(default_factory=lambda: defaultdict(OfTrainer))
    rows: dict[bytes, ItemVector] = field(default_factory=dict)


def stream_of(version: str, examples: Iterable[Any], vectors: Iterable[Any]) -> Stream:
    """Of records of `training-examples` and of `item-vectors`, by partition and offset."""
    epochs = Epochs()
    stream = Stream({each.offset: decode(TrainingExample, each.value, max_bytes=MOST_BYTES) for each in examples})
    for record in vectors:
        if not epochs.take(record) or record.value is None:
            continue
        row = decode(ItemVector, record.value)
        if row.version != version:
            continue
        trainer = stream.trainers[row.epoch]
        if record.key == PROGRESS_KEY:
            trainer.progress = row
            trainer.rows[msgspec.msgpack.decode(row.state, type=Progress).next_offset] |= {}
        else:
            stream.rows[record.key] = row
            trainer.rows[row.learnt_to][record.key] = row
    return stream


def relearn(
    stream: Stream, bundle: Bundle, items: Mapping[str, ItemContent], settings: Trainer, seed: int
) -> dict[bytes, ItemVector]:
    """Each row as it would be when it was published last, by its key."""
    published: dict[bytes, ItemVector] = {}
    for epoch, trainer in sorted(stream.trainers.items()):
        learner = Learner(bundle, items, settings, seed, epoch)
        for key, row in published.items():
            learner.restore(key, row)
        ends: list[int] = []  # of steps, since rows were published last
        for stop, rows in sorted(trainer.rows.items()):
            ends.append(stop)
            if rows:
                learner = learn_as_published(learner, stream.examples, ends, rows, settings.batch)
                ends.clear()
                published.update((key, row) for key, row in learner.rows_of(rows) if row is not None)
        if trainer.progress is not None:
            published[PROGRESS_KEY] = trainer.progress
    return published


def learn_as_published(
    learner: Learner, examples: Mapping[int, TrainingExample], ends: Sequence[int], rows: Rows, most: int
) -> Learner:
    """Learn all below the last of `ends`, where steps ended; when these rows were published."""
    begin, steps = learner.progress.next_offset, max(row.step for row in rows.values())
    places = [place for place in range(begin, ends[-1]) if place in examples]
    known = [
        first for first, last in zip([begin, *ends], ends, strict=False) if any(first <= at < last for at in places)
    ]
    inner = [place for place in places[1:] if place not in known]
    more = steps - learner._step - len(known)
    if more > 0 and 0 < comb(len(inner), more) <= MOST_TRIED:
        tried = (
            learn_in_steps(copy.deepcopy(learner), examples, sorted([*ends, *chosen]), most)
            for chosen in combinations(inner, more)
        )
        return min(tried, key=lambda each: distance(each, rows))
    learnt = learn_in_steps(learner, examples, ends, most)
    learnt._step = steps
    return learnt


def learn_in_steps(
    learner: Learner, examples: Mapping[int, TrainingExample], ends: Iterable[int], most: int
) -> Learner:
    """Learn all below each end in one step, where that is no more than a step may hold."""
    for end in ends:
        places = range(learner.progress.next_offset, end)
        batch = [(place, examples[place]) for place in places if place in examples]
        for first in range(0, len(batch), most):
            learner.learn(batch[first : first + most], evaluate=False)
    return learner


def distance(learner: Learner, rows: Rows) -> float:
    """How far, at most, any number of a row is from what was published."""
    found = {key: row for key, row in learner.rows_of(rows) if row is not None}
    apart = (vector_of(found[key]) - vector_of(row) for key, row in rows.items() if key in found)
    return max((float(np.abs(each).max()) for each in apart), default=0.0)
