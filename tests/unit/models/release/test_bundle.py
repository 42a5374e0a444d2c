import copy
import dataclasses
import hashlib
import os
import shutil
import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import pytest

from models.catalogue.content import ContentShape
from models.ranking.features import SCHEMA_HASH
from models.ranking.impression_log import Delays
from models.ranking.quantiles import Isotonic
from models.release import bundle as bundles
from models.release.bundle import (
    CATALOGUE,
    CONTENT,
    DIGITS,
    FILES,
    MANIFEST,
    RANKER,
    RANKER_IDS,
    STATISTICS,
    TOWER,
    Bundle,
    BundleError,
    Manifest,
    read_bundle,
    version_of,
    write_bundle,
)
from models.release.manifest_file import MOST_BYTES
from models.retrieval.cold_start import ContentMap
from tests.unit.models.samples import START_MS

OTHER = {"hidden": [5], "features": ["age_h"], "sizes": {}, "widths": {}}


@pytest.fixture
def damaged(release: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(release, tmp_path / release.name))


def edit_manifest(directory: Path, **changes: object) -> None:
    manifest = msgspec.json.decode((directory / MANIFEST).read_bytes())
    (directory / MANIFEST).write_bytes(msgspec.json.encode(manifest | changes))


def issue_again(directory: Path, **changes: object) -> Path:
    """The bundle as somebody would have issued it who may announce versions: all checksums are right."""
    files = {name: checksum_of(directory / name) for name in FILES}
    edit_manifest(directory, files=files | changes.pop("files", {}), **changes)  # type: ignore[operator]
    manifest = msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest)
    version = version_of(manifest)
    edit_manifest(directory, version=version)
    return directory.rename(directory.parent / version)


def checksum_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def code_of(directory: Path) -> str:
    """Why a bundle is refused."""
    with pytest.raises(BundleError) as refused:
        read_bundle(directory)
    return refused.value.code


def write_again(bundle: Bundle, bundles_dir: Path, created_ms: int = START_MS, learnt_ms: int = 0) -> str:
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
        learnt_ms=learnt_ms,
    ).version


def test_a_version_can_be_part_of_a_collections_name(bundle: Bundle, release: Path):
    assert bundle.manifest.version == release.name and len(release.name) == len("20231114_221320_") + DIGITS
    assert bundle.manifest.version.startswith("20231114_221320_")
    assert bundle.manifest.version.replace("_", "").isalnum()


def test_a_rankers_isotonic_map_is_part_of_its_bundle(bundle: Bundle, tmp_path: Path):
    points, values = np.array([1.0, 2.0]), np.array([2.0, 5.0])
    mapped = dataclasses.replace(bundle, ranker=bundle.ranker.calibrated(Isotonic(points, values)))
    again = read_bundle(tmp_path / write_again(mapped, tmp_path)).ranker.isotonic
    assert again is not None
    np.testing.assert_array_equal([again.points, again.values], [points, values])
    assert read_bundle(tmp_path / write_again(bundle, tmp_path)).ranker.isotonic is None


def test_a_bundle_says_which_weights_its_ranker_was_trained_with(bundle: Bundle, tmp_path: Path):
    assert bundle.ranker.shape is not None
    other = copy.copy(bundle.ranker)
    other.shape = msgspec.structs.replace(bundle.ranker.shape, objective="paper")
    version = write_again(dataclasses.replace(bundle, ranker=other), tmp_path)
    shape = read_bundle(tmp_path / version).manifest.ranker
    assert shape is not None and shape.objective == "paper"
    assert version != write_again(bundle, tmp_path)


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


@pytest.mark.parametrize("reads", [(False, 0), (True, 0), (False, 16), (True, 16)])
def test_how_new_items_are_placed_by_content_is_in_the_bundle_and_checked_like_all_else(
    bundle: Bundle, tmp_path: Path, reads: tuple[bool, int]
):
    model = copy.copy(bundle.model)
    shape = ContentShape(*reads)
    weights = np.random.default_rng(1).random((shape.rows, 2 * model.dim - 2), dtype=np.float32)
    model.content = ContentMap(weights, shape)
    directory = tmp_path / write_again(dataclasses.replace(bundle, model=model), tmp_path)
    again = read_bundle(directory)
    assert again.model.content is not None and again.model.content.shape == shape
    np.testing.assert_array_equal(again.model.content.weights, weights)
    assert (b"content_" in (directory / MANIFEST).read_bytes()) is any(reads), "a map of ids and titles is as before"
    assert read_bundle(tmp_path / write_again(bundle, tmp_path)).model.content is None
    np.save(directory / CONTENT, weights[:-1])
    assert code_of(directory) == "damaged"
    assert code_of(issue_again(directory, files={CONTENT: checksum_of(directory / CONTENT)})) == "unfit"


def test_a_manifest_that_an_older_release_of_ours_wrote_is_still_what_its_name_says():
    """Whatever came into it since then; otherwise an upgrade would take every release for damaged."""
    manifest = msgspec.json.decode(Path(__file__).with_name("manifest_of_0_3.json").read_bytes(), type=Manifest)
    assert version_of(manifest) == manifest.version == "20231114_221321_011c306b0485d1dc"
    for reads in ({"ordered": True}, {"skips": 7}):
        other = msgspec.structs.replace(manifest, tower=msgspec.structs.replace(manifest.tower, **reads))
        assert version_of(other) != manifest.version
    assert manifest.ranker is not None and manifest.ranker.cap_s == 600, "as all had it then"
    other = msgspec.structs.replace(manifest, ranker=msgspec.structs.replace(manifest.ranker, cap_s=601.0))
    assert version_of(other) != manifest.version


def test_how_far_a_log_went_is_told_and_a_manifest_from_before_that_keeps_its_version(bundle: Bundle, tmp_path: Path):
    before = write_again(bundle, tmp_path)
    assert b"learnt_ms" not in (tmp_path / before / MANIFEST).read_bytes(), "so its checksum is what it was"
    learnt = write_again(bundle, tmp_path, learnt_ms=START_MS - 1)
    assert learnt != before
    found = [read_bundle(tmp_path / version).manifest.learnt_ms for version in (before, learnt)]
    assert found == [0, START_MS - 1]


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

    monkeypatch.setattr(bundles, "sync_path", full)
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
    with pytest.raises(BundleError, match=why):
        read_bundle(issue_again(damaged, **changes))


def test_a_bundle_that_is_issued_as_it_is_can_be_read(damaged: Path):
    assert read_bundle(issue_again(damaged, seed=2)).manifest.seed == 2


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_one_bit_that_flips_anywhere_is_found(damaged: Path, name: str):
    content = (damaged / name).read_bytes()
    assert len(content) > 1 or name == "words.npy"
    for at in {0, len(content) // 3, len(content) - 1}:
        (damaged / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert code_of(damaged) in {"damaged", "foreign", "unreadable", "format", "schema"}
    (damaged / name).write_bytes(content)
    read_bundle(damaged)


@pytest.mark.parametrize(
    "changes",
    [{"completed_s": 1.0}, {"offsets": {"training-examples/0": 0}}, {"seed": 9}, {"created_ms": START_MS + 1}],
)
def test_a_manifest_that_was_changed_is_not_what_its_version_tells_of(damaged: Path, changes: dict[str, object]):
    edit_manifest(damaged, **changes)
    assert code_of(damaged) == "damaged"


def test_a_bundle_in_anothers_place_is_refused(damaged: Path):
    announced = damaged.name
    issued = issue_again(damaged, seed=2)
    assert code_of(issued.rename(damaged.parent / announced)) == "foreign"
    edit_manifest(damaged, version=announced)
    assert code_of(damaged) == "damaged"


def test_a_version_that_tells_less_than_all_of_its_checksum_is_refused(damaged: Path):
    short = damaged.name[:-10]  # so few digits that another manifest with the same ones is soon found
    edit_manifest(damaged, version=short)
    assert code_of(damaged.rename(damaged.parent / short)) == "damaged"


@pytest.mark.parametrize("name", ["weights.pkl", "vectors.npy.bak", "model"])
def test_a_file_too_many_is_refused(damaged: Path, name: str):
    (damaged / name).mkdir() if name == "model" else (damaged / name).write_bytes(b"x")
    assert code_of(damaged) == "foreign"


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "weights.pkl"])
def test_a_manifest_cannot_name_other_files(damaged: Path, name: str):
    assert code_of(issue_again(damaged, files={name: "0" * 64})) == "unfit"


@pytest.mark.parametrize("name", [MANIFEST, TOWER, CATALOGUE, "vectors.npy"])
def test_a_link_is_not_a_file_of_a_bundle(damaged: Path, tmp_path: Path, name: str):
    (damaged / name).rename(tmp_path / "elsewhere")
    (damaged / name).symlink_to(tmp_path / "elsewhere")
    assert code_of(damaged) in {"missing", "unreadable"}
    (damaged / name).unlink()
    os.mkfifo(damaged / name)  # would be waited for
    assert code_of(damaged) in {"missing", "unreadable"}


def test_a_manifest_of_a_gigabyte_is_not_read(damaged: Path):
    os.truncate(damaged / MANIFEST, 10**9)  # takes no room on the disk
    tracemalloc.start()
    assert code_of(damaged) == "missing"
    assert tracemalloc.get_traced_memory()[1] < 4 * MOST_BYTES
    tracemalloc.stop()


@pytest.mark.parametrize("length", [2**63, 2**40, 10**8])
@pytest.mark.parametrize("name", [TOWER, RANKER])
def test_a_header_of_an_absurd_length_is_refused(damaged: Path, name: str, length: int):
    content = (damaged / name).read_bytes()
    (damaged / name).write_bytes(length.to_bytes(8, "little") + content[8:])
    assert code_of(issue_again(damaged)) == "unreadable"


def test_an_array_of_an_absurd_size_or_of_objects_is_refused(damaged: Path):
    with (damaged / "vectors.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 9)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(b"1234")
    again = issue_again(damaged)
    assert code_of(again) == "unreadable"
    np.save(again / "vectors.npy", np.array([print], dtype=object), allow_pickle=True)
    assert code_of(issue_again(again)) == "unreadable"
