"""The command that judges: backtest. Trains on what is before a cut, recommends after it, beside baselines."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infra.cli.options import LOG, ItemsFile, Mapping, SearchesFile, answer
from infra.operate.progress import progress_bars

CUTOFFS = ("10", "50", "100", "500")
FRACTION = 0.1
COSTS = ("weighted_loss_user", "top1_s", "xauc")  # what is told of a component that the ranker is without
EXCHANGED = (
    "what the ranker gains or loses when these features are exchanged among the exposures, * where 0 lies outside"
)


class Protocol(StrEnum):
    TIME = "time"
    LEAVE_ONE_OUT = "leave-one-out"


class BacktestStage(StrEnum):
    RETRIEVAL = "retrieval"
    RANKING = "ranking"


def backtest(
    context: typer.Context,
    log: Annotated[Path, LOG],
    out: Annotated[Path, typer.Option(help="Directory to make; an earlier backtest there is replaced")],
    items: ItemsFile = None,
    searches: SearchesFile = None,
    mapping: Mapping = None,
    stage: Annotated[
        BacktestStage, typer.Option(help="What is judged: retrieval, or the ranker on an exposure log")
    ] = BacktestStage.RETRIEVAL,
    protocol: Annotated[
        Protocol,
        typer.Option(
            help="What is held out: everything after a time; or of each user the last watch (and the one before it for "
            "validation), which needs an order only: LOG may be a text file `user item item ...`, a user a line (.txt)"
        ),
    ] = Protocol.TIME,
    test_from: Annotated[
        str | None, typer.Option(metavar="TIME", help="The test begins here: ISO 8601 (UTC if it names no zone) or ms")
    ] = None,
    test_fraction: Annotated[
        float | None,
        typer.Option(help=f"Or: share of positives (ranking: exposures), newest last [default: {FRACTION}]"),
    ] = None,
    validation_fraction: Annotated[
        float | None, typer.Option(help="Share of the positives before the test [default: as long as it, at most .1]")
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Also walk through the test: rank each watch, then learn it")
    ] = False,
    block: Annotated[int, typer.Option(min=1, help="Positives between two learning steps of --live")] = 250,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of leave-one-out, each with a seed of its own")] = 1,
    seed: Annotated[int | None, typer.Option(help="[default: model.seed of the settings]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json, for scripts")] = False,
) -> None:
    """Judge on a log: train before a cut, recommend or rank after it, beside baselines on the same cases.

    Two protocols: a cut in time, as a live system meets it, or the last watch of each user, as most papers report.
    Retrieval makes candidates.parquet, report.json, report.html and, with --live, live.parquet in --out. Ranking takes
    a log of exposures (watch_s 0: shown and not watched) and makes report.json and ranking.parquet.
    """
    if test_from is not None and test_fraction is not None:
        raise typer.BadParameter("give --test-from or --test-fraction, and not both")
    ranking = stage is BacktestStage.RANKING
    if ranking and (live or searches is not None or validation_fraction is not None):
        raise typer.BadParameter("--live, --searches and --validation-fraction are of --stage retrieval")
    held_out = protocol is Protocol.LEAVE_ONE_OUT
    timed = live or any(each is not None for each in (items, searches, test_from, test_fraction, validation_fraction))
    if held_out and (ranking or timed):
        raise typer.BadParameter(
            "--protocol leave-one-out knows no times and no catalogue: --stage ranking, --items, --searches, "
            "--test-from, --test-fraction, --validation-fraction and --live are of --protocol time"
        )
    if seeds > 1 and not held_out:
        raise typer.BadParameter("--seeds is of --protocol leave-one-out")
    settings = context.obj.settings
    if seed is not None:
        sections = {name: getattr(settings, name).model_copy(update={"seed": seed}) for name in ("model", "ranker")}
        settings = settings.model_copy(update=sections)
    from infra.backtest.request import Request
    from models.logs.log import parse_mapping
    from models.threads import limit_threads

    limit_threads(settings.model.threads)
    request = Request(
        log,
        out,
        items,
        parse_mapping(mapping or []),
        test_from_ms=None if test_from is None else read_time(test_from),
        test_fraction=read_share("--test-fraction", test_fraction) or FRACTION,
        validation_fraction=read_share("--validation-fraction", validation_fraction),
        searches=searches,
        live=live,
        block=block,
        seeds=seeds,
    )
    if held_out:
        from infra.backtest.leave_one_out import run_leave_one_out as run
    elif ranking:
        from infra.backtest.ranking import run_ranking_backtest as run
    else:
        from infra.backtest.run import run_backtest as run
    with progress_bars(quiet=as_json) as step:
        report = run(request, settings, step)
    show = _show_held_out if held_out else _show_ranking if ranking else _show
    answer(report, partial(show, out), as_json=as_json)


def read_time(text: str) -> int:
    """Milliseconds since 1970 of ISO 8601 (UTC where it names no zone) or of whole milliseconds."""
    if text.strip().isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"--test-from is ISO 8601 (2022-05-04T18:00:00+08:00) or milliseconds since 1970, not {text!r}"
        ) from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def read_share(option: str, share: float | None) -> float | None:
    if share is not None and not 0 < share < 1:
        raise typer.BadParameter(f"{option} lies between 0 and 1, both excluded, and is not {share:g}")
    return share


def _show_ranking(out: Path, report: dict[str, Any]) -> None:
    console, protocol = Console(), report["protocol"]
    n = f"{protocol['exposures']:,} exposures of {protocol['users']:,} users from {protocol['cut']} on"
    names = list(report["rankers"])
    table = Table("metric", "favours", *map(escape, names), box=None, pad_edge=False, caption=n, caption_justify="left")
    for metric, about in report["metrics"].items():
        cells = [_number(report["rankers"][name][metric]) for name in names]
        table.add_row(metric, about["favours"], *cells)
    console.print(table)
    parts = Table("without", *COSTS, box=None, pad_edge=False, caption=EXCHANGED, caption_justify="left")
    for name, costs in report["components"].items():
        parts.add_row(name, *(_difference(costs[metric]) for metric in COSTS))
    console.print(parts)
    deciles = report["calibration_by_decile"]["ranker, calibrated"]
    ratios = ", ".join("-" if each["ratio"] is None else f"{each['ratio']:.2f}" for each in deciles)
    console.print(f"predicted / watched by decile of the prediction: {ratios}")
    console.print(f"{out}: report.json, ranking.parquet")


def _show(out: Path, report: dict[str, Any]) -> None:
    console = Console()
    titles = {"frozen": "frozen", "cold": "no watch yet", "live": "live", "parts": "one part left out"}
    for title, walk in ((title, report[name]) for name, title in titles.items()):
        if not walk or not walk["cases"]:
            continue
        n = f"{walk['cases']:,} cases of {walk['users']:,} users, {walk['unknown_items']:,} of unknown items (misses)"
        table = Table(f"{title}: recall at", *CUTOFFS, box=None, pad_edge=False, caption=n, caption_justify="left")
        for name, at_k in walk["recall"].items():
            table.add_row(escape(name), *(_number(at_k[k]) for k in CUTOFFS))
        console.print(table)
    _show_rest(console, report)
    console.print(f"{out}: report.html, report.json, candidates.parquet{', live.parquet' if report['live'] else ''}")


def _show_held_out(out: Path, report: dict[str, Any]) -> None:
    from models.evaluation.comparison import short

    console, facts = Console(), report["protocol"]
    metrics = list(next(iter(report["figures"].values())))
    n = f"{facts['cases']:,} users' last watches among all {facts['items']:,} items, those watched left out"
    table = Table("leave one out", *metrics, box=None, pad_edge=False, caption=n, caption_justify="left")
    for name, by_metric in report["figures"].items():
        cells = (_number(each) for each in by_metric.values())
        table.add_row(escape(name), *cells)
    console.print(table)
    between = report["figures"]["tower"]["recall@10"]["between_seeds"]
    if between is not None:
        console.print(f"standard deviation of recall@10 between {len(facts['seeds'])} seeds: {short(between)}")
    kind = "a log in order" if report["settings_by"]["sequential"] else "what is served"
    console.print(f"settings that nobody has set are those of {kind}, by the test of order on validation")
    _show_rest(console, report)
    console.print(f"{out}: report.html, report.json, candidates.parquet")


def _show_rest(console: Console, report: dict[str, Any]) -> None:
    """The test of order, and who was left out."""
    order = report["order"]
    figures = f"{_number(order['in_order'])} in order, {_number(order['shuffled'])} shuffled"
    console.print(f"a sequence model's recall@{order['k']}: {figures}. {order['advice']}", markup=False)
    for each in report["left_out"]:
        console.print(f"{each['name']} is left out: {each['why']}", markup=False)


def _difference(found: dict[str, Any]) -> str:
    outside = found["low"] is not None and (found["low"] > 0 or found["high"] < 0)
    return _number(found) + " *" * outside


def _number(estimate: dict[str, Any]) -> str:
    from models.evaluation.comparison import short

    if estimate["value"] is None:
        return "-"
    error = "" if estimate["se"] is None else f" ({short(estimate['se'])})"
    return short(estimate["value"]) + error
