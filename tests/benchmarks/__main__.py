"""Run the benchmarks named, or all of them, one after the other."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from tests.benchmarks.report import Benchmark, run

ROOMS = {  # benchmark: the folder that it is in
    "history": "events",
    "join": "events",
    "freshness": "events",
    "request": "events",
    "trainer": "events",
    "step": "events",
    "kuairand": "quality",
    "ablations": "quality",
    "figure4": "quality",
    "live": "quality",
    "index": "index",
    "ranking": "ranking",
    "serving": "serving",
    "selection": "selection",
    "soak": "reliability",
    "fuzz": "reliability",
    "outages": "reliability",
    "crash": "reliability",
}
NAMES = tuple(ROOMS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; none: all")
    parser.add_argument("--quick", action="store_true", help="smaller runs, to see that they work")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a list of the results there too")
    parser.add_argument("--part", help="one table of a benchmark that has several, such as ranking")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark {unknown[0]}; there are {', '.join(NAMES)}")
    results = []
    for name in options.names or NAMES:
        for table, measure in tables_of(name, options.part, parser.error).items():
            results.append(run(table, measure, quick=options.quick))
            if options.json:  # after each: a later one that fails does not take the earlier with it
                options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def tables_of(name: str, part: str | None, refuse: Callable[[str], object]) -> dict[str, Benchmark]:
    """What a name stands for: one table, or those of its parts."""
    module = import_module(f"tests.benchmarks.{ROOMS[name]}.{name}")
    parts: dict[str, Benchmark] | None = getattr(module, "PARTS", None)
    if parts is None:
        return {name: module.measure}
    if part is not None and part not in parts:
        refuse(f"{name} has no part {part}; there are {', '.join(parts)}")
    return {f"{name} {each}": measure for each, measure in parts.items() if part in (None, each)}


if __name__ == "__main__":
    main()
