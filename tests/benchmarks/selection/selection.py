"""The selection: what each option costs and brings in the simulated world. Each part is a table of its own."""

from __future__ import annotations

from tests.benchmarks.report import Benchmark
from tests.benchmarks.selection import selection_learning, selection_lists

PARTS: dict[str, Benchmark] = {"lists": selection_lists.measure, "learning": selection_learning.measure}
