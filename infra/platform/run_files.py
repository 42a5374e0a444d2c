"""Processes of ours on this machine and their addresses: `<data_dir>/run/<name>.json`, one file per process.

A process holds a lock on its file, so that a file left by a killed one is known for what it is, even when its process
id is in use again. `prometheus-targets.json` beside them lists all of them, as Prometheus' file_sd_configs reads it,
and `<data_dir>/services.json` says where the embedded broker and Milvus of a running `nextwatch up` listen.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import SecretStr

from infra.platform.guarded_process import ServiceError
from infra.platform.settings import Settings

TARGETS = "prometheus-targets.json"
SERVICES = "services.json"


@contextlib.contextmanager
def run_file(run_dir: Path, name: str, address: str, started_ms: int, *, tls: bool = False) -> Iterator[Path]:
    """A locked `<run_dir>/<name>.json` while the block runs (`<name>-<pid>.json` if another process has that name)."""
    run_dir.mkdir(parents=True, exist_ok=True)
    host, _, port = address.rpartition(":")
    record = {"name": name, "pid": os.getpid(), "host": host, "port": int(port), "started_ms": started_ms, "tls": tls}
    with _locked(run_dir):
        path = run_dir / f"{name}.json"
        if _is_held(path):
            path = run_dir / f"{name}-{os.getpid()}.json"
        held = _write_locked(path, record)
        _write_targets(run_dir)
    try:
        yield path
    finally:
        with _locked(run_dir):
            path.unlink(missing_ok=True)
            held.close()
            _write_targets(run_dir)


def read_run_files(run_dir: Path) -> list[dict[str, Any]]:
    """The records {name, pid, host, port, started_ms, tls} of the living processes, by name; drops dead ones' files."""
    if not run_dir.is_dir():
        return []
    with _locked(run_dir):
        records, dropped = _read_records(run_dir)
        if dropped:
            _write_targets(run_dir)
    return records


@contextlib.contextmanager
def announce_services(settings: Settings) -> Iterator[None]:
    """While the block runs, `settings` (filled in by `up`) tell other commands where the embedded services listen."""
    record = {"pid": os.getpid(), "kafka.bootstrap": settings.kafka.bootstrap, "milvus.uri": settings.milvus.uri}
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    path = settings.data_dir / SERVICES
    with _write_locked(path, record):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def services_run(settings: Settings) -> bool:
    """True while a `nextwatch up` on this data_dir has embedded services."""
    return _is_held(settings.data_dir / SERVICES)


def find_services(settings: Settings) -> Settings:
    """`settings` with an empty kafka.bootstrap and milvus.uri filled in from the `nextwatch up` on this data_dir.

    Raises ServiceError when there is no broker to be found.
    """
    if settings.kafka.bootstrap and settings.milvus.uri:
        return settings
    path = settings.data_dir / SERVICES
    record = json.loads(path.read_text(encoding="utf-8")) if _is_held(path) else {}
    bootstrap = settings.kafka.bootstrap or record.get("kafka.bootstrap", "")
    if not bootstrap:
        raise ServiceError(
            f"no broker: set kafka.bootstrap, or start `nextwatch up` (none runs on --data-dir {settings.data_dir})"
        )
    return fill_in(settings, bootstrap, record.get("milvus.uri", ""))


def fill_in(settings: Settings, bootstrap: str, milvus_uri: str) -> Settings:
    """`settings` with these addresses of embedded services where it has none: one broker, no passwords."""
    kafka, milvus = settings.kafka, settings.milvus
    if not kafka.bootstrap:
        embedded = {"bootstrap": bootstrap, "security_protocol": "PLAINTEXT", "replication": 1}
        kafka = kafka.model_copy(update=embedded)
    if not milvus.uri:
        milvus = milvus.model_copy(update={"uri": milvus_uri, "token": SecretStr(""), "ca_file": None})
    return settings.model_copy(update={"kafka": kafka, "milvus": milvus})


def reachable(host: str) -> str:
    return "127.0.0.1" if host in {"", "0.0.0.0"} else host


def _read_records(run_dir: Path) -> tuple[list[dict[str, Any]], bool]:
    """The living processes' records, and whether a dead one's file was dropped."""
    records, dropped = [], False
    for path in sorted(run_dir.glob("*.json")):
        if path.name == TARGETS:
            continue
        if _is_held(path):
            records.append(json.loads(path.read_text(encoding="utf-8")))
        else:
            path.unlink(missing_ok=True)
            dropped = True
    return records, dropped


def _is_held(path: Path) -> bool:
    """True while a living process holds this run file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _write_locked(path: Path, record: dict[str, Any]) -> BinaryIO:
    """Write atomically, locked before it gets its name; the returned file holds the lock."""
    held = path.with_name(f".{path.name}.{os.getpid()}").open("wb")
    fcntl.flock(held, fcntl.LOCK_EX)
    held.write(json.dumps(record).encode())
    held.flush()
    Path(held.name).replace(path)
    return held


def _write_targets(run_dir: Path) -> None:
    """Write what Prometheus' file_sd_configs reads: one group per living process."""
    records, _ = _read_records(run_dir)
    groups = [
        {
            "targets": [f"{reachable(each['host'])}:{each['port']}"],
            "labels": {"process": each["name"]} | ({"__scheme__": "https"} if each.get("tls") else {}),
        }
        for each in records
    ]
    written = run_dir / ".targets"
    written.write_text(json.dumps(groups), encoding="utf-8")
    written.chmod(0o644)  # Prometheus often runs as another user
    written.replace(run_dir / TARGETS)


@contextlib.contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    with (run_dir / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
