"""Faults that are put into a running system on purpose, to see that the verdict of a crash run finds them.

The product knows nothing of it: `site/sitecustomize.py` is what Python runs first in each process, and where VARIABLE
names one of FAULTS it changes a method of the one process that is to be at fault.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

VARIABLE = "SABOTAGE_OF_A_TEST"
SITE = Path(__file__).with_name("site")
EVERY = 10  # of the calls that could go wrong, one in so many does
HUNDRED = 100  # of examples


class Fault(NamedTuple):
    """`process` is what its command line ends with; `finding` is what the verdict has to call it."""

    process: tuple[str, ...]
    finding: str
    put: Callable[[], None]


def put_in(name: str) -> None:
    """Change this process, if it is the one."""
    fault = FAULTS[name]
    if tuple(sys.argv[-len(fault.process) :]) == fault.process:
        fault.put()


def _wrap(owner: Any, name: str, how: Callable[..., Any]) -> None:
    """Replace a method by `how(method, number of the call, *arguments)`."""
    method, calls = getattr(owner, name), itertools.count(1)

    def changed(*arguments: Any, **named: Any) -> Any:
        return how(method, next(calls), *arguments, **named)

    setattr(owner, name, changed)


def _learns_twice() -> None:
    from models.retrieval.incremental import IncrementalTrainer

    def learn(method: Any, call: int, *arguments: Any) -> Any:
        if call % EVERY == 0:
            method(*arguments)
        return method(*arguments)

    _wrap(IncrementalTrainer, "learn", learn)


def _moves_rows_twice() -> None:
    """Of one example in a hundred, and counts it once: only vectors can tell."""
    import numpy as np

    from models.retrieval.incremental import IncrementalTrainer

    seen = itertools.count(1)

    def step(method: Any, call: int, trainer: Any, examples: Any) -> Any:
        again = [place for place in range(len(examples)) if next(seen) % HUNDRED == 0]
        if again:
            method(trainer, examples.take(np.array(again)))
        return method(trainer, examples)

    _wrap(IncrementalTrainer, "_step", step)


def _passes_over_an_example() -> None:
    from models.retrieval.incremental import IncrementalTrainer

    def learn(method: Any, call: int, trainer: Any, examples: Any, now_ms: int = 0) -> Any:
        return method(trainer, examples.take(slice(call % EVERY == 0, None)), now_ms)

    _wrap(IncrementalTrainer, "learn", learn)


def _commits_what_was_not_sent() -> None:
    """As if it had committed before the acknowledgement, and the records had not arrived."""
    from streams.kafka.outbox import Outbox

    async def flush(method: Any, call: int, outbox: Any) -> Any:
        if call % EVERY == 0:
            outbox._waiting.clear()
        return await method(outbox)

    _wrap(Outbox, "flush", flush)


def _sends_all_twice() -> None:
    """Which at-least-once allows: it must not be found."""
    from streams.kafka.outbox import Outbox

    async def send(method: Any, call: int, *arguments: Any) -> Any:
        if call % EVERY == 0:
            await method(*arguments)
        return await method(*arguments)

    _wrap(Outbox, "_send", send)


def _writes_no_row() -> None:
    from indexer.upserts import Upserts

    def write(method: Any, call: int, upserts: Any, version: str, item_ids: Any, vectors: Any, steps: Any) -> Any:
        kept = slice(call % 2, None)  # rows are written again and again: the last time must be among the bad ones
        return method(upserts, version, item_ids[kept], vectors[kept], steps[kept]) if item_ids[kept] else None

    _wrap(Upserts, "_write", write)


def _answers_from_the_release_before() -> None:
    """By the name of the new one."""
    from streams.bundles import source

    first = list[str]()

    def load(method: Any, call: int, directory: Path) -> Any:
        first.append(directory.name)
        return method(directory.with_name(first[0]))

    _wrap(source, "read_bundle", load)


def _records_no_impression() -> None:
    from serving.request.recording import Recorder

    def compose(method: Any, call: int, *arguments: Any) -> Any:
        answered = method(*arguments)
        return [each._replace(impression=None) for each in answered] if call % EVERY == 0 else answered

    _wrap(Recorder, "compose", compose)


def _has_no_dead_letters() -> None:
    from streams.kafka.outbox import Outbox
    from streams.topics import DEAD_LETTERS

    def add(method: Any, call: int, outbox: Any, topic: str, *arguments: Any, **named: Any) -> None:
        if topic != DEAD_LETTERS:
            method(outbox, topic, *arguments, **named)

    _wrap(Outbox, "add", add)


FAULTS = {
    "trainer: one batch in ten is learnt twice": Fault(("worker", "trainer"), "doubled", _learns_twice),
    "trainer: one example in a hundred moves rows twice and counts once": Fault(
        ("worker", "trainer"), "differing", _moves_rows_twice
    ),
    "trainer: one batch in ten is learnt without its first example": Fault(
        ("worker", "trainer"), "lost", _passes_over_an_example
    ),
    "history: one batch in ten is committed and not sent": Fault(
        ("worker", "history"), "lost", _commits_what_was_not_sent
    ),
    "join: one batch in ten is committed and not sent": Fault(("worker", "join"), "lost", _commits_what_was_not_sent),
    "history: unreadable messages are passed over": Fault(("worker", "history"), "lost", _has_no_dead_letters),
    "indexer: every other write leaves out its first row": Fault(("indexer",), "differing", _writes_no_row),
    "serving: answers from the release before": Fault(("serve",), "mixed", _answers_from_the_release_before),
    "serving: one batch in ten has no impressions": Fault(("serve",), "otherwise", _records_no_impression),
    "history: one batch in ten is sent twice (allowed)": Fault(("worker", "history"), "", _sends_all_twice),
}
