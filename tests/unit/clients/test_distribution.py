"""The client as an application gets it: installed from its own sources, beside packages of the application's names."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).parents[3] / "clients" / "python"
APPLICATION = """
import json, sys
import models, serving
import nextwatch_client
print(json.dumps({
    "files": [each.__file__ for each in (models, serving, nextwatch_client)],
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
}))
"""
NOT_NEEDED = {"torch", "faust", "mode", "pymilvus", "numpy", "pydantic", "aiokafka", "structlog"}
OURS = {"streams", "indexer", "infra"}


def test_it_is_installed_beside_an_application_with_packages_of_our_names(tmp_path: Path) -> None:
    sources, site, application = (tmp_path / name for name in ("sources", "site", "application"))
    shutil.copytree(SOURCES, sources, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    subprocess.run((*pip, "--target", str(site), str(sources)), check=True)
    [information] = site.glob("*.dist-info")
    assert {each.name for each in site.iterdir()} == {"nextwatch_client", information.name}
    assert (site / "nextwatch_client" / "py.typed").exists()
    needed = [line for line in (information / "METADATA").read_text().splitlines() if line.startswith("Requires-Dist")]
    assert [line.split()[1].partition("<")[0].partition("[")[0] for line in needed] == ["kafka-python", "msgspec"]

    for name in ("models", "serving"):
        (application / name).mkdir(parents=True)
        (application / name / "__init__.py").touch()
    environ = os.environ | {"PYTHONPATH": f"{application}{os.pathsep}{site}"}
    done = subprocess.run(
        (sys.executable, "-c", APPLICATION), env=environ, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert [Path(each).parent for each in found["files"]] == [
        application / "models",
        application / "serving",
        site / "nextwatch_client",
    ]
    assert not (NOT_NEEDED | OURS) & set(found["modules"])
