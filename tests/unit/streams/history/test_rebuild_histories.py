"""Which histories a rebuild writes."""

from __future__ import annotations

import pytest

from streams.history.rebuild_histories import Rebuilt, changes_of
from streams.messages import COMPACT, UserHistory, Watch, encode

HISTORY = UserHistory("u", (Watch("a", 1, 2.0, None, True, "e", 3),), watch_offset=3)


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_the_same_history_in_another_form_is_not_written_again(compact: bool, before: bool):
    rebuilt = Rebuilt()
    assert changes_of({"u": encode(HISTORY, compact=before)}, {"u": HISTORY}, rebuilt, compact=compact) == {}
    assert (rebuilt.users, rebuilt.differ) == (1, 0)


@pytest.mark.parametrize(("compact", "first"), [(True, COMPACT), (False, b"{")])
def test_a_history_that_differs_is_written_in_the_form_of_the_settings(compact: bool, first: bytes):
    before = {"u": encode(UserHistory("u"), compact=not compact), "gone": b"junk"}
    changes = changes_of(before, {"u": HISTORY}, Rebuilt(), compact=compact)
    assert changes.keys() == {"u", "gone"} and changes["gone"] is None
    assert changes["u"] is not None and changes["u"].startswith(first)
