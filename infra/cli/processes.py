"""The single processes, as a supervisor (systemd, Kubernetes, `nextwatch up`) runs them: worker, indexer, serve,
gateway, ingest."""

from __future__ import annotations

import signal
import threading
from enum import StrEnum
from importlib import import_module
from typing import Annotated

import typer

from infra.platform.settings import Settings


class WorkerName(StrEnum):
    HISTORY = "history"
    JOIN = "join"
    TRENDING = "trending"
    TRAINER = "trainer"


def worker(
    context: typer.Context, name: Annotated[WorkerName, typer.Argument(help="Which of the stream workers")]
) -> None:
    """Run a stream worker (Faust): user histories, what became of impressions, trending items, or the incremental
    trainer."""
    from infra.platform.health import Health, serve_health
    from streams.erasure.erase_users import read_erased_users
    from streams.kafka.faust_app import now_ms, run
    from streams.kafka.follow import require_topics
    from streams.kafka.partition_counts import require_partitions
    from streams.kafka.requirements import require_settings
    from streams.kafka.topic_ids import require_same_topics
    from streams.topics import TOPICS

    settings: Settings = context.obj.connected
    names = [topic.name for topic in TOPICS]
    require_topics(settings.kafka, names)
    require_settings(settings, names)
    require_partitions(settings.kafka)
    read_erased_users(settings)  # with another secret than that of before nobody would stay forgotten
    if name is not WorkerName.TRAINER:  # which looks when it takes a release up, and has a release to wait for
        require_same_topics(settings.kafka, name.value)
    health = Health(name.value)
    with serve_health(health, settings, started_ms=now_ms()):
        if name is WorkerName.TRAINER:
            from models.threads import limit_threads  # with torch, which the others do without

            limit_threads(settings.trainer.threads)
        create_app = getattr(import_module(f"streams.{name}.app"), f"create_{name}_app")
        run(create_app(settings, health), settings)


def indexer(context: typer.Context) -> None:
    """Run the indexer: item vectors from Kafka into Milvus, one collection per version."""
    from indexer.process import run_indexer

    run_indexer(context.obj.with_milvus, stop_on_signals())


def serve(context: typer.Context) -> None:
    """Run a serving worker: answers recommend-requests."""
    from serving.worker.worker import run_serving
    from streams.kafka.partition_counts import require_partitions
    from streams.kafka.requirements import require_settings
    from streams.topics import TOPICS

    settings: Settings = context.obj.with_milvus
    require_settings(settings, [topic.name for topic in TOPICS])
    require_partitions(settings.kafka)
    run_serving(settings, stop_on_signals())


def gateway(context: typer.Context) -> None:
    """Run the HTTP gateway: recommendations, events and the catalogue for whoever does not speak Kafka."""
    from infra.console.pages import console_pages
    from infra.gateway.process import run_gateway
    from streams.erasure.erase_users import read_erased_users
    from streams.kafka.follow import require_topics
    from streams.kafka.partition_counts import require_partitions
    from streams.topics import TOPICS

    settings: Settings = context.obj.connected
    require_topics(settings.kafka, [topic.name for topic in TOPICS])
    require_partitions(settings.kafka)  # it sends each event to its user's
    read_erased_users(settings)  # it forgets users, and must have the secret of before
    run_gateway(settings, stop_on_signals(), console_pages)


def ingest(context: typer.Context) -> None:
    """Run the ingest: topics of your own become watch-events, search-events, signals and items, as [ingest] says."""
    from streams.ingest.worker import run_ingest

    run_ingest(context.obj.connected, stop_on_signals())


def stop_on_signals() -> threading.Event:
    """An event that SIGINT and SIGTERM set."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop
