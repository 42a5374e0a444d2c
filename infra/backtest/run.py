"""A backtest from log to directory: read, cut, fit, walk, report. Everything that decides is in `models`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as default
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from infra.backtest.files import CandidateLists, new_directory, write_live, write_report
from infra.backtest.recommenders import Live, Released
from infra.backtest.report import Grounds, Protocol, build_report
from infra.platform.settings import Settings
from models.evaluation.backtest import BLOCK, Entrant, Walk, walk_frozen, walk_live
from models.evaluation.backtest_log import Reading, read_stream
from models.evaluation.baseline_choice import Baselines
from models.evaluation.eval_queries import History
from models.evaluation.frozen import Frozen
from models.evaluation.split import Split, cut_at, cut_fraction, iso, split
from models.logs.log import read_items
from models.logs.stored_log import store_log
from models.logs.stored_searches import store_searches
from models.retrieval.candidate_learning import learn_candidates

Step = Callable[[str, int, int], None]

TEST_FRACTION = 0.1
ASIDE = {"threads"}  # of the settings: they change nothing of what is learnt


@dataclass(frozen=True)
class Request:
    """What is asked for. `test_from_ms` wins over `test_fraction`; `validation_fraction` None: as
    models.evaluation.split says."""

    log: Path
    out: Path
    completed_s: float
    items: Path | None = None
    searches: Path | None = None
    search_tokens: int = 65_536
    context: bool = True
    mapping: Mapping[str, str] = default(default_factory=dict)
    test_from_ms: int | None = None
    test_fraction: float = TEST_FRACTION
    validation_fraction: float | None = None
    live: bool = False
    block: int = BLOCK
    seed: int = 1


@dataclass(frozen=True)
class Field:
    """Who takes part: `entrants` are walked frozen (the first is ours: its candidates are written); `live` are walked
    live where that is asked for, the first of them ours too; `left_out` says who could not be built, and why. `ours`
    are compared with all others."""

    entrants: Sequence[Entrant]
    live: Sequence[Entrant]
    left_out: Mapping[str, str]
    ours: Sequence[str]


Enter = Callable[[Reading, Split, Request, Step], Field]


def enter_with(settings: Settings) -> Enter:
    """Our model, trained with these settings, and the baselines."""

    def enter(reading: Reading, parts: Split, request: Request, step: Step) -> Field:
        ours, live = _train(settings, reading, parts, request, step)
        field = enter_baselines(reading, parts, request, step)
        names = [entrant.name for entrant in (*ours, *(live if request.live else []))]
        return Field([*ours, *field.entrants], [*live, *field.live], field.left_out, names)

    return enter


def _train(
    settings: Settings, reading: Reading, parts: Split, request: Request, step: Step
) -> tuple[list[Entrant], list[Entrant]]:
    """Our entrants of the frozen and of the live walk, from one training."""
    source = reading.source
    model_settings = settings.model.model_copy(update={"seed": request.seed})
    learned = learn_candidates(
        source,
        model_settings,
        until=parts.cut,
        valid_from=parts.validation,
        items=reading.known_at(parts.cut),
        progress=step,
    )
    choice, history = learned.choice, History(reading.stream)
    chosen = {"epochs": choice.epochs, "weight": choice.weight, "linear_weight": choice.linear}
    released = Released(learned.model, source, history)
    as_trained = Entrant(released, settings=model_settings.model_dump(exclude=ASIDE) | chosen)
    if not request.live:
        return [as_trained], []
    live = Live(
        learned.model,
        source,
        history,
        settings=settings.trainer,
        seed=request.seed,
        name="tower, live",
    )
    follows = Released(learned.model, source, history, name="tower, live histories only")
    at_cut = Frozen(released, history, parts.cut, name="tower, frozen at the cut")
    trainer = settings.trainer.model_dump(include={"learns", "learning_rate", "negatives", "in_batch"})
    return [as_trained], [Entrant(live, settings=trainer), Entrant(follows), Entrant(at_cut)]


def enter_baselines(reading: Reading, parts: Split, request: Request, step: Step) -> Field:
    """The baselines alone."""
    baselines = Baselines(
        reading.stream,
        parts,
        catalogue=reading.known_at(parts.cut),
        validation_catalogue=reading.known_at(parts.validation),
        live=request.live,
        block=request.block,
        seed=request.seed,
    )
    entrants = baselines.fit(step)
    return Field(entrants, entrants, baselines.left_out, [entrants[0].name])


def run_backtest(request: Request, enter: Enter, step: Step = lambda stage, done, total: None) -> dict[str, Any]:
    """Make the directory `request.out`; its report. Nothing is left behind when it fails.

    `enter` builds who takes part from what is before the cut; `step(stage, done, total)` is called for progress.
    Raises LogError and BacktestError.
    """
    with new_directory(request.out) as directory, TemporaryDirectory(prefix="nextwatch-") as scratch:
        reading = _read(request, Path(scratch), step)
        history = History(reading.stream)
        parts = _split(history, request)
        field = enter(reading, parts, request, step)
        grounds = Grounds(history, reading.born_ms, parts.cut, reading.known_at(parts.cut))
        frozen = _walk_frozen(directory, reading, grounds, field, step)
        live = _walk_live(directory, reading, grounds, field, request.block, step) if request.live else None
        report = build_report(
            _protocol(reading, parts, request),
            entrants=_by_name([*field.entrants, *(field.live if request.live else [])]),
            left_out=field.left_out,
            grounds=grounds,
            frozen=frozen,
            live=live,
            ours=field.ours,
        )
        write_report(directory, report)
    return report


def _walk_frozen(directory: Path, reading: Reading, grounds: Grounds, field: Field, step: Step) -> Walk:
    lists = CandidateLists(directory, reading.user_ids, reading.item_ids)
    walk = walk_frozen(
        [entrant.recommender for entrant in field.entrants],
        grounds.history,
        cut=grounds.cut,
        catalogue=grounds.catalogue,
        lists=lists.add,
        progress=partial(step, "frozen"),
    )
    lists.close()
    return walk


def _walk_live(directory: Path, reading: Reading, grounds: Grounds, field: Field, block: int, step: Step) -> Walk:
    walk = walk_live(
        [entrant.recommender for entrant in field.live],
        grounds.history,
        cut=grounds.cut,
        catalogue=grounds.catalogue,
        block=block,
        progress=partial(step, "live"),
    )
    ids = reading.user_ids, reading.item_ids
    write_live(directory / "live.parquet", walk, field.live[0].name, reading.stream, ids)
    return walk


def _read(request: Request, scratch: Path, step: Step) -> Reading:
    log = store_log(request.log, scratch, mapping=request.mapping, completed_s=request.completed_s, progress=step)
    items = read_items(request.items) if request.items is not None else None
    searches = None
    if request.searches is not None:
        searches = store_searches(request.searches, log, buckets=request.search_tokens)
    return read_stream(log, items, searches=searches, context=request.context)


def _split(history: History, request: Request) -> Split:
    stream = history.stream
    if request.test_from_ms is not None:
        cut = cut_at(stream, request.test_from_ms, f"--test-from {iso(request.test_from_ms)}")
    else:
        cut = cut_fraction(stream, request.test_fraction, f"--test-fraction {request.test_fraction:g}")
    return split(history, cut, live=request.live, validation_share=request.validation_fraction)


def _protocol(reading: Reading, parts: Split, request: Request) -> Protocol:
    stream = reading.stream
    return Protocol(
        log=request.log.name,
        items_file=request.items.name if request.items is not None else None,
        seed=request.seed,
        completed_s=request.completed_s,
        first_ms=int(stream.event_ms[0]),
        cut_ms=int(stream.event_ms[parts.cut]),
        last_ms=int(stream.event_ms[-1]),
        validation_ms=int(stream.event_ms[parts.validation]),
        positives=len(stream),
        positives_before=parts.cut,
        validation_positives=parts.cut - parts.validation,
        test_positives=parts.end - parts.cut,
        users=len(reading.user_ids),
        users_before=len(np.unique(stream.users[: parts.cut])),
        items=len(reading.item_ids),
        items_known=reading.known_at(parts.cut),
        live=request.live,
        block=request.block,
    )


def _by_name(entrants: Sequence[Entrant]) -> list[Entrant]:
    """Each name once: who is walked frozen and live is described once."""
    return list({entrant.name: entrant for entrant in entrants}.values())
