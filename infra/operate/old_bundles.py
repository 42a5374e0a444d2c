"""Bundles that nobody needs any more are removed when a new one is announced, so that who trains every night fills no
disk.

One is needed while a living server answers from it, while Milvus has a collection of it (the live release and the
spare, and what is being built), or while it is announced as the newest. As long as it is not known who needs what,
nothing goes.
"""

from __future__ import annotations

import shutil

from infra.operate.releases import ReleaseReport, read_releases
from infra.platform.settings import Settings

GONE = ".gone-"  # what is being removed: no bundle for anybody, also after a crash


def old_bundles(report: ReleaseReport, keep: int) -> list[str]:
    """The versions that may go, oldest first: not the newest `keep`, nor any that is needed."""
    if report.problems:
        return []
    needed = {report.live, report.spare, report.newest}
    needed |= {each.version for each in report.collections}
    needed |= {each.version for each in report.servers if each.lives}
    bundles = [each.version for each in report.bundles if not each.problem]  # what is none, or half copied, stays
    return [version for version in bundles[:-keep] if version not in needed]


def remove_old_bundles(settings: Settings) -> list[str]:
    """Remove what may go; the versions. Raises OSError."""
    if not settings.milvus.uri:
        return []
    versions = old_bundles(read_releases(settings), settings.bundles.keep)
    for version in versions:
        gone = settings.bundles_dir / f"{GONE}{version}"
        shutil.rmtree(gone, ignore_errors=True)  # of a crash
        (settings.bundles_dir / version).rename(gone)
    for gone in settings.bundles_dir.glob(f"{GONE}*"):
        shutil.rmtree(gone, ignore_errors=True)
    return versions
