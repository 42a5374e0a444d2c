"""The use of a private part of a third party: only in a version that was checked, and replaced at most once.

Every use stands in a file named patches.py, one for each client, with the reason, the versions and the upstream issue.
A private name may mean something else in the next release, so the import of such a file ends with a clear error there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import version
from typing import Any


class UncheckedVersion(ImportError):
    """A package is installed in a version that our patches were never checked with."""


def require_version(package: str, least: str, below: str) -> None:
    """Raise UncheckedVersion unless `package` is installed in a version from `least` on and before `below`."""
    found = version(package)
    if not _numbers(least) <= _numbers(found) < _numbers(below):
        raise UncheckedVersion(
            f"{package} {found} is installed, and we use private parts of it that were checked from {least} to before "
            f"{below} only: install one of these (pip install '{package}>={least},<{below}')"
        )


def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Put `make(theirs)` in the place of `owner.name`; what was replaced before stays as it is."""
    theirs = getattr(owner, name)
    if not hasattr(theirs, "replaces"):
        ours = make(theirs)
        ours.replaces = theirs
        setattr(owner, name, ours)


def original(owner: Any, name: str) -> Any:
    """Return what `owner.name` is without us."""
    found = getattr(owner, name)
    return getattr(found, "replaces", found)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text.split("+", maxsplit=1)[0])[:3]))
