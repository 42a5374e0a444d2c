"""Bundles that nobody needs any more are removed when a new one is announced, so that who trains every night fills no
disk.

One is needed while a living server answers from it, while Milvus has a collection of it (the live release and the
spare, and what is being built), while it is announced as the newest, or while the experiment that runs compares its
ranker. As long as it is not known who needs what, nothing goes. From the store they go by the same rule, the manifest
first: half a bundle is none.
"""

from __future__ import annotations

import shutil
from collections.abc import Container
from datetime import UTC, datetime, timedelta

from infra.operate.releases import SENT, ReleaseReport, read_releases, whole_bundles
from infra.platform.settings import Settings
from models.release.manifest_file import MANIFEST
from streams.bundles.objects import ObjectFound, Objects

LEFT = timedelta(days=1)
GONE = ".gone-"  # what is being removed: no bundle for anybody, also after a crash


def old_bundles(report: ReleaseReport, keep: int) -> list[str]:
    """The versions that may go, oldest first: not the newest `keep`, nor any that is needed."""
    if report.problems:
        return []
    needed = {report.live, report.spare, report.newest, *report.compared}
    needed |= {each.version for each in report.collections}
    needed |= {each.version for each in report.servers if each.lives}
    bundles = [each.version for each in report.bundles if not each.problem]  # what is none, or half copied, stays
    return [version for version in bundles[:-keep] if version not in needed]


def remove_old_bundles(settings: Settings) -> list[str]:
    """Remove what may go, here and in the store; the versions. Raises OSError, StoreError."""
    if not settings.milvus.uri:
        return []
    report = read_releases(settings)
    versions = old_bundles(report, settings.bundles.keep)
    place = {each.version: each.place for each in report.bundles}
    for version in [version for version in versions if place[version] != "store"]:
        gone = settings.bundles_dir / f"{GONE}{version}"
        shutil.rmtree(gone, ignore_errors=True)  # of a crash
        (settings.bundles_dir / version).rename(gone)
    for gone in settings.bundles_dir.glob(f"{GONE}*"):
        shutil.rmtree(gone, ignore_errors=True)
    if settings.bundles.store and not report.problems:
        remove_sent(Objects(settings.bundles), versions, datetime.now(UTC))
    return versions


def remove_sent(objects: Objects, versions: Container[str], now: datetime) -> None:
    """Remove these bundles from the store, and what was begun to be sent and left for a day. Raises StoreError."""
    found = objects.found()
    whole = whole_bundles(found)
    begun: dict[str, list[ObjectFound]] = {}
    for each in found:
        begun.setdefault(each.name.partition("/")[0], []).append(each)
    for version, mine in begun.items():
        is_left = version not in whole and SENT.fullmatch(version) and now - max(e.changed for e in mine) > LEFT
        if version in versions or is_left:
            names = [each.name for each in mine]
            objects.remove(sorted(names, key=lambda name: (not name.endswith(f"/{MANIFEST}"), name)))
