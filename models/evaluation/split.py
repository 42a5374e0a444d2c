"""The cuts of a log: what is before is learnt from, what is after is the test, and the end of the first validates.

Rows of one millisecond stay together, so that nothing of one time is on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from models.evaluation.eval_queries import History, Stream

VALIDATION_SHARE = 0.1  # of the positives before the cut, at most
LIVE_VALIDATION = 10_000  # positives of a live validation walk, at most: each is ranked by every setting


class BacktestError(ValueError):
    """A backtest cannot be made of this log and these options; the text names the option and the way out."""


@dataclass(frozen=True)
class Split:
    """Rows of the stream: [0, validation) is learnt from to choose settings, [validation, cut) validates, [0, cut) is
    learnt from for the test, [cut, end) is the test."""

    validation: int
    cut: int
    end: int


def cut_at(stream: Stream, time_ms: int, option: str) -> int:
    """The first row at or after a time. Raises BacktestError naming `option` when that leaves nothing on one side."""
    if not len(stream):
        raise BacktestError("the log has no positive (completed watch); is history.completed_s right?")
    cut = int(np.searchsorted(stream.event_ms, time_ms, side="left"))
    first, last = iso(int(stream.event_ms[0])), iso(int(stream.event_ms[-1]))
    if cut == 0:
        raise BacktestError(f"{option}: no positive is before {iso(time_ms)}; they run from {first} to {last}")
    if cut == len(stream):
        raise BacktestError(f"{option}: no positive is at or after {iso(time_ms)}; they run from {first} to {last}")
    return cut


def cut_fraction(stream: Stream, fraction: float, option: str) -> int:
    """The row at which the last `fraction` begins, moved back to the first of its millisecond."""
    place = min(int(len(stream) * (1 - fraction)), len(stream) - 1)
    return cut_at(stream, int(stream.event_ms[place]) if len(stream) else 0, option)


def split(history: History, cut: int, *, live: bool, validation_share: float | None = None) -> Split:
    """The validation part is as long as the test, but no longer than VALIDATION_SHARE of what is before the cut (and,
    live, than LIVE_VALIDATION), or exactly `validation_share` of it. Raises BacktestError when in one of the two
    parts there is nobody to be asked."""
    stream = history.stream
    if not len(history.next_unseen(cut)):
        raise BacktestError(
            f"no user has positives before the cut ({iso(int(stream.event_ms[cut]))}) and something new after it, so "
            "there is nobody to be asked: move --test-from or --test-fraction"
        )
    if validation_share is None:
        size = min(len(stream) - cut, int(cut * VALIDATION_SHARE), *([LIVE_VALIDATION] if live else []))
    else:
        size = int(cut * validation_share)
    start = min(cut - size, cut - 1)
    validation = int(np.searchsorted(stream.event_ms[:cut], stream.event_ms[start], side="left"))
    parts = Split(validation, cut, len(stream))
    if not 0 < size < cut or validation == 0 or not len(validation_history(stream, parts).next_unseen(validation)):
        raise BacktestError(
            f"no user has watched something new in the validation part, the {max(size, 0):,} positives before the test "
            f"({cut:,} are before it): move --test-from or --test-fraction, or set --validation-fraction to more"
        )
    return parts


def validation_history(stream: Stream, parts: Split) -> History:
    """The stream as it was at the cut: nothing of the test can be a validation case."""
    before = slice(0, parts.cut)
    return History(Stream(stream.users[before], stream.items[before], stream.event_ms[before]))


def iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
