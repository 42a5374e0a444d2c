"""The live collection made anew beside the old one: whatever was wrong with it is not, and servers always have one."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from indexer.rollout import announced_ms
from indexer.schema import SHADOW
from infra.operate.rebuild_index import rebuild_index
from infra.platform.guarded_process import ServiceError
from infra.platform.settings import to_environ
from models.release.bundle import Bundle
from streams import topics
from streams.messages import Item, encode
from tests.harness.system import wait_until, with_section
from tests.unit.indexer.site import PATIENCE_S, Crash, Searcher, Site, Trained, assert_same, crash_in, first_number
from tests.unit.infra.command import commands

pytestmark = pytest.mark.system

WAIT_S = 60.0
Rows = dict[str, tuple[int, bytes]]


def live_site(site: Site) -> Bundle:
    """A release that is live, with a row that has learnt, one of a new item, and an item that is down."""
    bundle = site.live()
    site.touch(bundle, "item-3", value=3)
    site.touch(bundle, "new", value=5)
    site.take_down("item-4")
    site.send(topics.ITEMS, "item-5", encode(Item("item-5", channel="cats")))
    site.wait_for(bundle, item_3=3.0, item_4=None, new=5.0)
    return bundle


def rows_of(site: Site, bundle: Bundle) -> Rows:
    found = site.index.vectors(bundle.manifest.version, [*bundle.model.item_ids, "new", "stray"])
    return {item_id: (step, vector.tobytes()) for item_id, (step, vector) in found.items()}


def damage(site: Site, bundle: Bundle) -> None:
    version, dim = bundle.manifest.version, bundle.manifest.dim
    site.index.delete(version, ["item-1", "new"])
    wrong = np.full((2, dim), 7, np.float32)
    site.index.upsert(version, ["item-2", "stray"], wrong, [9, 9])


def test_a_damaged_index_is_what_it_was_and_no_search_meets_a_half_full_one(site, capsys, monkeypatch):
    bundle = live_site(site)
    before, announcements = rows_of(site, bundle), site.announcements()
    mark = site.index.mark_of(bundle.manifest.version)
    damage(site, bundle)
    assert rows_of(site, bundle) != before
    searcher = Searcher(site.settings.milvus, bundle.manifest.version, bundle.model.item_vectors(np.array([0])))
    with searcher.searching() as server:
        wait_until(lambda: bool(server.found), "searches", WAIT_S)
        for name, value in to_environ(site.settings).items():
            monkeypatch.setenv(name, value)
        done = commands(monkeypatch, capsys)("rebuild", "index", "--wait-s", str(WAIT_S))
        count = len(server.found)
        wait_until(lambda: len(server.found) > count + 3, "searches of the new one", WAIT_S)
    assert done.code == 0 and f"rebuilt: {bundle.manifest.version}, {len(before)} items" in done.out
    assert rows_of(site, bundle) == before and site.index.count(bundle.manifest.version) == len(before)
    assert min(server.found) >= len(before) - 2, "never one that is being filled"
    assert len(server.failures) <= 1, f"at most one that was under way in the old one: {server.failures}"
    assert site.announcements() == announcements and site.index.mark_of(bundle.manifest.version) == mark
    assert site.index.versions() == [bundle.manifest.version]
    site.touch(bundle, "item-2", value=2)
    site.bring_back("item-4")
    site.wait_for(bundle, item_2=2.0, item_4=first_number(bundle, "item-4"))


@pytest.mark.parametrize(
    ("name", "suffix", "nth"),
    [("flush", SHADOW, 1), ("mark", SHADOW, 1), ("replace", "", 1), ("drop", SHADOW, 2)],  # the first is the filling's
    ids=["fill", "mark", "take over", "drop"],
)
def test_a_crash_at_any_step_leads_to_the_same_index(site, monkeypatch, name, suffix, nth):
    bundle = live_site(site)
    before, version = rows_of(site, bundle), bundle.manifest.version
    damage(site, bundle)
    crash_in(monkeypatch, name, lambda index, *_: index.suffix == suffix, nth=nth)
    assert not rebuild_index(site.settings, 0.0).answered
    wait_until(lambda: bool(site.failures), "the crash", PATIENCE_S)
    assert isinstance(site.failures.pop(), Crash)
    monkeypatch.undo()
    site.start()
    site.wait(lambda: site.index.versions() == [version] and rows_of(site, bundle) == before, "the index of before")
    site.wait(lambda: announced_ms(site.index.mark_of(version)) is not None, "it is marked announced")


def test_without_its_bundle_it_is_refused_with_the_way_out_and_the_old_one_stays(site):
    with pytest.raises(ServiceError, match="no release is live yet: `nextwatch train`"):
        rebuild_index(site.settings, 0.0)
    bundle = live_site(site)
    directory = site.settings.bundles_dir / bundle.manifest.version
    (directory / "manifest.json").rename(directory / "aside")
    with pytest.raises(ServiceError, match=r"cannot be rebuilt without its bundle .* copy it back from a backup"):
        rebuild_index(site.settings, 0.0)
    (directory / "aside").rename(directory / "manifest.json")
    for file in directory.glob("*.safetensors"):
        shutil.move(file, file.with_suffix(".away"))
    done = rebuild_index(site.settings, WAIT_S)
    assert done.answered and done.problem and site.index.versions() == [bundle.manifest.version]
    assert_same(site.index, bundle, but={"item-3", "item-4"})


@pytest.fixture
def other_site(site: Site, trained: Trained, tmp_path: Path) -> Iterator[Site]:
    """Of a second deployment: the same Milvus and broker, other prefixes."""
    settings = site.settings.model_copy(update={"data_dir": tmp_path / "other"})
    settings = with_section(settings, "kafka", topic_prefix=f"other-{settings.kafka.topic_prefix}")
    with closing(Site(with_section(settings, "milvus", collection_prefix="staging_"), trained)) as other:
        yield other
        other.stop()
        for version in other.index.versions():
            other.index.drop(version)


def test_two_deployments_on_one_milvus_fill_swap_rebuild_and_drop_what_is_their_own(site: Site, other_site: Site):
    bundle = live_site(site)
    before, version = rows_of(site, bundle), bundle.manifest.version
    assert other_site.live().manifest.version == version, "the same release in both"
    other_site.touch(bundle, "item-3", value=30)
    other_site.wait_for(bundle, item_3=30.0, new=None)
    newest = []
    for seed in (2, 3):
        newest.append(other_site.publish(seed))
        other_site.wait_for_announcement(newest[-1])
    kept = [each.manifest.version for each in newest]
    other_site.wait(lambda: other_site.index.versions() == sorted(kept), "the other's first collection is dropped")
    assert site.index.versions() == [version] and rows_of(site, bundle) == before
    damage(site, bundle)
    done = rebuild_index(site.settings, WAIT_S)
    assert done.answered and not done.problem
    assert rows_of(site, bundle) == before
    assert other_site.index.versions() == sorted(kept)
    assert_same(other_site.index, newest[-1])
    assert [ready.collection for ready in site.announcements()] == [f"items_{version}"]
    names = [ready.collection for ready in other_site.announcements()]
    assert names[-1] == f"staging_{kept[-1]}"  # `releases` may have been compacted
