"""What the system needs is away for a while: nothing is lost or doubled, nothing grows, and it goes on by itself.

One system with every process on a broker and a Milvus of its own. The long form: `python -m tests.benchmarks outages`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from kafka import KafkaProducer
from kafka.errors import KafkaError

from indexer.collection import Index
from indexer.errors import IndexUnavailable
from infra.local.broker import Broker, start_broker
from infra.local.milvus_server import start_milvus
from infra.local.processes import service_part
from infra.local.stack import milvus_answers
from infra.local.supervisor import Supervisor
from infra.platform.kafka_clients import client_options, close_producer, kafka_python_options
from infra.platform.run_files import fill_in
from infra.platform.settings import Kafka, Milvus, Settings
from nextwatch_client import RecommendClient, RequestFailed
from nextwatch_client import client as client_module
from streams import topics
from tests.harness.beside import beside
from tests.harness.needs import KAFKA, LIBFAKETIME, MOUNT, lack, needs, require
from tests.harness.outages import Replies, System, running_outages
from tests.harness.system import read_metrics, stopping, wait_until
from tests.harness.traffic import Reader

pytestmark = needs(KAFKA, "noida loses what it has acknowledged when it is killed")

AWAY_S = 7.0  # longer than a session
WATCHES_PER_S, REQUESTS_PER_S = 30.0, 4.0
MOST_GROWN_MB = 150.0  # of a process, in these seconds: what it holds is bounded, its first use of everything included
PATIENCE_S = 120.0
LATE_S = 4.0  # longer than a search may take, shorter than another call
IN_USE = "nextwatch_index_in_use"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System[Broker]]:
    with running_outages(tmp_path_factory.mktemp("outages")) as system:
        yield system


def live_through(system: System[Broker], outage: contextlib.AbstractContextManager[object]) -> tuple[Replies, float]:
    """Load before, during and after; what became of the requests, and the seconds until everything works again."""
    with system.watching(WATCHES_PER_S), system.asking(REQUESTS_PER_S) as asked, system.growing() as grown:
        time.sleep(1.0)
        with outage:
            time.sleep(AWAY_S)
        again_s = system.wait_until_it_works()["request"]
    assert max(grown.values()) < MOST_GROWN_MB, grown
    assert all(process.poll() is None for process in system.processes.values()), "nobody had to be started again"
    return Replies.of(asked), again_s


def unready(system: System[Broker]) -> list[str]:
    return [name for name, health in system.service.health().items() if not health["ready"]]


def check_counts(system: System[Broker]) -> None:
    counted = system.count()
    assert counted.is_exact, counted
    assert counted.watches > WATCHES_PER_S * AWAY_S / 2


def test_milvus_is_away_and_servers_answer_while_the_indexer_waits(system: System[Broker]):
    def says_so() -> bool:
        return any("Milvus" in reason for reason in system.service.health()["indexer"]["reasons"])

    @contextlib.contextmanager
    def away() -> Iterator[None]:
        with system.killed(system.milvus):
            yield
            wait_until(says_so, "the indexer says what it waits for", PATIENCE_S)

    replies, _ = live_through(system, away())
    assert replies.unanswered == replies.told == 0
    check_counts(system)


def test_a_milvus_that_is_late_or_cut_off_is_passed_round_and_is_used_again_afterwards(system: System[Broker]):
    """Its answers come later than a search may take, then nobody reaches it."""

    @contextlib.contextmanager
    def bad_line() -> Iterator[None]:
        with system.line.late(LATE_S):
            time.sleep(AWAY_S)
        with system.line.cut():
            yield

    replies, _ = live_through(system, bad_line())
    assert replies.unanswered == replies.told == 0 and replies.by_mirror > 0
    assert replies.median_s < LATE_S, "they did not wait for it"
    check_counts(system)
    with system.asking(REQUESTS_PER_S):
        wait_until(lambda: read_metrics(system.settings, "serving")[IN_USE] == 1, "the index in use", PATIENCE_S)


def test_a_broker_that_stands_still_loses_nothing_and_its_clients_are_told_or_answered(
    system: System[Broker], monkeypatch
):
    """It takes connections and answers nothing. Every session is over when it goes on. One client gives up early: its
    requests fail with a reason, and it serves again when the broker does."""
    monkeypatch.setattr(client_module, "SEND_S", 3.0)
    with RecommendClient(client_options(system.settings.kafka)) as impatient:
        user = next(iter(system.releases.histories))
        assert impatient.recommend(user, timeout_s=PATIENCE_S, retries=20).items
        monkeypatch.undo()
        told: list[str] = []

        def ask_on(stop: threading.Event) -> None:
            while not stop.wait(0.5):
                try:
                    impatient.recommend(user, timeout_s=5.0, retries=0)
                except RequestFailed as error:
                    told.append(str(error))

        @contextlib.contextmanager
        def stands_still() -> Iterator[None]:
            with system.stopped(system.broker.process.pid), beside(ask_on, "impatient"):
                yield

        replies, _ = live_through(system, stands_still())
        assert told and all("could not be sent" in each or "acknowledged" in each for each in told)
        assert impatient.recommend(user, timeout_s=PATIENCE_S, retries=20).items, "the client has survived it"
    assert replies.unanswered == replies.told == 0
    check_counts(system)


def test_slow_consumers_harm_nobody_else(system: System[Broker]):
    """A client that does not read its replies and an indexer that stands still for longer than its session."""
    script = "import sys; from tests.harness.outages import ask_and_wait; ask_and_wait(*sys.argv[1:])"
    user = next(iter(system.releases.histories))
    command = [sys.executable, "-c", script, system.settings.kafka.bootstrap, "2", user, "200"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, text=True, start_new_session=True) as slow:
        assert slow.stdout is not None
        assert slow.stdout.readline() == "sent\n"

        @contextlib.contextmanager
        def standing() -> Iterator[None]:
            with system.stopped(slow.pid), system.stopped(system.processes["indexer"].pid):
                yield
                wait_until(lambda: unready(system) == ["indexer"], "all but the indexer ready", PATIENCE_S)

        replies, _ = live_through(system, standing())
        assert slow.stdout.readline() == "200 answered\n", "its replies were kept for it"
    assert replies.unanswered == replies.told == 0
    check_counts(system)


def test_clocks_that_jump_by_an_hour_lose_nothing_and_refuse_nothing(system: System[Broker]):
    """Forward, then back behind the right time, then right: those of players and brokers did not jump."""
    clock = system.clock
    require(LIBFAKETIME)
    assert clock is not None

    @contextlib.contextmanager
    def jumping() -> Iterator[None]:
        with clock.jumped(3600):
            time.sleep(AWAY_S / 2)
            clock.jump(-3600)
            yield

    replies, _ = live_through(system, jumping())
    assert replies.unanswered == replies.told == 0
    check_counts(system)
    with contextlib.closing(Reader(system.settings.kafka, topics.DEAD_LETTERS)) as letters:
        assert letters.to_the_end() == []


# --- full disks ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(directory: Path, size_mb: int) -> Iterator[None]:
    """A file system of its own in memory at `directory`, as large as that."""
    directory.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(directory)], capture_output=True, check=False
    )
    if mounted.returncode:
        lack(MOUNT)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(directory: Path, leave: int) -> Path:
    """A file that takes all of the disk but `leave` bytes."""
    hog = directory / "hog"
    room = os.statvfs(directory)
    with hog.open("wb") as file:
        left = room.f_bavail * room.f_frsize - leave
        for _ in range(left // 1_000_000):
            file.write(bytes(1_000_000))
    return hog


def test_a_broker_whose_disk_is_full_says_so_and_has_all_that_it_acknowledged_when_there_is_room(tmp_path: Path):
    """It ends, as Kafka does; the supervisor tells why, and starts it again until there is room."""
    with small_disk(tmp_path / "kafka", 300):
        broker = start_broker(Settings(data_dir=tmp_path, kafka=Kafka(partitions=1)))
        said: list[str] = []
        with Supervisor(lambda process, what: said.append(f"{process} {what}")) as supervisor:
            supervisor.add(service_part(broker), broker.process)
            settings = fill_in(broker.settings, broker.bootstrap, "")
            topics.create_topics(settings.kafka)
            hog = fill(tmp_path / "kafka", 2_000_000)
            with producing(settings) as produce:
                acknowledged = set(itertools.takewhile(produce, itertools.count()))
            wait_until(lambda: any("is full" in each for each in said), "the reason is told", PATIENCE_S)
            hog.unlink()
            wait_until(lambda: supervisor.process("broker") is not None and broker.is_ready(), "ready", PATIENCE_S)
            with contextlib.closing(Reader(settings.kafka, topics.DEAD_LETTERS)) as reader:
                found = {int(record.key) for record in reader.to_the_end()}
            assert acknowledged and acknowledged <= found
            with producing(settings) as produce:
                wait_until(lambda: produce(10_000), "it takes more", PATIENCE_S)


@contextlib.contextmanager
def producing(settings: Settings) -> Iterator[Callable[[int], bool]]:
    """Whether 50 kB of noise under a number are acknowledged within three seconds."""
    producer = KafkaProducer(
        **kafka_python_options(settings.kafka),
        acks="all",
        enable_idempotence=False,
        request_timeout_ms=2000,
        delivery_timeout_ms=3000,
        max_block_ms=3000,
    )

    def produce(number: int) -> bool:
        name = settings.kafka.topic_prefix + topics.DEAD_LETTERS
        try:
            producer.send(name, os.urandom(50_000), key=str(number).encode()).get(timeout=10)
        except KafkaError:
            return False
        return True

    yield produce
    with contextlib.suppress(KafkaError):
        close_producer(producer, 1.0)


def test_a_milvus_whose_disk_is_full_refuses_writes_and_keeps_all_that_it_took_over_a_crash_afterwards(tmp_path: Path):
    """Half a record lies in its log then: what is written behind it must be found after a crash all the same."""
    rng = np.random.default_rng(1)
    with (
        small_disk(tmp_path / "milvus", 40),
        stopping(start_milvus(Settings(data_dir=tmp_path), probe=milvus_answers)) as server,
        contextlib.closing(Index(Milvus(uri=server.uri, timeout_s=10))) as index,
    ):
        written: dict[str, np.ndarray] = {}

        def write(first: int) -> None:
            ids = [f"i{number}" for number in range(first, first + 200)]
            vectors = rng.normal(size=(200, 64)).astype(np.float32)
            index.upsert("v1", ids, vectors, [1] * 200)
            written.update(zip(ids, vectors, strict=True))

        index.create("v1", 64)
        write(0)
        index.flush("v1")
        hog = fill(tmp_path / "milvus", 1_500_000)
        with pytest.raises(IndexUnavailable, match="No space left"):
            for number in range(1, 100):
                write(200 * number)
        assert index.search("v1", rng.normal(size=(1, 64)).astype(np.float32), 10)[0][0], "it answers meanwhile"
        hog.unlink()
        write(50_000)
        write(60_000)
        server.process.kill()
        server.restart()
        wait_until(server.is_ready, "Milvus", PATIENCE_S)
        index.load("v1")
        found = index.vectors("v1", list(written))
        assert [item for item in written if item not in found] == []
        assert all(np.allclose(found[item][1], vector, atol=1e-5) for item, vector in written.items())
