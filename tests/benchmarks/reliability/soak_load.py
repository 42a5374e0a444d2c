"""Requests of a soak: steadily, each sent again under its own id until it is answered; and how many can be answered."""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from infra.platform.kafka_clients import client_options
from nextwatch_client import RecommendClient, RecommendReply, RecommendRequest
from tests.harness.beside import beside, paced
from tests.harness.service import Service

AGAIN_S = tuple(float(at) for at in range(4, 60, 4))  # a request without a reply is sent again, under its own id
PATIENCE_S = 90.0


@dataclass
class Asked:
    """A request: when it was sent, its reply and the milliseconds until then."""

    sent_s: float
    future: Future[RecommendReply]
    ms: float = float("nan")

    @property
    def reply(self) -> RecommendReply | None:
        """None where there is none."""
        is_answered = self.future.done() and not self.future.cancelled() and self.future.exception() is None
        return self.future.result() if is_answered else None


def steady(
    client: RecommendClient, users: Sequence[str], per_s: float, asked: list[Asked], tag: str = ""
) -> contextlib.AbstractContextManager[None]:
    """While the block runs, `per_s` requests a second, whether or not they are answered (an open loop). `tag` tells
    the ids of one load from another's."""
    numbers, rng = itertools.count(), random.Random(1)

    def send() -> None:
        asked.append(ask(client, f"{rng.choice(users)}/{tag}{next(numbers)}"))

    return beside(lambda stop: paced(send, per_s, stop), "requests")


def ask(client: RecommendClient, request_id: str, again_after_s: Sequence[float] = AGAIN_S) -> Asked:
    """Send a request, and again until it is answered."""
    sent_s = time.monotonic()
    request = RecommendRequest(request_id, request_id.rpartition("/")[0])
    asked = Asked(sent_s, client.submit(request, again_after_s))

    def answered(_: Future[RecommendReply]) -> None:
        asked.ms = 1000 * (time.monotonic() - sent_s)

    asked.future.add_done_callback(answered)
    return asked


def wait_for_replies(asked: Sequence[Asked], patience_s: float = PATIENCE_S) -> None:
    """Return when all are answered, or none any more is waited for."""
    deadline = time.monotonic() + patience_s
    for each in asked:
        with contextlib.suppress(Exception):  # counted where it is looked at
            each.future.result(max(0.0, deadline - time.monotonic()))


def measure_capacity(service: Service, seconds: float, concurrency: int = 32) -> float:
    """Requests per second that are answered when so many are always under way."""
    users = list(service.releases.histories)
    began_s = time.monotonic()

    def work(number: int) -> int:
        done = 0
        while time.monotonic() - began_s < seconds:
            ask(client, f"{users[(number + done) % len(users)]}/capacity-{number}-{done}").future.result(PATIENCE_S)
            done += 1
        return done

    with RecommendClient(client_options(service.settings.kafka)) as client, ThreadPoolExecutor(concurrency) as pool:
        return sum(pool.map(work, range(concurrency))) / seconds
