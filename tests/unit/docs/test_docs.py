"""The pages say what is there: links, paths, commands, settings, benchmarks; and they stay as short as they promise."""

import importlib.util
import inspect
import re
from collections.abc import Iterator
from enum import EnumType
from functools import cache
from typing import Any, get_type_hints

import pytest
import typer
from pydantic.fields import FieldInfo

from infra.cli.main import app
from infra.operate.configuration_page import configuration_page
from infra.platform.settings import ENV_PREFIX, Section, Settings
from infra.simulation.demo_picture import draw
from tests.benchmarks.__main__ import GROUPS, NAMES, parts_of
from tests.unit.docs.pages import BESIDE, DOCS, PAGES, ROOT, Page

README = BESIDE[0]
COMMIT = re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{7}\b")
BENCHMARK = re.compile(r"python -m tests\.benchmarks(?: ([a-z][a-z0-9-]*))?(?: --part ([a-z]+))?")
PATH = re.compile(r"[\w./-]+")
VARIABLES = {"NEXTWATCH_CONFIG", "NEXTWATCH_TEST_MILVUS"}  # that are no settings
ELSEWHERE = {"nextwatch.toml", "report.json", "report.html"}  # files of the user, not of the repository
SECTIONS = {name: field.annotation for name, field in Settings.model_fields.items()}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@each_page
def test_every_link_leads_to_a_page_and_a_heading(page: Page):
    by_path = {each.path: each for each in PAGES}
    for link in page.links():
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.path.parent / file).resolve() if file else page.path
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in by_path[target].anchors(), f"{page.name}: {link} has no such heading"


@each_page
def test_pages_of_the_site_link_to_pages_of_the_site_only(page: Page):
    if page in DOCS:
        assert not [link for link in page.links() if link.startswith("../")]


@each_page
def test_every_path_that_is_named_exists(page: Page):
    names = _names_of_files()
    for span in page.spans():
        if not PATH.fullmatch(span) or span.removeprefix("./") in ELSEWHERE:
            continue
        if span.split("/")[0] in _folders() and "/" in span:
            assert (ROOT / span).exists(), f"{page.name}: {span}"
        elif span.endswith((".py", ".md", ".toml", ".yml")):
            assert (ROOT / span).exists() or span in names, f"{page.name}: {span}"


@each_page
def test_every_command_and_option_exists(page: Page):
    root = typer.main.get_command(app)
    for text in page.spans() + page.code_lines():
        for words in _invocations(text):
            problem = _problem(root, words)
            assert not problem, f"{page.name}: nextwatch {' '.join(words)}: {problem}"


@each_page
def test_every_benchmark_and_module_exists(page: Page):
    for text in page.spans() + page.code_lines():
        for name, part in BENCHMARK.findall(text):
            assert not name or name in NAMES or name in GROUPS, f"{page.name}: {text}"
            if part:
                assert part in parts_of(name), f"{page.name}: {text}"
        for module in re.findall(r"python -m ((?:infra|tests)\.[\w.]+)", text):
            assert importlib.util.find_spec(module) is not None, f"{page.name}: {module}"


@each_page
def test_every_setting_and_variable_exists(page: Page):
    variables = {ENV_PREFIX + name.replace(".", "__").upper() for name in _settings()} | VARIABLES
    for span in page.spans():
        section, _, leaf = span.partition(".")
        if section in SECTIONS and re.fullmatch(r"[a-z_]+", leaf) and leaf != "py":
            assert span in _settings(), f"{page.name}: {span} is no setting"
    for variable in re.findall(rf"\b{ENV_PREFIX}[A-Z_]+\b", page.text):
        assert variable in variables, f"{page.name}: {variable} is no setting's"


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda page: page.name)
def test_who_names_a_benchmark_names_the_commit_of_its_figures(page: Page):
    for block in page.blocks():
        if any(name for name, _ in BENCHMARK.findall(block)):
            assert COMMIT.search(block), f"{page.name}: no commit in: {block[:120]}"


def test_the_page_of_settings_is_that_of_the_settings():
    shown = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert shown == configuration_page(), "python -m infra.operate.configuration_page > docs/configuration.md"


def test_every_setting_says_what_it_is():
    assert not [name for name, field in _leaves().items() if not field.description]


def test_readme_has_900_words_at_most():
    assert len(README.text.split()) <= 900


def test_the_glossary_has_30_terms_at_most():
    assert 0 < len(re.findall(r"^- \*\*", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)) <= 30


def test_a_release_has_40_lines_in_the_changelog_at_most():
    releases = re.split(r"^## ", BESIDE[2].text, flags=re.MULTILINE)[1:]
    assert all(len(release.splitlines()) <= 40 for release in releases)


def test_every_page_is_on_the_site():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert not [page.name for page in DOCS if f": {page.path.name}\n" not in site]


@cache
def _folders() -> set[str]:
    """The folders at the top that code and pages live in."""
    return {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "build"))}


@cache
def _names_of_files() -> set[str]:
    return {path.name for folder in _folders() for path in (ROOT / folder).rglob("*.py")}


@cache
def _leaves() -> dict[str, FieldInfo]:
    """By `section.name` the settings of all sections."""
    return {
        f"{name}.{leaf}": field
        for name, kind in SECTIONS.items()
        if isinstance(kind, type) and issubclass(kind, Section)
        for leaf, field in kind.model_fields.items()
    }


@cache
def _settings() -> set[str]:
    return _leaves().keys() | SECTIONS.keys()


def _invocations(text: str) -> Iterator[list[str]]:
    """The words behind each `nextwatch` of a line of code."""
    for found in re.findall(r"(?:^|\s)nextwatch ([^;|]+)", text):
        words = re.sub(r"'[^']*'", "QUOTED", found).split()
        yield words[: words.index("or")] if "or" in words else words


def _problem(command: Any, words: list[str]) -> str:
    """What is wrong with a command line; empty when all its commands, options and choices are there."""
    inner = getattr(command, "commands", {})
    if inner:
        at = next((place for place, word in enumerate(words) if word in inner), None)
        if at is None:
            none = f"no command of {sorted(inner)}"
            return _unknown_options(command, words) if words and all(word[0] == "-" for word in words) else none
        return _unknown_options(command, words[:at]) or _problem(inner[words[at]], words[at + 1 :])
    return _unknown_options(command, words) or _no_choice(command, words)


def _unknown_options(command: Any, words: list[str]) -> str:
    known = {option for param in command.params for option in param.opts + param.secondary_opts} | {"--help"}
    unknown = [word for word in words if word.startswith("-") and len(word) > 1 and word not in known]
    return f"no option {unknown[0]}" if unknown else ""


def _no_choice(command: Any, words: list[str]) -> str:
    """The first word must be one of the choices of a first argument that has choices."""
    first = next((param for param in command.params if param.param_type_name == "argument"), None)
    kind = get_type_hints(inspect.unwrap(command.callback)).get(getattr(first, "name", ""))
    named = [choice.value for choice in kind] if isinstance(kind, EnumType) else []
    if named and words and not words[0].startswith("-") and words[0] not in named:
        return f"{words[0]} is none of {named}"
    return ""


def test_the_picture_shows_what_was_printed_and_fetches_nothing():
    """The README's picture of the demo."""
    svg = draw("\x1b[32mholds\x1b[0m  the reply knows the three watches\n", "make demo, at commit 1234567")
    assert "holds" in svg and "1234567" in svg and svg.startswith("<svg")
    assert not re.search(r"url\([\"']?http|src=|href=", svg)


def test_every_picture_of_the_console_is_shown_and_all_of_them_are_small():
    console = next(page for page in DOCS if page.path.name == "console.md")
    pictures = sorted((console.path.parent / "console").glob("*.png"))
    assert pictures and {f"console/{picture.name}" for picture in pictures} <= set(console.links())
    assert sum(picture.stat().st_size for picture in pictures) < 800_000
