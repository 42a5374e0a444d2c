"""The fencing token of `item-vectors`, by which indexer, serving and trainer know whose rows count.

A trainer that takes over claims an epoch, greater than every one before it, on every partition of the topic, and its
rows carry that epoch. In a partition a record counts unless one of a greater epoch stands before it. So what a trainer
writes that was paused, replaced and resumed counts for nobody.

The place in the log alone decides: who starts anew, reads a partition again or reads it after compaction (which keeps
offsets; every claim has a key of its own, so none is compacted away) decides as everybody else did. What compaction can
take is the good row under a stale one of the same key; streams/trainer/writer_epoch.py sees to that.

Why not a transactional producer, which the brokers would fence? It works (tried on Apache Kafka 4.3.1 and noida 0.2.3),
and leaves a marker on each partition for each transaction, which compaction keeps for `delete.retention.ms`: thirty
days, since tombstones need them. At ten batches a second and four partitions that is 100 million records that every
reader passes over at its start, a hundred times the rows of a large catalogue. It would also ask for rights to a
transactional id, and for read_committed of everybody who reads the topic.
"""

from __future__ import annotations

from bisect import bisect_left

from kafka.consumer.fetcher import ConsumerRecord

from streams.messages import ItemVector, Refused, decode, encode

CLAIM = b"\xff"  # a claim's key begins so; no item's id in UTF-8 does
HEADER = "nextwatch-epoch"  # of a tombstone, which has no value that could hold it


class Epochs:
    """The claims, as far as they were read."""

    def __init__(self) -> None:
        self._raised: dict[int, list[tuple[int, int]]] = {}  # by partition: (offset, epoch), both growing

    @property
    def newest(self) -> int:
        """The greatest epoch that was read anywhere, 0 for none."""
        return max((raised[-1][1] for raised in self._raised.values()), default=0)

    def before(self, partition: int, offset: int) -> int:
        """The greatest epoch that stands before this place."""
        raised = self._raised.get(partition, [])
        at = bisect_left(raised, (offset, 0))
        return raised[at - 1][1] if at else 0

    def hear(self, partition: int, offset: int, epoch: int) -> bool:
        """Take note of a record; whether it counts."""
        before = self.before(partition, offset)
        if epoch > before:
            raised = self._raised.setdefault(partition, [])
            at = bisect_left(raised, (offset, 0))
            until = at
            while until < len(raised) and raised[until][1] <= epoch:
                until += 1
            raised[at:until] = [(offset, epoch)]
        return epoch >= before

    def take(self, record: ConsumerRecord) -> bool:
        """Take note of a record; whether it is a row, or the tombstone of one, that counts. What no epoch can be read
        of counts, so that its reader reports it, or lets go of the item that somebody took out by hand."""
        epoch = epoch_of(record)
        if epoch is None:
            return True
        return self.hear(record.partition, record.offset, epoch) and not is_claim(record.key)


def is_claim(key: bytes | None) -> bool:
    return key is not None and key.startswith(CLAIM)


def claim(epoch: int, owner: str) -> tuple[bytes, bytes]:
    """Key and value of a claim. No two owners have the same name."""
    return CLAIM + f"{epoch}/{owner}".encode(), encode(ItemVector("", 0, b"", b"", 0, epoch=epoch))


def mark(epoch: int) -> tuple[str, bytes]:
    """A tombstone's header."""
    return HEADER, b"%d" % epoch


def epoch_of(record: ConsumerRecord) -> int | None:
    """A record's epoch, 0 for a row from before there were any; None where none can be read, and of junk, whatever it
    says: it must not end the epoch of a trainer."""
    if record.value is None:
        found = next((value for name, value in record.headers or () if name == HEADER), b"")
        return int(found) if found and found.isdigit() and len(found) < 20 else None
    try:
        return decode(ItemVector, record.value, max_bytes=len(record.value)).epoch
    except Refused:
        return None
