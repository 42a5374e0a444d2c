"""One connection to Milvus, and what its failures mean: pymilvus' and gRPC's exceptions become indexer/errors.py's."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from pymilvus import MilvusClient
from pymilvus.exceptions import DataNotMatchException, MilvusException, ParamError

from indexer.errors import IndexFailure, IndexMissing, IndexRefused, IndexUnavailable
from infra.platform.settings import Milvus

_NOT_FOUND, _NOT_LOADED, _NO_ALIAS = 100, 101, 1600
_LITE_INPUT_ERROR = 6
_INPUT_ERRORS = range(1100, 1200)
_NO_ACCESS = frozenset({1400, 1401})  # not authenticated, not permitted

# It logs each failed call with a traceback; ours say the same once, where they are handled.
logging.getLogger("pymilvus").setLevel(logging.CRITICAL)

# pymilvus pings every 10 s; a gRPC server with default settings, as Milvus Lite's, hangs up on whoever pings more often
# than every five minutes. Calls have their time-out, so a dead connection is found by the next one. After an absence
# gRPC itself waits ever longer before it connects again, two minutes in the end, and fails every call meanwhile.
_GRPC = {
    "grpc.keepalive_time_ms": 330_000,
    "grpc.keepalive_permit_without_calls": 0,
    "grpc.max_reconnect_backoff_ms": 2000,
}


def connect(milvus: Milvus) -> tuple[MilvusClient, bool]:
    """A client, and whether it speaks to Milvus Lite. Raises IndexUnavailable, IndexRefused."""
    with translated(f"connect to {milvus.uri}"):
        client = MilvusClient(**_options(milvus))
        version = client.get_server_version(timeout=milvus.timeout_s)
    return client, is_lite(version)


def is_lite(version: str) -> bool:
    """Tell Milvus Lite by the version it gives; a server that was installed from a package says v2.3.5-lite."""
    return version.startswith("milvus_lite")


def is_not_loaded(error: MilvusException) -> bool:
    """Return whether a collection must be loaded first, as after a restart of Milvus."""
    return bool(error.code == _NOT_LOADED)


@contextmanager
def translated(call: str, version: str = "") -> Iterator[None]:
    what = f"Milvus: {call}{f' of version {version}' if version else ''}"
    try:
        yield
    except MilvusException as error:
        raise _kind_of(error)(f"{what}: {error.message}") from error
    except (grpc.RpcError, grpc.FutureTimeoutError) as error:
        reason = error.details() if isinstance(error, grpc.Call) else "no answer in time"
        raise IndexUnavailable(f"{what}: {reason}") from error


def _kind_of(error: MilvusException) -> type[IndexFailure]:
    """Retry what is unknown: it is better to wait in sight than to drop a row."""
    if error.code in {_NOT_FOUND, _NO_ALIAS}:
        return IndexMissing
    codes = {*_INPUT_ERRORS, *_NO_ACCESS, _LITE_INPUT_ERROR}
    refused = error.code in codes or isinstance(error, ParamError | DataNotMatchException)
    return IndexRefused if refused else IndexUnavailable


def _options(milvus: Milvus) -> dict[str, Any]:
    options: dict[str, Any] = {"uri": milvus.uri, "timeout": milvus.timeout_s, "grpc_options": _GRPC}
    if token := milvus.token.get_secret_value():
        options["token"] = token
    if milvus.uri.startswith("https"):
        options["secure"] = True
        if milvus.ca_file:
            options["server_pem_path"] = str(milvus.ca_file)
    return options
