"""From one record of theirs to one message of ours, or to the reason why not: pure, the whole of what `ingest` decides.

A record is passed over when it is none of those that the mapping is about (`only`, `without`), or says nothing that our
stream has a word for (a row that was deleted, of a stream of events). A record that the mapping is about and that
cannot be used is refused, with the path and the type of what stands there, never with what it says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from infra.platform.topic_mappings import IDS, REQUIRED, SHARES, UNITS, TopicMapping
from streams.ingest.debezium import Change, unwrap
from streams.ingest.paths import Find, Record, finder
from streams.ingest.values import (
    Convert,
    Unfit,
    name_of,
    number_of,
    numbers_of,
    real_of,
    seconds_in,
    share_in,
    text_of,
    texts_of,
    time_ms_in,
    truth_of,
)
from streams.messages import Item, Refused, SearchEvent, SignalEvent, WatchEvent, refuse_future

Test = Callable[[Record], bool]

LONGEST_ID = 256
LONGEST_DESCRIPTION = 10_000
_UNFIT = (Unfit, ValueError, ArithmeticError)  # what a conversion raises
KINDS: Mapping[str, Any] = {
    "watch-events": WatchEvent,
    "search-events": SearchEvent,
    "signals": SignalEvent,
    "items": Item,
}
_PLAIN = (str, int, float)
_TRUTHS = ("available", "context.signed_in")
_REALS = ("context.gender", "context.age")


class Mapped(NamedTuple):
    """A message of ours under its key; no message: what takes the item down."""

    topic: str
    key: str
    message: WatchEvent | SearchEvent | SignalEvent | Item | None


class Slot(NamedTuple):
    """One of our fields: where it comes from and how."""

    name: str
    path: str
    find: Find
    convert: Convert


class Mapper:
    """A mapping, ready to be used. Raises PathError for a path that cannot be read."""

    def __init__(self, mapping: TopicMapping) -> None:
        self.topic, self.becomes = mapping.topic, mapping.becomes
        self._kind = KINDS[mapping.becomes]
        self._slots = [
            Slot(name, path, finder(path), converter(mapping, name)) for name, path in mapping.fields.items()
        ]
        self._values = {name: literal(name, value) for name, value in mapping.values.items()}
        self._id_slot = next((slot for slot in self._slots if slot.name == "item_id"), None)
        at = mapping.deleted_path
        self._deleted = None if at is None else Slot("item_id", at, finder(at), text_of)
        self._only, self._without = tests_of(mapping.only), tests_of(mapping.without)
        self._tests = [(holds, True) for holds in self._only] + [(holds, False) for holds in self._without]
        self._only_at = [finder(path) for path in mapping.only]
        self._available_when = tests_of(mapping.available_when)
        self._required = [slot.name for slot in self._slots if slot.name in REQUIRED[mapping.becomes]]
        self._is_nested = any("." in name for name in (*mapping.fields, *mapping.values))
        self._is_share = mapping.units.get("watch_s") in SHARES
        self._is_wrapped = mapping.envelope == "debezium"

    def __call__(self, record: Record, *, latest_ms: int | None = None) -> Mapped | None:
        """None: passed over. Raises Refused, and nothing else. `latest_ms`: the latest time that an event can have."""
        if self._is_wrapped or record.value is None:
            change = unwrap(record) if self._is_wrapped else Change(record, is_deleted=True)
            if change is None:
                return None
            if change.is_deleted:
                return self._taken_down(change)
            record = change.record
        for holds, wanted in self._tests:
            if holds(record) is not wanted:
                return None
        message = self._message(record)
        if latest_ms is not None:
            refuse_future(message, latest_ms)
        key = message.item_id if isinstance(message, Item) else message.user_id
        return Mapped(self.becomes, key, message)

    def _message(self, record: Record) -> Any:
        fields = self._values.copy()
        for slot in self._slots:
            name, _, find, convert = slot
            value = find(record)
            if value is not None:
                try:
                    fields[name] = convert(value)
                except _UNFIT as error:
                    raise unfit(slot, value, error) from None
        if self._is_share and "watch_s" in fields:
            fields["watch_s"] = fields["watch_s"] * fields["duration_s"] if "duration_s" in fields else None
        if self._available_when:
            fields["available"] = all(holds(record) for holds in self._available_when)
        if self._kind is not Item and "event_id" not in fields:
            fields["event_id"] = event_id_of(record.place)
        try:
            return msgspec.convert(nested(fields) if self._is_nested else fields, self._kind)
        except msgspec.ValidationError as error:
            raise self._lack(fields) or Refused("invalid", self._explain(str(error))) from None

    def _lack(self, fields: Mapping[str, Any]) -> Refused | None:
        """Why a message cannot be made at all; None: all that it must have is there."""
        lacking = (slot for slot in self._slots if slot.name in self._required and fields.get(slot.name) is None)
        slot = next(lacking, None)
        if slot is None:
            return None
        of = " or duration_s" if slot.name == "watch_s" and self._is_share else ""
        return Refused("missing", f"{slot.name}: nothing at {slot.path}{of}")

    def _explain(self, problem: str) -> str:
        """What msgspec says of a field of ours, with the path that it came from."""
        _, found, name = problem.rpartition("`$.")
        slot = next((slot for slot in self._slots if found and name.startswith(slot.name)), None)
        return f"{problem}, from {slot.path}" if slot else problem

    def _taken_down(self, change: Change) -> Mapped | None:
        """Of a row that was deleted there may be what it was, or no more than its key."""
        record = change.record
        if self._kind is not Item:
            if self._is_wrapped:
                return None
            raise Refused("empty", "record has no value")
        if self._is_anothers(record):
            return None
        slots = [slot for slot in (self._id_slot, self._deleted) if slot is not None]
        for slot in slots:
            value = slot.find(record)
            if value is not None:
                item_id = _item_id(slot, value)
                if 0 < len(item_id) <= LONGEST_ID:
                    return Mapped(self.becomes, item_id, None)
                raise Refused("invalid", f"item_id from {slot.path}: expected 1 to {LONGEST_ID} characters")
        if change.is_bare and self._deleted is None:  # what there is to say, the change before it has said
            return None
        raise Refused(
            "missing", f"item_id of what is taken down: nothing at {' or '.join(each.path for each in slots)}"
        )

    def _is_anothers(self, record: Record) -> bool:
        """Whether a row that is gone was none that the mapping is about, by what is told of it: maybe only its key."""
        only = zip(self._only_at, self._only, strict=True)
        return any(find(record) is not None and not holds(record) for find, holds in only) or any(
            holds(record) for holds in self._without
        )


def unfit(slot: Slot, value: Any, error: Exception) -> Refused:
    """Why a value cannot be converted, without the value."""
    found = name_of(value)
    why = f"expected {error}, found {found}" if isinstance(error, Unfit) else f"{found} that is out of range"
    return Refused("invalid", f"{slot.name} from {slot.path}: {why}")


def _item_id(slot: Slot, value: Any) -> str:
    try:
        return text_of(value)
    except Unfit as error:
        raise unfit(slot, value, error) from None


def converter(mapping: TopicMapping, name: str) -> Convert:
    """How a field of ours is made of what stands at its path."""
    if name in UNITS:
        return _of_unit(name, mapping.unit_of(name))
    if name in _TRUTHS:
        return truth_of
    if name in _REALS:
        return real_of
    if name == "vector":
        return numbers_of
    if name == "description":
        return _description
    return texts_of if _is_list(name) else text_of


def _description(value: Any) -> str:
    """Only its beginning is read (models.catalogue.content): for its length no item is refused."""
    return text_of(value)[:LONGEST_DESCRIPTION]


def _of_unit(name: str, unit: str) -> Convert:
    if name.endswith("_ms"):
        return time_ms_in(unit)
    return share_in(unit) if unit in SHARES else seconds_in(unit)


def literal(name: str, value: Any) -> Any:
    """What a setting says that a field always is."""
    if _is_list(name):
        return texts_of(value)
    if name in _TRUTHS:
        return truth_of(value)
    if name == "vector":
        return numbers_of(value)
    is_number = name.endswith(("_ms", "_s")) or name in _REALS
    return number_of(value) if is_number else text_of(value)


def _is_list(name: str) -> bool:
    return name == "topics" or name.startswith(IDS)


def nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`context.region` as a field of the field `context`."""
    tree: dict[str, Any] = {}
    for name, value in fields.items():
        outer, dot, inner = name.partition(".")
        if dot:
            tree.setdefault(outer, {})[inner] = value
        else:
            tree[name] = value
    return tree


def event_id_of(place: tuple[str, int, int]) -> str:
    """The same for the same record, however often it is read."""
    name = f"{place[0]}/{place[1]}/{place[2]}"
    return name if len(name) <= LONGEST_ID else hashlib.blake2b(name.encode(), digest_size=32).hexdigest()


def tests_of(wanted: Mapping[str, Any]) -> list[Test]:
    """For each path what tells whether one of the wanted values stands there."""
    return [_test(finder(path), values if isinstance(values, tuple) else (values,)) for path, values in wanted.items()]


def _test(find: Find, values: tuple[Any, ...]) -> Test:
    """`true` is not 1, though Python says so; what is no plain value is none of them."""
    wanted = frozenset((isinstance(value, bool), value) for value in values)
    texts = frozenset(value for value in values if isinstance(value, str))

    def holds(record: Record) -> bool:
        value = find(record)
        if type(value) is str:  # most are
            return value in texts
        return isinstance(value, _PLAIN) and (isinstance(value, bool), value) in wanted

    return holds
