"""When an indexer is another one's standby: as long as the group says so, and not while nobody does."""

from __future__ import annotations

import pytest

from indexer import lease as lease_module
from indexer.lease import _Token

SESSION_S = 10.0


def test_a_standby_is_who_the_group_has_confirmed_and_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(lease_module, "running_s", lambda: now_s)
    token = _Token()
    assert not token.is_anothers(SESSION_S), "the group has not chosen yet"
    token.on_partitions_revoked([])
    assert not token.is_anothers(SESSION_S)
    token.on_partitions_assigned([])
    assert token.is_anothers(SESSION_S), "it has chosen another"
    now_s += SESSION_S
    assert not token.is_anothers(SESSION_S), "whoever that was, nobody has told us for a session"
    token.confirmed_s = now_s
    assert token.is_anothers(SESSION_S)
    token.on_partitions_lost([])
    token.on_partitions_assigned(["releases-0"])
    assert not token.is_anothers(SESSION_S), "it is ours"
