"""Debezium's envelope: a change of a row, with the row before and after it.

Bare, or in the `schema` and `payload` of Kafka Connect's JSON converter. `c`, `u` and `r` (created, updated, read in a
snapshot) are the row as it is; `d` is one that is gone, and so is the tombstone that follows it. What is no row
(`t` truncates a table, `m` is a message) is passed over.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from streams.ingest.paths import Record
from streams.ingest.values import name_of
from streams.messages import Refused

IS_THERE, IS_GONE, IS_NO_ROW = ("c", "u", "r"), "d", ("t", "m")


class Change(NamedTuple):
    """A record whose value is the row; of a deleted one as it was, or None where nobody knows. `is_bare`: a tombstone,
    which says no more than its key."""

    record: Record
    is_deleted: bool
    is_bare: bool = False


def unwrap(record: Record) -> Change | None:
    """None: no row was changed. Raises Refused for what is no envelope."""
    key = record.key
    record = record._replace(value=payload_of(record.value), key=lambda: payload_of(key()))
    change = record.value
    if change is None:
        return Change(record, is_deleted=True, is_bare=True)
    operation = change.get("op") if isinstance(change, dict) else None
    if operation in IS_NO_ROW:
        return None
    if operation == IS_GONE:
        return Change(record._replace(value=change.get("before")), is_deleted=True)
    if operation in IS_THERE and change.get("after") is not None:
        return Change(record._replace(value=change["after"]), is_deleted=False)
    at = "after" if operation in IS_THERE else "op"
    found = change.get(at) if isinstance(change, dict) else change
    raise Refused("invalid", f"no Debezium envelope: found {name_of(found)} at {at}")


def payload_of(value: Any) -> Any:
    """What is in Kafka Connect's own envelope, if it is there."""
    if isinstance(value, dict) and value.keys() == {"schema", "payload"}:
        return value["payload"]
    return value
