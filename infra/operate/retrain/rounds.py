"""A round of retraining: what can become of it, when the next one begins, and how its time is kept. Pure.

A round that has failed is tried again soon, since what it waits for (Kafka, watches, a disk) may be back at any time.
One that was refused waits for its next turn: an hour later the same watches say the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

import msgspec

from models.evaluation.gate import Verdict

Outcome = Literal["announced", "refused", "failed"]
Step = Callable[[str, int, int], None]

OUTCOMES: tuple[Outcome, ...] = ("announced", "refused", "failed")
RETRY_S = 900.0
UNFINISHED = "the process ended before the round did: killed, for its memory or at a stop that took too long"
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


class OutOfTime(RuntimeError):
    """A round has used up its time; the text names the option and the way out."""


class Stopped(RuntimeError):
    """The process was asked to end."""


class Round(msgspec.Struct, frozen=True):
    """What became of a round. `live` is what was live when it began; `reason` is empty unless it failed; a `version`
    of one that failed has passed and is not announced yet."""

    outcome: Outcome
    started_ms: int
    wall_s: float
    version: str = ""
    live: str = ""
    warm: bool = False  # begun from the live release
    reason: str = ""
    verdict: Verdict | None = None


def first_start(newest_ms: int, now_ms: int, every_s: float) -> int:
    """When the first round begins: `every_s` after the newest release was made, which may have been another process's
    work; at once where that has passed or where there is none (0)."""
    return max(now_ms, newest_ms + round(1000 * every_s)) if newest_ms else now_ms


def next_start(done: Round, every_s: float) -> int:
    """When the next round begins: that long after the beginning of this one, or soon after its end where it failed."""
    due_ms = done.started_ms + round(1000 * every_s)
    if done.outcome != "failed":
        return due_ms
    ended_ms = done.started_ms + round(1000 * done.wall_s)
    return min(max(due_ms, ended_ms), ended_ms + round(1000 * RETRY_S))


def begin(last: Round | None, started_ms: int) -> Round:
    """A round that has begun, which counts as failed until it ends; it still has to announce what the last one could
    not."""
    if last is None or last.outcome != "failed":
        return Round("failed", started_ms, 0.0, reason=UNFINISHED)
    return msgspec.structs.replace(last, started_ms=started_ms, wall_s=0.0, reason=UNFINISHED)


def break_off(begun: Round, now_ms: int) -> Round:
    """The same, when another process has found that its own is gone; until then it may have gone on."""
    return msgspec.structs.replace(begun, wall_s=max(0, now_ms - begun.started_ms) / 1000)


def is_unfinished(last: Round) -> bool:
    return last.reason == UNFINISHED and not last.wall_s


def within(
    step: Step, budget_s: float, *, clock: Callable[[], float], stopped: Callable[[], bool] = lambda: False
) -> Step:
    """The same step for a training that must end: it raises OutOfTime `budget_s` from now on, and Stopped when that is
    asked for. A training tells of each of its steps, so none goes on for much longer."""
    end_s = clock() + budget_s

    def bounded(stage: str, done: int, total: int) -> None:
        if stopped():
            raise Stopped
        if clock() > end_s:
            raise OutOfTime(
                f"the training was not done within --budget ({budget_s:,.0f} s; it was at `{stage}`, {done:,} of "
                f"{total:,}): give it more time, or train less (model.epochs, kafka.retention_h)"
            )
        step(stage, done, total)

    return bounded


def read_duration(text: str) -> float:
    """Seconds of 90s, 30m, 6h, 1d. Raises ValueError."""
    found = DURATION.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise ValueError(f"is a time such as 90s, 30m, 6h or 1d, not {text!r}")
    return float(found[1]) * UNITS[found[2]]
