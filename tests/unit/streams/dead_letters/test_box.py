"""How often a message was tried, as its letters tell it."""

from streams.dead_letters.box import Entry, Place, tries_of


def box_of(**retried_from: str) -> dict[Place, Entry]:
    """Letters of `watch-events/0`, by offset: which letter each was sent again from."""
    places = {name: Place("watch-events", 0, int(name[1:])) for name in retried_from}
    return {place: Entry(place, 0, "invalid", "", 1, True, retried_from[name]) for name, place in places.items()}


def tries(box: dict[Place, Entry], offset: int) -> int:
    return tries_of(box, box[Place("watch-events", 0, offset)])


def test_a_message_was_tried_once_and_once_more_for_each_letter_that_it_was_sent_again_from():
    box = box_of(_1="", _5="watch-events/0/1", _9="watch-events/0/5")
    assert [tries(box, offset) for offset in (1, 5, 9)] == [1, 2, 3]


def test_a_letter_that_is_no_longer_kept_counts_and_nothing_is_known_before_it():
    assert tries(box_of(_9="watch-events/0/5"), 9) == 2


def test_a_header_that_leads_in_a_circle_or_nowhere_ends():
    box = box_of(_1="watch-events/0/2", _2="watch-events/0/1", _3="watch-events/0/3", _4="no place", _5="a/b/c")
    assert [tries(box, offset) for offset in (1, 2, 3, 4, 5)] == [2, 2, 1, 1, 1]
