"""Seconds by stage of a run of the product's own functions: each named one is measured where it is called."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from typing import Any

from tests.benchmarks.report import memory_bytes
from tests.harness.beside import beside


class Stopwatch:
    """`seconds` by stage; `told` by stage what was to be kept of what its function returned last."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.told: dict[str, float] = {}
        self._clock = clock

    def run(self, stage: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        began_s = self._clock()
        try:
            return function(*arguments, **named)
        finally:
            self.seconds[stage] += self._clock() - began_s

    def measured(
        self, function: Callable[..., Any], stage: str, told: Callable[[Any], float] | None = None
    ) -> Callable[..., Any]:
        """The function, with its calls measured. `told` of what it returns is kept."""

        @wraps(function, updated=())
        def run(*arguments: Any, **named: Any) -> Any:
            result = self.run(stage, function, *arguments, **named)
            if told is not None:
                self.told[stage] = told(result)
            return result

        return run

    def watch(self, owner: Any, name: str, stage: str, told: Callable[[Any], float] | None = None) -> None:
        """Measure calls of `owner.name` from now on, in this process."""
        setattr(owner, name, self.measured(getattr(owner, name), stage, told))


def most_memory(work: Callable[[], Any]) -> dict[str, float]:
    """Run `work`; the most that this process has held, in megabytes: `anonymous`, as it is looked at every 20 ms, and
    `all` with pages of files, as the kernel says."""
    most = memory_bytes("RssAnon")

    def look(stop: threading.Event) -> None:
        nonlocal most
        while not stop.wait(0.02):
            most = max(most, memory_bytes("RssAnon"))

    with beside(look, "memory"):
        work()
    return {"anonymous": most / 1e6, "all": memory_bytes("VmHWM") / 1e6}
