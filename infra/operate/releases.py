"""Releases as they stand: bundles on disk, collections in Milvus, what servers were told to serve and what they serve.

Each of the three may be away, and the other two are shown. Which release is live, which is the spare and whether a
collection counts is read as the indexer reads it (indexer/rollout.py).
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from functools import reduce
from pathlib import Path
from typing import Any

import msgspec
from kafka.errors import KafkaError
from msgspec import structs
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from indexer import rollout
from indexer.collection import Index
from indexer.errors import IndexFailure, IndexMissing
from indexer.rollout import announced_ms, is_whole, spare_of
from infra.platform.settings import Kafka, Milvus, Settings
from models.release.manifest_file import MANIFEST, MOST_BYTES, read_manifest_bytes
from streams import topics
from streams.bundles.objects import ObjectFound, Objects, StoreError
from streams.experiments import releases_of
from streams.kafka.follow import TopicMissing, read_to_end
from streams.kafka.releases import read_experiments
from streams.messages import Refused, Release, decode

SENT = re.compile(r"\d{8}_\d{6}_[0-9a-f]+")  # a version; whatever else is in the store is not ours
_RELEASE: Any = Release  # a union; mypy wants a class


class BundleFound(msgspec.Struct, frozen=True):
    """A bundle; `problem` is empty when its manifest can be read. `place`: `here` on disk, `store`, or `both`."""

    version: str
    bytes: int
    created_ms: int = 0
    items: int = 0
    dim: int = 0
    problem: str = ""
    place: str = "here"


class CollectionFound(msgspec.Struct, frozen=True):
    """A collection in Milvus. `state`: `being filled`, `whole` (not announced yet) or `announced`, as its mark says."""

    version: str
    state: str
    mark: str
    rows: int


class ServerFound(msgspec.Struct, frozen=True):
    """A server as it was last heard; one that has said goodbye is not listed."""

    server_id: str
    version: str
    heard_ms: int
    heard_s_ago: float
    lives: bool


class ReleaseReport(msgspec.Struct, frozen=True):
    """`live` is what servers were told to serve, `spare` what a roll-back would make live, `newest` the newest bundle
    that was announced; empty when there is none, or when it is not known (`problems` says why). `compared`: those whose
    rankers the experiment that runs compares."""

    live: str
    spare: str
    newest: str
    bundles: list[BundleFound]
    collections: list[CollectionFound]
    servers: list[ServerFound]
    problems: list[str]
    compared: tuple[str, ...] = ()


class _Manifest(msgspec.Struct, frozen=True):
    """The part of a bundle's manifest that is shown, of any format. models.release.bundle reads all of it, and loads
    torch for that, which takes longer than everything else here."""

    version: str
    created_ms: int
    dim: int
    items: int


def read_releases(settings: Settings) -> ReleaseReport:
    """All that can be found out now; what cannot is among the problems."""
    now_ms = time.time_ns() // 1_000_000
    told, marks, collections, problems = rollout.Releases(), dict[str, str](), list[CollectionFound](), list[str]()
    running = None
    try:
        told, running = read_topic(settings.kafka), read_experiments(settings.kafka).running
    except (KafkaError, TopicMissing) as error:
        problems.append(f"Kafka: {error}")
    try:
        collections = read_collections(settings.milvus)
        marks = {each.version: each.mark for each in collections}
    except IndexFailure as error:
        problems.append(f"collections are not known: {error}")
    bundles, problem = find_bundles(settings)
    problems += [problem] if problem else []
    return ReleaseReport(
        live=told.live,
        spare=spare_of(told.live, marks),
        newest=told.bundle.version if told.bundle else "",
        bundles=bundles,
        collections=collections,
        servers=servers_of(told, now_ms, settings.indexer.server_timeout_s),
        problems=problems,
        compared=tuple(sorted(releases_of(running))) if running else (),
    )


def find_bundles(settings: Settings) -> tuple[list[BundleFound], str]:
    """Every bundle on this disk and in the store, oldest first, and why the store's are not known."""
    here = {each.version: each for each in read_bundles(settings.bundles_dir)}
    if not settings.bundles.store:
        return list(here.values()), ""
    try:
        objects = Objects(settings.bundles)
        kept = whole_bundles(objects.found())
        there = {version: _read_sent(objects, version, size) for version, size in kept.items() if version not in here}
    except StoreError as error:
        return list(here.values()), f"bundles in the store are not known: {error}"
    both = {version: structs.replace(here[version], place="both") for version in kept if version in here}
    return [each for _, each in sorted((here | there | both).items())], ""


def whole_bundles(objects: Iterable[ObjectFound]) -> dict[str, int]:
    """The bytes of each bundle in the store, by version; one without a manifest is still being sent."""
    sizes: Counter[str] = Counter()
    whole = set[str]()
    for each in objects:
        version, _, name = each.name.partition("/")
        sizes[version] += each.bytes
        whole |= {version} if name == MANIFEST and SENT.fullmatch(version) else set()
    return {version: sizes[version] for version in sorted(whole)}


def newest_of(settings: Settings) -> str:
    """The newest version on this disk or in the store; empty when there is none. Raises StoreError."""
    versions = [each.version for each in read_bundles(settings.bundles_dir) if not each.problem]
    if settings.bundles.store:
        versions += whole_bundles(Objects(settings.bundles).found())
    return max(versions, default="")


def read_bundles(bundles_dir: Path) -> list[BundleFound]:
    """Every bundle, oldest first, readable or not."""
    return [_read_bundle(path) for path in sorted(bundles_dir.glob("*")) if path.is_dir() and path.name[0] != "."]


def read_collections(milvus: Milvus) -> list[CollectionFound]:
    """Every collection, oldest first. Raises IndexFailure."""
    with closing(Index(milvus)) as index:
        found = [_read_collection(index, version) for version in index.versions()]
    return [each for each in found if each is not None]


def read_topic(kafka: Kafka) -> rollout.Releases:
    """Read what `releases` says; servers are heard at their records' times. Raises KafkaError, TopicMissing."""
    return reduce(hear, read_to_end(kafka, topics.RELEASES), rollout.Releases())


def hear(told: rollout.Releases, record: Any) -> rollout.Releases:
    """The same after one more record; one that cannot be read says nothing."""
    kind, _, server_id = (record.key or b"").decode(errors="replace").partition("/")
    if record.value is None:
        return rollout.forget_server(told, server_id) if kind == "server" else told
    try:
        return rollout.hear(told, decode(_RELEASE, record.value, max_bytes=len(record.value)), record.timestamp)
    except Refused:
        return told


def servers_of(told: rollout.Releases, now_ms: int, timeout_s: float) -> list[ServerFound]:
    """Servers by id; one lives that was heard within `timeout_s` of the last that was."""
    servers = told.servers or {}
    newest_ms = max((server.heard_ms for server in servers.values()), default=0)
    return [
        ServerFound(
            server_id,
            server.version,
            server.heard_ms,
            max(0, now_ms - server.heard_ms) / 1000,
            server.heard_ms >= newest_ms - timeout_s * 1000,
        )
        for server_id, server in sorted(servers.items())
    ]


def print_releases(report: ReleaseReport, console: Console) -> None:
    bundles = {bundle.version: bundle for bundle in report.bundles}
    collections = {collection.version: collection for collection in report.collections}
    versions = sorted({*bundles, *collections, *(server.version for server in report.servers), report.live} - {""})
    columns = ("version", "", "created", "size", "items", "dim", "bundle", "index", "servers")
    table = Table(*columns, box=None, pad_edge=False)
    for version in versions:
        role = _role_of(version, report)
        found = collections.get(version)
        index = "-" if found is None else f"{found.state}, {found.rows:,} rows"
        served = sum(server.lives and server.version == version for server in report.servers)
        table.add_row(escape(version), role, *_bundle_cells(bundles.get(version)), index, str(served))
    console.print(table if versions else "no release yet: `nextwatch train` makes one")
    _print_servers(report.servers, console)
    for problem in report.problems + [bundle.problem for bundle in report.bundles if bundle.problem]:
        console.print(f"\n[yellow]{escape(problem)}[/]", highlight=False, soft_wrap=True)


def _role_of(version: str, report: ReleaseReport) -> str:
    if version == report.live:
        return "[green]live[/]"
    return "spare" if version == report.spare else "compared" if version in report.compared else ""


def _print_servers(servers: Iterable[ServerFound], console: Console) -> None:
    table = Table("server", "answers from", "heard", box=None, pad_edge=False)
    for server in servers:
        heard = f"{server.heard_s_ago:,.0f} s ago" + ("" if server.lives else ", [red]dead[/]")
        table.add_row(escape(server.server_id), server.version or "no release yet", heard)
    console.print("\nno server has been heard" if not table.rows else "")
    if table.rows:
        console.print(table)


def _bundle_cells(bundle: BundleFound | None) -> tuple[str, str, str, str, str]:
    """Created, size, items, dim, and where it is."""
    if bundle is None:
        return "[yellow]no bundle here[/]", "", "", "", "-"
    size, place = f"{bundle.bytes / 1e6:,.1f} MB", {"both": "here, store"}.get(bundle.place, bundle.place)
    if bundle.problem:
        return "[yellow]not readable[/]", size, "", "", place
    created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(bundle.created_ms / 1000))
    return created, size, f"{bundle.items:,}", str(bundle.dim), place


def _read_bundle(directory: Path) -> BundleFound:
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    try:
        found = msgspec.json.decode(read_manifest_bytes(directory), type=_Manifest)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return BundleFound(directory.name, size, problem=f"{directory / MANIFEST}: {error}")
    return BundleFound(directory.name, size, found.created_ms, found.items, found.dim)


def _read_sent(objects: Objects, version: str, size: int) -> BundleFound:
    """What the manifest in the store says. Raises StoreError."""
    name = f"{version}/{MANIFEST}"
    try:
        found = msgspec.json.decode(objects.read(name, 0, min(objects.size(name), MOST_BYTES)), type=_Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return BundleFound(version, size, problem=f"{objects.url}/{name}: {error}", place="store")
    return BundleFound(version, size, found.created_ms, found.items, found.dim, place="store")


def _read_collection(index: Index, version: str) -> CollectionFound | None:
    """None when it was dropped just now."""
    try:
        mark = index.mark_of(version)
        state = "announced" if announced_ms(mark) is not None else "whole" if is_whole(mark) else "being filled"
        return CollectionFound(version, state, mark, index.count(version))
    except IndexMissing:
        return None
