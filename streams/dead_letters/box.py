"""The letters of `dead-letters` as a person works through them: which there are, and what became of them.

A letter is known by the place of the message that it is of, `<topic>/<partition>/<offset>`. It is open until a mark for
the same place is in the topic (`DeadLetter.mark`); of two letters of one place, as a crash leaves them, there is one.
The list holds no bytes of messages: there may be very many, and each as large as messages may be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from infra.platform.settings import Kafka
from streams import topics
from streams.kafka.dead_letters import RETRIED, is_whole
from streams.kafka.follow import Progress, read_to_end
from streams.messages import DeadLetter, Refused, decode

TIMES = 8  # a letter may be so much larger than the largest value
OPEN = "open"


class Place(NamedTuple):
    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass
class Entry:
    """A letter as it is listed: all but the bytes of its message."""

    place: Place
    at_ms: int
    code: str
    reason: str
    size: int  # of the message's value, also where it was cut
    is_whole: bool
    retried_from: str  # the letter that this message was sent again from
    state: str = OPEN
    marked_ms: int = 0


class Wanted(NamedTuple):
    """A choice of letters: those of a topic, of a code, from a time on; the closed ones too."""

    topic: str = ""
    code: str = ""
    since_ms: int = 0
    closed: bool = False

    def includes(self, entry: Entry) -> bool:
        return (
            (not self.topic or entry.place.topic == self.topic)
            and (not self.code or entry.code == self.code)
            and entry.at_ms >= self.since_ms
            and (self.closed or entry.state == OPEN)
        )


def of(letter: DeadLetter) -> Place:
    return Place(letter.topic, letter.partition, letter.offset)


def place_of(text: str) -> Place | None:
    """The place that an id names; None when it is no id."""
    topic, *numbers = text.rsplit("/", 2)
    if not topic or len(numbers) != 2 or not all(part.isascii() and part.isdigit() for part in numbers):
        return None
    return Place(topic, *map(int, (part[:19] for part in numbers)))


def read_box(kafka: Kafka, progress: Progress = lambda done, total: None) -> dict[Place, Entry]:
    """Every letter, oldest first by the time at which it was written. Raises KafkaError and TopicMissing."""
    entries: dict[Place, Entry] = {}
    marks: dict[Place, DeadLetter] = {}
    for letter in read_letters(kafka, progress):
        place = of(letter)
        if letter.mark:
            marks[place] = letter
        else:
            entries.setdefault(place, entry_of(letter))
    for place in marks.keys() & entries.keys():
        entries[place].state, entries[place].marked_ms = marks[place].mark, marks[place].at_ms
    return dict(sorted(entries.items(), key=lambda each: (each[1].at_ms, each[0])))


def tries_of(box: Mapping[Place, Entry], entry: Entry) -> int:
    """How often the message was tried: once, and once more for each letter that it was sent again from, as far back as
    letters are kept. A header may say anything: what leads in a circle counts once."""
    known = {entry.place}
    found: Entry | None = entry
    while found is not None and (source := place_of(found.retried_from)) is not None and source not in known:
        known.add(source)
        found = box.get(source)
    return len(known)


def read_letters(kafka: Kafka, progress: Progress = lambda done, total: None) -> Iterator[DeadLetter]:
    """Letters and marks as they lie in the topic, to its present end; what is neither is passed over."""
    for record in read_to_end(kafka, topics.DEAD_LETTERS, progress=progress):
        with suppress(Refused):
            yield decode(DeadLetter, record.value, max_bytes=TIMES * kafka.max_message_bytes)


def entry_of(letter: DeadLetter) -> Entry:
    return Entry(
        of(letter),
        letter.at_ms,
        letter.code,
        letter.reason,
        letter.cut.get("value", len(letter.value or b"")),
        is_whole(letter),
        next((value.decode(errors="replace") for name, value in letter.headers if name == RETRIED), ""),
    )


def find(kafka: Kafka, places: Iterable[Place], progress: Progress = lambda done, total: None) -> Iterator[DeadLetter]:
    """The letters of these places, whole, each once."""
    missing = set(places)
    for letter in read_letters(kafka, progress) if missing else ():
        place = of(letter)
        if not letter.mark and place in missing:
            missing.remove(place)
            yield letter
        if not missing:
            return
