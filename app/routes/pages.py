"""The pages for people: the lab page at /, the routes at /docs. Nothing is loaded from elsewhere."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from jinja2 import Environment
from markupsafe import Markup, escape

from app.api.security import access
from app.core.errors import not_found

router = APIRouter(include_in_schema=False)
WEB = Path(__file__).parent.parent / "web"
KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
ASSETS = {str(path.relative_to(WEB).as_posix()): path for path in WEB.rglob("*") if path.suffix in KINDS}


@router.api_route("/", methods=["GET", "HEAD"])
@access(is_open=True)
def index() -> FileResponse:
    """The lab page; its modules fill it from the API."""
    return FileResponse(WEB / "index.html", media_type="text/html")


@router.get("/web/{name:path}")
@access(is_open=True)
def asset(name: str) -> FileResponse:
    """A module, style sheet or picture of the pages. The name is looked up, so no other file can be reached."""
    path = ASSETS.get(name)
    if path is None:
        raise not_found("file", remedy="Open the lab page at / instead.")
    return FileResponse(path, media_type=KINDS[path.suffix])


@router.api_route("/openapi.json", methods=["GET", "HEAD"])
@access(is_open=True)
def document(request: Request) -> JSONResponse:
    """The OpenAPI document."""
    return JSONResponse(request.app.openapi())


@router.get("/docs")
@access(is_open=True)
def docs(request: Request) -> HTMLResponse:
    """The routes with their fields and a curl example each, made from the OpenAPI document."""
    schema = request.app.openapi()
    environment = Environment(autoescape=True)
    environment.filters["code"] = _code
    template = environment.from_string((WEB / "docs.html.j2").read_text(encoding="utf-8"))
    return HTMLResponse(template.render(schema=schema, routes=described(schema, str(request.base_url).rstrip("/"))))


def described(schema: dict[str, Any], base: str) -> list[dict[str, Any]]:
    """Each route of an OpenAPI document with its fields, its answers and a curl command below the address `base`."""
    return [
        _route(schema, path, method, operation, base)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]


def _route(schema: dict[str, Any], path: str, method: str, operation: dict[str, Any], base: str) -> dict[str, Any]:
    content = operation.get("requestBody", {}).get("content", {})
    return {
        "method": method.upper(),
        "path": path,
        "summary": operation.get("summary", ""),
        "description": re.sub(r"(?<!\n)\n(?!\n)", " ", operation.get("description", "")),  # paragraphs stay
        "parameters": [
            (p["name"], p.get("description", ""), p.get("required", False)) for p in operation.get("parameters", [])
        ],
        "form": _fields(content.get("multipart/form-data", {}).get("schema", {})),
        "json": _fields(content.get("application/json", {}).get("schema", {})),
        "curls": _curls(path, method, operation, base),
        "answers": [
            (status, answer.get("description", "")) for status, answer in sorted(operation["responses"].items())
        ],
    }


def _code(text: str) -> Markup:
    """Text with `what stands between backticks` as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # escaped before


def _fields(schema: dict[str, Any]) -> list[tuple[str, str, bool]]:
    required = schema.get("required", [])
    return [
        (name, value.get("description", ""), name in required) for name, value in schema.get("properties", {}).items()
    ]


def _curls(path: str, method: str, operation: dict[str, Any], base: str) -> list[str]:
    """The documented example of each kind of body as a command, with the parameters that must be there."""
    address = base + "/".join(f"${part[1:-1].upper()}" if part.startswith("{") else part for part in path.split("/"))
    asked = {p["name"]: p["example"] for p in operation.get("parameters", []) if p["in"] == "query" and p["required"]}
    address += f"?{urlencode(asked)}" if asked else ""
    content = operation.get("requestBody", {}).get("content", {})
    verb = "" if method == "get" else f" -X {method.upper()}"
    headers = [p for p in operation.get("parameters", []) if p["in"] == "header"]
    verb += "".join(f" -H '{one['name']}: {one['example']}'" for one in headers)
    if not content:
        return [f'curl{verb} "{address}"']
    found = []
    for kind, body in content.items():
        example = body["example"]
        if kind == "application/json":
            told = verb.removeprefix(" -X POST")
            found.append(f"curl{told} \"{address}\" -H 'Content-Type: {kind}' -d '{json.dumps(example)}'")
            continue
        files = {name for name, field in body["schema"]["properties"].items() if _holds_files(field)}
        parts = []
        for name, value in example.items():
            values = value if isinstance(value, list) else [value]
            parts += [f"{name}=@{one}" if name in files else f"'{name}={one}'" for one in values]
        found.append(f'curl "{address}"' + "".join(f" -F {part}" for part in parts))
    return found


def _holds_files(field: dict[str, Any]) -> bool:
    return bool(field.get("items", field).get("format") == "binary")
