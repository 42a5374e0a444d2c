"""`nextwatch experiment` and `nextwatch evaluate-policy`: what variants bring, measured on viewers or on record."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infra.cli.options import AsJson, answer
from infra.operate.progress import progress_bars

app = typer.Typer(
    no_args_is_help=True,
    help="Split the viewers into variants that differ in settings, look at any time at what each brings, and stop.",
)
Name = Annotated[str, typer.Argument(help="Of the experiment [default: the one that runs, else the newest]")]
DAY_MS = 86_400_000


@app.command()
def start(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Letters, digits, dots, - and _; not used before")],
    variant: Annotated[
        list[str],
        typer.Option(
            metavar="NAME[=SHARE][:SETTING=VALUE,...]",
            help="Twice or more, the control first. Without shares all viewers are split evenly. release=VERSION: by "
            "another release: its ranker where its candidates are the live one's, else all of it (one such)",
        ),
    ],
    hours: Annotated[float, typer.Option(min=0.001, help="After the first list, by which a viewer is judged")] = 24.0,
    viewers: Annotated[int, typer.Option(min=2, help="Planned: intervals are narrowest about there")] = 10_000,
    interleave: Annotated[
        bool,
        typer.Option(
            "--interleave", help="Two variants draw up each list in turns (selection.*, serving.ranker, release)"
        ),
    ] = False,
    slower_ms: Annotated[
        float | None, typer.Option(min=0, help="Guard rail: the mean answer, over the control")
    ] = None,
    more_fallbacks: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Guard rail: the share that went down the ladder, over the control"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start an experiment: running servers follow within a second. One runs at a time.

    Examples: start fresh --variant control --variant more:serving.fresh=50 --more-fallbacks 0.02

    start rankers --interleave --variant control --variant new:release=20261129_101500_0a1b2c3d4e5f6071

    start towers --variant control=0.9 --variant new=0.1:release=20261130_081500_5f6071c3d4e0a1b2

    Exit 2 when it cannot be served, another one runs, or the name was used before.
    """
    from infra.operate.experiments.control import Terms, start_experiment

    terms = Terms(hours, viewers, interleave, slower_ms, more_fallbacks)
    started = start_experiment(context.obj.connected, name, variants_of(variant), terms)
    text = f"{started.name} runs: " + ", ".join(f"{each.name} {each.share:.1%}" for each in started.variants)
    answer(started, lambda _: _say(escape(text)), as_json=as_json)


@app.command()
def status(
    context: typer.Context,
    name: Name = "",
    effect: Annotated[
        float, typer.Option(min=0, help="Share of the control's watch seconds that would matter: viewers needed for it")
    ] = 0.03,
    enforce: Annotated[bool, typer.Option("--enforce", help="Stop it where a guard rail or the ratio fails")] = False,
    as_json: AsJson = False,
) -> None:
    """Viewers, watch seconds per viewer with intervals that hold at every look, sample ratio and guard rails.

    With --enforce, for a timer: an experiment that fails a guard rail is stopped, and the reason written down. Exit 1
    when a guard rail or the sample ratio fails.
    """
    from infra.operate.experiments.control import stop_experiment
    from infra.operate.experiments.reading import read_report

    settings = context.obj.connected
    with progress_bars(quiet=as_json) as step:
        report = read_report(settings, name, effect, step)
    answer(report, _print_report, as_json=as_json)
    if enforce and report.broken and report.runs:
        stop_experiment(settings, report.name, report.broken)
        Console(stderr=True, highlight=False).print(f"stopped: {escape(report.broken)}")
    raise typer.Exit(1 if report.broken else 0)


@app.command()
def stop(
    context: typer.Context,
    name: Name = "",
    reason: Annotated[str, typer.Option(help="Kept with the experiment")] = "by hand",
    as_json: AsJson = False,
) -> None:
    """Stop an experiment: all are served by the servers' own settings again; unfinished viewers do not count."""
    from infra.operate.experiments.control import stop_experiment

    stopped = stop_experiment(context.obj.connected, name, reason)
    answer(stopped, lambda _: _say(f"{escape(stopped.name)} is stopped: {escape(stopped.reason)}"), as_json=as_json)


def evaluate_policy(
    context: typer.Context,
    days: Annotated[float, typer.Option(min=0, help="Lists of the last so many days; 0: all that are kept")] = 0,
    as_json: AsJson = False,
) -> None:
    """What the places that exploration drew would have brought, had they been drawn uniformly, by expected seconds, or
    from the best: SNIPS and doubly robust, on the probabilities on record.

    Exit 2, with the reason, where nothing was drawn: exploration was off.
    """
    from infra.operate.experiments.policy import evaluate_policies

    since_ms = int(time.time() * 1000 - days * DAY_MS) if days else 0
    with progress_bars(quiet=as_json) as step:
        report = evaluate_policies(context.obj.connected, since_ms, step)
    answer(report, _print_policies, as_json=as_json)


def variants_of(options: list[str]) -> tuple[Any, ...]:
    """NAME[=SHARE][:SETTING=VALUE,...] as Variants. Raises BadParameter."""
    from streams.messages import Variant

    variants = []
    for option in options:
        head, _, tail = option.partition(":")
        name, is_given, share = head.partition("=")
        pairs = [pair.partition("=") for pair in tail.split(",") if pair]
        if not name or not all(leaf and equals for leaf, equals, _ in pairs):
            raise typer.BadParameter(f"--variant {option}: NAME[=SHARE][:SETTING=VALUE,...] is wanted")
        try:
            share_of = float(share) if is_given else 1 / len(options)
        except ValueError:
            raise typer.BadParameter(f"--variant {option}: {share} is no share") from None
        variants.append(Variant(name, share_of, {leaf.strip(): _value(value) for leaf, _, value in pairs}))
    return tuple(variants)


def _value(text: str) -> Any:
    """A number or true or false; else the text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text


def _print_report(report: Any) -> None:
    state = "runs" if report.runs else f"was stopped: {report.reason}"
    _say(f"{escape(report.name)} {escape(state)}\n")
    columns = ("variant", "viewers", "finished", "s/viewer", "over control", "", "ms", "fallbacks", "guard rails")
    table = Table(*columns, box=None, pad_edge=False)
    for each in report.variants:
        fails = escape("; ".join(each.failed))
        table.add_row(
            escape(each.name) or "both",
            f"{each.viewers:,}",
            f"{each.finished:,}",
            "" if report.interleaved else f"{each.watch_s:,.1f}",
            "" if report.interleaved else _interval(each.better_s),
            each.verdict,
            f"{each.took_ms:.0f}",
            f"{each.fallbacks:.1%}",
            f"[red]{fails}[/]" if fails else "",
        )
    Console(width=160, highlight=False).print(table)
    if report.interleaved:
        _say(f"\npreferred, s/viewer: {_interval(report.preferred_s)}")
    if report.needed is not None:
        _say(f"\n{report.effect:+.1%} is found with about {report.needed:,} viewers of control and first variant")
    if report.sample_ratio_off:
        _say("[red]the sample ratio is off[/]: viewers are missing from a variant, nothing may be concluded")
    for problem in report.problems:
        _say(f"[yellow]{escape(problem)}[/]")


def _print_policies(report: Any) -> None:
    _say(
        f"{report.places:,} drawn places in {report.lists:,} lists, of {report.viewers:,} viewers; watch s of a place\n"
    )
    table = Table("policy", "SNIPS", "doubly robust", "effective places", "largest", box=None, pad_edge=False)
    table.add_row("as drawn", _interval(report.logged), "", f"{report.places:,}", "")
    for each in report.policies:
        few = " [yellow]hardly tried[/]" if each.hardly_tried else ""
        tried = f"{each.effective_places:,.0f}{few}"
        table.add_row(
            each.policy, _interval(each.snips), _interval(each.doubly_robust), tried, f"{each.largest_weight:.1%}"
        )
    Console(width=120, highlight=False).print(table)


def _interval(of: Any) -> str:
    return "" if of.value is None else f"{of.value:,.2f} [{of.low:,.2f}, {of.high:,.2f}]".replace("[", "\\[")


def _say(text: str) -> None:
    Console(highlight=False, soft_wrap=True).print(text)
