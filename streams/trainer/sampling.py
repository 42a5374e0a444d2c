"""The rule by which a trainer that cannot keep up passes over examples, instead of falling behind until retention
deletes them unread.

Only full batches are sampled, and only of examples older than `after_s`: a trainer that keeps up has neither. Of
examples n times as old one in n is kept (one in 64 at least). So the trainer settles at that age where it learns as
fast as examples come, and what it learns is a sample of all of them, not of the time before it fell behind.

Which ones is decided by a hash of their place, not by a draw: the same at every reading, nested (what a smaller share
keeps, a greater one keeps too), and blind to user and item. An example that is passed over is not counted in popularity
either: that is a share of the watches, which a sample leaves as it is, whereas counting all and learning some would not
save the reading.
"""

from __future__ import annotations

from hashlib import blake2b

WHOLE = 1 << 32
LEAST_SHARE = 1 / 64  # also when a clock that is far off makes examples look old


def share_kept(age_s: float, after_s: float, *, is_full: bool) -> float:
    """The share of a batch that is learnt, by the age of its first example."""
    return max(after_s / age_s, LEAST_SHARE) if is_full and age_s > after_s else 1.0


def is_kept(partition: int, offset: int, share: float) -> bool:
    """Return whether the example at this place of `training-examples` is among that share."""
    if share >= 1:
        return True
    digest = blake2b(b"%d/%d" % (partition, offset), digest_size=4).digest()  # a checksum would favour some periods
    return int.from_bytes(digest, "big") < share * WHOLE
