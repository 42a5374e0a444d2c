"""The directory of a backtest: put together beside its place and renamed into it, so that it is whole or not there."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from infra.backtest.page import render_page
from infra.backtest.report import KIND
from models.arrays import Floats, Rows
from models.evaluation.backtest import Walk
from models.evaluation.eval_queries import EvalQueries, Stream
from models.evaluation.split import BacktestError

REPORT = "report.json"


def check_out(out: Path) -> None:
    """Raises BacktestError unless `out` is free, empty or an earlier backtest, which would be replaced."""
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise BacktestError(f"--out {out}: is not a directory")
    if any(out.iterdir()) and not _is_backtest(out):
        raise BacktestError(f"--out {out}: is not empty and holds no earlier backtest; name another directory")


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A directory that takes the place of `out` when the block ends well, and is removed when it does not."""
    check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        made.chmod(0o755)
        yield made
        check_out(out)  # hours may have passed
        _replace(out, made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


class CandidateLists:
    """Receives candidate lists batch by batch and writes them as one Parquet file: user_id, item_id, rank from 1,
    score. A batch is a part on disk, so no more than one is in memory."""

    def __init__(self, directory: Path, user_ids: pl.Series, item_ids: pl.Series) -> None:
        self._directory, self._user_ids, self._item_ids = directory, user_ids, item_ids
        self._parts = directory / "candidates.parts"
        self._parts.mkdir()
        self._written = 0

    def add(self, queries: EvalQueries, items: Rows, scores: Floats) -> None:
        query, place = np.nonzero(items >= 0)
        frame = pl.DataFrame(
            {
                "user_id": self._user_ids.gather(queries.users[query]),
                "item_id": self._item_ids.gather(items[query, place]),
                "rank": (place + 1).astype(np.int32),
                "score": scores[query, place],
            }
        )
        frame.write_parquet(self._parts / f"{self._written:08}.parquet")
        self._written += 1

    def close(self) -> None:
        if self._written:
            pl.scan_parquet(self._parts / "*.parquet").sink_parquet(self._directory / "candidates.parquet")
        shutil.rmtree(self._parts)


def write_live(path: Path, walk: Walk, name: str, stream: Stream, ids: tuple[pl.Series, pl.Series]) -> None:
    """user_id, item_id, event_ms, rank from 1 (null: the item was unknown at the cut) of each case."""
    user_ids, item_ids = ids
    ranks = pl.Series("rank", walk.ranks[name] + 1)
    pl.DataFrame(
        {
            "user_id": user_ids.gather(walk.asked.users),
            "item_id": item_ids.gather(stream.items[walk.asked.watched]),
            "event_ms": np.asarray(stream.event_ms[walk.asked.watched]),
            "rank": ranks.set(ranks == 0, None),
        }
    ).write_parquet(path)


def write_json(directory: Path, report: dict[str, Any]) -> None:
    (directory / REPORT).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_report(
    directory: Path, report: dict[str, Any], render: Callable[[dict[str, Any]], str] = render_page
) -> None:
    write_json(directory, report)
    (directory / "report.html").write_text(render(report), encoding="utf-8")


def _is_backtest(directory: Path) -> bool:
    try:
        report = json.loads((directory / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and report.get("kind") == KIND


def _replace(out: Path, made: Path) -> None:
    if not out.exists():
        made.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    out.rename(old)  # over the empty directory
    made.rename(out)
    shutil.rmtree(old)
