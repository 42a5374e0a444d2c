"""The shape of the code: sizes, and who imports from whom, read from the source without importing it.

`python -m tests.harness.structure [ROOT]` prints it for any checkout; tests/test_architecture.py holds the same graph
to its rules. An import inside a function counts like one at the top: it ties two rooms together just as much.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from itertools import groupby
from pathlib import Path, PurePosixPath
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("infra", "models", "streams", "indexer", "serving")
CLIENT = PurePosixPath("clients/python/src")  # a distribution of its own
LONGEST = 15  # functions and files that are listed

Graph = Mapping[str, set[str]]


class Function(NamedTuple):
    name: str
    file: str
    line: int
    lines: int


@dataclass(frozen=True)
class SourceFile:
    """One file: its place from the root, its dotted name, and its syntax tree."""

    path: str
    module: str
    lines: int
    tree: ast.Module

    @property
    def folder(self) -> str:
        return str(PurePosixPath(self.path).parent)

    @cached_property
    def imported(self) -> frozenset[str]:
        """Dotted names of all that is imported anywhere in the file; `from a import b` gives `a` and `a.b`."""
        return frozenset(name for node in ast.walk(self.tree) for name in self._names_of(node))

    def imports(self, *packages: str) -> list[str]:
        """What it imports of these packages."""
        return sorted(name for name in self.imported if is_of(name, packages))

    def functions(self) -> Iterator[Function]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield Function(node.name, self.path, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1)

    def _names_of(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = self.module if self.path.endswith("__init__.py") else self.module.rpartition(".")[0]
            base = resolve_name("." * node.level + (node.module or ""), package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


@dataclass(frozen=True)
class Structure:
    """The product's files by module, and the graphs between them."""

    files: Mapping[str, SourceFile]

    def file_graph(self) -> dict[str, set[str]]:
        """By file those that it imports from."""
        return {each.path: {target.path for target in self._targets(each)} for each in self.files.values()}

    def folder_graph(self) -> dict[str, set[str]]:
        """By folder the other folders that it imports from."""
        graph: dict[str, set[str]] = {each.folder: set() for each in self.files.values()}
        for each in self.files.values():
            graph[each.folder] |= {target.folder for target in self._targets(each)} - {each.folder}
        return graph

    def folders(self) -> dict[str, list[SourceFile]]:
        ordered = sorted(self.files.values(), key=lambda each: (each.folder, each.path))
        return {folder: list(files) for folder, files in groupby(ordered, key=lambda each: each.folder)}

    def functions(self) -> list[Function]:
        """All of them, longest first."""
        found = [function for each in self.files.values() for function in each.functions()]
        return sorted(found, key=lambda function: (-function.lines, function.file))

    def _targets(self, source: SourceFile) -> Iterator[SourceFile]:
        """The files that this one imports from; `from package import module` is the module, not the package."""
        known = [name for name in source.imported if name in self.files]
        for name in known:
            is_only_a_prefix = any(other.startswith(name + ".") for other in known)
            if not (is_only_a_prefix and self.files[name].path.endswith("__init__.py")):
                yield self.files[name]


def read_structure(root: Path = ROOT) -> Structure:
    """The product's code below `root`: our packages, and the client's where it is a distribution of its own."""
    places = [(root, package) for package in PACKAGES]
    places += [(root / CLIENT, path.name) for path in (root / CLIENT).glob("*") if path.is_dir()]
    paths = [(base, path) for base, package in places for path in (base / package).rglob("*.py")]
    files = [_read_file(root, base, path) for base, path in paths]
    return Structure({each.module: each for each in files})


def _read_file(root: Path, base: Path, path: Path) -> SourceFile:
    text = path.read_text(encoding="utf-8")
    parts = path.relative_to(base).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return SourceFile(path.relative_to(root).as_posix(), module, text.count("\n"), ast.parse(text))


def is_of(name: str, packages: Sequence[str]) -> bool:
    return any(name == each or name.startswith(each + ".") for each in packages)


def circle(graph: Graph) -> list[str]:
    """Files or folders that import each other in a circle; empty when nobody does. Of several circles one is told."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def report(structure: Structure) -> Iterator[str]:
    """The lines that the command prints."""
    graph, functions = structure.folder_graph(), structure.functions()
    yield f"{'folder':<32}{'files':>6}{'lines':>8}  imports from"
    for folder, files in structure.folders().items():
        lines = sum(each.lines for each in files)
        yield f"{folder:<32}{len(files):>6}{lines:>8}  {', '.join(sorted(graph[folder])) or '-'}"
    files = sorted(structure.files.values(), key=lambda each: -each.lines)
    yield f"{'all':<32}{len(files):>6}{sum(each.lines for each in files):>8}"
    yield f"\nfunctions: {len(functions)}, median {median(each.lines for each in functions):g} lines; longest:"
    yield from (f"{each.lines:>6}  {each.file}:{each.line} {each.name}" for each in functions[:LONGEST])
    yield "\nlongest files:"
    yield from (f"{each.lines:>6}  {each.path}" for each in files[:LONGEST])
    for what, edges in (("folders", graph), ("files", structure.file_graph())):
        yield f"\na circle between {what}: {' <- '.join(circle(edges)) or 'none'}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Sizes and import graph of the product's code.")
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, help="a checkout [default: this one]")
    print("\n".join(report(read_structure(parser.parse_args().root))))


if __name__ == "__main__":
    main()
