"""The demo's scene about freshness: from a watch to a reply that was computed from it, through the whole system, while
the world goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from infra.simulation.demo_context import Claims, DemoContext
from infra.simulation.simulated_traffic import wait_for

PROBES, TOGETHER = 100, 4
PATIENCE_S, LIMIT_S = 5.0, 1.0


def how_fresh(demo: DemoContext, claims: Claims) -> None:
    """Claim that 99 of 100 replies know a watch within a second."""
    claims.console.rule("4. how fresh", align="left")
    viewers = list(dict.fromkeys(demo.world.visitors(20 * PROBES)))[:PROBES]
    items = list(demo.channels())[-PROBES:]
    with ThreadPoolExecutor(TOGETHER) as pool:
        delays_s = list(pool.map(partial(_probe, demo), viewers, items))
    p50_s, p99_s = quantiles(delays_s)
    claims.console.print(
        f"watch sent to a reply that knows it, {len(delays_s)} probes, {TOGETHER} at a time: p50 {p50_s:.2f} s, "
        f"p99 {p99_s:.2f} s, longest {max(delays_s):.2f} s",
        highlight=False,
    )
    claims.check(p99_s < LIMIT_S, f"99 of {len(delays_s)} replies know a watch within {LIMIT_S:g} s")


def quantiles(delays_s: Sequence[float]) -> tuple[float, float]:
    """p50 and p99, each a delay that there was."""
    p50_s, p99_s = np.quantile(delays_s, (0.5, 0.99), method="inverted_cdf")
    return float(p50_s), float(p99_s)


def _probe(demo: DemoContext, viewer: str, item_id: str) -> float:
    """Seconds from a watch until a reply knows it; PATIENCE_S where none does."""
    began_s = time.monotonic()
    (event,) = demo.traffic.watch(viewer, item_id)

    def is_known() -> bool:
        known_ms = demo.ask(viewer, 1).history_event_ms
        return known_ms is not None and known_ms >= event.event_ms

    known = wait_for(is_known, PATIENCE_S, every_s=0.01)
    return time.monotonic() - began_s if known else PATIENCE_S
