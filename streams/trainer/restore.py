"""A release as the trainer left it: its bundle, the rows of it in its topic (`item-vectors`), and what is yet to be
learnt. Blocks; runs in the learner's thread."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

import msgspec
import structlog

from infra.platform.settings import Kafka, Settings
from models.catalogue.content import ItemContent
from streams import topics
from streams.bundles.source import source_of
from streams.epochs import Epochs, is_claim
from streams.erased_users import ErasedUsers
from streams.kafka.follow import TopicFollower, read_to_end
from streams.kafka.topic_ids import ANOTHER_RIVAL, TopicReplaced, changes_of, remember_ids
from streams.messages import ItemVector, Refused, TrainingExample, decode
from streams.trainer.learner import Learner
from streams.trainer.sides import LIVE, RIVAL, Side

log = structlog.get_logger(__name__)

MOST_BYTES = 8_000_000  # of an example: it holds 150 history entries, each within its own limits
AHEAD_MS = 86_400_000  # its time decides which items are idle: one of another century would let all of them go


class ExamplesGone(RuntimeError):
    """Examples that a release should learn are not there any more; the text says how many, and the way out."""


class Restored(NamedTuple):
    """A learner, the offsets of `training-examples` that it has to catch up with, the keys in its topic whose
    newest record does not count, and whether the progress is of a `watch-events` that was made anew since."""

    learner: Learner
    start: int
    stop: int
    shadowed: set[bytes]
    is_renewed: bool = False


def restore_release(
    settings: Settings, version: str, items: Mapping[str, ItemContent], epoch: int, side: Side = LIVE
) -> Restored:
    """The learner of a release with its published rows; its own rows will be of `epoch`.

    A new release has what came after its own data to learn, to the end of the topic; it is new until its progress is
    published, whatever rows a crash has left. One that does not know where its data ended begins at the committed
    offset. Another one goes on from its progress; what lies between that and the committed offset is not delivered
    again, so it is fetched.

    Progress is of one `training-examples` and one `watch-events` (streams/kafka/topic_ids.py). Of another watch topic
    nothing is learnt yet; with another topic of examples only a new release can begin. Raises TopicReplaced then, and
    BundleError, KafkaError, TopicMissing; ExamplesGone where the release beside the live one would miss examples.
    """
    bundle = source_of(settings).read(version)
    learner = Learner(bundle, items, settings.trainer, settings.model.seed, epoch, side)
    shadowed = _restore_rows(learner, settings.kafka, side.topic)
    if not learner.is_new:
        changed = changes_of(settings.kafka, side.worker)
        if topics.TRAINING_EXAMPLES in changed:
            raise TopicReplaced(changed[topics.TRAINING_EXAMPLES])
        if changed:
            learner.forget_watched()
        else:
            remember_ids(settings.kafka, side.worker)
        committed = committed_examples(settings.kafka)
        if changed:  # all that is there may be of the topic before: it is learnt before anything is compared
            learner.renewed_to = committed = max(committed, end_of_examples(settings.kafka))
        if side is RIVAL:
            require_examples(learner.progress.next_offset, first_of_examples(settings.kafka))
        return Restored(learner, learner.progress.next_offset, committed, shadowed, bool(changed))
    remember_ids(settings.kafka, side.worker)
    told = bundle.manifest.offsets.get(f"{topics.TRAINING_EXAMPLES}/0")
    start = committed_examples(settings.kafka) if told is None else told
    if start > end_of_examples(settings.kafka):
        log.warning("training-examples is shorter than what was read of it: it was made anew", start=start)
        start = 0
    if side is RIVAL and told is None:
        start = max(start, first_of_examples(settings.kafka))
    elif side is RIVAL:
        require_examples(start, first_of_examples(settings.kafka))
    learner.begin_at(start)
    return Restored(learner, start, start if told is None else sys.maxsize, shadowed)


def require_examples(start: int, first: int) -> None:
    """Return where all examples from `start` on are there still, of which `first` is the first. Raises ExamplesGone."""
    if start < first:
        raise ExamplesGone(
            f"{topics.TRAINING_EXAMPLES}: {first - start:,} examples that the release beside the live one has yet to "
            f"learn were deleted, from offset {start} to {first}, so the comparison would not be fair: {ANOTHER_RIVAL}"
        )


def examples_between(kafka: Kafka, start: int, stop: int, erased: ErasedUsers) -> Iterator[tuple[int, TrainingExample]]:
    """The examples of these offsets that are there, each with its offset; none of who was erased since."""
    if start >= stop:
        return
    with TopicFollower(kafka, topics.TRAINING_EXAMPLES) as follower:
        follower.seek(0, start)
        for record in follower.to_end():
            if record.offset >= stop:
                return
            with suppress(Refused):  # reported when it first came
                example = read_example(record.value)
                if not is_erased(example, erased):
                    yield record.offset, example


def is_erased(example: TrainingExample, erased: ErasedUsers) -> bool:
    """Return whether an example is from before its user was erased."""
    return erased.is_from_before(example.user_id, example.event_ms, example.produced_ms)


def read_example(value: bytes | None) -> TrainingExample:
    """Raises Refused."""
    latest_ms = time.time_ns() // 1_000_000 + AHEAD_MS
    return decode(TrainingExample, value, max_bytes=MOST_BYTES, latest_ms=latest_ms)


def committed_examples(kafka: Kafka) -> int:
    """The offset of `training-examples` that the trainers' group has committed, 0 when it has none."""
    group, name = f"{kafka.topic_prefix}nextwatch-trainer", topics.TRAINING_EXAMPLES
    return topics.committed_offsets(kafka, group, [name], 0)[name]


def end_of_examples(kafka: Kafka) -> int:
    with TopicFollower(kafka, topics.TRAINING_EXAMPLES, partitions=()) as follower:
        return follower.ends()[topics.TRAINING_EXAMPLES, 0]


def first_of_examples(kafka: Kafka) -> int:
    """The offset of the first one that is there still."""
    with TopicFollower(kafka, topics.TRAINING_EXAMPLES) as follower:
        return follower.firsts_of(0)[topics.TRAINING_EXAMPLES]


def _restore_rows(learner: Learner, kafka: Kafka, topic: str) -> set[bytes]:
    """Restore the rows that count; the keys whose newest record does not."""
    epochs, shadowed = Epochs(), set[bytes]()
    for record in read_to_end(kafka, topic):
        key = record.key or b""
        if epochs.take(record):
            try:
                learner.restore(key, None if record.value is None else decode(ItemVector, record.value))
            except (ValueError, msgspec.MsgspecError) as error:  # passed over, the indexer reports it
                log.warning("record passed over", topic=topic, reason=str(error))
            shadowed.discard(key)
        elif not is_claim(key):
            shadowed.add(key)
    return shadowed
