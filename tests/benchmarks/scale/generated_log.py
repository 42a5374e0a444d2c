"""A log of any length, made up in pieces: people with a taste, items by a Zipf law, time that only grows.

Nothing but the number of rows and of users differs between two sizes: 50 watches of each user in 30 days, and the same
items. So what a row costs to learn from may be compared.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from models.arrays import Array, Rows

ITEMS, CLUSTERS = 20_000, 50
ROWS_OF_USER, DAYS = 50, 30
OWN_TASTE = 0.7  # of a user's watches, among the items of one cluster
HEAD = 10.0  # watches by rank r: 1 / (r + HEAD)
START_MS = 1_700_000_000_000
PIECE = 1_000_000


def write_log(path: Path, rows: int, seed: int = 1) -> None:
    """Write a Parquet file of so many rows in order of time; a piece is in memory."""
    users = max(1, rows // ROWS_OF_USER)
    step_ms = DAYS * 86_400_000 / rows
    pieces = []
    for number, start in enumerate(range(0, rows, PIECE)):
        pieces.append(path.with_name(f"{path.stem}-{number:05d}.parquet"))
        at = np.arange(start, min(start + PIECE, rows))
        piece(at, users, step_ms, np.random.default_rng([seed, number])).write_parquet(pieces[-1])
    pl.scan_parquet(pieces).sink_parquet(path)
    for each in pieces:
        each.unlink()


def piece(at: Rows, users: int, step_ms: float, rng: np.random.Generator) -> pl.DataFrame:
    """The rows numbered `at`."""
    user = rng.integers(0, users, len(at))
    cluster, is_own = user % CLUSTERS, rng.random(len(at)) < OWN_TASTE
    within = drawn(ITEMS // CLUSTERS, rng.random(len(at)))
    item = np.where(is_own, cluster + CLUSTERS * within, drawn(ITEMS, rng.random(len(at))))
    liked = item % CLUSTERS == cluster
    share = np.where(liked, rng.beta(3.0, 1.0, len(at)), rng.beta(1.0, 2.0, len(at)))
    duration_s = durations_s()[item]
    names = {"user_id": ("u", user), "item_id": ("i", item)}
    ids = {
        name: pl.select(pl.lit(prefix) + pl.Series(codes).cast(pl.String)) for name, (prefix, codes) in names.items()
    }
    return pl.DataFrame(
        {name: column.to_series() for name, column in ids.items()}
        | {
            "event_ms": START_MS + (at * step_ms).astype(np.int64),
            "watch_s": (share * duration_s).astype(np.float32),
            "duration_s": duration_s,
        }
    )


def items_frame() -> pl.DataFrame:
    """The catalogue: a cluster is a topic, and holds ten channels."""
    at = np.arange(ITEMS)
    channel = at % (10 * CLUSTERS)
    return pl.DataFrame(
        {
            "item_id": [f"i{item}" for item in at.tolist()],
            "channel": [f"c{code}" for code in channel.tolist()],
            "topics": [[f"t{code}"] for code in (at % CLUSTERS).tolist()],
            "duration_s": durations_s(),
            "published_ms": np.full(ITEMS, START_MS),
        }
    )


def durations_s() -> Array:
    """float32 [ITEMS]: from ten seconds to some minutes."""
    return np.clip(np.random.default_rng(2).lognormal(4.0, 0.8, ITEMS), 10.0, 600.0).astype(np.float32)


def drawn(size: int, uniform: Array) -> Rows:
    """int64 [N]: ranks from 0, each with a chance in proportion to 1 / (rank + HEAD)."""
    chances = np.cumsum(1 / (np.arange(size) + HEAD))
    return np.minimum(np.searchsorted(chances / chances[-1], uniform), size - 1)
