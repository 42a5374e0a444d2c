"""Retraining from the topics of a real broker, through the gate; and the loop around it."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from infra.operate.releases import read_topic
from infra.operate.replay import replay
from infra.operate.retrain import loop
from infra.operate.retrain.loop import attempt, now_ms, retrain_once, run_retraining, show
from infra.operate.retrain.rounds import OutOfTime, Round, Stopped
from infra.platform.health import Health
from infra.platform.settings import Settings
from models.evaluation.gate import Finding, Verdict
from models.release.trial import LIVE
from models.retrieval.candidate_learning import Training
from models.retrieval.candidates import CandidateModel
from streams.kafka.releases import announce
from streams.messages import IndexReady
from streams.topics import create_topics
from tests.harness.system import wait_until
from tests.unit.models.samples import RANKER, SETTINGS, taste_log

TOWERS = SETTINGS.model_copy(update={"epochs": 3})
RANKERS = RANKER.model_copy(update={"epochs": 1})
LAST = "nextwatch_retrain_last_outcome"


@pytest.fixture
def settings(kafka: str, make_settings: Callable[..., Settings]) -> Settings:
    made = make_settings(kafka, model=TOWERS.model_dump(), ranker=RANKERS.model_dump())
    create_topics(made.kafka)
    return made


def watch(settings: Settings, directory: Path, rows: int, seed: int, first_ms: int) -> None:
    """Send watches of the small world to `watch-events`."""
    frame = taste_log(rows, 250, 200, seed, first_ms)
    frame.write_parquet(directory / f"{seed}.parquet")
    replay(directory / f"{seed}.parquet", settings, speed=None)


def spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every model that is learnt has its items' vectors exchanged."""
    freeze = Training.freeze

    def spoilt(training: Training, *arguments: Any) -> CandidateModel:
        model = freeze(training, *arguments)
        order = np.random.default_rng(1).permutation(len(model.vectors))
        model.vectors, model.bias = model.vectors[order], model.bias[order] + np.arange(len(order)) % 5
        return model

    monkeypatch.setattr(Training, "freeze", spoilt)


def test_a_release_comes_out_of_the_topics_and_a_spoilt_one_does_not_take_its_place(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    watch(settings, tmp_path, 3000, 3, now_ms() - 3_001_000)
    first = retrain_once(settings, 300.0)
    assert (first.outcome, first.live, first.warm) == ("announced", "", False)
    assert first.verdict is not None and "no release is live yet" in first.verdict.notes[0]
    told = read_topic(settings.kafka)
    assert told.bundle is not None and told.bundle.version == first.version
    announce(settings.kafka, IndexReady(first.version, "a collection", 60, now_ms()))  # as the indexer would

    watch(settings, tmp_path, 500, 4, now_ms() + 1000)
    spoil(monkeypatch)
    second = attempt(settings, 300.0, lambda: False)
    assert second is not None and second.verdict is not None
    assert (second.outcome, second.live, second.warm) == ("refused", first.version, True)
    worse = {each.metric: each for each in second.verdict.findings if each.worse and each.against == LIVE}
    assert worse["recall@10"].better < 0 and worse["recall@10"].high < 0 and worse["recall@10"].users > 100
    told = read_topic(settings.kafka)
    assert told.bundle is not None and told.bundle.version == first.version, "nothing else was announced"
    show(second)
    better = {"metric": "recall@10", "against": LIVE}
    assert REGISTRY.get_sample_value("nextwatch_retrain_better_by", better) == worse["recall@10"].better


def test_a_round_without_watches_fails_with_its_reason_and_one_that_is_stopped_is_none(
    settings: Settings, tmp_path: Path
):
    failed = attempt(settings, 300.0, lambda: False)
    assert failed is not None and failed.outcome == "failed" and failed.reason.startswith("LogError: watch-events")
    watch(settings, tmp_path, 300, 3, now_ms() - 20_000)
    with pytest.raises(OutOfTime):
        retrain_once(settings, 0.0)
    with pytest.raises(Stopped):
        retrain_once(settings, 300.0, stopped=lambda: True)
    assert attempt(settings, 300.0, lambda: True) is None
    assert not list(settings.bundles_dir.iterdir()), "what was begun is gone"


def test_the_loop_tells_prometheus_and_its_page_and_ends_when_it_is_asked_to(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    finding = Finding("recall@100", LIVE, 0.5, 0.4, 0.1, 0.05, 0.15, 200, worse=False)
    rounds = [
        Round("failed", now_ms(), 1.0, reason="LogError: no watches"),
        Round("announced", now_ms(), 7.0, "v", verdict=Verdict("passed", (finding,))),
    ]
    healths, stop = [], threading.Event()
    monkeypatch.setattr(loop, "attempt", lambda *_: rounds.pop(0))
    monkeypatch.setattr(loop, "next_start", lambda *_: now_ms() + (0 if rounds else 3_600_000))
    monkeypatch.setattr(loop, "Health", lambda *a, **k: healths.append(made := Health(*a, **k)) or made)
    thread = threading.Thread(daemon=True, target=run_retraining, args=(settings, 3600.0, 60.0, stop))
    thread.start()
    wait_until(lambda: bool(healths) and healths[0].detail.get("last_round", {}).get("version") == "v", "rounds", 20)
    stop.set()
    thread.join(20)
    assert not thread.is_alive() and not rounds
    sample = REGISTRY.get_sample_value
    assert sample(LAST, {"outcome": "announced"}) == 1 and sample(LAST, {"outcome": "failed"}) == 0
    assert sample("nextwatch_retrain_duration_seconds") == 7 and sample("nextwatch_retrain_interval_seconds") == 3600
    assert sample("nextwatch_retrain_last_success_timestamp_seconds") == pytest.approx(time.time(), abs=60)
    assert sample("nextwatch_retrain_better_by", {"metric": "recall@100", "against": LIVE}) == 0.1
