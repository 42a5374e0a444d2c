"""What a batch of request records causes: replies, impressions, dead letters and forwarded requests, put on their way.

A request on another partition than its user's is forwarded there once, with its headers and its time. A request that
cannot be understood gets an error reply wherever an address can be told. A bug that a request shows does not harm the
others of its batch: it goes to the dead letters with the request, and is handed back to be raised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import structlog

from infra import metrics
from infra.settings import Settings
from serving.intake import Letter, PartitionsOf, Unsupported, open_letter
from serving.outbox import Outbox
from serving.pipeline import Answered, Asked
from streams import topics
from streams.dead_letters import dead_letter
from streams.messages import Impression, RecommendReply, Refused, encode

log = structlog.get_logger(__name__)

Answer = Callable[[Sequence[Asked]], list[Answered]]


class Desk:
    """`answer` is the pipeline with everything but the batch filled in."""

    def __init__(self, settings: Settings, outbox: Outbox, partitions_of: PartitionsOf, served_by: str) -> None:
        self._settings, self._outbox = settings, outbox
        self._partitions_of, self._served_by = partitions_of, served_by

    def handle(self, records: Sequence[Any], answer: Answer, now_ms: int) -> Exception | None:
        """Answer, refuse or forward every record; the first bug that one of them has shown."""
        metrics.RECEIVED.labels(topics.RECOMMEND_REQUESTS).inc(len(records))
        letters = [open_letter(record, self._settings, self._partitions_of) for record in records]
        mine: list[tuple[Letter, Asked]] = []
        for letter in letters:
            if letter.refused is not None:
                self._refuse(letter, letter.refused, now_ms)
            elif (asked := self._ask(letter, now_ms)) is not None:
                mine.append((letter, asked))
        return self._answer(mine, answer, now_ms) if mine else None

    def _ask(self, letter: Letter, now_ms: int) -> Asked | None:
        """The letter as the pipeline wants it; None when it was forwarded."""
        record, request = letter.record, letter.request
        assert request is not None
        home = topics.partition_of(request.user_id, self._settings.kafka.partitions)
        if home != record.partition:
            if not any(name == topics.FORWARDED for name, _ in record.headers or ()):
                self._forward(record, request.user_id, home)
                return None
            log.warning("forwarded request on a foreign partition; does kafka.partitions match recommend-requests?")
        return Asked(request, record.partition, max(0.0, now_ms - record.timestamp))

    def _answer(self, mine: list[tuple[Letter, Asked]], answer: Answer, now_ms: int) -> Exception | None:
        try:
            answers = answer([asked for _, asked in mine])
        except Exception as error:  # a bug of ours: the others of the batch are not harmed
            if len(mine) > 1:
                bugs = [self._answer([one], answer, now_ms) for one in mine]
                return next((bug for bug in bugs if bug is not None), None)
            log.exception("a request showed a bug")
            self._refuse(mine[0][0], Refused("bug", f"internal error: {type(error).__name__}"), now_ms)
            return error
        for (letter, asked), answered in zip(mine, answers, strict=True):
            self._reply(letter, answered.reply)
            if answered.impression is not None:
                self._record(answered.impression, asked.partition)
            metrics.REQUESTS.labels("degraded" if answered.reply.degraded else "answered").inc()
        return None

    def _reply(self, letter: Letter, reply: RecommendReply) -> None:
        address = letter.address
        if address is None:
            return
        how = {
            "key": reply.request_id.encode() or None,
            "headers": list(address.headers),
            "partition": address.partition,
        }
        ours = self._settings.kafka.topic_prefix + topics.RECOMMEND_REPLIES
        if address.topic == ours:
            self._outbox.send(topics.RECOMMEND_REPLIES, encode(reply), **how)
        else:
            self._outbox.send_outside(address.topic, encode(reply), **how)

    def _record(self, impression: Impression, partition: int) -> None:
        self._outbox.send(topics.IMPRESSIONS, encode(impression), key=impression.user_id.encode(), partition=partition)

    def _refuse(self, letter: Letter, refused: Refused, now_ms: int) -> None:
        """Tell the client what is wrong; what is broken goes to the dead letters as well."""
        record = letter.record
        metrics.REQUESTS.labels("refused").inc()
        metrics.REJECTED.labels(topics.RECOMMEND_REQUESTS, refused.code).inc()
        self._reply(letter, RecommendReply(letter.request_id, served_by=self._served_by, error=str(refused)))
        if isinstance(refused, Unsupported):
            return
        source = (topics.RECOMMEND_REQUESTS, record.partition, record.offset, record.key, record.value)
        note = dead_letter(*source, record.headers or (), refused, now_ms)
        self._outbox.send(topics.DEAD_LETTERS, encode(note), key=record.key, partition=record.partition)

    def _forward(self, record: Any, user_id: str, home: int) -> None:
        metrics.FORWARDED.labels(topics.RECOMMEND_REQUESTS).inc()
        metrics.REQUESTS.labels("forwarded").inc()
        origin = f"{topics.RECOMMEND_REQUESTS}/{record.partition}/{record.offset}".encode()
        self._outbox.send(
            topics.RECOMMEND_REQUESTS,
            record.value,
            key=user_id.encode(),
            partition=home,
            headers=[*((name, value or b"") for name, value in record.headers or ()), (topics.FORWARDED, origin)],
            timestamp_ms=record.timestamp,
        )
