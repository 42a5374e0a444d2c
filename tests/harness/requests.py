"""Requests from outside: steadily, whether or not they are answered; and sent again, under their own id, until they
are."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from nextwatch_client import RecommendClient, RecommendReply, RecommendRequest
from tests.harness.beside import beside, paced

AGAIN_S = tuple(float(at) for at in range(4, 60, 4))  # a request without a reply is sent again, under its own id
PATIENCE_S = 90.0


@dataclass
class Asked:
    """A request: when it was sent, its reply and the milliseconds until then."""

    request_id: str
    sent_s: float = field(default_factory=time.monotonic)
    future: Future[RecommendReply] = field(default_factory=Future)
    ms: float = float("nan")

    @property
    def user_id(self) -> str:
        return self.request_id.rpartition("/")[0]

    @property
    def reply(self) -> RecommendReply | None:
        """None where there is none."""
        is_answered = self.future.done() and not self.future.cancelled() and self.future.exception() is None
        return self.future.result() if is_answered else None

    def send(self, client: RecommendClient, again_after_s: Sequence[float] = AGAIN_S, **request: Any) -> Asked:
        """Send it, and again until it is answered; `request`: more of its fields."""
        self.future = client.submit(RecommendRequest(self.request_id, self.user_id, **request), again_after_s)

        def answered(_: Future[RecommendReply]) -> None:
            self.ms = 1000 * (time.monotonic() - self.sent_s)

        self.future.add_done_callback(answered)
        return self


def steady(
    client: RecommendClient,
    next_user: Callable[[], str],
    per_s: float,
    asked: list[Asked],
    again_after_s: Sequence[float] = AGAIN_S,
    tag: str = "",
    **request: Any,
) -> contextlib.AbstractContextManager[None]:
    """While the block runs, `per_s` requests a second, whether or not they are answered (an open loop). `tag` tells
    the ids of one load from another's."""
    numbers = itertools.count()

    def send() -> None:
        asked.append(Asked(f"{next_user()}/{tag}{next(numbers)}").send(client, again_after_s, **request))

    return beside(lambda stop: paced(send, per_s, stop), "requests")


def wait_for_replies(asked: Sequence[Asked], patience_s: float = PATIENCE_S) -> None:
    """Return when all are answered, or none any more is waited for."""
    deadline = time.monotonic() + patience_s
    for each in asked:
        with contextlib.suppress(Exception):  # counted where it is looked at
            each.future.result(max(0.0, deadline - time.monotonic()))
