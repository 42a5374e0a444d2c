"""The index: how fast rows are written, how soon a vector is searchable, and how much of the exact answer is found.

Each part is a table of its own, a module beside this one.
"""

from __future__ import annotations

from tests.benchmarks.index import index_lag, index_recall, index_upserts
from tests.benchmarks.report import Benchmark

PARTS: dict[str, Benchmark] = {
    "upserts": index_upserts.measure,
    "lag": index_lag.measure,
    "recall": index_recall.measure,
}
