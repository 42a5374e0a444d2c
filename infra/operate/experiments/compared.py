"""Whether the releases that an experiment names can be compared beside the live one, by what their bundles say."""

from __future__ import annotations

from typing import NamedTuple

from infra.operate.releases import read_topic
from infra.platform.settings import Settings
from streams.bundles.objects import StoreError
from streams.experiments import ExperimentUnfit, releases_of
from streams.messages import Experiment


class ReleasesUnknown(ExperimentUnfit):
    """Whether they can be compared cannot be told here: a bundle, or the store, cannot be read."""


class Compared(NamedTuple):
    """The live release, that which has candidates of its own beside it (empty: none has), and why they cannot be
    compared; empty where they can."""

    live: str = ""
    beside: str = ""
    problem: str = ""


def compare_releases(settings: Settings, experiment: Experiment, *, is_new: bool = False) -> Compared:
    """Look at the bundles of the releases. The one that has candidates of its own is the experiment's `beside`; of one
    that `is_new` the first that has other candidates than the live one. Raises ReleasesUnknown, KafkaError,
    TopicMissing."""
    from models.release.bundle import BundleError  # with torch, which takes seconds
    from models.release.comparable import MIRRORED, candidates_of, why_not_beside, why_not_compared, why_not_held
    from streams.bundles.source import source_of

    live = read_topic(settings.kafka).live
    if not live:
        return Compared(problem="no release is live yet, to compare another one with: `nextwatch train` makes one")
    try:
        source = source_of(settings)
        own = source.manifest(live)
        rivals = [source.manifest(version) for version in sorted(releases_of(experiment) - {live})]
    except (BundleError, StoreError) as error:
        raise ReleasesUnknown(str(error)) from None
    others = [each.version for each in rivals if candidates_of(each) != candidates_of(own)]
    beside = next(iter(others), "") if is_new else experiment.beside
    for rival in rivals:
        problem = (why_not_beside if rival.version == beside else why_not_compared)(rival, own)
        most = settings.serving.mirror_items
        if not problem and rival.version == beside and most is not None:
            problem = why_not_held(rival, most, MIRRORED)
        if problem:
            return Compared(live, beside, problem)
    return Compared(live, beside)
