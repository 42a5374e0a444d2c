import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from infra.platform.settings import Bundles, Serving
from models.release.bundle import Manifest
from serving.request.response_draft import RequestContext
from serving.state import release as release_module
from serving.state.mirror import Mirror, bytes_of_item
from serving.state.release import LiveRelease, ReleaseError, Releases, load_release, warm_up
from serving.state.views import CatalogueView
from streams.bundles.source import BundleSource
from streams.messages import IndexReady, Item, ItemVector, RecommendRequest, ServerState, encode
from tests.harness.needs import OBSTORE, needs
from tests.unit.serving.worlds import (
    CREATED_MS,
    ExactIndex,
    answer,
    history,
    load,
    no_views,
    pipeline_of,
    unavailable,
    until,
)


@pytest.fixture
def catalogue() -> CatalogueView:
    return CatalogueView()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_module, "RETRY_S", 0.05)


@pytest.fixture
def releases(bundles_dir: Path, index: ExactIndex, catalogue: CatalogueView) -> Iterator[Releases]:
    with contextlib.closing(Releases(BundleSource(bundles_dir), index, catalogue)) as releases:
        yield releases


@pytest.fixture
def mirrored(bundles_dir: Path, index: ExactIndex, catalogue: CatalogueView) -> Iterator[Releases]:
    with contextlib.closing(Releases(BundleSource(bundles_dir), index, catalogue, mirror_items=1000)) as releases:
        yield releases


def announce(releases: Releases, version: str) -> None:
    releases.apply_release(encode(IndexReady(version, f"items_{version}", 40, CREATED_MS)))


def wait_for(releases: Releases, true: Callable[[], bool]) -> None:
    """With a look of the answering thread each time."""
    until(lambda: true() or bool(releases.refresh()))


def version_of(releases: Releases) -> str | None:
    return releases.live and releases.live.version


def swap_to(releases: Releases, version: str) -> LiveRelease:
    announce(releases, version)
    wait_for(releases, lambda: version_of(releases) == version)
    assert releases.live is not None
    return releases.live


def query_row(releases: Releases, item_id: str) -> list[float]:
    assert releases.live is not None
    row = releases.live.model.query_row(item_id)
    assert row is not None
    return row.tolist()


def vector(version: str, value: float, dim: int = 8) -> bytes:
    index_vector = np.full(dim + 1, value, "<f4").tobytes()
    return encode(ItemVector(version, 1, index_vector, np.full(dim, value, "<f4").tobytes(), 0))


def test_the_announced_version_goes_live_and_an_older_one_again_is_a_roll_back(
    releases: Releases, bundles: Sequence[Manifest]
) -> None:
    for manifest in (bundles[0], bundles[1], bundles[0]):
        live = swap_to(releases, manifest.version)
        assert (live.version, live.created_ms) == (manifest.version, manifest.created_ms)
        assert releases.settled


def test_a_release_is_loaded_beside_the_live_one_and_taken_over_only_between_batches(
    releases: Releases, bundles: Sequence[Manifest]
) -> None:
    swap_to(releases, bundles[0].version)
    announce(releases, bundles[1].version)
    until(lambda: releases._loaded is not None)  # without a look of the answering thread
    assert version_of(releases) == bundles[0].version
    releases.refresh()
    assert version_of(releases) == bundles[1].version


def test_a_release_that_is_announced_again_while_it_waits_to_be_taken_over_goes_live(
    releases: Releases, bundles: Sequence[Manifest]
) -> None:
    """All three are read in one go, before the answering thread looks."""
    announce(releases, bundles[0].version)
    until(lambda: releases._loaded is not None)  # without a look of the answering thread
    announce(releases, bundles[1].version)
    swap_to(releases, bundles[0].version)
    assert releases.settled


def test_other_announcements_swap_nothing(releases: Releases, bundles: Sequence[Manifest]) -> None:
    releases.apply_release(encode(ServerState("other", bundles[1].version, 1)))
    releases.apply_release(None)
    releases.apply_release(b"broken")
    assert releases.settled
    assert releases.live is None


def test_a_missing_collection_keeps_the_old_release_until_it_comes(
    releases: Releases, index: ExactIndex, bundles_dir: Path, bundles: Sequence[Manifest]
) -> None:
    swap_to(releases, bundles[0].version)
    del index.collections[bundles[1].version]
    announce(releases, bundles[1].version)
    wait_for(releases, lambda: releases.settled)
    assert version_of(releases) == bundles[0].version
    index.fill(load(bundles_dir, bundles[1]))
    wait_for(releases, lambda: version_of(releases) == bundles[1].version)


@pytest.mark.parametrize(
    ("what", "reason", "says"),
    [
        ("no bundle", "bundle", "manifest.json: cannot be read"),
        ("a damaged file", "bundle", "vectors.npy: is damaged"),
        ("another version's bundle", "bundle", "of version {of}, but it lies in {version}"),
        ("a half-filled collection", "collection", "not whole"),
        ("a collection of another width", "dim", "the towers of 9"),
        ("a directory elsewhere", "version", "is not a version"),
    ],
)
def test_a_release_that_cannot_be_served_is_refused(
    what: str, reason: str, says: str, tmp_path: Path, bundles_dir: Path, bundles: Sequence[Manifest], index: ExactIndex
) -> None:
    of = version = bundles[0].version
    if what == "another version's bundle":
        version = bundles[1].version
    if what != "no bundle":
        shutil.copytree(bundles_dir / of, tmp_path / version)
    if what == "a damaged file":
        file = tmp_path / version / "vectors.npy"
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    elif what == "a half-filled collection":
        index.marks[version] = ""
    elif what == "a collection of another width":
        item_ids, rows = index.collections[version]
        index.collections[version] = item_ids, rows[:, 1:]
    elif what == "a directory elsewhere":
        version = f"../{tmp_path.name}/{version}"
    with pytest.raises(ReleaseError, match=says.format(of=of, version=version)) as caught:
        load_release(BundleSource(tmp_path), version, index)
    assert caught.value.reason == reason


def test_a_collection_that_cannot_be_searched_is_refused(
    releases: Releases, bundles: Sequence[Manifest], index: ExactIndex
) -> None:
    index.failure = unavailable()
    announce(releases, bundles[0].version)
    wait_for(releases, lambda: releases.settled)
    assert releases.live is None
    index.failure = None
    wait_for(releases, lambda: releases.live is not None)


def test_query_rows_of_the_live_version_are_followed_also_for_new_items_and_others_wait_for_theirs(
    releases: Releases, bundles: Sequence[Manifest]
) -> None:
    version = swap_to(releases, bundles[0].version).version
    releases.apply_vector(b"item-1", vector(version, 0.5), CREATED_MS)
    releases.apply_vector(b"brand-new", vector(version, 0.25), CREATED_MS)
    releases.apply_vector(b"item-1", vector(bundles[1].version, 0.75), CREATED_MS)
    assert query_row(releases, "item-1") == [0.5] * 8
    assert query_row(releases, "brand-new") == [0.25] * 8
    swap_to(releases, bundles[1].version)
    assert query_row(releases, "item-1") == [0.75] * 8


@pytest.mark.parametrize(
    "row", [vector("?", 0.5, dim=3), vector("?", float("nan")), b"broken"], ids=["width", "nan", "broken"]
)
def test_a_wrong_query_row_is_passed_over(releases: Releases, bundles: Sequence[Manifest], row: bytes) -> None:
    version = swap_to(releases, bundles[0].version).version
    before = query_row(releases, "item-1")
    releases.apply_vector(b"item-1", row.replace(b"\xa1?", b"\xb6" + version.encode()), CREATED_MS)
    assert query_row(releases, "item-1") == before


def test_what_arrives_while_a_release_is_loaded_is_in_it(
    releases: Releases, index: ExactIndex, catalogue: CatalogueView, bundles: Sequence[Manifest]
) -> None:
    """The index answers the warm-up only when the news is in: the loader has taken its snapshot by then."""
    version = bundles[0].version
    search = index.search

    def slow(*args: object, **kwargs: object) -> object:
        catalogue.apply(b"item-2", encode(Item("item-2", channel="late")))
        releases.apply_item("item-2")
        releases.apply_vector(b"item-1", vector(version, 0.75), CREATED_MS)
        return search(*args, **kwargs)  # type: ignore[arg-type]

    index.search = slow  # type: ignore[method-assign,assignment]
    live = swap_to(releases, version)
    assert query_row(releases, "item-1") == [0.75] * 8
    known = live.catalogue
    assert known.channel_of(known.row("item-2")) == "late"


def test_catalogue_changes_reach_the_live_ranker(
    releases: Releases, catalogue: CatalogueView, bundles: Sequence[Manifest]
) -> None:
    live = swap_to(releases, bundles[0].version)
    catalogue.apply(b"new", encode(Item("new", channel="cats")))
    releases.apply_item("new")
    known = live.catalogue
    assert known.channel_of(known.row("new")) == "cats"


def found_by(live: LiveRelease) -> dict[str, list[float]]:
    """What a search of the mirror finds, with the vectors."""
    assert live.mirror is not None
    [(item_ids, _)] = live.mirror.search(np.ones((1, live.model.dim), np.float32), 1000)
    return dict(zip(item_ids, live.mirror.vectors(live.mirror.rows(item_ids)).tolist(), strict=True))


def test_the_mirror_has_the_releases_vectors_and_follows_its_rows(
    mirrored: Releases, bundles: Sequence[Manifest]
) -> None:
    live = swap_to(mirrored, bundles[0].version)
    vectors = dict(zip(live.model.item_ids, live.model.item_vectors().tolist(), strict=True))
    assert found_by(live) == vectors
    mirrored.apply_vector(b"item-1", vector(live.version, 0.5), CREATED_MS)
    mirrored.apply_vector(b"new", vector(live.version, 0.25), CREATED_MS)
    mirrored.apply_vector(b"item-2", vector(bundles[1].version, 0.75), CREATED_MS)
    assert found_by(live)["item-1"] == [0.5] * 9
    assert found_by(live)["new"] == [0.25] * 9
    assert found_by(live)["item-2"] == vectors["item-2"]
    live = swap_to(mirrored, bundles[1].version)
    assert found_by(live)["item-2"] == [0.75] * 9, "it has waited for its version"


def test_rows_that_a_live_release_holds_are_not_kept_twice(mirrored: Releases, bundles: Sequence[Manifest]) -> None:
    for at in range(10):
        mirrored.apply_vector(f"item-{at}".encode(), vector(bundles[0].version, 0.5), CREATED_MS)
    assert len(mirrored._rows) == 10
    live = swap_to(mirrored, bundles[0].version)
    mirrored.apply_vector(b"item-20", vector(live.version, 0.5), CREATED_MS)
    assert mirrored._rows == {}
    assert found_by(live)["item-5"] == [0.5] * 9


def test_a_roll_back_to_the_live_release_loads_nothing_and_loses_no_row(
    mirrored: Releases, bundles: Sequence[Manifest]
) -> None:
    """What was announced in between could not be loaded."""
    live = swap_to(mirrored, bundles[0].version)
    mirrored.apply_vector(b"item-1", vector(live.version, 0.5), CREATED_MS)
    mirrored.apply_vector(b"new", vector(live.version, 0.25), CREATED_MS)
    announce(mirrored, "missing")
    wait_for(mirrored, lambda: mirrored.settled)
    announce(mirrored, live.version)
    assert mirrored.settled
    time.sleep(0.2)  # of old it was loaded again by now
    mirrored.refresh()
    assert mirrored.live is live
    for item_id, value in (("item-1", 0.5), ("new", 0.25)):
        assert query_row(mirrored, item_id) == [value] * 8
        assert found_by(live)[item_id] == [value] * 9
    assert swap_to(mirrored, bundles[1].version).version == bundles[1].version


def test_what_arrives_while_the_announcement_goes_to_and_fro_is_in_the_release_that_was_being_loaded(
    releases: Releases, index: ExactIndex, bundles: Sequence[Manifest]
) -> None:
    """A row of the coming release is read just when the live one was announced in between."""
    here, coming = bundles[0].version, bundles[1].version
    swap_to(releases, here)
    search = index.search

    def slow(*args: object, **kwargs: object) -> object:
        announce(releases, here)
        releases.apply_vector(b"item-1", vector(coming, 0.75), CREATED_MS)
        announce(releases, coming)
        return search(*args, **kwargs)  # type: ignore[arg-type]

    index.search = slow  # type: ignore[method-assign,assignment]
    swap_to(releases, coming)
    assert query_row(releases, "item-1") == [0.75] * 8


def test_a_roll_back_gives_back_what_the_release_had_learnt(
    mirrored: Releases, catalogue: CatalogueView, bundles: Sequence[Manifest]
) -> None:
    older, newer = bundles[0].version, bundles[1].version
    live = swap_to(mirrored, older)
    for item_id, value in ((b"item-1", 0.5), (b"item-2", 0.5), (b"item-3", 0.5), (b"new", 0.25)):
        mirrored.apply_vector(item_id, vector(older, value), CREATED_MS)
    mirrored.apply_vector(b"item-3", None, live.created_ms + 1)
    swap_to(mirrored, newer)
    catalogue.apply(b"item-2", None)
    mirrored.apply_item("item-2")
    mirrored.apply_vector(b"item-1", vector(newer, 0.75), CREATED_MS)  # over its older row, in the topic
    live = swap_to(mirrored, older)
    for item_id, value in (("item-1", 0.5), ("new", 0.25)):
        assert query_row(mirrored, item_id) == [value] * 8
        assert found_by(live)[item_id] == [value] * 9
    assert not {"item-2", "item-3"} & found_by(live).keys(), "taken down, and let go of"
    assert found_by(swap_to(mirrored, newer))["item-1"] == [0.75] * 9


def test_what_a_release_had_learnt_is_kept_only_until_the_next_one_is_replaced(
    releases: Releases, bundles: Sequence[Manifest]
) -> None:
    for here, coming in ((bundles[0], bundles[1]), (bundles[1], bundles[0])):
        version = swap_to(releases, here.version).version
        releases.apply_vector(b"item-1", vector(version, 0.5), CREATED_MS)
        swap_to(releases, coming.version)
        wait_for(releases, partial(keeps_only, releases, version))


def keeps_only(releases: Releases, version: str) -> bool:
    return {row.version for row in releases._kept.values()} == {version}


@pytest.mark.parametrize("when", ["before", "while live"])
def test_a_takedown_holds_in_the_mirror_whenever_it_comes_and_whatever_row_comes_after_it(
    mirrored: Releases, catalogue: CatalogueView, bundles: Sequence[Manifest], when: str
) -> None:
    def take_down() -> None:
        catalogue.apply(b"item-1", None)
        mirrored.apply_item("item-1")

    if when == "before":
        take_down()
    live = swap_to(mirrored, bundles[0].version)
    if when == "while live":
        assert "item-1" in found_by(live)
        take_down()
    assert "item-1" not in found_by(live)
    mirrored.apply_vector(b"item-1", vector(live.version, 0.5), CREATED_MS)
    assert "item-1" not in found_by(live)
    live = swap_to(mirrored, bundles[1].version)
    assert "item-1" not in found_by(live)
    catalogue.apply(b"item-1", encode(Item("item-1")))
    mirrored.apply_item("item-1")
    assert "item-1" in found_by(live)


@pytest.mark.parametrize("when", ["before", "while live"])
def test_an_expired_item_leaves_the_mirror_and_its_next_row_brings_it_back(
    mirrored: Releases, bundles: Sequence[Manifest], when: str
) -> None:
    after_ms = bundles[0].created_ms + 1
    if when == "before":
        mirrored.apply_vector(b"item-1", None, after_ms)
    live = swap_to(mirrored, bundles[0].version)
    if when == "while live":
        mirrored.apply_vector(b"item-1", None, after_ms)
    assert "item-1" not in found_by(live)
    mirrored.apply_vector(b"item-1", vector(live.version, 0.5), after_ms + 1)
    assert found_by(live)["item-1"] == [0.5] * 9


def test_a_release_made_since_may_have_an_expired_item_again(mirrored: Releases, bundles: Sequence[Manifest]) -> None:
    mirrored.apply_vector(b"item-1", None, bundles[0].created_ms - 1)
    assert "item-1" in found_by(swap_to(mirrored, bundles[0].version))


def test_of_more_items_than_may_be_held_there_is_no_mirror(
    bundles_dir: Path, bundles: Sequence[Manifest], index: ExactIndex
) -> None:
    for most, there in ((0, False), (39, False), (40, True)):
        live = load_release(BundleSource(bundles_dir), bundles[0].version, index, mirror_items=most)
        assert (live.mirror is not None) == there


def test_a_new_mirror_is_searched_before_the_first_request_comes(
    bundles_dir: Path, bundles: Sequence[Manifest], index: ExactIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = load_release(BundleSource(bundles_dir), bundles[0].version, index, mirror_items=40)
    asked: list[int] = []
    monkeypatch.setattr(Mirror, "search", lambda self, vectors, limit: asked.append(limit))
    warm_up(live)
    assert asked, "rows that have changed since the bundle are taken over here"


def test_without_a_number_the_memory_decides_whether_there_is_a_mirror(
    bundles_dir: Path, bundles: Sequence[Manifest], index: ExactIndex
) -> None:
    needed = 40 * bytes_of_item(index.dim(bundles[0].version))
    for memory, there in ((0, False), (needed - 1, False), (needed, True)):
        live = load_release(
            BundleSource(bundles_dir), bundles[0].version, index, mirror_items=None, mirror_bytes=memory
        )
        assert (live.mirror is not None) == there
    live = load_release(BundleSource(bundles_dir), bundles[0].version, index, mirror_items=39, mirror_bytes=needed)
    assert live.mirror is None, "a number in the settings is what counts"


def test_a_catalogue_entry_that_comes_later_is_where_filters_look(
    mirrored: Releases, catalogue: CatalogueView, bundles: Sequence[Manifest]
) -> None:
    live = swap_to(mirrored, bundles[0].version)
    mirrored.apply_vector(b"new", vector(live.version, 0.5), CREATED_MS)
    catalogue.apply(b"new", encode(Item("new", duration_s=30.0)))
    mirrored.apply_item("new")
    assert live.mirror is not None
    duration_s = live.catalogue.duration_s(live.mirror.catalogue_rows)
    assert duration_s[live.mirror.rows(["new"])].tolist() == [30.0]


@pytest.fixture(scope="module")
def both(bundles_dir: Path, bundles: Sequence[Manifest]) -> list[LiveRelease]:
    index = ExactIndex(*(load(bundles_dir, manifest) for manifest in bundles))
    return [load_release(BundleSource(bundles_dir), manifest.version, index) for manifest in bundles]


@hypothesis_settings(max_examples=60, deadline=None)
@given(plan=st.lists(st.tuples(st.integers(0, 1), st.sampled_from(["embed", "search", "rank"])), max_size=12))
def test_a_batch_never_mixes_versions_whenever_the_swap_comes(
    both: list[LiveRelease], plan: list[tuple[int, str]]
) -> None:
    """Each step answers a batch and swaps in its midst; tower, collection, ranker and reply must be of one release."""
    views = no_views()
    views.histories.apply(0, b"ann", encode(history("ann", "item-1")))
    holder = Holder(both)
    for target, step in plan:
        holder.swap_at(step, target)
        contexts = [RequestContext(RecommendRequest(f"r{at}", "ann"), 0) for at in range(2)]
        answers = answer(contexts, holder.live, pipeline_of(views, Serving()), now_ms=CREATED_MS)
        used = holder.take_used()
        assert len(used) == 1
        assert {answered.reply.version for answered in answers} == used
        assert {answered.impression.version for answered in answers if answered.impression} == used


class Holder:
    """Two releases whose every part says when it is used, and a reference that is moved in the middle of a batch."""

    def __init__(self, releases: Sequence[LiveRelease]) -> None:
        self._used = set[str]()
        self._step, self._target = "none", 0
        self._releases: list[LiveRelease] = [
            dataclasses.replace(each, **{name: _Part(self, each, name) for name in ("model", "index", "ranker")})
            for each in releases
        ]
        self.live = self._releases[0]

    def swap_at(self, step: str, target: int) -> None:
        self._step, self._target = step, target

    def reached(self, step: str, version: str) -> None:
        self._used.add(version)
        if step == self._step:
            self.live = self._releases[self._target]

    def take_used(self) -> set[str]:
        used, self._used = self._used, set()
        return used


class _Part:
    """A tower, collection or ranker that reports its use."""

    MOMENTS: ClassVar = {"user_vectors": "embed", "search": "search", "rank": "rank"}

    def __init__(self, holder: Holder, release: LiveRelease, name: str) -> None:
        self._holder, self._version, self._real = holder, release.version, getattr(release, name)

    def __getattr__(self, name: str) -> object:
        if name in self.MOMENTS:
            self._holder.reached(self.MOMENTS[name], self._version)
        return getattr(self._real, name)


@needs(OBSTORE)
def test_while_a_release_cannot_be_fetched_the_live_one_answers_and_it_is_told_why(
    bundles_dir: Path, bundles: Sequence[Manifest], index: ExactIndex, catalogue: CatalogueView, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    source = BundleSource(tmp_path / "bundles", Bundles(store=f"file://{store}"))
    shutil.copytree(bundles_dir / bundles[0].version, store / bundles[0].version)
    with contextlib.closing(Releases(source, index, catalogue)) as releases:
        swap_to(releases, bundles[0].version)
        announce(releases, bundles[1].version)
        wait_for(releases, lambda: bool(releases.refusal))
        assert version_of(releases) == bundles[0].version and releases.settled
        assert f"{bundles[1].version}/manifest.json: is not there" in releases.refusal
        shutil.copytree(bundles_dir / bundles[1].version, store / bundles[1].version)
        wait_for(releases, lambda: version_of(releases) == bundles[1].version)
        assert not releases.refusal
