"""How many threads computing may use: torch's own, and those of numpy's BLAS.

Not only for speed of computing: the threads of OpenBLAS wait by spinning. With two of them on two cores a core is busy
for 40 ms after each product, and a Milvus on the same machine takes twice as long for the next search.
"""

from __future__ import annotations

import torch
from threadpoolctl import threadpool_limits


def limit_threads(threads: int) -> None:
    """In this process, from now on."""
    torch.set_num_threads(threads)
    threadpool_limits(threads, user_api="blas")
