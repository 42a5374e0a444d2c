"""A batch as numbers: who asks, with what history, and what they watched next.

The one form in which examples reach a model, whether they come from a log, from the stream or from a request, so that
training and serving cannot differ in how a user is read. Rows are those of the item table; -1 is no item.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from models.arrays import Flags, Floats, Rows


@dataclass(frozen=True)
class Queries:
    """The user's side (paper section 3.3).

    histories int64 [B, H]: rows of completed watches, oldest first, -1 in front and for unknown items.
    tokens int64 [B, Q]: words of the searches, -1 for none; Q may be 0.
    context int64 [B, K]: a code per context field, 0 unknown; K may be 0.
    traits float32 [B, M]: reals in [0, 1], NaN unknown; M may be 0.
    age float32 [B]: example age in [0, 1] of the training window; 0 when serving.
    skips int64 [B, S]: rows of watches that were not completed, as histories has the completed ones; S may be 0.
    """

    histories: Rows
    tokens: Rows
    context: Rows
    traits: Floats
    age: Floats
    skips: Rows

    def __len__(self) -> int:
        return len(self.histories)

    @property
    def items(self) -> Rows:
        """int64 [B, H + S]: rows of all watches, the completed ones first."""
        return np.concatenate([self.histories, self.skips], axis=1)

    def take(self, at: Rows | slice) -> Queries:
        return Queries(*(getattr(self, field.name)[at] for field in fields(self)))


@dataclass(frozen=True)
class Examples:
    """Queries and what was watched next: targets int64 [B], -1 for an item that has no row; weights float32 [B], None:
    all weigh 1."""

    queries: Queries
    targets: Rows
    weights: Floats | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, at: Rows | slice) -> Examples:
        return Examples(self.queries.take(at), self.targets[at], None if self.weights is None else self.weights[at])

    def repeated(self) -> Flags:
        """bool [B]: whether the target is in the example's own history; serving would have left it out."""
        return np.asarray((self.queries.histories == self.targets[:, None]).any(axis=1) & (self.targets >= 0))


def queries_of(histories: Rows) -> Queries:
    """Queries of watches alone."""
    size = len(histories)
    nothing = np.empty((size, 0), np.int64)
    return Queries(histories, nothing, nothing, np.empty((size, 0), np.float32), np.zeros(size, np.float32), nothing)
