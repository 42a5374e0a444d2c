"""One connection to Milvus, and what its failures mean: pymilvus' and gRPC's exceptions become indexer/errors.py's."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from pymilvus import MilvusClient
from pymilvus.exceptions import DataNotMatchException, MilvusException, ParamError

from indexer.errors import FilterRefused, IndexFailure, IndexMissing, IndexRefused, IndexUnavailable
from infra.platform.settings import Milvus, variable_of

_NOT_FOUND, _NOT_LOADED, _NO_DATABASE, _NO_ALIAS = 100, 101, 800, 1600
_LITE_INPUT_ERROR = 6
_INPUT_ERRORS = range(1100, 1200)
_NO_ACCESS = frozenset({1400, 1401})  # not authenticated, not permitted
_KEPT_OUT = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
_TOKEN = f"{variable_of('milvus.token')} is what is shown to Milvus"
_TLS = re.compile("ssl|certificate", re.IGNORECASE)
# What a server of 2.3 says with its code of whatever is unexpected, and Milvus Lite with that of whatever fails.
_REFUSALS = re.compile("invalid index type|maximum shards|database .* does not exist")
_NO_FILTER = "cannot parse expression"

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


def connect(milvus: Milvus) -> tuple[MilvusClient, str]:
    """A client, and the version that the other side gives. Raises IndexUnavailable, IndexRefused: also for a token that
    is not the right one. Later that is waited for: a Milvus that is just starting may know nobody yet."""
    call, options = f"connect to {milvus.uri}", _options(milvus)
    try:
        with translated(call, kept_out=IndexRefused):
            client = MilvusClient(**options)
            version: str = client.get_server_version(timeout=milvus.timeout_s)
    except OSError as error:
        raise IndexRefused(f"Milvus: {call} (milvus.uri): {error}") from None
    return client, version


def is_lite(version: str) -> bool:
    """Tell Milvus Lite by the version it gives; a server that was installed from a package says v2.3.5-lite."""
    return version.startswith("milvus_lite")


def refusal(milvus: Milvus, version: str) -> str:
    """Return why a Milvus of this version cannot make collections as the settings want them; empty when it can. A
    version that says no number is taken for a new one."""
    if is_lite(version):
        return milvus.why_not_on_lite()
    number = re.match(r"v?(\d+)\.(\d+)", version)
    wants = "milvus.index_type: SCANN" if milvus.index_type == "SCANN" else "milvus.mmap" if milvus.mmap else ""
    if wants and number and (int(number[1]), int(number[2])) < (2, 3):
        return f"setting {wants} needs a server of 2.3 or later, this is {version}"
    return ""


def is_missing(error: MilvusException) -> bool:
    """Return whether there is no such collection or alias."""
    return error.code in {_NOT_FOUND, _NO_ALIAS}


def is_not_loaded(error: MilvusException) -> bool:
    """Return whether a collection must be loaded first, as after a restart of Milvus."""
    return bool(error.code == _NOT_LOADED)


@contextmanager
def translated(call: str, version: str = "", *, kept_out: type[IndexFailure] = IndexUnavailable) -> Iterator[None]:
    what = f"Milvus: {call}{f' of version {version}' if version else ''}"
    try:
        yield
    except MilvusException as error:
        _explain_access(what, error.__cause__, kept_out)
        hint = f" ({_TOKEN})" if error.code in _NO_ACCESS else ""
        raise _kind_of(error)(f"{what}: {error.message}{hint}") from error
    except (grpc.RpcError, grpc.FutureTimeoutError) as error:
        _explain_access(what, error, kept_out)
        reason = error.details() if isinstance(error, grpc.Call) else "no answer in time"
        raise IndexUnavailable(f"{what}: {reason}") from error


def _explain_access(what: str, error: BaseException | None, kept_out: type[IndexFailure]) -> None:
    """Raises what gRPC said of our token or of a certificate, with the setting's name; pymilvus says neither while it
    connects."""
    if not isinstance(error, grpc.Call):
        return
    if error.code() in _KEPT_OUT:
        raise kept_out(f"{what}: {error.details()} ({_TOKEN})") from error
    if _TLS.search(error.details() or ""):
        raise IndexUnavailable(f"{what}: {error.details()} (milvus.ca_file)") from error


def _kind_of(error: MilvusException) -> type[IndexFailure]:
    """Retry what is unknown: it is better to wait in sight than to drop a row."""
    if is_missing(error):
        return IndexMissing
    if _NO_FILTER in str(error.message):
        return FilterRefused
    codes = {*_INPUT_ERRORS, *_NO_ACCESS, _LITE_INPUT_ERROR, _NO_DATABASE}
    refused = error.code in codes or isinstance(error, ParamError | DataNotMatchException)
    refused = refused or _REFUSALS.search(str(error.message)) is not None
    return IndexRefused if refused else IndexUnavailable


def _readable(ca_file: Path) -> Path:
    """Raises IndexRefused."""
    try:
        ca_file.open("rb").close()
    except OSError as error:
        raise IndexRefused(f"Milvus: milvus.ca_file cannot be read: {error}") from None
    return ca_file


def _options(milvus: Milvus) -> dict[str, Any]:
    options: dict[str, Any] = {"uri": milvus.uri, "timeout": milvus.timeout_s, "grpc_options": _GRPC}
    if milvus.database:
        options["db_name"] = milvus.database
    if token := milvus.token.get_secret_value():
        options["token"] = token
    if milvus.uri.startswith("https"):
        options["secure"] = True
        if milvus.ca_file:
            options["server_pem_path"] = str(_readable(milvus.ca_file))
    return options
