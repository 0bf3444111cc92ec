"""Pages of studies: one look, text escaped, nothing loaded from anywhere."""

from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lejepa_med import __version__


def render(template: str, **values: Any) -> str:
    """A template of `study/templates` as HTML."""
    environment = Environment(
        loader=PackageLoader("lejepa_med.study", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(template).render(version=__version__, written=written, **values)


def figure(value: Any) -> str:
    """A table cell: numbers short, nothing as a dash."""
    if value is None or value == "":
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
