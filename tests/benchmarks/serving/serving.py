"""What a request costs and what a serving worker takes: whole requests beside the bare work, the mirror in place of
Milvus, what ranking costs, memory, and the look-up of histories.

Each part is a table of its own, a module beside this one.
"""

from __future__ import annotations

from tests.benchmarks.report import Benchmark
from tests.benchmarks.serving import (
    serving_hydrate,
    serving_memory,
    serving_mirror,
    serving_precision,
    serving_requests,
)

PARTS: dict[str, Benchmark] = {
    "requests": serving_requests.measure,
    "mirror": serving_mirror.measure,
    "ranking": serving_precision.measure,
    "memory": serving_memory.measure,
    "hydrate": serving_hydrate.measure,
}
