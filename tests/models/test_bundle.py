import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from models import bundle as bundles
from models.bundle import (
    CATALOGUE,
    FILES,
    MANIFEST,
    RANKER,
    RANKER_IDS,
    STATISTICS,
    TOWER,
    Bundle,
    BundleError,
    read_bundle,
    write_bundle,
)
from models.exposures import Delays
from models.features import SCHEMA_HASH
from tests.models.samples import START_MS

OTHER = {"hidden": [5], "features": ["age_h"], "sizes": {}, "widths": {}}


@pytest.fixture
def damaged(release: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(release, tmp_path / release.name))


def edit_manifest(directory: Path, **changes: object) -> None:
    manifest = msgspec.json.decode((directory / MANIFEST).read_bytes())
    (directory / MANIFEST).write_bytes(msgspec.json.encode(manifest | changes))


def write_again(bundle: Bundle, bundles_dir: Path, created_ms: int = START_MS) -> str:
    return write_bundle(
        bundles_dir,
        model=bundle.model,
        ranker=bundle.ranker,
        catalogue=bundle.catalogue,
        created_ms=created_ms,
        completed_s=18.0,
        statistics=bundle.statistics,
        seed=1,
        metrics={},
        offsets={},
    ).version


def test_a_version_can_be_part_of_a_collections_name(bundle: Bundle, release: Path):
    assert bundle.manifest.version == release.name
    assert bundle.manifest.version.startswith("20231114_221320_")
    assert bundle.manifest.version.replace("_", "").isalnum()


def test_what_was_written_is_what_is_read(bundle: Bundle, tmp_path: Path):
    bundle.catalogue.upsert("i1", channel="other", topics=["a", "b"], duration_s=3.0, published_ms=4, available=False)
    again = read_bundle(tmp_path / write_again(bundle, tmp_path))
    np.testing.assert_array_equal(again.model.item_vectors(), bundle.model.item_vectors())
    assert again.model.item_ids == bundle.model.item_ids
    for name, array in bundle.ranker.to_arrays().items():
        np.testing.assert_array_equal(again.ranker.to_arrays()[name], array)
    assert (again.ranker.shape, again.ranker.spaces.names) == (bundle.ranker.shape, bundle.ranker.spaces.names)
    assert again.manifest.schema_hash == SCHEMA_HASH
    assert list(again.statistics.rows()) == list(bundle.statistics.rows())
    assert again.statistics.half_life_ms == bundle.statistics.half_life_ms == Delays().half_life_ms
    assert {scope for scope, *_ in bundle.statistics.rows()} == {"item", "channel", "topic", "length", "all"}
    row = again.catalogue.row("i1")
    assert (again.catalogue.channel_of(row), again.catalogue.topics_of(row)) == ("other", ("a", "b"))
    assert not again.catalogue.is_available(np.array([row]))[0]
    assert again.catalogue.published_ms(np.array([row]))[0] == 4
    assert bundle.manifest.offsets == {"training-examples/0": 17}


def test_a_version_tells_content_and_time(bundle: Bundle, tmp_path: Path):
    first = write_again(bundle, tmp_path)
    assert write_again(bundle, tmp_path) == first
    assert write_again(bundle, tmp_path, START_MS + 1000) != first
    bundle.model.bias = bundle.model.bias + 1
    assert write_again(bundle, tmp_path).split("_")[2] != first.split("_")[2]


def test_nothing_but_whole_bundles_is_left_behind(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    version = write_again(bundle, tmp_path)

    def full(path: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(bundles, "_sync", full)
    with pytest.raises(OSError, match="no space"):
        write_again(bundle, tmp_path, START_MS + 1000)
    assert [path.name for path in tmp_path.iterdir()] == [version]


@pytest.mark.parametrize("name", [name for name in FILES if name != "words.npy"])
def test_a_damaged_file_is_named(damaged: Path, name: str):
    content = bytearray((damaged / name).read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name}: is damaged"):
        read_bundle(damaged)


@pytest.mark.parametrize("name", [TOWER, RANKER, RANKER_IDS, STATISTICS, CATALOGUE, "vectors.npy"])
def test_a_missing_file_is_named(damaged: Path, name: str):
    (damaged / name).unlink()
    with pytest.raises(BundleError, match=rf"{name}: is missing"):
        read_bundle(damaged)


def test_a_missing_bundle_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(BundleError, match="nextwatch train"):
        read_bundle(tmp_path / "none")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1}'])
def test_a_manifest_that_is_none_is_named(damaged: Path, content: bytes):
    (damaged / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json: not a manifest"):
        read_bundle(damaged)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"format": 99}, "format 99"),
        ({"schema_hash": "another"}, "made for features another"),
        ({"items": 7}, r"vectors\.npy: does not fit its manifest: 60 rows, the manifest says 7"),
        ({"dim": 3}, r"vectors\.npy: does not fit its manifest: 9 is not 3"),
        ({"tower": {"dim": 8, "hidden": [5]}}, r"tower\.safetensors: does not fit"),
        ({"ranker": OTHER}, r"ranker\.safetensors: does not fit"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(damaged: Path, changes: dict[str, object], why: str):
    edit_manifest(damaged, **changes)
    with pytest.raises(BundleError, match=why):
        read_bundle(damaged)
