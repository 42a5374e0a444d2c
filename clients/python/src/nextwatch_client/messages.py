"""The messages: the request and its reply, JSON on the wire.

They are the server's own messages (streams/messages.py), written a second time so that the client does not depend on
the server; a test of the server's compares the two field by field. A field that this version does not know is passed
over, so a server may be newer than its clients. The server checks what it is sent: a request that it refuses has a
reply with `error`.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct


class Context(Struct, frozen=True, omit_defaults=True, gc=False):
    """The place and the device at which a person watches."""

    region: str | None = None
    language: str | None = None
    device: str | None = None
    surface: str | None = None
    signed_in: bool | None = None
    gender: float | None = None  # 0 to 1
    age: float | None = None  # 0 to 1


class Watch(Struct, frozen=True, array_like=True, gc=False):
    item_id: str
    event_ms: int
    watch_s: float
    duration_s: float | None
    completed: bool
    event_id: str
    offset: int


class Search(Struct, frozen=True, array_like=True, gc=False):
    query: str
    event_ms: int
    event_id: str
    offset: int


class ShownList(Struct, frozen=True, array_like=True, gc=False):
    """A list that was shown."""

    request_id: str
    at_ms: int
    item_ids: tuple[str, ...]  # top first


class Signal(Struct, frozen=True, array_like=True, gc=False):
    kind: str  # like, dislike, not_interested, undo, share or save
    item_id: str | None  # the item that it is about,
    channel: str | None  # or the channel
    event_ms: int
    event_id: str
    offset: int


class UserHistory(Struct, frozen=True, omit_defaults=True, gc=False):
    """The newest watches, searches, shown lists and signals of a user, oldest first."""

    user_id: str
    watches: tuple[Watch, ...] = ()
    searches: tuple[Search, ...] = ()
    context: Context | None = None
    impressions: tuple[ShownList, ...] = ()
    signals: tuple[Signal, ...] = ()


class RecommendRequest(Struct, frozen=True, omit_defaults=True):
    request_id: str
    user_id: str
    k: int | None = None  # 1 to 1,000 items; None: as the server is set
    context: Context | None = None
    filter: str | None = None  # 'duration_s < 600 and channel in ["cats"]'
    exclude: tuple[str, ...] = ()
    deadline_ms: int | None = None  # how long the client waits, from the send
    record: bool = True  # false: the answer is shown to nobody, so it leaves no impression
    pinned: tuple[str, ...] = ()  # on top, in this order, where they may be shown
    history: bool = False  # true: the reply holds the user's history


class Recommended(Struct, frozen=True, omit_defaults=True):
    item_id: str
    rank: int  # 1 is the top of the list
    source: str
    score: float | None = None
    expected_watch_s: float | None = None
    probability: float | None = None  # that this item stands in this place; None: it was not drawn
    title: str = ""  # where the catalogue has one


class RecommendReply(Struct, frozen=True, omit_defaults=True):
    """An answer, or `error` for a request that could not be understood. `degraded` names the ladder's steps taken."""

    request_id: str
    items: tuple[Recommended, ...] = ()
    version: str = ""
    served_by: str = ""
    stages_ms: dict[str, float] = {}
    degraded: tuple[str, ...] = ()
    history_watches: int = 0
    history_event_ms: int | None = None  # of the newest watch that this answer knows of
    error: str | None = None
    retrieved_by: str = ""  # index or mirror
    history: UserHistory | None = None  # where it was asked for
    experiment: str = ""  # that the user is in
    variant: str = ""  # of it; empty where the list is of both its variants
    ranked_by: str = ""  # the release whose ranker ranked, where it is not the live one's


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(RecommendReply)


def encode(request: RecommendRequest) -> bytes:
    return _ENCODER.encode(request)


def decode_reply(raw: bytes | None, max_bytes: int) -> RecommendReply:
    """Read a reply. Raises ValueError, with a reason, for one that is empty, too large, no JSON or no reply."""
    if raw is None:
        raise ValueError("message has no value")
    if len(raw) > max_bytes:
        raise ValueError(f"message of {len(raw)} bytes is over the limit of {max_bytes} bytes")
    try:
        return _DECODER.decode(raw)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
