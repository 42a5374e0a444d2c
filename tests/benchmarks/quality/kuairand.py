"""Real input: KuaiRand's exposures replayed at full speed through the whole system, with requests mixed in."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random

import polars as pl

from infra.operate.replay import Replayed, replay
from infra.platform.kafka_clients import client_options
from infra.platform.settings import Settings
from nextwatch_client import RecommendClient
from streams.topics import DEAD_LETTERS, TRAINING_EXAMPLES, WATCH_EVENTS
from tests.benchmarks.events.history import until_still
from tests.benchmarks.report import Report, histogram_quantile, quantile
from tests.harness.kuairand import DIRECTORY, is_there, read_kuairand
from tests.harness.requests import Asked, steady, wait_for_replies
from tests.harness.system import (
    Cluster,
    embedded,
    read_metrics,
    release,
    running,
    temporary_settings,
    wait_for_health,
    wait_until,
)

CHINA = timedelta(hours=8)
SPLIT_MS = round((datetime(2022, 5, 4, tzinfo=UTC) - CHINA).timestamp() * 1000)  # 9 days before, 2 days after
REQUESTS_PER_S = 10.0
QUICK_USERS = 0.1  # share
MODELS = ("live", "frozen", "popular")
PATIENCE_S = 900.0

Metrics = Mapping[str, Mapping[str, float]]


def measure(report: Report, quick: bool) -> None:
    """A release trained on 25 April to 3 May (and each user's older watches); 4 and 5 May replayed at full speed."""
    report.title = "kuairand: 4 and 5 May replayed at full speed, release trained on what came before"
    if not is_there():
        report.note(f"nothing measured: the KuaiRand data is not at {DIRECTORY}")
        return
    past, live, items = read_split(QUICK_USERS if quick else 1.0)
    report.note(f"requests: {REQUESTS_PER_S:.0f}/s, for users of these two days, while the events are worked off")
    with (
        temporary_settings(trainer={"evaluate_share": 1.0}) as own,
        embedded(own) as settings,
        running(settings) as processes,
        Cluster(settings.kafka) as cluster,
    ):
        replay(past, settings, items=items)  # the histories as they were on the evening of 3 May
        wait_until(lambda: is_worked_off(cluster), "histories of the past", PATIENCE_S, every_s=0.5)
        began_s = time.monotonic()
        release(settings, past, items)
        trained_s = time.monotonic() - began_s
        wait_for_health(settings, *processes.values())
        wait_until(lambda: is_worked_off(cluster), "the trainer", PATIENCE_S, every_s=0.5)
        run(report, settings, cluster, live, past.height, trained_s)


def read_split(share: float) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Log before the split, log after it, catalogue; of a share of the users."""
    log, items = read_kuairand()
    if share < 1:
        log = log.filter(pl.col("user_id").hash(seed=1) % 1000 < round(1000 * share))
    return log.filter(pl.col("event_ms") < SPLIT_MS), log.filter(pl.col("event_ms") >= SPLIT_MS), items


def run(
    report: Report, settings: Settings, cluster: Cluster, live: pl.DataFrame, trained_on: int, trained_s: float
) -> None:
    """Replay, with requests beside it, until the last example is learnt; then the tables."""
    users = live["user_id"].unique(maintain_order=True).to_list()
    asked: list[Asked] = []
    before, dead, examples = read_all(settings), cluster.total(DEAD_LETTERS), cluster.total(TRAINING_EXAMPLES)
    began_s = time.monotonic()
    with RecommendClient(client_options(settings.kafka)) as client:
        with steady(client, partial(Random(1).choice, users), REQUESTS_PER_S, asked, (), deadline_ms=30_000):
            sent = replay(live, settings)
            wait_until(lambda: cluster.behind("history", WATCH_EVENTS) == 0, "histories", PATIENCE_S, every_s=0.2)
            histories_s = time.monotonic() - began_s
            wait_until(lambda: is_worked_off(cluster), "training", PATIENCE_S, every_s=0.2)
            learnt_s = time.monotonic() - began_s
        wait_for_replies(asked, 30.0)
    upserted = "nextwatch_index_rows_upserted_total"
    until_still(lambda: read_metrics(settings, "indexer").get(upserted, 0.0), still_s=3.0)
    after = read_all(settings)
    report.add(what="watches in the release", value=trained_on)
    report.add(what="training, s", value=trained_s)
    report.add(what="events replayed", value=sent.watches)
    report.add(what="training examples", value=cluster.total(TRAINING_EXAMPLES) - examples)
    report.add(what="dead events", value=cluster.total(DEAD_LETTERS) - dead)
    add_speed(report, sent, histories_s, learnt_s)
    add_delays(report, before, after)
    add_requests(report, asked)
    add_recall(report, before["trainer"], after["trainer"])


def add_speed(report: Report, sent: Replayed, histories_s: float, learnt_s: float) -> None:
    report.add(what="all sent after, s", value=sent.wall_s)
    report.add(what="all in histories after, s", value=histories_s)
    report.add(what="all learnt after (wall time), s", value=learnt_s)
    report.add(what="events/s into histories", value=sent.watches / histories_s)
    report.add(what="events/s, whole way", value=sent.watches / learnt_s)


def add_delays(report: Report, before: Metrics, after: Metrics) -> None:
    """From the processes' own histograms; at full speed most of a delay is waiting in the topic."""
    for what, process, name in (
        ("watch to history", "history", "nextwatch_event_to_history_seconds"),
        ("watch to vector", "indexer", "nextwatch_event_to_vector_seconds"),
    ):
        for q in (0.5, 0.99):
            seconds = histogram_quantile(before[process], after[process], name, q)
            report.add(what=f"{what} p{round(100 * q)}, s", value=seconds)


def add_requests(report: Report, asked: list[Asked]) -> None:
    replies = [each.reply for each in asked if each.reply is not None]
    report.add(what="requests answered", value=len(replies))
    report.add(what="requests unanswered", value=len(asked) - len(replies))
    report.add(what="requests degraded", value=sum(bool(reply.degraded) for reply in replies))
    for q in (0.5, 0.99):
        ms = quantile([each.ms for each in asked if each.reply is not None], q)
        report.add(what=f"request latency p{round(100 * q)}, ms", value=ms)


def add_recall(report: Report, before: Mapping[str, float], after: Mapping[str, float]) -> None:
    """Each example was ranked among all items before it was learnt from; what its user had watched was left out."""

    def grown(sample: str) -> float:
        return after.get(sample, 0.0) - before.get(sample, 0.0)

    count = grown("nextwatch_prequential_examples_total")
    report.add(what="examples ranked before they were learnt", value=round(count))
    recall = {
        (model, k): grown(f'nextwatch_prequential_hits_total{{k="{k}",model="{model}"}}') / count if count else 0.0
        for k in (10, 100)
        for model in MODELS
    }
    for (model, k), value in recall.items():
        report.add(what=f"prequential R@{k}, {model}", value=value)
    for other in ("frozen", "popular"):
        if recall[other, 100]:
            report.bar(f"R@100 live / {other}", recall["live", 100] / recall[other, 100], at_least=1.0)


def is_worked_off(cluster: Cluster) -> bool:
    return cluster.behind("history", WATCH_EVENTS) == 0 and cluster.behind("trainer", TRAINING_EXAMPLES) == 0


def read_all(settings: Settings) -> dict[str, dict[str, float]]:
    return {name: read_metrics(settings, name) for name in ("history", "trainer", "indexer")}
