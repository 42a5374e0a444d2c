"""A TCP link to a server on this machine that can be slow, or cut."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator


class SlowLink:
    """Listens on `port` of loopback and passes all that comes on, `delay_s` late per piece."""

    def __init__(self, to_port: int) -> None:
        self.delay_s = 0.0
        self._to_port = to_port
        self._is_cut = False
        self._open: set[socket.socket] = set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Hang up on everyone, and on whoever calls from now on."""
        self._is_cut = True
        for each in list(self._open):
            _hang_up(each)

    def mend(self) -> None:
        self._is_cut = False

    def close(self) -> None:
        self.cut()
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                caller, _ = self._server.accept()
                if self._is_cut:
                    caller.close()
                    continue
                called = socket.create_connection(("127.0.0.1", self._to_port))
                for pair in ((caller, called), (called, caller)):
                    self._open.add(pair[0])
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                time.sleep(self.delay_s)
                target.sendall(piece)
        _hang_up(target)
        _hang_up(source)
        self._open.discard(source)


@contextlib.contextmanager
def slow_link(to_port: int) -> Iterator[SlowLink]:
    link = SlowLink(to_port)
    try:
        yield link
    finally:
        link.close()


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
