"""The command line, run in this process as a person would run it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from infra.cli import main as command_line
from infra.platform.settings import Settings, to_environ


class Done(NamedTuple):
    code: int
    out: str
    err: str


def commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *command: str, settings: Settings | None = None
) -> Callable[..., Done]:
    """Run `nextwatch <command> <arguments>` on a wide terminal, with these settings if there are any."""
    for name, value in to_environ(settings).items() if settings else ():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["nextwatch", *command, *arguments])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        said = capsys.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)

    return run
