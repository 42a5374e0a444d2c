"""Sending the messages of dead letters again, and dropping letters.

The bytes, key and headers of a message go back to its topic and partition, with a header that names the letter
(`nextwatch-retried`); when that is acknowledged the letter is marked, and when that is, it is done. So a crash in
between sends a message twice at most, and its event or request id makes that one effect. A message that is refused
again is a new letter, at another place, which nobody sends again but a person. In topics that keep the newest message
of a key an older one must not come back: what has been overtaken is not sent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

from kafka import KafkaProducer
from kafka.errors import KafkaError

from infra.platform.kafka_clients import close_producer, kafka_python_options
from infra.platform.settings import Kafka
from streams import topics
from streams.dead_letters.box import TIMES, Entry, Place, find, of
from streams.kafka.dead_letters import RETRIED, marked
from streams.kafka.follow import Progress, TopicFollower, TopicMissing
from streams.messages import DeadLetter, encode

AT_ONCE = 200  # letters sent before their marks are
SEND_S = 30.0
SENT, DROPPED = "retried", "dropped"
OURS = frozenset(topic.name for topic in topics.TOPICS) - {topics.DEAD_LETTERS}
COMPACTED = frozenset(topic.name for topic in topics.TOPICS if topic.cleanup == "compact")


class Outcome(NamedTuple):
    """The end of one that was asked for; `problem` says why it is not as was asked."""

    place: str
    what: str
    problem: str = ""


def retry(
    kafka: Kafka, entries: Sequence[Entry], now_ms: int, *, again: bool = False, progress: Progress = lambda d, t: None
) -> Iterator[Outcome]:
    """Send messages again that have not been yet (`again`: these too), and mark their letters. Raises KafkaError when
    no broker answers: what was marked by then is done, and is not done again."""
    problems = {entry.place: problem for entry in entries if (problem := _problem(entry, again=again))}
    yield from problems.values()
    todo = [entry.place for entry in entries if entry.place not in problems]
    overtaken = find_overtaken(kafka, todo)
    with Sender(kafka) as sender:
        for done, letters in _in_batches(find(kafka, todo)):
            yield from sender.send(letters, overtaken, now_ms)
            progress(done, len(todo))


def drop(kafka: Kafka, entries: Sequence[Entry], now_ms: int) -> Iterator[Outcome]:
    """Mark letters as dropped: nobody is to send them again. Raises KafkaError when no broker answers."""
    yield from (Outcome(str(entry.place), "was dropped before") for entry in entries if entry.state == DROPPED)
    todo = [entry.place for entry in entries if entry.state != DROPPED]
    with Sender(kafka) as sender:
        for _, letters in _in_batches(find(kafka, todo)):
            sender.mark(letters, DROPPED, now_ms)
            yield from (Outcome(str(of(letter)), "dropped") for letter in letters)


def find_overtaken(kafka: Kafka, places: Iterable[Place]) -> set[Place]:
    """Those of these letters of compacted topics whose key has had another message since."""
    keys: defaultdict[tuple[str, int], dict[Place, bytes | None]] = defaultdict(dict)
    for letter in find(kafka, [place for place in places if place.topic in COMPACTED]):
        keys[letter.topic, letter.partition][of(letter)] = letter.key
    overtaken: set[Place] = set()
    for (topic, partition), key_of in keys.items():
        newest = _newest_offsets(kafka, topic, partition, first=min(place.offset for place in key_of))
        overtaken |= {place for place, key in key_of.items() if newest.get(key, -1) > place.offset}
    return overtaken


def _newest_offsets(kafka: Kafka, topic: str, partition: int, *, first: int) -> Mapping[bytes | None, int]:
    """The newest offset of each key, from an offset on; nothing of a topic that is not there, as sending will say."""
    newest: dict[bytes | None, int] = {}
    with suppress(TopicMissing), TopicFollower(kafka, topic, partitions=[partition], known_s=0.0) as follower:
        follower.seek(partition, first)
        newest |= {record.key: record.offset for record in follower.to_end()}
    return newest


def _problem(entry: Entry, *, again: bool) -> Outcome | None:
    """Why a message is not to be sent, if it is not."""
    place, is_closed = str(entry.place), entry.state in (SENT, DROPPED) and not again
    if is_closed and entry.state == SENT:
        return Outcome(place, "was sent again before (--again sends it once more)")
    if is_closed:
        return Outcome(place, "not sent", "it was dropped (--again sends it all the same)")
    if entry.place.topic not in OURS:
        return Outcome(place, "not sent", f"{entry.place.topic} is no topic of ours")
    if not entry.is_whole:
        return Outcome(place, "not sent", "it is not kept whole, for its size: its producer has to send it again")
    return None


class Sender:
    """A producer whose every message is waited for."""

    def __init__(self, kafka: Kafka) -> None:
        self._prefix = kafka.topic_prefix
        self._producer = KafkaProducer(
            **kafka_python_options(kafka),
            client_id="nextwatch-dead-letters",
            acks="all",
            allow_auto_create_topics=False,
            max_request_size=TIMES * kafka.max_message_bytes,
            max_block_ms=round(1000 * SEND_S),
        )

    def send(self, letters: Sequence[DeadLetter], overtaken: set[Place], now_ms: int) -> list[Outcome]:
        """Send what can be, wait; mark it, wait."""
        outcomes: list[Outcome] = []
        sent: list[tuple[DeadLetter, Any]] = []
        for letter in letters:
            if of(letter) in overtaken:
                problem = "a newer message with the same key has come since, which it would replace"
                outcomes.append(Outcome(str(of(letter)), "not sent", problem))
            elif not 0 <= letter.partition < self._partitions_of(letter.topic):
                problem = f"{letter.topic} has no partition {letter.partition}"
                outcomes.append(Outcome(str(of(letter)), "not sent", problem))
            else:
                sent.append((letter, self._put_back(letter)))
        told = [(letter, self._told(letter, future)) for letter, future in sent]
        self.mark([letter for letter, outcome in told if not outcome.problem], SENT, now_ms)
        return outcomes + [outcome for _, outcome in told]

    def mark(self, letters: Sequence[DeadLetter], mark: str, now_ms: int) -> None:
        """Say what became of letters, without anything of them; returns when it is acknowledged."""
        name, partitions = self._prefix + topics.DEAD_LETTERS, self._partitions_of(topics.DEAD_LETTERS)
        marks = [(encode(marked(letter, mark, now_ms)), letter.partition % partitions) for letter in letters]
        for future in [self._producer.send(name, value, partition=partition) for value, partition in marks]:
            future.get(SEND_S)

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: Any) -> None:
        close_producer(self._producer, SEND_S)

    def _put_back(self, letter: DeadLetter) -> Any:
        headers = [(name, content) for name, content in letter.headers if name != RETRIED]
        return self._producer.send(
            self._prefix + letter.topic,
            letter.value,
            key=letter.key,
            partition=letter.partition,
            headers=[*headers, (RETRIED, str(of(letter)).encode())],
        )

    def _told(self, letter: DeadLetter, future: Any) -> Outcome:
        """Return what the broker says; raise what may pass by itself."""
        try:
            found = future.get(SEND_S)
        except KafkaError as error:
            if error.retriable:
                raise
            return Outcome(str(of(letter)), "not sent", f"the broker refuses it: {error}")
        return Outcome(str(of(letter)), f"sent again as {letter.topic}/{found.partition}/{found.offset}")

    def _partitions_of(self, topic: str) -> int:
        return len(self._producer.partitions_for(self._prefix + topic) or ())


def _in_batches(letters: Iterator[DeadLetter]) -> Iterator[tuple[int, list[DeadLetter]]]:
    """Some letters at a time, with how many there were by then."""
    done = 0
    while batch := list(islice(letters, AT_ONCE)):
        done += len(batch)
        yield done, batch
