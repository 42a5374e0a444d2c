"""The replies of the last moments: a request id that comes again gets the same reply, for a while.

A client sends a request again when it has heard nothing in time; whichever of the two is answered first, the other is
answered alike, leaves no second impression, and costs next to nothing. Known by user and request id, so that nobody can
ask for another's reply. Ages are told by a clock that does not jump: one that is set an hour ahead must not make every
reply an old one, or a request that is sent again would leave a second impression, with another list.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Key(NamedTuple):
    user_id: str
    request_id: str


class ReplyCache(Generic[T]):
    """Encoded replies of the last `window_ms`, at most `most`; and who waits for those that are being answered."""

    def __init__(self, window_ms: float, most: int) -> None:
        self._window_ms, self._most = window_ms, most
        self._sent: OrderedDict[Key, tuple[float, bytes]] = OrderedDict()  # oldest first
        self._pending: dict[Key, list[T]] = {}
        self._now_ms = 0.0

    def __len__(self) -> int:
        return len(self._sent)

    def look(self, running_ms: float) -> None:
        """Learn the time, by streams.clock.running_s."""
        self._now_ms = running_ms

    def reply_to(self, key: Key) -> bytes | None:
        """The reply that this request got lately."""
        found = self._sent.get(key)
        return found[1] if found is not None and self._now_ms - found[0] < self._window_ms else None

    def begin(self, key: Key) -> None:
        """Note that it is being answered now."""
        self._pending.setdefault(key, [])

    def join(self, key: Key, also: T) -> bool:
        """Wait for the reply to a request that is being answered; False when it is not."""
        waiting = self._pending.get(key)
        if waiting is None:
            return False
        waiting.append(also)
        return True

    def end(self, key: Key, reply: bytes | None) -> list[T]:
        """Note that it was answered (None: it could not be); returns those who wait for the same."""
        if reply is not None:
            self.remember(key, reply)
        return self._pending.pop(key, [])

    def remember(self, key: Key, reply: bytes, age_ms: float = 0.0) -> None:
        """Answer with this from now on."""
        if self._window_ms <= 0:
            return
        self._sent.pop(key, None)
        self._sent[key] = self._now_ms - age_ms, reply
        while self._sent and (len(self._sent) > self._most or self._now_ms - self._oldest_ms >= self._window_ms):
            self._sent.popitem(last=False)

    @property
    def _oldest_ms(self) -> float:
        return next(iter(self._sent.values()))[0]
