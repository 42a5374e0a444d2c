"""A port and a directory for one running service alone. Checked before it starts, so that the error is ours.

A directory is locked by a file in it. The lock's descriptor is handed to the service itself, so it is free
exactly when the last process of that service is gone, also after a crash of everything else.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from infra.platform.guarded_process import ServiceError

LOOPBACK = "127.0.0.1"
LOCK_WAIT_S = 5.0  # what a killed parent left behind takes a moment to stop


def free_port(port: int, setting: str, host: str = LOOPBACK) -> int:
    """`port` if nobody listens there, a free one for 0. Raises ServiceError naming `setting`.

    Never SO_REUSEPORT: Milvus Lite sets it, and a second server on its port would get a share of the clients.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise port_error(error, host, port, setting) from None
        return int(probe.getsockname()[1])


def port_error(error: OSError, host: str, port: int, setting: str) -> ServiceError:
    if error.errno == errno.EADDRINUSE:
        return ServiceError(f"port {port} on {host} is in use: give {setting} another one, or 0 for a free one")
    return ServiceError(f"cannot listen on {host}:{port} ({setting}): {error.strerror}")


def is_listening(address: str) -> bool:
    """True when `host:port` accepts a connection."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=1):
            return True
    except (OSError, ValueError, OverflowError):  # the latter two: of a host or a port that can be none
        return False


def lock_directory(directory: Path, wait_s: float | None = None) -> int:
    """Lock `directory` (made if need be) and return the lock's descriptor: pass it on, then close it.

    Waits up to `wait_s` (default LOCK_WAIT_S) for the lock. Raises ServiceError if it is still taken then.
    """
    path = directory / ".lock"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ServiceError(f"cannot use {directory}: {error.strerror}; choose another --data-dir") from None
    deadline = time.monotonic() + (LOCK_WAIT_S if wait_s is None else wait_s)
    while not _try_lock(lock):
        if time.monotonic() > deadline:
            owner = os.read(lock, 32).decode(errors="replace").strip()
            os.close(lock)
            raise ServiceError(
                f"{directory} is in use by another nextwatch (process {owner or 'unknown'}): stop that one, "
                "or choose another --data-dir"
            )
        time.sleep(0.05)
    os.truncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
