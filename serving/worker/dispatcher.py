"""What a batch of request records causes: replies, impressions, dead letters and forwarded requests, put on their way.

A request on another partition than its user's is forwarded there once, with its headers and its time. One that repeats
another's id gets that one's reply. A request that cannot be understood gets an error reply wherever an address can be
told. A bug that a request shows does not harm the others of its batch: it goes to the dead letters with the request,
and is handed back to be raised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import structlog
from msgspec.structs import replace

from infra.platform import metrics
from infra.platform.fault_points import reached
from infra.platform.settings import Settings
from serving.request.draft import Answered, RequestContext
from serving.worker.intake import Address, ParsedRequest, PartitionsOf, Unsupported, parse_request
from serving.worker.outbox import Outbox
from serving.worker.reply_cache import Key, ReplyCache
from streams import topics
from streams.kafka.dead_letters import dead_letter
from streams.messages import Impression, RecommendReply, Refused, decode, encode

log = structlog.get_logger(__name__)


class Pipeline(NamedTuple):
    """The pipeline with everything but the batch filled in, in its two halves."""

    begin: Callable[[Sequence[RequestContext]], Any]
    finish: Callable[[Any], list[Answered]]


@dataclass
class InFlightWork:
    """A batch that is being answered. `begun` is what the first half gave; None where it showed a bug."""

    mine: list[tuple[ParsedRequest, RequestContext]]
    cook: Pipeline
    begun: Any
    now_ms: int

    @property
    def waits(self) -> bool:
        """Whether another batch can be begun meanwhile."""
        return self.begun is not None and bool(getattr(self.begun, "waits", False))


class Dispatcher:
    """What is under way is known to `repeats`, so that a request that comes twice is answered once."""

    def __init__(
        self,
        settings: Settings,
        outbox: Outbox,
        partitions_of: PartitionsOf,
        served_by: str,
        repeats: ReplyCache[ParsedRequest],
        unavailable: Set[str],
    ) -> None:
        self._settings, self._outbox = settings, outbox
        self._partitions_of, self._served_by = partitions_of, served_by
        self._repeats, self._unavailable = repeats, unavailable
        self.ahead_ms = 0.0  # our clock before those that stamp requests (serving/worker/clock_skew.py)

    def begin(self, records: Sequence[Any], cook: Pipeline, now_ms: int) -> InFlightWork:
        """Refuse, forward or repeat what needs no answer of its own, and begin to answer the rest."""
        metrics.RECEIVED.labels(topics.RECOMMEND_REQUESTS).inc(len(records))
        mine: list[tuple[ParsedRequest, RequestContext]] = []
        for record in records:
            letter = parse_request(record, self._settings, self._partitions_of)
            if letter.refused is not None:
                self._refuse(letter, letter.refused, now_ms)
            elif (asked := self._ask(letter, now_ms)) is not None and not self._repeat(letter, now_ms):
                self._repeats.begin(_key(letter))
                mine.append((letter, asked))
        return InFlightWork(mine, cook, self._begun(mine, cook), now_ms)

    def finish(self, work: InFlightWork) -> Exception | None:
        """Answer the rest; the first bug that one of them has shown."""
        if not work.mine:
            return None
        try:
            begun = work.cook.begin([asked for _, asked in work.mine]) if work.begun is None else work.begun
            answers = work.cook.finish(begun)
        except Exception as error:  # a bug of ours: the others of the batch are not harmed
            if len(work.mine) > 1:
                bugs = [self.finish(InFlightWork([one], work.cook, None, work.now_ms)) for one in work.mine]
                return next((bug for bug in bugs if bug is not None), None)
            log.exception("a request showed a bug")
            self._give_up(work.mine[0][0], Refused("bug", f"internal error: {type(error).__name__}"), work.now_ms)
            return error
        for (letter, asked), answered in zip(work.mine, answers, strict=True):
            if answered.impression is not None:  # before its reply: whoever has the list finds it on record
                self._record(answered.impression, asked.partition)
                reached("serving: impression sent")
            self._answer(letter, answered.reply, work.now_ms)
            reached("serving: reply sent")
        return None

    @staticmethod
    def _begun(mine: Sequence[tuple[ParsedRequest, RequestContext]], cook: Pipeline) -> Any:
        try:
            return cook.begin([asked for _, asked in mine]) if mine else None
        except Exception:  # a bug: `finish` looks for whose it is
            return None

    def _ask(self, letter: ParsedRequest, now_ms: int) -> RequestContext | None:
        """The letter as the pipeline wants it; None when it was forwarded."""
        record, request = letter.record, letter.request
        assert request is not None
        home = topics.partition_of(request.user_id, self._settings.kafka.partitions)
        if home != record.partition:
            if not any(name == topics.FORWARDED for name, _ in record.headers or ()):
                self._forward(record, request.user_id, home)
                return None
            log.warning("forwarded request on a foreign partition; does kafka.partitions match recommend-requests?")
        known = record.timestamp > 0
        waited_ms = max(0.0, now_ms - self.ahead_ms - record.timestamp) if known else 0.0
        return RequestContext(request, record.partition, waited_ms, letter.filter)

    def _repeat(self, letter: ParsedRequest, now_ms: int) -> bool:
        """Whether the request was answered before, or is being answered: then it needs no answer of its own."""
        key = _key(letter)
        if (reply := self._repeats.reply_to(key, now_ms)) is not None:
            self._reply(letter.address, letter.request_id, without(reply, self._unavailable))
        elif not self._repeats.join(key, letter):
            return False
        metrics.REPEATED.inc()
        return True

    def _answer(self, letter: ParsedRequest, reply: RecommendReply, now_ms: int) -> None:
        raw = encode(reply)
        for each in (letter, *self._repeats.end(_key(letter), raw, now_ms)):
            self._reply(each.address, each.request_id, raw)
        metrics.REQUESTS.labels("degraded" if reply.degraded else "answered").inc()

    def _give_up(self, letter: ParsedRequest, refused: Refused, now_ms: int) -> None:
        """A request that shows a bug, and whoever waits for the same."""
        for each in (letter, *self._repeats.end(_key(letter), None, now_ms)):
            self._refuse(each, refused, now_ms)

    def _reply(self, address: Address | None, request_id: str, reply: bytes) -> None:
        if address is None:
            return
        how = {"key": request_id.encode() or None, "headers": list(address.headers), "partition": address.partition}
        ours = self._settings.kafka.topic_prefix + topics.RECOMMEND_REPLIES
        if address.topic == ours:
            self._outbox.send(topics.RECOMMEND_REPLIES, reply, **how)
        else:
            self._outbox.send_outside(address.topic, reply, **how)

    def _record(self, impression: Impression, partition: int) -> None:
        raw = encode(impression)
        if len(raw) > self._settings.kafka.max_message_bytes:  # its readers would refuse it
            raw = encode(without_features(impression))
        self._outbox.send(topics.IMPRESSIONS, raw, key=impression.user_id.encode(), partition=partition)

    def _refuse(self, letter: ParsedRequest, refused: Refused, now_ms: int) -> None:
        """Tell the client what is wrong; what is broken goes to the dead letters as well."""
        record = letter.record
        metrics.REQUESTS.labels("refused").inc()
        metrics.REJECTED.labels(topics.RECOMMEND_REQUESTS, refused.code).inc()
        error = RecommendReply(letter.request_id, served_by=self._served_by, error=str(refused))
        self._reply(letter.address, letter.request_id, encode(error))
        if isinstance(refused, Unsupported):
            return
        source = (topics.RECOMMEND_REQUESTS, record.partition, record.offset, record.key, record.value)
        limit = self._settings.kafka.max_message_bytes
        note = dead_letter(*source, record.headers or (), refused, now_ms, max_bytes=limit)
        place = record.partition % self._settings.kafka.partitions
        self._outbox.send(topics.DEAD_LETTERS, encode(note), key=note.key, partition=place)

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
            timestamp_ms=record.timestamp if record.timestamp > 0 else None,
        )


def without(reply: bytes, unavailable: Set[str]) -> bytes:
    """A reply that was given before, less what was taken down since: a takedown goes before sameness."""
    known = decode(RecommendReply, reply, max_bytes=len(reply))
    left = [item for item in known.items if item.item_id not in unavailable]
    if len(left) == len(known.items):
        return reply
    items = tuple(replace(item, rank=rank) for rank, item in enumerate(left, 1))
    return encode(
        replace(known, items=items, degraded=(*known.degraded, "repeated: without what was taken down since"))
    )


def without_features(impression: Impression) -> Impression:
    """What was shown, and nothing that was known of it: names in the catalogue may be of any length."""
    items = tuple(replace(item, sources={}, ids={}, values=b"") for item in impression.items)
    return replace(impression, items=items, context=None, schema_hash="", ids={}, values=b"")


def _key(letter: ParsedRequest) -> Key:
    assert letter.request is not None
    return Key(letter.request.user_id, letter.request.request_id)
