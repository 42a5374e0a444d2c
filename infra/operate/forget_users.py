"""Users are forgotten: written down, waited for, and what topics still hold of them is listed (`nextwatch forget`)."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from infra.operate.progress import Step, no_progress
from infra.platform.settings import Settings, SettingsError
from streams.erasure.erase_users import hide_letters, read_erased_users, wait_until_done, write_erased_users
from streams.erasure.retention_report import Held, find_held

MOST_CHARACTERS = 256  # of an id


class ForgetReport(msgspec.Struct):
    """The outcome. `at_ms` is None when nothing was written; `waiting_for` names worker/partition."""

    users: int
    at_ms: int | None = None
    waiting_for: list[str] = []
    hidden_letters: int = 0
    held: list[Held] = []

    @property
    def in_use(self) -> bool:
        """True while a topic holds something of them that is still read."""
        return any(each.in_use for each in self.held)


def forget_users(
    settings: Settings,
    users: Sequence[str],
    *,
    wait_s: float = 60.0,
    held: bool = True,
    dry_run: bool = False,
    progress: Step = no_progress,
) -> ForgetReport:
    """Write these users down as forgotten and wait for the workers; with `held` list what the topics still hold.

    `dry_run` only lists. Before anything is written it raises SettingsError for an id of a wrong length, and
    ForgetSecretWrong.
    """
    users, now_ms = _checked(users), time.time_ns() // 1_000_000
    report = ForgetReport(len(users))
    read_erased_users(settings)  # before anything is written: whether we have the secret of before
    if not dry_run:
        offset = write_erased_users(settings, users, now_ms)
        report.at_ms = now_ms
        report.waiting_for = wait_until_done(
            settings, users, offset, wait_s, lambda done, total: progress("workers", done, total)
        )
    if held or dry_run:
        found, letters = find_held(settings, users, now_ms, progress)
        report.held = [each for each in found if each.records]
        if not dry_run and letters:
            hide_letters(settings, letters, now_ms)
            report.hidden_letters = len(letters)
    return report


def _checked(users: Sequence[str]) -> list[str]:
    for user in users:
        if not 1 <= len(user) <= MOST_CHARACTERS:
            raise SettingsError(f"a user's id has 1 to {MOST_CHARACTERS} characters, this one has {len(user)}")
    return list(dict.fromkeys(users))
