"""What the servers of one machine hold together: the same answers, one copy, and nobody's changes are another's."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from models.release.bundle import Manifest
from serving.state import mirror as mirror_module
from serving.state import release as release_module
from serving.state import shared_rows
from serving.state.release import LiveRelease, ReleaseError, load_release, write_row
from serving.state.shared_rows import SharedRows, map_numbers, write_numbers
from serving.state.views import CatalogueView
from streams.bundles.source import BundleSource
from streams.messages import ItemVector
from tests.unit.serving.worlds import ExactIndex, history


@pytest.fixture(params=["float32", "int8"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(mirror_module, "has_int8_product", lambda: request.param == "int8")
    monkeypatch.setattr(mirror_module, "MANY_ROWS", 1)
    return str(request.param)


def load(bundles_dir: Path, version: str, index: ExactIndex, shared: SharedRows | None) -> LiveRelease:
    return load_release(BundleSource(bundles_dir), version, index, mirror_items=1000, shared=shared)


def answers(release: LiveRelease) -> list[tuple[list[str], list[float]]]:
    assert release.mirror is not None
    users = [history("u", *release.model.item_ids[:5]), history("nobody")]
    found = release.mirror.search(release.model.user_vectors(users, release.created_ms), 10)
    return [(item_ids, scores.tolist()) for item_ids, scores in found]


def row(release: LiveRelease, value: float) -> ItemVector:
    dim = release.model.dim
    vectors = np.full(dim, value, "<f4").tobytes(), np.full(dim - 1, value, "<f4").tobytes()
    return ItemVector(release.version, 1, *vectors, 0)


def test_who_shares_answers_as_who_does_not_and_changes_stay_with_their_server(
    bundles_dir: Path, bundles: Sequence[Manifest], index: ExactIndex, tmp_path: Path, way: str
) -> None:
    version, shared = bundles[0].version, SharedRows(tmp_path)
    alone = load(bundles_dir, version, index, None)
    first, second = load(bundles_dir, version, index, shared), load(bundles_dir, version, index, shared)
    expected = answers(alone)
    assert answers(first) == answers(second) == expected

    for item_id in (alone.model.item_ids[3], "an item nobody knew"):  # one that is there, and one behind the others
        for release in (alone, first):
            write_row(item_id, row(release, 9.0), release, CatalogueView())
    assert answers(first) == answers(alone) != expected
    assert answers(second) == expected
    assert second.model.query_row("an item nobody knew") is None
    assert answers(load(bundles_dir, version, index, shared)) == expected  # and nothing went to the files


def test_a_release_is_written_once_and_files_of_another_one_go(
    bundles_dir: Path, bundles: Sequence[Manifest], index: ExactIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    monkeypatch.setattr(
        release_module, "write_numbers", lambda path, *rest: written.append(path) or write_numbers(path, *rest)
    )
    shared = SharedRows(tmp_path)
    first = load(bundles_dir, bundles[0].version, index, shared)
    load(bundles_dir, bundles[0].version, index, shared)
    assert len(written) == 1
    before = answers(first)
    load(bundles_dir, bundles[1].version, index, shared)
    assert [path.name.partition(".")[0] for path in tmp_path.iterdir() if path.is_dir()] == [bundles[1].version]
    assert answers(first) == before  # who still maps them keeps them


def test_what_was_left_half_written_is_written_anew(
    bundles_dir: Path, bundles: Sequence[Manifest], index: ExactIndex, tmp_path: Path
) -> None:
    half = tmp_path / shared_rows.PARTIAL
    half.mkdir()
    (half / "query_rows").write_bytes(b"\1" * 400)
    release = load(bundles_dir, bundles[0].version, index, SharedRows(tmp_path))
    assert answers(release) == answers(load(bundles_dir, bundles[0].version, index, None))


def test_who_is_stopped_does_not_wait_for_another_server(tmp_path: Path) -> None:
    shared, begun, go_on = SharedRows(tmp_path), threading.Event(), threading.Event()

    def slow(directory: Path) -> None:
        begun.set()
        go_on.wait(10)

    writer = threading.Thread(daemon=True, target=shared.of, args=("v", "mirror", slow, str, lambda: False))
    writer.start()
    assert begun.wait(10)
    with pytest.raises(InterruptedError):
        SharedRows(tmp_path).of("v", "mirror", slow, str, lambda: True)
    go_on.set()
    writer.join(10)


def test_where_nothing_can_be_written_a_server_has_rows_of_its_own(
    bundles_dir: Path, bundles: Sequence[Manifest], index: ExactIndex, tmp_path: Path
) -> None:
    (tmp_path / "a file").write_text("")
    release = load(bundles_dir, bundles[0].version, index, SharedRows(tmp_path / "a file"))
    assert answers(release) == answers(load(bundles_dir, bundles[0].version, index, None))


def test_a_stopped_load_is_no_bug_of_the_release(
    bundles_dir: Path, bundles: Sequence[Manifest], index: ExactIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Path:
        raise InterruptedError("stopped")

    monkeypatch.setattr(SharedRows, "of", interrupted)
    with pytest.raises(ReleaseError, match="stopped"):
        load(bundles_dir, bundles[0].version, index, SharedRows(tmp_path))


def own_bytes(path: Path) -> int:
    """Bytes of a mapped file that are this process's own."""
    found, is_inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split(maxsplit=1)[0]:
            is_inside = str(path) in line
        elif is_inside and line.startswith("Anonymous:"):
            found += 1024 * int(line.split()[1])
    return found


def test_only_the_pages_that_are_written_to_are_a_servers_own(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    write_numbers(path, 4_000_000, [(0, np.ones(1_000_000, np.float32)), (2_000_000, np.ones(5, np.float32))])
    assert path.stat().st_blocks * 512 < 5_000_000  # zeros take no room
    mine, theirs = map_numbers(path), map_numbers(path)
    mine[:1024] = 7
    assert float(mine.sum()) == 1_000_005 + 6 * 1024
    assert 0 < own_bytes(path) <= 1 << 16
    assert float(theirs.sum()) == 1_000_005
