"""The loop of `nextwatch retrain`: wait, train from the topics, let the gate decide, tell Prometheus.

Which release is live, and when the newest was made, is read from `releases` before each round, so that a process that
is started anew, or a second one beside it, goes on where the topics say. What became of the last round is in a file
(memory.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec
import structlog
from kafka.errors import KafkaError
from msgspec import structs

from infra.operate.going_live.gate import Judgement, go_live
from infra.operate.newest_release import announce_newest, newest_bundle
from infra.operate.old_bundles import remove_old_bundles
from infra.operate.progress import no_progress
from infra.operate.releases import read_topic
from infra.operate.retrain.memory import forget, recall, remember
from infra.operate.retrain.rounds import (
    OUTCOMES,
    UNFINISHED,
    Outcome,
    Round,
    Step,
    Stopped,
    begin,
    break_off,
    first_start,
    is_unfinished,
    next_start,
    within,
)
from infra.operate.training import TrainingJob
from infra.platform import metrics
from infra.platform.health import Health, serve_health
from infra.platform.settings import Settings
from models.release.bundle import BundleError
from models.retrieval.candidate_learning import WarmStartError
from streams.bundles.objects import StoreError
from streams.kafka.follow import TopicMissing
from streams.messages import BundlePublished

log = structlog.get_logger(__name__)


def run_retraining(settings: Settings, every_s: float, budget_s: float, stop: threading.Event) -> None:
    """Train a release every `every_s` seconds until `stop`; each has `budget_s` seconds."""
    health = Health("retrain", ready=True, waiting_for="its time")
    metrics.RETRAIN_EVERY.set(every_s)
    with serve_health(health, settings, started_ms=now_ms()):
        last = last_round(settings.data_dir)
        if last is not None:
            _tell(health, last)
        due_ms = max(_due_beside(_newest(settings), last, every_s), next_start(last, every_s) if last else 0)
        while not _waits(stop, health, due_ms):
            due_ms = max(due_ms, _due_beside(_newest(settings), last, every_s))
            if due_ms > now_ms():
                continue
            last = attempt(settings, budget_s, stop.is_set)
            if last is None:
                return
            metrics.RETRAIN_ROUNDS.labels(last.outcome).inc()
            _tell(health, last)
            due_ms = next_start(last, every_s)


def last_round(data_dir: Path) -> Round | None:
    """What became of the last round; one that was killed has ended now, and counts as failed."""
    last = recall(data_dir)
    if last is None or not is_unfinished(last):
        return last
    last = break_off(last, now_ms())
    with suppress(OSError):  # a full disk may be what ended it, and is told by the next round
        remember(data_dir, last)
    metrics.RETRAIN_ROUNDS.labels(last.outcome).inc()
    log.error("a round was broken off", reason=last.reason)
    return last


def attempt(settings: Settings, budget_s: float, stopped: Callable[[], bool]) -> Round | None:
    """A round, whatever becomes of it; None when it was stopped."""
    last, started_ms, began_s = recall(settings.data_dir), now_ms(), time.monotonic()
    begun = begin(last, started_ms)
    try:
        remember(settings.data_dir, begun)
        return retrain_once(settings, budget_s, stopped=stopped)
    except Stopped:
        remember(settings.data_dir, last) if last else forget(settings.data_dir)
        return None
    except Exception as error:  # the outermost loop: what has failed is told, and tried again
        log.exception("retraining failed", reason=str(error))
        reason, wall_s = f"{type(error).__name__}: {error}", time.monotonic() - began_s
        left = recall(settings.data_dir)
        known = left if left is not None and left.outcome == "failed" else begun
        failed = structs.replace(known, started_ms=started_ms, wall_s=wall_s, reason=reason)
        with suppress(OSError):  # a full disk may be what it has failed for
            remember(settings.data_dir, failed)
        return failed


def retrain_once(
    settings: Settings,
    budget_s: float,
    step: Step = no_progress,
    *,
    force: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> Round:
    """Train from the topics, beginning from the live release where that fits, and announce what the gate lets through;
    or only announce what the last round could not.

    Raises what a training raises, OutOfTime and Stopped."""
    started_ms, began_s = now_ms(), time.monotonic()
    bounded = within(step, budget_s, clock=time.monotonic, stopped=stopped)
    live = read_topic(settings.kafka).live
    found = _announce_left(settings, live) or _train(settings, bounded, live, force=force, started_ms=started_ms)
    found = structs.replace(found, started_ms=started_ms, wall_s=time.monotonic() - began_s)
    remember(settings.data_dir, found)
    if found.outcome == "announced":
        _remove_old(settings)
    log.info("retrained", outcome=found.outcome, version=found.version, live=found.live, warm=found.warm)
    return found


def _announce_left(settings: Settings, live: str) -> Round | None:
    """Announce the bundle that has passed in the last round, where it is still the newest and `live` what it was judged
    beside; None where there is none."""
    last, newest = recall(settings.data_dir), newest_bundle(settings.bundles_dir)
    if last is None or last.outcome != "failed" or last.live != live:
        return None
    if newest is None or newest.version != last.version or announce_newest(settings) is None:
        return None
    return structs.replace(last, outcome="announced", reason="")


def _train(settings: Settings, step: Step, live: str, *, force: bool, started_ms: int) -> Round:
    """Train, from the live release if possible: one of another shape, or that is not here, is no reason not to."""

    def placed(judgement: Judgement, *, warm: bool) -> None:
        waits = _round_of("failed", judgement, warm=warm, started_ms=started_ms)
        remember(settings.data_dir, structs.replace(waits, reason=UNFINISHED))

    def train(job: TrainingJob) -> Round:
        warm = job.warm_start is not None
        judgement = go_live(settings, job, step, force=force, placed=partial(placed, warm=warm))
        assert judgement is not None  # it helps nobody else
        outcome: Outcome = "announced" if judgement.is_announced else "refused"
        return _round_of(outcome, judgement, warm=warm, started_ms=started_ms)

    if live:
        try:
            return train(TrainingJob(warm_start=live, new_ranker=True))
        except (WarmStartError, BundleError) as error:
            log.warning("not begun from the live release", live=live, reason=str(error))
    return train(TrainingJob())


def _round_of(outcome: Outcome, judgement: Judgement, *, warm: bool, started_ms: int) -> Round:
    version = judgement.manifest.version
    return Round(outcome, started_ms, 0.0, version, judgement.live, warm, verdict=judgement.verdict)


def show(done: Round) -> None:
    """Set the metrics of a round."""
    for outcome in OUTCOMES:
        metrics.RETRAIN_OUTCOME.labels(outcome).set(outcome == done.outcome)
    metrics.RETRAIN_TIME.set(done.wall_s)
    if done.outcome == "announced":
        metrics.RETRAIN_SUCCESS.set(done.started_ms / 1000 + done.wall_s)
    metrics.RETRAIN_DIFFERENCE.clear()
    for each in done.verdict.findings if done.verdict else ():
        if each.better is not None:
            metrics.RETRAIN_DIFFERENCE.labels(each.metric, each.against).set(each.better)


def _tell(health: Health, done: Round) -> None:
    show(done)
    health.detail["last_round"] = msgspec.to_builtins(done)


def _newest(settings: Settings) -> BundlePublished | None:
    """The newest release, which Prometheus is told; None where there is none, or where it is not known."""
    try:
        newest = read_topic(settings.kafka).bundle
    except (KafkaError, TopicMissing) as error:  # the round will fail for it, and tell
        log.warning("the newest release is not known", reason=str(error))
        return None
    if newest is not None:
        metrics.RETRAIN_SUCCESS.set(newest.created_ms / 1000)
    return newest


def _due_beside(newest: BundlePublished | None, last: Round | None, every_s: float) -> int:
    """When a round is due after the newest release, whoever made it; the last round's own has its time already."""
    is_own = newest is not None and last is not None and (last.outcome, last.version) == ("announced", newest.version)
    return first_start(0 if newest is None or is_own else newest.created_ms, now_ms(), every_s)


def _waits(stop: threading.Event, health: Health, due_ms: int) -> bool:
    """Wait until it is time; True when it was stopped."""
    health.detail["next_round_ms"] = due_ms
    return stop.wait(max(0.0, (due_ms - now_ms()) / 1000))


def _remove_old(settings: Settings) -> None:
    try:
        remove_old_bundles(settings)
    except (OSError, StoreError) as error:  # the release is out; that an old one stays is no reason to call it failed
        log.warning("old bundles stay", reason=str(error))


def now_ms() -> int:
    return time.time_ns() // 1_000_000
