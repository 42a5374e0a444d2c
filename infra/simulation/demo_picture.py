"""The picture of a demo run that the README shows: `python -m infra.simulation.demo_picture docs/demo.svg`.

It runs `nextwatch demo` as a person would and draws what was printed, so that the picture cannot promise what the code
does not do. When a claim of the demo does not hold, nothing is written and the exit code is 1.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 110
WEB_FONT = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)


def main() -> None:
    """Run the demo and write its picture to the file that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m infra.simulation.demo_picture FILE.svg")
    printed = _run_demo()
    Path(sys.argv[1]).write_text(draw(printed, f"make demo, at commit {_commit()}"), encoding="utf-8")


def draw(printed: str, title: str) -> str:
    """Return the terminal output, with its colours, as an SVG that fetches nothing when it is opened."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(printed.strip("\n")))
    svg = WEB_FONT.sub("", console.export_svg(title=title))
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def _run_demo() -> str:
    environ = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)}
    command = [sys.executable, "-m", "infra.cli", "demo"]
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout)
        sys.exit(1)
    return done.stdout


def _commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short=7", "HEAD"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
