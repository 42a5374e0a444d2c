"""The command that judges: backtest. Trains on what is before a cut, recommends after it, beside baselines."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infra.cli.learn import LOG, ItemsFile, Mapping, SearchesFile, progress_bars

CUTOFFS = ("10", "50", "100", "500")
FRACTION = 0.1


def register(app: typer.Typer) -> None:
    app.command()(backtest)


def backtest(
    context: typer.Context,
    log: Annotated[Path, LOG],
    out: Annotated[Path, typer.Option(help="Directory to make; an earlier backtest there is replaced")],
    items: ItemsFile = None,
    searches: SearchesFile = None,
    mapping: Mapping = None,
    test_from: Annotated[
        str | None, typer.Option(metavar="TIME", help="The test begins here: ISO 8601 (UTC if it names no zone) or ms")
    ] = None,
    test_fraction: Annotated[
        float | None, typer.Option(help=f"Or: share of the positives, newest last [default: {FRACTION}]")
    ] = None,
    validation_fraction: Annotated[
        float | None, typer.Option(help="Share of the positives before the test [default: as long as it, at most .1]")
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Also walk through the test: rank each watch, then learn it")
    ] = False,
    block: Annotated[int, typer.Option(min=1, help="Positives between two learning steps of --live")] = 250,
    seed: Annotated[int | None, typer.Option(help="[default: model.seed of the settings]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json, for scripts")] = False,
) -> None:
    """Judge retrieval on a log: train before a cut, recommend after it, beside baselines on the same cases.

    Makes candidates.parquet, report.json, report.html and, with --live, live.parquet in --out.
    """
    if test_from is not None and test_fraction is not None:
        raise typer.BadParameter("give --test-from or --test-fraction, and not both")
    settings = context.obj.settings
    import torch

    from infra.backtest import Request, enter_with, run_backtest
    from models.log import parse_mapping

    request = Request(
        log=log,
        out=out,
        completed_s=settings.history.completed_s,
        items=items,
        searches=searches if settings.model.searches else None,
        context=settings.model.context,
        search_tokens=settings.model.search_tokens,
        mapping=parse_mapping(mapping or []),
        test_from_ms=None if test_from is None else read_time(test_from),
        test_fraction=read_share("--test-fraction", test_fraction) or FRACTION,
        validation_fraction=read_share("--validation-fraction", validation_fraction),
        live=live,
        block=block,
        seed=settings.model.seed if seed is None else seed,
    )
    torch.set_num_threads(settings.model.threads)
    with progress_bars(quiet=as_json) as step:
        report = run_backtest(request, enter_with(settings), step)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _show(report, out)


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


def _show(report: dict[str, Any], out: Path) -> None:
    console = Console()
    for title in ("frozen", "live"):
        walk = report[title]
        if walk is None:
            continue
        n = f"{walk['cases']:,} cases of {walk['users']:,} users, {walk['unknown_items']:,} of unknown items (misses)"
        table = Table(f"{title}: recall at", *CUTOFFS, box=None, pad_edge=False, caption=n, caption_justify="left")
        for name, at_k in walk["recall"].items():
            table.add_row(escape(name), *(_number(at_k[k]) for k in CUTOFFS))
        console.print(table)
    for each in report["left_out"]:
        console.print(f"{each['name']} is left out: {each['why']}", markup=False)
    console.print(f"{out}: report.html, report.json, candidates.parquet{', live.parquet' if report['live'] else ''}")


def _number(estimate: dict[str, Any]) -> str:
    from models.comparison import short

    error = "" if estimate["se"] is None else f" ({short(estimate['se'])})"
    return short(estimate["value"]) + error
