"""What a person reads of the gate's verdict: what it was, and not what its findings look like."""

import pytest
from rich.console import Console

from infra.cli.verdict import print_verdict
from models.evaluation.gate import Finding, Outcome, Verdict

FEW = Finding("recall@10", "live", 0.1, 0.3, None, None, None, 40, worse=False)
SHRUNK = Finding("coverage@100", "live", 0.1, 0.9, -0.8, None, None, 0, worse=True)
FINE = Finding("recall@10", "live", 0.3, 0.3, 0.0, -0.1, 0.1, 400, worse=False)


@pytest.mark.parametrize(
    ("outcome", "findings", "is_announced", "says"),
    [
        ("not judged", (), True, "announced, not judged"),
        ("not judged", (FEW,), True, "announced, not judged: too few users to tell"),
        ("not judged", (FEW, SHRUNK), True, "announced, not judged: too few users to tell"),
        ("passed", (FINE,), True, "announced, and nothing was found worse"),
        ("refused", (FINE, SHRUNK), True, "announced with --force, although worse in coverage@100 against live"),
        ("refused", (FINE, SHRUNK), False, "refused, old stays live: worse in coverage@100 against live."),
    ],
)
def test_the_last_line_says_what_was_decided(
    outcome: Outcome, findings: tuple[Finding, ...], is_announced: bool, says: str
):
    console = Console(record=True, width=200, quiet=False)
    print_verdict(console, Verdict(outcome, findings), "old", is_announced=is_announced)
    last = console.export_text().strip().splitlines()[-1]
    assert last == says or (not is_announced and last.startswith(says))
