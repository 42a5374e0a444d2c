"""A line to a service: a TCP proxy that passes bytes on as they are, late, or not at all.

Late: what the service says is held back for so long, in order. Cut: every connection is reset, and so is each new one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from infra.platform.port_locks import LOOPBACK

_CHUNK = 1 << 16
_APART_S = 1e-6  # pieces that are due at one time would leave in any order


class Line:
    """What it does may be changed while it stands, from any thread."""

    def __init__(self, to: str) -> None:
        host, port = to.rsplit(":", 1)
        self._to, self._delay_s, self._is_cut = (host, int(port)), 0.0, False
        self._ends: set[asyncio.StreamWriter] = set()
        self._joins: set[asyncio.Task[None]] = set()
        self.address = ""

    @contextmanager
    def late(self, delay_s: float) -> Iterator[None]:
        """Within the block the service's answers come so much later."""
        self._delay_s = delay_s
        try:
            yield
        finally:
            self._delay_s = 0.0

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Within the block nobody reaches the service."""
        self._is_cut = True
        self._loop.call_soon_threadsafe(self._reset)
        try:
            yield
        finally:
            self._is_cut = False

    async def stand(self, is_there: threading.Event) -> None:
        """Take connections until it is closed."""
        self._loop, self._closed = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(self._join, LOOPBACK, 0) as server:
            self.address = f"{LOOPBACK}:{server.sockets[0].getsockname()[1]}"
            is_there.set()
            await self._closed.wait()
            self._is_cut = True
            self._reset()
            await asyncio.gather(*self._joins)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._closed.set)

    def _reset(self) -> None:
        for end in self._ends:
            end.transport.abort()

    async def _join(self, caller: asyncio.StreamReader, to_caller: asyncio.StreamWriter) -> None:
        self._ends.add(to_caller)
        joining = asyncio.current_task()
        assert joining is not None
        self._joins.add(joining)
        joining.add_done_callback(self._joins.discard)
        with suppress(OSError):
            service, to_service = await asyncio.open_connection(*self._to)
            self._ends.add(to_service)
            if not self._is_cut:
                await asyncio.gather(self._pass_on(caller, to_service, False), self._pass_on(service, to_caller, True))
            to_service.transport.abort()
            self._ends.discard(to_service)
        to_caller.transport.abort()
        self._ends.discard(to_caller)

    async def _pass_on(self, come: asyncio.StreamReader, to: asyncio.StreamWriter, is_answer: bool) -> None:
        """Each piece leaves when it is due, and none overtakes another; reading goes on meanwhile."""
        due_s = 0.0
        with suppress(OSError):
            while piece := await come.read(_CHUNK):
                due_s = max(due_s + _APART_S, self._loop.time() + (self._delay_s if is_answer else 0.0))
                self._loop.call_at(due_s, to.write, piece)
        self._loop.call_at(max(due_s + _APART_S, self._loop.time()), to.close)


@contextmanager
def line_to(address: str) -> Iterator[Line]:
    """A line to the service at `host:port`."""
    line, is_there = Line(address), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(line.stand(is_there)), name="line", daemon=True)
    thread.start()
    is_there.wait()
    try:
        yield line
    finally:
        line.close()
        thread.join()
