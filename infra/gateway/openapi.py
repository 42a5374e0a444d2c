"""The gateway's description of itself: OpenAPI as JSON, and a page of it that needs nothing from elsewhere.

litestar describes paths, parameters and replies. Bodies are read event by event (bodies.py), so they are described
here, from the messages that they become.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import msgspec
from litestar import Litestar, MediaType, Response, get
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from streams.messages import Item, SearchEvent, SignalEvent, WatchEvent

REF = "#/components/schemas/{name}"
BODIES: dict[tuple[str, str], type[msgspec.Struct]] = {
    ("/watches", "post"): WatchEvent,
    ("/searches", "post"): SearchEvent,
    ("/signals", "post"): SignalEvent,
    ("/items/{item}", "put"): Item,
}


def openapi_document(handlers: Sequence[Any]) -> dict[str, Any]:
    """Return the OpenAPI document of these handlers."""
    config = OpenAPIConfig("nextwatch", "1", use_handler_docstrings=True, render_plugins=[JsonRenderPlugin()])
    document = Litestar(list(handlers), openapi_config=config, logging_config=None).openapi_schema.to_schema()
    schemas, components = msgspec.json.schema_components(BODIES.values(), ref_template=REF)
    document["components"].setdefault("schemas", {}).update(components)
    for (path, method), schema in zip(BODIES, schemas, strict=True):
        one_or_many = schema if method == "put" else {"oneOf": [schema, {"type": "array", "items": schema}]}
        content = {"application/json": {"schema": one_or_many}}
        document["paths"][path][method]["requestBody"] = {"required": True, "content": content}
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"token": []}]
    return document


def render_page(document: dict[str, Any]) -> str:
    """Return the document as HTML: what there is, with parameters and replies."""
    parts = [each for path, methods in document["paths"].items() for each in _operations(path, methods)]
    return _PAGE.format("\n".join(parts))


def documentation(handlers: Sequence[Any]) -> list[Any]:
    """Return the handlers of `/openapi.json`, `/docs` and its style."""
    document = openapi_document(handlers)
    json, page = msgspec.json.encode(document), render_page(document)
    style = files(__package__).joinpath("page.css").read_text(encoding="utf-8")

    @get("/openapi.json", media_type=MediaType.JSON, sync_to_thread=False)
    def openapi_json() -> Response[bytes]:
        return Response(json, media_type=MediaType.JSON)

    @get(["/", "/docs"], media_type=MediaType.HTML, sync_to_thread=False)
    def docs() -> str:
        return page

    @get("/page.css", media_type=MediaType.CSS, sync_to_thread=False)
    def stylesheet() -> str:
        return style

    return [openapi_json, docs, stylesheet]


def _operations(path: str, methods: dict[str, Any]) -> Iterator[str]:
    for method, operation in methods.items():
        text = escape(operation.get("description", "")).replace("\n", "<br>")
        yield f"<section><h2><b>{method.upper()}</b> {escape(path)}</h2><p>{text}</p>"
        rows = [_row(each["name"], each["in"], each.get("description", "")) for each in operation.get("parameters", ())]
        if "requestBody" in operation:
            rows.append(_row("body", "JSON", _body_of(operation["requestBody"])))
        rows += [_row(status, "reply", each.get("description", "")) for status, each in operation["responses"].items()]
        yield f"<table>{''.join(rows)}</table></section>"


def _body_of(body: dict[str, Any]) -> str:
    schema = body["content"]["application/json"]["schema"]
    name = (schema.get("oneOf") or [schema])[0]["$ref"].rpartition("/")[2]
    return f"{name}, or a list of them" if "oneOf" in schema else name


def _row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>"


_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>nextwatch gateway</title><link rel="stylesheet" href="/page.css"></head>
<body>
<h1>nextwatch gateway</h1>
<p>The same as <a href="/openapi.json">OpenAPI</a>. With gateway.token set, a request shows it:
<code>Authorization: Bearer ...</code></p>
{}
</body>
</html>
"""
