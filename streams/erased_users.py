"""The users that were erased, and when: so that nothing from before comes back, whatever is read again.

The topic `forgotten` names a user by a keyed hash of the id (HMAC-SHA-256 with `forget.secret`), since the id itself is
what was to be erased. Without a secret the hash is plain: whoever already has an id can then tell that its user was
erased, and when; nobody can go from the hash to an id that he cannot guess. A record carries a fingerprint of the
secret, since with another secret no erased user would be known as one, without a word.

An event is from before when its own time or the time at which it was sent is not after the erasure: a producer that
delivers late, a replay and a restored topic all show in one of the two. A user who comes back begins anew: what is kept
of the user from then on says so (`since_ms`), and what does not say so is from before.
"""

from __future__ import annotations

import hmac
from typing import Any, TypeVar

from streams import topics
from streams.messages import Erasure, ErasureDone, JoinState, Refused, UserErased, UserHistory, decode

USER, DONE = "user/", "done/"
_FINGERPRINT = 8  # characters

State = TypeVar("State", UserHistory, JoinState)


class ForgetSecretWrong(RuntimeError):
    """`forgotten` was written with another secret than ours; the text says what to do."""


class ErasedUsers:
    """The contents of the topic, as far as it was heard."""

    def __init__(self, secret: str) -> None:
        self.newest = 0  # the offset after the newest user
        self.done: dict[str, int] = {}  # by `<worker>/<partition>`: users below this offset are gone there
        self._secret = secret.encode()
        self._at_ms: dict[bytes, int] = {}  # by hash

    def __len__(self) -> int:
        return len(self._at_ms)

    def hear(self, key: bytes | None, value: bytes | None, offset: int) -> None:
        """Take one record of the topic. Raises ForgetSecretWrong; what cannot be read is passed over."""
        kind, _, name = (key or b"").decode(errors="replace").partition("/")
        try:
            message: Any = decode(Erasure, value)  # type: ignore[arg-type]
        except Refused:
            return
        if isinstance(message, ErasureDone):
            if message.offset <= offset:  # else a copy from another cluster, where offsets were others
                self.done[name] = max(message.offset, self.done.get(name, 0))
        elif isinstance(message, UserErased) and kind == "user":
            if message.secret != fingerprint(self._secret):
                raise ForgetSecretWrong(
                    f"{topics.FORGOTTEN} was written with another secret, so nobody in it would stay erased: set "
                    "NEXTWATCH_FORGET__SECRET to the one that `nextwatch forget` was run with"
                )
            try:
                digest = bytes.fromhex(name)
            except ValueError:  # no key of ours
                return
            self._at_ms[digest] = max(message.at_ms, self._at_ms.get(digest, 0))
            self.newest = max(self.newest, offset + 1)

    def at_ms(self, user_id: str) -> int:
        """Return when the user was erased; 0 for never."""
        return self._at_ms.get(hash_of(user_id, self._secret), 0) if self._at_ms else 0

    def is_from_before(self, user_id: str, *times_ms: int) -> bool:
        """Return whether one of an event's times is not after its user's erasure."""
        at_ms = self.at_ms(user_id)
        return bool(at_ms) and min(times_ms) <= at_ms

    def begin(self, state: State) -> State:
        """Return the state of a user that is to be built on, an empty one where it is from before the erasure."""
        at_ms = self.at_ms(state.user_id)
        return state if state.since_ms >= at_ms else type(state)(state.user_id, since_ms=at_ms)


def hash_of(user_id: str, secret: bytes) -> bytes:
    return hmac.digest(secret, user_id.encode(errors="surrogatepass"), "sha256")


def fingerprint(secret: bytes) -> str:
    """Return the same for the same secret, and nothing of use to find it out."""
    return hmac.digest(secret, b"which secret", "sha256").hex()[:_FINGERPRINT]
