"""`nextwatch demo`: the main job, shown to a person in about three minutes, on embedded services and a SIMULATED world.

It starts everything, trains a first release on the world's past, lets the world live, and then makes its claims, each
measured while you look: a watch changes the next recommendation; a video that did not exist a moment ago becomes
recommended; the model finds more of the next watches than trending does. A claim that does not hold is printed as such
and makes the exit code 1.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.table import Table

from infra.local.stack import running_stack
from infra.operate.progress import Step, progress_bars
from infra.operate.status import Samples, delay_of, read_status, since, within_s
from infra.platform.kafka_clients import client_options
from infra.platform.settings import Settings
from infra.simulation.demo_context import Claims, DemoContext, go_live, retrieved
from infra.simulation.demo_ranking import CANDIDATES, WINDOW_S, impressions_teach_the_ranker
from infra.simulation.simulated_traffic import Sender, SimulatedTraffic, now_ms, wait_for
from infra.simulation.world import NOTICE, World
from models.release.bundle import Manifest
from nextwatch_client import RecommendClient, RecommendReply
from streams import topics
from streams.kafka.follow import TopicFollower
from streams.messages import WatchEvent

DAY_MS = 24 * 3600 * 1000
PAST_DAYS = 10
PAST_EVENTS = 48_000
LEAST_VIDEOS, LEAST_WATCHES = 10, 300  # of a channel that the first scene is about, in the past
WATCHERS, OTHERS = 25, 10
ENOUGH_FANS = 5  # of the others, for a video to be found
ENOUGH_WATCHES = 1_500  # for the recall to mean something


def run_demo(settings: Settings, *, seed: int, keep: bool, data_dir: Path | None, console: Console) -> bool:
    """Run the demo; whether all its claims held. Embedded services whatever the settings say of brokers."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nextwatch-demo-") as scratch:
        settings = _demo_settings(settings, data_dir or Path(scratch))
        console.rule("nextwatch demo")
        console.print(f"[dim]{NOTICE}; everything else is real: broker, Milvus, workers, models.[/]")
        console.print("starting broker, Milvus, history, trending, trainer, indexer, serving ...")
        with (
            running_stack(settings, _quiet(console), is_limited=True) as (reachable, _),
            RecommendClient(client_options(reachable.kafka)) as client,
        ):
            world = World(seed=seed, start_ms=now_ms())
            past_watches = _first_release(world, reachable, console)
            claims = Claims(console)
            with SimulatedTraffic(world, reachable.kafka, client, requests_per_s=4.0) as traffic:
                _show(DemoContext(world, traffic, client, reachable, past_watches), claims)
                _where(reachable, console)
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


def _first_release(world: World, settings: Settings, console: Console) -> Counter[str]:
    """Give the world's people their histories, train on its past, and wait until the release is live.

    Returns how often each item was watched in that past.
    """
    now = now_ms()
    past = world.past_log(now - PAST_DAYS * DAY_MS, now, PAST_EVENTS)
    items = world.items_frame(now)
    with progress_bars() as step:
        _remember(world, past, settings, step)
        learnt = _examples_of(past, settings)
        manifest = _train(past, items, world.past_searches(past), settings, learnt, step)
    go_live(settings, manifest)
    console.print(f"release {manifest.version} is live: {past.height:,} past watches of {items.height:,} videos")
    return Counter(past["item_id"].to_list())


def _remember(world: World, past: pl.DataFrame, settings: Settings, step: Step) -> None:
    """The catalogue, and the past as events. No release is live yet, so nothing is learnt from them."""
    sender = Sender(settings.kafka)
    sender.send(topics.ITEMS, world.catalogue(now_ms()))
    for done, event in enumerate(world.messages(past), start=1):
        sender.send(topics.WATCH_EVENTS, [event])
        if done % 500 == 0 or done == past.height:
            step("past watches", done, past.height)
    sender.flush()
    sender.close()


def _examples_of(past: pl.DataFrame, settings: Settings) -> int:
    """Wait until the history worker has made the examples of the past; the offset at which `training-examples` ends
    then. No release has learnt from what comes after it. Raises TimeoutError."""
    least_s = pl.min_horizontal(pl.col("duration_s"), pl.lit(settings.history.completed_s))
    completed = past.filter(pl.col("watch_s") >= least_s).height
    with TopicFollower(settings.kafka, topics.TRAINING_EXAMPLES) as follower:
        end = wait_for(lambda: (found := sum(follower.ends().values())) >= completed and found, 60, every_s=0.5)
    if not end:
        raise TimeoutError(f"the history worker has not made {completed:,} examples in 60 s: is it running?")
    return int(end)


def _train(
    past: pl.DataFrame, items: pl.DataFrame, searches: pl.DataFrame, settings: Settings, learnt: int, step: Step
) -> Manifest:

    from infra.operate.retraining import delays_of
    from models.logs.stored_log import store_frame
    from models.logs.stored_searches import store_searches
    from models.release.training import train_bundle
    from models.threads import limit_threads

    limit_threads(settings.model.threads)
    with tempfile.TemporaryDirectory(prefix="nextwatch-") as scratch:
        completed_s = settings.history.completed_s
        log = store_frame(past, Path(scratch), completed_s=completed_s, source="the world's past")
        words = store_searches(
            searches.select("user_id", "query", "event_ms"), log, buckets=settings.model.search_tokens
        )
        return train_bundle(
            log,
            items,
            searches=words,
            settings=settings.model,
            ranker=settings.ranker,
            delays=delays_of(settings),
            bundles_dir=settings.bundles_dir,
            created_ms=now_ms(),
            offsets={f"{topics.TRAINING_EXAMPLES}/0": learnt},
            progress=step,
            measure=False,
        )


def _show(demo: DemoContext, claims: Claims) -> None:
    before = {process: demo.samples(process) for process in ("history", "indexer", "trainer")}
    _a_watch_moves_the_list(demo, claims)
    _a_new_video_is_found(demo, claims)
    _freshness(demo, before, claims)
    _recall(demo, before["trainer"], claims)
    impressions_teach_the_ranker(demo, claims)


def _a_watch_moves_the_list(demo: DemoContext, claims: Claims) -> None:
    """One viewer, three watches of one channel, one second."""
    console, channel_of = claims.console, demo.channels()
    viewer, channel = _viewer_and_channel(demo, channel_of)
    console.rule(f"1. a watch changes the next recommendation (viewer {viewer})", align="left")
    first = demo.ask(viewer, CANDIDATES)
    shown = {item.item_id for item in retrieved(first)}
    videos = [item_id for item_id, of in channel_of.items() if of == channel and item_id not in shown][:3]
    *_, last = demo.traffic.watch(viewer, *videos)
    console.print(
        f"the viewer watches three videos of channel [bold]{channel}[/]: {', '.join(videos)}; a second later:"
    )
    time.sleep(1.0)
    second = demo.ask(viewer, CANDIDATES)
    console.print(_moved(first, second, channel_of, channel))
    had, has = (_count(reply, channel_of, channel) for reply in (first, second))
    watches = f"{first.history_watches} -> {second.history_watches} watches in the history"
    claims.check(_knows(second, last.event_ms), f"the reply knows the three watches ({watches})")
    claims.check(has > had, f"more of the {CANDIDATES} candidates are from channel {channel} ({had} -> {has})")


def _viewer_and_channel(demo: DemoContext, channel_of: dict[str, str | None]) -> tuple[str, str]:
    """Somebody for whom some of a favourite channel is retrieved, but at most a third: there is room for more.

    Only of a channel that people watch: where its videos have hardly been watched by anybody, or not lately (none of
    them is retrieved), no model can know that three of them are alike.
    """
    known = watched_channels(channel_of, demo.past_watches)
    for viewer in demo.world.visitors(60):
        reply = demo.ask(viewer, CANDIDATES)
        if not 3 <= reply.history_watches <= 12 or not reply.version:
            continue
        for channel in demo.world.favourites(viewer, now_ms()):
            few = sum(of == channel for of in channel_of.values()) / 3
            if channel in known and 1 <= _count(reply, channel_of, channel) <= few:
                return viewer, channel
    raise LookupError("the simulated world has no viewer to show this with: try another --seed")


def watched_channels(channel_of: Mapping[str, str | None], watches: Mapping[str, int]) -> set[str]:
    """The channels with enough videos that were watched often enough. `channel_of` and `watches` are by item."""
    videos = Counter(channel for channel in channel_of.values() if channel)
    watched: Counter[str] = Counter()
    for item_id, channel in channel_of.items():
        watched[channel or ""] += watches.get(item_id, 0)
    return {channel for channel, count in videos.items() if count >= LEAST_VIDEOS and watched[channel] >= LEAST_WATCHES}


def _a_new_video_is_found(demo: DemoContext, claims: Claims) -> None:
    """A video that nobody has seen is published, some fans watch it, and retrieval finds it for other fans.

    Its place is that by retrieval score: where the ranker puts it is a matter of how long it will be watched."""
    world, console = demo.world, claims.console
    channel = world.favourites(world.visitors(1)[0], now_ms())[0]
    fans = world.fans(channel, now_ms(), WATCHERS + OTHERS)
    console.rule(f"2. a video that did not exist is found (channel {channel})", align="left")
    item = demo.traffic.publish(channel)
    began = time.monotonic()
    for fan in fans[:WATCHERS]:
        demo.traffic.watch(fan, item.item_id)

    def places() -> list[int]:
        replies = demo.ask_many(fans[WATCHERS:], CANDIDATES)
        return [place for reply in replies if (place := retrieved_at(reply, item.item_id)) is not None]

    found = wait_for(lambda: len(found := places()) >= ENOUGH_FANS and found, 15, every_s=0.2) or places()
    when = f", best place {min(found)}, {time.monotonic() - began:.1f} s after its first watch" if found else ""
    console.print(f"{item.item_id} is new; {WATCHERS} fans of its channel watched it, {OTHERS} other fans did not.")
    text = f"it is among the {CANDIDATES} candidates of {len(found)} of the {OTHERS}{when}"
    claims.check(len(found) >= ENOUGH_FANS, text)


def retrieved_at(reply: RecommendReply, item_id: str) -> int | None:
    """The place, from 1, that an item has by retrieval score; None when it was not retrieved."""
    candidates = retrieved(reply)
    score = next((item.score for item in candidates if item.item_id == item_id), None)
    return None if score is None else 1 + sum((item.score or 0.0) > score for item in candidates)


def _freshness(demo: DemoContext, before: dict[str, Samples], claims: Claims) -> None:
    """Watch sent until a reply knows it, through the whole system, while the world goes on."""
    console = claims.console
    console.rule("3. how fresh", align="left")
    catalogue = list(demo.channels())
    delays_s = []
    for number, viewer in enumerate(demo.world.visitors(20), start=1):
        began = time.monotonic()
        (event,) = demo.traffic.watch(viewer, catalogue[-number])
        wait_for(partial(_reply_knows, demo, event), 5, every_s=0.01)
        delays_s.append(time.monotonic() - began)
    p50_s, p95_s = sorted(delays_s)[len(delays_s) // 2], sorted(delays_s)[round(0.95 * len(delays_s)) - 1]
    console.print(f"watch sent to a reply that knows it: p50 {p50_s:.2f} s, p95 {p95_s:.2f} s ({len(delays_s)} probes)")
    for process, name, what in (
        ("history", "event_to_history", "its user's history"),
        ("indexer", "event_to_vector", "its item's new vector searchable"),
    ):
        delay = delay_of(since(demo.samples(process), before[process]), f"nextwatch_{name}_seconds")
        if delay is not None:
            console.print(f"watch sent to {what}: p50 {within_s(delay.p50_s)}, p99 {within_s(delay.p99_s)}")
    claims.check(p95_s < 1.0, "a reply knows a watch within a second, 19 times out of 20")


def _recall(demo: DemoContext, before: Samples, claims: Claims) -> None:
    """Each live watch was ranked before it was learnt: how often was its video in the top 100?"""
    claims.console.rule("4. does the model know better than trending?", align="left")

    def grown(name: str, **labels: str) -> float:
        return since(demo.samples("trainer"), before).get((name, tuple(sorted(labels.items()))), 0)

    def watched() -> float:
        return grown("nextwatch_prequential_examples_total")

    with progress_bars() as step:
        wait_for(lambda: step("live watches", int(watched()), ENOUGH_WATCHES) or watched() >= ENOUGH_WATCHES, 40, 0.5)
    watches = watched()
    recall = {
        name: grown("nextwatch_prequential_hits_total", model=model, k="100") / max(1, watches)
        for name, model in (("live model", "live"), ("frozen model", "frozen"), ("trending", "popular"))
    }
    shown = ", ".join(f"{name} {value:.3f}" for name, value in recall.items())
    claims.console.print(
        f"each watch was ranked among all videos before it was learnt; recall@100 of {watches:,.0f} watches: {shown}"
    )
    claims.check(recall["live model"] > recall["trending"], "the live model finds more of them than trending does")


def _where(settings: Settings, console: Console) -> None:
    console.rule("look for yourself", align="left")
    for each in read_status(settings).processes:
        console.print(f"  {each.name:<10} http://{each.address}/metrics   http://{each.address}/health")


def _moved(first: RecommendReply, second: RecommendReply, channel_of: dict[str, str | None], channel: str) -> Table:
    """The top ten before and after, the channel's videos marked."""
    was = {item.item_id: item.rank for item in first.items}
    table = Table("rank", "before", "after", "was", box=None, pad_edge=False)

    def name(item_id: str) -> str:
        mark = "bold green" if channel_of.get(item_id) == channel else "default"
        return f"[{mark}]{item_id}  {channel_of.get(item_id) or ''}[/]"

    for old, new in list(zip(first.items, second.items, strict=False))[:10]:
        rank = was.get(new.item_id)
        table.add_row(str(new.rank), name(old.item_id), name(new.item_id), "new" if rank is None else str(rank))
    return table


def _count(reply: RecommendReply, channel_of: dict[str, str | None], channel: str) -> int:
    return sum(channel_of.get(item.item_id) == channel for item in retrieved(reply))


def _knows(reply: RecommendReply, event_ms: int) -> bool:
    return reply.history_event_ms is not None and reply.history_event_ms >= event_ms


def _reply_knows(demo: DemoContext, event: WatchEvent) -> bool:
    return _knows(demo.ask(event.user_id, 1), event.event_ms)


def _demo_settings(settings: Settings, place: Path) -> Settings:
    """Everything embedded, and what the scene about ranking needs: see infra.simulation.demo_ranking."""
    kafka = settings.kafka.model_copy(update={"bootstrap": "", "topic_prefix": ""})
    milvus = settings.milvus.model_copy(update={"uri": ""})
    join = settings.join.model_copy(update={"window_s": WINDOW_S})
    trainer = settings.trainer.model_copy(update={"evaluate_share": 1.0})  # a claim is made of a minute's watches
    serving = settings.serving.model_copy(update={"candidates": CANDIDATES, "max_k": CANDIDATES})
    gateway = settings.gateway.model_copy(update={"port": 0})  # beside an `up` that runs
    sections = {"kafka": kafka, "milvus": milvus, "join": join, "trainer": trainer, "serving": serving}
    sections |= {"gateway": gateway}
    return settings.model_copy(update={"data_dir": place} | sections)


def _quiet(console: Console) -> Callable[[str, str], None]:
    def report(process: str, what: str) -> None:
        if what != "ready" and not what.startswith("stopped"):
            console.print(f"[dim]{process}: {what}[/]", highlight=False)

    return report
