"""What a machine fetches that has nothing, whatever the store does meanwhile: over TCP from moto's S3 server, through
a proxy that spoils its answers."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from infra.platform.settings import Bundles
from models.release.bundle import BundleError, check_bundle
from models.release.manifest_file import MANIFEST
from streams.bundles import objects as objects_module
from streams.bundles.fetching import CACHE, PARTIAL
from streams.bundles.objects import Objects
from streams.bundles.sending import send_bundle
from streams.bundles.source import BundleSource, FetchedAhead
from tests.harness.buckets import Answer, Fault, Proxy, away, cut, denied, missing, slow, wrong
from tests.harness.system import wait_until

PIECE = 50_000
LARGE = "ranker.safetensors"  # seven pieces and a bit


@pytest.fixture
def sent(bucket: Proxy, objects: Objects, bundle: Path) -> Path:
    """A bundle that the store has."""
    send_bundle(objects, bundle)
    bucket.asked.clear()
    return bundle


@pytest.fixture
def source(bucket: Proxy, tmp_path: Path) -> BundleSource:
    """Of a machine whose disk is empty."""
    return BundleSource(tmp_path / "bundles", bucket.settings(timeout_s=2.0, keep=2))


def cached(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "bundles" / CACHE).iterdir() if path.name[0] != "."}


def test_a_machine_that_has_nothing_gets_the_bundle_whole(source: BundleSource, sent: Path, tmp_path: Path) -> None:
    assert not source.is_here(sent.name)
    bundle = source.read(sent.name)
    assert bundle.manifest == check_bundle(sent) and source.is_here(sent.name)
    place = source.directory(sent.name)
    assert place == tmp_path / "bundles" / CACHE / sent.name
    assert {each.name: each.read_bytes() for each in place.iterdir()} == {
        each.name: each.read_bytes() for each in sent.iterdir()
    }
    assert not (place.parent / PARTIAL).exists()


def test_what_a_bundle_says_of_itself_is_told_without_its_files(
    source: BundleSource, sent: Path, bucket: Proxy, tmp_path: Path
) -> None:
    assert source.manifest(sent.name) == check_bundle(sent)
    assert not source.is_here(sent.name) and not any(LARGE in each for each in bucket.asked)
    with pytest.raises(BundleError, match="is not there") as refused:
        source.manifest("20260101_000000_0123456789abcdef")
    assert refused.value.code == "missing"


def test_what_is_on_disk_is_not_fetched(source: BundleSource, sent: Path, bucket: Proxy, tmp_path: Path) -> None:
    source.read(sent.name)
    bucket.asked.clear()
    source.read(sent.name)
    own = BundleSource(sent.parent, bucket.settings())
    assert own.directory(sent.name) == sent and own.is_here(sent.name)
    assert not bucket.asked and not (sent.parent / CACHE).exists()


def test_a_fetch_that_is_cut_goes_on_where_it_was(source: BundleSource, sent: Path, bucket: Proxy) -> None:
    """One whose connection ends in the middle of an answer, by another process after a crash for all it knows."""
    passed = iter(range(100))

    def cut_later(answer: Answer) -> Answer:
        return answer if next(passed) < 4 else cut(answer)  # the first four pieces are one reading

    bucket.spoil(cut_later, name=LARGE)
    with pytest.raises(BundleError, match=rf"{LARGE}: no answer from the store") as caught:
        source.read(sent.name)
    assert caught.value.code == "away" and not source.is_here(sent.name)
    bucket.heal()
    bucket.asked.clear()
    source.read(sent.name)
    ranges = [each.range for each in bucket.asked if each.name.endswith(LARGE) and each.method == "GET"]
    size = (sent / LARGE).stat().st_size
    assert sorted(ranges) == sorted(
        f"bytes={at}-{min(at + PIECE, size) - 1}" for at in range(4 * PIECE, size, PIECE)
    ), "what came before the cut is not asked for again"
    assert f"{sent.name}/tower.safetensors" not in bucket.names("GET"), "nor is a file that was whole"


def test_wrong_bytes_are_fetched_again(source: BundleSource, sent: Path, bucket: Proxy) -> None:
    bucket.spoil(wrong, name="bias.npy", times=1)
    bucket.spoil(wrong, name=MANIFEST, times=1)
    assert source.read(sent.name).manifest == check_bundle(sent)


@pytest.mark.parametrize("name", ["bias.npy", MANIFEST])
def test_wrong_bytes_that_come_twice_are_refused(source: BundleSource, sent: Path, bucket: Proxy, name: str, tmp_path):
    bucket.spoil(wrong, name=name)
    with pytest.raises(BundleError, match=name) as caught:
        source.read(sent.name)
    assert caught.value.code in {"damaged", "unreadable"} and bucket.endpoint not in str(caught.value)
    assert cached(tmp_path) == set(), "nothing has the version's name that is not the version"
    bucket.heal()
    source.read(sent.name)


def test_another_bundle_in_its_place_is_refused(objects: Objects, source: BundleSource, sent: Path, trained, tmp_path):
    """Whoever may write to the bucket cannot have another bundle served than the one that was announced."""
    other = shutil.copytree(trained[1], tmp_path / sent.name)
    send_bundle(objects, other)
    with pytest.raises(BundleError, match=f"of version {trained[1].name}"):
        source.read(sent.name)


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        (away, "away", "no answer from the store"),
        (denied, "forbidden", "does not let us"),
        (missing, "missing", "is not there"),
    ],
    ids=["away", "403", "404"],
)
def test_what_the_store_does_not_give_is_named_and_asked_for_again(
    source: BundleSource, sent: Path, bucket: Proxy, fault: Fault, code: str, says: str
) -> None:
    bucket.spoil(fault, name="words.npy")
    with pytest.raises(BundleError, match=rf"words\.npy: .*{says}") as caught:
        source.read(sent.name)
    assert caught.value.code == code and "testing" not in str(caught.value)
    bucket.heal()
    source.read(sent.name)


def test_a_store_that_is_too_slow_is_away(sent: Path, bucket: Proxy, tmp_path: Path) -> None:
    bucket.spoil(slow(2.0), name="words.npy")
    with pytest.raises(BundleError, match=r"words\.npy: no answer from the store"):
        BundleSource(tmp_path / "bundles", bucket.settings(timeout_s=1.0)).read(sent.name)


def test_a_version_that_was_never_sent_is_missing(source: BundleSource, bucket: Proxy) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json: is not there") as caught:
        source.read("20260101_000000_0123456789abcdef")
    assert caught.value.code == "missing"


def test_those_that_were_used_last_stay(source: BundleSource, objects: Objects, trained: list[Path], tmp_path: Path):
    for at, directory in enumerate(trained[:2]):
        send_bundle(objects, directory)
        os.utime(source.directory(directory.name), (at, at))
    os.utime(source.directory(trained[0].name), (5, 5))
    send_bundle(objects, trained[2])
    mapped = source.read(trained[1].name)
    os.utime(source.directory(trained[1].name), (1, 1))
    source.read(trained[2].name)
    assert cached(tmp_path) == {trained[0].name, trained[2].name}
    assert mapped.model.vectors.sum() != 0, "who has it mapped can read it all the same"
    source.read(trained[1].name)


def test_what_this_disk_has_spoilt_is_fetched_again(source: BundleSource, sent: Path) -> None:
    """By the next who reads it: the first may have a loop that must go on."""
    (source.directory(sent.name) / "bias.npy").write_bytes(b"x")
    with pytest.raises(BundleError):
        source.read(sent.name)
    assert not source.is_here(sent.name)
    assert source.read(sent.name).manifest == check_bundle(sent)


def test_processes_of_one_machine_fetch_it_once(sent: Path, bucket: Proxy, tmp_path: Path) -> None:
    bucket.spoil(slow(0.05))
    sources = [BundleSource(tmp_path / "bundles", bucket.settings()) for _ in range(3)]
    threads = [threading.Thread(daemon=True, target=each.read, args=(sent.name,)) for each in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bucket.names("GET").count(f"{sent.name}/{MANIFEST}") == 1 and sources[0].is_here(sent.name)


def test_a_loop_goes_on_while_its_bundle_is_fetched(source: BundleSource, sent: Path, bucket: Proxy) -> None:
    ahead, gate = FetchedAhead(source), threading.Event()

    def held(answer: Answer) -> Answer:
        gate.wait(30)
        return answer

    bucket.spoil(held, name=LARGE, times=1)
    assert not ahead.is_here(sent.name) and ahead.under_way == sent.name, "it is asked for, and nobody waits"
    gate.set()
    wait_until(lambda: ahead.is_here(sent.name), "fetched", 30)
    assert not ahead.under_way


def test_a_fetch_ahead_that_fails_is_told_once_and_tried_again(source: BundleSource, sent: Path, bucket: Proxy) -> None:
    ahead = FetchedAhead(source)
    bucket.spoil(denied)
    assert not ahead.is_here(sent.name)
    wait_until(lambda: not ahead.under_way, "an answer", 30)
    with pytest.raises(BundleError, match="does not let us"):
        ahead.is_here(sent.name)
    bucket.heal()
    asked: list[bool] = []
    ahead.wait(sent.name, lambda: asked.append(True))
    assert asked and source.is_here(sent.name)


def test_a_newer_release_stops_the_fetch_of_an_older_one(
    source: BundleSource, objects: Objects, sent: Path, trained: list[Path], bucket: Proxy
) -> None:
    send_bundle(objects, trained[1])
    ahead = FetchedAhead(source)
    bucket.spoil(slow(0.3), name=LARGE)
    ahead.is_here(sent.name)
    ahead.wait(trained[1].name, lambda: None)
    assert not source.is_here(sent.name) and source.is_here(trained[1].name)


def test_a_fetch_ahead_that_is_stopped_ends_and_lets_another_one_fetch(
    source: BundleSource, objects: Objects, sent: Path, trained: list[Path], bucket: Proxy
) -> None:
    send_bundle(objects, trained[1])
    first, second = FetchedAhead(source), FetchedAhead(source)
    bucket.spoil(slow(0.3), name=LARGE)
    assert not first.is_here(sent.name)
    first.stop()
    second.wait(trained[1].name, lambda: None)
    assert not first.under_way and not source.is_here(sent.name)


def test_a_fetch_ahead_yields_to_one_that_is_wanted_more_and_goes_on_behind_it(
    source: BundleSource, objects: Objects, sent: Path, trained: list[Path], bucket: Proxy
) -> None:
    send_bundle(objects, trained[1])
    live = FetchedAhead(source)
    beside = FetchedAhead(source, lambda: bool(live.under_way))
    bucket.spoil(slow(0.3), name=LARGE)
    assert not beside.is_here(sent.name) and beside.under_way
    live.wait(trained[1].name, lambda: None)
    assert not source.is_here(sent.name), "the other one has not waited for it"
    wait_until(lambda: beside.is_here(sent.name), "fetched behind it, and no failure", 30)


def test_whoever_is_stopped_does_not_wait_for_the_lock(source: BundleSource, sent: Path, bucket: Proxy) -> None:
    bucket.spoil(slow(1.0), name=MANIFEST, method="HEAD", times=1)
    thread = threading.Thread(daemon=True, target=source.directory, args=(sent.name,))
    thread.start()
    wait_until(lambda: bool(bucket.asked), "a fetch", 10)
    with pytest.raises(BundleError, match="stopped"):
        source.directory(sent.name, lambda: True)
    thread.join()


def test_what_is_on_disk_does_not_wait_for_the_fetch_of_another(
    source: BundleSource, objects: Objects, sent: Path, trained: list[Path], bucket: Proxy
) -> None:
    source.directory(sent.name)
    send_bundle(objects, trained[1])
    bucket.asked.clear()
    bucket.spoil(slow(1.0), name=MANIFEST, method="HEAD", times=1)
    thread = threading.Thread(daemon=True, target=source.directory, args=(trained[1].name,))
    thread.start()
    wait_until(lambda: bool(bucket.asked), "a fetch", 10)
    assert source.read(sent.name, lambda: True).manifest.version == sent.name
    thread.join()


def test_the_fetch_of_a_ranker_stops_for_a_whole_bundle_and_goes_on_afterwards(
    source: BundleSource, objects: Objects, sent: Path, trained: list[Path], bucket: Proxy
) -> None:
    """A release that is announced does not wait for a rival of the one before."""
    send_bundle(objects, trained[1])
    bucket.asked.clear()
    bucket.spoil(slow(0.5), name=f"{sent.name}/{LARGE}")
    refused: list[BundleError] = []

    def fetch_ranker() -> None:
        try:
            source.read_ranker(sent.name)
        except BundleError as error:
            refused.append(error)

    thread = threading.Thread(daemon=True, target=fetch_ranker)
    thread.start()
    wait_until(lambda: any(each.name.endswith(LARGE) for each in bucket.asked), "a fetch", 10)
    assert source.read(trained[1].name).manifest.version == trained[1].name
    thread.join()
    assert "stopped" in str(refused[0]) and not source.is_here(sent.name)
    bucket.heal()
    assert source.read_ranker(sent.name).manifest.version == sent.name


def test_a_disk_that_takes_nothing_is_an_error_of_ours(sent: Path, bucket: Proxy, tmp_path: Path) -> None:
    (tmp_path / "bundles").write_text("a file where the directory should be")
    with pytest.raises(BundleError, match="cannot be kept there"):
        BundleSource(tmp_path / "bundles", bucket.settings()).read(sent.name)


def test_a_large_file_is_read_in_several_pieces_at_once(objects: Objects, bucket: Proxy, sent: Path) -> None:
    name, size = f"{sent.name}/{LARGE}", (sent / LARGE).stat().st_size
    assert objects.size(name) == size > objects_module.AT_ONCE * PIECE
    first = objects.read(name, 0, size)
    assert first + objects.read(name, len(first), size) == (sent / LARGE).read_bytes()


def test_without_a_store_the_directory_is_all_there_is(sent: Path, tmp_path: Path) -> None:
    source = BundleSource(sent.parent, Bundles())
    assert source.is_here("anything") and source.directory("anything") == sent.parent / "anything"
    with pytest.raises(BundleError, match="train a release"):
        source.read("anything")
