"""The order for a backtest, of the candidate generator or of the ranker: a log, a place for the report, and a cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """A backtest to be made. `test_from_ms` wins over `test_fraction`, a share of the positives (of the ranker: of the
    impressions), newest last. What follows is of the candidate generator alone; `validation_fraction` None: as
    models.evaluation.split says."""

    log: Path
    out: Path
    items: Path | None = None
    mapping: Mapping[str, str] = field(default_factory=dict)
    test_from_ms: int | None = None
    test_fraction: float = 0.1
    validation_fraction: float | None = None
    searches: Path | None = None
    live: bool = False
    block: int = 250  # positives between two learning steps of a live walk
    seeds: int = 1  # trainings of a leave-one-out backtest, from the settings' seed on
