"""Whether the group still counts a worker in: what it writes for its partitions, it may write only then.

A worker that was paused (SIGSTOP, a machine that slept) or cut off from the brokers goes on where it stood, and does
not know yet that its partitions have been another's for a while; what it has in hand is older than what that one has
written, and Kafka would take it. So before each write it is looked when the group last confirmed us, by when the
confirmed request was *sent*: within a session of that, nobody else can have been given our partitions. Beyond it the
next answer is waited for. What is left is the time between this look and the broker's receipt, and a machine whose
clocks all stood still (a virtual one that its host has paused).

aiokafka keeps neither time, so both are noted where it sends them (streams/kafka/aiokafka/patches.py).
"""

from __future__ import annotations

import asyncio
import math

import faust

from streams.clock import running_s
from streams.kafka.aiokafka.patches import is_out_of_group
from streams.kafka.faust.patches import coordinator_of

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
        coordinator = coordinator_of(self._app)
        heard_s, settled_s = coordinator.heard_s, coordinator.settled_s
        if now_s - heard_s < self._session_s and now_s - settled_s < self._rebalance_s:
            return True
        if heard_s > -math.inf and is_out_of_group(coordinator) and now_s - settled_s >= self._session_s:
            raise NotAMember(f"the group has last confirmed us {now_s - settled_s:.1f} s ago and has gone on since")
        return False
