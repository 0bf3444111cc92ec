"""One module for each resource of the API."""

from typing import Annotated

from fastapi import Depends, Request

from app.service import Service


async def get_service(request: Request) -> Service:
    """The running service of this app; a coroutine, as a plain function would cost every request a thread."""
    service: Service = request.app.state.service
    return service


Running = Annotated[Service, Depends(get_service)]
