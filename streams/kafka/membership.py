"""Whether the group still counts a worker in: what it writes for its partitions, it may write only then.

A worker that was paused (SIGSTOP, a machine that slept) or cut off from the brokers goes on where it stood, and does
not know yet that its partitions have been another's for a while; what it has in hand is older than what that one has
written, and Kafka would take it. So before each write it is looked when the group last confirmed us, by when the
confirmed request was *sent*: within a session of that, nobody else can have been given our partitions. Beyond it the
next answer is waited for. What is left is the time between this look and the broker's receipt, and a machine whose
clocks all stood still (a virtual one that its host has paused).

aiokafka keeps neither time, so both are noted where it sends them.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

import faust
from aiokafka.consumer.group_coordinator import CoordinatorGroupRebalance, GroupCoordinator

from streams.clock import running_s

LOOK_S = 0.05


class NotAMember(RuntimeError):
    """The group has gone on without us: our partitions may be another's."""


class Membership:
    """Of the app's worker; needs `note_confirmations`. `session_s`: after so long without a word the group gives our
    partitions away. `rebalance_s`: so long it waits for our last batch when it gives them out anew."""

    def __init__(self, app: faust.App, session_s: float, rebalance_s: float) -> None:
        self._app = app
        self._session_s, self._rebalance_s = session_s, rebalance_s

    async def confirmed(self) -> None:
        """Return when the partitions are ours for certain: at once, as a rule. Raises NotAMember."""
        while not self._is_confirmed(running_s()):
            await asyncio.sleep(LOOK_S)

    def _is_confirmed(self, now_s: float) -> bool:
        consumer: Any = self._app.consumer
        coordinator = consumer._thread._consumer._coordinator
        heard_s, settled_s = coordinator.heard_s, coordinator.settled_s
        if now_s - heard_s < self._session_s and now_s - settled_s < self._rebalance_s:
            return True
        is_out = not coordinator.member_id or coordinator._rejoin_needed_fut.done()
        is_out |= coordinator._pending_exception is not None or coordinator._coordination_task.done()
        if heard_s > -math.inf and is_out and now_s - settled_s >= self._session_s:
            raise NotAMember(f"the group has last confirmed us {now_s - settled_s:.1f} s ago and has gone on since")
        return False


def note_confirmations() -> None:
    """Have every aiokafka coordinator of this process keep `heard_s`, when the last request was sent by which the group
    confirmed us, and `settled_s`, the same of one at which it was not about to choose anew."""
    beat, sync = GroupCoordinator._do_heartbeat, CoordinatorGroupRebalance._send_sync_group_request
    if getattr(beat, "is_noted", False):
        return

    async def noted_beat(self: Any) -> bool:
        sent_s = running_s()
        is_good: bool = await beat(self)
        if is_good:
            self.heard_s = sent_s
            if not self._rejoin_needed_fut.done():
                self.settled_s = sent_s
        return is_good

    async def noted_sync(self: Any, request: Any) -> Any:
        sent_s = running_s()
        assignment = await sync(self, request)
        if assignment is not None:
            self._coordinator.heard_s = self._coordinator.settled_s = sent_s
        return assignment

    GroupCoordinator.heard_s = GroupCoordinator.settled_s = -math.inf
    noted_beat.is_noted = True  # type: ignore[attr-defined]
    GroupCoordinator._do_heartbeat = noted_beat
    CoordinatorGroupRebalance._send_sync_group_request = noted_sync
