"""The page of all settings, `docs/configuration.md`, made from the settings themselves.

    python -m infra.operate.configuration_page > docs/configuration.md

A page that is written by hand is wrong after the second change. This one is compared with the settings by a test.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from infra.platform.settings import Settings, variable_of

HEAD = """# Configuration

All settings with their types, defaults and meaning. This page is made by `python -m infra.operate.configuration_page`
from `infra/platform/settings.py`; a test fails when the two differ.

A value comes from, later ones win: the default here; a TOML file (`--config FILE`, else `$NEXTWATCH_CONFIG`, else
`./nextwatch.toml`); the environment variable of the setting; `--data-dir` of the command line. Unknown names are
refused. A *secret* comes from its variable only. `nextwatch config` prints the values in use, secrets masked.

    # nextwatch.toml                       the same by variables
    data_dir = "/var/lib/nextwatch"        # NEXTWATCH_DATA_DIR=/var/lib/nextwatch
    [kafka]
    bootstrap = "kafka-1:9092"             # NEXTWATCH_KAFKA__BOOTSTRAP=kafka-1:9092

Numbers end in their unit: `_s` seconds, `_h` hours, `_ms` milliseconds.
"""
BOUNDS = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
KINDS = {"boolean": "true, false", "integer": "whole number", "number": "number", "string": "text"}
FORMATS = {"path": "path", "password": "secret"}


def configuration_page() -> str:
    """Return the page as Markdown: one table for each section of the settings, in their order."""
    schema = Settings.model_json_schema()
    sections = {name: field for name, field in schema["properties"].items() if "$ref" in field}
    top = {name: field for name, field in schema["properties"].items() if name not in sections}
    parts = [HEAD, *_section("The whole", "", top)]
    for name, field in sections.items():
        parts += _section(name, f"{name}.", schema["$defs"][field["$ref"].rpartition("/")[2]]["properties"])
    return "\n".join(parts)


def _section(title: str, prefix: str, fields: dict[str, Any]) -> Iterator[str]:
    yield f"## {title}\n"
    yield "| setting | type | default | meaning |\n| --- | --- | --- | --- |"
    for name, field in fields.items():
        cells = (f"`{prefix}{name}`", _kind(field), _default(field, prefix + name), field.get("description", ""))
        yield f"| {' | '.join(_plain(cell) for cell in cells)} |"
    yield ""


def _plain(cell: str) -> str:
    return cell.replace("|", "\\|").replace("<", "&lt;")


def _kind(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return ", ".join(_kind(each) for each in field["anyOf"])
    if "$ref" in field:
        return "table"
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if field["type"] == "null":
        return "unset"
    if field["type"] == "array":
        return f"list: {_kind(field['items'])}"
    kind = FORMATS.get(field.get("format", ""), KINDS[field["type"]])
    return ", ".join([kind, *(f"{sign} {field[name]:g}" for name, sign in BOUNDS if name in field)])


def _default(field: dict[str, Any], name: str) -> str:
    if field.get("format") == "password":
        return f"empty; `{variable_of(name)}`"
    default = field.get("default")
    if default is None:
        return "unset"
    if isinstance(default, str):
        return f"`{default}`" if default else "empty"
    return f"`{json.dumps(default)}`"


if __name__ == "__main__":
    sys.stdout.write(configuration_page())
