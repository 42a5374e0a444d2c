"""What is sent to the store, in which order, and what a cut costs."""

from __future__ import annotations

import itertools
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.platform.settings import Bundles, Settings
from models.release.manifest_file import MANIFEST
from streams.bundles import sending
from streams.bundles.objects import Objects, StoreError, plain
from streams.bundles.sending import send_bundle, send_patiently, send_release
from tests.harness.buckets import Proxy, away, denied

FILES = 13  # of a bundle, its manifest included


def contents(objects: Objects, version: str) -> dict[str, bytes]:
    found = [each for each in objects.found() if each.name.startswith(version)]
    return {each.name.partition("/")[2]: objects.read(each.name, 0, each.bytes) for each in found if each.bytes < 4000}


def test_every_file_is_sent_and_the_manifest_last(objects: Objects, bucket: Proxy, bundle: Path) -> None:
    assert send_bundle(objects, bundle) == FILES == len(list(bundle.iterdir()))
    assert bucket.names("PUT")[-1] == f"{bundle.name}/{MANIFEST}"
    sizes = {each.name: each.bytes for each in objects.found()}
    assert sizes == {f"{bundle.name}/{path.name}": path.stat().st_size for path in bundle.iterdir()}
    assert all((bundle / name).read_bytes() == content for name, content in contents(objects, bundle.name).items())


def test_what_is_there_is_not_sent_again(objects: Objects, bucket: Proxy, bundle: Path) -> None:
    bucket.spoil(away, name="vectors.npy", method="PUT")
    with pytest.raises(StoreError, match=r"vectors\.npy: no answer"):
        send_bundle(objects, bundle)
    assert f"{bundle.name}/{MANIFEST}" not in bucket.names("PUT"), "half a bundle has no manifest"
    there = {each.name for each in objects.found()}
    bucket.heal()
    bucket.asked.clear()
    send_bundle(objects, bundle)
    assert there and not there & set(bucket.names("PUT"))
    bucket.asked.clear()
    assert send_bundle(objects, bundle) == 0 and not bucket.names("PUT")


def test_no_manifest_follows_files_that_were_tidied_up_meanwhile(
    objects: Objects, bucket: Proxy, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody took it for what was given up; the next try sends all of it."""
    bias, done, send_file = f"{bundle.name}/bias.npy", itertools.count(2), sending._send_file

    def send(*how: Any) -> bool:
        is_sent = send_file(*how)
        if next(done) == FILES:  # the manifest is left
            objects.remove([bias])
        return is_sent

    monkeypatch.setattr(sending, "_send_file", send)
    with pytest.raises(StoreError, match=r"bias\.npy of .* went") as caught:
        send_bundle(objects, bundle)
    assert caught.value.code == "away" and f"{bundle.name}/{MANIFEST}" not in bucket.names("PUT")


def test_what_another_one_has_put_there_is_replaced_unless_it_is_the_same(
    objects: Objects, bucket: Proxy, bundle: Path
) -> None:
    """Written by another program, an object has no note of its checksum: its bytes are looked at."""
    same, other = (bundle / "bias.npy").read_bytes(), bytes((bundle / "count.npy").stat().st_size)
    objects._obstore.put(objects._store, f"{bundle.name}/bias.npy", same)
    objects._obstore.put(objects._store, f"{bundle.name}/count.npy", other)
    bucket.asked.clear()
    send_bundle(objects, bundle)
    assert f"{bundle.name}/bias.npy" not in bucket.names("PUT")
    assert f"{bundle.name}/count.npy" in bucket.names("PUT")


def test_a_store_that_is_away_is_waited_for_and_a_refusal_is_not(objects: Objects, bucket: Proxy, bundle: Path) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            bucket.heal()

    bucket.spoil(away, method="HEAD")
    assert send_patiently(objects, bundle, 60, sleep) == FILES and waits == [1.0, 2.0]
    bucket.spoil(denied, method="HEAD")
    with pytest.raises(StoreError, match="does not let us") as caught:
        send_patiently(objects, bundle, 60, sleep)
    assert caught.value.code == "forbidden" and len(waits) == 2
    bucket.heal()
    bucket.spoil(away, method="HEAD")
    with pytest.raises(StoreError, match="no answer"):
        send_patiently(objects, bundle, 0, sleep)


def test_a_bundle_that_is_damaged_here_is_not_sent(objects: Objects, bucket: Proxy, bundle: Path, tmp_path: Path):
    spoilt = shutil.copytree(bundle, tmp_path / bundle.name)
    (spoilt / "bias.npy").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"bias\.npy: is damaged"):
        send_bundle(objects, spoilt)
    assert f"{bundle.name}/{MANIFEST}" not in bucket.names("PUT")


def test_a_directory_is_a_store_too(bundle: Path, tmp_path: Path) -> None:
    objects = Objects(Bundles(store=f"file://{tmp_path}/store"))
    assert send_bundle(objects, bundle) == FILES and send_bundle(objects, bundle) == 0
    (tmp_path / "store" / bundle.name / "bias.npy").write_bytes(b"x")
    assert send_bundle(objects, bundle) == 1
    sent = tmp_path / "store" / bundle.name
    assert {path.name: path.read_bytes() for path in sent.iterdir()} == {
        path.name: path.read_bytes() for path in bundle.iterdir()
    }


def test_what_was_not_sent_says_how_to_go_on(bucket: Proxy, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.bundles.sending.PATIENCE_S", 0)
    settings = Settings(data_dir=bundle.parent.parent, bundles=bucket.settings())
    monkeypatch.setattr(Settings, "bundles_dir", property(lambda _: bundle.parent))
    bucket.spoil(denied, method="HEAD")
    with pytest.raises(StoreError, match="`nextwatch releases --announce` sends what is missing"):
        send_release(settings, bundle.name)
    send_release(settings.model_copy(update={"bundles": Bundles()}), "anything")  # without a store there is nothing


def test_without_its_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(StoreError, match=r"pip install 'nextwatch\[objects\]'"):
        Objects(Bundles(store="s3://bucket/releases"))


def test_no_error_tells_a_signature(objects: Objects) -> None:
    assert plain(OSError("GET https://a.blob/c/x?sv=1&sig=SECRET in 1 s\n\nDebug source:\nkey")) == (
        "GET https://a.blob/c/x in 1 s"
    )
