"""Sends what a batch of request records causes: replies, impressions, dead letters and forwarded requests.

A request on another partition than its user's is forwarded there (streams/kafka/forwarding.py), with its headers and
its time (that of the sending, where the topic takes its own no more). One that repeats another's id gets that one's
reply, unless that is on its way to the same address: while replies cannot be written, each of many copies would make
one more, and those of all others would wait behind them. A request that cannot be understood gets an error reply
wherever an address can be told. The replies of a batch go out when its impressions are acknowledged, or a tenth of a
second later where that takes longer.

A request that is read after the deadline that it names is passed over while too many wait (`serving.backlog`): its
client has given up, and has asked again if it still wants to know. Whoever answers the oldest first then answers nobody
in time, for ever.

A bug that a request shows does not harm the others of its batch: it goes to the dead letters with the request, and is
handed back to be raised.
"""

from __future__ import annotations

import time
from collections.abc import Sequence, Set
from typing import Any
from weakref import WeakValueDictionary

import structlog
from msgspec.structs import replace

from infra.platform import metrics
from infra.platform.fault_points import reached
from infra.platform.settings import Settings
from infra.platform.tracing import Attributes, Stage, Tracer
from serving.request.parsing import Address, ParsedRequest, PartitionsOf, Unsupported, parse_request
from serving.request.pipeline import InFlightBatch, Pipeline
from serving.request.response_draft import Answered, RequestContext
from serving.state.release import LiveRelease
from serving.worker.offset_tracker import Sent
from serving.worker.outbox import Outbox
from serving.worker.reply_cache import Key, ReplyCache
from streams import topics
from streams.kafka.dead_letters import dead_letter
from streams.kafka.forwarding import forwarded_from, may_forward
from streams.messages import Impression, RecommendReply, Refused, decode, encode

log = structlog.get_logger(__name__)


class Dispatcher:
    """Requests that are being answered are known to the reply cache, so that one that comes twice is answered once."""

    def __init__(
        self,
        settings: Settings,
        pipeline: Pipeline,
        outbox: Outbox,
        partitions_of: PartitionsOf,
        reply_cache: ReplyCache[ParsedRequest],
        unavailable: Set[str],
        tracer: Tracer | None = None,
    ) -> None:
        self._settings, self._pipeline, self._outbox = settings, pipeline, outbox
        self._partitions_of, self._reply_cache, self._unavailable = partitions_of, reply_cache, unavailable
        self._tracer = tracer
        self.ahead_ms = 0.0  # our clock before those that stamp requests (serving/worker/clock_skew.py)
        self.is_behind = False  # more requests wait than `serving.backlog`
        # as long as the offset tracker has them, so no longer than until they are written
        self._on_their_way: WeakValueDictionary[tuple[Key, Address | None], Sent] = WeakValueDictionary()

    def begin(self, queued: Sequence[tuple[Any, float]], live: LiveRelease | None, now_ms: int) -> InFlightBatch:
        """Refuse, forward or repeat what needs no answer of its own, and begin to answer the rest. `queued`: records
        and when they were read."""
        metrics.RECEIVED.labels(topics.RECOMMEND_REQUESTS).inc(len(queued))
        contexts: list[RequestContext] = []
        to_answer: list[ParsedRequest] = []
        for record, _ in queued:
            parsed = parse_request(record, self._settings, self._partitions_of)
            if parsed.refused is not None:
                self._refuse(parsed, parsed.refused, now_ms)
            elif (context := self._context_of(parsed, now_ms)) is None or self._is_given_up(context):
                continue
            elif not self._repeat(parsed):
                self._reply_cache.begin(_key(parsed))
                contexts.append(context)
                to_answer.append(parsed)
        batch = self._begin(contexts, live, now_ms)
        batch.parsed, batch.queued = to_answer, queued
        return batch

    def finish(self, batch: InFlightBatch) -> Exception | None:
        """Answer the rest; the first bug that one of them has shown."""
        if not batch.contexts:
            return None
        try:
            begun = batch if batch.has_begun else self._pipeline.begin(batch.contexts, batch.live, batch.now_ms)
            answers = self._pipeline.finish(begun)
        except Exception as error:  # a bug of ours: the others of the batch are not harmed
            if len(batch.contexts) > 1:
                bugs = [self.finish(alone) for alone in batch.one_by_one()]
                return next((bug for bug in bugs if bug is not None), None)
            log.exception("a request showed a bug")
            self._give_up(batch.parsed[0], Refused("bug", f"internal error: {type(error).__name__}"), batch.now_ms)
            return error
        for context, answered in zip(batch.contexts, answers, strict=True):
            if answered.impression is not None:
                self._record(answered.impression, context.partition)
                reached("serving: impression sent")
        answered_s = time.perf_counter()
        self._outbox.offsets.wait_for_open()  # whoever has a list finds it on record
        for parsed, answered in zip(batch.parsed, answers, strict=True):
            self._answer(parsed, answered.reply)
            reached("serving: reply sent")
        if self._tracer is not None:
            self._trace(self._tracer, batch, answers, Stage("send", answered_s, time.perf_counter()))
        return None

    def _begin(self, contexts: Sequence[RequestContext], live: LiveRelease | None, now_ms: int) -> InFlightBatch:
        try:
            return self._pipeline.begin(contexts, live, now_ms) if contexts else InFlightBatch(contexts, live, now_ms)
        except Exception:  # a bug: `finish` finds out which request shows it
            return InFlightBatch(contexts, live, now_ms, has_begun=False)

    def _context_of(self, parsed: ParsedRequest, now_ms: int) -> RequestContext | None:
        """The request as the pipeline wants it; None when it was forwarded."""
        record, request = parsed.record, parsed.request
        assert request is not None
        home = topics.partition_of(request.user_id, self._settings.kafka.partitions)
        if home != record.partition:
            if may_forward(record.headers or (), self._settings.kafka.partitions):
                self._forward(record, request.user_id, home)
                return None
            log.warning("forwarded request on a foreign partition; does kafka.partitions match recommend-requests?")
        has_time = record.timestamp > 0
        waited_ms = max(0.0, now_ms - self.ahead_ms - record.timestamp) if has_time else 0.0
        return RequestContext(request, record.partition, waited_ms, parsed.filter)

    def _is_given_up(self, context: RequestContext) -> bool:
        """True where its client has said how long it waits, and that has passed, while too many others wait."""
        if not self.is_behind or context.request.deadline_ms is None or context.left_s(0.0) >= 0:
            return False
        metrics.SHED.inc()
        metrics.REQUESTS.labels("expired").inc()
        return True

    def _repeat(self, parsed: ParsedRequest) -> bool:
        """True if the request was answered before, or is being answered: then it needs no answer of its own."""
        key = _key(parsed)
        if (reply := self._reply_cache.reply_to(key)) is not None:
            self._reply_once(parsed, without(reply, self._unavailable))
        elif not self._reply_cache.join(key, parsed):
            return False
        metrics.REPEATED.inc()
        return True

    def _answer(self, parsed: ParsedRequest, reply: RecommendReply) -> None:
        raw = encode(reply)
        for each in (parsed, *self._reply_cache.end(_key(parsed), raw)):
            self._reply_once(each, raw)
            log.debug("answered", **_about(each), version=reply.version, degraded=reply.degraded)
        outcome = "degraded" if reply.degraded else "answered"
        metrics.REQUESTS.labels(outcome).inc()
        if reply.experiment:
            metrics.EXPERIMENT_REQUESTS.labels(reply.variant, outcome).inc()

    def _trace(self, tracer: Tracer, batch: InFlightBatch, answers: Sequence[Answered], sent: Stage) -> None:
        """Tell of the requests that are traced, from where each was read to its reply: what was done for all of them
        together is a part of each."""
        pairs = zip(batch.parsed, answers, strict=True)
        wanted = [pair for pair in pairs if tracer.wants(pair[0].traceparent)]
        if not wanted:
            return
        stages = [*batch.stages.spent, sent]
        read_s = {(record.partition, record.offset): each_s for record, each_s in batch.queued}
        for parsed, answered in wanted:
            record, reply = parsed.record, answered.reply
            began_s = stages[0].start_s
            waited = Stage("queue", read_s.get((record.partition, record.offset), began_s), began_s)
            about: Attributes = {
                "messaging.system": "kafka",
                "messaging.destination.partition.id": str(record.partition),
                "messaging.kafka.offset": record.offset,
                "nextwatch.batch": len(answers),
                "nextwatch.items": len(reply.items),
                "nextwatch.version": reply.version,
                "nextwatch.retrieved_by": reply.retrieved_by,
                "nextwatch.degraded": [step.partition(":")[0] for step in reply.degraded],
            }
            tracer.tell("recommend", parsed.traceparent, [waited, *stages], about)

    def _give_up(self, parsed: ParsedRequest, refused: Refused, now_ms: int) -> None:
        """Refuse a request that shows a bug, and whoever waits for the same."""
        for each in (parsed, *self._reply_cache.end(_key(parsed), None)):
            self._refuse(each, refused, now_ms)

    def _reply_once(self, parsed: ParsedRequest, reply: bytes) -> None:
        place = _key(parsed), parsed.address
        before = self._on_their_way.get(place)
        if (before is None or not before.is_on_its_way) and (sent := self._reply(parsed, reply)) is not None:
            self._on_their_way[place] = sent

    def _reply(self, parsed: ParsedRequest, reply: bytes) -> Sent | None:
        address = parsed.address
        if address is None:
            return None
        key = parsed.request_id.encode() or None
        how = {"key": key, "headers": list(address.headers), "partition": address.partition}
        ours = self._settings.kafka.topic_prefix + topics.RECOMMEND_REPLIES
        if address.topic == ours:
            return self._outbox.send(topics.RECOMMEND_REPLIES, reply, of=parsed.record.partition, **how)
        return self._outbox.send_outside(address.topic, reply, of=parsed.record.partition, **how)

    def _record(self, impression: Impression, partition: int) -> None:
        raw = encode(impression)
        if len(raw) > self._settings.kafka.max_message_bytes:  # its readers would refuse it
            raw = encode(without_features(impression))
        key = impression.user_id.encode()
        self._outbox.send(topics.IMPRESSIONS, raw, of=partition, key=key, partition=partition)

    def _refuse(self, parsed: ParsedRequest, refused: Refused, now_ms: int) -> None:
        """Tell the client what is wrong; what is broken goes to the dead letters as well."""
        record = parsed.record
        metrics.REQUESTS.labels("refused").inc()
        metrics.REJECTED.labels(topics.RECOMMEND_REQUESTS, refused.code).inc()
        log.debug("refused", **_about(parsed), code=refused.code)
        error = RecommendReply(parsed.request_id, served_by=self._pipeline.served_by, error=str(refused))
        self._reply(parsed, encode(error))
        if isinstance(refused, Unsupported):
            return
        source = (topics.RECOMMEND_REQUESTS, record.partition, record.offset, record.key, record.value)
        limit = self._settings.kafka.max_message_bytes
        letter = dead_letter(*source, record.headers or (), refused, now_ms, max_bytes=limit)
        place = record.partition % self._settings.kafka.partitions
        self._outbox.send(topics.DEAD_LETTERS, encode(letter), of=record.partition, key=letter.key, partition=place)

    def _forward(self, record: Any, user_id: str, home: int) -> None:
        metrics.FORWARDED.labels(topics.RECOMMEND_REQUESTS).inc()
        metrics.REQUESTS.labels("forwarded").inc()
        place = (topics.RECOMMEND_REQUESTS, record.partition, record.offset)
        origin = forwarded_from(*place, self._settings.kafka.partitions)
        self._outbox.send(
            topics.RECOMMEND_REQUESTS,
            record.value,
            of=record.partition,
            key=user_id.encode(),
            partition=home,
            headers=[*((name, value or b"") for name, value in record.headers or ()), origin],
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
    """The impression without what was known of its items: names in the catalogue may be of any length."""
    items = tuple(replace(item, sources={}, ids={}, values=b"") for item in impression.items)
    return replace(impression, items=items, context=None, schema_hash="", ids={}, values=b"")


def _about(parsed: ParsedRequest) -> dict[str, Any]:
    """By what a request is found again, in a log that must not tell of users."""
    return {"trace_id": parsed.trace_id, "partition": parsed.record.partition, "offset": parsed.record.offset}


def _key(parsed: ParsedRequest) -> Key:
    assert parsed.request is not None
    return Key(parsed.request.user_id, parsed.request.request_id)
