"""The newest bundle on disk, announced by whoever starts the system: it may have been trained while no broker ran.

A release that was rolled back is not announced again: its announcement is still the newest on `releases`. One whose
ranker an experiment compares, or has compared, goes live when a person says so. Read without torch, which takes longer
to load than all of this.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import msgspec
import structlog

from infra.operate.releases import read_topic
from infra.platform.settings import Settings
from models.release.manifest_file import MANIFEST, read_manifest_bytes
from streams.bundles.sending import send_release
from streams.kafka.releases import announce, read_experiments
from streams.messages import BundlePublished

log = structlog.get_logger(__name__)


class _Manifest(msgspec.Struct, frozen=True):
    """What is announced of a bundle's manifest; the indexer checks all of it."""

    version: str
    created_ms: int
    dim: int
    items: int
    schema_hash: str


def announce_newest(settings: Settings, *, is_asked: bool = False) -> str | None:
    """Announce the newest bundle where it is newer than the one that was announced last: its version, else None.
    With a store it is sent there first. `is_asked`: a person says so, also of one that an experiment has compared; and
    one that was announced is sent again, for what the store has lost. Raises KafkaError, TopicMissing, StoreError."""
    compared = frozenset[str]() if is_asked else read_experiments(settings.kafka).releases
    newest = newest_bundle(settings.bundles_dir, compared)
    if newest is None:
        return None
    told = read_topic(settings.kafka).bundle
    if _is_old(newest, told) and not (is_asked and told is not None and told.version == newest.version):
        return None
    send_release(settings, newest.version)
    if _is_old(newest, read_topic(settings.kafka).bundle):  # sending takes minutes
        return None
    announce(settings.kafka, newest)
    return newest.version


def _is_old(newest: BundlePublished, told: BundlePublished | None) -> bool:
    return told is not None and told.created_ms >= newest.created_ms


def newest_bundle(bundles_dir: Path, but: Collection[str] = ()) -> BundlePublished | None:
    """The announcement of the newest bundle that can be read and is none of `but`; None when there is none."""
    for path in sorted(bundles_dir.glob(f"*/{MANIFEST}"), reverse=True):
        if path.parent.name[0] == "." or path.parent.name in but:
            continue
        try:
            found = msgspec.json.decode(read_manifest_bytes(path.parent), type=_Manifest)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning("bundle passed over", path=str(path), reason=str(error))
            continue
        return BundlePublished(found.version, found.created_ms, found.dim, found.items, found.schema_hash)
    return None
