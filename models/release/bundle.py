"""A release on disk: an immutable directory of weights, catalogue and manifest, named by its version.

Every table is a file of its own that is memory-mapped when it is read, so that ten million rows take memory once at
most. A bundle is written beside its place, synced and renamed, so that a directory with a version's name is always
whole; the manifest carries a checksum of every other file, so that a damaged one is refused by name before anything is
served. The version is a checksum of the manifest, so whoever is told a version on `releases` is told what must be in
the bundle, and one that was changed or put in its place since is refused. Nothing in it is code: arrays, tables, JSON.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import polars as pl
import safetensors.numpy
import torch
from safetensors import SafetensorError

from models.arrays import Array
from models.catalogue.catalogue import Catalogue
from models.catalogue.content import ContentShape
from models.catalogue.context import ContextVocabulary
from models.catalogue.item_frame import catalogue_frame, catalogue_of
from models.logs.array_file import mapped
from models.ranking.features import SCHEMA_HASH
from models.ranking.item_statistics import ItemStatistics
from models.ranking.ranker import Ranker
from models.ranking.ranker_net import RankerShape
from models.ranking.ranking_examples import CAP_S
from models.release.manifest_file import MANIFEST, check_ordinary, read_manifest_bytes, sync_path
from models.retrieval.candidates import CandidateModel, UserEncoder
from models.retrieval.cold_start import ContentMap
from models.retrieval.popularity import Popularity
from models.retrieval.table import write_table
from models.retrieval.tower import TowerShape, UserTowers

FORMAT = 3
TOWER = "tower.safetensors"
RANKER = "ranker.safetensors"
RANKER_IDS = "ranker_ids.parquet"
STATISTICS = "statistics.parquet"
CATALOGUE = "catalogue.parquet"
LATER: dict[str, dict[str, Any]] = {  # fields of the shapes that came later, and what they are without it
    "tower": {"ordered": False, "skips": 0},
    "ranker": {"cap_s": CAP_S, "isotonic": False, "objective": "unbiased"},
}
TABLES = ("vectors", "bias", "query_rows", "words", "count", "total", "touched")  # one file each, to be mapped
CONTENT = "content.npy"  # of a release that places new items by it
FILES = (TOWER, RANKER, RANKER_IDS, STATISTICS, CATALOGUE, *(f"{name}.npy" for name in TABLES))
HOUR_MS = 3_600_000

BundleCode = Literal["missing", "unreadable", "damaged", "foreign", "format", "schema", "unfit", "away", "forbidden"]
DIGITS = 16  # of the checksum in a version: that many nobody finds another bundle for


class BundleError(ValueError):
    """A bundle cannot be used; the text names the file and what is wrong with it, `code` is one of a fixed few."""

    def __init__(self, code: BundleCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """The description of a bundle. `dim` is the length of an index vector; `offsets` are the next ones to read, by
    `topic/partition`; `files` are SHA-256 sums. `learnt_ms`: the time of the newest row, where it was trained from a
    log; 0 from the topics. `content_words` and `content_vector`: what the map of content reads beside ids and titles
    (models.catalogue.content.ContentShape). What has a default is left out where it is that, so that an old manifest
    keeps its version.
    """

    format: int
    version: str
    created_ms: int
    dim: int
    items: int
    schema_hash: str
    completed_s: float
    ranker: RankerShape | None  # None: too little to learn one from, retrieval order is kept
    tower: TowerShape
    contexts: ContextVocabulary
    half_life_h: float  # of the item statistics
    half_life_events: float
    watches: int  # completed ones that it has counted: the clock of the popularity coordinate
    seed: int
    metrics: dict[str, float]
    offsets: dict[str, int]
    files: dict[str, str]
    learnt_ms: int = 0
    content_words: bool = False
    content_vector: int = 0


@dataclass(frozen=True)
class Bundle:
    """A release in memory. `catalogue` holds the facts at training time, one row per item of the model and in the same
    order; the ranker reads it, so what is upserted there is what it sees. `statistics`: of the log's impressions, to
    which those of the stream are added."""

    manifest: Manifest
    model: CandidateModel
    ranker: Ranker
    catalogue: Catalogue
    statistics: ItemStatistics


class RankerBundle(NamedTuple):
    """The part of a release that ranks; ranker and statistics as Bundle has them."""

    manifest: Manifest
    ranker: Ranker
    statistics: ItemStatistics


def write_bundle(
    bundles_dir: Path,
    *,
    model: CandidateModel,
    ranker: Ranker,
    catalogue: Catalogue,
    created_ms: int,
    completed_s: float,
    statistics: ItemStatistics,
    seed: int,
    metrics: dict[str, float],
    offsets: dict[str, int],
    learnt_ms: int = 0,
) -> Manifest:
    """Write a bundle to `bundles_dir/<version>`; its manifest. The same content at the same second is the same bundle.

    Until the rename it lies in a directory whose name begins with `.writing-`; a crash may leave one behind."""
    bundles_dir.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=bundles_dir))
    try:
        for name, table in _tables(model).items():
            write_table(staging / f"{name}.npy", table)
        if model.content is not None:
            write_table(staging / CONTENT, model.content.weights)
        tower = {name: tensor.numpy() for name, tensor in model.encoder.tower.state_dict().items()}
        safetensors.numpy.save_file(_contiguous(tower), staging / TOWER)
        safetensors.numpy.save_file(_contiguous(ranker.to_arrays()), staging / RANKER)
        _names_frame(ranker).write_parquet(staging / RANKER_IDS)
        _statistics_frame(statistics).write_parquet(staging / STATISTICS)
        catalogue_frame(catalogue).write_parquet(staging / CATALOGUE)
        names = FILES if model.content is None else (*FILES, CONTENT)
        files = {name: _checksum(staging / name) for name in names}
        unnamed = Manifest(
            format=FORMAT,
            version="",
            created_ms=created_ms,
            dim=model.dim,
            items=len(model.item_ids),
            schema_hash=SCHEMA_HASH,
            completed_s=completed_s,
            ranker=ranker.shape,
            tower=model.encoder.tower.shape,
            contexts=model.encoder.contexts,
            half_life_h=statistics.half_life_ms / HOUR_MS,
            half_life_events=model.popularity.half_life_events,
            watches=model.popularity.clock,
            seed=seed,
            metrics=metrics,
            offsets=offsets,
            files=files,
            learnt_ms=learnt_ms,
            content_words=model.content is not None and model.content.shape.words,
            content_vector=0 if model.content is None else model.content.shape.vector,
        )
        manifest = msgspec.structs.replace(unnamed, version=version_of(unnamed))
        (staging / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
        _publish(staging, bundles_dir / manifest.version)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def newest_version(bundles_dir: Path) -> str:
    """Raises BundleError when there is none."""
    versions = _versions(bundles_dir)
    if not versions:
        raise BundleError("missing", f"{bundles_dir}: holds no release; train one with `nextwatch train`")
    return versions[-1]


def _versions(bundles_dir: Path) -> list[str]:
    """Oldest first."""
    return sorted(path.parent.name for path in bundles_dir.glob(f"*/{MANIFEST}") if path.parent.name[0] != ".")


def version_of(manifest: Manifest) -> str:
    """`YYYYMMDD_HHMMSS_<hex of the content>`: letters, digits and underscores, since a collection is named by it."""
    content = msgspec.to_builtins(msgspec.structs.replace(manifest, version=""))
    for part, fields in LATER.items():  # a bundle from before them keeps its version
        shape = content[part] or {}
        for name, nothing in fields.items():
            if shape.get(name) == nothing:
                del shape[name]
    checksum = hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()
    return f"{datetime.fromtimestamp(manifest.created_ms / 1000, UTC):%Y%m%d_%H%M%S}_{checksum[:DIGITS]}"


def read_manifest(directory: Path) -> Manifest:
    """Raises BundleError when it is missing, damaged, of another format, of features that we do not compute, or of
    another bundle than the directory is named after."""
    path = directory / MANIFEST
    try:
        manifest = msgspec.json.decode(read_manifest_bytes(directory), type=Manifest)
    except OSError as error:
        text = f"{path}: cannot be read ({error.strerror}); train a release with `nextwatch train`"
        raise BundleError("missing", text) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError("unreadable", f"{path}: not a manifest: {error}") from None
    if manifest.format != FORMAT:
        ours = f"this version of nextwatch reads {FORMAT}"
        raise BundleError("format", f"{path}: format {manifest.format}, {ours}; train anew")
    if manifest.schema_hash != SCHEMA_HASH:
        ours = f"this version of nextwatch computes {SCHEMA_HASH}"
        raise BundleError("schema", f"{path}: made for features {manifest.schema_hash}, {ours}; train anew")
    _check_version(path, manifest)
    return manifest


def _check_version(path: Path, manifest: Manifest) -> None:
    """Raises BundleError for a manifest that is not the one which the directory's name tells of."""
    name = path.parent.name
    if manifest.version != name:
        raise BundleError("foreign", f"{path}: of version {manifest.version}, but it lies in {name}; restore {name}")
    try:
        told = version_of(manifest)
    except (ValueError, OverflowError, OSError):  # a time that is none
        told = ""
    if name != told:
        text = f"{path}: is damaged (its content is not what its version tells of); restore it or train anew"
        raise BundleError("damaged", text)
    if unlike := sorted((manifest.files.keys() - {CONTENT}) ^ set(FILES)):
        raise BundleError("unfit", f"{path}: is not about the files of a bundle: {', '.join(unlike)[:200]}")


def check_bundle(directory: Path) -> Manifest:
    """The manifest of a bundle whose files are all what their checksums say. Raises BundleError naming the file."""
    manifest = read_manifest(directory)
    _check_files(directory, manifest.files)
    return manifest


def read_bundle(directory: Path) -> Bundle:
    """Load and check a bundle. Raises BundleError naming the file."""
    manifest = check_bundle(directory)
    with _readable(directory / CATALOGUE, " as a catalogue"):
        catalogue = catalogue_of(pl.read_parquet(directory / CATALOGUE))
    model = _read_model(directory, manifest, list(catalogue.item_ids))
    return Bundle(manifest, model, _read_ranker(directory, manifest), catalogue, _read_statistics(directory, manifest))


def read_ranker(directory: Path, beside: RankerBundle | None = None) -> RankerBundle:
    """Load and check the part of a bundle that ranks; the other files are not looked at. Statistics that are those of
    `beside`, which is in memory, are not read again. Raises BundleError."""
    manifest = read_manifest(directory)
    is_shared = beside is not None and _statistics_id(manifest) == _statistics_id(beside.manifest)
    for name in (RANKER, RANKER_IDS) if is_shared else (RANKER, RANKER_IDS, STATISTICS):
        _check_file(directory / name, manifest.files[name])
    statistics = beside.statistics if beside and is_shared else _read_statistics(directory, manifest)
    return RankerBundle(manifest, _read_ranker(directory, manifest), statistics)


def _statistics_id(manifest: Manifest) -> tuple[str, float]:
    return manifest.files[STATISTICS], manifest.half_life_h


def _tables(model: CandidateModel) -> dict[str, Array]:
    rows = {"vectors": model.vectors, "bias": model.bias, "query_rows": model.query_rows, "words": model.encoder.words}
    return rows | model.popularity.arrays()


def _read_model(directory: Path, manifest: Manifest, item_ids: list[str]) -> CandidateModel:
    tables: dict[str, Array] = {}
    for name in TABLES:
        with _readable(directory / f"{name}.npy"):
            tables[name] = mapped(directory / f"{name}.npy", "c")  # torch reads no array that it may not write to
    weights = _read_arrays(directory / TOWER)
    try:
        tower = UserTowers(manifest.tower)
        tower.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    except (KeyError, RuntimeError) as error:
        raise BundleError("unfit", f"{directory / TOWER}: does not fit its manifest: {error}") from None
    counts = (np.array(tables[name]) for name in ("count", "total", "touched"))
    model = CandidateModel(
        item_ids,
        UserEncoder(tower, tables["words"], manifest.contexts),
        vectors=tables["vectors"],
        bias=tables["bias"],
        query_rows=tables["query_rows"],
        popularity=Popularity(manifest.half_life_events, *counts, clock=manifest.watches),
        content=_read_content(directory, manifest),
    )
    for name in TABLES:
        if name != "words" and len(tables[name]) != manifest.items:
            found = f"{len(tables[name]):,} rows, the manifest says {manifest.items:,}"
            raise BundleError("unfit", f"{directory / name}.npy: does not fit its manifest: {found}")
    if model.dim != manifest.dim or tables["query_rows"].shape[1] != manifest.dim - 1:
        unlike = f"{model.dim} is not {manifest.dim}"
        raise BundleError("unfit", f"{directory / 'vectors.npy'}: does not fit its manifest: {unlike}")
    return model


def _read_content(directory: Path, manifest: Manifest) -> ContentMap | None:
    if CONTENT not in manifest.files:
        return None
    shape = ContentShape(manifest.content_words, manifest.content_vector)
    with _readable(directory / CONTENT):
        weights = mapped(directory / CONTENT, "c")
    expected = shape.rows, 2 * (manifest.dim - 1)
    if weights.shape != expected:
        unlike = f"{weights.shape} is not {expected}"
        raise BundleError("unfit", f"{directory / CONTENT}: does not fit its manifest: {unlike}")
    return ContentMap(weights, shape)


def _read_ranker(directory: Path, manifest: Manifest) -> Ranker:
    with _readable(directory / RANKER_IDS):
        ids = pl.read_parquet(directory / RANKER_IDS).group_by("space", maintain_order=True).agg("id")
        names: dict[str, list[str]] = dict(ids.iter_rows())
    weights = _read_arrays(directory / RANKER)
    try:
        return Ranker.from_arrays(weights, manifest.ranker, names)
    except (KeyError, RuntimeError, ValueError) as error:
        raise BundleError("unfit", f"{directory / RANKER}: does not fit its manifest: {error}") from None


def _read_statistics(directory: Path, manifest: Manifest) -> ItemStatistics:
    statistics = ItemStatistics(manifest.half_life_h * HOUR_MS)
    with _readable(directory / STATISTICS, " as statistics"):
        for scope, name, as_of_ms, *sums in pl.read_parquet(directory / STATISTICS).iter_rows():
            statistics.set(scope, name, 0, as_of_ms, sums)
    return statistics


@contextmanager
def _readable(path: Path, what: str = "") -> Iterator[None]:
    """Raises BundleError for a file that cannot be read, or that does not hold what it should."""
    wrong = (pl.exceptions.PolarsError, SafetensorError, OSError, EOFError, TypeError, ValueError)
    try:
        yield
    except (*wrong, MemoryError) as error:  # memory: of a size that nobody has
        raise BundleError("unreadable", f"{path}: cannot be read{what}: {error}") from None


def _check_files(directory: Path, checksums: dict[str, str]) -> None:
    """Raises BundleError for a file that is missing, damaged or not of this bundle. Each is read once, in pieces."""
    found = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
    if strange := sorted(found - {MANIFEST, *checksums}):
        raise BundleError("foreign", f"{directory / strange[0]}: is not of this bundle; remove it, or train anew")
    for name, checksum in checksums.items():
        _check_file(directory / name, checksum)


def _check_file(path: Path, checksum: str) -> None:
    try:
        check_ordinary(path)
        found = _checksum(path)
    except FileNotFoundError:
        raise BundleError("missing", f"{path}: is missing; train a new release or restore the file") from None
    except OSError as error:
        raise BundleError("unreadable", f"{path}: cannot be read: {error.strerror}; restore the file") from None
    if found != checksum:
        text = f"{path}: is damaged (its SHA-256 differs from the manifest's); restore it or train anew"
        raise BundleError("damaged", text)


def _read_arrays(path: Path) -> dict[str, Array]:
    with _readable(path):
        arrays: dict[str, Array] = safetensors.numpy.load_file(path)
        return arrays


def _names_frame(ranker: Ranker) -> pl.DataFrame:
    """The ids that the ranker knows, in the order of their codes."""
    pairs = [(space, name) for space, names in ranker.spaces.names.items() for name in names]
    return pl.DataFrame(pairs, schema={"space": pl.String, "id": pl.String}, orient="row")


def _statistics_frame(statistics: ItemStatistics) -> pl.DataFrame:
    schema: dict[str, Any] = {"scope": pl.String, "id": pl.String, "as_of_ms": pl.Int64}
    sums = dict.fromkeys(("impressions", "watches", "seconds", "completions"), pl.Float64)
    rows = ((scope, name, as_of_ms, *values) for scope, name, _, as_of_ms, values in statistics.rows())
    return pl.DataFrame(rows, schema=schema | sums, orient="row")


def _contiguous(arrays: dict[str, Array]) -> dict[str, Array]:
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _publish(staging: Path, place: Path) -> None:
    """Sync every file, then the directory, then give it its name: half a bundle is never found under a version."""
    for path in [*staging.iterdir(), staging]:
        sync_path(path)
    staging.chmod(0o755)
    if not place.exists():
        staging.rename(place)
        sync_path(place.parent)
