"""By which settings a user is served: our own, or those of a variant of the experiment that runs."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from infra.platform import metrics
from infra.platform.settings import Selection, Serving
from streams.experiments import Experiments, ExperimentUnfit, Plan, plans_of

log = structlog.get_logger(__name__)


class ExperimentView:
    """The experiments as this server has heard of them. One that it cannot serve changes nothing for anybody, so that
    no variant is served by halves."""

    def __init__(self, serving: Serving, selection: Selection) -> None:
        self._serving, self._selection = serving, selection
        self._experiments = Experiments()
        self._own = Plan(serving, selection)
        self._plans: Callable[[str], Plan] | None = None

    def hear(self, key: bytes | None, value: bytes | None) -> None:
        """Take one record of `releases`."""
        before = self._experiments.running
        if not self._experiments.hear(key, value) or self._experiments.running == before:
            return
        self._plans, running = None, self._experiments.running
        metrics.EXPERIMENT_REQUESTS.clear()
        if running is None:
            log.info("no experiment runs")
            return
        try:
            self._plans = plans_of(running, self._serving, self._selection)
            log.info("experiment runs", experiment=running.name)
        except ExperimentUnfit as error:
            log.error("experiment cannot be served", experiment=running.name, error=str(error))

    def plan_of(self, user_id: str) -> Plan:
        return self._own if self._plans is None else self._plans(user_id)
