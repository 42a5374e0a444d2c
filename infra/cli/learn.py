"""Commands that teach and feed: train, replay."""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infra.cli.options import LOG, AsJson, ItemsFile, Mapping, SearchesFile, print_json
from infra.cli.session import Session
from infra.cli.verdict import REFUSED, print_verdict
from infra.operate.progress import progress_bars
from infra.platform.settings import Settings


class Device(StrEnum):
    CPU = "cpu"
    CUDA = "cuda"


class TrainStage(StrEnum):
    ALL = "all"
    RANKING = "ranking"


def train(
    context: typer.Context,
    log: Annotated[Path | None, LOG] = None,
    from_topics: Annotated[
        bool, typer.Option("--from-topics", help="Train from what watch-events and items hold, instead of a log")
    ] = False,
    items: ItemsFile = None,
    searches: SearchesFile = None,
    mapping: Mapping = None,
    warm_start: Annotated[
        str | None, typer.Option(help="Begin from this release instead of from noise: a version, or newest")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Share each batch among so many processes of this machine")] = 1,
    device: Annotated[Device | None, typer.Option(help="Compute on a GPU; unset: model.device, ranker.device")] = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option(help="Write checkpoints there, and go on from the one that is there to the same result"),
    ] = None,
    stage: Annotated[
        TrainStage, typer.Option(help="ranking: the newest release's towers and items stay, the ranker is learnt anew")
    ] = TrainStage.ALL,
    announce: Annotated[
        bool | None,
        typer.Option(
            help="Announce the bundle on `releases`, so that it goes live [default: where a broker is set or `up` "
            "runs; else the next `up` does]"
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Announce it also when it is certainly worse than what is live")
    ] = False,
    wait_s: Annotated[float, typer.Option(help="Wait this long for a server to answer from the new release")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Train a release: user tower, item tables and ranker, written as an immutable bundle. From a log it needs no
    broker; `nextwatch load` teaches the system its users' histories too.

    From the topics the ranker learns from ranking-examples: what was shown, with the features as they were served, and
    what became of it. From a log it learns from every row, features as they stood at that time.

    Before it is announced it is judged on the newest watches, by a twin that has not learnt them, beside the live
    release and what is popular. One that is certainly worse is not announced: exit 3, unless --force is given.

    On several machines: torchrun --nnodes ... -m infra.cli train LOG, with the same files on each.
    """
    if (log is None) == (not from_topics):
        raise typer.BadParameter("give a LOG, or --from-topics, and not both")
    if stage is TrainStage.RANKING and max(processes, int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise typer.BadParameter("--stage ranking is trained by one process: --processes above 1 goes without it")
    settings, announce = _reach(context.obj, from_topics=from_topics, announce=announce)
    if device is not None:
        settings = _on_device(settings, device)
    from infra.operate.going_live.gate import go_live
    from infra.operate.training import TrainingJob, train_release
    from models.logs.log import parse_mapping
    from models.release.distributed import helpers

    names = parse_mapping(mapping or [])
    job = TrainingJob(log, items, searches, names, warm_start, checkpoints, stage is TrainStage.RANKING)
    helping = os.environ.get("RANK", "0") != "0"
    judgement = None
    with helpers(processes, sys.argv), progress_bars(quiet=as_json or helping) as step:
        if announce:
            judgement = go_live(settings, job, step, force=force, helping=helping)
            manifest = judgement and judgement.manifest
        else:
            manifest = train_release(settings, job, step)
    if manifest is None:  # one of several processes: the first announces and reports
        return
    is_refused = judgement is not None and not judgement.is_announced
    served = None
    if announce and wait_s and not is_refused:
        from streams.kafka.releases import wait_until_served

        with Console(stderr=True).status(f"waiting for a server to answer from {manifest.version}"):
            served = wait_until_served(settings.kafka, manifest.version, wait_s)
    removed = remove_old(settings) if announce and not is_refused else []
    _report_release(settings, manifest, judgement, served, removed, as_json=as_json)
    if not announce and not as_json:
        Console().print("not announced: the next `nextwatch up` takes the newest bundle that no experiment compares")
    raise typer.Exit(REFUSED if is_refused else 1 if served is False else 0)


def _reach(session: Session, *, from_topics: bool, announce: bool | None) -> tuple[Settings, bool]:
    """The settings, with a broker where it takes one, and whether to announce what is trained."""
    if from_topics or announce:
        return session.connected, announce is not False
    reachable = session.reachable if announce is None else None
    return reachable or session.settings, reachable is not None


def replay(
    context: typer.Context,
    log: Annotated[Path, LOG],
    speed: Annotated[str, typer.Option(help="N times as fast as it happened, or max")] = "max",
    items: Annotated[Path | None, typer.Option(help="Catalogue, sent to `items` first")] = None,
    mapping: Mapping = None,
    restamp: Annotated[bool, typer.Option("--restamp", help="Move the events' times to now")] = False,
    as_json: AsJson = False,
) -> None:
    """Send a log's rows to `watch-events`. Repeating a replay changes nothing: its event ids come from the rows."""
    from infra.operate.replay import replay as send
    from models.logs.log import parse_mapping

    with progress_bars(quiet=as_json) as step:
        sent = send(
            log,
            context.obj.connected,
            speed=read_speed(speed),
            mapping=parse_mapping(mapping or []),
            items=items,
            restamp=restamp,
            progress=step,
        )
    if as_json:
        told = {"items": sent.items, "watches": sent.watches, "exposures": sent.exposures}
        typer.echo(json.dumps(told | {"wall_s": round(sent.wall_s, 3)}))
    else:
        Console().print(
            f"sent {sent.watches:,} watches and {sent.items:,} items in {sent.wall_s:.1f} s "
            f"({sent.events_per_s:,.0f} watches/s); {sent.duplicates:,} repeated rows were left out, "
            f"and {sent.exposures:,} of 0 seconds, which are no watches"
        )


def read_speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"--speed is a number or max, not {text!r}") from None


def _on_device(settings: Settings, device: Device) -> Settings:
    sections = {
        name: getattr(settings, name).model_copy(update={"device": device.value}) for name in ("model", "ranker")
    }
    return settings.model_copy(update=sections)


def remove_old(settings: Settings) -> list[str]:
    """Remove bundles that are neither among the newest nor in use; their versions."""
    from infra.operate.old_bundles import remove_old_bundles
    from streams.bundles.objects import StoreError

    try:
        return remove_old_bundles(settings)
    except (OSError, StoreError) as error:  # the release is out; that an old one stays is no reason to call it failed
        Console(stderr=True).print(f"[yellow]old bundles stay[/]: {escape(str(error))}")
        return []


def _report_release(
    settings: Settings, manifest: Any, judgement: Any, served: bool | None, removed: list[str], *, as_json: bool
) -> None:
    place = judgement.place if judgement else settings.bundles_dir / manifest.version
    if as_json:
        report = {"version": manifest.version, "items": manifest.items, "metrics": manifest.metrics, "served": served}
        report |= {"path": str(place), "removed": removed, "announced": bool(judgement and judgement.is_announced)}
        print_json(report | {"live": judgement.live, "gate": judgement.verdict} if judgement else report)
        return
    console = Console()
    console.print(f"release {manifest.version}: {manifest.items:,} items, {place}")
    table = Table("metric (on watches held out, whole catalogue)", "value", box=None, pad_edge=False)
    for name, value in sorted(manifest.metrics.items()):
        table.add_row(name, f"{value:.4g}")
    console.print(table)
    if removed:
        newest = settings.bundles.keep
        console.print(f"removed, being neither among the newest {newest} nor in use: {', '.join(removed)}")
    if judgement is not None:
        print_verdict(console, judgement.verdict, judgement.live, is_announced=judgement.is_announced)
    if served is not None:
        console.print("a server answers from it" if served else "[red]no server answers from it yet[/]")
