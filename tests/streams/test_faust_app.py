"""How a worker ends that cannot finish a batch: at once, so that nothing of the batch is acknowledged."""

from __future__ import annotations

import asyncio
import os

import pytest

from streams.faust_app import EXIT_AGAIN, EXIT_BUG, to_the_end
from streams.membership import NotAMember


class Left(BaseException):
    """In place of the process's end."""


@pytest.fixture(autouse=True)
def leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(os, "_exit", leave)


async def cancelled_in(end: Exception | None, times: int) -> list[str]:
    """A batch that comes to `end`, and whose agent is cancelled `times` times on the way; what it has done."""
    done: list[str] = []
    goes_on = asyncio.Event()

    async def handle() -> None:
        done.append("begun")
        await goes_on.wait()
        if end is not None:
            raise end
        done.append("done")

    agent = asyncio.ensure_future(to_the_end(handle()))
    for _ in range(times):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        agent.cancel()
    await asyncio.sleep(0)
    assert not agent.done()
    goes_on.set()
    try:
        await agent
    except asyncio.CancelledError:
        done.append("cancelled")
    return done


@pytest.mark.parametrize("times", [0, 1, 2])
@pytest.mark.parametrize(("error", "code"), [(NotAMember("gone"), EXIT_AGAIN), (OSError("no broker"), EXIT_BUG)])
def test_a_batch_that_fails_ends_the_process_also_when_it_is_cancelled_before(error, code, times):
    with pytest.raises(Left) as left:
        asyncio.run(cancelled_in(error, times))
    assert left.value.args == (code,)


@pytest.mark.parametrize(("times", "end"), [(0, []), (1, ["cancelled"]), (2, ["cancelled"])])
def test_a_batch_is_finished_also_when_it_is_cancelled(times, end):
    assert asyncio.run(cancelled_in(None, times)) == ["begun", "done", *end]
