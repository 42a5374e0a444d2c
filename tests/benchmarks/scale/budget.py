"""The time that a benchmark has for all its sizes: a larger one is left out where it would take too long."""

from __future__ import annotations

import os


class Budget:
    """`SCALE_BUDGET_S` seconds of the environment, or else `default_s`. A size is thought to take as long as the one
    before it by their ratio, the first one `first_s`."""

    def __init__(self, default_s: float, first_s: float) -> None:
        self._left_s = float(os.environ.get("SCALE_BUDGET_S", default_s))
        self._size, self._took_s = 0, first_s

    def lack(self, size: int) -> str:
        """Say how much time is missing for a size; nothing where there is enough."""
        wanted_s = self._took_s * (size / self._size if self._size else 1.0)
        if wanted_s <= self._left_s:
            return ""
        return f"for want of time: about {wanted_s:,.0f} s, of which {max(0.0, self._left_s):,.0f} are left"

    def took(self, size: int, wall_s: float) -> None:
        self._size, self._took_s = size, wall_s
        self._left_s -= wall_s
