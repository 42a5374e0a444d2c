"""How many threads computing may use."""

import sys
from subprocess import run
from threading import Barrier

import pytest

from models.threads import in_parts

ASKED = """
import torch
from threadpoolctl import threadpool_info
from models.threads import limit_threads
limit_threads({threads})
print(torch.get_num_threads(), *{{pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}})
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_torch_and_blas_use_so_many(threads: int) -> None:
    """In a process of its own: the rest of the suite goes on with its own number."""
    done = run([sys.executable, "-c", ASKED.format(threads=threads)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(threads)] * 2


@pytest.mark.parametrize(
    ("cores", "size", "parts"), [(8, 0, 1), (8, 1, 1), (8, 9, 1), (8, 10, 2), (8, 11, 2), (8, 100, 2), (1, 100, 1)]
)
def test_rows_are_divided_in_their_order_and_none_is_left_out(
    monkeypatch: pytest.MonkeyPatch, cores: int, size: int, parts: int
) -> None:
    monkeypatch.setattr("models.threads._cores", lambda: cores)
    found = in_parts(lambda rows: list(range(size))[rows], size, least=5)
    assert len(found) == parts
    assert [row for part in found for row in part] == list(range(size))


def test_parts_are_worked_on_at_once_and_what_goes_wrong_in_one_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.threads._cores", lambda: 8)
    meeting = Barrier(2, timeout=10)
    in_parts(lambda rows: meeting.wait(), 10, least=5)

    def fail(rows: slice) -> None:
        if not rows.start:
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        in_parts(fail, 10, least=5)
