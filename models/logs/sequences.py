"""Logs that have an order only: what each user watched, one thing after the other, and no times.

Nothing invents stamps for them. What needs time (example age, half-lives, a cut of the log) stands aside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from models.arrays import Rows
from models.catalogue.vocabulary import Vocabulary
from models.logs.log import LONGEST_ID, Log, LogError

SUFFIX = ".txt"  # of S3-Rec's form
LINES_A_STEP = 1000  # of progress

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sequences:
    """users int64 [N], codes of `user_ids`, and items int64 [N], codes of `item_ids`: each user's in order."""

    user_ids: list[str]
    item_ids: list[str]
    users: Rows
    items: Rows


def read_sequences(path: Path, progress: Progress = lambda stage, done, total: None) -> Sequences:
    """Read S3-Rec's form: a user a line, `user item item ...` in order. Raises LogError naming file and line."""
    users, items = Vocabulary(), Vocabulary()
    lengths: list[int] = []
    rows: list[int] = []
    try:
        size, read = path.stat().st_size, 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                user, *watched = _words(line, f"{path}: line {number}")
                if users.code(user) != len(lengths):
                    raise LogError(f"{path}: line {number}: user {user} has a line before; all items stand in one")
                rows.extend(map(items.code, watched))
                lengths.append(len(watched))
                read += len(line)
                if number % LINES_A_STEP == 0 or read == size:
                    progress("reading", read, size)
    except OSError as error:
        raise LogError(f"{path}: cannot be read: {error.strerror}") from None
    if not rows:
        raise LogError(f"{path}: has no rows; a line is `user item item ...`")
    owners = np.repeat(np.arange(len(lengths)), lengths)
    return Sequences(users.names, items.names, owners, np.array(rows, np.int64))


def sequences_of(log: Log) -> Sequences:
    """The completed watches of a log in time, of which the order is kept and the times are not."""
    frame = log.frame.filter(pl.col("completed"))
    users, items = Vocabulary(), Vocabulary()
    codes = [names.codes(frame[column]).astype(np.int64) for names, column in ((users, "user_id"), (items, "item_id"))]
    return Sequences(users.names, items.names, codes[0], codes[1])


def _words(line: bytes, place: str) -> list[str]:
    """The user and the items of a line. Raises LogError naming its place."""
    try:
        words = line.decode().split()
    except UnicodeDecodeError:
        raise LogError(f"{place}: is not text in UTF-8") from None
    if len(words) < 2:
        raise LogError(f"{place}: needs a user and at least one item, it has {words or 'nothing'}")
    longest = max(words, key=len)
    if len(longest) > LONGEST_ID:
        raise LogError(f"{place}: an id has at most {LONGEST_ID} characters: {longest[:20]}...")
    return words
