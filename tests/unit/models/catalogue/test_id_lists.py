import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.catalogue.id_lists import IdLists

names = st.lists(st.sampled_from(["", "a", "b", "c", "d"]), max_size=5)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), names), max_size=40), st.integers(1, 4))
def test_lists_are_as_they_were_last_set(changes: list[tuple[int, list[str]]], most: int) -> None:
    lists, simple = IdLists(), {}
    for row, values in changes:
        lists.set(row, values)
        simple[row] = tuple(dict.fromkeys(value for value in values if value))
    known = [simple.get(row, ()) for row in range(9)]
    assert [lists.names_of(row) for row in range(9)] == known
    table = lists.table(9, most)
    assert table.shape[1] == max(1, min(most, max(map(len, known))))
    assert [tuple(lists.names[code] for code in row if code) for row in table] == [row[:most] for row in known]
    first = lists.first(np.array([-1, *range(9), 99]))
    assert [lists.names[code] for code in first] == ["", *(row[0] if row else "" for row in known), ""]
    assert first.dtype == np.int32
