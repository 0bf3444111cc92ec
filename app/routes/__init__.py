"""One module for each resource of the API."""

from collections.abc import Sequence
from typing import Annotated, TypeVar
from urllib.parse import urlencode

from fastapi import Depends, Query, Request

from app.api.service import Service


async def get_service(request: Request) -> Service:
    """The running service of this app; a coroutine, as a plain function would cost every request a thread."""
    service: Service = request.app.state.service
    return service


Running = Annotated[Service, Depends(get_service)]

MOST = 2**31 - 1  # that every database takes for an offset
Offset = Annotated[int, Query(ge=0, le=MOST, description="entries before the page")]
Limit = Annotated[int, Query(ge=1, le=1000, description="entries of the page")]
T = TypeVar("T")


def page(rows: Sequence[T], request: Request, *, offset: int, limit: int) -> tuple[Sequence[T], str | None]:
    """The first `limit` of the rows, and the link to the next page where there are more: the same query further on."""
    if len(rows) <= limit:
        return rows, None
    asked = {**request.query_params, "offset": offset + limit, "limit": limit}
    return rows[:limit], f"{request.url.path}?{urlencode(asked)}"
