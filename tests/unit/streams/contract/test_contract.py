"""The AsyncAPI document and the page of topics: they are those of the code, the schemas take what travels and refuse
what is refused, and AsyncAPI's own schema takes the whole."""

import json
import operator
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft7Validator
from jsonschema.validators import extend

from streams import topics
from streams.contract.asyncapi import as_text, document
from streams.contract.schemas import kinds_of
from streams.contract.topics_page import topics_page
from streams.messages import (
    COMPACT,
    ErasureDone,
    Experiment,
    PartitionsRaised,
    RebuildAsked,
    RebuildDone,
    Refused,
    SourceTopics,
    UserErased,
    Variant,
    decode,
    encode,
    forms_of,
)
from streams.topics import TOPICS, Topic
from tests.harness.fuzz import GOOD, mutants
from tests.harness.needs import NPM, needs

DOCS = Path(__file__).parents[4] / "docs"
DOCUMENT = document()
BY_NAME = {topic.name: topic for topic in TOPICS}
MORE = [RebuildAsked("v1", 1), RebuildDone("v1", 1, 5, "", 7), SourceTopics("join/0", {"watch-events": "id"})]
MORE += [PartitionsRaised(3, 5, 1)]
MORE += [
    Experiment("one", "salt", 1, (Variant("a", 0.5), Variant("b", 0.5, {"serving.fresh": 1, "selection.explore": 0.1})))
]
SAMPLES = GOOD | {
    topics.RELEASES: [*GOOD[topics.RELEASES], *map(encode, MORE)],
    topics.FORGOTTEN: [encode(UserErased(1, "print")), encode(ErasureDone(3, 1))],
}
WHOLE_IN_JSON = [  # the join's states hold an impression as it came, whatever it says
    name for name in GOOD if "json" in forms_of(BY_NAME[name].message) and name != topics.JOIN_STATE
]
NO_SCHEMAS = ("base64", "Number out of range")  # matter: that it is none, that it is more than a float holds
MUTANTS = 300  # of each topic
STRICT = Draft7Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)  # 1.0 is none, to us
Validator = extend(Draft7Validator, type_checker=STRICT)


def message_named(name: str, of: dict[str, Any] = DOCUMENT) -> dict[str, Any]:
    found: dict[str, Any] = of["components"]["messages"][name]
    return found


def takes(message: str, value: Any) -> bool:
    """Whether the schema of a message takes a value, as JSON has it."""
    payload = DOCUMENT["components"]["messages"][message]["payload"]
    return Validator(payload | {"components": DOCUMENT["components"]}).is_valid(value)


def in_json(value: Any) -> Any:
    """MessagePack's values as JSON has them: bytes as base64."""
    return msgspec.json.decode(msgspec.json.encode(value))


def messages_of(topic: Topic, *, in_json: bool) -> list[str]:
    """The names of those that a record may be, by its form."""
    every = DOCUMENT["components"]["messages"]
    found = DOCUMENT["channels"][topic.name]["messages"]
    return [name for name in found if (every[name]["contentType"] == "application/json") == in_json]


def test_the_committed_document_and_page_are_those_of_the_code() -> None:
    made = "python -m streams.contract.asyncapi > docs/asyncapi.json"
    assert (DOCS / "asyncapi.json").read_text("utf-8") == as_text(), made
    made = "python -m streams.contract.topics_page > docs/topics.md"
    assert (DOCS / "topics.md").read_text("utf-8") == topics_page(), made


def test_what_others_may_write_is_what_the_page_of_messages_says_comes_in() -> None:
    """A client that is made from the document can send all of it, and nothing else."""
    page = (DOCS / "messages.md").read_text("utf-8").partition("## What comes in")[2].partition("\n## ")[0]
    named = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    ours = {topic.name for topic in TOPICS}
    assert {name.removeprefix("receive-") for name in DOCUMENT["operations"]} & ours == named & ours


def test_every_topic_has_a_channel_and_every_kind_of_message_a_sample() -> None:
    assert [name for name, each in DOCUMENT["channels"].items() if each["address"]] == [each.name for each in TOPICS]
    kinds = {kind for topic in TOPICS for kind in kinds_of(topic)}
    assert {type(decode(BY_NAME[name].message, raw)) for name, samples in SAMPLES.items() for raw in samples} == kinds


@pytest.mark.parametrize("name", SAMPLES)
def test_what_is_encoded_is_what_its_schema_says(name: str) -> None:
    topic, forms = BY_NAME[name], set()
    for raw in SAMPLES[name]:
        is_json = raw.startswith((b"{", b"["))
        value = msgspec.json.decode(raw) if is_json else in_json(msgspec.msgpack.decode(raw.removeprefix(COMPACT)))
        forms.add("json" if is_json else "compact" if raw.startswith(COMPACT) else "msgpack")
        assert any(takes(each, value) for each in messages_of(topic, in_json=is_json)), raw
    assert forms == set(forms_of(kinds_of(topic)[0]))


@pytest.mark.parametrize("name", WHOLE_IN_JSON)
def test_a_schema_takes_what_is_read_and_refuses_what_is_refused(name: str) -> None:
    """Of messages with something wrong in them, or not; what is no JSON at all is no schema's matter."""
    topic, messages, both = BY_NAME[name], messages_of(BY_NAME[name], in_json=True), {True: 0, False: 0}
    for value in islice(broken(name), MUTANTS):
        is_good, reason = True, ""
        try:
            decode(topic.message, msgspec.json.encode(value))
        except Refused as refused:
            is_good, reason = False, str(refused)
        if not any(each in reason for each in NO_SCHEMAS):
            both[is_good] += 1
            assert any(takes(each, value) for each in messages) == is_good, (value, reason)
    assert all(both.values()), "both kinds are in it"


def broken(name: str) -> Iterator[Any]:
    for raw in mutants(name, seed=3):
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            yield msgspec.json.decode(raw)


def test_a_limit_that_is_said_wrongly_is_found() -> None:
    event = msgspec.json.decode(SAMPLES[topics.WATCH_EVENTS][0])
    assert takes("WatchEvent", event) and not takes("WatchEvent", event | {"watch_s": -1.0})
    assert not takes("WatchEvent", {name: value for name, value in event.items() if name != "user_id"})
    bundle = {"kind": "bundle", "version": "v1", "created_ms": 1, "dim": 1, "items": 1, "schema_hash": ""}
    assert takes("BundlePublished", bundle) and not takes("BundlePublished", bundle | {"version": "a/b"})


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (each for name, each in value.items() if name == "$ref")
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from references(each)


def test_every_reference_of_the_document_leads_somewhere() -> None:
    found = set(references(DOCUMENT))
    assert len(found) > 50
    for reference in found:
        place: Any = DOCUMENT
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]


@needs(NPM)
def test_asyncapis_own_schema_takes_the_document_and_sees_what_is_wrong(tmp_path: Path) -> None:
    """Kafka's bindings too, as AsyncAPI publishes both."""
    install = ["npm", "install", "--no-fund", "--no-audit", "--ignore-scripts", "@asyncapi/specs@6"]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True, timeout=180)
    file = tmp_path / "node_modules" / "@asyncapi" / "specs" / "schemas" / "3.0.0-without-$id.json"
    validator = Draft7Validator(json.loads(file.read_text("utf-8")))
    assert not list(validator.iter_errors(DOCUMENT))
    for wrong in ("channels/items/bindings/kafka/partitions", "operations/receive-items/action", "info/version"):
        broken = document()
        *way, last = wrong.split("/")
        reduce(operator.getitem, way, broken)[last] = ["four"]
        assert not validator.is_valid(broken), wrong
