"""Two trainers while an experiment serves another release beside the live one: the one that is at work learns both, a
clean stop publishes both, and its successor goes on with both."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from infra.operate.status import fetch_samples
from infra.operate.training import published
from infra.platform.guarded_process import GuardedProcess
from infra.platform.health import fetch_health
from infra.platform.run_files import read_run_files
from infra.platform.settings import Settings, Trainer
from streams import topics
from streams.kafka.releases import announce
from streams.messages import Experiment, ItemVector, Variant, decode, encode
from streams.trainer.progress import PROGRESS_KEY, Progress
from tests.harness.needs import KAFKA, needs
from tests.harness.system import own_settings, process, wait_for_health, wait_until
from tests.harness.traffic import Reader, Traffic
from tests.unit.serving.worlds import train_small
from tests.unit.streams.trainer.test_learner import example

pytestmark = needs(KAFKA, "noida lets no second member into a group")

COMMAND = [sys.executable, "-m", "infra.cli", "worker", "trainer"]
PATIENCE_S = 60.0


def health(settings: Settings, trainer: GuardedProcess) -> dict[str, Any]:
    return fetch_health(run_file(settings, trainer))


def measured(settings: Settings, trainer: GuardedProcess, name: str, **labels: str) -> float:
    return fetch_samples(run_file(settings, trainer)).get((name, tuple(labels.items())), 0.0)


def received(settings: Settings, trainer: GuardedProcess) -> float:
    return measured(settings, trainer, "nextwatch_messages_received_total", topic=topics.TRAINING_EXAMPLES)


def run_file(settings: Settings, trainer: GuardedProcess) -> dict[str, Any]:
    return next(each for each in read_run_files(settings.run_dir) if each["pid"] == trainer.pid)


def learnt(settings: Settings) -> list[tuple[str, Progress]]:
    """The version and the published progress of the live release and of the one beside it."""
    found = []
    for topic in (topics.ITEM_VECTORS, topics.RIVAL_VECTORS):
        reader = Reader(settings.kafka, topic)
        record = {each.key: each for each in reader.to_the_end()}.get(PROGRESS_KEY)
        reader.close()
        if record is not None:
            row = decode(ItemVector, record.value)
            found.append((row.version, msgspec.msgpack.decode(row.state, type=Progress)))
    return found


def test_the_trainer_at_work_learns_both_publishes_both_and_its_successor_goes_on(kafka: str, tmp_path: Path):
    patient = Trainer(batch=4, step_s=7200, publish_s=7200)
    settings = own_settings(kafka, tmp_path, kafka={"partitions": 2}, trainer=patient)
    live, other = (train_small(settings.bundles_dir, seed) for seed in (1, 2))
    announce(settings.kafka, published(live))
    experiment = Experiment(
        "e", "s", 1, (Variant("a", 0.5), Variant("b", 0.5, {"release": other.version})), beside=other.version
    )
    traffic = Traffic(settings.kafka)

    def send(*item_ids: str, start: int) -> None:
        for at, item_id in enumerate(item_ids, start):
            traffic.send_later(topics.TRAINING_EXAMPLES, "u", encode(example(item_id, at)))
        traffic.flush()

    with process(settings, "first", COMMAND) as first:
        wait_for_health(settings, first)
        assert health(settings, first)["rival"] == ""
        announce(settings.kafka, experiment)
        wait_until(lambda: health(settings, first)["rival"] == other.version, "it learns both", PATIENCE_S)
        with process(settings, "second", COMMAND) as second:
            wait_for_health(settings, second)
            send("item-1", "item-2", "item-1", start=0)  # fewer than a step
            wait_until(lambda: received(settings, first) == 3, "all is read", PATIENCE_S)
            wait_until(
                lambda: measured(settings, first, "nextwatch_rival_lag_examples") == 3, "they wait", PATIENCE_S, 0.5
            )
            assert [progress for _, progress in learnt(settings)] == [Progress(), Progress()]
            assert health(settings, second)["rival"] == ""
            assert first.stop() == 0
            assert learnt(settings) == [(each.version, Progress(3, {0: 2})) for each in (live, other)]
            wait_until(lambda: health(settings, second)["rival"] == other.version, "so does the next", PATIENCE_S)
            send("item-5", "item-6", start=3)
            wait_until(lambda: received(settings, second) == 2, "all is read", PATIENCE_S)
            announce(settings.kafka, replace(experiment, stopped_ms=2))
            wait_until(lambda: health(settings, second)["rival"] == "", "it is over", PATIENCE_S)
            assert health(settings, second)["role"] == "active" and not health(settings, second)["rival_refused"]
            assert second.stop() == 0
    traffic.close()
    (of_live, live_progress), (of_other, _) = learnt(settings)
    assert (of_live, of_other, live_progress) == (live.version, other.version, Progress(5, {0: 4}))
