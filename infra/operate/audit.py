"""Known weaknesses of the packages that are installed: `make audit`.

pip-audit asks osv.dev about every package of a virtual environment. It is installed into a directory of its own, so
that the tool is not among what it looks at, and run from there. Only the standard library: it needs nothing of ours.

Exit codes: 0 nothing known, 1 something is, 2 the service or the tool cannot be reached, so nothing can be said.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

TOOL = "pip-audit>=2.7,<3"
WITHIN_S = 900


def main(python: str) -> int:
    """Look at the environment of this interpreter."""
    with tempfile.TemporaryDirectory(prefix="nextwatch-audit-") as directory:
        venv.create(directory, with_pip=True)
        tool = Path(directory, "bin")
        installed = _run(str(tool / "pip"), "install", "--quiet", "--disable-pip-version-check", TOOL)
        if installed.returncode:
            return _unknown("pip-audit cannot be installed", installed.stderr)
        packages = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
        asked = ("--path", packages, "--vulnerability-service", "osv", "--format", "json", "--progress-spinner", "off")
        done = _run(str(tool / "pip-audit"), *asked)
    try:
        return report(json.loads(done.stdout))
    except (ValueError, KeyError, TypeError):
        return _unknown("osv.dev cannot be asked", done.stderr)


def report(found: dict[str, Any]) -> int:
    """Print what is known; the exit code."""
    weak = [(package, each) for package in found["dependencies"] for each in package.get("vulns", ())]
    for package, each in weak:
        mended = ", ".join(each.get("fix_versions", ())) or "no version yet"
        print(f"{package['name']} {package['version']}: {each['id']}, mended in {mended}")
    skipped = [package["name"] for package in found["dependencies"] if "skip_reason" in package]
    if skipped:
        print(f"not looked at: {', '.join(skipped)}")
    print(f"{len(weak)} known weaknesses in {len(found['dependencies']) - len(skipped)} packages")
    return 1 if weak else 0


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no end after {WITHIN_S} s")


def _unknown(what: str, said: str) -> int:
    last = next((line for line in reversed(said.strip().splitlines()) if line.strip()), "it said nothing")
    print(f"NOT AUDITED: {what}, so nothing is known of the packages: {last[:300]}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
