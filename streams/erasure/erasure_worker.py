"""The erasure of users from a worker's table: the worker alone writes its changelog, so it alone deletes from it.

The order of effects, each acknowledged by the brokers before the next: the state of the erased user is deleted (a
tombstone on the changelog), then `forgotten` is told that this partition is done. Both may be repeated: what is kept of
a user who came back says that it was begun after the erasure (see streams.erased_users). A partition that is
new to us is done before its first event: all that `forgotten` says by then is read, and no state that was recovered
from before is built on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import structlog
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import KafkaError

from infra.platform import metrics
from infra.platform.retrying import retry
from infra.platform.settings import Settings
from streams import topics
from streams.erased_users import DONE, ErasedUsers
from streams.kafka.faust_app import now_ms
from streams.kafka.follow import TopicFollower
from streams.kafka.outbox import Outbox
from streams.kafka.tables import load
from streams.messages import ErasureDone, JoinState, UserHistory, encode

log = structlog.get_logger(__name__)

EVERY_S = 0.2  # between two looks at `forgotten`
SLICE = 1000  # users that are looked at in one turn: two milliseconds

Drop = Callable[[str, Outbox], None]  # delete a user's state from the table and, by way of the outbox, its changelog


class ErasureWorker:
    """The erased users, and what of them is still in a worker's table.

    Callers hold their worker's lock, except of `look`: it takes its time, in proportion to the users, while events go
    on. Who is known as erased is not built on any more, so nobody comes into the table meanwhile.
    """

    def __init__(
        self, settings: Settings, worker: str, table: Any, kind: type[UserHistory] | type[JoinState], drop: Drop
    ) -> None:
        self.users = ErasedUsers(settings.forget.secret.get_secret_value())
        self._settings, self._worker = settings, worker
        self._table, self._kind, self._drop = table, kind, drop
        self._taken: dict[int, int] = {}  # by partition of ours: users below this offset of `forgotten` are gone
        self._looked = 0  # users below this offset of `forgotten` were looked for in the table,
        self._found: list[str] = []  # and these were there
        self._hearing = asyncio.Lock()
        self._follower: TopicFollower | None = None

    async def take_over(self, partitions: Iterable[int], outbox: Outbox) -> None:
        """Before the first event of these partitions: nothing of theirs is from before an erasure."""
        missing = set(partitions) - self._taken.keys()
        if missing:
            await self._hear()
            await self._take(missing, outbox)

    async def look(self, lock: asyncio.Lock) -> None:
        """Hear whom there is to erase, and find them in the table; `lock` is the worker's."""
        await self._hear()
        newest = self.users.newest
        if newest == self._looked:
            return
        found: list[str] = []
        async with lock:  # a batch that was under way has not known of them, and may have put them in
            users = list(self._table)
        for start in range(0, len(users), SLICE):
            found += filter(self.users.at_ms, users[start : start + SLICE])
            await asyncio.sleep(0)
        self._looked, self._found = newest, found

    async def advance(self, partitions: Iterable[int], outbox: Outbox) -> None:
        """Erase on these partitions, which are ours, whom the last look has found."""
        known = set(partitions) & self._taken.keys()
        await self._take(set(partitions) - known, outbox)
        behind = {number for number in known if self._taken[number] < self._looked}
        await self._erase(behind, self._found, self._looked, outbox)

    def give_up(self, partitions: Iterable[int]) -> None:
        for number in partitions:
            self._taken.pop(number, None)

    async def _take(self, partitions: set[int], outbox: Outbox) -> None:
        """Partitions that are new to us: all that is heard is erased there."""
        self._taken |= dict.fromkeys(partitions, 0)
        users = list(self._table) if partitions and len(self.users) else []
        await self._erase(partitions, filter(self.users.at_ms, users), self.users.newest, outbox)

    async def _erase(self, partitions: set[int], users: Iterable[str], offset: int, outbox: Outbox) -> None:
        """Drop what is from before of these users, who were erased below `offset`, and say so."""
        if not partitions:
            return
        gone = [user_id for user_id in users if self._place_of(user_id) in partitions and self._is_from_before(user_id)]
        for user_id in gone:
            self._drop(user_id, outbox)
        await outbox.flush()
        metrics.USERS_FORGOTTEN.labels(self._worker).inc(len(gone))
        for number in sorted(partitions):
            name = f"{self._worker}/{number}"
            if self.users.done.get(name, 0) < offset:
                outbox.add(topics.FORGOTTEN, 0, (DONE + name).encode(), encode(ErasureDone(offset, now_ms())))
        await outbox.flush()
        self._taken |= dict.fromkeys(partitions & self._taken.keys(), offset)
        if gone:
            log.info("users erased", worker=self._worker, users=len(gone))

    def _is_from_before(self, user_id: str) -> bool:
        """Return whether something in the table is from before the user's erasure."""
        if user_id not in self._table:
            return False
        return bool(load(self._table, self._kind, user_id).since_ms < self.users.at_ms(user_id))

    async def _hear(self) -> None:
        """Read all that lies in `forgotten` now. A broker that is away is waited for in place, like a flush."""
        async with self._hearing:  # who comes second has heard what the first one has read
            read = partial(asyncio.to_thread, self._read_to_end)
            for record in await retry(read, is_absence=lambda error: isinstance(error, KafkaError), report=_report):
                self.users.hear(record.key, record.value, record.offset)

    def _read_to_end(self) -> list[ConsumerRecord]:
        if self._follower is None:
            self._follower = TopicFollower(self._settings.kafka, topics.FORGOTTEN)
        else:
            self._follower.expect_present()
        return list(self._follower.to_end())

    def _place_of(self, user_id: str) -> int:
        return topics.partition_of(user_id, self._settings.kafka.partitions)


def _report(error: Exception, wait_s: float) -> None:
    log.warning("broker unavailable, trying again", topic=topics.FORGOTTEN, error=str(error), wait_s=wait_s)
