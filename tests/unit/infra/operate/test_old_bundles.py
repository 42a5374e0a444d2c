"""Which bundles go when a new one is announced."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from infra.operate import old_bundles as module
from infra.operate.doctor import _of_store
from infra.operate.old_bundles import GONE, old_bundles, remove_old_bundles, remove_sent
from infra.operate.releases import (
    MANIFEST,
    BundleFound,
    CollectionFound,
    ReleaseReport,
    ServerFound,
    find_bundles,
    newest_of,
    read_bundles,
    whole_bundles,
)
from infra.platform.settings import Bundles, Milvus, Settings
from streams.bundles.objects import Objects
from tests.harness.needs import OBSTORE, needs

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


def test_one_whose_ranker_the_running_experiment_compares_stays(report: ReleaseReport):
    compared = replace(report, compared=(VERSIONS[3], VERSIONS[5]))
    assert old_bundles(compared, 2) == [VERSIONS[0], VERSIONS[4]]


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


@needs(OBSTORE)
def test_from_the_store_they_go_by_the_same_rule_and_so_does_what_was_half_sent(report, tmp_path, monkeypatch):
    store, local = tmp_path / "store", tmp_path / "bundles"
    half, strange = "20250101_000000_" + "f" * 16, "not-ours"
    for version in VERSIONS[1:]:
        shutil.copytree(local / version, store / version)
    for version in (VERSIONS[1], VERSIONS[3]):
        shutil.rmtree(local / version)
    for name in (half, strange):
        (store / name).mkdir()
        (store / name / "bias.npy").write_bytes(b"x")
    shutil.copy(local / VERSIONS[0] / MANIFEST, store / strange)
    settings = Settings(
        data_dir=tmp_path,
        bundles=Bundles(keep=2, store=f"file://{store}"),
        milvus=Milvus(uri="http://127.0.0.1:1"),
    )
    found, problem = find_bundles(settings)
    assert not problem
    places = {each.version: each.place for each in found}
    assert places == {v: "here" if v == VERSIONS[0] else "both" for v in VERSIONS} | dict.fromkeys(
        (VERSIONS[1], VERSIONS[3]), "store"
    )
    assert all(each.items == 1 and not each.problem for each in found)
    assert newest_of(settings) == VERSIONS[6]
    monkeypatch.setattr(module, "read_releases", lambda _: replace(report, bundles=found))
    assert remove_old_bundles(settings) == [VERSIONS[0], VERSIONS[3], VERSIONS[4]]
    objects = Objects(settings.bundles)
    kept = {VERSIONS[at] for at in (1, 2, 5, 6)}
    assert whole_bundles(objects.found()).keys() == kept
    assert {each.name.partition("/")[0] for each in objects.found()} == kept | {half, strange}, "it may still be sent"
    remove_sent(objects, (), datetime.now(UTC) + timedelta(days=2))
    assert {each.name.partition("/")[0] for each in objects.found()} == kept | {strange}


def test_while_the_store_does_not_tell_what_it_has_nothing_goes(tmp_path):
    settings = Settings(
        data_dir=tmp_path, bundles=Bundles(store="s3://b/r", endpoint="http://127.0.0.1:1", timeout_s=1)
    )
    found, problem = find_bundles(settings)
    assert found == [] and "bundles in the store are not known" in problem
    told = _of_store(settings)
    assert [each.what for each in told] == ["bundles' store"]
