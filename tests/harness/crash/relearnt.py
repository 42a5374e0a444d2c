"""What the rows of a release would be if nothing had failed: every example of the topic learnt once, by the product's
own learner, in this process, from the release on.

Of the run it takes no vector and no count, only after which examples rows were published, and by which trainer. So the
steps are of the same examples, and where a trainer has died, the next one goes on from the rows that were published by
then: what a death may cost, the moves of rows as negatives since, it costs here too. Chance has no part in it while
there are fewer items than negatives of a step. What is left are steps of which nothing was published, which cannot be
told from the next one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from infra.platform.settings import Trainer
from models.catalogue.content import ItemContent
from models.release.bundle import Bundle
from streams.epochs import Epochs
from streams.messages import ItemVector, TrainingExample, decode
from streams.trainer.learner import Learner
from streams.trainer.progress import PROGRESS_KEY, Progress

MOST_BYTES = 8_000_000


@dataclass
class OfTrainer:
    """What one trainer has published, by the offset below which all was learnt then; and its newest progress."""

    keys: dict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))
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
            trainer.keys[msgspec.msgpack.decode(row.state, type=Progress).next_offset] += []
        else:
            stream.rows[record.key] = row
            trainer.keys[row.learnt_to].append(record.key)
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
        for stop, keys in sorted(trainer.keys.items()):
            learn_to(learner, stream.examples, stop, settings.batch)
            published.update((key, row) for key, row in learner.rows_of(keys) if row is not None)
        if trainer.progress is not None:
            published[PROGRESS_KEY] = trainer.progress
    return published


def learn_to(learner: Learner, examples: Mapping[int, TrainingExample], stop: int, most: int) -> None:
    """Learn all below an offset, in one step where that is no more than a step may hold."""
    places = range(learner.progress.next_offset, stop)
    batch = [(place, examples[place]) for place in places if place in examples]
    for first in range(0, len(batch), most):
        learner.learn(batch[first : first + most], evaluate=False)
