"""Files of any size (Parquet, CSV, JSON-lines), some rows at a time, in the file's order and under our column names.

What has no rows gives no frames; whether that is an error is for the reader to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import polars as pl

from models.logs.log import names_of, reading, require

BATCH_ROWS = 250_000


class Wanted(NamedTuple):
    """Our columns, those of them that must be there, and what the file calls them where it differs."""

    ours: tuple[str, ...]
    needed: tuple[str, ...]
    mapping: Mapping[str, str]

    def in_file(self, path: Path, columns: list[str]) -> dict[str, str]:
        """By our name the file's; raises LogError."""
        theirs_of = names_of(columns, self.mapping, self.ours, f"{path}")
        require([*theirs_of], f"{path}", self.needed)
        return theirs_of


def read_batches(path: Path, wanted: Wanted, rows: int = BATCH_ROWS) -> Iterator[pl.DataFrame]:
    """Frames of at most `rows` rows with those of our columns that are there. Raises LogError naming the file."""
    with reading(path):
        yield from (_json_lines if path.suffix in (".jsonl", ".ndjson") else _scanned)(path, wanted, rows)


def count_rows(path: Path) -> int:
    """Count the rows of a file; without Parquet about, since a line break may be quoted or missing at the end."""
    with reading(path):
        if path.suffix == ".parquet":
            return int(pl.scan_parquet(path).select(pl.len()).collect().item())
        with path.open("rb") as file:
            lines = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
        return max(0, lines - (path.suffix == ".csv"))


def _scanned(path: Path, wanted: Wanted, rows: int) -> Iterator[pl.DataFrame]:
    # Ids that look like numbers stay as they are written in a CSV.
    scan = pl.scan_parquet(path) if path.suffix == ".parquet" else pl.scan_csv(path, infer_schema=False)
    theirs_of = wanted.in_file(path, scan.collect_schema().names())
    columns = [pl.col(theirs).alias(name) for name, theirs in theirs_of.items()]
    yield from scan.select(columns).collect_batches(chunk_size=rows)


def _json_lines(path: Path, wanted: Wanted, rows: int) -> Iterator[pl.DataFrame]:
    """A line may leave out a column that the first lines have: it is not known there."""
    seen: dict[str, None] = {}
    with path.open("rb") as file:
        while lines := b"".join(islice(file, rows)):
            frame = pl.read_ndjson(BytesIO(lines), infer_schema_length=None)
            seen |= dict.fromkeys(frame.columns)
            theirs_of = wanted.in_file(path, [*seen])
            absent = [pl.lit(None).alias(name) for name in theirs_of.values() if name not in frame.columns]
            yield frame.with_columns(absent).select(pl.col(theirs).alias(name) for name, theirs in theirs_of.items())
