"""One module for each resource of the API."""

from typing import Annotated

from fastapi import Depends, Request

from app.service import Service


def get_service(request: Request) -> Service:
    """The running service of this app."""
    service: Service = request.app.state.service
    return service


Running = Annotated[Service, Depends(get_service)]
