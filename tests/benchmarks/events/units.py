"""What one of each takes in bytes: messages as they are served, and a user or an item in memory.

`nextwatch doctor --plan` multiplies these, beside the CPU that `whole-way` and `serving --part pipeline` print.
Impressions and replies are those of a server's own pipeline; what memory a user takes is what a thousand of them add.
"""

from __future__ import annotations

import tracemalloc
import uuid
from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np

from infra.simulation.world import NOTICE
from streams import topics
from streams.messages import (
    Impression,
    ImpressionOutline,
    ItemVector,
    JoinState,
    Outcome,
    RankingExample,
    RecommendRequest,
    StatisticsRow,
    TrainingExample,
    WatchEvent,
    decode,
    encode,
    open_impression,
)
from tests.benchmarks.ranking.ranking_ground import scratch
from tests.benchmarks.report import Report
from tests.benchmarks.serving.large import enlarged
from tests.benchmarks.serving.serving_ground import note_of, small_release
from tests.benchmarks.serving.serving_pipeline import Server

ITEMS, REQUESTS, USERS = 2_000, 64, 1_000
WINDOW_MS = 3_600_000


class Kept:
    """An outbox that keeps what it is given, by topic."""

    def __init__(self) -> None:
        self.values: dict[str, list[bytes]] = {}

    def send(self, topic: str, value: bytes, **_: Any) -> None:
        self.values.setdefault(topic, []).append(value)

    send_outside = send


def measure(report: Report, quick: bool) -> None:
    """Bytes of each message, of full histories and lists of 20, and of a user in a worker's memory."""
    small = small_release(quick=True)
    directory, kept = scratch(), Kept()
    enlarged(small, directory, ITEMS)
    server = Server(directory, outbox=kept)
    for _ in range(REQUESTS // 16):
        server.serve(server.records(16, np.random.default_rng(1)))
    report.title = "units: bytes of one of each, histories of 50 watches, lists of 20"
    report.note(f"{NOTICE}; {note_of(small)}")
    impressions, replies = kept.values[topics.IMPRESSIONS], kept.values["replies"]
    sizes = {name: float(len(encode(message))) for name, message in messages_of(server, impressions[0]).items()}
    sizes |= {"impression": fmean(map(len, impressions)), "reply": fmean(map(len, replies))}
    sizes["history"] = fmean(len(encode(viewer)) for viewer in server.viewers)
    for name, size in sizes.items():
        report.add(what=f"{name}_bytes", bytes=size)
    history, state = encode(server.viewers[0]), encode(state_of(impressions[0]))
    for name, value in (("history_user_bytes", history), ("join_list_bytes", state)):
        report.add(what=name, bytes=grown_by(lambda number, value=value: (f"user-{number}", bytes(bytearray(value)))))
    report.bar("messages and users that were measured", len(report.rows), at_least=len(sizes) + 2)


def messages_of(server: Server, impression: bytes) -> dict[str, Any]:
    """One of each message that is not a pipeline's."""
    viewer, now_ms = server.viewers[0], server.now_ms
    shown = decode(Impression, impression)
    vector = np.zeros(server.live.model.dim, "<f4").tobytes()
    outcomes = tuple(Outcome(item.item_id, 0.0, completed=False) for item in shown.items)
    return {
        "watch": WatchEvent(uuid.uuid4().hex, viewer.user_id, "video-1234", now_ms, 31.5, 60.0, uuid.uuid4().hex),
        "example": TrainingExample(
            viewer.user_id, "video-1234", now_ms, 31.5, 60.0, viewer.watches, (), viewer.context, 3, 10**8, now_ms
        ),
        "row": ItemVector(server.live.version, 10**6, vector, vector[:-4], now_ms),
        "statistics": StatisticsRow(
            "item", "video-1234", 3, now_ms, 1234.5, 234.5, 3456.7, 123.4, 0.0, (now_ms, 10**8)
        ),
        "request": RecommendRequest(uuid.uuid4().hex, viewer.user_id),
        "ranking_example": RankingExample(shown, outcomes, 3, 10**8, now_ms),
    }


def state_of(impression: bytes) -> JoinState:
    """A user with one list that is still open."""
    outline = decode(ImpressionOutline, impression)
    return JoinState("user-1", (open_impression(outline, impression, 10**8, outline.at_ms + WINDOW_MS),))


def grown_by(entry: Callable[[int], tuple[str, bytes]]) -> float:
    """Bytes that one more user takes in a table of encoded states."""
    tracemalloc.start()
    table = dict(entry(number) for number in range(USERS))
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return taken / len(table)
