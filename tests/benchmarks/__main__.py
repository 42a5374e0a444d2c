"""Run the benchmarks named, or all of them, one after the other."""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path

from tests.benchmarks.report import run

NAMES = ("history", "join", "freshness", "request", "kuairand", "step", "trainer", "ablations", "figure4", "live")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; none: all")
    parser.add_argument("--quick", action="store_true", help="smaller runs, to see that they work")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a list of the results there too")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark {unknown[0]}; there are {', '.join(NAMES)}")
    results = []
    for name in options.names or NAMES:
        module = import_module(f"tests.benchmarks.{name}")
        results.append(run(name, module.measure, quick=options.quick))
        if options.json:  # after each: a later one that fails does not take the earlier with it
            options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
