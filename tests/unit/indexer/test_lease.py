"""The right to write, on a real broker of each kind."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

import pytest

from indexer import lease as lease_module
from indexer.lease import GroupRole, IndexerLease
from indexer.offset_tracker import OffsetTracker
from infra.platform.settings import Kafka, Settings
from streams import topics
from streams.write_permit import Fenced
from tests.harness.needs import KAFKA, needs
from tests.harness.system import with_section

pytestmark = pytest.mark.system

PATIENCE_S = 60.0


@pytest.fixture
def kafka(kafka_settings: Settings) -> Iterator[Kafka]:
    kafka = with_section(kafka_settings, "kafka", session_timeout_s=6.0).kafka
    topics.create_topics(kafka)
    yield kafka


@pytest.mark.parametrize("where", ["on the same host", "elsewhere"])
def test_one_holds_the_lease_and_a_newcomer_does_not_take_it(kafka: Kafka, tmp_path: Path, where: str) -> None:
    first = IndexerLease(kafka, tmp_path)
    assert first.acquire(PATIENCE_S)
    second = IndexerLease(kafka, tmp_path if where == "on the same host" else tmp_path / "elsewhere")
    assert not second.acquire(2.0)
    first.check(threading.Event())
    first.close()
    assert second.acquire(PATIENCE_S)
    second.check(threading.Event())
    second.close()


def test_polls_that_are_shorter_than_a_join_lose_no_lease(
    kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "_POLL_MS", 5)  # as on a machine that is two hundred times slower
    for number in range(3):
        lease = IndexerLease(kafka, tmp_path / str(number))
        assert lease.acquire(PATIENCE_S)
        time.sleep(1.0)  # the group does not choose again over what it knew when it chose
        assert lease.acquire(1.0)
        lease.close()


def test_who_has_left_holds_nothing(kafka: Kafka, tmp_path: Path) -> None:
    lease = IndexerLease(kafka, tmp_path)
    assert lease.acquire(PATIENCE_S)
    lease.close()
    with pytest.raises(Fenced):
        lease.check(threading.Event())


HOLDER = """
import pathlib, sys, threading, time
from indexer.lease import IndexerLease
from infra.platform.settings import Kafka
from streams.write_permit import Fenced
kafka = Kafka(bootstrap=sys.argv[1], topic_prefix=sys.argv[2], session_timeout_s=6)
lease, stop = IndexerLease(kafka, pathlib.Path(sys.argv[3])), threading.Event()
print(lease.acquire(60), flush=True)
late, resumed, before = 0, False, time.monotonic()
try:
    while True:
        lease.check(stop)
        late += resumed  # one in which a pause fell has looked before it
        now = time.monotonic()
        resumed, before = resumed or now - before > 3, now
except Fenced:
    print(late, flush=True)
"""


@contextmanager
def holder(kafka: Kafka, run_dir: Path) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A process that holds the lease and looks all the time whether it does; when it does not any more, it says how
    often it was told so after a pause. And what it says."""
    command = [sys.executable, "-c", HOLDER, kafka.bootstrap, kafka.topic_prefix, str(run_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"True\n"
            yield process, process.stdout
        finally:
            process.kill()


def test_who_is_started_again_after_a_crash_has_it_at_once(kafka: Kafka, tmp_path: Path) -> None:
    with holder(kafka, tmp_path) as (crashing, _):
        crashing.kill()
    lease = IndexerLease(kafka, tmp_path)
    assert lease.acquire(5.0)
    lease.check(threading.Event())
    lease.close()


@needs(KAFKA, "noida does not take a partition from a member that has fallen silent")
@pytest.mark.parametrize("other_then", ["goes on", "leaves again"])
def test_who_was_paused_while_another_took_over_does_not_write_once_more(
    kafka: Kafka, tmp_path: Path, other_then: str
) -> None:
    with holder(kafka, tmp_path / "paused") as (paused, told):
        paused.send_signal(signal.SIGSTOP)
        other = IndexerLease(kafka, tmp_path)
        assert other.acquire(PATIENCE_S)
        time.sleep(1.0)
        if other_then == "leaves again":  # so the first one has it once more, but may not trust what it knew
            other.close()
        paused.send_signal(signal.SIGCONT)
        given_up = threading.Timer(PATIENCE_S, paused.kill)
        given_up.start()
        assert told.readline() == b"0\n", "no check that began after the pause has passed"
        given_up.cancel()
    if other_then == "goes on":
        other.check(threading.Event())
        other.close()


def test_what_one_has_written_the_next_one_knows(kafka: Kafka) -> None:
    place, other = (topics.ITEM_VECTORS, 0), (topics.ITEMS, 1)
    with closing(OffsetTracker(kafka)) as offsets:
        offsets.open({place: 99, other: 99})
        assert not offsets.is_written(place, 0) and not offsets.is_written(other, 0)
        for offset in (6, 8):
            offsets.note_read(place, offset)
            offsets.note_read(other, offset)
            offsets.commit(but={topics.ITEMS})
    with closing(OffsetTracker(kafka)) as offsets:
        offsets.open({place: 99, other: 99})
        assert offsets.is_written(place, 8) and not offsets.is_written(place, 9) and not offsets.is_written(other, 0)
        offsets.open({place: 5})
        assert not offsets.is_written(place, 0), "the topic was made anew"


SESSION_S = 10.0


def test_a_standby_is_who_the_group_has_confirmed_and_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(lease_module, "running_s", lambda: now_s)
    role = GroupRole(SESSION_S)
    assert not role.is_standby, "the group has not chosen yet"
    role.on_partitions_revoked([])
    assert not role.is_standby
    role.on_partitions_assigned([])
    assert role.is_standby, "it has chosen another"
    now_s += SESSION_S
    assert not role.is_standby, "whoever that was, nobody has told us for a session"
    role.on_heartbeat_sent()
    now_s += SESSION_S / 2  # the answer lay here while we were paused
    role.on_heartbeat_received()
    assert role.is_standby
    now_s += SESSION_S / 2
    assert not role.is_standby
    role.on_heartbeat_sent()
    role.on_heartbeat_received()
    assert role.is_standby
    role.on_partitions_lost([])
    role.on_partitions_assigned(["releases-0"])
    assert not role.is_standby, "it is ours"
    assert role.losses == 2, "it was another's twice"
