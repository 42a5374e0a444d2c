"""Where a training computes: the processor, or a GPU that torch knows.

Tables of embeddings stay in the machine's memory, where a catalogue of any size fits: of each step only the rows that
take part go to the device, and their gradients come back.
"""

from __future__ import annotations

from typing import Literal

import torch

DeviceName = Literal["cpu", "cuda"]


class DeviceMissing(ValueError):
    """There is no such device here; the text says why, and what to do."""


def device_of(name: DeviceName) -> torch.device:
    """Raises DeviceMissing."""
    if name == "cuda" and not torch.cuda.is_available():
        why = "this torch was built without CUDA" if torch.version.cuda is None else "it finds no GPU"
        raise DeviceMissing(
            f"--device cuda: torch {torch.__version__}: {why}; install a build for your GPU, or take cpu"
        )
    return torch.device(name)
