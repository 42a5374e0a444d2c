"""What torch rounds in the product that the mirror's bounds rest on; where a test fails, it is another product now."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infra.platform.third_parties import patching
from serving.state import patches
from serving.state.patches import ALIGNED, has_int8_product, int8_product


@pytest.mark.parametrize("queries", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("rows", [1, 3, 4, 130])
def test_sums_are_in_float32_and_only_the_result_is_rounded_to_bfloat16(queries: int, rows: int) -> None:
    rng = np.random.default_rng(queries)
    width = 4 * ALIGNED
    asked = torch.from_numpy(rng.standard_normal((queries, width), np.float32)).bfloat16()
    known = torch.from_numpy(rng.integers(-127, 128, (rows, width)).astype(np.int8)).clone()  # aligned, as numpy is not
    scales = torch.from_numpy(rng.random(rows, np.float32)).bfloat16()
    exact = asked.double() @ known.double().T * scales.double()
    sums = (asked.double().abs() @ known.double().abs().T * scales.double()) * width * 2.0**-24
    found = int8_product(asked, known, scales).double()
    assert ((found - exact).abs() <= 2.0**-8 * found.abs() + sums).all()
    assert ((found - exact).abs() > 2.0**-12 * found.abs()).any(), "no bfloat16 any more: bounds may be closer"


def test_what_is_not_aligned_is_refused_and_does_not_end_the_process() -> None:
    query, rows, scales = torch.zeros(1, 60).bfloat16(), torch.zeros(2, 60, dtype=torch.int8), torch.ones(2).bfloat16()
    with pytest.raises(ValueError, match="multiple of 64 numbers"):
        int8_product(query, rows, scales)
    room = torch.zeros(3 * ALIGNED, dtype=torch.int8)
    query = torch.zeros(1, ALIGNED).bfloat16()
    with pytest.raises(ValueError, match="multiple of 64 numbers"):
        int8_product(query, room[1 : 1 + 2 * ALIGNED].view(2, ALIGNED), scales)


def test_there_is_no_public_product_that_keeps_weights_in_int8() -> None:
    assert not hasattr(torch, "weight_int8pack_mm")
    assert not hasattr(torch.nn.functional, "int8_linear")


def test_another_version_of_torch_is_not_used_and_does_not_end_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(patches.platform, "system", lambda: "Linux")
    assert has_int8_product()
    monkeypatch.setattr(patching, "version", lambda _: "2.16.0")
    assert not has_int8_product()


@pytest.mark.parametrize(
    ("system", "machine", "capability", "is_used"),
    [
        ("Linux", "x86_64", "AVX512", True),
        ("Linux", "x86_64", "DEFAULT", False),
        ("Darwin", "arm64", "DEFAULT", True),
        ("Linux", "aarch64", "DEFAULT", True),
        ("Windows", "AMD64", "AVX2", False),
    ],
)
def test_it_is_used_where_torch_has_vector_code_for_it(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, capability: str, is_used: bool
) -> None:
    monkeypatch.setattr(patches.platform, "system", lambda: system)
    monkeypatch.setattr(patches.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert has_int8_product() is is_used
