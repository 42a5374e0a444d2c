"""What it costs a request that its user has said much of what is unwanted: dispatcher and pipeline in this process, as
`serving --part pipeline` has them, the same requests in turns with each number of signals in the histories.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import numpy as np
from msgspec.structs import replace

from infra.simulation.world import NOTICE
from models.threads import limit_threads
from streams.messages import Signal, UserHistory, encode
from streams.topics import partition_of
from tests.benchmarks.ranking.ranking_ground import scratch
from tests.benchmarks.report import Report, say
from tests.benchmarks.serving.large import enlarged
from tests.benchmarks.serving.serving_ground import note_of, small_release
from tests.benchmarks.serving.serving_pipeline import WARM_UP, Server

ITEMS, BATCH = 10_000, 16
ROUNDS, QUICK_ROUNDS, BATCHES = 12, 4, 15
SAID = ((0, 0, 0), (20, 0, 20), (20, 5, 20), (450, 50, 100))  # items, channels, likes; the last is all that is kept


def measure(report: Report, quick: bool) -> None:
    """CPU of a request by the signals that its user's history holds."""
    limit_threads(1)
    small, directory = small_release(quick), scratch()
    rounds = QUICK_ROUNDS if quick else ROUNDS
    report.title = f"serving unwanted: {ITEMS:,} items, {rounds} rounds of {BATCHES} batches of {BATCH}, in turns"
    report.note(f"{NOTICE}; {note_of(small)}; without Kafka, outbox counts")
    say(f"{ITEMS:,} items")
    enlarged(small, directory, ITEMS)
    server = Server(directory)
    for _ in range(WARM_UP):
        server.serve(server.records(BATCH, np.random.default_rng(2)))
    cpu_ms: dict[tuple[int, int, int], list[float]] = {said: [] for said in SAID}
    for number in range(rounds):
        for said in sorted(SAID, reverse=bool(number % 2)):
            tell(server, [with_signals(server, viewer, at, *said) for at, viewer in enumerate(server.viewers)])
            cpu_ms[said].append(cpu_of(server))
    nothing = median(cpu_ms[SAID[0]])
    for (items, channels, likes), found in cpu_ms.items():
        row = {"unwanted items": items, "unwanted channels": channels, "likes": likes}
        report.add(**row, **{"CPU ms/request": median(found), "of none": median(found) / nothing})


def cpu_of(server: Server) -> float:
    """Milliseconds of a request; the same requests whenever it is asked."""
    rng = np.random.default_rng(1)
    all_records = [server.records(BATCH, rng) for _ in range(BATCHES)]
    began_s = time.process_time()
    for records in all_records:
        server.serve(records)
    return 1000 * (time.process_time() - began_s) / (BATCHES * BATCH)


def with_signals(server: Server, viewer: UserHistory, seed: int, items: int, channels: int, likes: int) -> UserHistory:
    """The viewer who has said so much of items and channels drawn by chance."""
    rng, catalogue = np.random.default_rng(seed), server.live.catalogue
    drawn = [catalogue.item_ids[at] for at in rng.integers(0, len(catalogue), items + likes).tolist()]
    names = catalogue.id_values("channel")[1 : channels + 1]
    about = [("dislike", item_id, None) for item_id in drawn[:items]]
    about += [("not_interested", None, name) for name in names]
    about += [("like", item_id, None) for item_id in drawn[items:]]
    signals = [Signal(*each, server.now_ms, f"{viewer.user_id}-s{at}", at) for at, each in enumerate(about)]
    return replace(viewer, signals=tuple(signals))


def tell(server: Server, viewers: Sequence[UserHistory]) -> None:
    for viewer in viewers:
        place = partition_of(viewer.user_id, server.settings.kafka.partitions)
        server.views.histories.apply(place, viewer.user_id.encode(), encode(viewer))
