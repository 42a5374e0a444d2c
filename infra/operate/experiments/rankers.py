"""Whether the rankers that an experiment names can be compared beside the live release, by what their bundles say."""

from __future__ import annotations

from infra.operate.releases import read_topic
from infra.platform.settings import Settings
from streams.bundles.objects import StoreError
from streams.experiments import ExperimentUnfit, releases_of
from streams.messages import Experiment


class RankersUnknown(ExperimentUnfit):
    """Whether they can be compared cannot be told here: a bundle, or the store, cannot be read."""


def compare_rankers(settings: Settings, experiment: Experiment) -> tuple[str, str]:
    """The live release, and why the rankers cannot be compared beside it; empty where they can. Raises RankersUnknown,
    KafkaError, TopicMissing."""
    from models.release.bundle import BundleError  # with torch, which takes seconds
    from models.release.comparable import why_not_compared
    from streams.bundles.source import source_of

    live = read_topic(settings.kafka).live
    if not live:
        return "", "no release is live yet, so there is no ranker to compare with: `nextwatch train` makes one"
    try:
        source = source_of(settings)
        own = source.manifest(live)
        rivals = [source.manifest(version) for version in sorted(releases_of(experiment) - {live})]
    except (BundleError, StoreError) as error:
        raise RankersUnknown(str(error)) from None
    return live, next(filter(None, (why_not_compared(rival, own) for rival in rivals)), "")
