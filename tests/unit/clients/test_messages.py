"""The client's messages are the server's, written a second time."""

from __future__ import annotations

from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest

import nextwatch_client
import streams.messages
from streams.topics import RECOMMEND_REPLIES, RECOMMEND_REQUESTS


def fields_of(message: type[msgspec.Struct]) -> list[tuple[str, Any, str]]:
    """Name, type (without limits, which the server checks) and default of each field, in their order."""
    types = get_type_hints(message)
    return [(each.encode_name, shape(types[each.name]), repr(each.default)) for each in msgspec.structs.fields(message)]


def shape(kind: Any) -> Any:
    """A type as names, whichever of the two modules a message in it is of."""
    origin = get_origin(kind)
    if origin is None:
        return getattr(kind, "__name__", repr(kind))
    return "or" if origin in (Union, UnionType) else origin.__name__, *map(shape, get_args(kind))


@pytest.mark.parametrize("name", ["Context", "RecommendRequest", "Recommended", "RecommendReply"])
def test_what_the_client_sends_and_reads_is_what_the_server_reads_and_sends(name: str) -> None:
    ours, theirs = getattr(nextwatch_client, name), getattr(streams.messages, name)
    assert fields_of(ours) == fields_of(theirs)
    assert ours.__struct_config__.omit_defaults == theirs.__struct_config__.omit_defaults


def test_the_topics_are_the_servers() -> None:
    options = nextwatch_client.ConnectionOptions(bootstrap="127.0.0.1:1")
    assert (options.requests, options.replies) == (RECOMMEND_REQUESTS, RECOMMEND_REPLIES)
