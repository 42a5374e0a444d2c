"""A bundle sent to the store, before it is announced: its files, those first that are not there yet, then its manifest.

Who is cut goes on where it was: a file that is there with its checksum is not sent again. The manifest comes last, so
nobody fetches half a bundle by it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import structlog

from infra.platform.retrying import BackOff
from infra.platform.settings import Settings
from models.release.manifest_file import MANIFEST, read_manifest_bytes
from streams.bundles.objects import Objects, StoreError

log = structlog.get_logger(__name__)

FILES_AT_ONCE = 4
PATIENCE_S = 300.0  # with a store that is away, after a training of hours
AGAIN = "`nextwatch releases --announce` sends what is missing and announces it"
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0


class _Files(msgspec.Struct, frozen=True):
    """The part of a manifest that is needed here; all of it needs torch."""

    files: dict[str, str]


def send_release(settings: Settings, version: str, way_out: str = AGAIN) -> None:
    """Send a bundle of this disk to the store that is set; without one it does nothing. A store that is away is waited
    for. Raises StoreError, which ends with the way out: then it must not be announced."""
    if not settings.bundles.store:
        return
    directory = settings.bundles_dir / version
    try:
        sent = send_patiently(Objects(settings.bundles), directory, PATIENCE_S)
    except StoreError as error:
        raise StoreError(
            error.code,
            f"{error}; the bundle stays in {directory} and is not announced: {way_out}",
        ) from None
    log.info("bundle sent", version=version, store=settings.bundles.store, files=sent)


def send_patiently(
    objects: Objects, directory: Path, patience_s: float, sleep: Callable[[float], None] = time.sleep
) -> int:
    """Send a bundle, again for as long as the store is away, up to `patience_s`; the number of files that were sent
    with the last try. Raises StoreError."""
    waits, deadline = BackOff(FIRST_WAIT_S, LONGEST_WAIT_S), time.monotonic() + patience_s
    while True:
        try:
            return send_bundle(objects, directory)
        except StoreError as error:
            wait_s = waits.next()
            if error.code != "away" or time.monotonic() + wait_s > deadline:
                raise
            log.warning("store is away, trying again", error=str(error), wait_s=wait_s)
        sleep(wait_s)


def send_bundle(objects: Objects, directory: Path) -> int:
    """Send what is not there, the manifest last; how many files. Raises StoreError, also for a bundle that is damaged
    here."""
    try:
        manifest = read_manifest_bytes(directory)
        files = msgspec.json.decode(manifest, type=_Files).files
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError("damaged", f"{directory / MANIFEST}: cannot be sent: {error}") from None

    def send(name: str) -> bool:
        return _send_file(objects, directory, name, files[name])

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        sent = sum(pool.map(send, sorted(files)))
    gone = [name for name in sorted(files) if objects.checksum(f"{directory.name}/{name}") is None]
    if gone:  # somebody has tidied up meanwhile
        raise StoreError("away", f"{gone[0]} of {directory.name} went from the store while others were sent")
    checksum = hashlib.sha256(manifest).hexdigest()
    if is_there(objects, f"{directory.name}/{MANIFEST}", len(manifest), checksum):
        return sent
    objects.write(f"{directory.name}/{MANIFEST}", manifest, checksum)
    return sent + 1


def is_there(objects: Objects, name: str, size: int, checksum: str) -> bool:
    """Return whether the store has this content under this name; where it has no note of the checksum, by reading."""
    noted = objects.checksum(name)
    if noted is None or objects.size(name) != size:
        return False
    return (noted or _checksum_of(objects, name, size)) == checksum


def _send_file(objects: Objects, directory: Path, name: str, checksum: str) -> bool:
    path, target = directory / name, f"{directory.name}/{name}"
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
    except OSError as error:
        raise StoreError("damaged", f"{path}: cannot be sent: {error.strerror}") from None
    if found != checksum:
        raise StoreError("damaged", f"{path}: is damaged (its SHA-256 differs from the manifest's) and is not sent")
    if is_there(objects, target, size, checksum):
        return False
    objects.write(target, path, checksum)
    return True


def _checksum_of(objects: Objects, name: str, size: int) -> str:
    digest, start = hashlib.sha256(), 0
    while start < size:
        piece = objects.read(name, start, size)
        digest.update(piece)
        start += len(piece)
    return digest.hexdigest()
