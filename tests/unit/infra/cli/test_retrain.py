"""`nextwatch retrain`, as a person or a timer calls it."""

import json
from typing import Any

import pytest

from infra.operate.retrain import loop
from infra.operate.retrain.rounds import OutOfTime, Round
from models.evaluation.gate import Verdict
from tests.unit.infra.command import commands


@pytest.fixture
def retrain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("NEXTWATCH_KAFKA__BOOTSTRAP", "127.0.0.1:1")
    monkeypatch.setattr("infra.platform.kafka_access.require_access", lambda kafka: None)
    monkeypatch.setattr("streams.kafka.requirements.require_settings", lambda *_: None)
    return commands(monkeypatch, capsys, "retrain")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give --every TIME, or --once"),
        (("--every", "6h", "--once"), "give --every TIME, or --once"),
        (("--every", "6"), "--every is a time such as"),
        (("--once", "--budget", "soon"), "--budget is a time such as"),
        (("--every", "6h", "--force"), "--force goes with --once"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_asked(retrain, arguments: tuple[str, ...], says: str):
    done = retrain(*arguments)
    assert done.code == 2 and says in done.err


def test_a_script_can_tell_what_became_of_it(retrain, monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, Any] = {}

    def once(settings: Any, budget_s: float, step: Any, *, force: bool) -> Round:
        asked.update(budget_s=budget_s, force=force)
        return Round("announced" if force else "refused", 1, 2.0, "v", "old", True, verdict=Verdict("refused"))

    monkeypatch.setattr(loop, "retrain_once", once)
    refused = retrain("--once", "--budget", "30m", "--json")
    assert refused.code == 3 and json.loads(refused.out)["outcome"] == "refused" and asked["budget_s"] == 1800
    shown = retrain("--once")
    assert shown.code == 3 and "begun from the live release" in shown.out and "old stays live" in shown.out
    assert retrain("--once", "--force").code == 0 and asked["force"]


def test_a_training_that_is_out_of_time_is_one_line(retrain, monkeypatch: pytest.MonkeyPatch):
    def late(*_: Any, **__: Any) -> Round:
        raise OutOfTime("not done within --budget")

    monkeypatch.setattr(loop, "retrain_once", late)
    done = retrain("--once")
    assert done.code == 2 and done.err.strip().count("\n") == 0 and "--budget" in done.err


def test_every_runs_the_loop_until_it_is_stopped(retrain, monkeypatch: pytest.MonkeyPatch):
    given: list[Any] = []
    monkeypatch.setattr(loop, "run_retraining", lambda settings, *rest: given.append(rest[:2]))
    assert retrain("--every", "6h").code == 0 and given == [(21_600.0, 21_600.0)]
