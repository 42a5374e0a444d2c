"""Progress of long work, as a person sees it: a bar for each stage on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

Step = Callable[[str, int, int], None]  # (stage, done, of how many)


def no_progress(stage: str, done: int, total: int) -> None:
    """A Step for whoever does not look."""


@contextmanager
def progress_bars(*, quiet: bool = False, transient: bool = False) -> Iterator[Step]:
    """A bar for each stage, with the time left; nothing when a script reads us. `transient` ones go at the end."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    bars = Progress(*columns, TimeRemainingColumn(), console=console, disable=quiet, transient=transient)
    tasks: dict[str, TaskID] = {}

    def step(stage: str, done: int, total: int) -> None:
        if not tasks:
            bars.start()
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total)

    try:
        yield step
    finally:
        if tasks:  # an error before the first step is one line, without an empty one before it
            bars.stop()
