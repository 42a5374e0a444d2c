"""Which histories a rebuild writes."""

import pytest

from streams.history.rebuild_histories import Rebuilt, changes_of
from streams.messages import COMPACT, UserHistory, Watch, encode

HISTORY = UserHistory("u", (Watch("a", 1, 2.0, None, True, "e", 3),), watch_offset=3)


@pytest.mark.parametrize(
    ("before", "compact", "changes"),
    [(True, True, 0), (False, True, 0), (False, False, 0), (True, False, 1)],
)
def test_the_same_history_is_written_only_where_its_form_cannot_be_read(before: bool, compact: bool, changes: int):
    found = changes_of({"u": encode(HISTORY, compact=before)}, {"u": HISTORY}, Rebuilt(), compact=compact)
    assert found == ({"u": encode(HISTORY, compact=False)} if changes else {})


@pytest.mark.parametrize(("compact", "first"), [(True, COMPACT), (False, b"{")])
def test_a_history_that_differs_is_written_in_the_form_of_the_settings(compact: bool, first: bytes):
    before = {"u": encode(UserHistory("u"), compact=not compact), "gone": b"junk"}
    changes = changes_of(before, {"u": HISTORY}, Rebuilt(), compact=compact)
    assert changes.keys() == {"u", "gone"} and changes["gone"] is None
    assert changes["u"] is not None and changes["u"].startswith(first)
