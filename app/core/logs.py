"""Logging: text for a person or JSON for a collector, with the request's id, and only from the loggers listed."""

import logging
import re
import sys
import traceback
import uuid
import warnings
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any, Literal

import structlog

# Libraries that read files write names and DICOM values into their messages, so only these loggers are heard.
HEARD = ("lejepa_med.app", "uvicorn.error")
FIELDS = ("method", "route", "status", "milliseconds")  # of `extra=` that JSON lines carry; others stay unheard
Format = Literal["text", "json"]

_request: ContextVar[str | None] = ContextVar("lejepa_med_request", default=None)


def request_id() -> str | None:
    """The id of the request that is being answered here; None in jobs and at the start."""
    return _request.get()


def begin_request(given: str) -> str:
    """Set the id of the request that is answered from here on: the client's own, or a new one.

    Only the 32 hexadecimal digits of a UUID are taken, with or without its dashes: anything freer may be a name.
    """
    taken = re.fullmatch(r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", given, re.IGNORECASE)
    found = given if taken else uuid.uuid4().hex
    _request.set(found)
    return found


def where(error: BaseException) -> str:
    """Code positions of an exception, innermost first; never its message, which may hold a path or an identifier."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))


def heard(record: logging.LogRecord) -> bool:
    """Whether a record is written; what it says of an exception is reduced to type and code positions."""
    if not record.name.startswith(HEARD):
        return False
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        record.msg, record.args = f"{record.getMessage().strip()} ({type(error).__name__} at {where(error)})", ()
    record.exc_info = record.exc_text = record.stack_info = None
    # uvicorn's words for a failed start are a traceback; app/main.py says the same in one line.
    return not record.getMessage().startswith("Traceback")


def configure(*, level: str, format: Format | None) -> None:
    """Log to standard error, from the heard loggers only.

    Args:
        level: debug, info, warning or error.
        format: text, or json with one object a line; None: text on a terminal, JSON elsewhere.
    """
    on_terminal = sys.stderr.isatty()
    as_json = format == "json" or (format is None and not on_terminal)
    chain: list[structlog.typing.Processor] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_request,
    ]
    if as_json:  # in a line of text they stand in the message
        chain.append(structlog.stdlib.ExtraAdder(allow=FIELDS))
    handler = logging.StreamHandler()
    handler.addFilter(heard)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=chain,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer() if as_json else _console(colors=on_terminal),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    warnings.simplefilter("ignore")  # pydicom and others quote the values that they warn of


def _console(*, colors: bool) -> structlog.dev.ConsoleRenderer:
    # The default prints the values of local variables with an exception.
    plain = structlog.dev.plain_traceback
    return structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=0, exception_formatter=plain)


def _add_request(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    found = request_id()
    if found is not None:
        event["request"] = found
    return event
