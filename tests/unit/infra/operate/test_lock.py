"""The lock files hold what pyproject.toml asks for: `make lock` makes them anew."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[4]
DISTRIBUTIONS = (ROOT, ROOT / "clients" / "python")
OURS = {"nextwatch", "nextwatch-client"}
NOT_LOCKED = {"bench"}  # extras that neither CI nor the image install


def requirements() -> Iterator[Requirement]:
    for distribution in DISTRIBUTIONS:
        project = tomllib.loads((distribution / "pyproject.toml").read_text())["project"]
        extras = project.get("optional-dependencies", {})
        listed = [each for name, lines in extras.items() if name not in NOT_LOCKED for each in lines]
        yield from (each for each in map(Requirement, project["dependencies"] + listed) if each.name not in OURS)


def locked(name: str) -> list[str]:
    """The versions of a package, one for each range of Pythons that needs its own."""
    text = "".join((ROOT / f"{each}.lock").read_text() for each in ("requirements", "requirements-dev", "torch"))
    return re.findall(rf"^{name}==([^ ;\\\n]+)", text, re.MULTILINE)


@pytest.mark.parametrize("requirement", list(requirements()), ids=str)
def test_each_dependency_is_locked_within_its_range_and_has_an_upper_bound(requirement: Requirement) -> None:
    versions = locked(requirement.name)
    assert versions and all(each in requirement.specifier for each in versions), "make lock"
    assert any(each.operator == "<" for each in requirement.specifier), f"{requirement} may be any later version"


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_every_file_but_torchs_is_locked_by_its_hash_and_none_by_where_it_lies(name: str) -> None:
    text = (ROOT / f"{name}.lock").read_text()
    packages = re.split(r"\n(?=[a-z0-9])", text)[1:]
    assert len(packages) > 10 and all("--hash=sha256:" in each for each in packages)
    assert not re.search(r"https?:|file:|--(extra-)?index|--find-links|^torch|^nvidia", text, re.MULTILINE)
