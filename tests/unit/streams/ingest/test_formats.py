"""Avro and Protobuf by a registry over HTTP: read as they were written, refused when they are not, waited for when the
registry cannot tell yet."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2, message_factory, timestamp_pb2, wrappers_pb2
from pydantic import SecretStr

from infra.platform.settings import Ingest, SettingsError
from streams.ingest.formats import decoder_of, split
from streams.ingest.protobuf import place_of
from streams.ingest.registry import Registry, Waiting
from streams.messages import Refused
from tests.harness.needs import FASTAVRO, needs
from tests.harness.schema_registry import SchemaRegistry, framed, running_registry

AT = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
VIEWER = {"type": "record", "name": "acme.Viewer", "fields": [{"name": "id", "type": "long"}]}
PLAY = {
    "type": "record",
    "name": "acme.Play",
    "fields": [
        {"name": "viewer", "type": "acme.Viewer"},
        {"name": "video", "type": ["null", {"type": "string", "logicalType": "uuid"}]},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}},
    ],
}
TOLD = {"viewer": {"id": 7}, "video": UUID(int=9), "at": AT, "price": Decimal("3.50")}


@pytest.fixture
def registry() -> Iterator[SchemaRegistry]:
    with running_registry() as running:
        yield running


def reading(name: str, registry: SchemaRegistry, **change: Any) -> Callable[[bytes], Any]:
    return decoder_of(name, Registry(Ingest(registry_url=registry.url, **change)))


def avro_of(schema: Any, value: Any) -> bytes:
    import fastavro

    written = io.BytesIO()
    fastavro.schemaless_writer(written, fastavro.parse_schema(schema), value)
    return written.getvalue()


def avro_play(registry: SchemaRegistry) -> bytes:
    """A play whose schema refers to another one."""
    registry.register("viewer value", json.dumps(VIEWER))
    reference = {"name": "acme.Viewer", "subject": "viewer value", "version": 1}
    number = registry.register("play", json.dumps(PLAY), [reference])
    whole = PLAY | {"fields": [{"name": "viewer", "type": VIEWER}, *PLAY["fields"][1:]]}
    return framed(number, avro_of(whole, TOLD))


@needs(FASTAVRO)
def test_avro_is_read_by_its_schema_and_what_that_refers_to_and_each_is_asked_for_once(registry):
    read, raw = reading("avro", registry), avro_play(registry)
    assert [read(raw), read(raw)] == [TOLD, TOLD]
    assert registry.asked == ["/schemas/ids/2", "/subjects/viewer%20value/versions/1"]


@needs(FASTAVRO)
@pytest.mark.parametrize("cut", [slice(0, 7), slice(0, 5), slice(5, None), slice(0, 4)])
def test_bytes_that_are_no_avro_of_their_schema_are_refused(registry, cut: slice):
    read, raw = reading("avro", registry), avro_play(registry)
    with pytest.raises(Refused) as refused:
        read(raw[cut])
    assert refused.value.code == "malformed"


@needs(FASTAVRO)
def test_a_schema_that_is_not_known_yet_is_waited_for_and_then_read(registry):
    read = reading("avro", registry)
    raw = framed(1, avro_of("string", "cats"))
    with pytest.raises(Waiting, match="schema id 1, which the schema registry does not know"):
        read(raw)
    registry.register("s", '"string"')
    assert read(raw) == "cats"


@needs(FASTAVRO)
def test_a_registry_that_is_away_or_ill_or_wants_a_login_is_waited_for(registry):
    registry.register("s", '"string"')
    raw = framed(1, avro_of("string", "cats"))
    registry.status = 500
    with pytest.raises(Waiting, match="answers 500 for schema id 1"):
        reading("avro", registry)(raw)
    registry.status, registry.login = None, "Basic " + base64.b64encode(b"us:secret").decode()
    with pytest.raises(Waiting, match=r"to let us in \(ingest\.registry_username"):
        reading("avro", registry)(raw)
    login = {"registry_username": "us", "registry_password": SecretStr("secret")}
    assert reading("avro", registry, **login)(raw) == "cats"
    registry.server_close()
    with pytest.raises(Waiting, match=r"the schema registry: .*refused"):
        decoder_of("avro", Registry(Ingest(registry_url="http://127.0.0.1:9")))(raw)


@needs(FASTAVRO)
@pytest.mark.parametrize("text", ['"no_such_type"', "{", "{}", "7", "null", '{"type": "record"}', "[" * 100_000])
def test_a_record_whose_schema_is_none_is_refused_for_an_id_never_changes_its_schema(registry, text: str):
    registry.register("s", text)
    read = reading("avro", registry)
    for _ in range(2):
        with pytest.raises(Refused, match="schema id 1 is no Avro schema") as refused:
            read(framed(1, b"\0"))
        assert refused.value.code == "malformed"


@needs(FASTAVRO)
@pytest.mark.parametrize(
    "reply",
    [
        [],
        {},
        {"schema": {"type": "string"}},
        {"schema": '"string"', "references": 7},
        {"schema": '"string"', "references": ["viewer"]},
        {"schema": '"string"', "references": [{"name": "viewer", "version": 1}]},
        {"schema": '"string"', "references": [{"name": "viewer", "subject": "viewer", "version": "newest"}]},
    ],
)
def test_a_registry_whose_reply_has_another_shape_is_waited_for(registry, reply: Any):
    registry.schemas.append(("s", reply))
    with pytest.raises(Waiting, match="what it says of schema id 1 holds no schema"):
        reading("avro", registry)(framed(1, b"\0"))


def test_a_registry_that_has_failed_is_left_alone_for_a_moment(registry, monkeypatch: pytest.MonkeyPatch):
    registry.register("s", '"string"')
    asking = Registry(Ingest(registry_url=registry.url))
    registry.status = 503
    for _ in range(2):
        with pytest.raises(Waiting, match="answers 503 for schema id 1"):
            asking.schema(1)
    assert len(registry.asked) == 1
    away = Registry(Ingest(registry_url="http://127.0.0.1:9"))
    with pytest.raises(Waiting, match="refused"):
        away.schema(1)
    monkeypatch.setattr(away, "_url", registry.url)
    with pytest.raises(Waiting, match="refused"):
        away.schema(2)
    assert len(registry.asked) == 1, "whatever is asked: each try would hold up all that can be read"
    monkeypatch.setattr("streams.ingest.registry.time", SimpleNamespace(monotonic=lambda: 1e12))
    registry.status = None
    assert (asking.schema(1).text, away.schema(1).text) == ('"string"', '"string"')


def test_a_registry_that_answers_in_drops_is_not_waited_for_to_its_end(registry, monkeypatch: pytest.MonkeyPatch):
    registry.register("s", " " * 5_000_000)
    monkeypatch.setattr("streams.ingest.registry.TIMEOUT_S", 0.2)
    monkeypatch.setattr("streams.ingest.registry.PIECE_BYTES", 1)
    with pytest.raises(Waiting, match="takes too long"):
        Registry(Ingest(registry_url=registry.url)).schema(1)


def test_the_registrys_login_does_not_go_to_where_it_points(registry):
    login = {"registry_username": "us", "registry_password": SecretStr("secret")}
    registry.register("s", '"string"')
    registry.login = "Basic " + base64.b64encode(b"us:secret").decode()
    with running_registry() as pointing:
        pointing.moved_to = registry.url
        with pytest.raises(Waiting, match="to let us in"):
            Registry(Ingest(registry_url=pointing.url, **login)).schema(1)
    assert registry.asked == ["/schemas/ids/1"]


def test_json_schema_is_json_behind_an_id_and_needs_no_registry():
    read = decoder_of("json-schema", None)
    assert read(framed(9, b'{"a":1}')) == {"a": 1}
    for raw in (b'{"a":1}', framed(9, b"{"), b""):
        with pytest.raises(Refused):
            read(raw)


def test_a_certificate_authority_that_is_none_is_told_at_the_start(tmp_path):
    with pytest.raises(SettingsError, match=r"ingest\.registry_ca_file .* cannot be used"):
        Registry(Ingest(registry_url="https://127.0.0.1:9", registry_ca_file=tmp_path / "no.pem"))


def protobuf_files() -> tuple[descriptor_pb2.FileDescriptorProto, descriptor_pb2.FileDescriptorProto]:
    """viewer.proto, and play.proto that imports it; compiled as `protoc` would."""
    kinds = descriptor_pb2.FieldDescriptorProto
    viewer = descriptor_pb2.FileDescriptorProto(name="viewer.proto", package="acme", syntax="proto3")
    message = viewer.message_type.add(name="Viewer")
    message.field.add(name="id", number=1, type=kinds.TYPE_INT64, label=kinds.LABEL_OPTIONAL)
    play = descriptor_pb2.FileDescriptorProto(name="play.proto", package="acme", syntax="proto3")
    play.dependency.extend(
        ["viewer.proto", *(each.DESCRIPTOR.name for each in (timestamp_pb2, duration_pb2, wrappers_pb2))]
    )
    play.message_type.add(name="Other")
    message = play.message_type.add(name="Outer").nested_type.add(name="Play")
    kind = message.enum_type.add(name="Kind")
    for number, name in enumerate(("START", "END")):
        kind.value.add(name=name, number=number)
    fields = (
        ("viewer", ".acme.Viewer"),
        ("at", ".google.protobuf.Timestamp"),
        ("played", ".google.protobuf.Duration"),
        ("title", ".google.protobuf.StringValue"),
    )
    for number, (name, of) in enumerate(fields, 1):
        message.field.add(name=name, number=number, type=kinds.TYPE_MESSAGE, type_name=of, label=kinds.LABEL_OPTIONAL)
    message.field.add(
        name="kind", number=5, type=kinds.TYPE_ENUM, type_name=".acme.Outer.Play.Kind", label=kinds.LABEL_OPTIONAL
    )
    message.field.add(name="position", number=6, type=kinds.TYPE_INT64, label=kinds.LABEL_OPTIONAL)
    message.field.add(name="tags", number=7, type=kinds.TYPE_STRING, label=kinds.LABEL_REPEATED)
    entry = message.nested_type.add(name="CountsEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=kinds.TYPE_INT32, label=kinds.LABEL_OPTIONAL)
    message.field.add(
        name="counts",
        number=8,
        type=kinds.TYPE_MESSAGE,
        type_name=".acme.Outer.Play.CountsEntry",
        label=kinds.LABEL_REPEATED,
    )
    return viewer, play


def protobuf_play(**change: Any) -> bytes:
    pool = descriptor_pool.DescriptorPool()
    for module in (timestamp_pb2, duration_pb2, wrappers_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        pool.Add(file)
    for file in protobuf_files():
        pool.Add(file)
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName("acme.Outer.Play"))(**change)
    return bytes(message.SerializeToString())


def register_protobuf(registry: SchemaRegistry) -> int:
    viewer, play = (base64.b64encode(file.SerializeToString()).decode() for file in protobuf_files())
    registry.register("viewer", viewer)
    return registry.register("play", play, [{"name": "viewer.proto", "subject": "viewer", "version": 1}])


INDEX = b"\4\2\0"  # two indexes, in zigzag: message 1 of the file, message 0 in it


def test_protobuf_is_read_by_its_compiled_schema_and_what_that_imports(registry):
    read, number = reading("protobuf", registry), register_protobuf(registry)
    told = {"viewer": {"id": 2**53 + 1}, "at": AT, "played": timedelta(seconds=31), "title": "cats", "kind": 1}
    told |= {"tags": ["a"], "counts": {"x": 3}}
    raw = framed(number, INDEX + protobuf_play(**told | {"title": {"value": "cats"}}))
    assert [read(raw), read(raw)] == [told | {"kind": "END", "position": 0}] * 2, "zero is a value"
    assert "viewer" not in read(framed(number, INDEX)), "what is not set is not there"
    assert registry.asked == [
        f"/schemas/ids/{number}?format=serialized",
        "/subjects/viewer/versions/1?format=serialized",
    ]


def test_bytes_that_are_no_protobuf_of_their_schema_are_refused(registry):
    read, number = reading("protobuf", registry), register_protobuf(registry)
    for data in (b"", b"\4", b"\4\2", b"\4\2\7", b"\3", b"\2\x20", INDEX + b"\xff", b"\xff\xff\xff\xff\xff\xff"):
        with pytest.raises(Refused) as refused:
            read(framed(number, data))
        assert refused.value.code == "malformed", data


def test_a_registry_that_gives_the_source_of_a_protobuf_schema_is_told_of_as_such(registry):
    number = registry.register("play", 'syntax = "proto3"; message Play {}')
    with pytest.raises(Waiting, match="does the registry know format=serialized"):
        reading("protobuf", registry)(framed(number, b"\0"))


def test_where_a_message_stands_in_its_file():
    assert place_of(b"\0x") == ((0,), 1)
    assert place_of(INDEX + b"x") == ((1, 0), 3)
    assert place_of(b"\2\xac\2x") == ((150,), 3)
    assert split(framed(258, b"x")) == (258, b"x")
