"""A filter as an expression of Milvus, against what it means on the catalogue, on a real Milvus Lite server, and on a
Milvus server where there is one. One before 2.4 refuses filters on topics: LIKE finds no middle of a text there.
"""

import random
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict
from pymilvus import DataType, MilvusClient

from indexer.item_attributes import UNKNOWN, ItemAttributes, add_fields, as_row, attributes_of, to_milvus
from models.catalogue.catalogue import Catalogue
from models.catalogue.filter_syntax import parse_filter
from models.catalogue.item_filter import FIELDS, can_be_named
from models.logs.log import CONTENT_COLUMNS
from streams.messages import Item

COLLECTION = "filtered"
NAMED = [
    *("a", "b", "A", "a b", "ab", "news", "and", "not", "true", "null", "channel", "%", "_", "a%", "a_b", "|", "a|b"),
    *("!", "!i", "a!ib", "!p", "\\", "\\\\", "a\\", "\\n", "\\u0041", '"', "'", 'it\'s "x"', "${x}", "{x}", "[", "]"),
    *("é", "e\u0301", "😀", "क", "\u200b", "\u2028", "\x85", "\xa0", "\ufeff", "\uffff", "\ud7ff", "1", "x" * 256),
    "😀" * 256,
]
UNNAMED = ["", "x" * 257, "\x00", "\x01", "a\nb", "a\tb", "\b", "\x1b", "\x7f"]
DURATIONS = [None, 0.0, 0.1, 1 / 3, 5.0, 59.999, 60.0, 600.0, 16_777_217.0, 1e9, 1e-45, 1e-50]
TIMES = [None, 0, 1, 5_000, 1_700_000_000_000, 1_700_000_000_001, 2**53 - 1, 2**53, 2**53 + 1, 2**62]


class Site(NamedTuple):
    client: MilvusClient
    catalogue: Catalogue
    item_ids: list[str]
    knows_topics: bool

    def takes(self, text: str) -> bool:
        """Return whether this Milvus reads such a filter."""
        return self.knows_topics or "topics" not in text


def some_items(seed: int) -> list[Item]:
    """240 of them: each odd value at least once, and ten that have many topics or none that can be named."""
    rng = random.Random(seed)
    names = NAMED + UNNAMED
    items = [
        Item(
            f"i{number}",
            channel=rng.choice([None, names[number % len(names)]]),
            topics=tuple(rng.sample(names, rng.choice([0, 1, 2, 3, 9]))),
            duration_s=rng.choice(DURATIONS),
            published_ms=rng.choice(TIMES),
            available=rng.random() < 0.9,
            language=rng.choice([None, "de", "en", rng.choice(names)]),
        )
        for number in range(230)
    ]
    many = [Item(f"m{number}", topics=tuple(rng.sample(names, 40))) for number in range(5)]
    return items + many + [Item(f"u{number}", topics=tuple(UNNAMED[: number + 1])) for number in range(5)]


@pytest.fixture(scope="module")
def site(milvus_uri: str) -> Iterator[Site]:
    """Every seventh item is unknown to the catalogue; half of the rows are in a segment, half in the memtable."""
    client, catalogue = MilvusClient(uri=milvus_uri), Catalogue()
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("item_id", DataType.VARCHAR, max_length=64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)
    add_fields(schema)
    index = MilvusClient.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="IP")
    client.drop_collection(COLLECTION)  # of a run that was broken off
    client.create_collection(COLLECTION, schema=schema, index_params=index, consistency_level="Strong")
    rows = []
    for number, item in enumerate(some_items(seed=1)):
        known = number % 7 > 0
        rows.append({"item_id": item.item_id, "vector": [1.0, 2.0]} | as_row(attributes_of(item) if known else UNKNOWN))
        if known:
            facts = asdict(item)
            catalogue.upsert(**{name: facts[name] for name in facts if name not in CONTENT_COLUMNS})
    client.upsert(COLLECTION, rows[::2])
    client.flush(COLLECTION)
    client.upsert(COLLECTION, rows[1::2])
    is_old = re.match(r"v?(1|2\.[0-3])\.", client.get_server_version()) is not None
    yield Site(client, catalogue, [row["item_id"] for row in rows], knows_topics=not is_old)
    client.drop_collection(COLLECTION)
    client.close()


def in_milvus(site: Site, text: str) -> set[str]:
    expression = to_milvus(parse_filter(text))
    found = site.client.query(COLLECTION, filter=expression, output_fields=["item_id"], consistency_level="Strong")
    return {row["item_id"] for row in found}


def on_the_catalogue(site: Site, text: str) -> set[str]:
    mask = parse_filter(text).mask(site.catalogue, site.catalogue.rows(site.item_ids))
    return set(np.array(site.item_ids)[mask])


names = (st.sampled_from(NAMED) | st.text(min_size=1, max_size=6).filter(can_be_named)).map(repr)
signs = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
durations = st.sampled_from([-1.0, -0.0, 3e38, *filter(None, DURATIONS)]) | st.floats(-1e9, 1e9) | st.integers(-5, 700)
times = st.sampled_from([-1, -(2**63), 2**63 - 1, 1.7e12, *filter(None, TIMES)]) | st.integers(-(2**63), 2**63 - 1)


def comparisons_of(field: str, numbers: st.SearchStrategy[float]) -> st.SearchStrategy[str]:
    written = numbers.map(repr)
    return (
        st.builds(f"{field} {{}} {{}}".format, signs, written)
        | st.builds(f"{{}} {{}} {field}".format, written, signs)
        | st.builds(f"{{}} <= {field} < {{}}".format, written, written)
    )


comparisons = (
    st.builds("{} {} {}".format, st.sampled_from(["channel", "language"]), st.sampled_from(["==", "!="]), names)
    | st.builds(
        "{} {} [{}]".format,
        st.sampled_from(["channel", "language"]),
        st.sampled_from(["in", "not in"]),
        st.lists(names, min_size=1, max_size=5).map(", ".join),
    )
    | st.builds("{} {} topics".format, names, st.sampled_from(["in", "not in"]))
    | comparisons_of("duration_s", durations)
    | comparisons_of("published_ms", times)
)
filters = st.recursive(
    comparisons,
    lambda inner: (
        inner.map("not ({})".format)
        | st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or"]), inner)
        | st.builds("{} {} {}".format, inner, st.sampled_from(["and", "or"]), inner)
    ),
    max_leaves=8,
)


@pytest.mark.system
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(filters)
def test_milvus_and_the_catalogue_let_the_same_items_through(site: Site, text: str) -> None:
    assume(site.takes(text))
    assert in_milvus(site, text) == on_the_catalogue(site, text)


@pytest.mark.system
def test_every_name_that_can_be_named_finds_its_items_and_no_others(site: Site) -> None:
    items = {item.item_id: item for item in some_items(seed=1) if site.catalogue.row(item.item_id) >= 0}
    for name in NAMED:
        by_topic = {item_id for item_id, item in items.items() if name in [t for t in item.topics if t][:32]}
        if site.takes("topics"):
            assert in_milvus(site, f"{name!r} in topics") == by_topic
        by_channel = {item_id for item_id, item in items.items() if item.channel == name}
        assert in_milvus(site, f"channel == {name!r}") == by_channel
        assert in_milvus(site, f"channel in [{name!r}, 'nobody']") == by_channel


@pytest.mark.system
def test_each_kind_of_comparison_lets_some_items_through_and_some_not(site: Site) -> None:
    """So that the property above is not one of empty sets."""
    for text in (
        "duration_s < 60",
        "duration_s != 60",
        "duration_s == 0.1",
        "published_ms >= 5000",
        "language == 'de'",
        "language not in ['de', 'en']",
        "'news' in topics",
        "'news' not in topics",
        "not ('news' in topics or duration_s < 60)",
        "channel != 'a' and published_ms < 9e15",
    ):
        assert 0 < len(on_the_catalogue(site, text)) < len(site.item_ids)
        if site.takes(text):
            assert in_milvus(site, text) == on_the_catalogue(site, text)


def test_an_expression_says_what_is_unknown() -> None:
    for text, expression in [
        ("duration_s < 600", "(duration_s >= 0 and duration_s < 600.0)"),
        ("published_ms > 5e3", "(published_ms >= 0 and published_ms > 5000)"),
        (f"published_ms > {-(2**63)}", "(published_ms >= 0 and published_ms > -1)"),
        (f"published_ms < {2**63 - 1}", f"(published_ms >= 0 and published_ms < {2**53})"),
        ('channel in ["a", \'b"\']', 'channel in ["a", "b\\""]'),
        ('language != "de"', '(language != "" and not (language in ["de"]))'),
        ('"a_b" in topics', '(topics like "%|a!ub|%")'),
        ("not duration_s > 5", "not ((duration_s >= 0 and duration_s > 5.0))"),
    ]:
        assert to_milvus(parse_filter(text)) == expression


def test_a_filters_fields_are_called_as_those_of_milvus() -> None:
    assert set(FIELDS) == set(ItemAttributes._fields) - {"available"}
