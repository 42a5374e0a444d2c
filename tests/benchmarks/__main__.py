"""Run the benchmarks named, or all of them, one after the other."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name

from infra.platform.logs import set_up_logging
from tests.benchmarks.report import Benchmark, run

TABLES = {  # a benchmark, or one with its part: what measures it
    "history": "events.history:measure",
    "join": "events.join:measure",
    "load": "events.loading:measure",
    "ingest": "events.ingest:measure",
    "freshness": "events.freshness:measure",
    "whole-way": "events.whole_way:measure",
    "request": "events.request:measure",
    "trainer": "events.trainer:measure",
    "step": "events.step:measure",
    "units": "events.units:measure",
    "kuairand": "quality.kuairand:measure",
    "ablations": "quality.ablations:measure",
    "figure4": "quality.figure4:measure",
    "towers": "quality.towers:measure",
    "parts": "quality.parts:measure",
    "live": "quality.live:measure",
    "cold viewers": "quality.cold:measure",
    "cold items": "quality.cold_items:measure",
    "signals": "quality.signals:measure",
    "s3rec beauty": "quality.s3rec:measure_beauty",
    "s3rec toys": "quality.s3rec:measure_toys",
    "s3rec tried": "quality.s3rec:measure_tried",
    "gate verdicts": "quality.gate:measure_verdicts",
    "gate cost": "quality.gate:measure_cost",
    "index upserts": "index.index_upserts:measure",
    "index lag": "index.index_lag:measure",
    "index recall": "index.index_recall:measure",
    "milvus": "index.index_server:measure",
    "ranking kuairand": "ranking.ranking_kuairand:measure",
    "ranking rivals": "ranking.ranking_rivals:measure",
    "ranking ablations": "ranking.ranking_ablations:measure",
    "ranking world": "ranking.ranking_ablations:measure_world",
    "ranking speed": "ranking.ranking_training:measure",
    "ranking memory": "ranking.ranking_memory:measure",
    "ranking serving": "ranking.ranking_serving:measure",
    "ranking parity": "ranking.ranking_parity:measure",
    "serving requests": "serving.serving_requests:measure",
    "serving mirror": "serving.serving_mirror:measure",
    "serving scan": "serving.serving_scan:measure",
    "serving ranking": "serving.serving_precision:measure",
    "serving memory": "serving.serving_memory:measure",
    "serving statistics": "serving.serving_statistics:measure",
    "serving pipeline": "serving.serving_pipeline:measure",
    "serving preranking": "serving.serving_preranking:measure",
    "serving processes": "serving.serving_processes:measure",
    "serving hydrate": "serving.serving_hydrate:measure",
    "serving tracing": "serving.serving_tracing:measure",
    "serving unwanted": "serving.serving_unwanted:measure",
    "gateway": "serving.serving_gateway:measure",
    "selection lists": "selection.selection_lists:measure",
    "selection learning": "selection.selection_learning:measure",
    "selection newcomers": "selection.selection_newcomers:measure",
    "experiments": "experiments.experiments:measure",
    "train-scale": "scale.train_scale:measure",
    "large": "scale.large_release:measure",
    "soak": "reliability.soak:measure",
    "fuzz": "reliability.fuzz:measure",
    "outages": "reliability.outages:measure",
    "cluster brokers": "reliability.cluster:measure",
    "cluster topics": "reliability.one_topic:measure",
    "crash random": "reliability.crash:measure_random",
    "crash verdict": "reliability.crash_verdict:measure",
    "crash recovery": "reliability.crash:measure_recovery",
}
GROUPS = {  # names that stand for several, each of which is a part: what candidate generation is worth
    "models": ("towers", "parts", "live", "cold", "signals"),
}
NAMES = tuple(dict.fromkeys(table.split()[0] for table in TABLES))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join((*NAMES, *GROUPS))}; none: all")
    parser.add_argument("--quick", action="store_true", help="smaller runs, to see that they work")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a list of the results there too")
    parser.add_argument("--part", help="one table of a benchmark that has several, such as ranking")
    parser.add_argument("--strict", action="store_true", help="exit 1 where a bar is missed")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in NAMES and name not in GROUPS]
    if unknown:
        parser.error(f"no benchmark {unknown[0]}; there are {', '.join((*NAMES, *GROUPS))}")
    set_up_logging("warning")  # a line for each answer would cost more than some of what is measured
    results = []
    for name in options.names or NAMES:
        for table, measure in tables_of(name, options.part, parser.error).items():
            results.append(run(table, measure, quick=options.quick))
            if options.json:  # after each: a later one that fails does not take the earlier with it
                options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if options.strict and not all(bar["ok"] for result in results for bar in result["bars"].values()):
        parser.exit(1)


def tables_of(name: str, part: str | None, refuse: Callable[[str], object]) -> dict[str, Benchmark]:
    """What a name stands for: one table, or those of its parts."""
    members = GROUPS.get(name, ())
    parts = members or parts_of(name)
    if parts and part is not None and part not in parts:
        refuse(f"{name} has no part {part}; there are {', '.join(parts)}")
    wanted = [each for each in parts if part in (None, each)]
    if members:
        return {table: measure for each in wanted for table, measure in tables_of(each, None, refuse).items()}
    tables = [f"{name} {each}" for each in wanted] or [name]
    return {table: resolve_name(f"tests.benchmarks.{TABLES[table]}") for table in tables}


def parts_of(name: str) -> list[str]:
    return [part for table in TABLES for of, _, part in [table.partition(" ")] if of == name and part]


if __name__ == "__main__":
    main()
