"""The loop of `nextwatch retrain`: wait, train from the topics, let the gate decide, tell Prometheus.

Nothing is kept between two rounds but what a page shows: which release is live, and when the newest was made, is read
from `releases`, so that a process that is started anew, or a second one beside it, goes on where the topics say.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import msgspec
import structlog

from infra.operate.going_live.gate import Judgement, go_live
from infra.operate.old_bundles import remove_old_bundles
from infra.operate.progress import no_progress
from infra.operate.releases import read_topic
from infra.operate.retrain.rounds import OUTCOMES, Round, Step, Stopped, first_start, next_start, within
from infra.operate.training import TrainingJob
from infra.platform import metrics
from infra.platform.health import Health, serve_health
from infra.platform.settings import Settings
from models.release.bundle import BundleError
from models.retrieval.candidate_learning import WarmStartError
from streams.bundles.objects import StoreError

log = structlog.get_logger(__name__)


def run_retraining(settings: Settings, every_s: float, budget_s: float, stop: threading.Event) -> None:
    """Train a release every `every_s` seconds until `stop`; each has `budget_s` seconds."""
    health = Health("retrain", ready=True, waiting_for="its time")
    metrics.RETRAIN_EVERY.set(every_s)
    with serve_health(health, settings, started_ms=now_ms()):
        newest = read_topic(settings.kafka).bundle
        if newest is not None:
            metrics.RETRAIN_SUCCESS.set(newest.created_ms / 1000)
        due_ms = first_start(newest.created_ms if newest else 0, now_ms(), every_s)
        while not _waits(stop, health, due_ms):
            done = attempt(settings, budget_s, stop.is_set)
            if done is None:
                return
            show(done)
            health.detail["last_round"] = msgspec.to_builtins(done)
            due_ms = next_start(done, every_s)


def attempt(settings: Settings, budget_s: float, stopped: Callable[[], bool]) -> Round | None:
    """A round, whatever becomes of it; None when it was stopped."""
    started_ms, began_s = now_ms(), time.monotonic()
    try:
        return retrain_once(settings, budget_s, stopped=stopped)
    except Stopped:
        return None
    except Exception as error:  # the outermost loop: what has failed is told, and tried again
        log.exception("retraining failed", reason=str(error))
        return Round("failed", started_ms, time.monotonic() - began_s, reason=f"{type(error).__name__}: {error}")


def retrain_once(
    settings: Settings,
    budget_s: float,
    step: Step = no_progress,
    *,
    force: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> Round:
    """Train from the topics, beginning from the live release where that fits, and announce what the gate lets through.

    Raises what a training raises, OutOfTime and Stopped."""
    started_ms, began_s = now_ms(), time.monotonic()
    bounded = within(step, budget_s, clock=time.monotonic, stopped=stopped)
    judgement, warm = _train(settings, bounded, read_topic(settings.kafka).live, force=force)
    if judgement.is_announced:
        _remove_old(settings)
    found = Round(
        "announced" if judgement.is_announced else "refused",
        started_ms,
        time.monotonic() - began_s,
        judgement.manifest.version,
        judgement.live,
        warm,
        verdict=judgement.verdict,
    )
    log.info("retrained", outcome=found.outcome, version=found.version, live=found.live, warm=warm)
    return found


def _train(settings: Settings, step: Step, live: str, *, force: bool) -> tuple[Judgement, bool]:
    """Also return whether it began from the live release. One of another shape, or that is not here, is no reason not
    to train."""
    if live:
        try:
            job = TrainingJob(warm_start=live, new_ranker=True)
            return _told(go_live(settings, job, step, force=force)), True
        except (WarmStartError, BundleError) as error:
            log.warning("not begun from the live release", live=live, reason=str(error))
    return _told(go_live(settings, TrainingJob(), step, force=force)), False


def _told(judgement: Judgement | None) -> Judgement:
    assert judgement is not None  # it helps nobody else
    return judgement


def show(done: Round) -> None:
    """Set the metrics of a round."""
    for outcome in OUTCOMES:
        metrics.RETRAIN_OUTCOME.labels(outcome).set(outcome == done.outcome)
    metrics.RETRAIN_ROUNDS.labels(done.outcome).inc()
    metrics.RETRAIN_TIME.set(done.wall_s)
    if done.outcome == "announced":
        metrics.RETRAIN_SUCCESS.set(done.started_ms / 1000 + done.wall_s)
    metrics.RETRAIN_DIFFERENCE.clear()
    for each in done.verdict.findings if done.verdict else ():
        if each.better is not None:
            metrics.RETRAIN_DIFFERENCE.labels(each.metric, each.against).set(each.better)


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
