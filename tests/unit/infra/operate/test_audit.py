"""What `make audit` makes of the answers that it gets."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from infra.operate import audit

WEAK = {"name": "old", "version": "1.0", "vulns": [{"id": "CVE-1", "fix_versions": ["1.1"]}, {"id": "CVE-2"}]}
GOOD = {"name": "new", "version": "2.0", "vulns": []}
SKIPPED = {"name": "nextwatch", "skip_reason": "not on PyPI"}


def test_a_weakness_is_named_with_its_mend_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.report({"dependencies": [WEAK, GOOD, SKIPPED]}) == 1
    assert capsys.readouterr().out.splitlines() == [
        "old 1.0: CVE-1, mended in 1.1",
        "old 1.0: CVE-2, mended in no version yet",
        "not looked at: nextwatch",
        "2 known weaknesses in 2 packages",
    ]
    assert audit.report({"dependencies": [GOOD]}) == 0


@pytest.mark.parametrize(
    ("said", "code", "expected"),
    [
        (json.dumps({"dependencies": [GOOD]}), 0, 0),
        (json.dumps({"dependencies": [WEAK]}), 1, 1),
        ("", 1, 2),
        ("{}", 0, 2),
    ],
)
def test_silence_is_not_taken_for_a_clean_answer(
    said: str, code: int, expected: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*command: str) -> subprocess.CompletedProcess[str]:
        is_audit = Path(command[0]).name == "pip-audit"
        return subprocess.CompletedProcess(command, code if is_audit else 0, said, "cannot resolve api.osv.dev")

    monkeypatch.setattr(audit, "_run", run)
    monkeypatch.setattr(audit.venv, "create", lambda *_, **__: None)
    assert audit.main("python") == expected
    if expected == 2:
        assert "NOT AUDITED: osv.dev cannot be asked" in capsys.readouterr().err
