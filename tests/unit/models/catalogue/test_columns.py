import numpy as np
import pytest

from models.catalogue.columns import Columns


def test_rows_survive_growth():
    columns = Columns(a=np.arange(3), b=np.zeros((3, 2)))
    for n in range(100):
        assert columns.append(a=n, b=[n, -n]) == 3 + n
    assert len(columns) == 103
    assert columns["a"].tolist() == [0, 1, 2, *range(100)]
    assert columns["b"][-1].tolist() == [99, -99]


def test_growing_copies_a_logarithmic_number_of_times():
    columns = Columns(a=np.arange(1000))
    capacities = set()
    for n in range(10_000):
        columns.append(a=n)
        capacities.add(columns.capacity)
    assert len(capacities) <= 4


def test_a_view_is_written_in_place():
    columns = Columns(a=np.zeros(2))
    columns["a"][1] = 5
    assert columns["a"].tolist() == [0, 5]


def test_a_row_needs_every_column():
    with pytest.raises(ValueError, match="exactly the columns"):
        Columns(a=np.zeros(1), b=np.zeros(1)).append(a=1)
    with pytest.raises(ValueError, match="differ in length"):
        Columns(a=np.zeros(1), b=np.zeros(2))
