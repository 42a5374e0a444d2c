from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from pydantic import SecretStr

import nextwatch_client
import streams.messages
from infra.platform.kafka_clients import client_options, kafka_python_options
from infra.platform.settings import Kafka
from nextwatch_client import ConnectionOptions, OptionsError
from nextwatch_client.patches import Connections
from streams.topics import RECOMMEND_REPLIES, RECOMMEND_REQUESTS
from tests.unit.infra.certificates import make_certificates

LOGIN = Kafka(
    bootstrap="a:1,b:2",
    security_protocol="SASL_PLAINTEXT",
    sasl_mechanism="SCRAM-SHA-512",
    username="ann",
    password=SecretStr("hidden"),
    topic_prefix="p-",
    max_message_bytes=1000,
)


def test_our_settings_reach_the_client_whole() -> None:
    options = client_options(LOGIN)
    assert options.kafka_python() == kafka_python_options(LOGIN)
    assert options.kafka_python() == {
        "bootstrap_servers": ["a:1", "b:2"],
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "ann",
        "sasl_plain_password": "hidden",
        "kafka_client": Connections,
    }
    assert (options.requests, options.replies) == ("p-recommend-requests", "p-recommend-replies")
    assert options.max_reply_bytes == 8000


def test_a_password_is_never_printed() -> None:
    assert "hidden" not in repr(client_options(LOGIN))


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    made.lock("client", "locked")
    own = {"ssl_ca_file": made.pem("stranger"), "ssl_cert_file": made.pem("client")}
    for files, says in (
        ({"ssl_ca_file": Path("/nowhere.pem")}, r"ssl_ca_file /nowhere\.pem cannot be used"),
        (own | {"ssl_key_file": made.key("stranger")}, "ssl_cert_file, ssl_key_file .* cannot be used"),
        (own | {"ssl_key_file": made.key("locked")}, "locked by a passphrase"),
    ):
        with pytest.raises(OptionsError, match=says):
            ConnectionOptions(bootstrap="a:1", security_protocol="SSL", **files).kafka_python()
    good = ConnectionOptions(bootstrap="a:1", security_protocol="SSL", **own, ssl_key_file=made.key("client"))
    assert good.kafka_python()["ssl_context"].check_hostname


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


@pytest.mark.parametrize(
    "name", ["Context", "RecommendRequest", "Recommended", "RecommendReply", "Watch", "Search", "ShownList", "Signal"]
)
def test_what_the_client_sends_and_reads_is_what_the_server_reads_and_sends(name: str) -> None:
    """The client's messages are the server's, written a second time."""
    ours, theirs = getattr(nextwatch_client, name), getattr(streams.messages, name)
    assert fields_of(ours) == fields_of(theirs)
    assert ours.__struct_config__.omit_defaults == theirs.__struct_config__.omit_defaults


def test_the_history_in_a_reply_is_read_but_for_the_servers_own_book_keeping() -> None:
    watch = streams.messages.Watch("v", 1, 2.0, None, False, "e", 7)
    said = streams.messages.Signal("dislike", "v", None, 1, "s", 4)
    book_keeping: Any = {"watch_offset": 7, "seen": b"x", "since_ms": 3, "signal_offset": 4}
    history = streams.messages.UserHistory("ann", (watch,), signals=(said,), **book_keeping)
    raw = streams.messages.encode(streams.messages.RecommendReply("r", history=history))
    read = nextwatch_client.messages.decode_reply(raw, len(raw)).history
    assert read == nextwatch_client.UserHistory(
        "ann",
        (nextwatch_client.Watch(*msgspec.structs.astuple(watch)),),
        signals=(nextwatch_client.Signal(*msgspec.structs.astuple(said)),),
    )


def test_the_topics_are_the_servers() -> None:
    options = nextwatch_client.ConnectionOptions(bootstrap="127.0.0.1:1")
    assert (options.requests, options.replies) == (RECOMMEND_REQUESTS, RECOMMEND_REPLIES)
