"""Private parts of third parties: of checked versions only, and replaced once."""

from types import SimpleNamespace

import pytest

from infra.platform.third_parties import patching
from infra.platform.third_parties.patching import UncheckedVersion, original, replace, require_version


@pytest.mark.parametrize(
    ("found", "is_checked"),
    [("0.12.0", True), ("0.14.0.post1", True), ("0.14", True), ("0.11.9", False), ("0.15.0", False), ("1.0rc1", False)],
)
def test_a_version_that_was_never_checked_is_an_error_that_says_what_to_install(monkeypatch, found, is_checked):
    monkeypatch.setattr(patching, "version", lambda package: found)
    if is_checked:
        require_version("aiokafka", "0.12", "0.15")
    else:
        with pytest.raises(UncheckedVersion, match=rf"aiokafka {found} is installed.*from 0\.12 to before 0\.15.*pip"):
            require_version("aiokafka", "0.12", "0.15")


def test_what_is_replaced_is_replaced_once_and_is_still_to_be_had():
    owner = SimpleNamespace(ask=lambda: 1)
    theirs = owner.ask
    for _ in range(2):
        replace(owner, "ask", lambda ask: lambda: ask() + 1)
    assert (
        owner.ask() == 2 and original(owner, "ask") is theirs and original(SimpleNamespace(ask=theirs), "ask") is theirs
    )
