"""The threads that computing may use: torch's own, and those of numpy's BLAS.

Not only for speed of computing: the threads of OpenBLAS wait by spinning. With two of them on two cores a core is busy
for 40 ms after each product, and a Milvus on the same machine takes twice as long for the next search. What is worth
two threads is divided among ours, which sleep when they have nothing to do (`in_parts`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

MOST_PARTS = 2

T = TypeVar("T")


def limit_threads(threads: int) -> None:
    """In this process, from now on."""
    torch.set_num_threads(threads)
    threadpool_limits(threads, user_api="blas")


def in_parts(work: Callable[[slice], T], size: int, least: int) -> list[T]:
    """`work` on parts of rows 0 to `size` at once, none of fewer than `least` rows unless it is the only one; what it
    returns, in the order of rows. For work that numpy and torch do without the interpreter."""
    parts = max(1, min(MOST_PARTS, _cores(), size // least))
    *others, mine = [slice(*part) for part in pairwise(size * number // parts for number in range(parts + 1))]
    pending = [_pool().submit(work, part) for part in others]
    last = work(mine)
    return [*(each.result() for each in pending), last]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MOST_PARTS - 1, thread_name_prefix="parts")


def _cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
