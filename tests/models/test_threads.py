"""How many threads computing may use."""

from __future__ import annotations

import sys
from subprocess import run

import pytest

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
