"""Answers that a browser may keep: an ETag, and 304 where it has the same one already."""

from collections.abc import Callable, Mapping

from fastapi import Request, Response

KEPT = "private, max-age=86400"  # pictures of one table: its content is in their tag
CHECKED = "private, no-cache"  # kept, and asked for again with If-None-Match


def tagged(
    request: Request,
    tag: str,
    make: Callable[[], bytes],
    *,
    media_type: str,
    headers: Mapping[str, str] | None = None,
    keep: str = CHECKED,
) -> Response:
    """Return what `make` gives with the ETag `tag`, or 304 where the request names it; `make` is then not called."""
    quoted = f'"{tag}"'
    told = {"ETag": quoted, "Cache-Control": keep, **(headers or {})}
    given = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
    if quoted in given or given == ["*"]:
        return Response(status_code=304, headers=told)
    return Response(make(), media_type=media_type, headers=told)
