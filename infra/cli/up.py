"""`nextwatch up`: all of it in one terminal. `nextwatch demo`: the same, with a simulated world, showing the point."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import structlog
import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from infra.local.supervisor import Report, Supervisor, interrupted_by_signals
from infra.operate.status import read_status, render_status
from infra.platform.settings import Settings

log = structlog.get_logger(__name__)

NOIDA_NOTE = (
    "[yellow]The embedded broker is noida, a stand-in for trying out: it keeps nothing over kill -9, and a worker that "
    "crashes does not get its partitions back. Set KAFKA_HOME or kafka.bootstrap for Apache Kafka.[/]"
)


def up(context: typer.Context) -> None:
    """Run everything in this terminal: embedded services where none are set, and all processes. Ctrl-C stops all."""
    from infra.local.stack import gateway_address, running_stack

    settings: Settings = context.obj.settings
    console = Console()
    try:
        with interrupted_by_signals(), running_stack(settings, _report(console)) as (reachable, supervisor):
            console.print(
                f"ready: broker {reachable.kafka.bootstrap}, Milvus {reachable.milvus.uri}, data in {settings.data_dir}"
            )
            console.print("try, in another terminal: nextwatch watch alice some-video; nextwatch recommend alice")
            address = gateway_address(supervisor)
            console.print(f"over HTTP: {address}/docs; in a browser: {address}/console")
            _take_newest(reachable, console)
            _show_until_interrupted(reachable, supervisor, console)
    except KeyboardInterrupt:
        console.print("stopped")


def demo(
    context: typer.Context,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running at the end, until Ctrl-C")] = False,
    seed: Annotated[int, typer.Option(help="Of the simulated world")] = 7,
    data_dir: Annotated[
        Path | None, typer.Option(help="Keep the demo's data here [default: a directory that goes]")
    ] = None,
) -> None:
    """Show the point in a minute and a half, on embedded services and a simulated world. Exit 1 if a claim fails."""
    from infra.simulation.demo import run_demo

    with interrupted_by_signals():
        held = run_demo(context.obj.settings, seed=seed, keep=keep, data_dir=data_dir, console=Console())
    raise typer.Exit(0 if held else 1)


def _take_newest(settings: Settings, console: Console) -> None:
    from infra.operate.newest_release import announce_newest
    from streams.bundles.objects import StoreError

    try:
        version = announce_newest(settings)
    except StoreError as error:  # the old release is answered from
        console.print(f"[yellow]the newest bundle is not announced[/]: {escape(str(error))}")
        return
    if version:
        console.print(f"the newest bundle, {version}, was trained meanwhile: it goes live now")


def _report(console: Console) -> Report:
    def report(process: str, what: str) -> None:
        console.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {process}: {escape(what)}", highlight=False)

    return report


def _show_until_interrupted(settings: Settings, supervisor: Supervisor, console: Console) -> None:
    broker = next((state for state in supervisor.states() if state.name == "broker"), None)
    notes = [NOIDA_NOTE] if broker is not None and broker.health.get("kind") == "noida" else []
    if not console.is_terminal:
        for note in notes:
            console.print(note)
        while True:
            time.sleep(3600)
    with Live(console=console, refresh_per_second=2, transient=True) as live:
        while True:
            live.update(render_status(read_status(settings), notes))
            time.sleep(1)
