"""Starting and stopping an experiment: one record on `releases`, which every server follows.

Whoever looks at all viewers decides that a guard rail has failed, and that is no server, which has those of its own
partitions: so it is a command that stops an experiment, and the record says why.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

from msgspec import structs

from infra.operate.experiments.compared import compare_releases
from infra.platform.settings import Settings
from models.release.manifest_file import MANIFEST
from streams.bundles.sending import send_release
from streams.experiments import RELEASE, Experiments, ExperimentUnfit, plans_of, releases_of
from streams.kafka.releases import announce, read_experiments
from streams.messages import Experiment, Refused, Release, Variant, decode, encode


@dataclass(frozen=True)
class Terms:
    """On what an experiment is run; see streams.messages.Experiment."""

    hours: float = 24.0
    viewers: int = 10_000
    interleaved: bool = False
    slower_ms: float | None = None
    more_fallbacks: float | None = None


def start_experiment(settings: Settings, name: str, variants: tuple[Variant, ...], terms: Terms) -> Experiment:
    """Start it. Raises ExperimentUnfit where it cannot be served, another one runs, or the name was used before; where
    another one was started in the same moment, it is stopped again. Raises StoreError where a bundle that it compares
    cannot be sent to the store."""
    if terms.interleaved and (terms.slower_ms is not None or terms.more_fallbacks is not None):
        raise ExperimentUnfit("variants that are interleaved answer together: there is no guard rail between them")
    experiment = Experiment(
        name,
        secrets.token_hex(8),
        _now_ms(),
        variants,
        terms.hours,
        terms.viewers,
        terms.interleaved,
        terms.slower_ms,
        terms.more_fallbacks,
    )
    try:
        decode(Release, encode(experiment))  # type: ignore[arg-type]
    except Refused as refused:
        raise ExperimentUnfit(f"{refused} (names are of letters, digits, dots, - and _)") from None
    plans_of(experiment, settings.serving, settings.selection)
    _check_may_start(read_experiments(settings.kafka), name)
    if releases_of(experiment):
        experiment = _with_releases(settings, experiment)
        _check_may_start(read_experiments(settings.kafka), name)  # sending a bundle may have taken minutes
        experiment = structs.replace(experiment, started_ms=_now_ms())
    announce(settings.kafka, experiment)
    if first := _first_of(read_experiments(settings.kafka), experiment):
        why = f"{first} was started in the same moment, and first"
        announce(settings.kafka, structs.replace(experiment, stopped_ms=_now_ms(), reason=why))
        raise ExperimentUnfit(f"{why}: {name} is stopped, a viewer is in one experiment at a time")
    return experiment


def _check_may_start(known: Experiments, name: str) -> None:
    """Raises ExperimentUnfit where another one runs, or the name was used before."""
    if known.running is not None:
        raise ExperimentUnfit(f"{known.running.name} runs: a viewer is in one experiment at a time, stop it first")
    if name in known.by_name:
        raise ExperimentUnfit(f"there was an experiment {name}, and lists of it are on record: take another name")


def _with_releases(settings: Settings, experiment: Experiment) -> Experiment:
    """The experiment with the live release written down for variants that name none, so that what is compared stays the
    same when another release of the same candidates goes live, and with the one that has candidates of its own; the
    bundles of the others are sent to the store where one is set. Raises ExperimentUnfit where they cannot be compared,
    StoreError."""
    live, beside, problem = compare_releases(settings, experiment, is_new=True)
    if problem:
        raise ExperimentUnfit(problem)
    experiment = structs.replace(experiment, beside=beside)
    plans_of(experiment, settings.serving, settings.selection)  # what shares candidates may more
    for version in sorted(releases_of(experiment) - {live}):
        if (settings.bundles_dir / version / MANIFEST).is_file():  # else it is in the store
            send_release(settings, version, "start the experiment again, which sends what is missing")
    named = (structs.replace(each, settings={RELEASE: live, **each.settings}) for each in experiment.variants)
    return structs.replace(experiment, variants=tuple(named))


def _first_of(known: Experiments, own: Experiment) -> str:
    """The name of an open experiment that stands on the topic before this one, if there is one. Of two that are read
    after both were written, each thus knows the same one as the first, whatever their clocks say."""
    for each in known.by_name.values():
        if each.name == own.name:
            return ""
        if not each.stopped_ms:
            return each.name
    return ""


def stop_experiment(settings: Settings, name: str, reason: str) -> Experiment:
    """Stop it; one that was stopped stays as it is. Raises ExperimentUnfit where there is none of this name."""
    experiment = find_experiment(read_experiments(settings.kafka), name)
    if not experiment.stopped_ms:
        experiment = structs.replace(experiment, stopped_ms=_now_ms(), reason=reason)
        announce(settings.kafka, experiment)
    return experiment


def find_experiment(known: Experiments, name: str = "") -> Experiment:
    """The one of this name; without one that which runs, else the newest. Raises ExperimentUnfit."""
    if name and name not in known.by_name:
        raise ExperimentUnfit(f"there is no experiment {name}; there are: {', '.join(sorted(known.by_name)) or 'none'}")
    if name:
        return known.by_name[name]
    newest = max(known.by_name.values(), key=lambda each: each.started_ms, default=None)
    if newest is None:
        raise ExperimentUnfit("there was no experiment yet: `nextwatch experiment start`")
    return known.running or newest


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
