from __future__ import annotations

from pathlib import Path

import pytest

from infra.platform.memory import available_bytes

MB = 1 << 20


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(f"MemTotal: {8000 * 1024} kB\nMemFree: 1 kB\nMemAvailable: {6000 * 1024} kB\n")
    return path


def test_without_a_limit_it_is_what_the_machine_has_left(tmp_path: Path, meminfo: Path) -> None:
    assert available_bytes(meminfo, tmp_path) == 6000 * MB
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(meminfo, tmp_path) == 6000 * MB


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
@pytest.mark.parametrize(("limit_mb", "available_mb"), [(1000, 1000), (9000, 6000)])
def test_a_container_has_no_more_than_its_limit(
    tmp_path: Path, meminfo: Path, name: str, limit_mb: int, available_mb: int
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(f"{limit_mb * MB}\n")
    assert available_bytes(meminfo, tmp_path) == available_mb * MB


def test_where_nothing_is_told_it_is_what_is_installed(tmp_path: Path) -> None:
    assert available_bytes(tmp_path / "none", tmp_path) > 100 * MB
