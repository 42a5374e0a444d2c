"""Two trainers in one group: one learns, one stands by; whatever becomes of the first, the rows are one trainer's.

One story, told in order by the tests of this file on the same two processes: a long step, a crash, a pause, a row that
a paused one still writes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest

from infra.operate.status import fetch_samples
from infra.operate.training import published
from infra.platform.guarded_process import GuardedProcess
from infra.platform.health import fetch_health
from infra.platform.run_files import read_run_files
from infra.platform.settings import Settings, Trainer
from models.release.bundle import read_bundle
from streams import topics
from streams.epochs import Epochs, mark
from streams.kafka.releases import announce
from streams.messages import ItemVector, TrainingExample, decode, encode
from streams.topics import partition_of
from streams.trainer.learner import Learner, batches
from streams.trainer.progress import PROGRESS_KEY, Progress
from tests.harness.needs import KAFKA, needs, require_kafka
from tests.harness.slow_trainer import GATE, SLOW
from tests.harness.system import Cluster, own_settings, process, wait_for_health, wait_until
from tests.harness.traffic import Histories, Reader, Traffic, total_of, vector_of
from tests.unit.serving.worlds import ITEMS, train_small
from tests.unit.streams.trainer.test_learner import example

pytestmark = needs(KAFKA, "noida lets no second member into a group")

PARTITIONS = 3
SESSION_S = 10.0  # the default
BATCH = 16
PATIENCE_S = 120.0
TAKE_OVER_S = 20.0 if os.getloadavg()[0] < 6 else PATIENCE_S  # of what is measured elsewhere a busy machine says little


@dataclass
class Story:
    """The two trainers, what was sent to them and what they have written."""

    settings: Settings
    version: str
    stack: contextlib.ExitStack
    traffic: Traffic
    reader: Reader
    processes: dict[str, GuardedProcess] = field(default_factory=dict)
    sent: list[TrainingExample] = field(default_factory=list)

    def start(self, name: str, worker: str = "trainer") -> GuardedProcess:
        command = [sys.executable, "-m", "tests.harness.slow_trainer", "worker", worker]
        self.processes[name] = self.stack.enter_context(process(self.settings, name, command))
        return self.processes[name]

    def health(self, name: str) -> dict[str, Any]:
        return fetch_health(self._run_file(name))

    def owner(self) -> str | None:
        """Which of the two is the trainer while the other one stands by and holds no epoch; None: not so now."""
        told = {name: self.health(name) for name in ("first", "second")}
        ours = [name for name, health in told.items() if health.get("role") == "active" and health.get("epoch")]
        idle = [name for name, health in told.items() if health.get("role") == "standby" and not health.get("epoch")]
        return ours[0] if len(ours) == len(idle) == 1 else None

    def rebalances(self, name: str) -> float:
        return fetch_samples(self._run_file(name)).get(("nextwatch_rebalances_total", ()), 0.0)

    def lag(self, name: str) -> float:
        """Messages that this trainer says it has not handled yet."""
        samples = fetch_samples(self._run_file(name)).items()
        return sum(value for (what, _), value in samples if what == "nextwatch_consumer_lag_messages")

    def send(self, *item_ids: str) -> None:
        """Examples of these items, of one user after the other."""
        for item_id in item_ids:
            self.sent.append(example(item_id, len(self.sent)))
            self.traffic.send_later(topics.TRAINING_EXAMPLES, "u", encode(self.sent[-1]))
        self.traffic.flush()

    def rows(self) -> dict[bytes, Any]:
        """The records that count, newest by key, as every reader takes them."""
        epochs, rows = Epochs(), {}
        for record in sorted(self.reader.to_the_end(), key=lambda record: (record.partition, record.offset)):
            if epochs.take(record):
                rows[record.key] = record
        return rows

    def wait_compactable(self) -> None:
        """Return when the newest record of each key is the one that counts: what compaction leaves is all of it."""

        def look() -> bool:
            rows, newest = self.rows(), self.reader.newest()
            return all(newest[key].offset == record.offset for key, record in rows.items())

        wait_until(look, "nothing stale above a row that counts", PATIENCE_S)

    def learnt(self) -> int:
        """How far the rows that count have learnt."""
        record = self.rows().get(PROGRESS_KEY)
        return 0 if record is None else progress_of(record.value).next_offset

    def wait_learnt(self) -> None:
        wait_until(lambda: self.learnt() >= len(self.sent), f"{len(self.sent)} examples learnt", PATIENCE_S)

    def _run_file(self, name: str) -> dict[str, Any]:
        pid = self.processes[name].pid
        return next(each for each in read_run_files(self.settings.run_dir) if each["pid"] == pid)


@pytest.fixture(scope="module")
def story(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    data_dir, of_kafka = tmp_path_factory.mktemp("trainers"), {"partitions": PARTITIONS, "session_timeout_s": SESSION_S}
    settings = own_settings(kafka, data_dir, kafka=of_kafka, trainer=Trainer(batch=BATCH, publish_s=1.0))
    manifest = train_small(settings.bundles_dir)
    announce(settings.kafka, published(manifest))
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv(GATE, str(settings.data_dir / "gate"))
        parts = Traffic(settings.kafka), Reader(settings.kafka, topics.ITEM_VECTORS)
        for part in parts:
            stack.callback(part.close)
        story = Story(settings, manifest.version, stack, *parts)
        wait_for_health(settings, story.start("first"))
        yield story


@pytest.fixture(autouse=True)
def only_the_real_broker(broker: Any) -> None:
    require_kafka(broker.kind, "noida lets no second member into a group")


def test_a_step_that_is_longer_than_a_session_loses_nothing_also_when_a_standby_joins_meanwhile(story: Story):
    story.send("item-1", "item-2")
    story.wait_learnt()
    wait_until(lambda: story.lag("first") == 0, "no lag", PATIENCE_S)
    before = story.rebalances("first")
    story.send(SLOW, "item-3")
    began_s = time.monotonic()
    wait_for_health(story.settings, story.start("second"))
    assert story.health("first")["role"] == "active" and story.health("second")["role"] == "standby"
    wait_until(lambda: time.monotonic() - began_s > 1.2 * SESSION_S, "longer than a session", PATIENCE_S)
    assert story.learnt() < len(story.sent), "the step is still going on"
    assert story.lag("first") == 2, "what was read and is not learnt counts"
    (story.settings.data_dir / "gate").touch()
    story.wait_learnt()
    wait_until(lambda: story.lag("first") == 0, "no lag", PATIENCE_S)
    assert story.rebalances("first") == before + 1, "the one that let the standby in"
    assert story.health("first")["epoch"] == 1, "it had no reason to claim again"


def test_killed_workers_are_replaced_within_20_s_and_the_rows_are_one_trainers(story: Story, capsys):
    users = [
        next(f"u{n}" for n in range(99) if partition_of(f"u{n}", PARTITIONS) == home) for home in range(PARTITIONS)
    ]
    histories = [story.start(f"history-{number}", "history") for number in (1, 2)]
    wait_for_health(story.settings, *histories)
    with Cluster(story.settings.kafka) as cluster:
        wait_until(lambda: cluster.is_settled("history", 2), "both history workers at work", PATIENCE_S)
    rng = np.random.default_rng(1)
    story.send(*(ITEMS[number] for number in rng.integers(0, 20, 600)))
    wait_until(lambda: story.learnt() > 200, "some of it learnt", PATIENCE_S, every_s=0.01)
    for name in ("first", "history-1"):
        story.processes[name].kill()
    killed_s, at_kill = time.monotonic(), story.learnt()
    story.send("item-30")
    for user in users:
        story.traffic.watch(user, "glimpsed", watch_s=1.0)  # too short for an example
    with contextlib.closing(Histories(story.settings.kafka)) as read, ThreadPoolExecutor(1) as beside:
        learnt = beside.submit(lambda: story.wait_learnt() or time.monotonic() - killed_s)
        wait_until(lambda: read.to_the_end() and len(read.newest()) == len(users), "all histories", PATIENCE_S)
        took_s = {"history": time.monotonic() - killed_s, "trainer": learnt.result()}
    with capsys.disabled():
        told = ", ".join(f"{worker} {seconds:.1f} s" for worker, seconds in took_s.items())
        print(f"\nkilled at {at_kill} of {len(story.sent)} examples; what was sent after it is handled after: {told}")
    assert max(took_s.values()) < TAKE_OVER_S
    assert (story.health("second")["role"], story.health("second")["epoch"]) == ("active", 2)
    story.processes["history-2"].kill()
    check_rows(story)


def test_a_paused_trainer_that_goes_on_changes_nothing_and_says_so(story: Story):
    """It learns that it was replaced before it writes another row. Whom the group then gives the partition is the
    group's choice, and may be the one that was away: then it claims again, in good order, and the other stands by."""
    wait_for_health(story.settings, story.start("first"))
    assert story.health("first")["role"] == "standby"
    rng = np.random.default_rng(2)
    begun = len(story.sent) + 100
    story.send(*(ITEMS[number] for number in rng.integers(0, 20, 400)))
    wait_until(lambda: story.learnt() > begun, "some of it learnt", PATIENCE_S, every_s=0.01)
    paused = story.processes["second"]
    os.kill(paused.pid, signal.SIGSTOP)
    try:
        story.send("item-31")
        story.wait_learnt()
        assert (story.health("first")["role"], story.health("first")["epoch"]) == ("active", 3)
    finally:
        os.kill(paused.pid, signal.SIGCONT)
    wait_until(lambda: "standing by" in paused.tail(200), "it says that it was replaced", PATIENCE_S)
    wait_until(lambda: story.owner() is not None, "one trainer and one standby", PATIENCE_S)
    story.send("item-32", "item-1")
    story.wait_learnt()
    both = ("first", "second")
    wait_until(lambda: all(story.health(name)["ready"] for name in both), "no more rebalance", PATIENCE_S)
    wait_until(lambda: story.owner() is not None, "still one trainer and one standby", PATIENCE_S)
    claimed = max(story.health(name)["epoch"] for name in both)
    assert paused.poll() is None and claimed in (3, 4), "it is claimed again at most once"
    story.wait_compactable()
    check_rows(story)


def test_what_a_replaced_trainer_still_writes_is_written_over_before_compaction_takes_the_good_row(story: Story):
    """The last instant: it had looked, was paused, and sends when it goes on. Compaction keeps the newest record of a
    key, so that has to be the good one again."""
    before = {key: decode(ItemVector, record.value) for key, record in story.rows().items()}
    row = msgspec.structs.replace(before[b"item-1"], epoch=2, step=10**6, state=before[b"item-2"].state)
    progress = msgspec.structs.replace(before[PROGRESS_KEY], epoch=2, state=msgspec.msgpack.encode(Progress(5, {})))
    stale = {b"item-1": (encode(row), []), PROGRESS_KEY: (encode(progress), []), b"item-2": (None, [mark(2)])}
    for key, (value, headers) in stale.items():
        place = partition_of(key.decode(), PARTITIONS)
        story.traffic.send(topics.ITEM_VECTORS, key.decode(), value, partition=place, headers=headers)
    seen = {key: decode(ItemVector, record.value) for key, record in story.rows().items()}
    assert {key: total_of(seen[key]) for key in (b"item-1", b"item-2")} == {
        key: total_of(before[key]) for key in (b"item-1", b"item-2")
    }, "a reader that starts now does not see them"
    story.wait_compactable()
    check_rows(story)
    assert story.learnt() == len(story.sent)


def check_rows(story: Story) -> None:
    """The rows are those of one trainer that has learnt all that was sent."""
    alone = Learner(read_bundle(story.settings.bundles_dir / story.version), {}, story.settings.trainer, seed=1)
    expected: dict[bytes, Any] = {}
    for batch in batches(enumerate(story.sent), BATCH):
        expected |= dict(alone.learn(batch, evaluate=False).rows)
    expected |= dict(alone.due(float("inf")).rows)
    rows = {key: decode(ItemVector, record.value) for key, record in story.rows().items()}
    more = Counter({key: total_of(rows[key]) - total_of(row) for key, row in expected.items()})
    assert set(more.values()) == {0}, "none is skipped, and none counts twice"
    for key, row in expected.items():
        assert np.linalg.norm(vector_of(rows[key])[:-1] - vector_of(row)[:-1]) < 0.2, key


def progress_of(value: bytes) -> Progress:
    return msgspec.msgpack.decode(decode(ItemVector, value).state, type=Progress)
