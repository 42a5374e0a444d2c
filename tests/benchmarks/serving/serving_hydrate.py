"""What it takes to look up and read a viewer's history, by how many users the view holds and how many items there are.

The users of a view share the encoded histories of 10,000 (a million of their own would be gigabytes): what grows is
the table that is looked into, what is read is as cold in every view. Beside it, in turns, the least: the table of
Python and the decoder of msgspec, on the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import product
from statistics import median

import msgspec
import numpy as np

from infra.platform.settings import Settings
from serving.request.hydration import hydrate
from serving.request.response_draft import RequestContext
from serving.state.views import HistoryView
from streams.experiments import Plan
from streams.messages import RecommendRequest, UserHistory, encode
from tests.benchmarks.ranking.ranking_ground import NOW_MS
from tests.benchmarks.report import Report, quantile, say
from tests.benchmarks.serving.serving_ground import HISTORY, viewers_of

USERS, QUICK_USERS = (10_000, 1_000_000), (10_000, 200_000)
ITEMS = (10_000, 1_000_000)
DISTINCT, QUICK_DISTINCT = 10_000, 2_000
PARTITIONS = 4
ROUNDS, LOOKED_UP = 5, 5_000
MOST_RATIO = 1.2


def measure(report: Report, quick: bool) -> None:
    """Microseconds of hydrate for full histories, by users in the view and by items of the catalogue, in turns."""
    users, distinct = (QUICK_USERS, QUICK_DISTINCT) if quick else (USERS, DISTINCT)
    report.title = f"serving hydrate: histories of {HISTORY} watches, {ROUNDS} rounds of {LOOKED_UP:,} in turns"
    report.note(
        f"{distinct:,} different histories, shared by all users of a view; catalogue: where their items are from"
    )
    views = {}
    for items, count in product(ITEMS, users):
        say(f"{count:,} users, {items:,} items")
        views[items, count] = view_of(items, count, distinct)
    found = in_turns(views)
    for (items, count), (ours, bare) in found.items():
        row = {"items": items, "users in the view": count, "hydrate p50 us": median(ours)}
        report.add(**row, **{"p99 us": quantile(ours, 0.99), "look-up and decoder p50 us": median(bare)})
    few, many = users
    for items in ITEMS:
        ratio = median(found[items, many][0]) / median(found[items, few][0])
        report.bar(f"{items:,} items: hydrate at {many:,} users over {few:,}", ratio, at_most=MOST_RATIO)
    ratio = median(found[ITEMS[1], few][0]) / median(found[ITEMS[0], few][0])
    report.bar(f"{few:,} users: hydrate with {ITEMS[1]:,} items over {ITEMS[0]:,}", ratio, at_most=MOST_RATIO)


def view_of(items: int, users: int, distinct: int) -> HistoryView:
    """Full of users of a catalogue of so many items."""
    item_ids = [f"copy-{number:07d}" for number in range(items)]
    encoded = [encode(viewer) for viewer in viewers_of(item_ids, distinct, NOW_MS)]
    view = HistoryView()
    for number in range(users):
        view.apply(number % PARTITIONS, f"u{number:07d}".encode(), encoded[number % distinct])
    return view


def in_turns(views: dict[tuple[int, int], HistoryView]) -> dict[tuple[int, int], tuple[list[float], list[float]]]:
    """Of each view: microseconds of a whole hydrate, and of look-up and decoder alone, one by one."""
    found: dict[tuple[int, int], tuple[list[float], list[float]]] = {key: ([], []) for key in views}
    rng = np.random.default_rng(1)
    for number in range(ROUNDS):
        for key in sorted(views, reverse=bool(number % 2)):
            users = rng.integers(0, key[1], LOOKED_UP).tolist()
            ours, bare = found[key]
            ours += hydrate_us(views[key], users)
            bare += bare_us(views[key], users)
    return found


def hydrate_us(view: HistoryView, users: Sequence[int]) -> list[float]:
    settings = Settings.model_construct()
    plan, spent = Plan(settings.serving, settings.selection), list[float]()
    for number in users:
        context = RequestContext(RecommendRequest("r", f"u{number:07d}"), number % PARTITIONS)
        began_ns = time.perf_counter_ns()
        draft = hydrate(context, view, plan)
        spent.append((time.perf_counter_ns() - began_ns) / 1000)
        assert len(draft.history.watches) == HISTORY
    return spent


def bare_us(view: HistoryView, users: Sequence[int]) -> list[float]:
    decoder, spent = msgspec.json.Decoder(UserHistory), []
    for number in users:
        table, key = view._encoded[number % PARTITIONS], f"u{number:07d}".encode()
        began_ns = time.perf_counter_ns()
        decoder.decode(table[key])
        spent.append((time.perf_counter_ns() - began_ns) / 1000)
    return spent
