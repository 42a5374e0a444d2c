"""Commands that teach and feed: train, replay."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from infra.platform.settings import Settings

Step = Callable[[str, int, int], None]

LOG = typer.Argument(
    help="Parquet, CSV or JSON-lines: user_id,item_id,event_ms[,watch_s,duration_s]; for the ranker every exposure, "
    "watch_s 0 where it was not watched"
)
ItemsFile = Annotated[
    Path | None, typer.Option("--items", help="Catalogue: item_id[,channel,topics,duration_s,published_ms]")
]
SearchesFile = Annotated[Path | None, typer.Option("--searches", help="Searches: user_id,query,event_ms")]
Mapping = Annotated[
    list[str] | None, typer.Option("--map", help="ours=theirs, for other column names; may be given several times")
]


class TrainStage(StrEnum):
    ALL = "all"
    RANKING = "ranking"


@dataclass(frozen=True)
class Job:
    """What is trained from: files, or the topics where `log` is None."""

    log: Path | None = None
    items: Path | None = None
    searches: Path | None = None
    mapping: Sequence[str] = ()
    warm_start: str | None = None
    checkpoints: Path | None = None
    stage: TrainStage = TrainStage.ALL


def register(app: typer.Typer) -> None:
    app.command()(train)
    app.command()(replay)


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
    checkpoints: Annotated[
        Path | None,
        typer.Option(help="Write checkpoints there, and go on from the one that is there to the same result"),
    ] = None,
    stage: Annotated[
        TrainStage, typer.Option(help="ranking: the newest release's towers and items stay, the ranker is learnt anew")
    ] = TrainStage.ALL,
    announce: Annotated[bool, typer.Option(help="Announce the bundle on `releases`, so that it goes live")] = True,
    wait_s: Annotated[float, typer.Option(help="Wait this long for a server to answer from the new release")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts")] = False,
) -> None:
    """Train a release: user tower, item tables and ranker, written as an immutable bundle.

    From the topics the ranker learns from ranking-examples: what was shown, with the features as they were served, and
    what became of it. From a log it learns from every row, features as they stood at that time.

    On several machines: torchrun --nnodes ... -m infra.cli train LOG, with the same files on each.
    """
    from models.release.distributed import helpers

    if (log is None) == (not from_topics):
        raise typer.BadParameter("give a LOG, or --from-topics, and not both")
    settings: Settings = context.obj.connected if from_topics or announce else context.obj.settings
    job = Job(log, items, searches, mapping or [], warm_start, checkpoints, stage)
    helping = os.environ.get("RANK", "0") != "0"
    with helpers(processes, sys.argv), progress_bars(quiet=as_json or helping) as step:
        manifest = _train(settings, job, step)
    if manifest is None:  # one of several processes: the first announces and reports
        return
    if announce:
        _announce(settings, manifest)
    served = _wait_until_served(settings, manifest.version, wait_s) if announce and wait_s else None
    removed = _remove_old_bundles(settings) if announce else []
    _report_release(settings, manifest, served, removed, as_json=as_json)
    raise typer.Exit(1 if served is False else 0)


def replay(
    context: typer.Context,
    log: Annotated[Path, LOG],
    speed: Annotated[str, typer.Option(help="N times as fast as it happened, or max")] = "max",
    items: Annotated[Path | None, typer.Option(help="Catalogue, sent to `items` first")] = None,
    mapping: Mapping = None,
    restamp: Annotated[bool, typer.Option("--restamp", help="Move the events' times to now")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts")] = False,
) -> None:
    """Send a log's rows to `watch-events`. Repeating a replay changes nothing: its event ids come from the rows."""
    from infra.operate.replay import ReplayError
    from infra.operate.replay import replay as send
    from models.logs.log import parse_mapping

    pairs = parse_mapping(mapping or [])
    with progress_bars(quiet=as_json) as step:
        try:
            sent = send(
                log,
                context.obj.connected,
                speed=read_speed(speed),
                mapping=pairs,
                items=items,
                restamp=restamp,
                progress=step,
            )
        except ReplayError as error:
            raise typer.BadParameter(str(error)) from None
    if as_json:
        typer.echo(json.dumps({"items": sent.items, "watches": sent.watches, "wall_s": round(sent.wall_s, 3)}))
    else:
        Console().print(
            f"sent {sent.watches:,} watches and {sent.items:,} items in {sent.wall_s:.1f} s "
            f"({sent.events_per_s:,.0f} watches/s); {sent.duplicates:,} repeated rows were left out"
        )


def read_speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"--speed is a number or max, not {text!r}") from None


@contextmanager
def progress_bars(*, quiet: bool = False) -> Iterator[Step]:
    """A bar for each stage, with the time left; nothing when a script reads us."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bars = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=quiet)
    tasks: dict[str, Any] = {}

    def step(stage: str, done: int, total: int) -> None:
        if not tasks:
            bars.start()
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total)

    try:
        yield step
    finally:
        if tasks:  # an error before the first step is one line, without an empty one before it
            bars.stop()


def _train(settings: Settings, job: Job, step: Step) -> Any:
    """The manifest of the bundle; None in a process that only helped."""

    from infra.operate.retraining import delays_of, served_examples
    from models.logs.log import parse_mapping, read_items
    from models.logs.stored_log import store_log
    from models.logs.stored_searches import store_searches
    from models.release.distributed import process_group
    from models.release.training import learn_from_log, train_bundle
    from models.threads import limit_threads
    from streams.export.archive import store_archive

    limit_threads(settings.model.threads)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    if job.stage is TrainStage.RANKING:
        return _train_ranker(settings, job, step)
    completed_s = settings.history.completed_s
    buckets = settings.model.search_tokens
    with process_group() as rank, TemporaryDirectory(dir=settings.data_dir, prefix="training-") as scratch:
        offsets: dict[str, int] = {}
        searches = served = None
        catalogue = read_items(job.items) if job.items is not None else None
        if job.log is not None:
            mapping = parse_mapping(job.mapping)
            log = store_log(job.log, Path(scratch), mapping=mapping, completed_s=completed_s, progress=step)
            if job.searches is not None:
                searches = store_searches(job.searches, log, buckets=buckets)
        else:
            archive = store_archive(settings, Path(scratch), step)
            log, searches, offsets = archive.log, archive.searches, archive.offsets
            catalogue = archive.items if catalogue is None else catalogue
            served = _served(settings, served_examples(settings, Path(scratch), catalogue, step))
        base = _base(settings, job.warm_start)
        warm = None if base is None else base.model
        checkpoints = _checkpoints(settings, job, log, writes=not rank)
        if rank:
            learn_from_log(
                log, catalogue, settings=settings.model, searches=searches, warm=warm, checkpoints=checkpoints
            )
            return None
        return train_bundle(
            log,
            catalogue,
            settings=settings.model,
            ranker=settings.ranker,
            delays=delays_of(settings),
            bundles_dir=settings.bundles_dir,
            created_ms=time.time_ns() // 1_000_000,
            offsets=offsets,
            served=served,
            warm_ranker=None if base is None else base.ranker,
            searches=searches,
            warm=warm,
            checkpoints=checkpoints,
            progress=step,
        )


def _train_ranker(settings: Settings, job: Job, step: Step) -> Any:
    """A release with the newest one's candidates and another ranker."""
    from infra.operate.retraining import retrain_from_log, retrain_from_topic
    from models.logs.log import parse_mapping

    base = _base(settings, job.warm_start or "newest")
    warm = base.ranker if job.warm_start is not None else None
    if job.log is None:
        return retrain_from_topic(settings, base, warm, step)
    return retrain_from_log(settings, base, warm, job.log, parse_mapping(job.mapping), step)


def retrain_ranker(settings: Settings, step: Step) -> Any:
    """The newest release with a ranker of what `ranking-examples` holds; its manifest. Raises LogError."""
    return _train_ranker(settings, Job(stage=TrainStage.RANKING), step)


def _served(settings: Settings, found: Any) -> Any:
    """What was served, beside the item statistics of the newest release, which served it; None where it is too little
    for a ranker. Where no bundle is left here, what it knew from a log is lost."""
    from infra.operate.retraining import delays_of, enough
    from models.ranking.item_statistics import ItemStatistics
    from models.ranking.ranker_release import Served
    from models.release.bundle import has_release

    if not enough(found):
        return None
    base = _base(settings, "newest") if has_release(settings.bundles_dir) else None
    return Served(found.examples, ItemStatistics(delays_of(settings).half_life_ms) if base is None else base.statistics)


def _base(settings: Settings, version: str | None) -> Any:
    """The release to begin from; None when there is to be none."""
    from models.release.bundle import newest_version, read_bundle

    if version is None:
        return None
    if version == "newest":
        version = newest_version(settings.bundles_dir)
    return read_bundle(settings.bundles_dir / version)


def _checkpoints(settings: Settings, job: Job, log: Any, *, writes: bool) -> Any:
    from models.retrieval.checkpoint import Checkpoints, identity_of

    if job.checkpoints is None:
        return None
    return Checkpoints(job.checkpoints, identity_of(log, settings.model.model_dump(), job.warm_start), writes=writes)


def _announce(settings: Settings, manifest: Any) -> None:
    from streams.releases import announce

    announce(settings.kafka, published(manifest))


def published(manifest: Any) -> Any:
    """The announcement of a bundle."""
    from streams.messages import BundlePublished

    return BundlePublished(manifest.version, manifest.created_ms, manifest.dim, manifest.items, manifest.schema_hash)


def _wait_until_served(settings: Settings, version: str, wait_s: float) -> bool:
    from streams.releases import wait_until_served

    with Console(stderr=True).status(f"waiting for a server to answer from {version}"):
        return wait_until_served(settings.kafka, version, wait_s)


def _remove_old_bundles(settings: Settings) -> list[str]:
    from infra.operate.old_bundles import remove_old_bundles

    try:
        return remove_old_bundles(settings)
    except OSError as error:  # the release is out; that an old one stays is no reason to call it failed
        Console(stderr=True).print(f"[yellow]old bundles stay[/]: {escape(str(error))}")
        return []


def _report_release(
    settings: Settings, manifest: Any, served: bool | None, removed: list[str], *, as_json: bool
) -> None:
    if as_json:
        report = {"version": manifest.version, "items": manifest.items, "metrics": manifest.metrics, "served": served}
        report |= {"path": str(settings.bundles_dir / manifest.version), "removed": removed}
        typer.echo(json.dumps(report, indent=2))
        return
    console = Console()
    console.print(f"release {manifest.version}: {manifest.items:,} items, {settings.bundles_dir / manifest.version}")
    table = Table("metric (newest tenth held out, whole catalogue)", "value", box=None, pad_edge=False)
    for name, value in sorted(manifest.metrics.items()):
        table.add_row(name, f"{value:.4g}")
    console.print(table)
    if removed:
        newest = settings.bundles.keep
        console.print(f"removed, being neither among the newest {newest} nor in use: {', '.join(removed)}")
    if served is not None:
        console.print("a server answers from it" if served else "[red]no server answers from it yet[/]")
