"""Waiting for what another process or thread will do."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(happened: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    give_up_s = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < give_up_s, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.05)
