"""Reads an experiment from its topics: `impressions` says who has seen what, `ranking-examples` what became of it.

Ids of users are kept in memory while it is read, and are in no report.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any, TypeVar

from msgspec import structs

from infra.operate.experiments.compared import ReleasesUnknown, compare_releases
from infra.operate.experiments.control import find_experiment
from infra.operate.experiments.parts import ExamplePart, ImpressionPart
from infra.operate.experiments.report import ExperimentReport, report_of
from infra.operate.experiments.viewers import HOUR_MS, Viewers
from infra.operate.progress import Step, no_progress
from infra.platform.settings import Kafka, Settings
from streams import topics
from streams.erasure.erase_users import read_erased_users
from streams.experiments import releases_of
from streams.kafka.follow import TopicFollower
from streams.kafka.releases import read_experiments
from streams.messages import Experiment, Refused, decode

SLACK_MS = 60_000  # between the clocks of who starts an experiment and who writes of it

M = TypeVar("M")


def read_report(settings: Settings, name: str, effect: float, progress: Step = no_progress) -> ExperimentReport:
    """What may be said now of this experiment; without a name of that which runs, else of the newest. Raises
    ExperimentUnfit, TopicMissing, KafkaError, ForgetSecretWrong."""
    experiment = find_experiment(read_experiments(settings.kafka), name)
    viewers = Viewers(experiment, int(settings.join.window_s * 1000))
    erased, since_ms = read_erased_users(settings), experiment.started_ms - SLACK_MS
    for record, shown in messages(settings.kafka, topics.IMPRESSIONS, ImpressionPart, since_ms, progress):
        if not erased.is_from_before(shown.user_id, shown.at_ms):
            viewers.shown(shown, record.partition)
    for _, example in messages(settings.kafka, topics.RANKING_EXAMPLES, ExamplePart, since_ms, progress):
        viewers.closed(example)
    report = report_of(experiment, viewers, effect, is_cut=has_expired(settings.kafka, since_ms))
    if report.runs and releases_of(experiment):
        report = structs.replace(report, problems=(*report.problems, *_unserved(settings, experiment)))
    return report


def _unserved(settings: Settings, experiment: Experiment) -> tuple[str, ...]:
    """Why no viewer is in it now, or why that cannot be told here; empty where servers can serve it."""
    try:
        problem = compare_releases(settings, experiment).problem
    except ReleasesUnknown as unknown:
        return (f"whether viewers are in it now cannot be told here: {unknown}",)
    return (f"no viewer is in it now: {problem}",) if problem else ()


def has_expired(kafka: Kafka, since_ms: int) -> bool:
    """True where the topics may have lost lists of since then: asked after they were read, which takes its time."""
    if since_ms >= time.time_ns() // 1_000_000 - kafka.retention_h * HOUR_MS:
        return False
    with TopicFollower(kafka, topics.IMPRESSIONS, topics.RANKING_EXAMPLES) as follower:
        return not follower.holds_since(max(0, since_ms))


def messages(
    kafka: Kafka, topic: str, kind: type[M], since_ms: int, progress: Step = no_progress
) -> Iterator[tuple[Any, M]]:
    """Yield what was written to a topic since, up to its end now; what cannot be read is passed over."""
    with TopicFollower(kafka, topic) as follower:
        follower.go_to(max(0, since_ms))
        for record in follower.to_end(partial(progress, topic)):
            try:
                yield record, decode(kind, record.value, max_bytes=8 * kafka.max_message_bytes)
            except Refused:
                continue
