"""Looks at everything that a system needs, and says of each thing that is not as it must be what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
from kafka.errors import KafkaError

from infra.operate.releases import read_releases, whole_bundles
from infra.operate.status import read_status
from infra.platform.guarded_process import ServiceError
from infra.platform.kafka_access import KafkaRefused
from infra.platform.settings import Settings
from streams.bundles.objects import Objects, StoreError
from streams.kafka.partition_counts import check_raise
from streams.kafka.topic_ids import check_topic_ids
from streams.topics import check_topics


class Finding(msgspec.Struct, frozen=True):
    """`way_out` is empty where all is well."""

    what: str
    told: str
    way_out: str = ""


def diagnose(settings: Settings, connect: Callable[[], Settings]) -> list[Finding]:
    """Broker, topics, the bundles' store, releases, Milvus, processes, in the order in which one needs the other.
    `connect` gives the settings with the broker known, or raises ServiceError or KafkaRefused."""
    return list(_findings(settings, connect))


def _findings(settings: Settings, connect: Callable[[], Settings]) -> Iterator[Finding]:
    try:
        connected = connect()
        problems, replaced = check_topics(connected.kafka), check_topic_ids(connected.kafka)
        problems += check_raise(connected.kafka)
    except (ServiceError, KafkaRefused) as error:
        yield Finding("Kafka", "not reached", str(error))
    except KafkaError as error:
        yield Finding("Kafka", f"not reached: {error}", "set kafka.bootstrap, and see that the broker is up")
    else:
        yield Finding("Kafka", connected.kafka.bootstrap)
        yield _of_topics(problems)
        for line in replaced:
            told, _, way_out = line.rpartition(": ")
            yield Finding("topic", told, way_out)
        yield from _of_store(connected)
        yield from _of_releases(connected)
    yield _of_processes(settings)


def _of_topics(problems: list[str]) -> Finding:
    if not problems:
        return Finding("topics", "as they must be")
    way = "`nextwatch topics --create` makes what is missing, `--alter` sets right what differs"
    return Finding("topics", "; ".join(problems), way)


def _of_store(settings: Settings) -> Iterator[Finding]:
    if not settings.bundles.store:
        return
    try:
        bundles = whole_bundles(Objects(settings.bundles).found())
    except StoreError as error:
        way = "see bundles.store, bundles.endpoint and the provider's credentials in the environment"
        yield Finding("bundles' store", str(error), way)
    else:
        yield Finding("bundles' store", f"{settings.bundles.store}: {len(bundles)} bundles")


def _of_releases(settings: Settings) -> Iterator[Finding]:
    report = read_releases(settings)
    for problem in report.problems:
        yield Finding("releases", "not all is known", problem)
    broken = [f"{bundle.version}: {bundle.problem}" for bundle in report.bundles if bundle.problem]
    if broken:
        yield Finding("bundles", "; ".join(broken), "remove them from bundles_dir, or train anew")
    if not report.bundles:
        yield Finding("release", "none", "`nextwatch train LOG` makes one; until then everybody gets what is trending")
    elif report.live:
        yield Finding("release", f"{report.live} is live")
    else:
        yield Finding("release", "none is live", "the indexer announces one when its collection is whole: does it run?")


def _of_processes(settings: Settings) -> Finding:
    report = read_status(settings)
    waiting = [f"{each.name}: {', '.join(each.reasons) or 'not ready'}" for each in report.processes if not each.ready]
    if not report.processes:
        return Finding("processes", f"none on {settings.data_dir}", "`nextwatch up` starts all of them")
    if waiting:
        return Finding("processes", "; ".join(waiting), "their logs say more; `nextwatch status` shows the lags")
    return Finding("processes", f"{len(report.processes)} are ready")
