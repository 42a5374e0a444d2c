"""The experiment that runs, as `releases` tells, and what its variants change: which settings a viewer is served by.

One runs at a time, so each viewer is in one at most. All variants are served by every server, so only settings may
differ that a request can have of its own, and, by `release`, the ranker: that of another release with the live one's
candidate model. One release may have a candidate model of its own: that which the experiment names as `beside`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import structlog
from pydantic import ValidationError

from infra.platform.settings import Selection, Serving
from models.experiments.assignment import variant_of
from streams.messages import Experiment, Refused, Release, Variant, decode

log = structlog.get_logger(__name__)

KEY = "experiment/"
OF_SERVING = ("trending", "similar", "fresh", "ranked", "ranker")
OF_SELECTION = tuple(name for name in Selection.model_fields if name not in ("seed", "pinned"))
RELEASE = "release"  # among the settings of a variant, so that a server that does not know it serves nobody by halves
INTERLEAVED = (*(f"selection.{name}" for name in OF_SELECTION), "serving.ranker", RELEASE)
VERSION = re.compile(r"[A-Za-z0-9_]{1,128}")
ROUNDING = 1e-9


class ExperimentUnfit(ValueError):
    """An experiment cannot be served as it is; the text says why."""


class Plan(NamedTuple):
    """The settings that a request is served by, and the experiment and variant that they are of; `rival`: the other
    variant, where both draw up the list together; `release`: whose ranker ranks, empty: the live one's."""

    serving: Serving
    selection: Selection
    experiment: str = ""
    variant: str = ""
    rival: Plan | None = None
    release: str = ""

    @property
    def ranking(self) -> list[Plan]:
        """Those of the plans that share the list which ask a ranker."""
        return [plan for plan in (self, self.rival) if plan is not None and plan.serving.ranker]


class Experiments:
    """All that `releases` tells of experiments, as far as it was heard."""

    def __init__(self) -> None:
        self.by_name: dict[str, Experiment] = {}

    def hear(self, key: bytes | None, value: bytes | None) -> bool:
        """Take one record of the topic; True if it is of an experiment. One that cannot be read, of a newer version
        say, ends what was known of it: it may be the one that stops it."""
        name = (key or b"").decode(errors="replace")
        if not name.startswith(KEY):
            return False
        message: Any = None
        if value is not None:
            try:
                message = decode(Release, value)  # type: ignore[arg-type]
            except Refused as refused:
                log.error("experiment cannot be read: it is taken as stopped", key=name, error=str(refused))
        if isinstance(message, Experiment):
            self.by_name[message.name] = message
        else:
            self.by_name.pop(name.removeprefix(KEY), None)
        return True

    @property
    def running(self) -> Experiment | None:
        """The one that runs: of several, which two people may have started at once, the one that began first."""
        open_ = [each for each in self.by_name.values() if not each.stopped_ms]
        return min(open_, key=lambda each: (each.started_ms, each.name), default=None)

    @property
    def releases(self) -> frozenset[str]:
        """The releases whose rankers are compared, or were: by the name of each experiment, its newest record."""
        return frozenset[str]().union(*map(releases_of, self.by_name.values()))


def releases_of(experiment: Experiment) -> frozenset[str]:
    """The releases whose rankers an experiment compares; none where all variants have the live one's."""
    return frozenset(str(each.settings[RELEASE]) for each in experiment.variants if RELEASE in each.settings)


def plans_of(experiment: Experiment, serving: Serving, selection: Selection) -> Callable[[str], Plan]:
    """Return what says by which settings a user is served, an experiment's or our own. Raises ExperimentUnfit."""
    if reason := problem_of(experiment):
        raise ExperimentUnfit(f"experiment {experiment.name}: {reason}")
    own = Plan(serving, selection)
    plans = [_plan(experiment.name, variant, own) for variant in experiment.variants]
    shares = [variant.share for variant in experiment.variants]
    if experiment.interleaved:
        if capped := next((plan.variant for plan in plans if plan.selection.channel_cap), None):
            raise ExperimentUnfit(
                f"experiment {experiment.name}: variant {capped} has a selection.channel_cap, which a list that two "
                "draw up in turns does not keep: set it to 0 for both, or split the viewers"
            )
        plans, shares = [plans[0]._replace(rival=plans[1])], [sum(shares)]

    def plan_of(user_id: str) -> Plan:
        number = variant_of(experiment.salt, user_id, shares)
        return own if number is None else plans[number]

    return plan_of


def problem_of(experiment: Experiment) -> str:
    """Why no server serves an experiment, whatever its settings are; empty where one may."""
    return next(_problems(experiment), "")


def _problems(experiment: Experiment) -> Iterator[str]:
    variants = experiment.variants
    names = [variant.name for variant in variants]
    if len(variants) < 2:
        yield "it needs two variants at least, the first is the control"
    if len(set(names)) < len(names):
        yield "two variants have the same name"
    if not all(variant.share > 0 for variant in variants) or math.fsum(v.share for v in variants) > 1 + ROUNDING:
        yield "each variant needs a share above 0, and all together 1 at most"
    if experiment.interleaved and len(variants) != 2:
        yield "interleaving compares two variants"
    if experiment.beside and experiment.beside not in releases_of(experiment):
        yield f"no variant has the release {experiment.beside}, which is to be served beside the live one"
    if experiment.beside and experiment.interleaved:
        yield f"variants that are interleaved share their candidates, and {experiment.beside} has its own: split them"
    for variant in variants if experiment.interleaved else ():
        for name in variant.settings.keys() - set(INTERLEAVED):
            yield f"variants that are interleaved share their candidates, and {name} changes these"


def _plan(experiment: str, variant: Variant, own: Plan) -> Plan:
    """Our own settings with what the variant changes. Raises ExperimentUnfit."""
    changes: dict[str, dict[str, Any]] = {"serving": {}, "selection": {}}
    may = {"serving": OF_SERVING, "selection": OF_SELECTION}
    settings = dict(variant.settings)
    release = settings.pop(RELEASE, "")
    if RELEASE in variant.settings and not (isinstance(release, str) and VERSION.fullmatch(release)):
        raise ExperimentUnfit(f"variant {variant.name}: {release!r} is not the version of a release")
    for name, value in settings.items():
        section, _, leaf = name.partition(".")
        if leaf not in may.get(section, ()):
            known = ", ".join([RELEASE, *(f"{each}.{leaf}" for each, leaves in may.items() for leaf in leaves)])
            raise ExperimentUnfit(f"variant {variant.name}: {name} cannot differ between viewers, only {known}")
        changes[section][leaf] = value
    try:
        serving = Serving.model_validate(own.serving.model_dump() | changes["serving"])
        selection = Selection.model_validate(own.selection.model_dump() | changes["selection"])
    except ValidationError as error:
        first = error.errors()[0]
        raise ExperimentUnfit(f"variant {variant.name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return Plan(serving, selection, experiment, variant.name, release=str(release))
