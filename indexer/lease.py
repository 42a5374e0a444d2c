"""The indexer's lease: who owns the one partition of `releases` in the group `indexer-lease` may write to Milvus.

Two writers on one collection lose acknowledged rows on Milvus Lite, and on any Milvus an old one can overwrite a new
one's rows (streams/write_permit.py says how that is prevented). The group takes the partition from a dead owner after
`kafka.session_timeout_s`. An owner that is started again in its old place (same host and data directory) has the same
name in the group and goes on at once.

Taking part is a thread's whole work, with ever longer polls while the group chooses: what a join has come to after the
poll that began it is thrown away by the client, and the join begins again; on a busy machine polls of one length would
never see its end.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import socket
import threading
from pathlib import Path
from typing import Any, BinaryIO

import structlog
from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import MemberToRemove
from kafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from kafka.errors import KafkaError

from infra.platform.kafka_clients import kafka_python_options
from infra.platform.retrying import BackOff
from infra.platform.settings import Kafka
from infra.platform.third_parties.kafka_python.patches import hear_heartbeats
from streams import topics
from streams.clock import running_s
from streams.write_permit import LOOK_S, Fenced, Lease

log = structlog.get_logger(__name__)

_POLL_MS = 1000
_LONGEST_POLL_MS = 8000  # below the longest poll interval, 10 s at least
_REBALANCE_S = 10.0  # the group chooses anew when a member comes or goes


class GroupRole(ConsumerRebalanceListener):
    """The member's role, as the group tells it. The consumer's own list still shows the partition while the group is
    choosing anew."""

    def __init__(self, session_s: float) -> None:
        self.held = threading.Event()
        self.is_choosing = True
        self.losses = 0  # how often it may have been another's
        self._session_s = session_s
        self._confirmed_s = -math.inf  # when the last request was sent by which the group confirmed us
        self._joined_s = self._asked_s = -math.inf

    @property
    def is_confirmed(self) -> bool:
        """Return whether the group has confirmed us within a session, so that nobody else can have our role."""
        return running_s() - self._confirmed_s < self._session_s

    @property
    def is_standby(self) -> bool:
        """Return whether the group has chosen, and not us."""
        return not self.is_choosing and not self.held.is_set() and self.is_confirmed

    def hear(self, consumer: KafkaConsumer, topic: str) -> None:
        """Learn from this member of the group, which follows `topic`."""
        hear_heartbeats(consumer, sent=self.on_heartbeat_sent, received=self.on_heartbeat_received)
        consumer.subscribe([topic], listener=self)

    def on_heartbeat_sent(self) -> None:
        self._asked_s = running_s()

    def on_heartbeat_received(self) -> None:
        self._confirmed_s = max(self._confirmed_s, self._asked_s)

    def on_partitions_revoked(self, revoked: Any) -> None:
        self.held.clear()
        self.is_choosing, self._joined_s = True, running_s()

    def on_partitions_lost(self, lost: Any) -> None:
        self.losses += 1
        self.on_partitions_revoked(lost)

    def on_partitions_assigned(self, assigned: Any) -> None:
        self.is_choosing, self._confirmed_s = False, max(self._confirmed_s, self._joined_s)
        if assigned:
            self.held.set()
        else:
            self.losses += 1


class IndexerLease(Lease):
    """A member of the group, from construction to `close`. Raises kafka.errors.KafkaError when no broker answers."""

    def __init__(self, kafka: Kafka, run_dir: Path) -> None:
        self._kafka = kafka
        self._role = GroupRole(kafka.session_timeout_s)
        self._leave = threading.Event()
        self._place, self._lock = _lock_place(run_dir)
        self._losses: int | None = None  # of the role, when the lease was given to us
        self._consumer = _create_member(kafka, self._place)
        token = TopicPartition(kafka.topic_prefix + topics.RELEASES, 0)
        self._role.hear(self._consumer, token.topic)
        # Without this the group may choose before it knows the topic; it then gives it to nobody, or chooses again.
        self._consumer.end_offsets([token])
        self._thread = threading.Thread(target=self._take_part, name="lease", daemon=True)
        self._thread.start()

    def acquire(self, wait_s: float) -> bool:
        """Return whether the lease is ours, after `wait_s` at most. Raises Fenced when we are no member any more."""
        losses = self._role.losses
        held = self._role.held.wait(wait_s)
        if not held and not self._thread.is_alive():
            raise Fenced("the connection to the group has ended")
        if held and self._losses is None:
            self._losses = losses
        return held

    @property
    def is_anothers(self) -> bool:
        """Return whether another indexer has it, as the group says: we are its standby."""
        return self._role.is_standby

    def holds(self) -> bool:
        held = self.acquire(0.0)
        if self._role.losses != self._losses:
            raise Fenced("another indexer has the writing, or has had it meanwhile")
        return held and self._role.is_confirmed

    def check(self, stop: threading.Event) -> None:
        """Return when the lease is ours for certain: at once, as a rule. Waits for a group that is choosing anew, and,
        until `stop`, for its next answer. Raises Fenced."""
        began_s = running_s()
        while not self.holds():
            if self._role.is_choosing and running_s() - began_s >= _REBALANCE_S:
                raise Fenced("nobody tells who has the writing")
            if stop.wait(LOOK_S):
                raise Fenced("stopped before the group has answered")

    def close(self) -> None:
        """Leave, so that whoever waits has it at once."""
        self._leave.set()
        self._thread.join()
        self._lock.close()

    def _take_part(self) -> None:
        polls_ms = BackOff(_POLL_MS, _LONGEST_POLL_MS)
        try:
            while not self._leave.is_set():
                self._consumer.poll(timeout_ms=polls_ms.next())
                if not self._role.is_choosing:
                    polls_ms.reset()
                self._consumer.pause(*self._consumer.assignment())  # a token: what is in it is read elsewhere
            self._role.held.clear()
            _leave_group(self._kafka, self._place)
        except KafkaError as error:
            log.warning("no member of the group any more", error=str(error))
        finally:
            self._role.held.clear()
            self._consumer.close(autocommit=False, timeout_ms=2000)


def _lock_place(run_dir: Path) -> tuple[str, BinaryIO]:
    """A name in the group that nobody else on this host has while the returned file is open, and that is found again
    after a crash."""
    run_dir.mkdir(parents=True, exist_ok=True)
    where = hashlib.sha256(str(run_dir.absolute()).encode()).hexdigest()[:8]
    number = 0
    while True:
        lock = (run_dir / f"indexer-{number}.lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            number += 1
        else:
            return f"{socket.gethostname()}-{where}-{number}", lock


def _create_member(kafka: Kafka, place: str) -> KafkaConsumer:
    session_ms = max(1000, int(kafka.session_timeout_s * 1000))
    return KafkaConsumer(
        **kafka_python_options(kafka),
        client_id="nextwatch-indexer-lease",
        group_id=_group(kafka),
        group_instance_id=place,
        enable_auto_commit=False,
        allow_auto_create_topics=False,
        session_timeout_ms=session_ms,
        heartbeat_interval_ms=session_ms // 3,
        max_poll_interval_ms=max(10_000, session_ms),  # and so long a dead member is waited for
        partition_assignment_strategy=[StickyPartitionAssignor],  # a newcomer does not take it from its holder
        metadata_max_age_ms=10_000,
        reconnect_backoff_max_ms=2000,
    )


def _leave_group(kafka: Kafka, place: str) -> None:
    """A member with a name of its own is not taken out of the group by closing its connection."""
    with KafkaAdminClient(**kafka_python_options(kafka), client_id="nextwatch-indexer-lease") as admin:
        admin.remove_group_members(_group(kafka), [MemberToRemove(group_instance_id=place)])


def _group(kafka: Kafka) -> str:
    return f"{kafka.topic_prefix}indexer-lease"
