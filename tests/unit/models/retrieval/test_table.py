from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.logs.array_file import mapped
from models.retrieval.table import FIRST_SQUARE, ROOM, Distinct, Table, write_table


def noise(rows: int, dim: int = 3, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def test_a_step_is_row_wise_adagrad_computed_by_hand():
    table = Table.of(np.zeros((3, 2), np.float32), first_square=0.5)
    table.move(torch.tensor([1]), torch.tensor([[3.0, 4.0]]), 0.1)
    square = 0.5 + (9 + 16) / 2
    np.testing.assert_allclose(table.values[1], -0.1 * np.array([3, 4]) / np.sqrt(square), rtol=1e-6)
    np.testing.assert_allclose(table.squares, [0.5, square, 0.5], rtol=1e-6)
    assert (table.values[[0, 2]] == 0).all(), "only the touched rows move"


def test_what_a_step_would_do_is_known_before_it_is_done():
    table = Table.of(noise(4))
    before = table.values.clone()
    change, squares = table.change(torch.tensor([1]), torch.full((1, 3), torch.inf), 0.1)
    assert not (change.isfinite().all() and squares.isfinite().all())
    assert (table.values == before).all()


def test_growing_keeps_rows_and_views_where_there_is_room():
    table = Table.of(noise(2))
    view = table.values
    for n in range(100):
        assert table.append(np.full(3, n, np.float32)) == 2 + n
    assert view.data_ptr() == table.values.data_ptr()
    np.testing.assert_array_equal(table.values[:2], noise(2))
    assert table.values[101].tolist() == [99, 99, 99]
    assert (table.squares == np.float32(FIRST_SQUARE)).all()


def test_a_table_grows_beyond_its_room():
    table = Table.of(noise(3), room=3)
    table.extend(noise(5, seed=2))
    np.testing.assert_array_equal(table.values, np.concatenate([noise(3), noise(5, seed=2)]))
    assert len(table) == len(table.squares) == 8


def test_room_takes_addresses_and_no_memory():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    tables = [Table(256, room=4 * ROOM) for _ in range(4)]  # 17 GB
    assert resident() - before < 100_000_000
    assert all(len(table) == 0 for table in tables)


def test_a_table_file_is_mapped_and_read_back(tmp_path: Path):
    write_table(tmp_path / "rows.npy", noise(5))
    array = mapped(tmp_path / "rows.npy")
    assert isinstance(array, np.memmap)
    np.testing.assert_array_equal(Table.of(array).values, noise(5))


@given(st.lists(st.integers(0, 8), max_size=20))
def test_distinct_rows_and_their_places(rows: list[int]):
    find = Distinct(3)  # it grows
    for _ in range(2):
        distinct, places = find(np.array(rows, np.int64))
        assert sorted(distinct.tolist()) == sorted(set(rows))
        assert distinct[places].tolist() == rows
