"""Which releases can be compared while both serve: those of one candidate model."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from models.ranking.ranker import Ranker
from models.release.bundle import (
    RANKER,
    STATISTICS,
    Bundle,
    BundleError,
    Manifest,
    RankerBundle,
    read_bundle,
    read_manifest,
    read_ranker,
    write_bundle,
)
from models.release.comparable import why_not_beside, why_not_compared
from tests.unit.models.samples import START_MS


def rank_anew(bundle: Bundle, bundles_dir: Path, ranker: Ranker | None = None) -> Manifest:
    """A release of the same candidates, as the training of a ranker alone writes it."""
    return write_bundle(
        bundles_dir,
        model=bundle.model,
        ranker=ranker or bundle.ranker,
        catalogue=bundle.catalogue,
        statistics=bundle.statistics,
        created_ms=START_MS,
        completed_s=bundle.manifest.completed_s,
        seed=7,
        metrics={"other": 1.0},
        offsets={},
    )


def test_a_ranker_that_was_trained_for_the_same_candidates_can_be_compared(release: Path, tmp_path: Path):
    """Also when the bundle was read, written and read again: what is written of the candidates is the same to the
    bit."""
    live = read_bundle(release)
    once = rank_anew(live, tmp_path)
    twice = rank_anew(read_bundle(tmp_path / once.version), tmp_path / "again")
    assert once.version != live.manifest.version
    assert why_not_compared(once, live.manifest) == why_not_compared(twice, live.manifest) == ""


def test_other_candidates_are_refused_with_the_way_out(release: Path):
    live = read_manifest(release)
    rival = replace(live, version="rival", files=live.files | {"vectors.npy": "0"})
    why = why_not_compared(rival, live)
    assert "rival has other candidates" in why and f"--stage ranking --warm-start {live.version} --no-announce" in why
    assert "other candidates" in why_not_compared(replace(live, watches=live.watches + 1), live)
    assert why_not_beside(rival, live) == ""


def test_a_release_without_a_ranker_and_one_of_another_cap_are_refused(release: Path):
    live = read_manifest(release)
    assert live.ranker is not None
    assert "has no ranker" in why_not_compared(replace(live, ranker=None), live)
    assert "has no ranker" in why_not_beside(replace(live, watches=live.watches + 1, ranker=None), live)
    other = replace(live, ranker=replace(live.ranker, cap_s=90.5))
    assert f"at most 90.5 s, that of {live.version}, which is live, {live.ranker.cap_s!r} s" in why_not_compared(
        other, live
    )


def test_statistics_that_are_the_same_are_in_memory_once_and_others_are_read(release: Path, tmp_path: Path):
    bundle = read_bundle(release)
    version = rank_anew(bundle, tmp_path).version
    live = RankerBundle(bundle.manifest, bundle.ranker, bundle.statistics)
    slower = live._replace(manifest=replace(live.manifest, half_life_h=2 * live.manifest.half_life_h))
    others = live._replace(manifest=replace(live.manifest, files=live.manifest.files | {STATISTICS: "0"}))
    for unlike in (slower, others):
        assert read_ranker(tmp_path / version, unlike).statistics is not live.statistics
    (tmp_path / version / STATISTICS).unlink()
    assert read_ranker(tmp_path / version, live).statistics is live.statistics


def test_what_ranks_is_read_without_the_rest_and_checked(release: Path, tmp_path: Path):
    bundle = read_bundle(release)
    version = rank_anew(bundle, tmp_path).version
    (tmp_path / version / "vectors.npy").unlink()
    found = read_ranker(tmp_path / version)
    assert found.manifest.version == version and found.ranker.shape == bundle.ranker.shape
    assert list(found.statistics.rows()) == list(bundle.statistics.rows())
    damaged = tmp_path / version / RANKER
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=f"{RANKER}: is damaged"):
        read_ranker(tmp_path / version)
