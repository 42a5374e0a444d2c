"""`nextwatch demo`: the main job, shown to a person in a minute and a half, on embedded services and a SIMULATED world.

It trains a first release on the world's past while everything starts, loads that past as `nextwatch load` does, lets
the world live, and then makes its claims, each beside a control and measured while you look. A claim that does not hold
is printed as such and makes the exit code 1.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import polars as pl
from rich.console import Console

from infra.local.stack import gateway_address, running_stack
from infra.operate.loading import load_log
from infra.operate.progress import no_progress, progress_bars
from infra.operate.status import read_status
from infra.operate.training import TrainingJob, train_release
from infra.platform.kafka_clients import client_options
from infra.platform.settings import Settings
from infra.simulation.demo_context import CANDIDATES, Claims, DemoContext, go_live
from infra.simulation.demo_freshness import how_fresh
from infra.simulation.demo_newcomer import a_new_video_finds_its_fans
from infra.simulation.demo_ranking import the_ranker_is_worth_seconds
from infra.simulation.demo_session import a_session_moves_the_list
from infra.simulation.simulated_traffic import SimulatedTraffic, now_ms
from infra.simulation.world import NOTICE, World
from models.logs.stored_log import open_log
from models.release.bundle import Manifest
from nextwatch_client import RecommendClient

DAY_MS = 24 * 3600 * 1000
PAST_DAYS, PAST_WATCHES = 10, 30_000
SHOWN_DAYS, PAST_LISTS = 4, 1_000  # of 20 videos
REQUESTS_PER_S, WATCHES_PER_S = 4.0, 50.0  # of the world, beside what the scenes do
TAKEN_WITHIN_S = 60.0
# So that a minute and a half are enough: less training than `nextwatch train` does, and no validation days.
EPOCHS = {"model": {"epochs": 2}, "ranker": {"epochs": 2}}
SCENES = (a_session_moves_the_list, a_new_video_finds_its_fans, the_ranker_is_worth_seconds, how_fresh)


def run_demo(settings: Settings, *, seed: int, keep: bool, data_dir: Path | None, console: Console) -> bool:
    """Run the demo; whether all its claims held. Embedded services whatever the settings say of brokers."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nextwatch-demo-") as scratch, ThreadPoolExecutor(1) as pool:
        settings = _demo_settings(settings, data_dir or Path(scratch))
        console.rule("nextwatch demo")
        console.print(f"[dim]{NOTICE}; everything else is real: broker, Milvus, workers, models.[/]")
        console.print("starting broker, Milvus and all workers, and training on the world's past meanwhile ...")
        world = World(seed=seed, start_ms=now_ms(), events_per_s=WATCHES_PER_S)
        past, job = _written_down(world, Path(scratch))
        training = pool.submit(train_release, settings, job, no_progress)  # nobody looks while the services start
        with (
            running_stack(settings, _quiet(console), is_limited=True) as (reachable, supervisor),
            RecommendClient(client_options(reachable.kafka)) as client,
        ):
            _first_release(reachable, job, training, console)
            page = f"{gateway_address(supervisor)}/console"
            console.print(f"to look at it meanwhile, in a browser: {page}", highlight=False)
            claims = Claims(console)
            with SimulatedTraffic(world, reachable.kafka, client, requests_per_s=REQUESTS_PER_S) as traffic:
                demo = DemoContext(world, traffic, client, reachable, past, seed)
                for scene in SCENES:
                    scene(demo, claims)
                _where(reachable, page, console)
                console.print(f"\n{time.monotonic() - began:.0f} s after the start; all of it is still running.")
                if keep:
                    console.print(
                        "left running (--keep) until Ctrl-C; try `nextwatch --data-dir "
                        f"{settings.data_dir} status` in another terminal"
                    )
                    with suppress(KeyboardInterrupt):
                        threading.Event().wait()
    console.print("stopped: nothing is left running.")
    for text in claims.failed:
        console.print(f"[bold red]not true this time:[/] {text}")
    return not claims.failed


def _written_down(world: World, scratch: Path) -> tuple[pl.DataFrame, TrainingJob]:
    """The world's past as the files that a user would have: a log of what was watched, and of what was shown and left
    alone; a catalogue; searches. Returns the watches, too."""
    now = now_ms()
    past = world.past_log(now - PAST_DAYS * DAY_MS, now, PAST_WATCHES)
    shown = world.past_exposures(now - SHOWN_DAYS * DAY_MS, now, PAST_LISTS)
    columns = [name for name in past.columns if name in shown.columns]
    log, items, searches, stored = (scratch / name for name in ("log.parquet", "items.parquet", "s.parquet", "stored"))
    pl.concat([past.select(columns), shown.select(columns)]).sort("event_ms").write_parquet(log)
    world.items_frame(now).write_parquet(items)
    world.past_searches(past).write_parquet(searches)
    stored.mkdir()
    return past, TrainingJob(log, items, searches, directory=stored, measure=False)


def _first_release(settings: Settings, job: TrainingJob, training: Future[Manifest | None], console: Console) -> None:
    """Wait for the training, tell the system its past, and wait until the release is live."""
    with progress_bars() as step:
        manifest = training.result()
        assert manifest is not None and job.directory is not None  # it helps nobody else
        log = open_log(job.directory)
        told = load_log(settings, log, items=job.items, searches=job.searches, wait_s=TAKEN_WITHIN_S, step=step)
    if not told.taken:
        raise TimeoutError(f"the histories are not taken in after {TAKEN_WITHIN_S:g} s: is the history worker running?")
    go_live(settings, manifest)
    console.print(
        f"release {manifest.version} is live; loaded {told.rows:,} past watches of {told.users:,} people and "
        f"{told.items:,} videos in {told.wall_s:.1f} s",
        highlight=False,
    )


def _where(settings: Settings, page: str, console: Console) -> None:
    console.rule("look for yourself", align="left")
    console.print(f"  {page}: users, items, what happens now, releases, dead letters", highlight=False)
    for each in read_status(settings).processes:
        console.print(f"  {each.name:<10} http://{each.address}/metrics   http://{each.address}/health")


def _demo_settings(settings: Settings, place: Path) -> Settings:
    """Everything embedded; lists as long as the candidates, all of them ranked: the scenes look at the whole order."""
    changes = {
        "kafka": {"bootstrap": "", "topic_prefix": ""},
        "milvus": {"uri": ""},
        "bundles": {"store": ""},
        "gateway": {"port": 0},  # beside an `up` that runs
        "serving": {"candidates": CANDIDATES, "max_k": CANDIDATES, "ranked": 0},
        **EPOCHS,
    }
    sections = {name: getattr(settings, name).model_copy(update=change) for name, change in changes.items()}
    return settings.model_copy(update={"data_dir": place} | sections)


def _quiet(console: Console) -> Callable[[str, str], None]:
    def report(process: str, what: str) -> None:
        if what != "ready" and not what.startswith(("stopped", "not ready")):
            console.print(f"[dim]{process}: {what}[/]", highlight=False)

    return report
