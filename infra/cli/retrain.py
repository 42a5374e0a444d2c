"""`nextwatch retrain`: a release from the topics every few hours, by itself."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from infra.cli.options import AsJson, answer
from infra.cli.processes import stop_on_signals
from infra.cli.verdict import REFUSED, print_verdict
from infra.operate.progress import progress_bars
from infra.platform.settings import Settings


def retrain(
    context: typer.Context,
    every: Annotated[str | None, typer.Option(metavar="TIME", help="Go on for ever: 90s, 30m, 6h, 1d")] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Train once and end; exit 3 when the release was refused")
    ] = False,
    budget: Annotated[
        str, typer.Option(metavar="TIME", help="Longest time of one training; then it is given up")
    ] = "6h",
    force: Annotated[
        bool, typer.Option("--force", help="With --once: announce it also when it is certainly worse than what is live")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train from the topics, judge, and announce what is not worse: as `train --from-topics`, again and again. It
    begins from the live release where that has the shape that is set; the ranker is learnt anew, so that new videos get
    embeddings.

    With --every it serves /metrics and /health as every process does, and goes on where the last one was, whoever made
    it; what fails is tried again after a quarter of an hour.
    """
    if (every is None) == (not once):
        raise typer.BadParameter("give --every TIME, or --once, and not both")
    if force and not once:
        raise typer.BadParameter("--force goes with --once: somebody must want it")
    every_s, budget_s = _seconds("--every", every or "1d"), _seconds("--budget", budget)
    settings: Settings = context.obj.connected
    from infra.operate.retrain.loop import retrain_once, run_retraining
    from streams.kafka.requirements import require_settings
    from streams.topics import TOPICS

    require_settings(settings, [topic.name for topic in TOPICS])
    if not once:
        run_retraining(settings, every_s, budget_s, stop_on_signals())
        return
    with progress_bars(quiet=as_json) as step:
        done = retrain_once(settings, budget_s, step, force=force)
    answer(done, _show, as_json=as_json)
    raise typer.Exit(REFUSED if done.outcome == "refused" else 0)


def _seconds(option: str, text: str) -> float:
    from infra.operate.retrain.rounds import read_duration

    try:
        return read_duration(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option} {error}") from None


def _show(done: Any) -> None:
    console = Console()
    begun = "from the live release" if done.warm else "from noise"
    console.print(f"release {done.version}, begun {begun}, in {done.wall_s:,.0f} s", highlight=False)
    print_verdict(console, done.verdict, done.live, is_announced=done.outcome == "announced")
