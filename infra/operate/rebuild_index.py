"""Asking the running indexer to make the live release's collection anew, and waiting for its answer."""

from __future__ import annotations

import time
from contextlib import closing, suppress

import msgspec

from indexer.collection import Index
from indexer.errors import IndexFailure
from indexer.schema import SHADOW
from infra.operate.progress import Step, no_progress
from infra.operate.releases import find_bundles, read_topic
from infra.platform.guarded_process import ServiceError
from infra.platform.settings import Settings
from streams import topics
from streams.kafka.follow import TopicFollower
from streams.kafka.releases import announce
from streams.messages import RebuildAsked, RebuildDone, Refused, Release, decode

POLL_S = 0.2


class IndexRebuilt(msgspec.Struct, frozen=True):
    """The outcome. `problem` is empty when the new collection is in use; without an answer the request stands."""

    version: str
    answered: bool
    items: int = 0
    problem: str = ""
    spent_s: float = 0.0


def rebuild_index(settings: Settings, wait_s: float, progress: Step = no_progress) -> IndexRebuilt:
    """Ask, and wait up to `wait_s`. Raises ServiceError when there is nothing to make it from."""
    live, items = _live_release(settings)
    asked = RebuildAsked(live, time.time_ns() // 1_000_000)
    deadline = time.monotonic() + wait_s
    with closing(Index(settings.milvus)) as index, TopicFollower(settings.kafka, topics.RELEASES) as follower:
        announce(settings.kafka, asked)
        while time.monotonic() < deadline:
            done = next(filter(None, (_answer(record.value, asked) for record in follower.poll(POLL_S))), None)
            if done is not None:
                return IndexRebuilt(live, True, done.items, done.problem, done.spent_ms / 1000)
            with suppress(IndexFailure):  # it is not there yet, or Milvus is busy: only the bar waits for it
                progress("rows", min(index.count(live + SHADOW), items), items)
    return IndexRebuilt(live, False)


def _live_release(settings: Settings) -> tuple[str, int]:
    """The live version and its items. Raises ServiceError."""
    live = read_topic(settings.kafka).live
    if not live:
        raise ServiceError("no release is live yet: `nextwatch train` makes one, and the indexer its index")
    bundles, problem = find_bundles(settings)
    found = next((each for each in bundles if each.version == live), None)
    if found is None or found.problem:
        why = found.problem if found else problem or "it is not there"
        raise ServiceError(
            f"the index of the live release {live} cannot be rebuilt without its bundle "
            f"({settings.bundles_dir / live}: {why}): copy it back from a backup, or train another release "
            "(`nextwatch train`)"
        )
    return live, found.items


def _answer(value: bytes | None, asked: RebuildAsked) -> RebuildDone | None:
    with suppress(Refused):
        message: Release = decode(Release, value)  # type: ignore[arg-type]
        if isinstance(message, RebuildDone) and message.asked_ms == asked.at_ms:
            return message
    return None
