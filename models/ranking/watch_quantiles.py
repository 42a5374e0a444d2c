"""Watch time as a quantile among videos of like duration, and back (duration-based quantiles, D2Q, KDD 2022).

A long video is watched longer whether it is liked or not; what a watch says of the liking is how it compares with other
watches of videos that last as long. The tables are made from training data and frozen into the bundle.
"""

from __future__ import annotations

import numpy as np

from models.arrays import Floats, Rows

GROUPS = 20  # of duration; one more for those that are not known
POINTS = 101


class WatchQuantiles:
    """edges float32 [G - 1]: durations that part the groups; table float32 [G + 1, P]: watched seconds at evenly spaced
    quantiles of each group, the last group's duration unknown."""

    def __init__(self, edges: Floats, table: Floats) -> None:
        self.edges, self.table = edges, table

    def quantile(self, watch_s: Floats, duration_s: Floats) -> Floats:
        """float32 [N] in [0, 1]; equal seconds share the middle of their quantiles."""
        group = group_of(self.edges, duration_s)
        out = np.empty(len(watch_s), np.float32)
        for g in np.unique(group):
            of = group == g
            low = np.searchsorted(self.table[g], watch_s[of], "left")
            high = np.searchsorted(self.table[g], watch_s[of], "right")
            out[of] = ((low + high) / 2 / len(self.table[g])).clip(0, 1)
        return out

    def seconds(self, quantile: Floats, duration_s: Floats) -> Floats:
        """The reverse: float32 [N]."""
        at = quantile.clip(0, 1) * (self.table.shape[1] - 1)
        low = np.floor(at).astype(np.int64)
        high = np.minimum(low + 1, self.table.shape[1] - 1)
        group = group_of(self.edges, duration_s)
        below, above = self.table[group, low], self.table[group, high]
        # so that rounding leads neither beyond the neighbours nor out of order
        return np.asarray(np.minimum(below + (above - below) * (at - low).astype(np.float32), above), np.float32)


def group_of(edges: Floats, duration_s: Floats) -> Rows:
    """int64 [N]: the group of each duration, the last one for NaN."""
    return np.where(np.isnan(duration_s), len(edges) + 1, np.searchsorted(edges, duration_s)).astype(np.int64)


def fit_watch_quantiles(watch_s: Floats, duration_s: Floats) -> WatchQuantiles:
    """From training examples, float32 [N] each. A group without any takes the table of all."""
    known = duration_s[np.isfinite(duration_s)]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, GROUPS + 1)[1:-1])) if len(known) else np.zeros(0)
    edges = edges.astype(np.float32)
    levels = np.linspace(0, 1, POINTS)
    group = group_of(edges, duration_s)
    everything = np.quantile(watch_s, levels)
    tables = [
        np.quantile(watch_s[group == g], levels) if (group == g).any() else everything for g in range(len(edges) + 2)
    ]
    return WatchQuantiles(edges, np.stack(tables).astype(np.float32))
