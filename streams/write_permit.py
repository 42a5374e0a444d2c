"""The right to write where there must be one writer: a lease of the consumer group, or a fencing token in the log.

A lease. The group's coordinator gives a partition to one member, and takes it away once it has not heard of the member
for a session. A member that was paused (SIGSTOP, a machine that slept) or cut off from the brokers goes on where it
stood, and does not know yet that its partition has been another's for a while; what it has in hand is older than what
that one has written, and Kafka and Milvus would take it. So before each write it is looked when the group last
confirmed us, by when the confirmed request was *sent* (its answer may have lain in the socket of who was paused):
within a session of that, nobody else can have been given the partition. Beyond it the next answer is waited for. Two
adapters: streams/kafka/membership.py for Faust's workers, indexer/lease.py for the indexer. What is left is the time
between this look and the receipt of the write, and a machine whose clocks all stood still (a virtual one that its host
has paused).

A fencing token (streams/epochs.py) closes that gap too, since whoever reads the log decides by it. It asks of every
reader to know the rule and of the writer to read what others write, so only the trainer's rows have one; Milvus has no
reader of ours in between.
"""

from __future__ import annotations

from typing import Protocol

LOOK_S = 0.05  # between two looks of who waits for the group's answer


class Fenced(RuntimeError):
    """Another process writes now, or may: what we have in hand must not be written any more."""


class Lease(Protocol):
    """One member's right to write, as its group tells it."""

    def holds(self) -> bool:
        """True when the lease is ours for certain, False when that cannot be told yet: ask again in LOOK_S. Raises
        Fenced when it is another's, or may have been since it was given to us."""
        ...
