"""Two gloo processes train what one trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models.release.distributed import MEETING_FILE, helpers, process_group
from tests.unit.models.distributed_child import losses_and_rows

ROOT = Path(__file__).resolve().parents[4]


def test_two_processes_have_the_loss_curve_and_the_rows_of_one(tmp_path: Path):
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.unit.models.distributed_child", f"{tmp_path}"],
            cwd=ROOT,
            env={**os.environ, "RANK": f"{rank}", "WORLD_SIZE": "2", MEETING_FILE: f"{tmp_path / 'meeting'}"},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    alone = losses_and_rows()
    assert first == second
    np.testing.assert_allclose(first[0], alone[0], rtol=1e-4)
    np.testing.assert_allclose(first[1], alone[1], rtol=1e-2, atol=1e-3)
    assert alone[0][-1] < alone[0][0]


def test_alone_there_is_no_group():
    with process_group({}) as rank:
        assert rank == 0
    with process_group({"WORLD_SIZE": "1", "RANK": "0"}) as rank:
        assert rank == 0


def test_a_helper_that_fails_is_no_success(tmp_path: Path):
    with (
        pytest.raises(RuntimeError, match="1 of the helping processes failed"),
        helpers(2, ["-c", "raise SystemExit(3)"]),
    ):
        assert os.environ["WORLD_SIZE"] == "2"
    assert "RANK" not in os.environ


def test_a_helper_is_told_its_rank_and_where_to_meet(tmp_path: Path):
    write = f"Path({str(tmp_path)!r}, os.environ['RANK']).write_text(os.environ['{MEETING_FILE}'])"
    script = f"import os; from pathlib import Path; {write}"
    with helpers(3, ["-c", script]):
        meeting = os.environ[MEETING_FILE]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"1": meeting, "2": meeting}
