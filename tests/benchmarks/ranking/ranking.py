"""The ranker: how well it ranks, what each choice is worth, what training and serving cost, and whether the features
that were served are those that are computed from the topics. Each part is a table of its own, a module beside this one.
"""

from __future__ import annotations

from tests.benchmarks.ranking import (
    ranking_ablations,
    ranking_kuairand,
    ranking_memory,
    ranking_parity,
    ranking_serving,
    ranking_training,
)
from tests.benchmarks.report import Benchmark

PARTS: dict[str, Benchmark] = {
    "kuairand": ranking_kuairand.measure,
    "ablations": ranking_ablations.measure,
    "world": ranking_ablations.measure_world,
    "speed": ranking_training.measure,
    "memory": ranking_memory.measure,
    "serving": ranking_serving.measure,
    "parity": ranking_parity.measure,
}
