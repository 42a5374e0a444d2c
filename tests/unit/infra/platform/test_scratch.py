"""Directories that go with their work, also when their process was killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from infra.platform.scratch import YOUNG_S, remove_left, scratch_directory

HOLD = """
import sys, time
from pathlib import Path
from infra.platform.scratch import scratch_directory
with scratch_directory(Path(sys.argv[1]), "work-") as made:
    print(made, flush=True)
    time.sleep(60)
"""


def test_it_goes_with_the_block(tmp_path: Path):
    with scratch_directory(tmp_path / "new", "work-") as made:
        assert made.parent == tmp_path / "new" and made.name.startswith("work-")
        (made / "file").write_text("x")
    assert not list((tmp_path / "new").iterdir())


def test_what_a_killed_process_left_goes_and_what_a_living_one_holds_stays(tmp_path: Path):
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    made = Path(child.stdout.readline().strip())
    later_s = time.time() + YOUNG_S + 1
    remove_left(tmp_path, "work-", now_s=later_s)
    assert made.is_dir(), "it is held"
    os.kill(child.pid, signal.SIGKILL)
    child.wait(10)
    child.stdout.close()
    remove_left(tmp_path, "work-", now_s=time.time())
    assert made.is_dir(), "as young as one that is not locked yet"
    remove_left(tmp_path, "work-", now_s=later_s)
    assert not made.exists()


def test_what_is_named_otherwise_or_is_no_directory_stays(tmp_path: Path):
    (tmp_path / "other").mkdir()
    (tmp_path / "work-file").write_text("x")
    remove_left(tmp_path, "work-", now_s=time.time() + 1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "work-file"]
