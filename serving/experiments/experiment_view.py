"""By which settings a user is served: our own, or those of a variant of the experiment that runs.

An experiment that compares releases is served once all of them stand beside the live one, and as long as they do;
until then, and afterwards, everybody is served by our own settings and the live release.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from infra.platform import metrics
from infra.platform.settings import Selection, Serving
from serving.experiments.rivals import Wanted
from serving.state.release import LiveRelease
from streams.experiments import Experiments, ExperimentUnfit, Plan, plans_of, releases_of

log = structlog.get_logger(__name__)


class ExperimentView:
    """The experiments as this server has heard of them. One that it cannot serve changes nothing for anybody, so that
    no variant is served by halves."""

    def __init__(self, serving: Serving, selection: Selection) -> None:
        self._serving, self._selection = serving, selection
        self._experiments = Experiments()
        self._own = Plan(serving, selection)
        self._plans: Callable[[str], Plan] | None = None
        self._is_served = False  # as it was when somebody looked
        self.wanted = Wanted()  # beside the live release

    def hear(self, key: bytes | None, value: bytes | None) -> None:
        """Take one record of `releases`."""
        before = self._experiments.running
        if not self._experiments.hear(key, value) or self._experiments.running == before:
            return
        self._plans, self.wanted, running = None, Wanted(), self._experiments.running
        metrics.EXPERIMENT_REQUESTS.clear()
        if running is None:
            log.info("no experiment runs")
            return
        try:
            self._plans = plans_of(running, self._serving, self._selection)
            self.wanted = Wanted(releases_of(running), running.beside, running.started_ms)
            what = "experiment waits for its releases" if self.wanted.releases else "experiment runs"
            log.info(what, experiment=running.name, releases=sorted(self.wanted.releases))
        except ExperimentUnfit as error:
            log.error("experiment cannot be served", experiment=running.name, error=str(error))

    def look(self, live: LiveRelease | None) -> None:
        """Notice whether the experiment is served beside this release; to be called when something may have changed."""
        is_served = self._plans is not None and self._has_rankers(live)
        if is_served != self._is_served and self.wanted.releases:
            what = "experiment runs" if is_served else "experiment is not served: its releases are not there"
            log.info(what, releases=sorted(self.wanted.releases))
        self._is_served = is_served
        metrics.EXPERIMENT_UNSERVED.set(self._experiments.running is not None and not is_served)

    def plan_of(self, user_id: str, live: LiveRelease | None) -> Plan:
        """The settings of an answer that is made from this release."""
        return self._own if self._plans is None or not self._has_rankers(live) else self._plans(user_id)

    def _has_rankers(self, live: LiveRelease | None) -> bool:
        return not self.wanted.releases or (live is not None and all(map(live.has_ranker, self.wanted.releases)))
