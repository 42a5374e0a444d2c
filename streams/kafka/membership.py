"""The lease of a Faust worker: what it writes for its partitions, it may write only while the group counts it in.

See streams/write_permit.py. Faust keeps its partitions while the group chooses anew, until the batch in hand is done;
the group waits for that as long as a rebalance may take, and not longer. aiokafka keeps neither time, so both are noted
where it sends them (streams/kafka/aiokafka/patches.py).
"""

from __future__ import annotations

import asyncio
import math

import faust

from streams.clock import running_s
from streams.kafka.aiokafka.patches import is_out_of_group
from streams.kafka.faust.patches import coordinator_of
from streams.write_permit import LOOK_S, Fenced, Lease


class Membership(Lease):
    """The lease of the app's worker; needs `note_confirmations`. `session_s`: after so long without a word the group
    gives our partitions away. `rebalance_s`: so long it waits for our last batch when it gives them out anew."""

    def __init__(self, app: faust.App, session_s: float, rebalance_s: float) -> None:
        self._app = app
        self._session_s, self._rebalance_s = session_s, rebalance_s

    async def check(self) -> None:
        """Return when the partitions are ours for certain: at once, as a rule. Raises Fenced."""
        while not self.holds():
            await asyncio.sleep(LOOK_S)

    def holds(self) -> bool:
        coordinator, now_s = coordinator_of(self._app), running_s()
        silent_s = now_s - coordinator.settled_s
        if now_s - coordinator.heard_s < self._session_s and silent_s < self._rebalance_s:
            return True
        if coordinator.heard_s > -math.inf and is_out_of_group(coordinator) and silent_s >= self._session_s:
            raise Fenced(f"the group has last confirmed us {silent_s:.1f} s ago and has gone on since")
        return False
