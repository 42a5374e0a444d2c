"""The examples that a ranker is trained from, as columns on disk: the features of impressions as they were served, and
outcomes.

Written in pieces and mapped when read, so neither a log nor a topic has to fit into memory. Ids are numbered by lists
of names that stand beside them; which of them the ranker knows is decided in training (models.ranking.ranker_training).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.arrays import Array, Flags, Floats, Rows
from models.logs.array_file import ArrayFile, mapped
from models.ranking.feature import Scope
from models.ranking.features import ids_of, numbers_of
from models.ranking.ranking_batch import HISTORY, MOST_TOPICS, SOURCES, Codes

SCOPES: tuple[Scope, Scope] = ("query", "impression")
CAP_S = 600.0  # of a ranker that says nothing else: watch time beyond its cap neither trains it nor is promised
LONGEST, ROOM = 0.001, 2.0  # a cap that the data choose: so many times what all but this share of the watches reach
LEAST_LONG = 10  # watches beyond that, at least
MOST_CAP_S = 86_400.0  # what a message may promise
SAMPLE = 400_000  # newest watches that choose one
WIDTHS = {"last_watched": HISTORY, "topics": MOST_TOPICS, "sources": len(SOURCES) - 1}  # ids of a feature; others: 1
QUERY_IDS = frozenset(feature.name for feature in ids_of("query"))
OUTCOMES: dict[str, Any] = {
    "request": np.int64,  # row of the queries
    "target_s": np.float32,
    "duration_s": np.float32,
    "completed": np.bool_,
    "position": np.int32,
    "user": np.int64,
    "at_ms": np.int64,
}


@dataclass(frozen=True)
class RankingExamples:
    """N examples of B queries, read-only maps, in the order in which they were written (of a log: oldest first).

    numbers: "query" float32 [B, F], "impression" float32 [N, F]. ids: by feature Codes with codes int32 [B or N, M].
    request int64 [N]; target_s float32 [N] seconds watched, at most `cap_s`; duration_s float32 [N], NaN unknown;
    completed bool [N]; position int32 [N] from 1, 0 unknown; user int64 [N]; at_ms int64 [N].
    """

    numbers: dict[Scope, Floats]
    ids: dict[str, Codes]
    request: Rows
    target_s: Floats
    duration_s: Floats
    completed: Flags
    position: npt.NDArray[np.int32]
    user: Rows
    at_ms: Rows
    cap_s: float = CAP_S

    def __len__(self) -> int:
        return len(self.request)

    def take(self, rows: Rows) -> RankingExamples:
        """These examples alone, in memory; the queries stay where they are."""
        numbers = {SCOPES[0]: self.numbers["query"], SCOPES[1]: np.asarray(self.numbers["impression"][rows])}
        ids = {name: named if name in QUERY_IDS else named.at(rows) for name, named in self.ids.items()}
        columns = {name: np.asarray(getattr(self, name)[rows]) for name in OUTCOMES}
        return RankingExamples(numbers, ids, **columns, cap_s=self.cap_s)

    def capped(self, cap_s: float) -> RankingExamples:
        """The same with no target above that."""
        return replace(self, target_s=np.minimum(self.target_s, np.float32(cap_s)), cap_s=cap_s)


class ExampleWriter:
    """Writes examples into `directory`, queries and impressions apart."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._files = {name: ArrayFile(directory / f"{name}.npy", dtype) for name, dtype in OUTCOMES.items()}
        for scope in SCOPES:
            width = (len(numbers_of(scope)),)
            self._files[scope] = ArrayFile(directory / f"{scope}.npy", np.float32, width)
            for feature in ids_of(scope):
                width = (WIDTHS.get(feature.name, 1),)
                self._files[feature.name] = ArrayFile(directory / f"{feature.name}.npy", np.int32, width)

    @property
    def queries(self) -> int:
        return len(self._files["query"])

    def add(self, scope: Scope, numbers: Floats, codes: Mapping[str, Array]) -> None:
        """Features of some queries or impressions; `codes` has each id feature of the scope."""
        self._files[scope].append(numbers)
        for feature in ids_of(scope):
            self._files[feature.name].append(codes[feature.name])

    def add_outcomes(self, **columns: Array) -> None:
        """The columns of OUTCOMES for the impressions added last."""
        for name in OUTCOMES:
            self._files[name].append(columns[name])

    def finish(self, names: Mapping[str, tuple[list[str], int]], cap_s: float = CAP_S) -> RankingExamples:
        """Close the files and map them. `names`: of each id space the list, and the code of its first name; `cap_s`:
        what the targets were capped at."""
        for file in self._files.values():
            file.close()
        columns = {name: mapped(file.path) for name, file in self._files.items()}
        empty: tuple[list[str], int] = ([""], 0)
        ids = {
            feature.name: Codes(columns[feature.name], *names.get(str(feature.space), empty))
            for scope in SCOPES
            for feature in ids_of(scope)
        }
        return RankingExamples(
            numbers={scope: columns[scope] for scope in SCOPES},
            ids=ids,
            **{name: columns[name] for name in OUTCOMES},
            cap_s=cap_s,
        )


def target_of(watched_s: Floats, duration_s: Floats, cap_s: float) -> Floats:
    """The target, float32 [N]: the seconds watched, at most the duration where it is known (a replay is no longer
    video) and at most `cap_s`."""
    return np.minimum(np.fmin(watched_s, duration_s), np.float32(cap_s)).astype(np.float32)


def cap_of(target_s: Floats) -> float:
    """The cap that these targets choose, whole seconds: a film is worth its hours, and what was left running trains
    nothing. There is ROOM above the long watches: expectations that err upwards keep their order. CAP_S where too few
    were watched to tell a long watch from what was left running."""
    watched = target_s[target_s > 0]
    if len(watched) * LONGEST < LEAST_LONG:
        return CAP_S
    long_s = np.quantile(watched, 1 - LONGEST, method="inverted_cdf")
    return float(np.clip(np.ceil(ROOM * long_s), 1, MOST_CAP_S))
