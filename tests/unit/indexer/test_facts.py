"""The facts of a catalogue: the newest of each item, and small."""

from __future__ import annotations

from indexer.facts import Facts
from indexer.scalars import UNKNOWN, Scalars, scalars_of
from streams.messages import Item, decode


def test_only_what_is_new_is_news() -> None:
    facts = Facts()
    assert not facts.set("a", UNKNOWN)
    assert facts.set("a", Scalars("music"))
    assert not facts.set("a", Scalars("music"))
    assert facts.set("a", UNKNOWN)
    assert facts.of("a") == facts.of("never heard of") == UNKNOWN


def test_what_was_forgotten_is_unknown_and_news_again() -> None:
    facts = Facts()
    facts.set("a", Scalars("music"))
    facts.forget("a")
    facts.forget("a")
    assert (facts.of("a"), len(facts)) == (UNKNOWN, 0)
    assert facts.set("a", Scalars("music"))


def test_equal_names_are_kept_once() -> None:
    facts = Facts()
    for item_id in ("a", "b"):
        entry = b'{"item_id": "%s", "channel": "music", "topics": ["t", "u"], "language": "en"}' % item_id.encode()
        facts.set(item_id, scalars_of(decode(Item, entry)))
    one, other = facts.of("a"), facts.of("b")
    assert one == other
    assert one.channel is other.channel
    assert one.topics is other.topics
    assert one.language is other.language
