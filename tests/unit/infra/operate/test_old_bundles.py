"""Which bundles go when a new one is announced."""

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from infra.operate import old_bundles as module
from infra.operate.old_bundles import GONE, old_bundles, remove_old_bundles
from infra.operate.releases import MANIFEST, BundleFound, CollectionFound, ReleaseReport, ServerFound, read_bundles
from infra.platform.settings import Bundles, Milvus, Settings

VERSIONS = [f"2026010{day}_000000_{'0' * 16}" for day in range(1, 8)]


@pytest.fixture
def report(tmp_path: Path) -> ReleaseReport:
    """Seven bundles; the live release is the second newest, and the spare the second oldest."""
    for version in VERSIONS:
        (tmp_path / "bundles" / version).mkdir(parents=True)
        (tmp_path / "bundles" / version / MANIFEST).write_text(
            f'{{"version": "{version}", "created_ms": 1, "dim": 1, "items": 1}}'
        )
    collections = [CollectionFound(VERSIONS[at], "announced", "", 1) for at in (1, 5)]
    servers = [ServerFound("s", VERSIONS[2], 0, 0.0, True)]
    found = read_bundles(tmp_path / "bundles")
    return ReleaseReport(VERSIONS[5], VERSIONS[1], VERSIONS[6], found, collections, servers, [])


def test_the_newest_and_those_that_are_needed_stay(report: ReleaseReport):
    assert old_bundles(report, 2) == [VERSIONS[0], VERSIONS[3], VERSIONS[4]]
    assert old_bundles(report, 1) == [VERSIONS[0], VERSIONS[3], VERSIONS[4]], "the live one and the newest are needed"
    assert old_bundles(report, 4) == [VERSIONS[0]]
    assert old_bundles(report, 7) == old_bundles(report, 9) == []
    dead = [replace(each, lives=False) for each in report.servers]
    assert old_bundles(replace(report, servers=dead), 2) == [VERSIONS[0], *VERSIONS[2:5]]


def test_what_is_no_bundle_stays_and_takes_no_place(report: ReleaseReport):
    strange = [BundleFound(name, 1, problem="no manifest") for name in ("2024_backup", "old")]
    with_strange = replace(report, bundles=[strange[0], *report.bundles, strange[1]])
    assert old_bundles(with_strange, 2) == old_bundles(report, 2)


def test_nothing_goes_while_it_is_not_known_who_needs_what(report: ReleaseReport):
    assert old_bundles(replace(report, problems=["Kafka: no answer"]), 1) == []


def test_what_goes_is_no_bundle_any_more_and_what_a_crash_left_goes_too(report: ReleaseReport, tmp_path, monkeypatch):
    bundles_dir = tmp_path / "bundles"
    (bundles_dir / f"{GONE}x").mkdir()
    monkeypatch.setattr(module, "read_releases", lambda _: report)
    where: Any = {"data_dir": tmp_path, "bundles": Bundles(keep=2)}
    assert remove_old_bundles(Settings(**where)) == [], "without Milvus"
    assert remove_old_bundles(Settings(**where, milvus=Milvus(uri="http://127.0.0.1:1"))) == [
        VERSIONS[0],
        VERSIONS[3],
        VERSIONS[4],
    ]
    assert sorted(path.name for path in bundles_dir.iterdir()) == [VERSIONS[at] for at in (1, 2, 5, 6)]
    assert all(isinstance(each, BundleFound) and not each.problem for each in read_bundles(bundles_dir))
