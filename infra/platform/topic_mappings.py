"""The mapping of a team's own topic to one of ours, as it is configured: `[[ingest.topics]]` (docs/your-topics.md).

What a mapping says is checked here, before anything runs: which of our fields it fills, from where, in which unit. How
it is carried out: streams/ingest/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Becomes = Literal["watch-events", "search-events", "signals", "items"]
Format = Literal["json", "avro", "protobuf", "json-schema"]
Scalar = bool | int | float | str

CONTEXT = tuple(f"context.{name}" for name in ("region", "language", "device", "surface", "signed_in", "gender", "age"))
ABOUT = ("item_id", "channel")  # a signal names one of the two
REQUIRED: Mapping[Becomes, tuple[str, ...]] = {
    "watch-events": ("user_id", "item_id", "event_ms", "watch_s"),
    "search-events": ("user_id", "query", "event_ms"),
    "signals": ("user_id", "kind", "event_ms"),
    "items": ("item_id",),
}
OPTIONAL: Mapping[Becomes, tuple[str, ...]] = {
    "watch-events": ("event_id", "duration_s", "request_id", *CONTEXT),
    "search-events": ("event_id", *CONTEXT),
    "signals": ("event_id", *ABOUT),
    "items": (
        *("title", "channel", "topics", "duration_s", "published_ms", "available", "language"),
        *("description", "vector"),
    ),
}
IDS = "ids."  # of an item: what else groups items, by a name of the team's own
SHARES = ("fraction", "percent")  # of the duration
TIMES, SPANS = ("s", "ms", "us", "ns", "iso"), ("s", "ms", "us", "ns")
UNITS: Mapping[str, tuple[str, ...]] = {  # the first is taken where none is said
    "event_ms": ("ms", *(unit for unit in TIMES if unit != "ms")),
    "published_ms": ("ms", *(unit for unit in TIMES if unit != "ms")),
    "watch_s": (*SPANS, *SHARES),
    "duration_s": SPANS,
}


class TopicMapping(BaseModel):
    """One topic of a team's own, and what its records become."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    topic: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]  # the whole name: it gets no prefix
    becomes: Becomes
    format: Format = "json"
    key_format: Literal["text", "json", "avro", "protobuf", "json-schema"] = "text"
    envelope: Literal["none", "debezium"] = "none"
    fields: dict[str, str]  # our field: the path of theirs
    values: dict[str, Scalar] = {}  # our field: what it always is
    units: dict[str, str] = {}  # our field: the unit of theirs
    only: dict[str, Scalar | tuple[Scalar, ...]] = {}  # a path: what must be there, or one of a list
    without: dict[str, Scalar | tuple[Scalar, ...]] = {}  # a path: what must not be there
    available_when: dict[str, Scalar | tuple[Scalar, ...]] = {}  # the same as `only`, for an item that may be shown
    deleted: str | None = None  # the path of the id of an item that is taken down, where only its key is left

    @field_validator("fields", "values", "units", "only", "without", "available_when", mode="before")
    @classmethod
    def _flatten(cls, table: Any) -> Any:
        """Take `context.region = "geo"` of TOML, which is a table in a table, as the one name that it looks like."""
        return dict(_flat(table)) if isinstance(table, Mapping) else table

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        known = (*REQUIRED[self.becomes], *OPTIONAL[self.becomes])
        for table, names in (("fields", self.fields), ("values", self.values), ("units", self.units)):
            for name in names:
                if name not in known and not (self.becomes == "items" and name.startswith(IDS)):
                    raise ValueError(f"{table}.{name}: {self.becomes} have no such field; they have {', '.join(known)}")
        if both := sorted(self.fields.keys() & self.values.keys()):
            raise ValueError(f"{both[0]} is in fields and in values: it has one origin")
        if missing := [name for name in REQUIRED[self.becomes] if name not in {*self.fields, *self.values}]:
            raise ValueError(f"fields.{missing[0]} is missing: {self.becomes} must have it")
        if self.becomes == "signals" and not {*self.fields, *self.values}.intersection(ABOUT):
            raise ValueError("fields.item_id is missing: signals must have it, or channel")
        return self

    @model_validator(mode="after")
    def _check_units(self) -> Self:
        for name, unit in self.units.items():
            if unit not in UNITS.get(name, ()):
                fit = ", ".join(UNITS.get(name, ())) or "none: it is neither a time nor a duration"
                raise ValueError(f"units.{name} is {unit!r}; there are {fit}")
        is_share = self.units.get("watch_s") in SHARES
        if is_share and "duration_s" not in {*self.fields, *self.values}:
            raise ValueError(f"units.watch_s is {self.units['watch_s']!r}, of a duration_s that is not mapped")
        if self.available_when and (self.becomes != "items" or "available" in {*self.fields, *self.values}):
            raise ValueError("available_when is for items, in place of fields.available")
        return self

    @property
    def deleted_path(self) -> str | None:
        """Debezium's keys are objects: which of their fields is the item's id, nobody knows who was not told."""
        return self.deleted or (None if self.envelope == "debezium" else "$key")

    def unit_of(self, name: str) -> str:
        return self.units.get(name, UNITS[name][0])


def _flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value
