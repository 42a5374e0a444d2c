"""A round of retraining is known after a kill, and a bundle that has passed is not trained a second time."""

import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from structlog.testing import CapturingLogger

from indexer.rollout import Releases
from infra.operate.going_live.gate import Judgement
from infra.operate.retrain import loop
from infra.operate.retrain.loop import attempt, last_round, now_ms, run_retraining
from infra.operate.retrain.memory import FILE, forget, recall, remember
from infra.operate.retrain.rounds import RETRY_S, UNFINISHED, Round, Stopped, begin, next_start
from infra.platform.settings import Settings
from models.evaluation.gate import Finding, Verdict
from streams.bundles.objects import StoreError
from streams.messages import BundlePublished

FINDING = Finding("recall@10", "live", 0.5, 0.4, 0.1, 0.05, 0.15, 200, worse=False)
BUNDLE = BundlePublished("20260101_000000_1", 1, 8, 40, "")
MANIFEST: Any = SimpleNamespace(version=BUNDLE.version)
REFUSED = Round("refused", 5, 2.0, "v", "old", True, verdict=Verdict("refused", (FINDING,), ("a note",)))


class Scene:
    """Rounds whose training writes no bundle and whose announcement fails while the store is `away`."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings, self.live, self.is_away = Settings(data_dir=directory), "", True
        self.trained, self.announced, self.fails = 0, 0, None
        self.seen: list[Round | None] = []
        monkeypatch.setattr(loop, "read_topic", lambda kafka: SimpleNamespace(live=self.live))
        monkeypatch.setattr(loop, "newest_bundle", lambda directory: BUNDLE)
        monkeypatch.setattr(loop, "announce_newest", lambda settings: self._announce())
        monkeypatch.setattr(loop, "go_live", self._go_live)
        monkeypatch.setattr(loop, "log", CapturingLogger())

    def round(self) -> Round | None:
        return attempt(self.settings, 60.0, lambda: False)

    def _go_live(self, settings: Settings, job: Any, step: Any, *, force: bool, placed: Any) -> Judgement:
        self.trained += 1
        self.seen.append(recall(settings.data_dir))
        if self.fails is not None:
            raise self.fails
        judgement = Judgement(MANIFEST, Verdict("passed"), self.live, True, settings.bundles_dir)
        placed(judgement)
        self._announce()
        return judgement

    def _announce(self) -> str:
        if self.is_away:
            raise StoreError("away", "the store is away")
        self.announced += 1
        return BUNDLE.version


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path / "data", monkeypatch)


def test_a_round_is_read_as_it_was_written_and_what_cannot_be_read_is_none(tmp_path: Path):
    data_dir = tmp_path / "data"
    assert recall(data_dir) is None
    remember(data_dir, REFUSED)
    assert recall(data_dir) == REFUSED and [path.name for path in data_dir.iterdir()] == [FILE]
    (data_dir / FILE).write_text("{")
    assert recall(data_dir) is None
    forget(data_dir)
    assert not list(data_dir.iterdir())


def test_a_round_that_was_killed_has_failed_is_counted_and_waits(scene: Scene):
    scene.fails = KeyboardInterrupt()  # type: ignore[assignment]  # as the kernel would
    with pytest.raises(KeyboardInterrupt):
        scene.round()
    counted = REGISTRY.get_sample_value("nextwatch_retrain_rounds_total", {"outcome": "failed"}) or 0.0
    started_ms = now_ms()
    last = last_round(scene.settings.data_dir)
    assert last is not None and (last.outcome, last.reason) == ("failed", UNFINISHED)
    assert next_start(last, 86_400) >= started_ms + 1000 * RETRY_S - 1
    assert REGISTRY.get_sample_value("nextwatch_retrain_rounds_total", {"outcome": "failed"}) == counted + 1
    assert last_round(scene.settings.data_dir) == last, "and once only"


def test_a_round_leaves_what_became_of_it_and_one_that_was_stopped_nothing(scene: Scene):
    scene.is_away = False
    done = scene.round()
    assert done is not None and done.outcome == "announced" and recall(scene.settings.data_dir) == done
    assert scene.seen[0] is not None and (scene.seen[0].outcome, scene.seen[0].reason) == ("failed", UNFINISHED)
    scene.fails = Stopped()  # type: ignore[assignment]
    assert scene.round() is None and recall(scene.settings.data_dir) == done
    scene.fails = OSError("no space left")  # type: ignore[assignment]
    assert scene.round() == recall(scene.settings.data_dir) != done


def test_a_round_that_cannot_be_written_down_has_failed(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    scene.is_away = False
    scene.round()

    def full(*_: Any) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(loop, "remember", full)
    failed = scene.round()
    assert failed is not None and (failed.outcome, failed.version, scene.trained) == ("failed", "", 1)


def test_while_the_store_is_away_one_bundle_waits_and_none_is_trained_beside_it(scene: Scene):
    for _ in range(3):
        failed = scene.round()
        assert failed is not None and (failed.outcome, failed.version) == ("failed", BUNDLE.version)
        assert failed.reason.startswith("StoreError") and scene.trained == 1
    scene.is_away = False
    done = scene.round()
    assert done is not None and (done.outcome, done.version, done.reason) == ("announced", BUNDLE.version, "")
    assert (scene.trained, scene.announced) == (1, 1) and done.verdict == Verdict("passed")
    scene.round()
    assert scene.trained == 2, "what was announced is over"


def test_a_bundle_that_was_judged_beside_another_release_waits_in_vain(scene: Scene):
    scene.round()
    scene.is_away, scene.live = False, "another"
    done = scene.round()
    assert done is not None and done.outcome == "announced" and scene.trained == 2


def test_no_round_begins_where_somebody_else_has_made_a_release_meanwhile(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
):
    begun_ms = now_ms()
    remember(scene.settings.data_dir, Round("refused", begun_ms - 3_599_800, 1.0))
    fresh = BundlePublished("another", begun_ms, 8, 40, "")
    told, stop, attempts = [Releases(), Releases(bundle=fresh)], threading.Event(), []
    due: list[int] = []

    def waits(stop: threading.Event, health: Any, due_ms: int) -> bool:
        due.append(due_ms)
        return len(due) > 1 or stop.wait(max(0.0, (due_ms - now_ms()) / 1000))

    monkeypatch.setattr(loop, "serve_health", lambda *_, **__: nullcontext())
    monkeypatch.setattr(loop, "read_topic", lambda kafka: told.pop(0))
    monkeypatch.setattr(loop, "attempt", lambda *_: attempts.append(1))
    monkeypatch.setattr(loop, "_waits", waits)
    run_retraining(scene.settings, 3600.0, 60.0, stop)
    assert due == [begun_ms + 200, begun_ms + 3_600_000] and not attempts and not told


def test_what_could_not_be_announced_is_not_forgotten_by_a_round_that_is_killed():
    waits = Round("failed", 5, 2.0, "v", "old", True, "StoreError: away", Verdict("passed"))
    begun = begin(waits, 9)
    assert (begun.version, begun.live, begun.started_ms, begun.reason) == ("v", "old", 9, UNFINISHED)
    assert begin(REFUSED, 9) == begin(None, 9) == Round("failed", 9, 0.0, reason=UNFINISHED)
