"""When a worker may still write, by what the group last confirmed; the rest is in tests/system/test_streams.py."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from streams.clock import running_s
from streams.kafka.membership import Membership
from streams.write_permit import Fenced

SESSION_S, REBALANCE_S = 10.0, 20.0


class Coordinator(SimpleNamespace):
    """As aiokafka's, as far as is looked at: when we were heard `ago` seconds, and settled."""

    def __init__(self, heard: float, settled: float, *, member_id: str = "me", is_choosing: bool = False) -> None:
        now_s = running_s()
        future = SimpleNamespace(done=lambda: is_choosing)
        super().__init__(
            heard_s=now_s - heard, settled_s=now_s - settled, member_id=member_id, _rejoin_needed_fut=future
        )
        self._pending_exception: Exception | None = None
        self._coordination_task = SimpleNamespace(done=lambda: False)


def confirmed(coordinator: Any, timeout_s: float = 0.2) -> bool:
    """Whether it is confirmed at once; False when it is waited for."""
    app: Any = SimpleNamespace(
        consumer=SimpleNamespace(_thread=SimpleNamespace(_consumer=SimpleNamespace(_coordinator=coordinator)))
    )
    membership = Membership(app, SESSION_S, REBALANCE_S)

    async def look() -> bool:
        try:
            await asyncio.wait_for(membership.check(), timeout_s)
        except TimeoutError:
            return False
        return True

    return asyncio.run(look())


@pytest.mark.parametrize("is_choosing", [False, True])
def test_within_a_session_nobody_else_can_have_our_partitions(is_choosing: bool) -> None:
    assert confirmed(Coordinator(9.0, 9.0, is_choosing=is_choosing))


def test_a_group_that_chooses_anew_waits_for_the_batch_in_hand_and_not_for_ever() -> None:
    assert confirmed(Coordinator(1.0, 19.0, is_choosing=True))
    with pytest.raises(Fenced):
        confirmed(Coordinator(1.0, 21.0, is_choosing=True))


def test_who_has_heard_nothing_for_a_session_waits_for_the_next_answer() -> None:
    assert not confirmed(Coordinator(11.0, 11.0))


@pytest.mark.parametrize("how", [{"member_id": ""}, {"is_choosing": True}])
def test_who_is_told_that_the_group_has_gone_on_stops(how: dict[str, Any]) -> None:
    with pytest.raises(Fenced, match=r"11\.\d s ago"):
        confirmed(Coordinator(11.0, 11.0, **how))


def test_who_will_hear_nothing_more_stops() -> None:
    coordinator = Coordinator(11.0, 11.0)
    coordinator._pending_exception = PermissionError()
    with pytest.raises(Fenced):
        confirmed(coordinator)
