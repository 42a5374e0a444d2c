"""The report of what the topics still hold of a user, and until when: what was written cannot be taken out of a topic
that deletes by age, so whoever erases a user must know what remains.

A record is a user's when its key is the user's id, when its value holds the id as a JSON string, when it is the reply
to a request of the user's, or when it is the dead letter of a message that holds the id anywhere, or that message. All
partitions are read: a message that came to the wrong one was forwarded, and lies in both.

Brokers delete whole segments, once the newest record in one is older than the retention. So a record goes at the latest
when as much time has passed as the segment took to be filled, and the retention (and the minutes between two looks of
the broker). In a compacted topic a record goes when it was overwritten and the log is cleaned, and the tombstone, whose
key is the id, `delete.retention.ms` after that. A log is cleaned only as far as its newest segment, which ends with the
next record that comes when `max.compaction.lag.ms` has passed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import msgspec
from kafka.consumer.fetcher import ConsumerRecord

from infra.platform.settings import Settings
from streams import topics
from streams.dead_letters.box import TIMES
from streams.kafka.follow import read_to_end
from streams.messages import DeadLetter, JoinState, Refused, UserHistory, decode
from streams.topics import Topic, config_of, describe_configs, open_admin

Progress = Callable[[str, int, int], None]

FOR_EVER_MS = 1 << 62  # brokers write the largest number for "never"
STATES: dict[str, Any] = {topics.USER_HISTORIES: UserHistory, topics.JOIN_STATE: JoinState}
_REQUESTING = (topics.RECOMMEND_REQUESTS, topics.IMPRESSIONS)  # what names a user's requests
_FIRST, _LAST = (topics.DEAD_LETTERS, *_REQUESTING), topics.RECOMMEND_REPLIES  # what tells of others is read first


class Held(msgspec.Struct):
    """The holdings of one topic: how many records are of the users, and when the last of them is gone (None: it is not
    known). `in_use`: states that are not overwritten and from before the users were erased."""

    topic: str
    records: int = 0
    newest_ms: int = 0
    until_ms: int | None = None
    in_use: int = 0


def find_held(
    settings: Settings, user_ids: Collection[str], erased_ms: int, progress: Progress = lambda stage, done, total: None
) -> tuple[list[Held], list[DeadLetter]]:
    """Return what every topic with users in it holds of these, and their dead letters that are not marked yet. Raises
    TopicMissing and KafkaError."""
    kafka, search = settings.kafka, _Search(user_ids)
    wanted = [topic for topic in topics.TOPICS if topic.key == "user" or topic.name in (*_FIRST, _LAST)]
    wanted.sort(key=lambda topic: (topic.name not in _FIRST, topic.name == _LAST))
    with open_admin(kafka) as admin:
        configs = describe_configs(admin, [kafka.topic_prefix + topic.name for topic in wanted])
    found = []
    for topic in wanted:
        held, states = Held(topic.name), dict[tuple[int, bytes], bytes | None]()
        for record in read_to_end(kafka, topic.name, progress=partial(progress, topic.name)):
            if search.is_of_users(topic.name, record, TIMES * kafka.max_message_bytes):
                held.records += 1
                held.newest_ms = max(held.newest_ms, record.timestamp)
                states[record.partition, record.key or b""] = record.value
        if held.records:
            config = config_of(topic, kafka) | configs.get(kafka.topic_prefix + topic.name, {})
            held.until_ms = until_ms(topic, config, held.newest_ms)
        if topic.name in STATES:
            held.in_use = sum(_is_in_use(STATES[topic.name], value, erased_ms) for value in states.values())
        found.append(held)
    return found, search.open_letters()


def until_ms(topic: Topic, config: dict[str, str], newest_ms: int) -> int | None:
    """The time by which the newest of some records is gone; None when the topic's settings name no time."""
    by_age, by_key = ("retention.ms", "segment.ms"), ("max.compaction.lag.ms", "delete.retention.ms")
    names = by_age if topic.cleanup == "delete" else by_key
    times = [int(config.get(name, FOR_EVER_MS)) for name in names]
    if any(time < 0 or time >= FOR_EVER_MS for time in times):
        return None
    return newest_ms + sum(times)


class _Request(msgspec.Struct):
    """The part of a request or an impression by which its reply is known."""

    request_id: str


class _Search:
    """Whose a record is."""

    def __init__(self, user_ids: Collection[str]) -> None:
        self._keys = {user_id.encode() for user_id in user_ids}
        quoted = {json.dumps(user_id, ensure_ascii=ascii_).encode() for user_id in user_ids for ascii_ in (True, False)}
        self._quoted = re.compile(b"|".join(map(re.escape, sorted(quoted))))
        anywhere = b"|".join(re.escape(key) for key in sorted(self._keys))
        self._anywhere = re.compile(b"(?<![A-Za-z0-9_-])(?:" + anywhere + b")(?![A-Za-z0-9_-])")
        self._requests: set[bytes] = set()
        self._letters: dict[tuple[str, int, int], DeadLetter] = {}
        self._marked: set[tuple[str, int, int]] = set()

    def is_of_users(self, topic: str, record: ConsumerRecord, max_bytes: int) -> bool:
        key, value = record.key, record.value
        if topic == topics.DEAD_LETTERS:
            return self._is_letter(key, value, max_bytes)
        found = key in self._keys or (value is not None and self._quoted.search(value) is not None)
        found = found or (topic, record.partition, record.offset) in self._letters
        if found and topic in _REQUESTING:
            self._note_request(value)
        if topic == topics.RECOMMEND_REPLIES and not found and key is not None:
            return key in self._requests
        return found

    def open_letters(self) -> list[DeadLetter]:
        return [letter for place, letter in self._letters.items() if place not in self._marked]

    def _note_request(self, value: bytes | None) -> None:
        try:
            self._requests.add(msgspec.json.decode(value or b"", type=_Request).request_id.encode())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return

    def _is_letter(self, key: bytes | None, value: bytes | None, max_bytes: int) -> bool:
        try:
            letter = decode(DeadLetter, value, max_bytes=max_bytes)
        except Refused:
            return key in self._keys
        place = letter.topic, letter.partition, letter.offset
        if letter.mark:
            self._marked.add(place)
            return key in self._keys
        contents = (key, letter.key, letter.value, letter.reason.encode(), *(content for _, content in letter.headers))
        found = any(content is not None and self._anywhere.search(content) for content in contents)
        if found:
            self._letters[place] = letter
        return found


def _is_in_use(kind: Any, value: bytes | None, erased_ms: int) -> bool:
    """Return whether the newest record of a user is a state from before the erasure."""
    if value is None:
        return False
    try:
        return bool(decode(kind, value, max_bytes=len(value)).since_ms < erased_ms)
    except Refused:
        return True
