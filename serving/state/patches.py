"""A private part of torch that the mirror uses: a product whose weights are int8 and stay so.

torch has no public one that neither copies the rows nor turns them into float32 first. Where this one is missing, was
not checked, or is no quicker than numpy, the mirror compares in float32 and finds the same.
tests/unit/serving/state/test_patches.py tells when it is no longer what was checked.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor

from infra.platform.third_parties.patching import UncheckedVersion, require_version

ALIGNED = 64  # numbers that the width is a multiple of, and bytes that addresses are: what AVX-512 may load at once


def has_int8_product() -> bool:
    """True if torch is of a version that was checked, and has vector code for it on this machine."""
    try:
        require_version("torch", "2.13", "2.16")
    except UncheckedVersion:
        return False
    is_vectorised = torch.backends.cpu.get_cpu_capability().startswith("AVX") or _is_arm()
    return is_vectorised and platform.system() != "Windows" and hasattr(torch, "_weight_int8pack_mm")


def int8_product(queries: Tensor, rows: Tensor, scales: Tensor) -> Tensor:
    """Inner products of queries bfloat16 [B, W] with rows int8 [N, W], each times its scale bfloat16 [N]; summed in
    float32, bfloat16 [B, N]. Raises ValueError for what is not aligned: torch does not look, and the process would end.

    Why: 100,000 rows of 256 numbers in 2.8 ms of a core with AVX2, where float32 takes 11 ms; `torch._int_mm` takes 29.
    Upstream: aten/src/ATen/native/cpu/int8mm_kernel.cpp, where what is rounded can be seen.
    """
    width = rows.shape[1]
    if width % ALIGNED or any(each.data_ptr() % ALIGNED or not each.is_contiguous() for each in (queries, rows)):
        raise ValueError(f"int8 products need rows of a multiple of {ALIGNED} numbers, at such addresses, got {width}")
    found: Tensor = torch._weight_int8pack_mm(queries, rows, scales)
    return found


def _is_arm() -> bool:
    return platform.machine().lower() in {"aarch64", "arm64"}
