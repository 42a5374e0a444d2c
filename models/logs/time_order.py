"""Columns larger than memory in order of time: blocks that fit, earliest first, equal times whole and in their old
order.

Rows are dealt out to spans of time that are found from a sample, each span short enough to be sorted in memory; a span
that the sample misjudged is dealt out again. Rows of one and the same time cannot be dealt out further: they come as
one block, however many they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from models.arrays import Array
from models.logs.array_file import ArrayFile

Files = Mapping[str, ArrayFile]

TIME = "event_ms"
MOST_SPANS = 1024
SAMPLE = 262_144


def blocks_in_time(files: Files, rows: int) -> Iterator[dict[str, Array]]:
    """Blocks of at most `rows` rows (or of one time) by column name. `files` are overwritten; what they are dealt out
    to lies beside them."""
    size = len(files[TIME])
    if size:
        spare = {name: file.spare() for name, file in files.items()} if size > rows else files
        yield from _dealt(files, spare, 0, size, rows)


def _dealt(here: Files, there: Files, start: int, stop: int, rows: int) -> Iterator[dict[str, Array]]:
    """The rows from `start` to `stop` of `here`, in time."""
    first, last = _range(here[TIME], start, stop, rows)
    if stop - start <= rows or first == last:
        order = np.argsort(here[TIME].read(start, stop), kind="stable")
        yield {name: file.read(start, stop)[order] for name, file in here.items()}
        return
    begins = _spans(here[TIME], start, stop, rows, first, last)
    edges = start + np.r_[0, np.cumsum(_sizes(here[TIME], start, stop, rows, begins))]
    _deal(here, there, start, stop, rows, begins, edges[:-1].copy())
    for left, right in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if left < right:
            yield from _dealt(there, here, left, right, rows)


def _range(times: ArrayFile, start: int, stop: int, rows: int) -> tuple[int, int]:
    pieces = (times.read(at, min(at + rows, stop)) for at in range(start, stop, rows))
    ends = [(int(piece.min()), int(piece.max())) for piece in pieces]
    return min(first for first, _ in ends), max(last for _, last in ends)


def _spans(times: ArrayFile, start: int, stop: int, rows: int, first: int, last: int) -> Array:
    """The begin of each span of time but the first; at least one lies within (first, last], so that each deal ends with
    fewer rows in a span than before."""
    stride = max(1, (stop - start) // SAMPLE)
    pieces = [times.read(at, min(at + rows, stop))[::stride] for at in range(start, stop, rows)]
    sample = np.sort(np.concatenate(pieces))
    spans = min(MOST_SPANS, 2 * -(-(stop - start) // rows))  # half full on average: the sample may misjudge
    begins = sample[np.arange(1, spans) * len(sample) // spans]
    begins = np.unique(np.r_[begins, first + (last - first) // 2 + 1])
    return begins[begins > first]


def _sizes(times: ArrayFile, start: int, stop: int, rows: int, begins: Array) -> Array:
    sizes = np.zeros(len(begins) + 1, np.int64)
    for at in range(start, stop, rows):
        span = np.searchsorted(begins, times.read(at, min(at + rows, stop)), side="right")
        sizes += np.bincount(span, minlength=len(sizes))
    return sizes


def _deal(here: Files, there: Files, start: int, stop: int, rows: int, begins: Array, next_of: Array) -> None:
    """Copy each row to the next free place of its span (`next_of`, moved on)."""
    for at in range(start, stop, rows):
        end = min(at + rows, stop)
        span = np.searchsorted(begins, here[TIME].read(at, end), side="right")
        order = np.argsort(span, kind="stable")
        counts = np.bincount(span, minlength=len(next_of))
        edges = np.r_[0, np.cumsum(counts)].tolist()
        for name, file in here.items():
            values = file.read(at, end)[order]
            for part in np.flatnonzero(counts).tolist():
                there[name].write(int(next_of[part]), values[edges[part] : edges[part + 1]])
        next_of += counts
