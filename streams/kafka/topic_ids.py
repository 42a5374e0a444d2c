"""The ids of the topics whose offsets a worker's state, or its group, remembers.

A topic that was deleted and made again begins at offset 0, and a state that remembers a greater one takes what comes
for a replay. Kafka gives every topic an id of its own, so the ids are remembered, on `releases`, beside the id of the
topic that holds the state: where that one is another as well, the state is new, and remembers nothing. They are
compared when a worker starts, and while it runs (streams/kafka/faust_app.py). A state of before ids were remembered
takes the present ones. A broker that tells no ids (noida) is believed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from infra.platform.settings import Kafka
from streams import topics
from streams.kafka.follow import read_to_end
from streams.kafka.releases import announce
from streams.messages import Refused, Release, SourceTopics, decode

Ids = Mapping[str, str]  # by topic, without the prefix

TRAINER, RIVAL_TRAINER = "trainer", "rival-trainer"  # of the live release, and of the one beside it
STATES = {
    "history": topics.USER_HISTORIES,
    "join": topics.JOIN_STATE,
    "trending": topics.TRENDING,
    TRAINER: topics.ITEM_VECTORS,
    RIVAL_TRAINER: topics.RIVAL_VECTORS,
}
SOURCES = {
    "history": (
        topics.WATCH_EVENTS,
        topics.SEARCH_EVENTS,
        topics.SIGNALS,
        topics.IMPRESSIONS,
        topics.LOADED_HISTORIES,
    ),
    "join": (topics.IMPRESSIONS, topics.WATCH_EVENTS),
    "trending": (topics.WATCH_EVENTS,),
    TRAINER: (topics.TRAINING_EXAMPLES, topics.WATCH_EVENTS),
    RIVAL_TRAINER: (topics.TRAINING_EXAMPLES, topics.WATCH_EVENTS),
}
MOST_BYTES = 1_000_000


ANOTHER_RIVAL = (
    "`nextwatch experiment stop`, then `nextwatch train --from-topics --no-announce`, and start an experiment with that"
)
BY_HAND = (*(name for name in SOURCES if name not in (TRAINER, RIVAL_TRAINER)),)  # those begin anew with a release


class TopicReplaced(RuntimeError):
    """A topic is not the one whose offsets are remembered; the text names it and the command that goes on."""


def require_same_topics(kafka: Kafka, worker: str) -> None:
    """Return when the topics are those that the worker's state remembers, and remember those that it does not know yet.
    Raises TopicReplaced, TopicMissing, KafkaError."""
    known, present = _look(kafka, worker)
    if changed := replaced(worker, known, present):
        raise TopicReplaced("\n".join(line_of(worker, topic) for topic in changed))
    _remember(kafka, worker, known, present)


def changes_of(kafka: Kafka, worker: str) -> dict[str, str]:
    """The worker's sources that were made anew, and of each a line that says the way out. Raises TopicMissing,
    KafkaError."""
    return {topic: line_of(worker, topic) for topic in replaced(worker, *_look(kafka, worker))}


def check_topic_ids(kafka: Kafka) -> list[str]:
    """Return what no worker would go on with, one line each. Raises KafkaError."""
    present = topic_ids(kafka, [topic.name for topic in topics.TOPICS])
    known = read_known_ids(kafka) if topics.RELEASES in present else {}
    # what a release beside the live one remembers may be of an experiment that is long over; the trainer's /health says
    # what stands in the way of one that runs
    asked = [worker for worker in known if worker != RIVAL_TRAINER]
    changed = ((worker, topic) for worker in asked for topic in replaced(worker, known[worker], present))
    # another `watch-events` the trainer takes up by itself (streams/trainer/restore.py)
    return list(dict.fromkeys(line_of(*each) for each in changed if each != (TRAINER, topics.WATCH_EVENTS)))


def remember_ids(kafka: Kafka, worker: str) -> None:
    """Write down that the worker's state speaks of the topics as they are now. Raises TopicMissing, KafkaError."""
    _remember(kafka, worker, *_look(kafka, worker))


def replaced(worker: str, known: Ids, present: Ids) -> list[str]:
    """The worker's sources that are others now; none when its state is another one too. What is not told by both is
    believed."""
    if known.get(STATES[worker]) != present.get(STATES[worker]):
        return []
    both = known.keys() & present.keys()
    return [topic for topic in SOURCES[worker] if topic in both and known[topic] != present[topic]]


def line_of(worker: str, topic: str) -> str:
    way = "`nextwatch train --from-topics` (or of your log) makes a release that begins in it"
    if worker == RIVAL_TRAINER:
        way = f"of the release beside the live one: {ANOTHER_RIVAL}"
    if worker in BY_HAND:
        way = f"stop the workers {', '.join(BY_HAND)}, then `nextwatch rebuild offsets`"
    return f"{topic}: was deleted and made again, and what comes would pass for handled: {way}"


def _look(kafka: Kafka, worker: str) -> tuple[Ids, Ids]:
    """The ids that are remembered of the worker's topics, and those that they have now."""
    return read_known_ids(kafka).get(worker, {}), topic_ids(kafka, (STATES[worker], *SOURCES[worker]))


def _remember(kafka: Kafka, worker: str, known: Ids, present: Ids) -> None:
    if known != (ids := {**known, **present}):
        announce(kafka, SourceTopics(worker, ids))


def read_known_ids(kafka: Kafka) -> dict[str, Ids]:
    """Return the ids that are remembered, by worker. Raises TopicMissing, KafkaError."""
    known: dict[str, Ids] = {}
    for record in read_to_end(kafka, topics.RELEASES):
        if not (record.key or b"").startswith(b"sources/"):
            continue
        try:
            message: Release = decode(Release, record.value, max_bytes=MOST_BYTES)  # type: ignore[arg-type]
        except Refused:
            continue
        if isinstance(message, SourceTopics):
            known[message.worker] = message.topic_ids
    return known


def topic_ids(kafka: Kafka, names: Iterable[str]) -> dict[str, str]:
    """Return the ids of the topics that are there, as far as the broker tells them. Raises KafkaError."""
    with topics.open_admin(kafka) as admin:
        described = admin.describe_topics([kafka.topic_prefix + name for name in names])
    there = [each for each in described if not each["error_code"] and each["topic_id"]]
    return {each["name"].removeprefix(kafka.topic_prefix): each["topic_id"] for each in there}
