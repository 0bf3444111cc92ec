"""What the parts of the client share: the connection, and how values are written into requests."""

import json
from typing import Any
from urllib.parse import quote

from lejepa_med.client.http import Http


class Calls:
    """A part of the client."""

    _http: Http


def form_fields(**given: Any) -> dict[str, str]:
    """Form fields: text as it is, everything else as JSON, and nothing for None."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in given.items()
        if value is not None
    }


def given_fields(**given: Any) -> dict[str, Any]:
    """Fields of a JSON body; nothing for None."""
    return {name: value for name, value in given.items() if value is not None}


def part(name: str) -> str:
    """A name as one part of an address."""
    return quote(name, safe="")
