"""Objects in a bucket (or below a `file://` directory), by name: the one file that knows obstore and its errors.

A bundle is the objects `<version>/<name>`, whose manifest is written last and removed first: a version without one is
none. Everything is read by name and in pieces, each a request of its own, so that one that is cut costs a piece and a
slow one has its own `bundles.timeout_s`. Credentials are the provider's own variables (AWS_ACCESS_KEY_ID, ...), read
by obstore; of an error's text neither a query nor the debugging part is kept, which could hold them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

from infra.platform.settings import Bundles

PIECE_BYTES = 8_000_000  # that are asked for together: `AT_ONCE` of them
PART_BYTES = 8_000_000  # of a large file that is sent; S3 takes none below 5 MiB
AT_ONCE = 4
CHECKSUM = "sha256"  # the object's note of its own content
CONNECT_S = 5.0
TRIES = 3  # of one request, within seconds: whoever asks goes on trying for as long as it likes
MOST_TEXT = 300

StoreCode = Literal["away", "forbidden", "missing", "unfit", "damaged"]


class StoreError(RuntimeError):
    """The store does not give or take an object; `code` is one of a fixed few. Only `away` is worth another try."""

    def __init__(self, code: StoreCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class ObjectFound(NamedTuple):
    name: str
    bytes: int
    changed: datetime


class Objects:
    """The store that the settings name. All methods block, may be called in any thread, and raise StoreError."""

    def __init__(self, bundles: Bundles) -> None:
        """Raises StoreError when obstore is missing, or cannot make anything of the settings; asks nobody."""
        self.url = bundles.store.rstrip("/")
        self._obstore, self._store = _open(bundles)

    def size(self, name: str) -> int:
        with self._asked(name):
            return int(self._obstore.head(self._store, name)["size"])

    def read(self, name: str, start: int, stop: int) -> bytes:
        """The bytes of these offsets, of `AT_ONCE` pieces at most."""
        stop = min(stop, start + AT_ONCE * PIECE_BYTES)
        starts = range(start, stop, PIECE_BYTES)

        async def pieces() -> list[Any]:
            ask, store = self._obstore.get_range_async, self._store
            parts = (ask(store, name, start=at, end=min(at + PIECE_BYTES, stop)) for at in starts)
            answers = await asyncio.gather(*parts, return_exceptions=True)  # none may outlive this loop
            for error in answers:
                if isinstance(error, BaseException):
                    raise error
            return answers

        with self._asked(name):
            if len(starts) == 1:
                content = bytes(self._obstore.get_range(self._store, name, start=start, end=stop))
            else:
                content = b"".join(bytes(piece) for piece in asyncio.run(pieces()))
        if len(content) != stop - start:
            raise StoreError("away", f"{self.url}/{name}: {len(content)} bytes came, {stop - start} were asked for")
        return content

    def checksum(self, name: str) -> str | None:
        """The SHA-256 that the object was written with, empty where it has no note of it; None for no object."""
        try:
            with self._asked(name):
                found = self._obstore.get(self._store, name, options={"head": True})
                return str(found.attributes.get(CHECKSUM, ""))
        except StoreError as error:
            if error.code == "missing":
                return None
            raise

    def write(self, name: str, content: Path | bytes, checksum: str) -> None:
        """The object appears whole or not at all."""
        notes = {} if self.url.startswith("file:") else {"attributes": {CHECKSUM: checksum}}
        with self._asked(name):
            self._obstore.put(self._store, name, content, chunk_size=PART_BYTES, max_concurrency=AT_ONCE, **notes)

    def remove(self, names: list[str]) -> None:
        """One after the other, in this order; one that is not there is removed."""
        for name in names:
            try:
                with self._asked(name):
                    self._obstore.delete(self._store, name)
            except StoreError as error:
                if error.code != "missing":
                    raise

    def found(self) -> list[ObjectFound]:
        """All that there is. A listing may be late: nothing is fetched by it."""
        with self._asked(""):
            rows = [row for chunk in self._obstore.list(self._store) for row in chunk]
        return [ObjectFound(row["path"], row["size"], row["last_modified"]) for row in rows]

    @contextmanager
    def _asked(self, name: str) -> Iterator[None]:
        """Raises StoreError for what obstore raises."""
        denied = self._obstore.exceptions.PermissionDeniedError, self._obstore.exceptions.UnauthenticatedError
        place = f"{self.url}/{name}"
        try:
            yield
        except FileNotFoundError as error:
            raise StoreError("missing", f"{place}: is not there ({plain(error)})") from None
        except (*denied, PermissionError) as error:
            raise StoreError("forbidden", f"{place}: the store does not let us ({plain(error)})") from None
        except (self._obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise StoreError("away", f"{place}: no answer from the store ({plain(error)})") from None


def plain(error: Exception) -> str:
    """The text of obstore's error in one line, without queries, which may hold a signature, and debugging."""
    text = re.sub(r"\?\S+", "", str(error).partition("Debug source")[0])
    return " ".join(text.split())[:MOST_TEXT]


def _open(bundles: Bundles) -> tuple[Any, Any]:
    """The library and its store. Raises StoreError."""
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError:
        text = "bundles.store needs the package obstore: pip install 'nextwatch[objects]'"
        raise StoreError("unfit", text) from None
    try:
        if bundles.store.startswith("file:"):
            return obstore, obstore.store.from_url(bundles.store, mkdir=True)
        given = {"endpoint": bundles.endpoint, "region": bundles.region}
        store = obstore.store.from_url(
            bundles.store,
            config={name: value for name, value in given.items() if value},
            client_options={
                "allow_http": bundles.endpoint.startswith("http:"),
                "timeout": timedelta(seconds=bundles.timeout_s),
                "connect_timeout": timedelta(seconds=min(CONNECT_S, bundles.timeout_s)),
            },
            retry_config={"max_retries": TRIES - 1, "retry_timeout": timedelta(seconds=bundles.timeout_s)},
        )
    except (obstore.exceptions.BaseError, OSError, ValueError) as error:
        raise StoreError("unfit", f"setting bundles.store: {bundles.store} cannot be used: {plain(error)}") from None
    return obstore, store
