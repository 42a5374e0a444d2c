"""Erasing users, from outside the workers: `forgotten` is told of them, the workers that keep something of them
delete it, and their dead letters are marked as dropped.

The record in `forgotten` is what counts: once it is acknowledged, nothing from before it is used again, whoever is
running. That the workers have deleted what they hold is confirmed by them, partition by partition; whoever is down does
it before he reads another event.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence

from kafka import KafkaProducer

from infra.platform.kafka_clients import kafka_python_options
from infra.platform.settings import Settings
from streams import topics
from streams.dead_letters.retry import DROPPED, Sender
from streams.erased_users import USER, ErasedUsers, fingerprint, hash_of
from streams.kafka.follow import TopicFollower, read_to_end
from streams.messages import DeadLetter, UserErased, encode

WORKERS = ("history", "join")  # each keeps a table of users
SEND_S = 30.0
POLL_S = 0.1


def read_erased_users(settings: Settings) -> ErasedUsers:
    """Return all that `forgotten` says now. Raises TopicMissing, KafkaError, ForgetSecretWrong."""
    erased = ErasedUsers(settings.forget.secret.get_secret_value())
    for record in read_to_end(settings.kafka, topics.FORGOTTEN):
        erased.hear(record.key, record.value, record.offset)
    return erased


def write_erased_users(settings: Settings, user_ids: Collection[str], at_ms: int) -> int:
    """Write down that these users are forgotten as of `at_ms`; the offset after it, acknowledged."""
    secret, name = settings.forget.secret.get_secret_value().encode(), settings.kafka.topic_prefix + topics.FORGOTTEN
    value = encode(UserErased(at_ms, fingerprint(secret)))
    keys = [(USER + hash_of(user_id, secret).hex()).encode() for user_id in user_ids]
    options = kafka_python_options(settings.kafka) | {"acks": "all", "allow_auto_create_topics": False}
    producer = KafkaProducer(**options, client_id="nextwatch-forget")
    try:
        sent = [producer.send(name, value, key=key, partition=0) for key in keys]
        return int(max(future.get(timeout=SEND_S).offset for future in sent)) + 1
    finally:
        producer.close(timeout=SEND_S)


def wait_until_done(
    settings: Settings,
    user_ids: Iterable[str],
    offset: int,
    timeout_s: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Wait until the owners of the users' partitions say that they are done up to `offset` of `forgotten`; the
    `<worker>/<partition>` that have not within `timeout_s`."""
    numbers = {topics.partition_of(user_id, settings.kafka.partitions) for user_id in user_ids}
    awaited = [f"{worker}/{number}" for worker in WORKERS for number in sorted(numbers)]
    erased = ErasedUsers(settings.forget.secret.get_secret_value())
    deadline = time.monotonic() + timeout_s
    with TopicFollower(settings.kafka, topics.FORGOTTEN) as follower:
        while True:
            for record in follower.poll(POLL_S):
                erased.hear(record.key, record.value, record.offset)
            missing = [name for name in awaited if erased.done.get(name, 0) < offset]
            progress(len(awaited) - len(missing), len(awaited))
            if not missing or (time.monotonic() > deadline and follower.caught_up):
                return missing


def hide_letters(settings: Settings, letters: Sequence[DeadLetter], now_ms: int) -> None:
    """Mark dead letters as dropped, so that nobody lists them or sends them again. The mark holds nothing of them."""
    with Sender(settings.kafka) as sender:
        sender.mark(letters, DROPPED, now_ms)
