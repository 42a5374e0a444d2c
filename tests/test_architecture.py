"""The rules of the house, on the source as it stands: who may import whom, and where third parties are known.

Each rule is a function that returns its violations as text. What still stands is in KNOWN, with who mends it.
"""

from __future__ import annotations

import ast
import itertools
import re
import tomllib
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import PurePosixPath

import pytest

from tests.harness.needs import Tool, require
from tests.harness.structure import CLIENT, ROOT, SourceFile, circle, is_of, read_structure

MOST_FILES = 18  # of one folder, its __init__ apart
LAYERS = (
    ("nextwatch_client",),  # its own distribution: whoever installs it has nothing else of ours
    ("infra.platform",),
    ("models",),
    ("streams",),
    ("indexer",),
    ("serving",),
    ("infra.local", "infra.operate", "infra.backtest", "infra.simulation"),
    ("infra.gateway",),
    ("infra.console",),
    ("infra.cli",),
)
NOT_IN_MODELS = ("infra", "kafka", "confluent_kafka", "aiokafka", "faust", "pymilvus", "pydantic_settings", "time")
NOT_IN_THE_CLIENT = ("infra", "models", "streams", "indexer", "serving", "torch", "faust", "pymilvus", "numpy")
ONLY_IN = {
    "pymilvus": ("indexer/*", "infra/local/*"),
    "aiokafka": ("streams/kafka/*", "streams/*/app.py", "infra/platform/*", f"{CLIENT}/*"),  # ground: options, log-in
    "obstore": ("streams/bundles/objects.py",),
    "opentelemetry": ("infra/platform/tracing.py",),
    "confluent_kafka": ("streams/ingest/*",),
    "faust": ("streams/kafka/*", "streams/*/app.py", "infra/platform/*"),
}
PRIVATE_TOUCHES_IN = {"tests/**", "**/patches.py"}
ROOMS_OF_TESTS = ("tests", "tests/unit", "tests/benchmarks", "tests/system", "tests/system/console")
ROOMS_OF_TESTS += ("tests/system/machines",)
ROOMS_OF_TESTS += ("tests/system/ingest",)
ROOMS_OF_TESTS += ("tests/system/partitions", "tests/system/cluster")
ROOMS_OF_TESTS += ("tests/harness", "tests/harness/cluster", "tests/harness/console", "tests/harness/crash")
MAY_SKIP = {"tests/harness/needs.py", "tests/test_architecture.py"}

FOLDER = re.compile(r"(?<![\w./-])(?:infra|models|streams|indexer|serving|tests)/[\w/{},]*")  # as a page names it
STRUCTURE = read_structure()
FILES = list(STRUCTURE.files.values())

# A violation, or how it begins, and whose it is. Nothing may be added.
KNOWN: dict[str, str] = {}


def imports_upwards() -> Iterator[str]:
    for source in FILES:
        own = layer_of(source.module)
        above = {name for name in source.imported if (layer := layer_of(name)) is not None and layer > (own or 0)}
        if own is not None:
            yield from (f"{source.path} imports {name}" for name in sorted(above))


def circles_of_folders() -> Iterator[str]:
    yield from circle(STRUCTURE.folder_graph())


def circles_of_files() -> Iterator[str]:
    yield from circle(STRUCTURE.file_graph())


def impure_models() -> Iterator[str]:
    for source in FILES:
        if source.module.partition(".")[0] == "models":
            yield from (f"{source.path} imports {name}" for name in source.imports(*NOT_IN_MODELS))
            yield from (f"{source.path} reads the clock in line {line}" for line in clock_readings(source))


def a_client_that_needs_us() -> Iterator[str]:
    for source in FILES:
        if source.path.startswith(str(CLIENT)):
            yield from (f"{source.path} imports {name}" for name in source.imports(*NOT_IN_THE_CLIENT))


def third_parties_out_of_their_room() -> Iterator[str]:
    for (package, rooms), source in itertools.product(ONLY_IN.items(), FILES):
        if source.imports(package) and not any(fnmatch(source.path, room) for room in rooms):
            yield f"{source.path} imports {package}"


def private_touches_allowed() -> Iterator[str]:
    """Ruff finds the touches (`make lint`); what is read here is that it looks everywhere it should."""
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    if "SLF001" not in lint["select"] or "SLF001" in lint["ignore"]:
        yield "SLF001 is off"
    for pattern, rules in lint["per-file-ignores"].items():
        if any(rule.startswith("SLF") for rule in rules) and pattern not in PRIVATE_TOUCHES_IN:
            yield f"SLF001 is off for {pattern}"
    for source in FILES:
        if re.search(r"noqa:[^\n]*SLF|ruff: noqa", (ROOT / source.path).read_text()):
            yield f"SLF001 is off for {source.path}"


def crowded_folders() -> Iterator[str]:
    folders = {path.parent for path in (ROOT / "tests").rglob("*.py")} | {(ROOT / each.path).parent for each in FILES}
    for folder in sorted(folders):
        count = sum(path.name != "__init__.py" for path in folder.glob("*.py"))
        if count > MOST_FILES:
            yield f"{folder.relative_to(ROOT)} has {count} files"


def silent_rooms() -> Iterator[str]:
    """A mirror of the product below tests/unit says nothing that its room does not say."""
    rooms = {each.folder for each in FILES} | {*ROOMS_OF_TESTS}
    rooms |= {str(path.parent.relative_to(ROOT)) for path in (ROOT / "tests/benchmarks").glob("*/__init__.py")}
    for room in sorted(rooms - {str(CLIENT)}):
        path = ROOT / room / "__init__.py"
        if not path.is_file() or not ast.get_docstring(ast.parse(path.read_text())):
            yield f"{room} says nothing"


def skips_out_of_their_place() -> Iterator[str]:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        place, text = path.relative_to(ROOT).as_posix(), path.read_text()
        if place not in MAY_SKIP and re.search(r"\bpytest\.(skip|importorskip|mark\.skip|mark\.xfail)", text):
            yield f"{place} skips by itself: tests/harness/needs.py does that"


def rooms_that_are_not_there() -> Iterator[str]:
    for page in ("README.md", "docs/architecture.md"):
        text = (ROOT / page).read_text() if (ROOT / page).is_file() else ""
        for name in sorted(set(FOLDER.findall(text))):
            for folder in unfolded(name.rpartition("/")[0]):
                if not (ROOT / folder).is_dir():
                    yield f"{page} names {folder}/"


RULES: tuple[Callable[[], Iterator[str]], ...] = (
    imports_upwards,
    circles_of_folders,
    circles_of_files,
    impure_models,
    a_client_that_needs_us,
    third_parties_out_of_their_room,
    private_touches_allowed,
    crowded_folders,
    silent_rooms,
    skips_out_of_their_place,
    rooms_that_are_not_there,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_nothing_breaks_the_rule(rule: Callable[[], Iterator[str]]):
    assert [found for found in rule() if not any(found.startswith(known) for known in KNOWN)] == []


def test_the_graph_is_of_all_our_code():
    """The rules say nothing of a file that the graph does not have."""
    assert {each.module.partition(".")[0] for each in FILES} >= {"infra", "models", "streams", "indexer", "serving"}
    edges = STRUCTURE.file_graph()
    assert "infra/cli/ask.py" in edges["infra/cli/main.py"], "from package import module"
    assert "streams/messages.py" in edges["infra/cli/ask.py"], "inside a function"
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_a_missing_tool_is_a_failure_in_ci_and_a_skip_elsewhere(monkeypatch: pytest.MonkeyPatch):
    missing, excused = Tool("it", bool, "buy it"), Tool("it", bool, "buy it", why_not_in_ci="too dear")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"for this: it is not there \(buy it\)"):
        require(missing, "for this")
    with pytest.raises(pytest.skip.Exception):
        require(excused)
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception):
        require(missing)


def layer_of(module: str) -> int | None:
    """None for what is not ours, and for the few files that are in no layer (`infra`, `infra.deploy`)."""
    return next((height for height, rooms in enumerate(LAYERS) if is_of(module, rooms)), None)


def clock_readings(source: SourceFile) -> Iterator[int]:
    for node in ast.walk(source.tree):
        match node:
            case ast.Attribute(attr="now" | "utcnow" | "today", value=ast.Name(id="datetime" | "date")):
                yield node.lineno


def unfolded(name: str) -> Iterator[str]:
    """`streams/{join,kafka}` as the two folders that it stands for."""
    parts = [part.strip("{}").split(",") for part in PurePosixPath(name).parts]
    return ("/".join(each) for each in itertools.product(*parts))
