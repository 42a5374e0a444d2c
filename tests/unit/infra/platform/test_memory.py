from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.platform.memory import WALK_S, Collections, available_bytes, free_bytes, short_collections

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


@pytest.mark.parametrize(
    "group", ["memory.max memory.current", "memory/memory.limit_in_bytes memory/memory.usage_in_bytes"]
)
@pytest.mark.parametrize(("limit_mb", "used_mb", "free_mb"), [(1000, 700, 350), (9000, 700, 6000), (1000, 1100, 0)])
def test_free_is_what_a_container_has_left_of_its_limit(
    tmp_path: Path, meminfo: Path, group: str, limit_mb: int, used_mb: int, free_mb: int
) -> None:
    """Page cache that was not used lately can be had."""
    limit, usage = (tmp_path / name for name in group.split())
    limit.parent.mkdir(exist_ok=True)
    limit.write_text(f"{limit_mb * MB}\n")
    usage.write_text(f"{used_mb * MB}\n")
    (usage.parent / "memory.stat").write_text(f"anon 1\ninactive_file {50 * MB}\nactive_file {90 * MB}\n")
    assert free_bytes(meminfo, tmp_path) == free_mb * MB


def test_free_without_a_container_is_what_the_machine_has_left(tmp_path: Path, meminfo: Path) -> None:
    assert free_bytes(meminfo, tmp_path) == 6000 * MB


class Cycle:
    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def nothing_set_aside() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("generation", [0, 1, 2])
def test_what_there_is_when_a_process_is_ready_is_set_aside(nothing_set_aside: None, generation: int) -> None:
    ready = False
    old = [[each] for each in range(10_000)]
    with short_collections(lambda: ready) as collections:
        gc.collect(generation)
        assert gc.get_freeze_count() == 0  # it starts: what there is now may be gone soon
        ready = True
        gc.collect(generation)
        assert gc.get_freeze_count() > len(old) > len(gc.get_objects(generation=2))
        assert collections.longest_s == 0
        gc.collect()
        assert 0 < collections.longest_s < 1
        assert gc.get_freeze_count() > len(old)
    assert gc.get_freeze_count() == 0
    assert collections not in gc.callbacks


def test_what_was_set_aside_and_became_garbage_is_found_by_the_next_look_at_everything(nothing_set_aside: None) -> None:
    now_s = 0.0
    collections = Collections(lambda: True, lambda: now_s)
    gc.callbacks.append(collections)
    try:
        cycle = Cycle()
        there = weakref.ref(cycle)
        gc.collect()
        del cycle
        now_s = WALK_S - 1
        gc.collect()
        assert there() is not None
        now_s = WALK_S
        gc.collect()
        assert there() is None
        assert gc.get_freeze_count() > 0  # and the rest is set aside again
    finally:
        gc.callbacks.remove(collections)
