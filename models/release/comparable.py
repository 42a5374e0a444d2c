"""Which releases can be served side by side: those that differ in what ranks alone, and one with other candidates.

`nextwatch train --stage ranking` makes one of another: its towers, rows and items, and a ranker of its own.
"""

from __future__ import annotations

import hashlib

import msgspec

from models.ranking.ranking_examples import CAP_S
from models.release.bundle import TABLES, TOWER, Manifest

MIRRORED = "serving.mirror_items allows {}: raise it, or leave it unset"  # a limit to what is held


def why_not_compared(rival: Manifest, live: Manifest) -> str:
    """Why the ranker of a release cannot rank the live one's candidates while both serve, and the way out; empty where
    it can."""
    if candidates_of(rival) != candidates_of(live):
        return (
            f"{rival.version} has other candidates (towers, rows) than {live.version}, which is live, and one such "
            "release at a time is compared, with all that it has; of others the ranker alone: `nextwatch train "
            f"--from-topics --stage ranking --warm-start {live.version} --no-announce` trains one of these candidates"
        )
    return why_not_beside(rival, live)


def why_not_beside(rival: Manifest, live: Manifest) -> str:
    """Why a release cannot serve beside the live one with its own candidates, and the way out; empty where it can. What
    was watched of an item counts up to the cap of the list's ranker, so caps must be the same."""
    if rival.ranker is None:
        return f"{rival.version} has no ranker: there was too little to learn one from"
    own_s = CAP_S if live.ranker is None else live.ranker.cap_s
    if rival.ranker.cap_s != own_s:
        return (
            f"the ranker of {rival.version} promises at most {rival.ranker.cap_s!r} s, that of {live.version}, which "
            f"is live, {own_s!r} s: train it with ranker.cap_s = {own_s!r}, else their seconds count differently"
        )
    return ""


def why_not_held(told: Manifest, most: int, limit: str) -> str:
    """Why a release cannot be held in memory beside the live one, where `most` items may be; empty where it can.
    `limit` says by what, and the way out."""
    if told.items <= most:
        return ""
    has = f"a release beside the live one is held in memory, and {told.version} has {told.items:,} items"
    return f"{has}, {limit.format(f'{most:,}')}"


def candidates_of(manifest: Manifest) -> str:
    """A checksum of the candidate model. Where two releases have the same, the rows, the mirror and the collection of
    one are the other's."""
    files = {name: manifest.files[name] for name in (TOWER, *(f"{table}.npy" for table in TABLES))}
    numbers = manifest.dim, manifest.items, manifest.half_life_events, manifest.watches
    told = msgspec.json.encode((files, manifest.tower, manifest.contexts, numbers), order="sorted")
    return hashlib.sha256(told).hexdigest()
