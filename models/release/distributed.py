"""One training on several processes: who this one is, and how it meets the others.

Every process holds all tables and computes a share of each batch (models.retrieval.candidate_training); files are
written by the first. On one machine the processes meet in a file and talk over loopback. Across machines torchrun
starts them; its own store listens on every interface of the first machine, which is torch's doing and a matter for a
firewall.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

MEETING_FILE = "MEETING_FILE"  # in the environment of the processes of one machine


class HelperFailed(RuntimeError):
    """Not all processes of a training came to its end."""


@contextmanager
def process_group(environ: Mapping[str, str] = os.environ) -> Iterator[int]:
    """Join the others, over gloo; the rank of this one, 0 when it is alone."""
    world = int(environ.get("WORLD_SIZE", "1"))
    if world <= 1:
        yield 0
        return
    rank = int(environ["RANK"])
    if MEETING_FILE in environ:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group("gloo", f"file://{environ[MEETING_FILE]}", rank=rank, world_size=world)
    else:
        dist.init_process_group("gloo", rank=rank, world_size=world)  # where torchrun says
    try:
        yield rank
    finally:
        dist.destroy_process_group()


def agreed(number: int) -> int:
    """The first process's number, in all of them."""
    if not dist.is_initialized():
        return number
    told = torch.tensor(number, dtype=torch.int64)
    dist.broadcast(told, src=0)
    return int(told)


@contextmanager
def helpers(processes: int, arguments: Sequence[str]) -> Iterator[None]:
    """Start Python with these arguments (this very command's) `processes` - 1 times more, to help in this one's
    training; wait for them in the end.

    Raises HelperFailed when one of them failed."""
    if processes <= 1 or "RANK" in os.environ:
        yield
        return
    with TemporaryDirectory(prefix="nextwatch-") as scratch:
        meeting = {MEETING_FILE: f"{Path(scratch) / 'meeting'}", "WORLD_SIZE": f"{processes}"}
        others = [
            subprocess.Popen(
                [sys.executable, *arguments],
                env={**os.environ, **meeting, "RANK": f"{rank}"},
                stdout=subprocess.DEVNULL,
            )
            for rank in range(1, processes)
        ]
        os.environ.update(meeting, RANK="0")
        try:
            yield
            failed = [other.args for other in others if other.wait()]
        finally:
            for name in (*meeting, "RANK"):
                os.environ.pop(name, None)
            for other in others:
                other.kill()
        if failed:
            raise HelperFailed(f"{len(failed)} of the helping processes failed; their errors stand above")
