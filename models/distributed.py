"""One training on several processes: who this one is, and how it meets the others.

Started by torchrun, which says so in the environment. Every process holds all tables and computes a share of each batch
(models.candidate_training); what is written is written by the first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch.distributed as dist

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@contextmanager
def process_group(environ: Mapping[str, str] = os.environ) -> Iterator[int]:
    """Join the processes that torchrun started, over gloo; the rank of this one, 0 when it is alone.

    Where they meet on loopback, nothing of theirs listens beyond it."""
    if int(environ.get("WORLD_SIZE", "1")) <= 1:
        yield 0
        return
    if environ.get("MASTER_ADDR", "") in LOOPBACK:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()
