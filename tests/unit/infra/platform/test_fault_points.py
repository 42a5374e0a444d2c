"""A fault point costs nothing until a test arms it; then whoever reaches it dies there, once."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from infra.platform.fault_points import DIED, POINTS, VARIABLE

POINT = POINTS[0]
REACHES = (
    f"from infra.platform.fault_points import reached\nfor n in range(3): reached({POINT!r}); print(n, flush=True)"
)


def run(directory: Path | None) -> tuple[int, int]:
    """A process that reaches the point three times: its exit code, and how often it got beyond."""
    environ = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environ |= {VARIABLE: str(directory)} if directory else {}
    done = subprocess.run([sys.executable, "-c", REACHES], env=environ, capture_output=True, check=False, timeout=30)
    return done.returncode, len(done.stdout.splitlines())


def test_whoever_reaches_an_armed_point_dies_at_the_time_that_was_told_and_its_successor_does_not(tmp_path):
    (tmp_path / POINT).write_text("2")
    assert run(tmp_path) == (-signal.SIGKILL, 1)
    assert (tmp_path / f"{POINT}{DIED}").exists()
    assert run(tmp_path) == (0, 3)


def test_nobody_dies_where_the_variable_is_not_set(tmp_path):
    (tmp_path / POINT).write_text("1")
    assert run(None) == (0, 3) and (tmp_path / POINT).exists()


def test_every_point_that_is_listed_is_in_the_code_and_every_one_in_the_code_is_listed():
    root = Path(__file__).parents[4]
    found = set()
    for package in ("streams", "indexer", "serving"):
        for path in (root / package).rglob("*.py"):
            found |= set(re.findall(r'reached\(f?"([^"]+)"\)', path.read_text(encoding="utf-8")))
    stages = ("history", "join", "trending", "trainer")
    found = {point.replace("{stage}", stage) for point in found for stage in stages}
    assert found == set(POINTS)
